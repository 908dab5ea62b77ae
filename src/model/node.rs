//! The name of a node: what its certificate carries, what `allow` and `source-id` name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A node's name: up to 253 lower-case letters, digits, `.`, `-` and `_`, beginning and ending with a letter
/// or digit; so it can stand in a certificate as a DNS name. Upper case is taken as lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(Arc<str>);

/// Why a text is no [`NodeId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a node id: letters, digits, `.`, `-` and `_`, at most 253, beginning and ending with a letter or digit"
)]
pub struct BadNodeId(String);

impl NodeId {
    /// Checks `text`.
    ///
    /// # Errors
    /// It is not a name of the kind described above.
    pub fn new(text: &str) -> Result<Self, BadNodeId> {
        let id = text.to_ascii_lowercase();
        let plain = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let fits = id.len() <= 253 && plain(id.chars().next()) && plain(id.chars().next_back());
        let known = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if fits && id.chars().all(known) && !id.contains("..") {
            Ok(Self(id.into()))
        } else {
            Err(BadNodeId(super::escape(&text.as_bytes()[..text.len().min(300)])))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = BadNodeId;

    fn from_str(s: &str) -> Result<Self, BadNodeId> {
        Self::new(s)
    }
}

impl TryFrom<String> for NodeId {
    type Error = BadNodeId;

    fn try_from(s: String) -> Result<Self, BadNodeId> {
        Self::new(&s)
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::NodeId;

    #[test]
    fn only_what_can_stand_in_a_certificate_is_a_node_id() {
        for bad in ["", "a b", "-a", "a.", "a..b", "ä", "a/b", &"x".repeat(254)] {
            assert!(NodeId::new(bad).is_err(), "{bad}");
        }
        assert_eq!(NodeId::new("App1.Example.com").unwrap().as_str(), "app1.example.com");
    }
}
