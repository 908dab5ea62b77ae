//! Walk, stat and hash: from a directory on disk to the digest of its tree.

mod changed;
mod conclude;
mod entry;
mod hash;
mod index;
mod list;
mod local;
mod pool;
mod read;
mod row;
mod spec;
mod state;
mod store;
mod through;
mod walk;

pub use changed::changed_within;
pub(crate) use conclude::kids_hash_of;
pub use hash::hash_stable;
pub(crate) use hash::{hash_fd, hash_first, hash_into, read_full, with_buffer};
pub(crate) use index::listed_name;
pub use index::{Index, OldTree, ROOT_ID};
pub(crate) use list::StatHasher;
pub use local::{Indexed, LocalSource, Objects, Published};
pub use row::{Bitmap, DirRow, EntryId, StatHash};
pub use spec::{Counters, Gate, Known, Only, Scanned, Spec};
pub use store::{Fetch, Store};
pub use walk::scan;
