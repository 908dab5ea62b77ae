//! One file, directory or symbolic link of a tree, as it is described to other nodes.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Digest, Name};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Link,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Dir => "dir",
            Self::Link => "link",
        })
    }
}

/// A modification time: seconds since the epoch (may be negative) and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mtime {
    /// Seconds since 1970-01-01 UTC.
    pub sec: i64,
    /// 0 to 999,999,999.
    pub nsec: u32,
}

impl Mtime {
    /// Nanoseconds since the epoch.
    pub fn nanos(self) -> i128 {
        i128::from(self.sec) * 1_000_000_000 + i128::from(self.nsec)
    }
}

/// Owner and group by name (`#1234` where the host has no name for an id). Both empty when the tree's
/// owners are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// The user's name.
    pub user: Arc<str>,
    /// The group's name.
    pub group: Arc<str>,
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// BLAKE3 of the content.
        digest: Digest,
    },
    /// A directory.
    Dir {
        /// The digest of its directory object.
        object: Digest,
        /// The content digest: names, kinds, modes, bytes, link targets.
        content: Digest,
    },
    /// A symbolic link and its target's bytes.
    Link {
        /// As `readlink` gives it.
        target: Box<[u8]>,
    },
    /// Something that exists but could not be read. Nothing is concluded from it: it is neither
    /// copied, nor is anything of its name deleted.
    Unreadable {
        /// What it would be.
        kind: Kind,
    },
}

/// A named entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: Name,
    /// Permission bits with setuid, setgid and sticky (0o7777); 0o777 for links.
    pub mode: u16,
    /// Modification time.
    pub mtime: Mtime,
    /// Owner and group.
    pub owner: Owner,
    /// Kind and content.
    pub node: Node,
}

impl Entry {
    /// What the entry is.
    pub fn kind(&self) -> Kind {
        match self.node {
            Node::File { .. } => Kind::File,
            Node::Dir { .. } => Kind::Dir,
            Node::Link { .. } => Kind::Link,
            Node::Unreadable { kind } => kind,
        }
    }

    /// Whether it could be read.
    pub fn is_readable(&self) -> bool {
        !matches!(self.node, Node::Unreadable { .. })
    }

    /// Bytes of a file, 0 for the others.
    pub fn size(&self) -> u64 {
        if let Node::File { size, .. } = self.node { size } else { 0 }
    }

    /// Whether mode, mtime and owner are the same (a link's mode means nothing).
    pub fn same_attrs(&self, other: &Entry) -> bool {
        (self.mode == other.mode || self.kind() == Kind::Link)
            && self.mtime == other.mtime
            && self.owner == other.owner
    }
}

/// How this host tells one state of a file from another without reading it. Never leaves the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalId {
    /// Inode number.
    pub ino: u64,
    /// Change time: moves with every write, chmod and rename, and cannot be set back by a program.
    pub ctime: Mtime,
}
