//! Which node begins with which part of a blob: all nodes that read the same agree without asking, so that each fetches
//! other chunks from the Hub and the sum of their links is used. Only a preference: leases decide, so nodes that
//! disagree about who takes part lose nothing but time.

use super::NodeId;
use crate::types::BlobId;

/// The longest stripe, chunks.
const LONGEST: u64 = 16;
/// How many stripes of a blob each node should have at least: who is slow holds the others up less.
const EACH: u64 = 8;

/// The stripes of one blob as one node sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stripes {
    blob: BlobId,
    /// Chunks of a stripe.
    len: u64,
    me: NodeId,
    others: Vec<NodeId>,
}

impl Stripes {
    /// The stripes of `blob` of `chunks` chunks for those who take part, this node among them; `None` if it is alone.
    #[must_use]
    pub fn new(blob: BlobId, chunks: u64, me: NodeId, participants: &[NodeId]) -> Option<Self> {
        let others: Vec<NodeId> = participants.iter().copied().filter(|node| *node != me).collect();
        if others.is_empty() {
            return None;
        }
        let len = (chunks / (EACH * (others.len() as u64 + 1))).clamp(1, LONGEST);
        Some(Stripes { blob, len, me, others })
    }

    /// How many nodes share the blob, this one among them.
    #[must_use]
    pub fn nodes(&self) -> u64 {
        self.others.len() as u64 + 1
    }

    /// The node that is to begin with chunk `idx`. As many stripes as there are nodes, one after the other, are each another
    /// one's, in an order by chance: so the shares are alike however few the stripes are.
    #[must_use]
    pub fn whose(&self, idx: u64) -> NodeId {
        let (round, place) = self.turn(idx);
        let nodes = self.others.iter().copied().chain([self.me]);
        let mut order: Vec<(u64, NodeId)> = nodes.map(|node| weight(self.blob, round, node)).collect();
        let (_, (_, node), _) = order.select_nth_unstable(place as usize);
        *node
    }

    /// Whether that is this node.
    #[must_use]
    pub fn is_mine(&self, idx: u64) -> bool {
        let (round, place) = self.turn(idx);
        let mine = weight(self.blob, round, self.me);
        let before = self.others.iter().filter(|node| weight(self.blob, round, **node) < mine);
        before.count() as u64 == place
    }

    /// In which round of all nodes a chunk is, and whose turn it is there.
    fn turn(&self, idx: u64) -> (u64, u64) {
        let stripe = idx / self.len;
        (stripe / self.nodes(), stripe % self.nodes())
    }
}

/// The weight of a node for a chunk of a blob: all nodes reckon the same.
pub(super) fn weight(blob: BlobId, idx: u64, node: NodeId) -> (u64, NodeId) {
    (mix(mix(seed(blob) ^ mix(idx)) ^ node.0), node)
}

fn seed(blob: BlobId) -> u64 {
    let head = match &blob {
        BlobId::Sha256(b) => b.first_chunk::<8>(),
        BlobId::Git(b) => b.first_chunk::<8>(),
    };
    head.map_or(0, |b| u64::from_be_bytes(*b))
}

/// Spreads the bits of a number (the finaliser of splitmix64).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: BlobId = BlobId::Sha256([7; 32]);

    #[test]
    fn every_chunk_is_of_exactly_one_node_and_the_shares_are_alike() {
        for n in [2_u64, 3, 8] {
            let nodes: Vec<NodeId> = (0..n).map(|i| NodeId(mix(i) >> 1)).collect();
            let views: Vec<Stripes> =
                nodes.iter().map(|me| Stripes::new(BLOB, 2400, *me, &nodes).expect("several")).collect();
            let mut shares = vec![0; n as usize];
            for idx in 0..2400 {
                let owners: Vec<usize> =
                    views.iter().enumerate().filter(|(_, v)| v.is_mine(idx)).map(|(i, _)| i).collect();
                assert_eq!(owners.len(), 1, "chunk {idx} of {n} nodes");
                assert!(views.iter().all(|v| v.whose(idx) == nodes[owners[0]]), "all agree on {idx}");
                shares[owners[0]] += 1;
            }
            let (least, most) = (shares.iter().min().expect("some"), shares.iter().max().expect("some"));
            assert!(most - least <= LONGEST, "{n} nodes: {shares:?}");
            // However small the blob.
            let small = |me: &NodeId| {
                let view = Stripes::new(BLOB, 17, *me, &nodes).expect("several");
                (0..17).filter(|idx| view.is_mine(*idx)).count() as u64
            };
            assert!(nodes.iter().all(|me| (17 / n..=17 / n + 1).contains(&small(me))), "{n} nodes");
        }
    }

    #[test]
    fn stripes_are_runs_and_small_blobs_are_shared_too() {
        let nodes = [NodeId(1), NodeId(2)];
        let s = Stripes::new(BLOB, 2400, nodes[0], &nodes).expect("two");
        for stripe in 0..150 {
            assert!((0..16).all(|i| s.is_mine(stripe * 16 + i) == s.is_mine(stripe * 16)));
        }
        let s = Stripes::new(BLOB, 64, nodes[0], &nodes).expect("two");
        let mine = (0..64).filter(|i| s.is_mine(*i)).count();
        assert_eq!(mine, 32);
    }

    #[test]
    fn who_is_alone_has_no_stripes() {
        assert_eq!(Stripes::new(BLOB, 100, NodeId(1), &[NodeId(1)]), None);
        assert_eq!(Stripes::new(BLOB, 100, NodeId(1), &[]), None);
        assert!(Stripes::new(BLOB, 100, NodeId(1), &[NodeId(2)]).is_some());
    }
}
