//! One published state of a tree, and how it is named.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Digest, NodeId, Root};

/// Names a generation: epoch first, then number; only grows. Printed as `EPOCH.NUMBER`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GenId {
    /// Grows with every `source reset` (later: with every new holder of the source's lease).
    pub epoch: u64,
    /// Grows with every publication, from 1.
    pub number: u64,
}

impl GenId {
    /// Whether such a generation can have come about by counting; peers may say anything.
    pub fn is_plausible(self) -> bool {
        self.epoch < 1 << 48 && self.number < 1 << 62
    }
}

impl fmt::Display for GenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.number)
    }
}

impl FromStr for GenId {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let parts = s.split_once('.').and_then(|(e, n)| Some((e.parse().ok()?, n.parse().ok()?)));
        let (epoch, number) = parts.ok_or_else(|| format!("`{s}` is not a generation such as 1.42"))?;
        Ok(Self { epoch, number })
    }
}

/// How much a generation holds, or changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Changes {
    /// Entries that came into being.
    pub created: u64,
    /// Files and links whose content was replaced.
    pub updated: u64,
    /// Entries of which only attributes changed.
    pub attrs: u64,
    /// Entries that got another path.
    pub moved: u64,
    /// Entries that went.
    pub deleted: u64,
    /// Bytes of the files created and replaced.
    pub bytes: u64,
}

/// How a generation came about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Cause {
    /// The tree changed.
    #[default]
    Change,
    /// The tree changed, and an operator let what the guard had refused through.
    Approved {
        /// The plan's id.
        plan: String,
    },
    /// An older generation's content was brought back.
    Rollback {
        /// That generation.
        to: GenId,
    },
    /// A deploy job ended.
    Hold {
        /// Whose.
        who: String,
    },
    /// A new epoch was begun.
    Reset,
    /// A word of a newer version.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Change => f.write_str("change"),
            Self::Approved { plan } => write!(f, "approved plan {plan}"),
            Self::Rollback { to } => write!(f, "rollback to {to}"),
            Self::Hold { who } => write!(f, "hold by {who}"),
            Self::Reset => f.write_str("source reset"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// One published state of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Its name.
    pub id: GenId,
    /// What it is.
    pub root: Root,
    /// The filter that it was made with.
    pub filter: Digest,
    /// The node that published it.
    pub origin: NodeId,
    /// When, by the origin's wall clock, in milliseconds since the epoch. For people only.
    pub at_ms: i64,
    /// Files and links in it.
    pub files: u64,
    /// What changed against the generation before.
    #[serde(default)]
    pub changes: Changes,
    /// Whether the guard compared it with what was published before. When that was lost, mirrors judge for themselves.
    #[serde(default)]
    pub judged: bool,
    /// The plan id whose approval let it through, when the guard had refused it.
    #[serde(default)]
    pub approved: Option<String>,
    /// How it came about.
    #[serde(default)]
    pub cause: Cause,
}

#[cfg(test)]
mod tests {
    use super::GenId;

    #[test]
    fn epochs_count_before_numbers() {
        let id = |s: &str| s.parse::<GenId>().unwrap();
        assert!(id("2.1") > id("1.99"));
        assert!(id("1.10") > id("1.9"));
        assert_eq!(id("3.7").to_string(), "3.7");
        assert!("7".parse::<GenId>().is_err());
    }
}
