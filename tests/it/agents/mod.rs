//! Agents as an operator runs them: real processes, real certificates, real sockets.

mod basics;
pub mod cluster;
mod faults;
mod history;
mod holds;
mod netns;
mod network;
mod node_rollback;
mod operate;
mod public;
mod refresh;
mod rollback;
mod trash;
mod truth;
mod wait;
