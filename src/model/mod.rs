//! The words of the product as types: paths, digests, entries, directory objects. Pure; no I/O.

mod digest;
mod entry;
mod escape;
mod object;
mod path;
mod source;

pub use digest::Digest;
pub use entry::{Entry, Kind, LocalId, Mtime, Node, Owner};
pub use escape::{escape, escaped};
pub use object::{Object, RootHeader, root_content};
pub use path::{BadName, Name, TreePath};
pub use source::{Content, Root, Source};
