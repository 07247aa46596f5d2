//! The figures as columns for people.

use super::line::{Line, Operations, has_peers};
use crate::cli::colours::{Colours, Look};
use crate::config::units::human_size;
use crate::metrics::Page;

/// Columns of one kind, with their widths.
struct Group {
    name: &'static str,
    columns: &'static [(&'static str, usize)],
}

const FUSE: Group = Group { name: "fuse", columns: &[("ops/s", 6), ("ms", 6), ("rd MB", 6), ("wr MB", 6)] };
const META: Group = Group { name: "meta", columns: &[("ops/s", 6), ("ms", 6)] };
const CACHE: Group = Group { name: "cache", columns: &[("hit%", 5), ("used", 8)] };
const STORAGE: Group =
    Group { name: "storage", columns: &[("get/s", 5), ("put/s", 5), ("down MB", 7), ("up MB", 6)] };
const PEERS: Group = Group { name: "peers", columns: &[("in MB", 6), ("out MB", 6)] };
const HUB: Group = Group { name: "hub", columns: &[("MB", 6)] };
const DAEMON: Group = Group { name: "daemon", columns: &[("cpu%", 5), ("mem", 8)] };

/// A cell's text and look.
type Cell = (String, Look);

/// Which columns there are.
pub(super) struct Columns {
    peers: bool,
}

impl Columns {
    /// Those that this mount can have something in.
    pub(super) fn for_page(page: &Page) -> Self {
        Columns { peers: has_peers(page) }
    }

    fn groups(&self) -> impl Iterator<Item = Group> {
        let peers = self.peers.then_some(PEERS);
        [FUSE, META, CACHE, STORAGE].into_iter().chain(peers).chain([HUB, DAEMON])
    }

    /// Two lines.
    pub(super) fn header(&self, colours: Colours) -> String {
        let (mut names, mut columns) = (Vec::new(), Vec::new());
        for group in self.groups() {
            let cells: Vec<String> =
                group.columns.iter().map(|(name, width)| format!("{name:>width$}")).collect();
            let text = cells.join(" ");
            let width = text.len();
            let name = format!(" {} ", group.name);
            names.push(colours.paint(Look::Bold, &format!("{name:-^width$}")));
            columns.push(colours.paint(Look::Dim, &text));
        }
        format!("{}\n{}\n", names.join(" "), columns.join("|"))
    }

    /// One line.
    pub(super) fn row(&self, line: &Line, colours: Colours) -> String {
        let groups = self.groups().map(|group| {
            let cells = cells(group.name, line).into_iter().zip(group.columns);
            let cells: Vec<String> = cells
                .map(|((text, look), (_, width))| colours.paint(look, &format!("{text:>width$}")))
                .collect();
            cells.join(" ")
        });
        groups.collect::<Vec<_>>().join("|") + "\n"
    }
}

fn cells(group: &str, line: &Line) -> Vec<Cell> {
    match group {
        "fuse" => vec![plain(line.fuse.rate), latency(line.fuse), mega(line.read), mega(line.written)],
        "meta" => vec![plain(line.meta.rate), latency(line.meta)],
        "cache" => vec![share(line.hit), (human_size(line.used as u64), Look::Plain)],
        "storage" => vec![plain(line.gets), plain(line.puts), mega(line.down), mega(line.up)],
        "peers" => {
            let (from, to) = line.peers.unwrap_or_default();
            vec![mega(from), mega(to)]
        }
        "hub" => vec![mega(line.hub)],
        _ => vec![plain(line.cpu * 100.0), (human_size(line.memory as u64), Look::Plain)],
    }
}

/// What is nothing is seen less.
fn plain(value: f64) -> Cell {
    (short(value), if value == 0.0 { Look::Dim } else { Look::Plain })
}

fn mega(bytes: f64) -> Cell {
    plain(bytes / 1e6)
}

fn latency(operations: Operations) -> Cell {
    match operations.millis {
        None => ("-".to_owned(), Look::Dim),
        Some(millis) => {
            let look = match millis {
                slow if slow >= 1000.0 => Look::Bad,
                slow if slow >= 100.0 => Look::Fair,
                _ => Look::Plain,
            };
            (short(millis), look)
        }
    }
}

fn share(hit: Option<f64>) -> Cell {
    match hit {
        None => ("-".to_owned(), Look::Dim),
        Some(share) => {
            let look = match share {
                most if most >= 0.9 => Look::Good,
                some if some >= 0.5 => Look::Fair,
                _ => Look::Bad,
            };
            // Not 100 as long as something was missed.
            let percent = share * 100.0;
            (if percent < 100.0 { short(percent.min(99.9)) } else { "100".to_owned() }, look)
        }
    }
}

/// Up to five characters.
fn short(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        v if v < 0.005 => "<0.01".to_owned(),
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v if v < 99_999.5 => format!("{v:.0}"),
        v if v < 9_999_500.0 => format!("{:.0}k", v / 1e3),
        v => format!("{:.0}M", v / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.000_1, "<0.01"),
            (0.005, "0.01"),
            (9.994, "9.99"),
            (9.996, "10.0"),
            (99.96, "100"),
            (99_999.0, "99999"),
            (123_456.0, "123k"),
            (9_999_400.0, "9999k"),
            (1e9, "1000M"),
        ] {
            assert_eq!(short(value), text);
        }
        assert_eq!((share(Some(0.9999)).0, share(Some(1.0)).0), ("99.9".to_owned(), "100".to_owned()));
    }

    #[test]
    fn columns_stand_under_their_names() {
        let none = Colours::none();
        for (page, peers) in [("", false), ("hfmount_peers{state=\"active\"} 1\n", true)] {
            let columns = Columns::for_page(&Page::read(page));
            let header = columns.header(none);
            assert_eq!(header.contains("peers"), peers);
            let line = Line { used: 123e9, hit: Some(0.5), read: 1.5e6, ..Line::default() };
            let row = columns.row(&line, none);
            let widths: Vec<usize> = header.lines().chain(row.lines()).map(str::len).collect();
            assert!(widths.iter().all(|width| *width == widths[0]), "{header}{row}");
            let bars = |text: &str| text.match_indices('|').map(|(at, _)| at).collect::<Vec<_>>();
            assert_eq!(bars(header.lines().nth(1).expect("two lines")), bars(row.trim_end()));
            assert!(row.contains(" 1.50 ") && row.contains(" 50.0 "), "{row}");
        }
    }
}
