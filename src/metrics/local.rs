//! The same page on a unix socket, for tools of the user who mounted: there always, whatever is served to the network.
//!
//! The socket lies in a folder, 0600; besides, who connects is asked who he is: only this user and root get an answer.
//! `curl --unix-socket FILE http://hfmount/metrics` works as well.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::serve::{Door, run};

/// The largest answer that is taken.
const LARGEST: u64 = 4 << 20;
/// How long a socket may take to show whether somebody listens.
const LISTENS: Duration = Duration::from_secs(1);

/// Serves until it is dropped; then the socket goes.
#[derive(Debug)]
pub struct LocalServer {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl LocalServer {
    /// Makes the socket `path` and answers `GET /metrics` there with what `page` says then. `page` must not block. The folder
    /// is made if it is not there; what is at `path` is replaced.
    pub fn start(path: &Path, page: impl Fn() -> String + Send + Sync + 'static) -> io::Result<Self> {
        fs::create_dir_all(folder(path)?)?;
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = through_folder(path, |short| UnixListener::bind(short))?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        let task = tokio::spawn(run(listener, Arc::new(page)));
        Ok(LocalServer { path: path.to_owned(), task })
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the sockets (`*.sock`) in `dir` that nobody listens on: what killed daemons left.
    pub async fn sweep(dir: &Path) {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        for path in entries.filter(|p| p.extension().is_some_and(|x| x == "sock")) {
            let connected = tokio::time::timeout(LISTENS, connect(&path)).await;
            if matches!(connected, Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused) {
                // Another daemon may have been faster.
                let _ = fs::remove_file(&path);
            }
        }
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        self.task.abort();
        // Absent or not, it does no harm.
        let _ = fs::remove_file(&self.path);
    }
}

/// The page that the server at `path` gives now. An error of the kind `NotFound` or `ConnectionRefused`: nobody is there.
/// Bounded in size; the caller bounds the time.
pub async fn ask(path: &Path) -> io::Result<String> {
    let mut stream = connect(path).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: hfmount\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.take(LARGEST).read_to_string(&mut answer).await?;
    let (head, page) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    if !head.starts_with("HTTP/1.1 200 ") || !page.ends_with('\n') {
        return Err(io::Error::other(head.lines().next().unwrap_or_default().to_owned()));
    }
    Ok(page.to_owned())
}

impl Door for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.accept().await?;
            let uid = stream.peer_cred()?.uid();
            if uid == 0 || uid == rustix::process::geteuid().as_raw() {
                return Ok(stream);
            }
            tracing::debug!(uid, "another user asked for figures");
        }
    }
}

async fn connect(path: &Path) -> io::Result<UnixStream> {
    let dir = File::open(folder(path)?)?;
    UnixStream::connect(short(&dir, path)).await
}

fn folder(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::other("a socket needs a folder"))
}

/// The address of a socket has no more than 107 bytes; by way of the open folder every path is that short.
fn short(dir: &File, path: &Path) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(path.file_name().unwrap_or_default())
}

fn through_folder<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let dir = File::open(folder(path)?)?;
    act(&short(&dir, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    #[tokio::test]
    async fn a_page_for_the_own_user_however_long_the_path() {
        let tmp = tempfile::tempdir().expect("dir");
        let dir = tmp.path().join("x".repeat(120)).join("run");
        let path = dir.join("1-2.sock");
        let count = AtomicU64::new(0);
        let server = LocalServer::start(&path, move || format!("x_total {}\n", count.fetch_add(1, Relaxed)));
        let server = server.expect("starts");
        assert_eq!(server.path(), path);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(ask(&path).await.expect("answered"), "x_total 0\n");
        assert_eq!(ask(&path).await.expect("answered"), "x_total 1\n");

        // What a killed daemon left, and what is none of ours.
        let dead = dir.join("3-4.sock");
        drop(through_folder(&dead, |short| std::os::unix::net::UnixListener::bind(short)).expect("bound"));
        fs::write(dir.join("note.json"), "").expect("write");
        let refused = ask(&dead).await.expect_err("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        LocalServer::sweep(&dir).await;
        assert!(!dead.exists() && path.exists() && dir.join("note.json").exists());

        drop(server);
        assert!(!path.exists());
        assert_eq!(ask(&path).await.expect_err("gone").kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn what_is_no_page_is_an_error() {
        let tmp = tempfile::tempdir().expect("dir");
        let path = tmp.path().join("x.sock");
        let listener = UnixListener::bind(&path).expect("bound");
        for said in ["HTTP/1.1 404 Not Found\r\n\r\nGET /metrics\n", "nonsense", ""] {
            let answer = async {
                let (mut stream, _) = listener.accept().await.expect("asked");
                let mut asked = [0; 64];
                assert!(stream.read(&mut asked).await.expect("read") > 0);
                stream.write_all(said.as_bytes()).await.expect("write");
            };
            let (asked, ()) = tokio::join!(ask(&path), answer);
            assert!(asked.is_err(), "{said}");
        }
    }
}
