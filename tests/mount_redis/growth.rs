//! A file that another mount made longer, mapped right after the open, by a program that asks for no size: FUSE tells the
//! kernel none at an open, and beyond the one that it knows a mapping is a SIGBUS.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Output};

use crate::mount::{can_mount, text};
use crate::proxy::Proxy;
use crate::world::{World, bytes, write};

const PAGE: usize = 4096;

/// Opens the file, maps as many bytes as it is told, and writes out the last. `mmap` of the C library, because Python's own
/// asks for the size.
const MAP: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
size = int(sys.argv[2])
for _ in sys.stdin:
    fd = os.open(sys.argv[1], os.O_RDONLY)
    at = libc.mmap(None, size, 1, 2, fd, 0)
    assert at != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    sys.stdout.buffer.write(ctypes.string_at(at + size - 8, 8))
";

fn map(path: &Path, size: usize) -> Output {
    let mut python = Command::new("python3");
    python.args(["-c", MAP]).arg(path).arg(size.to_string());
    python
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = python.spawn().expect("python3");
    child.stdin.take().expect("piped").write_all(b"go\n").expect("it waits");
    child.wait_with_output().expect("it ends")
}

fn append(path: &Path, data: &[u8]) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("open to append");
    file.write_all(data).expect("append");
}

/// The kernels may rely on names and attributes for a minute, and the push brings nothing when the file has grown.
#[test]
fn what_another_mount_made_longer_can_be_mapped_at_once() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    // What is pushed makes the kernel ask for the names, and with them it gets the sizes.
    let proxy = Proxy::before(world.redis.address());
    let url = format!("redis://{}/0", proxy.address);
    let ttl = ["--entry-ttl", "60s", "--attr-ttl", "60s"];
    let one = world.mount_with("one", &ttl);
    let two = world.mount_with("two", &[&ttl[..], &["--meta", &url]].concat());
    fs::create_dir(one.path().join("d")).expect("mkdir");
    let (here, there) = (one.path().join("d/f"), two.path().join("d/f"));
    let whole = bytes(40 * PAGE);
    write(&here, &whole[..100]);
    assert_eq!(fs::read(&there).expect("read"), &whole[..100]);
    let mut size = 100;
    for more in [PAGE, 1, 2 * PAGE - 101, 8 * PAGE, 3, 20 * PAGE] {
        assert_eq!(fs::metadata(&there).expect("stat").len(), size as u64);
        proxy.mute(true);
        append(&here, &whole[size..size + more]);
        size += more;
        let mapped = map(&there, size);
        proxy.mute(false);
        assert!(mapped.status.success(), "{size}: {:?} {}", mapped.status, text(&mapped.stderr));
        assert_eq!(mapped.stdout, &whole[size - 8..size], "{size}");
    }
    // By a path in which there is no name to look up.
    let open = File::open(&there).expect("open");
    let link = format!("/proc/self/fd/{}", open.as_raw_fd());
    proxy.mute(true);
    append(&here, &whole[size..]);
    assert_eq!(fs::read(&link).expect("open again"), whole);
    proxy.mute(false);
    // What the other one wrote is no reason to ask about what this one wrote.
    let mine = two.path().join("d/mine");
    for n in 1..=3 {
        append(&mine, &whole[(n - 1) * 4 * PAGE..n * 4 * PAGE]);
        let mapped = map(&mine, n * 4 * PAGE);
        assert!(mapped.status.success(), "{n}: {:?} {}", mapped.status, text(&mapped.stderr));
    }
}
