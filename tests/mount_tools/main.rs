//! What shows how a mount does: `hfmount stats`, `hfmount bench`, and what a service manager is told. The real program and
//! real kernel mounts; none of these asks the Hub for anything.

mod bench;
#[path = "../support/hub.rs"]
mod hub;
#[path = "../support/mount.rs"]
mod mount;
#[path = "../support/redis.rs"]
mod redis_server;
#[path = "../support/servers.rs"]
mod servers;
#[path = "../standin/mod.rs"]
mod standin;
mod stats;

use std::io::{BufRead, BufReader, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use mount::{Home, can_mount, text, wait_for};

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A program that runs beside the test, and ends with it. ^C ends it, whatever the test was started by.
struct Beside {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Beside {
    fn start(mut command: Command) -> Self {
        // SAFETY: signal() may be called between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            });
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Beside { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("a line");
        line
    }

    fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("pid");
        // SAFETY: kill touches no memory; the child has not been waited for, so the number is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Its exit code, and what it said on standard error.
    fn end(&mut self) -> (Option<i32>, String) {
        let mut status = None;
        wait_for("its end", || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        let mut said = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut said).expect("read");
        (status.expect("ended").code(), said)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_service_manager_is_told() {
    if !can_mount() {
        return;
    }
    let mut home = Home::formatted(&[]);
    let path = home.path().join("notify");
    let name = format!("hfmount-test-{}", std::process::id());
    let abstract_name = SocketAddr::from_abstract_name(&name).expect("name");
    let sockets = [
        (utf8(&path).to_owned(), UnixDatagram::bind(&path).expect("bound")),
        (format!("@{name}"), UnixDatagram::bind_addr(&abstract_name).expect("bound")),
    ];
    home.set_env("WATCHDOG_USEC", "200000");
    for (name, socket) in sockets {
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
        let hear = || {
            let mut buf = [0; 2048];
            let n = socket.recv(&mut buf).expect("heard");
            text(&buf[..n])
        };
        home.set_env("NOTIFY_SOCKET", &name);
        let mut mount = home.mount("mnt", &["--offline"]);
        let ready = hear();
        assert!(ready.starts_with("READY=1\nSTATUS=volume default on "), "{ready}");
        assert!((0..3).all(|_| hear() == "WATCHDOG=1"));
        mount.signal(libc::SIGTERM);
        let mut last = hear();
        while last == "WATCHDOG=1" {
            last = hear();
        }
        assert!(last.starts_with("STOPPING=1\nSTATUS=SIGTERM: "), "{last}");
        assert!(mount.wait().success());
    }
    // It is not there: that is no reason not to mount.
    home.set_env("NOTIFY_SOCKET", "/nowhere/notify");
    drop(home.mount("mnt", &["--offline"]));
}
