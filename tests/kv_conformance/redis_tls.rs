//! Redis over TLS. Which certificates count is said by the environment, so the client is a process of its own. The
//! certificates in `tests/support/tls` are for `localhost` and good for nothing else; the key of their CA is gone.

use std::path::Path;
use std::process::{Command, Output};

use hfmount::error::Kind;
use hfmount::meta::kv::{Change, Event, Kv, Outcome, Txn};
use hfmount::meta::redis::{RedisAddress, RedisKv, RedisOptions};
use hfmount::types::Ino;

use crate::redis_server::RedisServer;
use crate::world::{next, set, value};

const PORT: &str = "HFMOUNT_TEST_TLS_PORT";
const HOST: &str = "HFMOUNT_TEST_TLS_HOST";

/// Not a test of its own: the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the client of the test below"]
async fn client() {
    let port = std::env::var(PORT).expect("run by another test only").parse().expect("port");
    let host = std::env::var(HOST).expect("run by another test only");
    let options = RedisOptions::new(RedisAddress::Tcp { host, port, tls: true });
    let kv = match RedisKv::open(options).await {
        Ok(kv) => kv,
        Err(e) => {
            assert_eq!(e.kind(), Kind::Config, "{e}");
            println!("refused: {e}");
            return;
        }
    };
    let mut watch = kv.watch().await.expect("watch");
    let change = Change::Inode { ino: Ino(1) };
    let txn = Txn { write: vec![set("m", "a", "1")], publish: vec![change.clone()], ..Txn::default() };
    assert_eq!(kv.commit(txn).await.expect("commit"), Outcome::Applied);
    assert_eq!(next(&mut watch).await, Event::Changed { change, by: None });
    assert_eq!(value(&*kv, "m", "a").await.as_deref(), Some("1"));
    println!("works");
}

#[test]
fn certificates_are_checked() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/tls");
    let file = |name: &str| dir.join(name).to_str().expect("UTF-8 path").to_owned();
    let server = RedisServer::start_tls(&file("server.pem"), &file("server.key"), &file("ca.pem"));
    let port = server.tls_port().to_string();
    let run = |host: &str, certificates: &str| -> Output {
        Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "redis_tls::client", "--ignored", "--nocapture"])
            .env(PORT, &port)
            .env(HOST, host)
            .env("SSL_CERT_FILE", certificates)
            .env_remove("SSL_CERT_DIR")
            .output()
            .expect("client")
    };
    let text = |output: &Output| {
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let trusted = text(&run("localhost", &file("ca.pem")));
    assert!(trusted.contains("works"), "{trusted}");
    // A certificate that is not the CA's, and a name that is not in the certificate.
    for (host, certificates) in [("localhost", file("server.pem")), ("127.0.0.1", file("ca.pem"))] {
        let refused = text(&run(host, &certificates));
        assert!(refused.contains("refused") && refused.contains("certificate"), "{refused}");
    }
}
