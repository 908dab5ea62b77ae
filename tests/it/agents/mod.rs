//! Agents as an operator runs them: real processes, real certificates, real sockets.

mod basics;
pub mod cluster;
mod deferred;
mod faults;
mod history;
mod holds;
mod late;
mod netns;
mod network;
mod node_rollback;
mod operate;
mod prune;
mod public;
mod refresh;
mod refresh_rest;
mod rollback;
mod rollback_faults;
mod rollback_kept;
mod rollback_records;
mod rollback_unpublished;
mod seek;
mod trash;
mod truth;
mod wait;
