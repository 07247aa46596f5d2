use std::collections::HashMap;
use std::sync::atomic::AtomicI64;

use proptest::prelude::*;

use super::*;

const INO: Ino = Ino(7);

fn faces(direct: bool) -> Faces<u32> {
    let faces = Faces::default();
    faces.enable(Able { direct });
    faces
}

fn own() -> Node {
    Node::own(INO)
}

fn twin() -> Node {
    own().other()
}

type Give = Option<fn() -> io::Result<u32>>;
const FILE: Give = Some(|| Ok(1));
const REFUSED: Give = Some(|| Err(io::Error::from_raw_os_error(libc::EPERM)));
const CACHED: Give = None;

#[test]
fn numbers_of_twins() {
    assert_eq!(Node::of(7), own());
    assert_eq!((Node::of(twin().number()), twin().number() == 7), (twin(), false));
    for fixed in [1 << 60 | 1 << 59, 1 << 61 | 1 << 59, 1 << 63 | 1 << 59 | 3] {
        assert_eq!((Node::of(fixed).ino, Node::of(fixed).number()), (Ino(fixed), fixed), "no twin");
    }
}

#[test]
fn what_may_write_is_never_native() {
    let (yes, no, off) = (faces(true), faces(false), Faces::<u32>::default());
    assert!(yes.may_be_native(libc::O_RDONLY) && yes.may_be_native(libc::O_RDONLY | libc::O_DIRECT));
    assert!(no.may_be_native(libc::O_RDONLY) && !no.may_be_native(libc::O_RDONLY | libc::O_DIRECT));
    assert!(!off.may_be_native(libc::O_RDONLY));
    for flags in
        [libc::O_RDWR, libc::O_WRONLY, libc::O_RDONLY | libc::O_TRUNC, libc::O_WRONLY | libc::O_APPEND]
    {
        assert!(!yes.may_be_native(flags));
    }
    assert!(matches!(off.open(1, own(), libc::O_RDONLY, FILE), Granted::Cached), "without the kernel's help");
}

#[test]
fn a_blob_that_is_open_cached_is_native_for_the_next() {
    let faces = faces(true);
    assert!(matches!(faces.open(1, own(), libc::O_RDWR, CACHED), Granted::Cached));
    assert!(matches!(faces.open(2, own(), libc::O_RDONLY, FILE), Granted::LookAgain));
    assert_eq!(faces.look_up(2, INO), twin());
    assert!(matches!(faces.open(2, twin(), libc::O_RDONLY, FILE), Granted::Native(_)));
    assert_eq!(faces.look_up(3, INO), twin(), "whoever comes now");
    assert!(matches!(faces.open(3, twin(), libc::O_RDONLY, FILE), Granted::Native(_)));
    // The first one is still there when the others have gone.
    faces.release(twin());
    faces.release(twin());
    assert!(matches!(faces.open(3, twin(), libc::O_RDONLY, FILE), Granted::Native(_)));
    assert_eq!(faces.nodes(INO).count(), 2);
    assert!(!faces.forget(own(), 1) && !faces.forget(twin(), 1));
    faces.release(twin());
    faces.release(own());
    assert!(faces.forget(twin(), 1) && faces.nodes(INO).count() == 1);
    let table = faces.table();
    assert!(table.files.is_empty() && table.twins.is_empty());
}

#[test]
fn who_writes_gets_the_other_face() {
    let faces = faces(true);
    assert!(matches!(faces.open(1, own(), libc::O_RDONLY, FILE), Granted::Native(_)));
    assert!(matches!(faces.open(2, own(), libc::O_RDWR, CACHED), Granted::LookAgain));
    assert_eq!(faces.look_up(2, INO), twin());
    assert!(matches!(faces.open(2, twin(), libc::O_RDWR, CACHED), Granted::Cached));
    assert!(
        matches!(faces.open(3, twin(), libc::O_RDONLY, FILE), Granted::LookAgain),
        "one native face at most"
    );
    assert_eq!(faces.look_up(3, INO), own());
    assert!(matches!(faces.open(3, own(), libc::O_RDONLY, FILE), Granted::Native(_)));
}

#[test]
fn who_has_no_name_to_look_up_is_told_once() {
    let faces = faces(true);
    assert!(matches!(faces.open(1, own(), libc::O_RDWR, CACHED), Granted::Cached));
    for _ in 0..2 {
        assert!(matches!(faces.open(2, own(), libc::O_RDONLY, FILE), Granted::LookAgain));
        assert!(matches!(faces.open(2, own(), libc::O_RDONLY, FILE), Granted::Cached));
    }
    assert!(matches!(faces.open(0, own(), libc::O_RDONLY, FILE), Granted::Cached), "nobody in particular");
    let faces = self::faces(true);
    assert!(matches!(faces.open(1, own(), libc::O_RDONLY, FILE), Granted::Native(_)));
    for _ in 0..2 {
        assert!(matches!(faces.open(2, own(), libc::O_RDWR, CACHED), Granted::LookAgain));
        assert!(matches!(faces.open(2, own(), libc::O_RDWR, CACHED), Granted::Taken));
    }
}

/// A reader was sent to the native face, and its thread comes there to write instead.
#[test]
fn who_writes_is_never_native_whatever_the_thread_was_told() {
    let faces = faces(true);
    assert!(matches!(faces.open(1, own(), libc::O_RDWR, CACHED), Granted::Cached));
    assert!(matches!(faces.open(2, own(), libc::O_RDONLY, FILE), Granted::LookAgain));
    assert!(matches!(faces.open(3, own(), libc::O_RDONLY, FILE), Granted::LookAgain));
    assert!(matches!(faces.open(3, twin(), libc::O_RDONLY, FILE), Granted::Native(_)));
    assert!(matches!(faces.open(2, twin(), libc::O_RDWR, CACHED), Granted::Taken));
    assert!(matches!(faces.open(2, twin(), libc::O_RDWR, CACHED), Granted::LookAgain));
}

#[test]
fn what_the_kernel_does_not_take_is_cached() {
    let faces = faces(true);
    assert!(matches!(faces.open(1, own(), libc::O_RDONLY, REFUSED), Granted::Cached));
    assert!(matches!(faces.open(2, own(), libc::O_RDONLY, REFUSED), Granted::LookAgain));
    assert_eq!(faces.look_up(2, INO), twin());
    assert!(matches!(faces.open(2, twin(), libc::O_RDONLY, REFUSED), Granted::Cached));
    assert!(matches!(faces.open(3, own(), libc::O_RDONLY, REFUSED), Granted::Cached), "both are");
    assert!(matches!(faces.open(3, twin(), libc::O_RDONLY, REFUSED), Granted::Cached), "both are");
}

#[test]
fn who_was_sent_finds_the_face_as_it_was_promised() {
    let faces = faces(true);
    assert!(matches!(faces.open(1, own(), libc::O_RDONLY, FILE), Granted::Native(_)));
    assert!(matches!(faces.open(2, own(), libc::O_RDWR, CACHED), Granted::LookAgain));
    faces.release(own());
    assert!(
        matches!(faces.open(3, twin(), libc::O_RDONLY, FILE), Granted::LookAgain),
        "somebody is on his way"
    );
    assert_eq!((faces.look_up(2, INO), faces.look_up(3, INO)), (twin(), own()));
    assert!(matches!(faces.open(3, own(), libc::O_RDONLY, FILE), Granted::Native(_)));
    assert!(matches!(faces.open(2, twin(), libc::O_RDWR, CACHED), Granted::Cached));
    // Nobody is sent twice: it would reach the program.
    assert!(matches!(faces.open(4, twin(), libc::O_RDONLY, FILE), Granted::LookAgain));
    faces.release(own());
    assert!(matches!(faces.open(5, own(), libc::O_RDWR, CACHED), Granted::Cached));
    assert!(matches!(faces.open(4, own(), libc::O_RDONLY, FILE), Granted::Cached));
}

/// A file that was given to the kernel and is counted until it is taken back.
#[derive(Debug)]
struct Given(Arc<AtomicI64>, u64);

impl Drop for Given {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What the kernel has open of one of its inodes, and what it holds against an answer.
#[derive(Debug, Default)]
struct Kernel(HashMap<u64, Vec<Option<u64>>>);

impl Kernel {
    fn opened(&mut self, node: Node, file: Option<u64>) {
        let open = self.0.entry(node.number()).or_default();
        assert!(open.iter().all(|other| *other == file), "EIO: {open:?} and {file:?}");
        open.push(file);
    }
}

proptest! {
    #[test]
    fn no_answer_is_one_that_the_kernel_refuses(
        steps in prop::collection::vec((0u8..4, 1u32..6, any::<bool>(), any::<bool>()), 1..200),
    ) {
        let (faces, given) = (Faces::default(), Arc::new(AtomicI64::new(0)));
        faces.enable(Able { direct: true });
        let (mut kernel, mut files, mut away) = (Kernel::default(), 0u64, HashMap::new());
        for (what, tid, native, last) in steps {
            if what == 0 {
                // Some open ends.
                let ends = kernel.0.iter().filter(|(_, open)| !open.is_empty()).map(|(n, _)| *n);
                let ends = if last { ends.max() } else { ends.min() };
                if let Some(number) = ends {
                    kernel.0.get_mut(&number).and_then(Vec::pop).expect("open");
                    faces.release(Node::of(number));
                }
                continue;
            }
            // Who was told to look comes again at some later time; others by the number that the kernel knows, or by name.
            let told = away.remove(&tid);
            let node = match told {
                Some(_) => faces.look_up(tid, INO),
                None if last => faces.look_up(tid, INO),
                None => own(),
            };
            // Who wanted a file may want it no more when somebody began to write.
            let asked = told.unwrap_or(native);
            let native = asked && native;
            {
                let give = native.then_some(|| {
                    files += 1;
                    given.fetch_add(1, Ordering::SeqCst);
                    Ok(Given(given.clone(), files))
                });
                // Who asked for no file from the first may be about to write.
                let flags = if asked { libc::O_RDONLY } else { libc::O_RDWR };
                match faces.open(tid, node, flags, give) {
                    Granted::Cached => kernel.opened(node, None),
                    Granted::Native(file) => {
                        prop_assert!(asked);
                        kernel.opened(node, Some(file.1));
                    }
                    Granted::LookAgain => {
                        prop_assert!(told.is_none(), "the kernel looks once");
                        away.insert(tid, native);
                    }
                    Granted::Taken => prop_assert!(false, "it looked, and found the same"),
                }
            }
            let native_faces = kernel.0.values().filter(|open| open.iter().any(Option::is_some)).count();
            prop_assert!(native_faces <= 1);
            prop_assert_eq!(given.load(Ordering::SeqCst), native_faces as i64, "kept as long as it is used");
        }
    }
}
