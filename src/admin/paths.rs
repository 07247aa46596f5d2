//! What an inode is called, for messages.

use crate::error::Result;
use crate::meta::survey::Survey;
use crate::types::{FileType, Ino};

/// Deeper than any path.
const DEEPEST: usize = 4096;

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

/// The inode at a path from the root, `/`-separated; `None` if there is none. Follows no links.
pub async fn find(survey: &Survey, path: &[u8]) -> Result<Option<(Ino, FileType)>> {
    let mut at = (Ino::ROOT, FileType::Dir);
    for name in path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".") {
        match survey.lookup(at.0, name).await? {
            Some(found) => at = found,
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}
