//! The text format of Prometheus, version 0.0.4.

use std::fmt::{Display, Write};

use super::histogram::{BOUNDS, Histogram};

/// What kind of figures a family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A page of figures in the making.
#[derive(Debug, Default)]
pub struct Text(String);

/// A family whose samples are being written: those of one family stand together.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Text {
    #[must_use]
    pub fn new() -> Self {
        Text::default()
    }

    /// What only grows, from the daemon's start on. `name` ends with `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, Kind::Counter)
    }

    /// What goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, Kind::Gauge)
    }

    /// Durations. `name` ends with `_seconds`.
    pub fn histogram(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, Kind::Histogram)
    }

    fn family(&mut self, name: &'static str, help: &str, kind: Kind) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Family { text: &mut self.0, name }
    }

    /// The page.
    #[must_use]
    pub fn finish(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// One figure.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.line("", labels, None, value);
        self
    }

    /// All lines of one histogram.
    pub fn durations(&mut self, labels: &[(&str, &str)], histogram: &Histogram) -> &mut Self {
        let counts = histogram.cumulated();
        for (bound, count) in BOUNDS.iter().zip(counts) {
            self.line("_bucket", labels, Some(&bound.to_string()), count);
        }
        let all = counts[BOUNDS.len()];
        self.line("_bucket", labels, Some("+Inf"), all);
        self.line("_sum", labels, None, histogram.seconds());
        self.line("_count", labels, None, all);
        self
    }

    // Writing to a string does not fail.
    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], le: Option<&str>, value: impl Display) {
        let _ = write!(self.text, "{}{suffix}", self.name);
        let labels = labels.iter().copied().chain(le.map(|le| ("le", le)));
        let mut before = '{';
        for (name, value) in labels {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{before}{name}=\"{value}\"");
            before = ',';
        }
        if before == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_page() {
        let mut text = Text::new();
        text.counter("x_bytes_total", "Bytes.\nAll.")
            .sample(&[("source", "hub")], 7)
            .sample(&[("source", "a\"b\\")], 8);
        text.gauge("x_open", "Open.").sample(&[], 1.5);
        let histogram = Histogram::default();
        histogram.note(Duration::from_millis(5), false);
        text.histogram("x_seconds", "Time.").durations(&[("op", "read")], &histogram);
        let page = text.finish();
        assert!(page.starts_with(
            "# HELP x_bytes_total Bytes.\\nAll.\n# TYPE x_bytes_total counter\nx_bytes_total{source=\"hub\"} 7\n\
             x_bytes_total{source=\"a\\\"b\\\\\"} 8\n# HELP x_open Open.\n# TYPE x_open gauge\nx_open 1.5\n"
        ));
        for line in [
            "x_seconds_bucket{op=\"read\",le=\"0.001\"} 0\n",
            "x_seconds_bucket{op=\"read\",le=\"0.01\"} 1\n",
            "x_seconds_bucket{op=\"read\",le=\"+Inf\"} 1\n",
            "x_seconds_sum{op=\"read\"} 0.005\n",
            "x_seconds_count{op=\"read\"} 1\n",
        ] {
            assert!(page.contains(line), "{line}{page}");
        }
    }
}
