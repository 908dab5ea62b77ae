//! What a command or a role does, put together from scan, plan and apply.

mod apply;
mod inspect;
mod paths;
mod pin;
mod state;
mod sync;
mod target;

pub use apply::{Activate, Monitor, NotCarried, Outcome, Phase, Progress, TreeOptions};
pub use inspect::{Drift, DriftKind, Explained, digest, explain, verify};
pub use state::{Pending, TreeState, default_state_dir};
pub use sync::{SyncOptions, sync};
