//! syncagent keeps an application cluster's deployed files the same on every node.
//!
//! The module map, lowest floor first; a module uses its own floor's files and lower floors only
//! (a test reads the `use crate::` lines and fails on an upward import):
//!
//! | floor | modules | kind |
//! | --- | --- | --- |
//! | 0 | [`error`], [`model`] | pure |
//! | 1 | [`config`], [`plan`], [`lag`] | pure |
//! | 2 | [`disk`] below [`scan`], [`watch`] and [`apply`] | blocking I/O |
//! | 3 | [`peer`], [`refresh`] | async: what crosses the network, what the local server is told |
//! | 4 | [`agent`], [`serve`] | what a command or a role does, from those parts |
//! | 5 | [`cli`] | arguments, output, exit codes |

pub mod agent;
pub mod apply;
pub mod cli;
pub mod config;
pub mod disk;
pub mod error;
#[cfg(fuzzing)]
pub mod fuzz;
pub mod lag;
pub mod model;
pub mod peer;
pub mod plan;
pub mod refresh;
pub mod scan;
pub mod serve;
pub mod watch;
