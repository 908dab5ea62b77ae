//! Tests of the real program, from outside: one binary, a file per subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, clippy::print_stdout)]
#![allow(missing_docs, unreachable_pub)]

mod crash;
mod support;

mod cli;
mod faults;
mod guards;
mod kill;
mod layers;
mod live;
mod oracle;
mod power;
mod trees;
