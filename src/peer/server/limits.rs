//! How much one node may have at once. Slots give themselves back, however their holder ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::lock;
use crate::model::NodeId;

/// A mirror has a few connections per tree; more is a mistake or an attack, and must leave room for others.
pub(super) const NODE_CONNECTIONS: usize = 64;
/// Each request has up to three frames of 256 KiB in flight: 6 MiB for a node.
pub(super) const NODE_REQUESTS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Connection,
    Request,
}

/// What the nodes have at present; a node that has nothing has no entry.
#[derive(Debug, Default)]
pub(super) struct Limits(Mutex<HashMap<NodeId, [usize; 2]>>);

/// One of a node's connections or requests.
#[derive(Debug)]
pub(super) struct Slot {
    limits: Arc<Limits>,
    pub(super) node: NodeId,
    what: What,
}

impl Limits {
    /// `None` when the node has its share already.
    pub(super) fn take(self: &Arc<Self>, node: &NodeId, what: What) -> Option<Slot> {
        let most = match what {
            What::Connection => NODE_CONNECTIONS,
            What::Request => NODE_REQUESTS,
        };
        let mut nodes = lock(&self.0);
        let taken = nodes.entry(node.clone()).or_default();
        if taken[what as usize] >= most {
            return None;
        }
        taken[what as usize] += 1;
        Some(Slot { limits: Arc::clone(self), node: node.clone(), what })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut nodes = lock(&self.limits.0);
        if let Some(taken) = nodes.get_mut(&self.node) {
            taken[self.what as usize] -= 1;
            if *taken == [0, 0] {
                nodes.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_its_share_and_gives_it_back() {
        let limits = Arc::new(Limits::default());
        let (a, b) = (NodeId::new("a").unwrap(), NodeId::new("b").unwrap());
        let mut slots: Vec<_> = (0..NODE_REQUESTS).map(|_| limits.take(&a, What::Request).unwrap()).collect();
        assert!(limits.take(&a, What::Request).is_none());
        assert!(limits.take(&a, What::Connection).is_some());
        assert!(limits.take(&b, What::Request).is_some());
        slots.pop();
        assert!(limits.take(&a, What::Request).is_some());
        drop(slots);
        assert!(lock(&limits.0).is_empty(), "nothing is kept of a node that left");
    }
}
