//! The command line: what it says, what it returns, and what it keeps to itself. The real program.

#[path = "support/mount.rs"]
mod mount;
#[path = "standin/mod.rs"]
mod standin;

use std::fs;
use std::net::TcpListener;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use mount::{Home, text};
use serde_json::Value;
use standin::S3;

fn json(out: &str) -> Value {
    serde_json::from_str(out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

fn said(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    listener.local_addr().expect("address").to_string()
}

#[test]
fn a_wrong_command_line_is_2_and_a_failure_is_1() {
    let home = Home::new();
    let code = |args: &[&str]| home.run(args).status.code();
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["--version"]), Some(0));
    assert_eq!(code(&[]), Some(2));
    assert_eq!(code(&["mount"]), Some(2));
    assert_eq!(code(&["format", "--chunk-size", "3M"]), Some(2));
    assert_eq!(code(&["format", "Bad_Name"]), Some(2));
    assert_eq!(code(&["mount", "--umask", "9", "/tmp"]), Some(2));
    assert_eq!(code(&["status"]), Some(1), "no volume yet");
    assert_eq!(code(&["umount", "/"]), Some(1));
}

#[test]
fn formatting_twice_changes_nothing() {
    let home = Home::new();
    let first = json(&home.run_ok(&["format", "--json", "my-team"]));
    assert_eq!(first["result"], "made");
    assert_eq!(first["volume"]["name"], "my-team");
    assert_eq!(first["volume"]["chunk_size"], 4 << 20);
    let again = json(&home.run_ok(&["format", "--json"]));
    assert_eq!(again["result"], "kept");
    assert_eq!(again["volume"], first["volume"]);
    assert!(home.run_ok(&["format"]).contains("nothing was changed"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let home = Home::formatted(&[]);
    for args in [&["status"][..], &["status", "--json"], &["format"], &["format", "--json"]] {
        let (reader, writer) = std::io::pipe().expect("pipe");
        drop(reader);
        let output = home.command(args).stdout(writer).stderr(Stdio::piped()).output().expect("hfmount runs");
        assert_eq!((output.status.code(), said(&output).as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn settings_change_only_when_asked_and_some_never() {
    let home = Home::formatted(&[]);
    let hub = ["--hub-endpoint", "http://127.0.0.1:9/"];
    let kept = json(&home.run_ok(&[&["format", "--json"], &hub[..]].concat()));
    assert_eq!(kept["result"], "kept");
    assert!(kept["notices"][0].as_str().expect("notice").contains("--update"), "{kept}");
    let changed = json(&home.run_ok(&[&["format", "--json", "--update"], &hub[..]].concat()));
    assert_eq!(changed["result"], "changed");
    assert_eq!(changed["volume"]["hub_endpoint"], "http://127.0.0.1:9");
    let status = json(&home.run_ok(&["status", "--json"]));
    assert_eq!(status["volume"]["hub_endpoint"], "http://127.0.0.1:9");
    let before = home.run_ok(&["status", "--json"]);
    for fixed in [
        &["format", "--update", "another-name"][..],
        &["format", "--update", "--chunk-size", "8M"],
        &["format", "--update", "--storage", "file:///somewhere/else"],
    ] {
        let output = home.run(fixed);
        assert_eq!(output.status.code(), Some(1), "{fixed:?}");
        assert!(said(&output).contains("never changes"), "{}", said(&output));
    }
    assert_eq!(home.run_ok(&["status", "--json"]), before);
}

#[test]
fn a_place_that_holds_another_volume_is_refused() {
    let home = Home::new();
    let store = home.dir("store");
    let url = format!("file://{}", store.display());
    let meta = |n: u32| format!("sqlite://{}", home.path().join(format!("{n}.db")).display());
    home.run_ok(&["format", "--meta", &meta(1), "--storage", &url]);
    let output = home.run(&["format", "--meta", &meta(2), "--storage", &url]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("another volume"), "{}", said(&output));
    assert!(!home.path().join("2.db").exists(), "a failed format leaves no metadata behind");
    // Another name is another prefix.
    home.run_ok(&["format", "--meta", &meta(3), "--storage", &url, "second"]);
}

#[test]
fn what_cannot_be_reached_is_named_in_time() {
    let home = Home::new();
    let begun = Instant::now();
    let server = nobody();
    let redis = home.run(&["format", "--meta", &format!("redis://{server}/0")]);
    assert_eq!(redis.status.code(), Some(1));
    assert!(said(&redis).contains(&server), "{}", said(&redis));
    let mut home = home;
    home.set_env("AWS_ACCESS_KEY_ID", "id");
    home.set_env("AWS_SECRET_ACCESS_KEY", "hunter2");
    let s3 = home.run(&["format", "--storage", "s3://bucket/x", "--endpoint", &format!("http://{server}")]);
    assert_eq!(s3.status.code(), Some(1));
    assert!(said(&s3).contains(&server) && !said(&s3).contains("hunter2"), "{}", said(&s3));
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
}

#[test]
fn bad_urls_are_refused_without_repeating_their_passwords() {
    let home = Home::new();
    for args in [
        &["format", "--meta", "http://u:hunter2@x/"][..],
        &["format", "--meta", "redis://u:hunter2@x/notanumber"],
        &["status", "redis://u:hunter2@x:99999/0"],
        &["format", "--storage", "s3://u:hunter2@bucket/x"],
        &["format", "--storage", "ftp://u:hunter2@bucket/x"],
        &["format", "--hub-endpoint", "http://u:hunter2@x/"],
        &["format", "--storage", "s3://bucket", "--endpoint", "http://u:hunter2@x/"],
    ] {
        let output = home.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(!said(&output).contains("hunter2"), "{args:?}: {}", said(&output));
        assert!(!text(&output.stderr).is_empty(), "{args:?}");
    }
}

#[test]
fn a_password_on_the_command_line_does_not_stay_there() {
    let home = Home::new();
    // A server that accepts and says nothing: the program waits with its command line in view.
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let url = format!("redis://user:hunter2@{}/0", listener.local_addr().expect("address"));
    let mut child = home
        .command(&["status", "--meta", &url])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("hfmount runs");
    let (_connection, _) = listener.accept().expect("it connects");
    let line = fs::read(format!("/proc/{}/cmdline", child.id())).expect("cmdline");
    child.kill().expect("kill");
    child.wait().expect("wait");
    let line = text(&line);
    assert!(line.contains("user@127.0.0.1"), "{line:?}");
    assert!(!line.contains("hunter2"), "{line:?}");
}

#[test]
fn the_environment_does_not_show_in_help() {
    let mut home = Home::new();
    home.set_env("HFMOUNT_META", "redis://:hunter2@x");
    for verb in ["format", "mount", "status", "umount"] {
        let help = home.run_ok(&[verb, "--help"]);
        assert!(!help.contains("hunter2") && help.contains("Examples:"), "{help}");
    }
}

#[test]
fn secrets_come_from_files_too_and_only_one_way() {
    let mut home = Home::new();
    let file = home.path().join("password");
    fs::write(&file, "hunter2\n").expect("write");
    home.set_env("HFMOUNT_META_PASSWORD_FILE", file.to_str().expect("UTF-8"));
    home.set_env("HFMOUNT_META_PASSWORD", "other");
    let output = home.run(&["status", "redis://127.0.0.1:1/0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("both set"), "{}", said(&output));
    home.set_env("HFMOUNT_META_PASSWORD", "");
    home.set_env("HFMOUNT_META_PASSWORD_FILE", "/nonexistent/password");
    let output = home.run(&["status", "redis://127.0.0.1:1/0"]);
    assert!(said(&output).contains("/nonexistent/password"), "{}", said(&output));
}

#[test]
fn mounting_on_what_is_not_fit_says_why() {
    let home = Home::formatted(&[]);
    let refused = |args: &[&str], why: &str| {
        for background in [&[][..], &["-d"]] {
            let output = home.run(&[&["mount"], background, args].concat());
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            assert!(said(&output).contains(why), "{args:?}: {}", said(&output));
        }
    };
    let path = |name: &str| home.path().join(name).to_str().expect("UTF-8").to_owned();
    refused(&[&path("none")], "none: the directory does not exist");
    fs::write(path("file"), "").expect("write");
    refused(&[&path("file")], "it is not a directory");
    home.dir("mnt");
    refused(&[&path("mnt"), "--cache-dir", &path("mnt/cache")], "cache directory");
    refused(&[&path("mnt"), "--token-file", &path("no-token")], "no-token");
    refused(&[&path("hfmount")], "lies under the mount point");
    refused(&[&path("mnt"), "--meta", &format!("sqlite://{}", path("no.db"))], "`hfmount format`");
    refused(&[&path("mnt"), "--io-timeout", "0"], "--io-timeout");
}

#[test]
fn a_volume_for_newer_programs_is_refused() {
    let home = Home::formatted(&[]);
    let db = home.path().join("hfmount/meta.db");
    let status = json(&home.run_ok(&["status", "--json"]));
    assert_eq!(status["volume"]["min_client"], 1);
    let sql = rusqlite::Connection::open(&db).expect("sqlite");
    let tables: Vec<String> = sql
        .prepare("SELECT name FROM sqlite_master WHERE type = 'table'")
        .and_then(|mut s| s.query_map([], |r| r.get(0))?.collect())
        .expect("tables");
    let mut changed = 0;
    for table in tables {
        changed += sql
            .execute(
                &format!(
                    "UPDATE {table} SET value = CAST(replace(CAST(value AS TEXT), '\"min_client\": 1', '\"min_client\": 9') AS BLOB) \
                     WHERE CAST(value AS TEXT) LIKE '%min_client%'"
                ),
                [],
            )
            .unwrap_or(0);
    }
    drop(sql);
    assert_eq!(changed, 1, "the settings were found");
    for args in [&["status"][..], &["format"], &["mount", "/tmp"]] {
        let output = home.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(said(&output).contains("use a newer one"), "{args:?}: {}", said(&output));
    }
}

#[test]
fn keys_of_the_bucket_are_sealed_with_a_passphrase() {
    let mut home = Home::new();
    let s3 = S3::start(home.dir("s3")).expect("a free port");
    let storage = format!("s3://{}/prefix", s3.bucket());
    home.set_env("HFMOUNT_PASSPHRASE", "open sesame");
    home.set_env("AWS_ACCESS_KEY_ID", s3.access_key());
    home.set_env("AWS_SECRET_ACCESS_KEY", s3.secret_key());
    let args = ["format", "--json", "--storage", &storage, "--endpoint", s3.endpoint()];
    let made = home.run_ok(&args);
    assert_eq!(json(&made)["volume"]["keys_sealed"], true);
    for secret in [s3.secret_key(), "sesame"] {
        assert!(!made.contains(secret));
        for file in ["meta.db", "meta.db-wal"] {
            let bytes = fs::read(home.path().join("hfmount").join(file)).unwrap_or_default();
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret} in {file}");
        }
    }
    let usable = |home: &Home| {
        let storage = json(&home.run_ok(&["status", "--json"]))["storage"].clone();
        (storage["ok"] == true, storage["error"].as_str().unwrap_or_default().to_owned())
    };
    home.set_env("AWS_ACCESS_KEY_ID", "");
    home.set_env("AWS_SECRET_ACCESS_KEY", "");
    assert_eq!(usable(&home), (true, String::new()), "the passphrase is enough");
    home.set_env("HFMOUNT_PASSPHRASE", "open barley");
    let (ok, why) = usable(&home);
    assert!(!ok && why.contains("passphrase") && !why.contains("barley"), "{why}");
    home.set_env("HFMOUNT_PASSPHRASE", "");
    let (ok, why) = usable(&home);
    assert!(!ok && why.contains("HFMOUNT_PASSPHRASE_FILE"), "{why}");
    let refused = home.run(&["mount", home.dir("mnt").to_str().expect("UTF-8")]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("HFMOUNT_PASSPHRASE"), "{}", said(&refused));
    // The keys themselves do as well.
    home.set_env("AWS_ACCESS_KEY_ID", s3.access_key());
    home.set_env("AWS_SECRET_ACCESS_KEY", s3.secret_key());
    assert!(usable(&home).0);
}

#[test]
fn keys_that_a_folder_does_not_need_are_not_kept() {
    let mut home = Home::new();
    home.set_env("HFMOUNT_PASSPHRASE", "open sesame");
    home.set_env("AWS_ACCESS_KEY_ID", "id");
    home.set_env("AWS_SECRET_ACCESS_KEY", "hunter2");
    let made = json(&home.run_ok(&["format", "--json"]));
    assert_eq!(made["volume"]["keys_sealed"], false);
}
