//! Bring all new content beside the tree, verified; then make it visible by journaled renames; roll
//! forward after a crash.
//!
//! Order: staged data and attributes written → synced → journal written and synced → renames → synced →
//! the staging directory renamed (nothing in the tree is touched from here on) → done mark. What a rename displaces stays in the staging directory under its own path, and that
//! directory then becomes the trash, so nothing is copied twice and nothing is unlinked in between.

mod commit;
mod control;
mod file;
mod finish;
mod journal;
#[cfg(test)]
mod late_tests;
mod mirror;
mod ops;
mod prune;
mod recall;
mod stage;
mod swap;
mod trash;
mod unplaced;

pub use commit::{Committed, Late, commit, recover};
pub(crate) use control::LOCK;
pub use control::{Control, Marker, Pin, PinnedMount, SyncMark};
pub(crate) use file::write_all;
pub use journal::Journal;
pub use prune::{Pruner, prune};
pub use recall::{Amount, Found, TrashPart, Trashed, empty_trash, find_trashed, trashed};
pub(crate) use recall::{Displaced, content_of, seek_trashed};
pub use stage::{
    Dropped, StageCounters, Staged, Stager, discard_partial, discard_stage, is_undecided, was_never_decided,
};
pub use swap::{Swap, check_swap, recover_swap};
pub(crate) use trash::trash_bytes;
pub use trash::{Keep, next_number};
