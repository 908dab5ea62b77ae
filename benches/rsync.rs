//! Measures `syncagent sync` against the installed rsync: the same trees, the same disk, in turn (A B, B A, A B, …), so that
//! whatever else the machine does meets both. It prints ratios for people to read; nothing here fails because something
//! was slow. A row does fail when a program exits with an error or when its copy differs from the source.
//!
//! ```text
//! cargo bench --bench rsync                                            everything; see `--help` for disk space and time
//! cargo bench --bench rsync -- --scale 0.01 --runs 2                   a smoke run
//! cargo bench --bench rsync -- --only first-T1,unchanged-T1 --keep     some rows; the source trees stay for the next run
//! ```
//!
//! The rows `net-…` measure agents over TLS on loopback, beside an rsync daemon, rsync over ssh, lsyncd and Syncthing as far as these
//! are installed. They want root, because an rsync daemon and sshd do, and a loopback interface without other traffic:
//! `unshare --net sh -c 'ip link set lo up; cargo bench --bench rsync -- --only net-first-T1'`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "rsync/changes.rs"]
mod changes;
#[path = "rsync/cluster.rs"]
mod cluster;
#[path = "rsync/job.rs"]
mod job;
#[path = "rsync/machine.rs"]
mod machine;
#[path = "rsync/memory.rs"]
mod memory;
#[path = "rsync/mixed.rs"]
mod mixed;
#[path = "rsync/net_change.rs"]
mod net_change;
#[path = "rsync/net_first.rs"]
mod net_first;
#[path = "rsync/net_many.rs"]
mod net_many;
#[path = "rsync/net_rename.rs"]
mod net_rename;
#[path = "rsync/net_rest.rs"]
mod net_rest;
#[path = "rsync/peers.rs"]
mod peers;
#[path = "rsync/renamed.rs"]
mod renamed;
#[path = "rsync/report.rs"]
mod report;
#[path = "rsync/room.rs"]
mod room;
#[path = "rsync/rows.rs"]
mod rows;
#[path = "rsync/run.rs"]
mod run;
#[path = "rsync/spec.rs"]
mod spec;
#[path = "rsync/tree.rs"]
mod tree;
#[path = "rsync/usage.rs"]
mod usage;
#[path = "rsync/window.rs"]
mod window;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use report::Report;
use run::{At, Bench, Res};

/// Every row, in the order in which they run; rows that share a tree stand together.
const ROWS: [&str; 16] = [
    "first-T1",
    "unchanged-T1",
    "first-T3",
    "memory-T2",
    "unchanged-T2",
    "rename-10k",
    "mixed-window",
    "mixed-window-swap",
    "net-change-T1",
    "net-rest",
    "net-8-mirrors",
    "net-200",
    "net-first-T1",
    "net-first-T3",
    "net-rename-10k",
    "net-million",
];

/// Compares `syncagent sync` with rsync and prints a Markdown table.
///
/// The whole run wants 60 GB of disk space and 6 million inodes, because every first copy gets a directory of its own
/// and nothing is deleted before the end (with less it deletes in between and waits each time for six minutes; the least is 30 GB),
/// and 20 GiB of memory, because it measures with a warm cache.
#[derive(Parser, Debug)]
#[command(name = "rsync-bench")]
struct Args {
    /// Rows to run (default: all), by name, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "ROW", value_parser = ROWS)]
    only: Vec<String>,
    /// Timed runs of each program in each row
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Multiplies the number of files; anything but 1 is a smoke run, its ratios mean nothing
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Work directory, on the disk file system to be measured
    #[arg(long, default_value = "target/bench-work", value_name = "PATH")]
    dir: PathBuf,
    /// Leave the source trees in the work directory
    #[arg(long)]
    keep: bool,
    /// The program under test
    #[arg(
        long,
        env = "SYNCAGENT_BENCH_PROGRAM",
        default_value = env!("CARGO_BIN_EXE_syncagent"),
        hide_default_value = true,
        value_name = "PATH"
    )]
    syncagent: PathBuf,
    /// The rsync to compare with
    #[arg(long, default_value = "rsync", value_name = "PATH")]
    rsync: PathBuf,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    // `cargo test --all-targets` starts benchmarks too, but without this flag.
    if !std::env::args().any(|arg| arg == "--bench" || arg == "--help" || arg == "-h") {
        eprintln!("nothing measured: start this with `cargo bench --bench rsync` (or pass --bench)");
        return ExitCode::SUCCESS;
    }
    match measure(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rsync bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the rows that were asked for. False when at least one of them failed.
fn measure(args: &Args) -> Res<bool> {
    if !(args.scale > 0.0 && args.scale <= 1.0) {
        return Err("--scale takes a number above 0 and up to 1".into());
    }
    fs::create_dir_all(&args.dir).at(&args.dir)?;
    let work = args.dir.canonicalize().at(&args.dir)?;
    let bench = Bench {
        work,
        syncagent: args.syncagent.clone(),
        rsync: args.rsync.clone(),
        runs: args.runs as usize,
        scale: args.scale,
        keep: args.keep,
        only: args.only.clone(),
    };
    let mut report = Report::new(&bench)?;
    bench.wait_out_removal()?;
    rows::t1(&bench, &mut report);
    rows::t3(&bench, &mut report);
    rows::t2(&bench, &mut report);
    rows::rename(&bench, &mut report);
    mixed::rows(&bench, &mut report);
    rows::net(&bench, &mut report);
    report.print();
    bench.bury()?;
    if args.keep {
        eprintln!("the source trees stay in {}", bench.work.display());
    }
    match fs::remove_file(bench.stderr()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at(&bench.stderr())?,
        _ => {}
    }
    Ok(report.complete())
}
