//! A `redis-server` of the test's own: on a free port of the loopback, its data in a folder that goes with it, stopped by
//! its own process when dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take to answer its first PING.
const START: Duration = Duration::from_secs(20);

/// A running server, or one that was stopped and keeps its data.
#[derive(Debug)]
pub struct RedisServer {
    dir: TempDir,
    port: u16,
    tls_port: u16,
    args: Vec<String>,
    supervised: bool,
    starter: Option<Starter>,
    child: Option<Process>,
}

/// A shell that starts the server whenever it is told to, and says when it has ended.
#[derive(Debug)]
struct Starter {
    shell: Child,
    orders: ChildStdin,
    words: BufReader<ChildStdout>,
}

/// A running server.
#[derive(Debug)]
enum Process {
    Own(Child),
    /// Of the [`Starter`].
    Its(i32),
}

impl Starter {
    fn new(server: &mut Command) -> Self {
        let script = r#"while read -r order; do "$@" & echo $!; wait $!; echo ended; done"#;
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(server.get_program()).args(server.get_args());
        let mut shell =
            shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("sh");
        let (orders, words) = (shell.stdin.take().expect("piped"), shell.stdout.take().expect("piped"));
        Starter { shell, orders, words: BufReader::new(words) }
    }

    fn start(&mut self) -> Process {
        self.orders.write_all(b"start\n").expect("shell");
        Process::Its(self.word().parse().expect("process id"))
    }

    fn word(&mut self) -> String {
        let mut line = String::new();
        self.words.read_line(&mut line).expect("shell");
        line.trim().to_owned()
    }
}

#[allow(dead_code, reason = "each test binary uses its part")]
impl RedisServer {
    /// Starts a server that keeps an append-only file.
    ///
    /// # Panics
    /// If there is no `redis-server` in the PATH, or it does not start.
    pub fn start() -> Self {
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// Starts a server with further arguments; without any it keeps nothing.
    pub fn start_with(args: &[&str]) -> Self {
        Self::launch(args.iter().map(|arg| (*arg).to_owned()).collect(), false, false)
    }

    /// As [`RedisServer::start_with`], for a server that is started again while this process has files open on a mount that
    /// needs it: a child of this process would close its copies of them before it became the server, and wait for ever.
    pub fn start_supervised(args: &[&str]) -> Self {
        Self::launch(args.iter().map(|arg| (*arg).to_owned()).collect(), false, true)
    }

    /// Starts a server that also listens for TLS, and asks its clients for no certificate.
    pub fn start_tls(certificate: &str, key: &str, ca: &str) -> Self {
        let args = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", ca];
        let args = args.iter().chain(&["--tls-auth-clients", "no"]);
        Self::launch(args.map(|arg| (*arg).to_owned()).collect(), true, false)
    }

    fn launch(args: Vec<String>, tls: bool, supervised: bool) -> Self {
        let dir = TempDir::with_prefix("hfmount-redis-").expect("temporary folder");
        let mut server =
            RedisServer { dir, port: 0, tls_port: 0, args, supervised, starter: None, child: None };
        for _ in 0..5 {
            // Somebody may take a port between the two: then the server ends at once, and others are tried.
            let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("free port");
            let port = |listener: &TcpListener| listener.local_addr().expect("local address").port();
            let (one, two) = (free(), free());
            server.port = port(&one);
            server.tls_port = if tls { port(&two) } else { 0 };
            drop((one, two));
            if server.try_run() {
                return server;
            }
        }
        panic!("redis-server did not start:\n{}", server.log());
    }

    /// `redis://127.0.0.1:<port>/0`.
    pub fn url(&self) -> String {
        format!("redis://{}/0", self.address())
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens for TLS.
    pub fn tls_port(&self) -> u16 {
        self.tls_port
    }

    /// The server's folder.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Kills the server at once; its data stays.
    pub fn kill(&mut self) {
        match self.child.take() {
            None => {}
            Some(Process::Own(mut child)) => {
                child.kill().expect("kill redis-server");
                child.wait().expect("wait for redis-server");
            }
            Some(Process::Its(pid)) => {
                let pid = rustix::process::Pid::from_raw(pid).expect("process id");
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill redis-server");
                assert_eq!(self.starter.as_mut().expect("it started it").word(), "ended");
            }
        }
    }

    /// Starts a killed server again, on its port and its data.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.try_run(), "redis-server did not start again:\n{}", self.log());
    }

    /// Stops (true) or continues (false) the server's process: connections stay, nothing answers.
    pub fn freeze(&self, frozen: bool) {
        let id = match self.child.as_ref().expect("running") {
            Process::Own(child) => child.id().cast_signed(),
            Process::Its(pid) => *pid,
        };
        let pid = rustix::process::Pid::from_raw(id).expect("process id");
        let signal = if frozen { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        rustix::process::kill_process(pid, signal).expect("signal redis-server");
    }

    /// What the server answers to one command, as one reads it off the wire (bulk strings and status lines only).
    pub fn ask(&self, words: &[&str]) -> String {
        let mut stream = TcpStream::connect(self.address()).expect("connect to redis-server");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        stream.write_all(request.as_bytes()).expect("send");
        let mut reply = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let n = stream.read(&mut piece).expect("reply of redis-server");
            assert_ne!(n, 0, "redis-server hung up");
            reply.extend_from_slice(&piece[..n]);
            let text = String::from_utf8_lossy(&reply);
            let Some((head, body)) = text.split_once("\r\n") else { continue };
            match head.strip_prefix('$').map(|len| len.parse::<usize>()) {
                None => return head.to_owned(),
                Some(Err(_)) => return String::new(),
                Some(Ok(len)) if body.len() >= len => return body[..len].to_owned(),
                Some(Ok(_)) => {}
            }
        }
    }

    /// How often clients called each command since the server started, from `INFO commandstats`. What scripts call counts
    /// too.
    pub fn calls(&self, command: &str) -> u64 {
        let stats = self.ask(&["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |rest| rest.split(',').next().expect("number").parse().expect("number"))
    }

    fn try_run(&mut self) -> bool {
        let log = self.dir.path().join("log");
        let mut server = Command::new("redis-server");
        server
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--logfile", log.to_str().expect("UTF-8 path")])
            .args(if self.tls_port > 0 {
                vec!["--tls-port".to_owned(), self.tls_port.to_string()]
            } else {
                vec![]
            })
            .args(["--dir", self.dir.path().to_str().expect("UTF-8 path")])
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.child = Some(if self.supervised {
            self.starter.get_or_insert_with(|| Starter::new(&mut server)).start()
        } else {
            Process::Own(server.spawn().expect("these tests need redis-server in the PATH"))
        });
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if self.has_ended() {
                self.child = None;
                // The next try may be on another port.
                self.starter = None;
                return false;
            }
            if self.answers() {
                return true;
            }
            sleep(Duration::from_millis(5));
        }
        self.kill();
        false
    }

    fn has_ended(&mut self) -> bool {
        match self.child.as_mut().expect("started") {
            Process::Own(child) => child.try_wait().expect("state of redis-server").is_some(),
            // The shell has waited for it.
            Process::Its(pid) => !std::path::Path::new(&format!("/proc/{pid}")).exists(),
        }
    }

    /// Any answer but LOADING: with a password it is an error, which will do.
    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.address()) else { return false };
        let mut reply = [0; 8];
        stream.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
        stream.write_all(b"PING\r\n").is_ok()
            && stream.read(&mut reply).is_ok_and(|n| n > 0)
            && !reply.starts_with(b"-LOADING")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        match self.child.take() {
            None => {}
            Some(Process::Own(mut child)) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Some(Process::Its(pid)) => {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
        if let Some(Starter { mut shell, orders, .. }) = self.starter.take() {
            drop(orders);
            let _ = shell.wait();
        }
    }
}
