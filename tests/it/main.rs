//! Tests of the real program, from outside: one binary, a file per subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, clippy::print_stdout)]
#![allow(missing_docs, unreachable_pub)]

mod crash;
mod support;

mod agents;
mod cli;
mod config;
mod faults;
mod guards;
mod kill;
mod layers;
mod live;
mod oracle;
mod pki;
mod power;
mod systemd;
mod trees;
