//! Reads the signals that wait for a thread out of its `/proc/<tid>/status`.

/// The most serious kind of signal that waits for a thread, is not blocked by it and would be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pending {
    None,
    /// Caught, and of any meaning (SIGCHLD, SIGALRM, SIGURG of the Go runtime …).
    Other,
    /// Caught, and meant to stop the process: SIGINT, SIGTERM, SIGHUP, SIGQUIT.
    Stop,
    /// Ends the process, or it is dead already.
    Fatal,
}

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

const STOP: u64 = bit(libc::SIGINT) | bit(libc::SIGTERM) | bit(libc::SIGHUP) | bit(libc::SIGQUIT);

/// Signals whose default action does not end a process: those that do nothing and those that suspend it.
const HARMLESS: u64 = bit(libc::SIGCHLD)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH)
    | bit(libc::SIGCONT)
    | bit(libc::SIGSTOP)
    | bit(libc::SIGTSTP)
    | bit(libc::SIGTTIN)
    | bit(libc::SIGTTOU);

/// What waits for the thread whose status file reads `status`.
pub(super) fn pending(status: &str) -> Pending {
    let mut waiting = 0;
    let (mut blocked, mut ignored, mut caught) = (0, 0, 0);
    for line in status.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        let mask = || u64::from_str_radix(value, 16).unwrap_or(0);
        match key {
            // A zombie or dead thread waits for nothing.
            "State" if value.starts_with(['Z', 'X']) => return Pending::Fatal,
            "SigPnd" | "ShdPnd" => waiting |= mask(),
            "SigBlk" => blocked = mask(),
            "SigIgn" => ignored = mask(),
            "SigCgt" => caught = mask(),
            _ => {}
        }
    }
    if waiting & bit(libc::SIGKILL) != 0 {
        return Pending::Fatal;
    }
    let delivered = waiting & !blocked & !ignored;
    if delivered & !caught & !HARMLESS != 0 {
        Pending::Fatal
    } else if delivered & caught & STOP != 0 {
        Pending::Stop
    } else if delivered & caught != 0 {
        Pending::Other
    } else {
        Pending::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(own: u64, shared: u64, blocked: u64, ignored: u64, caught: u64) -> Pending {
        pending(&format!(
            "Name:\tpython3\nState:\tD (disk sleep)\nThreads:\t1\nSigQ:\t1/7000\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\n\
             SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\nCapInh:\t0\n"
        ))
    }

    #[test]
    fn nothing_waits() {
        assert_eq!(status(0, 0, 0, 0, u64::MAX), Pending::None);
        assert_eq!(pending(""), Pending::None);
    }

    #[test]
    fn kill_is_fatal_whatever_the_masks_say() {
        assert_eq!(status(bit(libc::SIGKILL), 0, u64::MAX, u64::MAX, 0), Pending::Fatal);
        assert_eq!(status(0, bit(libc::SIGKILL), 0, 0, 0), Pending::Fatal);
    }

    #[test]
    fn an_interrupt_ends_the_process_unless_it_is_caught_blocked_or_ignored() {
        let int = bit(libc::SIGINT);
        assert_eq!(status(0, int, 0, 0, 0), Pending::Fatal);
        assert_eq!(status(0, int, 0, 0, int), Pending::Stop);
        assert_eq!(status(0, int, int, 0, int), Pending::None);
        assert_eq!(status(0, int, 0, int, 0), Pending::None);
    }

    #[test]
    fn signals_of_everyday_life_do_not_end_io() {
        let child = bit(libc::SIGCHLD);
        assert_eq!(status(0, child, 0, 0, 0), Pending::None);
        assert_eq!(status(0, child, 0, 0, child), Pending::Other);
        assert_eq!(status(bit(libc::SIGSTOP), bit(libc::SIGTSTP), 0, 0, 0), Pending::None);
        assert_eq!(status(bit(libc::SIGALRM), 0, 0, 0, 0), Pending::Fatal);
    }

    #[test]
    fn the_dead_wait_for_nothing() {
        assert_eq!(pending("State:\tZ (zombie)\nSigPnd:\t0\n"), Pending::Fatal);
    }

    #[test]
    fn this_thread_reads_as_it_is() {
        let own = std::fs::read_to_string("/proc/thread-self/status").expect("proc");
        assert_eq!(pending(&own), Pending::None);
    }
}
