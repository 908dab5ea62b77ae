//! What an agent answers: on its local socket, where the rights on the file are the administrator's rights, and how the
//! other commands ask there; and on the public port, which tells everybody how the node is and changes nothing.

mod ask;
mod local;
mod peer;
mod public;

pub use ask::{ask, ask_until, ask_with, listens, query, tell};
pub use local::{ForgetAsked, HistoryAnswer, HoldAsked, HoldEnd, Marked, RefreshAsked, local};
pub use public::Ports;
