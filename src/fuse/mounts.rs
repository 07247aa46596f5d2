//! The kernel's table of mounts, as `/proc/self/mountinfo` tells it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Result, ResultExt};

/// The name that every mount of this program bears in the table, as source and as subtype. transformers treats a
/// source named `hf-mount` specially: this is not it.
pub(crate) const NAME: &str = "hfmount";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// `0:52`.
    pub(crate) device: String,
    pub(crate) point: PathBuf,
    /// `ext4`, `fuse.hfmount`.
    pub(crate) fs_type: String,
    pub(crate) source: String,
}

impl Mount {
    /// Whether this program made it.
    pub(crate) fn is_hfmount(&self) -> bool {
        self.source == NAME && self.fs_type.starts_with("fuse")
    }

    pub(crate) fn is_fuse(&self) -> bool {
        self.fs_type == "fuse" || self.fs_type.starts_with("fuse.")
    }
}

/// All mounts that this process sees, in the order in which they were made.
pub(crate) fn all() -> Result<Vec<Mount>> {
    const TABLE: &str = "/proc/self/mountinfo";
    Ok(parse(&fs::read(TABLE).context(|| TABLE)?))
}

/// The mount on top at exactly `point`.
pub(crate) fn at(point: &Path) -> Result<Option<Mount>> {
    Ok(all()?.into_iter().rev().find(|m| m.point == point))
}

/// Lines that cannot be read are left out.
fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/sda1 rw`: any number of fields before the dash.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let device = fields.nth(2)?;
    let point = fields.nth(1)?;
    let mut rest = fields.skip_while(|f| *f != b"-").skip(1);
    Some(Mount {
        device: String::from_utf8(device.to_vec()).ok()?,
        point: PathBuf::from(OsString::from_vec(unescape(point))),
        fs_type: String::from_utf8_lossy(rest.next()?).into_owned(),
        source: String::from_utf8_lossy(&unescape(rest.next()?)).into_owned(),
    })
}

/// Spaces, tabs, newlines and backslashes are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut i = 0;
    while i < field.len() {
        let octal = (field[i] == b'\\')
            .then(|| field.get(i + 1..i + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(octal.unwrap_or(field[i]));
        i += if octal.is_some() { 4 } else { 1 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        31 22 0:52 / /mnt/a\\040b rw,nosuid - fuse.hfmount hfmount rw,user_id=0\n\
        32 22 0:53 / /mnt/hf rw shared:7 master:2 - fuse.sshfs host:/x rw\n\
        33 32 0:54 / /mnt/hf rw - fuse hfmount rw\n\
        garbage\n";

    #[test]
    fn the_top_mount_of_a_point_is_the_last_one() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 4);
        let top = mounts.iter().rev().find(|m| m.point == Path::new("/mnt/hf")).expect("mounted");
        assert_eq!((top.device.as_str(), top.is_hfmount()), ("0:54", true));
        assert!(!mounts[2].is_hfmount() && mounts[2].is_fuse() && !mounts[0].is_fuse());
    }

    #[test]
    fn spaces_in_names() {
        assert_eq!(parse(TABLE)[1].point, Path::new("/mnt/a b"));
        assert_eq!(unescape(b"a\\134b\\9"), b"a\\b\\9");
    }

    #[test]
    fn the_real_table_has_a_root() {
        assert!(all().expect("mountinfo").iter().any(|m| m.point == Path::new("/")));
    }
}
