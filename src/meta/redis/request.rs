//! Requests as the scripts read them.

use ::redis::Cmd;

use super::log;
use crate::meta::events;
use crate::meta::kv::{Change, Expect, Key, Txn, Write};

/// Arguments of `get.lua`: neighbours of one map go together.
pub(super) fn get(request: &mut Cmd, keys: &[Key]) {
    for run in keys.chunk_by(|a, b| a.map == b.map) {
        request.arg(&run[0].map).arg(run.len());
        run.iter().for_each(|key| {
            request.arg(&key.field[..]);
        });
    }
}

/// Arguments of `commit.lua`, after those that name the request.
pub(super) fn commit(request: &mut Cmd, txn: &Txn, channel: &str) {
    match txn.session {
        Some(session) => request.arg(session.to_string()),
        None => request.arg(""),
    };
    if txn.publish.is_empty() {
        request.arg("").arg("").arg("");
    } else {
        let mut message = Vec::new();
        events::encode(txn.session, &txn.publish, &mut message);
        // Somebody may be waiting for the lock.
        let urgent = txn.publish.iter().any(|change| matches!(change, Change::Unlocked { .. }));
        request.arg(channel).arg(if urgent { log::AT_ONCE } else { log::SOON }).arg(message);
    }
    request.arg(txn.expect.len());
    for expect in &txn.expect {
        match expect {
            Expect::Absent(key) => place(request, "a", key),
            Expect::Present(key) => place(request, "p", key),
            Expect::Equals(key, value) => place(request, "e", key).arg(&value[..]),
            Expect::MapEmpty(map) => request.arg("m").arg(map),
        };
    }
    for write in &txn.write {
        match write {
            Write::Set(key, value) => place(request, "s", key).arg(&value[..]),
            Write::Del(key) => place(request, "d", key),
            Write::DelMap(map) => request.arg("D").arg(map),
            Write::Max(key, n) => place(request, "x", key).arg(n),
            Write::Add(key, n) => place(request, "+", key).arg(n),
            Write::AddBounded(key, n, bound) => place(request, "b", key).arg(n).arg(bound),
            Write::Release(counter, otherwise, value) => {
                place(request, "r", counter).arg(&otherwise.map).arg(&otherwise.field[..]).arg(&value[..])
            }
        };
    }
}

fn place<'a>(request: &'a mut Cmd, op: &str, key: &Key) -> &'a mut Cmd {
    request.arg(op).arg(&key.map).arg(&key.field[..])
}
