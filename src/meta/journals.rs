//! Sessions whose mounts acknowledged data that is not in the bucket yet: it lies in a journal in the cache directory of a node.
//! As long as a session is on this list, its objects are not to be collected, whoever refers to them: the journal may.
//!
//! Beside the list each such session has a map that says, for each inode, up to which entry its journal was committed. It is
//! written in the same transaction as the data, so that an entry which a crash left behind is never committed twice.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Meta;
use super::kv::{Expect, Key, Kv, Outcome, Txn, Write, session_field};
use super::schema::{self, JOURNALS};
use crate::error::{Error, Kind, Result};
use crate::types::{Ino, SessionId, Timestamp};

/// How many rows are read at once.
const AT_ONCE: usize = 256;

/// Where a session's journal is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalRow {
    pub host: String,
    /// The cache directory on that host.
    pub dir: String,
    pub since: Timestamp,
}

/// An entry of a session's journal, as a commit names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalMark {
    pub session: SessionId,
    /// Rises with each entry of the session.
    pub serial: u64,
}

/// All sessions with journals that are not drained. For tools, which have no session themselves.
pub async fn list_journals(kv: &dyn Kv) -> Result<Vec<(SessionId, JournalRow)>> {
    let (mut journals, mut after) = (Vec::new(), 0);
    loop {
        let entries = kv.scan(JOURNALS, after, AT_ONCE).await?;
        let Some(last) = entries.last() else { return Ok(journals) };
        after = last.id;
        for entry in &entries {
            let id: SessionId = String::from_utf8_lossy(&entry.field).parse()?;
            journals.push((id, schema::decode(&entry.value, || format!("journal of session {id}"))?));
        }
    }
}

impl Meta {
    /// Puts a session on the list, before anything that this mount journals under its name is acknowledged: its own, or one
    /// that it had before.
    pub async fn register_journal(&self, session: SessionId, dir: &str) -> Result<()> {
        let row = JournalRow { host: self.info().host.clone(), dir: dir.to_owned(), since: Timestamp::now() };
        let mut build = self.build();
        build.set(Key::new(JOURNALS, session_field(session)), schema::encode(&row)?);
        // Without an expectation there is nothing to lose to; a fenced session is an error.
        let _ = self.commit(build).await?;
        Ok(())
    }

    /// The journal of `session` is drained: no entry of it is left on any disk. It need not be this session.
    pub async fn end_journal(&self, session: SessionId) -> Result<()> {
        let write = vec![
            Write::Del(Key::new(JOURNALS, session_field(session))),
            Write::DelMap(schema::journal_map(session)),
        ];
        let _ = self.kv().commit(Txn { session: Some(self.session()), write, ..Txn::default() }).await?;
        Ok(())
    }

    /// Entries that were committed are gone for good, and what was said of them is taken away. What was said of a later entry
    /// of the same file stays.
    pub async fn forget_marks(&self, marks: &[(JournalMark, Ino)]) -> Result<()> {
        for some in marks.chunks(AT_ONCE) {
            if some.len() > 1 && self.forget_all_marks(some).await? {
                continue;
            }
            for one in some {
                let _ = self.forget_all_marks(std::slice::from_ref(one)).await?;
            }
        }
        Ok(())
    }

    /// `false`: one of them is not the last one.
    async fn forget_all_marks(&self, marks: &[(JournalMark, Ino)]) -> Result<bool> {
        let mut txn = Txn { session: Some(self.session()), ..Txn::default() };
        for (mark, ino) in marks {
            let (key, value) = mark_write(mark, *ino);
            txn.expect.push(Expect::Equals(key.clone(), value));
            txn.write.push(Write::Del(key));
        }
        Ok(self.kv().commit(txn).await? == Outcome::Applied)
    }

    /// The last entry of the session's journal about this inode that was committed; 0: none.
    pub async fn journalled(&self, session: SessionId, ino: Ino) -> Result<u64> {
        let key = schema::journal_key(session, ino);
        let value = self.kv().get(std::slice::from_ref(&key)).await?.pop().flatten();
        value.map_or(Ok(0), |value| {
            let number = <[u8; 8]>::try_from(&value[..]).map(u64::from_be_bytes);
            number.map_err(|e| Error::with_source(Kind::Corrupt, format!("journal of session {session}"), e))
        })
    }

    /// All sessions with journals that are not drained.
    pub async fn journals(&self) -> Result<Vec<(SessionId, JournalRow)>> {
        list_journals(&**self.kv()).await
    }
}

/// What a commit writes about the entry that it contains.
pub(super) fn mark_write(mark: &JournalMark, ino: Ino) -> (Key, Bytes) {
    (schema::journal_key(mark.session, ino), Bytes::copy_from_slice(&mark.serial.to_be_bytes()))
}
