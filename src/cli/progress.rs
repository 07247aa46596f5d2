//! A bar on the terminal while something long goes on. Nothing is drawn where standard error is no terminal.

use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Rows or bytes that go by; `total` is how many there will be, if that is known.
pub(super) fn bar(what: &'static str, total: Option<u64>, bytes: bool) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let style = match (total.is_some(), bytes) {
        (true, true) => "{msg} {wide_bar} {bytes}/{total_bytes} {eta}",
        (true, false) => "{msg} {wide_bar} {human_pos}/{human_len} {eta}",
        (false, true) => "{msg} {spinner} {bytes} {bytes_per_sec}",
        (false, false) => "{msg} {spinner} {human_pos} {per_sec}",
    };
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// How long something may take before the terminal says what is waited for.
const SOON: Duration = Duration::from_secs(1);

/// What is waited for. Says so on the terminal if it takes longer than a second, until it is dropped.
pub(super) struct Waiting {
    end: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Begins to wait for something whose length nobody knows.
pub(super) fn waiting(what: impl Into<String>) -> Waiting {
    if !std::io::stderr().is_terminal() {
        return Waiting { end: None, thread: None };
    }
    let (end, ended) = mpsc::sync_channel::<()>(1);
    let what = what.into();
    let thread = thread::Builder::new().spawn(move || {
        if ended.recv_timeout(SOON) == Err(RecvTimeoutError::Timeout) {
            let spinner = ProgressBar::new_spinner().with_message(what);
            if let Ok(style) = ProgressStyle::with_template("{spinner} waiting {msg} {elapsed}") {
                spinner.set_style(style);
            }
            spinner.enable_steady_tick(Duration::from_millis(200));
            let _ = ended.recv();
            spinner.finish_and_clear();
        }
    });
    // Without a thread there is nothing to see, and no harm.
    Waiting { end: Some(end), thread: thread.ok() }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
