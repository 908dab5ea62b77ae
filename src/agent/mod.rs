//! What a command or a role does, put together from scan, plan, apply and peer.

mod apply;
mod health;
mod history;
mod inspect;
mod mirror;
mod orders;
mod paths;
mod pin;
pub mod pki;
mod role;
mod source;
mod state;
mod supervisor;
mod sync;
mod target;
mod trash;
mod unpublished;

pub use apply::{Activate, Monitor, NotCarried, Outcome, Phase, Progress, TreeOptions};
pub use history::HistoryEntry;
pub use inspect::{Drift, DriftKind, Explained, digest, explain, verify};
pub use orders::Ordered;
pub use role::{HoldOrder, Role};
pub use source::{Retention, RollbackAnswer, RollbackOrder};
pub use state::{Pending, TreeState, default_state_dir};
pub use supervisor::{Agent, Scope, Wait, Waited};
pub use sync::{SyncOptions, sync};
pub use trash::{TrashAnswer, TrashEntry, TrashOrder, trash_of};
