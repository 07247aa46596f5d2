//! What a server says of itself in answer to INFO.

use ::redis::aio::ConnectionLike;
use ::redis::{ErrorKind, ServerErrorKind, Value};

use super::failure::Failure;

/// The lines of INFO that matter here. Where a user may not ask, nothing is known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ServerInfo {
    /// `redis 7.0.15`.
    pub(super) name: String,
    /// New at every start of a server.
    pub(super) run_id: Option<String>,
    pub(super) is_replica: bool,
    pub(super) warnings: Vec<String>,
}

impl ServerInfo {
    pub(super) async fn ask(connection: &mut impl ConnectionLike) -> Result<Self, Failure> {
        let answer =
            connection.req_packed_command(&::redis::cmd("INFO")).await.and_then(Value::extract_error);
        match answer {
            Ok(value) => Ok(Self::read(&value)),
            Err(e) if e.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) => {
                Ok(ServerInfo { name: "redis".to_owned(), ..ServerInfo::default() })
            }
            Err(e) => Err(e.into()),
        }
    }

    pub(super) fn read(value: &Value) -> Self {
        let text = match value {
            Value::BulkString(bytes) => String::from_utf8_lossy(bytes),
            Value::VerbatimString { text, .. } => text.into(),
            _ => "".into(),
        };
        let get = |name: &str| {
            text.lines()
                .filter_map(|line| line.trim_end().split_once(':'))
                .find(|(n, _)| *n == name)
                .map(|(_, v)| v)
        };
        let name = match (get("valkey_version"), get("redis_version")) {
            (Some(version), _) => format!("valkey {version}"),
            (None, Some(version)) => format!("redis {version}"),
            (None, None) => "redis".to_owned(),
        };
        let mut warnings = Vec::new();
        if get("aof_enabled") == Some("0") {
            warnings.push(format!(
                "{name} does not keep an append-only file (appendonly no): a crash of it loses what was written since its \
                 last snapshot."
            ));
        }
        if let Some(policy) = get("maxmemory_policy").filter(|policy| *policy != "noeviction") {
            warnings.push(format!(
                "{name} may throw away metadata when its memory is full (maxmemory-policy {policy}): set it to noeviction."
            ));
        }
        ServerInfo {
            run_id: get("run_id").map(str::to_owned),
            is_replica: get("role") == Some("slave"),
            name,
            warnings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_server_says() {
        let text = "# Server\r\nredis_version:7.0.15\r\nrun_id:0a1b\r\n\r\n# Replication\r\nrole:slave\r\n\
                    maxmemory_policy:allkeys-lru\r\naof_enabled:0\r\n";
        let info = ServerInfo::read(&Value::BulkString(text.into()));
        assert_eq!((info.name.as_str(), info.run_id.as_deref()), ("redis 7.0.15", Some("0a1b")));
        assert!(info.is_replica);
        assert_eq!(info.warnings.len(), 2);
        assert!(info.warnings[1].contains("allkeys-lru"));
    }

    #[test]
    fn a_sound_server_has_no_warnings() {
        let text = "redis_version:7.2.4\r\nvalkey_version:8.0.1\r\nrole:master\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n";
        let info = ServerInfo::read(&Value::BulkString(text.into()));
        assert_eq!((info.name.as_str(), info.warnings.len(), info.is_replica), ("valkey 8.0.1", 0, false));
    }
}
