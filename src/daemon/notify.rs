//! What a service manager is told: that the mount answers, how it is, that it ends, and that it still works. systemd's
//! protocol (`sd_notify(3)`): datagrams of `NAME=value` lines to the socket that `NOTIFY_SOCKET` names. Nothing happens where
//! that is not set, and nothing fails because nobody listens.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

/// The longest status that is sent, characters.
const LONGEST: usize = 500;

/// The service manager, if there is one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Manager {
    socket: Option<Arc<(UnixDatagram, SocketAddr)>>,
    /// It wants to hear this often that the daemon works.
    watchdog: Option<Duration>,
}

impl Manager {
    /// As the environment says.
    pub(super) fn from_env() -> Self {
        let lookup = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        let Some(name) = lookup("NOTIFY_SOCKET") else { return Manager::default() };
        match open(&name) {
            Ok(socket) => {
                let text = |name| lookup(name)?.into_string().ok();
                let watchdog = watchdog(text("WATCHDOG_USEC"), text("WATCHDOG_PID"), std::process::id());
                Manager { socket: Some(Arc::new(socket)), watchdog }
            }
            Err(e) => {
                tracing::warn!("NOTIFY_SOCKET {}: {e}", name.to_string_lossy());
                Manager::default()
            }
        }
    }

    /// The mount answers.
    pub(super) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", line(status)));
    }

    /// What it is doing now.
    pub(super) fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", line(status)));
    }

    /// It ends.
    pub(super) fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={}", line(status)));
    }

    /// From now on says as often as is wanted that the daemon works: by a task among the others, so that it falls silent when
    /// those get no turn. A server that does not answer is no reason to: operations on it end by their own bounds.
    pub(super) fn watch(&self) {
        let Some(every) = self.watchdog else { return };
        let manager = self.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(every);
            loop {
                tick.tick().await;
                manager.send("WATCHDOG=1");
            }
        });
    }

    /// Never waits: the socket does not block.
    fn send(&self, words: &str) {
        let Some((socket, to)) = self.socket.as_deref() else { return };
        if let Err(e) = socket.send_to_addr(words.as_bytes(), to) {
            tracing::debug!("the service manager does not listen: {e}");
        }
    }
}

/// A path, or with `@` a name that no file system has.
fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a path nor @name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

/// Twice in the time that is allowed; `None` if it is not asked for, or of another process.
fn watchdog(micros: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid != own.to_string()) {
        return None;
    }
    let micros: u64 = micros?.parse().ok()?;
    (micros > 0).then(|| Duration::from_micros(micros / 2).max(Duration::from_millis(1)))
}

/// A value is one line.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buf = [0; 2048];
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        let n = socket.recv(&mut buf).expect("heard");
        String::from_utf8_lossy(&buf[..n]).into_owned()
    }

    #[tokio::test]
    async fn it_is_told_by_path_and_by_name() {
        let tmp = tempfile::tempdir().expect("dir");
        let path = tmp.path().join("notify");
        let name = format!("hfmount-test-{}-{:x}", std::process::id(), rand::random::<u64>());
        let by_name = SocketAddr::from_abstract_name(&name).expect("name");
        let sockets = [
            (path.as_os_str().to_owned(), UnixDatagram::bind(&path).expect("bound")),
            (format!("@{name}").into(), UnixDatagram::bind_addr(&by_name).expect("bound")),
        ];
        for (name, socket) in sockets {
            let opened = Arc::new(open(&name).expect("opened"));
            let manager = Manager { socket: Some(opened), watchdog: Some(Duration::from_millis(5)) };
            manager.ready("volume x\non /mnt");
            assert_eq!(heard(&socket), "READY=1\nSTATUS=volume x on /mnt");
            manager.status(&"y".repeat(10_000));
            assert_eq!(heard(&socket).len(), "STATUS=".len() + LONGEST);
            manager.stopping("writing");
            assert_eq!(heard(&socket), "STOPPING=1\nSTATUS=writing");
            manager.watch();
            for _ in 0..2 {
                let socket = socket.try_clone().expect("socket");
                let said = tokio::task::spawn_blocking(move || heard(&socket)).await.expect("heard");
                assert_eq!(said, "WATCHDOG=1");
            }
            drop(socket);
            manager.status("nobody listens: that is no failure");
        }
        assert!(open(OsStr::new("relative")).is_err());
        Manager::default().ready("nobody");
    }

    #[test]
    fn the_watchdog_is_for_one_process() {
        let of = |micros: &str, pid: Option<&str>| watchdog(Some(micros.into()), pid.map(str::to_owned), 7);
        assert_eq!(of("3000000", None), Some(Duration::from_millis(1500)));
        assert_eq!(of("3000000", Some("7")), Some(Duration::from_millis(1500)));
        assert_eq!((of("3000000", Some("8")), of("0", None), of("x", None)), (None, None, None));
        assert_eq!(watchdog(None, None, 7), None);
    }
}
