//! Where a tree's content comes from: the one narrow trait between the engine and a source. Another
//! local directory is the first implementation (`scan::LocalSource`); a peer is the next.

use std::io::Read;
use std::os::fd::BorrowedFd;

use super::{Digest, Entry, Object, RootHeader, TreePath};
use crate::error::Result;

/// A published state of a tree.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Root {
    /// The digest of the root's directory object.
    pub object: Digest,
    /// The content digest of the whole tree.
    pub content: Digest,
    /// The root directory's own mode and owner.
    pub header: RootHeader,
}

/// The bytes of one file, in the form that the source has at hand.
pub enum Content<'a> {
    /// A local file, which may be cloned; read from its start.
    File(BorrowedFd<'a>),
    /// Bytes in order, ending where the file ends.
    Stream(&'a mut dyn Read),
    /// The file is no longer there. Not an error.
    Vanished,
}

/// A file whose content is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The directory that holds it.
    pub dir: &'a TreePath,
    /// What it is.
    pub entry: &'a Entry,
    /// Bytes from its start that are here already. A [`Content::Stream`] goes on behind them.
    pub from: u64,
}

/// A tree to copy from.
pub trait Source: Sync {
    /// The state to copy.
    fn root(&self) -> Root;

    /// Directory objects by digest, in the order asked for.
    ///
    /// # Errors
    /// An object that is not (or no longer) there, or a transport that failed.
    fn objects(&self, want: &[Digest]) -> Result<Vec<Object>>;

    /// The contents of `files`, each handed to `take` with its index in `files`, in any order, each at most
    /// once. A file that cannot be read is handed over as an error and the others follow.
    ///
    /// # Errors
    /// What makes all further files pointless; `take`'s own errors are passed through.
    fn contents(
        &self,
        files: &[Wanted<'_>],
        take: &mut dyn FnMut(usize, Result<Content<'_>>) -> Result<()>,
    ) -> Result<()>;
}
