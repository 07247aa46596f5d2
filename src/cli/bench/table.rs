//! What came out, for people and for programs.

use std::time::Duration;

use serde_json::{Value, json};

use super::Report;
use crate::bench::{Caches, Grade, Row, Unit};
use crate::cli::colours::{Colours, Look};
use crate::config::units::human_size;

/// Widths of all columns but the first.
const WIDTHS: [usize; 4] = [18, 12, 12, 12];

pub(super) fn as_text(report: &Report, colours: Colours) -> String {
    let mut text = head(report);
    let first = report.figures.rows.iter().map(|row| row.what.len()).max().unwrap_or(0);
    let title = line(first, "", ["rate", "mean", "p50", "p99"].map(str::to_owned));
    text.push_str(&colours.paint(Look::Bold, title.trim_end()));
    text.push('\n');
    for row in &report.figures.rows {
        let rate = format!("{} {}", figure(row.rate()), row.unit.word());
        let lap = |of: Duration| if row.has_laps() { time(of) } else { "-".to_owned() };
        let (p50, p99) = (lap(row.p50), lap(row.p99));
        let look = match row.grade() {
            Grade::Good => Look::Good,
            Grade::Fair => Look::Fair,
            Grade::Bad => Look::Bad,
        };
        let cells = [rate, time(row.mean), p50, p99];
        let [rate, rest @ ..]: [String; 4] =
            std::array::from_fn(|n| format!("{:>width$}", cells[n], width = WIDTHS[n]));
        text.push_str(&format!("{:first$}{}{}\n", row.what, colours.paint(look, &rate), rest.concat()));
    }
    text
}

fn head(report: &Report) -> String {
    let args = &report.args;
    let mut text = format!("{}", report.dir.display());
    if let Some(volume) = &report.figures.volume {
        text.push_str(&format!(": volume {}, {}, {}", volume.name, volume.engine, volume.storage));
    }
    let files = format!(
        "\n{} thread{}; {} a large file; {} small files of {} each thread; caches {}\n\n",
        args.threads,
        if args.threads == 1 { "" } else { "s" },
        human_size(args.big_file_size),
        args.small_file_count,
        human_size(args.small_file_size),
        caches_word(&report.figures.caches),
    );
    text + &files
}

fn caches_word(caches: &Caches) -> &'static str {
    match caches {
        Caches::Kept => "kept",
        Caches::Dropped => "dropped",
        Caches::OwnPages(_) => "dropped for these files",
    }
}

fn line(first: usize, name: &str, cells: [String; 4]) -> String {
    let cells = cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:>width$}"));
    format!("{name:first$}{}", cells.collect::<String>())
}

fn figure(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 1e-3 => format!("{} us", figure(s * 1e6)),
        s if s < 1.0 => format!("{} ms", figure(s * 1e3)),
        s => format!("{} s", figure(s)),
    }
}

pub(super) fn as_json(report: &Report) -> Value {
    let args = &report.args;
    json!({
        "directory": report.dir,
        "version": env!("CARGO_PKG_VERSION"),
        "volume": report.figures.volume.as_ref().map(|volume| json!({
            "name": volume.name,
            "engine": volume.engine,
            "meta": volume.meta,
            "storage": volume.storage,
        })),
        "threads": args.threads,
        "big_file_size": args.big_file_size,
        "small_file_size": args.small_file_size,
        "small_file_count": args.small_file_count,
        "caches": caches_word(&report.figures.caches),
        "rows": report.figures.rows.iter().map(row_json).collect::<Vec<_>>(),
        "notes": report.figures.notes,
    })
}

fn row_json(row: &Row) -> Value {
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    json!({
        "name": row.name,
        "what": row.what,
        "rate": row.rate(),
        "unit": row.unit.word(),
        "count": row.count,
        "bytes": (row.unit == Unit::Mib || row.bytes > 0).then_some(row.bytes),
        "seconds": row.took.as_secs_f64(),
        "mean_ms": millis(row.mean),
        "p50_ms": row.has_laps().then(|| millis(row.p50)),
        "p99_ms": row.has_laps().then(|| millis(row.p99)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_and_times() {
        assert_eq!(
            (figure(1.234), figure(12.34), figure(1234.5)),
            ("1.23".into(), "12.3".into(), "1234".into())
        );
        for (nanos, text) in [(1_500, "1.50 us"), (1_500_000, "1.50 ms"), (2_500_000_000, "2.50 s")] {
            assert_eq!(time(Duration::from_nanos(nanos)), text);
        }
        assert_eq!(line(3, "a", ["x", "y", "z", "w"].map(str::to_owned)).len(), 3 + 18 + 36);
    }
}
