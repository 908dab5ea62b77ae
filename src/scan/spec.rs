//! What shall be scanned and how, and what came of it.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::index::Index;
use crate::disk::{Dir, OwnerPolicy, Owners, Stat};
use crate::error::PathError;
use crate::model::{Digest, Entry, Owner, Root, TreePath};
use crate::plan::Filter;

/// Digests that are known from elsewhere (what this run wrote itself), by directory, name and state.
pub type Known<'a> = dyn Fn(&TreePath, &[u8], &Stat) -> Option<Digest> + Sync + 'a;

/// Asked of every file that was read: one that is not finished stays described as it was, or is left out, and is looked
/// at again next time.
pub trait Gate: Sync {
    /// Why the file must not be described as it is yet; `None` when it is finished.
    fn unfinished(&self, path: &TreePath, fd: BorrowedFd<'_>, stat: &Stat) -> Option<String>;

    /// How it stays described.
    fn published(&self, path: &TreePath) -> Option<Entry>;

    /// Whether all files are described as they are in this scan; those that are not finished are only looked at again
    /// next time.
    fn only_marks(&self) -> bool {
        false
    }
}

/// Directories to look at; the others are as the index says.
#[derive(Clone, Debug, Default)]
pub struct Only {
    list: HashSet<TreePath>,
    /// These and all directories above them.
    pub(super) visit: HashSet<TreePath>,
    pub(super) deep: Vec<TreePath>,
}

impl Only {
    /// Lists `dirs`, and `deep` with everything below; the directories above are passed through.
    pub fn new<'p>(dirs: impl Iterator<Item = &'p TreePath>, deep: Vec<TreePath>) -> Self {
        let list: HashSet<TreePath> = dirs.cloned().collect();
        let mut visit = HashSet::from([TreePath::root()]);
        for path in list.iter().chain(&deep) {
            for path in path.ancestors() {
                if !visit.insert(path) {
                    break;
                }
            }
        }
        Self { list, visit, deep }
    }

    fn is_deep(&self, path: &TreePath) -> bool {
        self.deep.iter().any(|deep| path.is_within(deep))
    }

    pub(super) fn lists(&self, path: &TreePath) -> bool {
        self.list.contains(path) || self.is_deep(path)
    }

    pub(super) fn has(&self, path: &TreePath) -> bool {
        self.visit.contains(path) || self.is_deep(path)
    }
}

/// One directory to scan.
pub struct Spec<'a> {
    /// The tree's root.
    pub root: &'a Dir,
    /// Its path, for messages.
    pub shown: &'a str,
    /// What is known of it; updated.
    pub index: &'a Index,
    /// What belongs to it.
    pub filter: &'a Filter,
    /// How owners are described.
    pub policy: &'a OwnerPolicy,
    /// The host's names.
    pub owners: &'a Owners,
    /// Trust no digest of the index.
    pub rehash: bool,
    /// Files keep their setuid and setgid bits.
    pub setid: bool,
    /// Which files are not finished.
    pub gate: Option<&'a dyn Gate>,
    /// Called before a directory is listed: a watch that is set first misses nothing.
    pub entering: Option<&'a (dyn Fn(&TreePath) + Sync + 'a)>,
    /// Look at these directories only.
    pub only: Option<&'a Only>,
    /// Digests known from elsewhere.
    pub known: Option<&'a Known<'a>>,
    /// Counts as it goes.
    pub counters: &'a Counters,
}

/// Progress of a scan; read it from another thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// Files and links seen.
    pub files: AtomicU64,
    /// Directories seen.
    pub dirs: AtomicU64,
    /// Bytes of the files seen.
    pub bytes: AtomicU64,
    /// Files read.
    pub hashed: AtomicU64,
    /// Bytes read.
    pub hashed_bytes: AtomicU64,
}

/// What a scan found.
#[derive(Debug)]
pub struct Scanned {
    /// The state of the tree.
    pub root: Root,
    /// Files and links.
    pub files: u64,
    /// Entries of all kinds.
    pub entries: u64,
    /// Fifos, sockets and devices, which are left out.
    pub specials: u64,
    /// Names that the filter leaves out.
    pub excluded: u64,
    /// Files with more than one name.
    pub hard_links: u64,
    /// Files with holes (or compressed by the file system).
    pub sparse: u64,
    /// Something in it is excluded, special or unreadable.
    pub keeps: bool,
    /// What could not be read.
    pub errors: Vec<PathError>,
    /// Directories on which another file system is mounted.
    pub mounts: Vec<TreePath>,
    /// Files that are not finished, and why.
    pub held: Vec<(TreePath, String)>,
}

/// Names the filter and the owner policy that a row's object was made with.
pub(super) fn view(spec: &Spec<'_>) -> Digest {
    let owners = format!("{:?}", spec.policy);
    let setid = if spec.setid { "" } else { "\0no setid" };
    Digest::of(format!("{}\0{owners}{setid}", spec.filter.id()).as_bytes())
}

pub(super) fn owner_of(spec: &Spec<'_>, stat: &Stat) -> Owner {
    match spec.policy {
        OwnerPolicy::Preserve => spec.owners.names(stat.uid, stat.gid),
        OwnerPolicy::Ignore => Owner::default(),
        OwnerPolicy::Fixed(owner) => {
            let own = spec.owners.names(stat.uid, stat.gid);
            let or = |fixed: &Arc<str>, own| if fixed.is_empty() { own } else { fixed.clone() };
            Owner { user: or(&owner.user, own.user), group: or(&owner.group, own.group) }
        }
    }
}

/// A file's mode as the tree describes it.
pub(super) fn file_mode(spec: &Spec<'_>, stat: &Stat) -> u16 {
    if spec.setid { stat.mode } else { stat.mode & !0o6000 }
}
