//! How engines pass changes to other processes: a message names the session that committed and what it changed. Several
//! messages may follow one another. Whoever cannot read one (a later version wrote it) takes it for [`Event::Lost`].

use bytes::{Buf, BufMut, Bytes};

use super::kv::{Change, Event};
use crate::types::{Ino, SessionId};

/// Session ids have 63 bits, so no session is this one.
const NOBODY: u64 = u64::MAX;

const ENTRY: u8 = 1;
const INODE: u8 = 2;
const UNLOCKED: u8 = 3;

/// Appends one message.
pub(super) fn encode(by: Option<SessionId>, changes: &[Change], out: &mut Vec<u8>) {
    out.put_u64(by.map_or(NOBODY, |session| session.0));
    out.put_u32(u32::try_from(changes.len()).unwrap_or(u32::MAX));
    for change in changes {
        match change {
            Change::Entry { parent, name } => {
                out.put_u8(ENTRY);
                out.put_u64(parent.0);
                out.put_u32(u32::try_from(name.len()).unwrap_or(u32::MAX));
                out.put_slice(name);
            }
            Change::Inode { ino } => {
                out.put_u8(INODE);
                out.put_u64(ino.0);
            }
            Change::Unlocked { ino } => {
                out.put_u8(UNLOCKED);
                out.put_u64(ino.0);
            }
        }
    }
}

/// The events of all messages in `body`; what cannot be read ends in [`Event::Lost`].
pub(super) fn decode(mut body: Bytes) -> Vec<Event> {
    // Some 40 bytes each; if it is more, it grows.
    let mut events = Vec::with_capacity((body.len() / 32).min(4096));
    while body.has_remaining() {
        if message(&mut body, &mut events).is_none() {
            events.push(Event::Lost);
            break;
        }
    }
    events
}

fn message(body: &mut Bytes, events: &mut Vec<Event>) -> Option<()> {
    let by = Some(body.try_get_u64().ok()?).filter(|id| *id != NOBODY).map(SessionId);
    for _ in 0..body.try_get_u32().ok()? {
        let tag = body.try_get_u8().ok()?;
        let ino = Ino(body.try_get_u64().ok()?);
        let change = match tag {
            ENTRY => {
                let len = usize::try_from(body.try_get_u32().ok()?).ok()?;
                let name = (len <= body.len()).then(|| body.split_to(len))?;
                Change::Entry { parent: ino, name }
            }
            INODE => Change::Inode { ino },
            UNLOCKED => Change::Unlocked { ino },
            _ => return None,
        };
        events.push(Event::Changed { change, by });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes() -> Vec<Change> {
        vec![
            Change::Entry { parent: Ino(1), name: Bytes::from_static(b"n\xff\0") },
            Change::Inode { ino: Ino(7) },
            Change::Unlocked { ino: Ino(u64::MAX >> 11) },
        ]
    }

    #[test]
    fn messages_follow_one_another() {
        let mut body = Vec::new();
        encode(Some(SessionId(3)), &changes(), &mut body);
        encode(None, &changes()[1..2], &mut body);
        let mut want: Vec<Event> =
            changes().into_iter().map(|change| Event::Changed { change, by: Some(SessionId(3)) }).collect();
        want.push(Event::Changed { change: changes()[1].clone(), by: None });
        assert_eq!(decode(body.into()), want);
    }

    #[test]
    fn what_cannot_be_read_is_lost() {
        let mut body = Vec::new();
        encode(None, &changes(), &mut body);
        for cut in 1..body.len() {
            assert_eq!(decode(body[..cut].to_vec().into()).last(), Some(&Event::Lost), "cut at {cut}");
        }
        body[12] = 99;
        assert_eq!(decode(body.into()), [Event::Lost]);
    }
}
