//! A bar on the terminal while something long goes on. Nothing is drawn where standard error is no terminal.

use std::io::IsTerminal;
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
