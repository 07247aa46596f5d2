//! What happened between two pages of figures.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::metrics::Page;

/// Operations in a while.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Operations {
    /// A second.
    pub rate: f64,
    /// The mean of their durations, milliseconds; `None`: there were none.
    pub millis: Option<f64>,
}

/// Rates are of a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Line {
    pub volume: String,
    pub seconds: f64,
    pub fuse: Operations,
    pub errors: f64,
    pub read: f64,
    pub written: f64,
    pub meta: Operations,
    pub meta_errors: f64,
    /// Between 0 and 1; `None`: nothing was read.
    pub hit: Option<f64>,
    pub used: f64,
    pub limit: f64,
    pub gets: f64,
    pub puts: f64,
    pub down: f64,
    pub up: f64,
    /// From and to other nodes; `None`: the volume has none.
    pub peers: Option<(f64, f64)>,
    pub hub: f64,
    /// Of the processor; 1 is one core.
    pub cpu: f64,
    pub memory: f64,
}

impl Line {
    pub(super) fn between(before: &Page, now: &Page, span: Duration) -> Self {
        let seconds = span.as_secs_f64().max(1e-3);
        // A family appears with its first sample.
        let grown = |name: &str| {
            let of = |page: &Page| page.get(name).or_else(|| page.sum(name)).unwrap_or(0.0);
            (of(now) - of(before)).max(0.0)
        };
        let rate = |name: &str| grown(name) / seconds;
        let operations = |family: &str| {
            let (count, took) = (grown(&format!("{family}_count")), grown(&format!("{family}_sum")));
            Operations { rate: count / seconds, millis: (count > 0.0).then(|| took * 1e3 / count) }
        };
        let from = |source: &str| rate(&format!("hfmount_source_bytes_total{{source=\"{source}\"}}"));
        let (hit, missed) = (
            grown("hfmount_cache_read_bytes_total{outcome=\"hit\"}"),
            grown("hfmount_cache_read_bytes_total{outcome=\"miss\"}"),
        );
        let gauge = |name: &str| now.get(name).unwrap_or(0.0);
        Line {
            volume: now.label("hfmount_info", "volume").unwrap_or_default().to_owned(),
            seconds,
            fuse: operations("hfmount_fuse_request_seconds"),
            errors: rate("hfmount_fuse_errors_total"),
            read: rate("hfmount_fuse_bytes_total{direction=\"read\"}"),
            written: rate("hfmount_fuse_bytes_total{direction=\"write\"}"),
            meta: operations("hfmount_meta_operation_seconds"),
            meta_errors: rate("hfmount_meta_errors_total"),
            hit: (hit + missed > 0.0).then(|| hit / (hit + missed)),
            used: gauge("hfmount_cache_bytes"),
            limit: gauge("hfmount_cache_limit_bytes"),
            gets: rate("hfmount_object_requests_total{op=\"get\"}"),
            puts: rate("hfmount_object_requests_total{op=\"put\"}"),
            down: rate("hfmount_object_bytes_total{direction=\"down\"}"),
            up: rate("hfmount_object_bytes_total{direction=\"up\"}"),
            peers: has_peers(now).then(|| (from("peer"), rate("hfmount_peer_sent_bytes_total"))),
            hub: from("hub") + from("mirror"),
            cpu: rate("process_cpu_seconds_total"),
            memory: gauge("process_resident_memory_bytes"),
        }
    }

    pub(super) fn as_json(&self, mount_point: &Path, time: SystemTime) -> Value {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({
            "time": since.as_secs_f64(),
            "seconds": self.seconds,
            "mountpoint": mount_point,
            "volume": self.volume,
            "fuse": {
                "operations_per_second": self.fuse.rate,
                "latency_ms": self.fuse.millis,
                "errors_per_second": self.errors,
                "read_bytes_per_second": self.read,
                "write_bytes_per_second": self.written,
            },
            "meta": {
                "operations_per_second": self.meta.rate,
                "latency_ms": self.meta.millis,
                "errors_per_second": self.meta_errors,
            },
            "cache": { "hit_ratio": self.hit, "used_bytes": self.used, "limit_bytes": self.limit },
            "storage": {
                "gets_per_second": self.gets,
                "puts_per_second": self.puts,
                "down_bytes_per_second": self.down,
                "up_bytes_per_second": self.up,
            },
            "peers": self.peers.map(|(from, to)| {
                json!({ "in_bytes_per_second": from, "out_bytes_per_second": to })
            }),
            "hub": { "bytes_per_second": self.hub },
            "daemon": { "cpu_ratio": self.cpu, "memory_bytes": self.memory },
        })
    }
}

/// Whether the mount deals with other nodes.
pub(super) fn has_peers(page: &Page) -> bool {
    page.sum("hfmount_peers").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_shares_and_means() {
        let before = Page::read(
            "hfmount_fuse_request_seconds_count{op=\"read\"} 10\nhfmount_fuse_request_seconds_sum{op=\"read\"} 1\n\
             hfmount_object_bytes_total{direction=\"up\"} 1000\nprocess_cpu_seconds_total 5\n",
        );
        let now = Page::read(
            "hfmount_info{version=\"1\",volume=\"v\"} 1\nhfmount_fuse_request_seconds_count{op=\"read\"} 20\n\
             hfmount_fuse_request_seconds_count{op=\"open\"} 30\nhfmount_fuse_request_seconds_sum{op=\"read\"} 1.04\n\
             hfmount_object_bytes_total{direction=\"up\"} 5000\nprocess_cpu_seconds_total 8\n\
             hfmount_cache_read_bytes_total{outcome=\"hit\"} 300\n\
             hfmount_cache_read_bytes_total{outcome=\"miss\"} 100\nhfmount_cache_bytes 77\n\
             hfmount_source_bytes_total{source=\"hub\"} 400\nhfmount_source_bytes_total{source=\"mirror\"} 40\n\
             hfmount_source_bytes_total{source=\"bucket\"} 4\n",
        );
        let line = Line::between(&before, &now, Duration::from_secs(2));
        assert_eq!(line.volume, "v");
        assert_eq!(line.fuse.rate, 20.0);
        assert!((line.fuse.millis.expect("some") - 1.0).abs() < 1e-9, "{line:?}");
        assert_eq!((line.up, line.cpu, line.used, line.hub), (2000.0, 1.5, 77.0, 220.0));
        assert_eq!((line.hit, line.meta, line.peers), (Some(0.75), Operations::default(), None));
        let idle = Line::between(&now, &now, Duration::from_secs(1));
        assert_eq!((idle.hit, idle.fuse.millis, idle.hub), (None, None, 0.0));
        let json = line.as_json(Path::new("/mnt"), UNIX_EPOCH + Duration::from_secs(3));
        assert_eq!((&json["time"], &json["peers"]), (&json!(3.0), &Value::Null));
        assert_eq!(json["cache"]["hit_ratio"], 0.75);
    }
}
