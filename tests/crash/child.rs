//! This test program started again as something else: a server that can be killed, or a program that a broken mapping may
//! kill. Which, and with what, stands in the environment.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::standin::{S3, S3Options};

/// Says what this process is.
const ROLE: &str = "HFMOUNT_CRASH_CHILD";

/// This program again, in a role. It ends with its parent.
fn again(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "child::not_a_test_but_a_child", "--ignored", "--nocapture"]).env(ROLE, role);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: prctl may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command
}

/// An S3 server over a folder that can be killed and started again. A shell starts it: a child of this process would first
/// close its copies of the files that are open here on mounts which wait for just this server, and so wait for ever.
#[derive(Debug)]
pub struct S3Server {
    shell: Child,
    orders: ChildStdin,
    words: BufReader<ChildStdout>,
    pid: Option<i32>,
}

impl S3Server {
    pub fn new(root: &Path, port: u16) -> Self {
        let server = again(&format!("s3:{port}:{}", root.display()));
        let script =
            r#"while read -r order; do "$@" >/dev/null 2>&1 </dev/null & echo $!; wait $!; echo ended; done"#;
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(server.get_program()).args(server.get_args());
        shell.envs(server.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut shell =
            shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("sh");
        let (orders, words) = (shell.stdin.take().expect("piped"), shell.stdout.take().expect("piped"));
        let mut server = S3Server { shell, orders, words: BufReader::new(words), pid: None };
        server.start();
        server
    }

    pub fn start(&mut self) {
        assert_eq!(self.pid, None, "it runs");
        self.orders.write_all(b"start\n").expect("shell");
        self.pid = Some(self.word().parse().expect("process id"));
    }

    pub fn kill(&mut self) {
        if self.pid.is_some() {
            self.signal(libc::SIGKILL);
            self.pid = None;
            assert_eq!(self.word(), "ended");
        }
    }

    pub fn signal(&self, signal: i32) {
        let pid = self.pid.expect("it runs");
        // SAFETY: kill touches no memory; the shell has not said that the process ended, so the number is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "signal {signal}");
    }

    fn word(&mut self) -> String {
        let mut line = String::new();
        self.words.read_line(&mut line).expect("shell");
        line.trim().to_owned()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.kill();
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// Writes `seed` over `len` bytes at `offset` of a file through a shared mapping and syncs it. An error is the reason why it is
/// not known what became of that.
pub fn map_write(path: &Path, offset: usize, len: usize, seed: u8) -> std::io::Result<()> {
    let role = format!("map:{offset}:{len}:{seed}:{}", path.display());
    let status = again(&role).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(std::io::Error::other(format!("the mapping's program: {status}")))
    }
}

#[test]
#[ignore = "started by the other tests"]
fn not_a_test_but_a_child() {
    let role = std::env::var(ROLE).expect("a role");
    let (what, rest) = role.split_once(':').expect("a role with arguments");
    match what {
        "s3" => {
            let (port, root) = rest.split_once(':').expect("port and folder");
            let listen = ([127, 0, 0, 1], port.parse().expect("a port")).into();
            let options = S3Options { listen, bucket: "crash".into(), ..S3Options::default() };
            let _server = S3::start_with(root, options).expect("the port is free");
            // SAFETY: prctl and getppid touch no memory.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            loop {
                std::thread::park();
            }
        }
        "map" => {
            let mut parts = rest.splitn(4, ':');
            let mut number = || parts.next().expect("part").parse::<usize>().expect("number");
            let (offset, len, seed) = (number(), number(), number());
            write_mapped(Path::new(parts.next().expect("path")), offset, len, seed as u8);
            std::process::exit(0);
        }
        _ => panic!("no such role: {role}"),
    }
}

fn write_mapped(path: &Path, offset: usize, len: usize, seed: u8) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("open");
    let total = offset + len;
    // As whoever maps a file must know its size: the kernel looks at none when it maps, and may know an older one.
    let size = file.metadata().expect("size").len();
    assert!(size >= total as u64, "{size} bytes instead of {total}");
    // SAFETY: a new mapping of a file that is at least `total` bytes long, at a place that the kernel chooses.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let map = libc::mmap(std::ptr::null_mut(), total, protection, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(map, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        std::ptr::write_bytes(map.cast::<u8>().add(offset), seed, len);
        assert_eq!(libc::msync(map, total, libc::MS_SYNC), 0, "{}", std::io::Error::last_os_error());
        assert_eq!(libc::munmap(map, total), 0);
    }
    drop(file);
}
