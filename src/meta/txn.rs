//! Building a transaction: small words for the changes that several verbs make alike.

use bytes::Bytes;

use super::Meta;
use super::attr::{Attr, usage_of};
use super::kv::{Change, Expect, Key, Outcome, Txn, Write};
use super::schema::{self, InodeRow};
use crate::error::Result;
use crate::types::{Ino, ObjectId, Timestamp};

/// A transaction in the making.
pub(super) struct Build(pub Txn);

impl Build {
    /// The index of the expectation, as [`Outcome::Conflict`] names it.
    pub fn expect(&mut self, expect: Expect) -> usize {
        self.0.expect.push(expect);
        self.0.expect.len() - 1
    }

    pub fn equals(&mut self, key: Key, value: &Bytes) -> usize {
        self.expect(Expect::Equals(key, value.clone()))
    }

    pub fn set(&mut self, key: Key, value: Bytes) {
        self.0.write.push(Write::Set(key, value));
    }

    pub fn del(&mut self, key: Key) {
        self.0.write.push(Write::Del(key));
    }

    pub fn del_map(&mut self, map: String) {
        self.0.write.push(Write::DelMap(map));
    }

    /// A chunk row no longer refers to the object: it goes to the trash unless another one does.
    pub fn release(&mut self, object: ObjectId, now: Timestamp) {
        let (shared, trash) = (schema::shared_key(object), schema::trash_key(object));
        self.0.write.push(Write::Release(shared, trash, schema::time_value(now)));
    }

    pub fn add(&mut self, key: Key, n: i64) {
        if n != 0 {
            self.0.write.push(Write::Add(key, n));
        }
    }

    /// As `add`; what is added, but not what is given back, is held to the bound if there is one.
    pub fn add_within(&mut self, key: Key, n: i64, bound: Option<i64>) {
        match bound {
            Some(bound) if n > 0 => self.0.write.push(Write::AddBounded(key, n, bound)),
            _ => self.add(key, n),
        }
    }

    pub fn set_row(&mut self, ino: Ino, row: &InodeRow) -> Result<Bytes> {
        let value = schema::encode(row)?;
        self.set(schema::attr_key(ino), value.clone());
        Ok(value)
    }

    /// The list of names of `dir` changed, and its number of subdirectories by `subdirs`.
    pub fn touch_dir(&mut self, dir: Ino, now: Timestamp, subdirs: i64) {
        let nanos = u64::try_from(now.0).unwrap_or(0);
        self.0.write.push(Write::Max(schema::changed_key(dir), nanos));
        self.add(schema::subdirs_key(dir), subdirs);
    }

    /// Others should hear that the name means something else now.
    pub fn entry_changed(&mut self, parent: Ino, name: &[u8]) {
        self.0.publish.push(Change::Entry { parent, name: Bytes::copy_from_slice(name) });
    }

    pub fn inode_changed(&mut self, ino: Ino) {
        self.0.publish.push(Change::Inode { ino });
    }
}

impl Meta {
    /// A transaction of this session.
    pub(super) fn build(&self) -> Build {
        Build(Txn { session: Some(self.session()), ..Txn::default() })
    }

    /// Commits, under another session if this one turns out to be lost. Not for what names the session as a holder.
    pub(super) async fn commit(&self, build: Build) -> Result<Outcome> {
        self.commit_making(build, None).await
    }

    /// The same, knowing what an inode that it writes is afterwards. Of a directory that is known only when it is made.
    pub(super) async fn commit_making(&self, Build(txn): Build, made: Option<&Attr>) -> Result<Outcome> {
        let pending = self.0.recent.begin(&txn.write);
        let outcome = self.0.identity.commit(txn).await;
        match &outcome {
            Ok(Outcome::Applied) => pending.applied(made),
            Ok(_) => pending.refused(),
            Err(_) => {}
        }
        outcome
    }

    /// Commits under the session that the transaction bears and no other: [`Kind::Fenced`](crate::error::Kind::Fenced) if it
    /// is lost.
    pub(super) async fn commit_as_it_is(&self, build: Build) -> Result<Outcome> {
        self.kv().commit(build.0).await
    }
}

/// The bytes that an inode counts for in the volume's usage. Blobs are counted apart: many names share one.
pub(super) fn usage(row: &InodeRow) -> i64 {
    usage_of(row.kind, &row.content, row.uncounted, row.size).cast_signed()
}
