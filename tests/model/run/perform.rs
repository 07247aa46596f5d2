//! Steps on a real node.

use super::*;

/// What a step answers on a real node, and the number of the file that it opened.
pub async fn perform(vfs: Arc<Vfs>, step: Step, known: Known) -> (Answer, Option<u64>) {
    match attempt(vfs, step, known).await {
        Ok(answer) => answer,
        Err(e) => (Answer::Failed(e.kind()), None),
    }
}

async fn attempt(vfs: Arc<Vfs>, step: Step, known: Known) -> Result<(Answer, Option<u64>), Error> {
    let ino = |id: Id| known.inos[&id];
    let fh = |id: Id| known.handles[&id].0;
    let of = |handle: Id| known.inos[&known.handles[&handle].1];
    let made = |entry: Entry| Answer::Made(entry.stat.ino);
    let answer = match step {
        Step::Create { dir, name, append, .. } => {
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | if append { libc::O_APPEND } else { 0 };
            let (entry, opened) = vfs.create(&CALLER, ino(dir), name.as_bytes(), 0o644, flags).await?;
            return Ok((made(entry), Some(opened.fh)));
        }
        Step::Mkdir { dir, name, .. } => made(vfs.mkdir(&CALLER, ino(dir), name.as_bytes(), 0o755).await?),
        Step::Symlink { dir, name, .. } => {
            made(vfs.symlink(&CALLER, ino(dir), name.as_bytes(), b"target").await?)
        }
        Step::Link { file, dir, name, .. } => {
            vfs.link(ino(file), ino(dir), name.as_bytes()).await?;
            Answer::Done
        }
        Step::Remove { dir, name, rmdir: false, .. } => {
            vfs.unlink(&CALLER, ino(dir), name.as_bytes()).await?;
            Answer::Done
        }
        Step::Remove { dir, name, .. } => {
            vfs.rmdir(&CALLER, ino(dir), name.as_bytes()).await?;
            Answer::Done
        }
        Step::Rename { from, to, flags, .. } => {
            let (from, to) = ((ino(from.0), from.1.as_bytes()), (ino(to.0), to.1.as_bytes()));
            vfs.rename(&CALLER, from, to, flags).await?;
            Answer::Done
        }
        Step::Open { file, flags, .. } => {
            let opened = vfs.open(ino(file), flags).await?;
            return Ok((Answer::Done, Some(opened.fh)));
        }
        Step::Close { handle, .. } => {
            let flushed = vfs.flush(fh(handle)).await;
            // As the kernel does, whatever the flush answered.
            let released = vfs.release(fh(handle), Some(handle as u64)).await;
            flushed.and(released)?;
            Answer::Done
        }
        Step::Flush { handle, .. } => {
            vfs.flush(fh(handle)).await?;
            Answer::Done
        }
        Step::Fsync { handle, .. } => {
            vfs.fsync(fh(handle)).await?;
            Answer::Done
        }
        Step::Write { handle, at, data, .. } => {
            vfs.write(fh(handle), at, Bytes::from(data)).await?;
            Answer::Done
        }
        Step::Read { handle, at, len, .. } => Answer::Bytes(vfs.read(fh(handle), at, len).await?.to_vec()),
        Step::Truncate { handle, size, .. } => {
            vfs.setattr(of(handle), Some(fh(handle)), SetAttr { size: Some(size), ..SetAttr::default() })
                .await?;
            Answer::Done
        }
        Step::TruncatePath { file, size, .. } => {
            vfs.setattr(ino(file), None, SetAttr { size: Some(size), ..SetAttr::default() }).await?;
            Answer::Done
        }
        Step::Fstat { handle, .. } => {
            Answer::Found(found(vfs.getattr(of(handle), Some(fh(handle))).await?.0))
        }
        Step::Mode { inode, mode, .. } => {
            vfs.setattr(ino(inode), None, SetAttr { mode: Some(mode), ..SetAttr::default() }).await?;
            Answer::Done
        }
        Step::Mtime { inode, seconds, .. } => {
            let time = TimeOrNow::Time(Timestamp(seconds * 1_000_000_000));
            vfs.setattr(ino(inode), None, SetAttr { mtime: Some(time), ..SetAttr::default() }).await?;
            Answer::Done
        }
        Step::Lookup { dir, name, .. } => match vfs.lookup(&CALLER, ino(dir), name.as_bytes()).await? {
            Lookup::Found(entry) => Answer::Found(found(entry.stat)),
            Lookup::Absent { .. } => Answer::Absent,
        },
        Step::List { dir, .. } => Answer::Names(list(vfs, ino(dir)).await?),
        Step::Cat { file, .. } => Answer::Bytes(read_all(vfs, ino(file)).await?.to_vec()),
        Step::Flock { handle, kind, .. } => {
            let kind = match kind {
                Locking::Shared => Flock::Shared,
                Locking::Exclusive => Flock::Exclusive,
                Locking::Unlock => Flock::Unlock,
            };
            vfs.flock(fh(handle), handle as u64, kind, false, async {}).await?;
            Answer::Done
        }
    };
    Ok((answer, None))
}

fn found(stat: Stat) -> Found {
    let Stat { ino, kind, size, nlink, mode, mtime, .. } = stat;
    Found { ino, kind, size, nlink, mode, mtime: mtime.0.div_euclid(1_000_000_000) }
}

async fn list(vfs: Arc<Vfs>, dir: Ino) -> Result<BTreeMap<String, (Ino, FileType)>, Error> {
    let mut names = BTreeMap::new();
    let mut offset = 0;
    loop {
        let items = vfs.readdir(dir, offset, offset % 2 == 0, 3).await?;
        let Some(last) = items.last() else { return Ok(names) };
        offset = last.offset;
        for item in items {
            let name = String::from_utf8_lossy(&item.name).into_owned();
            if name != "." && name != ".." {
                names.insert(name, (item.ino, item.kind));
            }
        }
    }
}
