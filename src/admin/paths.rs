//! What an inode is called, for messages.

use crate::error::{Error, Kind, Result};
use crate::meta::Content;
use crate::meta::survey::Survey;
use crate::types::{FileType, Ino};

/// Deeper than any path.
const DEEPEST: usize = 4096;
/// Symlinks on the way to one path.
const LINKS_MAX: u32 = 40;

/// A name of `ino` from the root down, given a directory that has an entry for it. `None`: none is found. Reads the
/// directories on the way: for few inodes.
pub(super) async fn path_of(survey: &Survey, ino: Ino, dir: Ino) -> Result<Option<String>> {
    let mut parts: Vec<String> = Vec::new();
    let (mut ino, mut dir) = (ino, dir);
    for _ in 0..DEEPEST {
        if ino == Ino::ROOT {
            parts.reverse();
            return Ok(Some(format!("/{}", parts.join("/"))));
        }
        let Some(name) = name_in(survey, ino, dir).await? else { return Ok(None) };
        parts.push(name);
        ino = dir;
        let Some(inode) = survey.inode(ino).await? else { return Ok(None) };
        let Ok(row) = inode.row else { return Ok(None) };
        dir = row.parent;
    }
    Ok(None)
}

async fn name_in(survey: &Survey, ino: Ino, dir: Ino) -> Result<Option<String>> {
    let mut after = 0;
    loop {
        let page = survey.names(dir, after).await?;
        let Some(last) = page.last() else { return Ok(None) };
        after = last.id;
        for named in &page {
            if matches!(&named.target, Ok((target, _)) if *target == ino) {
                return Ok(Some(shown(&named.name)));
            }
        }
    }
}

/// A name as it may stand on a terminal.
pub(super) fn shown(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => name.escape_ascii().to_string(),
    }
}

/// The inode at a path from the root, `/`-separated; `None` if there is none. Symlinks on the way are followed, the last one
/// with `follow`; one that leads out of the volume is [`Kind::NotFound`].
pub async fn find(survey: &Survey, path: &[u8], follow: bool) -> Result<Option<Ino>> {
    let parts = |path: &[u8]| -> Vec<Vec<u8>> {
        let parts = path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".");
        parts.rev().map(<[u8]>::to_vec).collect()
    };
    // The last is the next.
    let mut left = parts(path);
    let mut way = vec![Ino::ROOT];
    let mut links = 0;
    while let (Some(name), Some(&dir)) = (left.pop(), way.last()) {
        if name == b".." {
            if way.len() > 1 {
                way.pop();
            }
            continue;
        }
        let Some((ino, kind)) = survey.lookup(dir, &name).await? else { return Ok(None) };
        if kind != FileType::Symlink || (left.is_empty() && !follow) {
            way.push(ino);
            continue;
        }
        links += 1;
        let target = match survey.attr(ino).await?.map(|attr| attr.content) {
            Some(Content::Symlink(target)) => target,
            _ => return Ok(None),
        };
        if target.starts_with(b"/") || links > LINKS_MAX {
            let words = format!("a symlink to {}", target.escape_ascii());
            return Err(Error::new(Kind::NotFound, words));
        }
        left.extend(parts(&target));
    }
    Ok(way.last().copied())
}
