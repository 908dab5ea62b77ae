//! The words of the product as types: paths, digests, entries, directory objects. Pure; no I/O.

mod digest;
mod entry;
mod escape;
mod generation;
mod listed;
mod node;
mod object;
mod path;
mod report;
mod source;
mod status;

pub use digest::Digest;
pub use entry::{Entry, Kind, LocalId, Mtime, Node, Owner};
pub use escape::{escape, escaped};
pub use generation::{Cause, Changes, GenId, Generation};
pub use listed::{counted, counted_as, listed};
pub use node::{BadNodeId, NodeId};
pub use object::{Object, RootHeader, root_content};
pub use path::{BadName, Name, TreePath};
pub use report::{Mark, RefreshState, RefreshStatus, RefusedPlan, Report, State, Trouble};
pub use source::{Content, Root, Source, Wanted};
pub use status::{
    Convergence, HeldPath, Hold, NodeStatus, Percentiles, Recent, RoleName, Status, Total, TreeStatus,
    WatchStatus,
};
