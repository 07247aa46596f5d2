//! Peers: nodes of one volume that give each other what they have.

mod wire;
