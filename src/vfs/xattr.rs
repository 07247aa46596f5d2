//! Extended attributes. `user.*` and `trusted.*` are kept in the metadata; the kernel checks who may. `security.*` and
//! `system.*` are not kept, and asking for them costs nothing: the kernel itself asks for `security.capability` before
//! every write.
//!
//! A private file has those that the local disk keeps for it; what exists in this mount only has none.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, json};

use super::Vfs;
use super::types::Caller;
use super::virtual_ino::{Which, which};
use crate::blocking::blocking;
use crate::chunk::Amount;
use crate::error::{Error, Kind, Result};
use crate::meta::{Content, SetXattr, Xattrs};
use crate::types::{FileType, Ino};

/// Made up on demand for files of the Hub, and those that have the bytes of one, and in no list: what copies attributes would copy it to where it is not so.
const SOURCE: &[u8] = b"user.hfmount.source";

/// That an inode has none is believed for as long as the kernel may believe its attributes, but no longer than this.
const BELIEVED: Duration = Duration::from_secs(1);

/// Whose names are kept; `Err`: what to answer to who asks for one of the others.
fn kept(name: &[u8]) -> Result<(), Kind> {
    let of = |space: &[u8]| name.strip_prefix(space);
    match of(b"user.").or_else(|| of(b"trusted.")) {
        Some([]) => Err(Kind::Invalid),
        Some(_) => Ok(()),
        None if of(b"security.").is_some() => Err(Kind::NoData),
        None => Err(Kind::NotSupported),
    }
}

impl Vfs {
    /// What can be said of a name without looking at any inode: that its like is not kept. For the loop thread, before
    /// anything else.
    #[must_use]
    pub fn xattr_refusal(name: &[u8]) -> Option<Kind> {
        kept(name).err()
    }

    /// The value of an extended attribute; [`Kind::NoData`] if it is not set.
    pub async fn getxattr(self: &Arc<Self>, ino: Ino, name: &[u8]) -> Result<Bytes> {
        kept(name)?;
        match which(ino) {
            Which::Real if name == SOURCE => return self.source_of(ino).await,
            Which::Real => {}
            Which::Private => {
                let (vfs, name) = (Arc::clone(self), Bytes::copy_from_slice(name));
                return blocking(move || vfs.private.getxattr(ino, &name)).await;
            }
            _ => return Err(Kind::NoData.into()),
        }
        let xattrs = self.xattrs(ino).await?;
        xattrs.get(name).cloned().ok_or_else(|| Kind::NoData.into())
    }

    /// The names of all extended attributes, each with a 0 behind it. `trusted.*` is for root only.
    pub async fn listxattr(self: &Arc<Self>, caller: &Caller, ino: Ino) -> Result<Bytes> {
        match which(ino) {
            Which::Real => {}
            Which::Private => {
                let vfs = Arc::clone(self);
                return blocking(move || vfs.private.listxattr(ino)).await;
            }
            _ => return Ok(Bytes::new()),
        }
        let mut list = Vec::new();
        for (name, _) in self.xattrs(ino).await?.0 {
            if caller.uid == 0 || !name.starts_with(b"trusted.") {
                list.extend_from_slice(&name);
                list.push(0);
            }
        }
        Ok(list.into())
    }

    /// Sets an extended attribute. `flags` are `XATTR_CREATE` (1) or `XATTR_REPLACE` (2).
    pub async fn setxattr(self: &Arc<Self>, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        self.changeable(name)?;
        let how = match flags {
            0 => SetXattr::Any,
            libc::XATTR_CREATE => SetXattr::Create,
            libc::XATTR_REPLACE => SetXattr::Replace,
            _ => return Err(Error::new(Kind::Invalid, format!("flags {flags:#x}"))),
        };
        match which(ino) {
            Which::Real => {}
            Which::Private => {
                let (vfs, name) = (Arc::clone(self), Bytes::copy_from_slice(name));
                let value = Bytes::copy_from_slice(value);
                return blocking(move || vfs.private.setxattr(ino, &name, &value, flags)).await;
            }
            _ => return Err(Error::new(Kind::NotSupported, format!("attributes of inode {ino}"))),
        }
        self.settle(ino).await?;
        self.meta.set_xattr(ino, name, value, how).await?;
        self.attrs.forget(ino);
        Ok(())
    }

    /// Takes an extended attribute away; [`Kind::NoData`] if it is not set.
    pub async fn removexattr(self: &Arc<Self>, ino: Ino, name: &[u8]) -> Result<()> {
        self.changeable(name)?;
        match which(ino) {
            Which::Real => {}
            Which::Private => {
                let (vfs, name) = (Arc::clone(self), Bytes::copy_from_slice(name));
                return blocking(move || vfs.private.removexattr(ino, &name)).await;
            }
            _ => return Err(Kind::NoData.into()),
        }
        self.settle(ino).await?;
        self.meta.remove_xattr(ino, name).await?;
        self.attrs.forget(ino);
        Ok(())
    }

    /// Where the bytes of a file of the Hub came from, and how many are not on this machine's disk: one line of JSON. `file`: they
    /// were written here by a client, and turned out to be what the file's name says.
    async fn source_of(&self, ino: Ino) -> Result<Bytes> {
        let attr = self.meta.getattr(ino).await?;
        let blob = match (attr.content, attr.proven) {
            (Content::Blob(blob), _) | (Content::Extents, Some(blob)) => blob,
            _ => return Err(Kind::NoData.into()),
        };
        let found = self.chunks.whereabouts(blob, attr.size).await?;
        let amount = |a: &Amount| json!({"chunks": a.chunks, "bytes": a.bytes});
        let here: Map<_, _> =
            found.here.iter().map(|(from, a)| (from.name().to_owned(), amount(a))).collect();
        let told = json!({
            "blob": blob.to_string(),
            "verified": found.verified,
            "all": amount(&found.all),
            "from": here,
            "missing": amount(&found.missing),
        });
        Ok(told.to_string().into())
    }

    fn changeable(&self, name: &[u8]) -> Result<()> {
        self.writable()?;
        if name == SOURCE {
            return Err(Kind::NotSupported.into());
        }
        kept(name).map_err(|kind| match kind {
            Kind::NoData => Kind::NotSupported.into(),
            kind => kind.into(),
        })
    }

    async fn xattrs(&self, ino: Ino) -> Result<Xattrs> {
        let seen = self.meta.recent(ino, self.opts.attr_ttl.min(BELIEVED));
        if seen.is_some_and(|(attr, _)| !attr.xattrs) {
            return Ok(Xattrs::default());
        }
        self.settle(ino).await?;
        match self.meta.xattrs(ino).await {
            // Open, and in nobody's metadata any more.
            Err(e)
                if e.kind() == Kind::Stale
                    && self.attrs.ghost(ino).is_some_and(|g| g.kind != FileType::File) =>
            {
                Ok(Xattrs::default())
            }
            read => read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_names_are_kept() {
        assert_eq!((kept(b"user.x"), kept(b"trusted.overlay.opaque")), (Ok(()), Ok(())));
        assert_eq!((kept(b"user."), kept(b"trusted.")), (Err(Kind::Invalid), Err(Kind::Invalid)));
        assert_eq!(kept(b"security.capability"), Err(Kind::NoData));
        for name in [&b"system.posix_acl_access"[..], b"user", b"os2.x", b""] {
            assert_eq!(kept(name), Err(Kind::NotSupported));
        }
    }
}
