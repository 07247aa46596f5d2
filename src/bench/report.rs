//! What came out: one row for each kind of work.

use std::time::Duration;

use super::laps::Laps;

/// What a rate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// MiB a second.
    Mib,
    /// Files a second.
    Files,
    /// Operations a second.
    Operations,
}

impl Unit {
    /// As it stands behind a figure.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Unit::Mib => "MiB/s",
            Unit::Files => "files/s",
            Unit::Operations => "ops/s",
        }
    }
}

/// How a figure looks beside what other shared file systems reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    Bad,
    Fair,
    Good,
}

/// One kind of work.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// For programs.
    pub name: &'static str,
    /// For people.
    pub what: String,
    pub unit: Unit,
    /// How often it was done.
    pub count: u64,
    /// Bytes that went through it.
    pub bytes: u64,
    /// From the begin of the first to the end of the last, in all threads.
    pub took: Duration,
    /// Of one of them.
    pub mean: Duration,
    pub p50: Duration,
    pub p99: Duration,
}

impl Row {
    pub(super) fn new(
        name: &'static str,
        what: impl Into<String>,
        unit: Unit,
        bytes: u64,
        (laps, took): (Laps, Duration),
    ) -> Self {
        Row {
            name,
            what: what.into(),
            unit,
            count: laps.count(),
            bytes,
            took,
            mean: laps.mean(),
            p50: laps.share(0.5),
            p99: laps.share(0.99),
        }
    }

    /// What a daemon did meanwhile, as it counted: `count` operations that took `seconds` one after the other. `None`: none.
    #[must_use]
    pub fn counted(name: &'static str, what: &str, took: Duration, count: f64, seconds: f64) -> Option<Self> {
        let mean = Duration::try_from_secs_f64(seconds / count).ok().filter(|_| count >= 1.0)?;
        let (count, unit) = (count as u64, Unit::Operations);
        Some(Row { name, what: what.to_owned(), unit, count, bytes: 0, took, mean, p50: mean, p99: mean })
    }

    /// In its unit.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let amount = match self.unit {
            Unit::Mib => self.bytes as f64 / f64::from(1 << 20),
            Unit::Files | Unit::Operations => self.count as f64,
        };
        amount / self.took.as_secs_f64().max(1e-9)
    }

    /// Whether its laps were each of their own, and enough of them that the middle and the tail say something: neither of few
    /// large files, nor of a listing, of which the kernel reads many names at once, nor of what a daemon counted.
    #[must_use]
    pub fn has_laps(&self) -> bool {
        !matches!(self.name, "write_big" | "read_big" | "list" | "fuse" | "meta")
    }

    /// By rate for what moves bytes, by the middle duration for the rest.
    #[must_use]
    pub fn grade(&self) -> Grade {
        let one = if self.has_laps() { self.p50 } else { self.mean };
        let millis = one.as_secs_f64() * 1e3;
        match (self.name, self.unit) {
            ("write_big" | "read_big", _) => at_least(self.rate(), 400.0, 100.0),
            (_, Unit::Mib) => at_least(self.rate(), 100.0, 25.0),
            ("write_small" | "put_small" | "get_small", _) => at_most(millis, 10.0, 50.0),
            ("read_small" | "create" | "meta" | "rename" | "unlink" | "meta_commit", _) => {
                at_most(millis, 2.0, 10.0)
            }
            _ => at_most(millis, 1.0, 5.0),
        }
    }
}

fn at_least(value: f64, good: f64, fair: f64) -> Grade {
    match value {
        v if v >= good => Grade::Good,
        v if v >= fair => Grade::Fair,
        _ => Grade::Bad,
    }
}

fn at_most(value: f64, good: f64, fair: f64) -> Grade {
    match value {
        v if v <= good => Grade::Good,
        v if v <= fair => Grade::Fair,
        _ => Grade::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_grades() {
        let mut laps = Laps::default();
        laps.note(Duration::from_millis(4));
        laps.note(Duration::from_millis(4));
        let of = |name, unit| Row::new(name, name, unit, 256 << 20, (laps.clone(), Duration::from_secs(2)));
        assert_eq!(of("write_big", Unit::Mib).rate(), 128.0);
        let counted = |count| Row::counted("fuse", "requests", Duration::from_secs(2), count, 1.0);
        let fuse = counted(500.0).expect("some");
        assert_eq!((fuse.rate(), fuse.mean, fuse.has_laps()), (250.0, Duration::from_millis(2), false));
        assert_eq!((fuse.grade(), counted(0.0)), (Grade::Fair, None));
        assert_eq!(of("stat", Unit::Files).rate(), 1.0);
        assert_eq!(
            (of("write_big", Unit::Mib).grade(), of("put", Unit::Mib).grade()),
            (Grade::Fair, Grade::Good)
        );
        assert_eq!(
            (of("write_small", Unit::Files).grade(), of("stat", Unit::Files).grade()),
            (Grade::Good, Grade::Fair)
        );
    }
}
