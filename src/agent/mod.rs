//! What a command or a role does, put together from scan, plan and apply.

mod inspect;
mod paths;
mod state;
mod sync;

pub use inspect::{Drift, DriftKind, Explained, digest, explain, verify};
pub use state::{Pending, TreeState, default_state_dir};
pub use sync::{Activate, Monitor, NotCarried, Outcome, Phase, Progress, SyncOptions, sync};
