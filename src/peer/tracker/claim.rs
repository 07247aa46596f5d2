//! Asking who has chunks, and for leases of those that nobody has.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{Script, Value};

use super::{Tracker, list, ms, number, script, strange, text, time};
use crate::error::{Error, Kind, Result};
use crate::peer::types::{Claim, Claimed, Decision, Holder, NodeId, Role, Token};

static CLAIM: LazyLock<Script> = script!("claim.lua");

/// Chunk numbers from here on are refused: a bitmap is as long as its last bit.
pub(super) const CHUNKS: u64 = 1 << 25;

impl Tracker {
    /// Who has these chunks; of those that nobody has, leases as far as the question asks for them. Repeating it is
    /// harmless: who has a lease is told the same token again, and the lease lasts anew.
    ///
    /// A lease is void when it has run out by the server's clock, and when its owner's heartbeat is missing or it is
    /// blocked. A node that is blocked itself is served by nobody: it is told of no holders and gets leases that bind
    /// nobody else. So is, but with holders, one that serves nobody ([`Role::Leech`]).
    ///
    /// # Errors
    /// Also [`Kind::Invalid`] for a question that is too large, or from a node that never sent a heartbeat.
    pub async fn claim(&self, ask: &Claim) -> Result<Claimed> {
        if ask.chunks.len() > Claim::MOST || ask.chunks.iter().any(|chunk| *chunk >= CHUNKS) {
            let words = format!("blob {}: claim of {} chunks", ask.blob, ask.chunks.len());
            return Err(Error::new(Kind::Invalid, words));
        }
        for again in [false, true] {
            match self.ask(ask).await? {
                Some(claimed) => return Ok(claimed),
                None if again => break,
                None => self.beat_again().await?,
            }
        }
        Err(Error::new(Kind::Unavailable, format!("tracker: node {} is not known", self.me())))
    }

    /// `None`: there is no heartbeat of this node.
    async fn ask(&self, ask: &Claim) -> Result<Option<Claimed>> {
        if ask.chunks.is_empty() {
            return Err(Error::new(Kind::Invalid, format!("blob {}: claim of no chunk", ask.blob)));
        }
        let timing = self.timing();
        let most = if ask.grant { ask.most } else { 0 };
        let reply = self
            .call("claim", &CLAIM, |cmd| {
                cmd.arg(ask.blob.etag()).arg(ms(timing.ttl)).arg(ms(timing.participant)).arg(most);
                cmd.arg(u8::from(self.0.role == Role::Leech)).arg(&self.0.zone);
                cmd.arg(rand::random::<u32>() >> 1);
                ask.chunks.iter().for_each(|chunk| {
                    cmd.arg(*chunk);
                });
            })
            .await?;
        match reply {
            Value::Nil => Ok(None),
            reply => read(&reply)
                .filter(|claimed| claimed.decisions.len() == ask.chunks.len())
                .map(Some)
                .ok_or_else(|| strange("a claim")),
        }
    }
}

fn read(reply: &Value) -> Option<Claimed> {
    let [now, blocked, together, nodes, answers] = list(reply)? else { return None };
    let nodes = list(nodes)?.iter().map(|node| holder(text(node)?)).collect::<Option<Vec<Holder>>>()?;
    let decisions = list(answers)?.iter().map(|answer| decision(text(answer)?, &nodes));
    let ids = text(together)?.split(',').filter(|id| !id.is_empty());
    let mut participants = ids.map(|id| id.parse().ok()).collect::<Option<Vec<NodeId>>>()?;
    participants.sort_unstable();
    Some(Claimed {
        decisions: decisions.collect::<Option<_>>()?,
        participants,
        server_time: time(now)?,
        blocked: number(blocked)? != 0,
    })
}

fn decision(answer: &str, nodes: &[Holder]) -> Option<Decision> {
    let (kind, rest) = answer.split_at_checked(1)?;
    let node = |at: &str| nodes.get(at.parse::<usize>().ok()?).cloned();
    Some(match kind {
        "H" => Decision::Held(rest.split(',').map(node).collect::<Option<_>>()?),
        "L" => {
            let (owner, left) = rest.split_once(',')?;
            Decision::Leased { owner: node(owner)?, left: Duration::from_millis(left.parse().ok()?) }
        }
        "G" => Decision::Granted(Token(rest.parse().ok()?)),
        "F" => Decision::Free,
        _ => return None,
    })
}

/// `id|address|zone|free slots`, with more behind it or not.
pub(super) fn holder(row: &str) -> Option<Holder> {
    let mut parts = row.split('|');
    Some(Holder {
        node: parts.next()?.parse().ok()?,
        addr: parts.next()?.parse().ok()?,
        zone: parts.next()?.to_owned(),
        slots_free: parts.next()?.parse().ok()?,
    })
}
