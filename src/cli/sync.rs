//! `syncagent sync SRC DST`.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::ArgMatches;

use super::exit::Exit;
use super::options::{ActivateArg, SyncArgs};
use super::output::{Printer, summary, summary_text};
use super::progress;
use crate::agent::{Activate, Outcome, Progress, SyncOptions, TreeOptions, sync};
use crate::apply::Keep;
use crate::disk::OwnerPolicy;
use crate::error::{Class, Error, Result};

fn options(args: &SyncArgs, matches: &ArgMatches) -> Result<SyncOptions> {
    let activate = match args.activate {
        ActivateArg::InPlace => Activate::InPlace,
        ActivateArg::Swap => Activate::Swap,
    };
    let clash = |what: &str| Err(Error::new(Class::Config, what));
    if activate == Activate::Swap && args.no_delete {
        return clash("--no-delete keeps what only DST has, and --activate swap builds DST anew: choose one");
    }
    if activate == Activate::Swap && args.staging.is_some() {
        return clash("--activate swap builds the new tree beside DST; --staging has no place there");
    }
    Ok(SyncOptions {
        src: args.src.clone(),
        dst: args.dst.clone(),
        state_dir: args.state.dir()?,
        dry_run: args.dry_run,
        checksum: args.checksum,
        lock_wait: args.lock_wait.0,
        tree: TreeOptions {
            filter: args.filter.compile(matches)?,
            order: None,
            no_delete: args.no_delete,
            max_delete: args.max_delete,
            approve: args.approve,
            adopt: args.adopt,
            activate,
            staging: args.staging.clone(),
            keep: Keep { generations: args.keep, bytes: args.keep_bytes.0 },
            owner: OwnerPolicy::parse("--owner", args.owner.as_deref())?,
            threads: args.threads.count(),
        },
    })
}

pub(super) fn run(args: &SyncArgs, matches: &ArgMatches, cancel: &AtomicBool) -> Result<Exit> {
    let started = Instant::now();
    let options = options(args, matches)?;
    let printer = Printer::new(args.itemize || args.dry_run, args.json);
    let progress = Progress::default();
    let done = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        progress::start(scope, &progress, &done, !args.quiet && !args.json);
        let result = sync(&options, &printer, &progress, cancel);
        done.store(true, Ordering::Relaxed);
        result
    });
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(e) => {
            printer.flush()?;
            return Err(e);
        }
    };
    if args.json {
        printer.last(summary(&outcome, args.dry_run, started.elapsed()))?;
    } else if !args.quiet && (outcome.refusal.is_none() || args.dry_run) {
        printer.last(summary_text(&outcome, args.dry_run, started.elapsed()))?;
    }
    printer.flush()?;
    complain(&outcome, args.dry_run);
    Ok(if outcome.refusal.is_some() {
        Exit::Refused
    } else if outcome.errors.is_empty() {
        Exit::Done
    } else {
        Exit::Partial
    })
}

/// Names what went wrong, on standard error.
fn complain(outcome: &Outcome, dry_run: bool) {
    let mut err = std::io::stderr().lock();
    // a closed standard error must not change what happened
    for e in &outcome.errors {
        let _ = writeln!(err, "syncagent: {}: {}", e.path, e.error);
    }
    for path in &outcome.drift {
        let _ = writeln!(
            err,
            "syncagent: drift: {path} was changed in the destination meanwhile; what was there is in the trash"
        );
    }
    if let Some(refusal) = &outcome.refusal {
        let _ = writeln!(err, "syncagent: refused: {refusal}");
        let hint = if dry_run { "" } else { "Nothing was changed. See the plan with --dry-run. " };
        let _ = writeln!(err, "{hint}To let exactly this plan through:");
        let command = approving(&outcome.plan_id.to_string());
        let _ = err.write_all(b"    ").and_then(|()| err.write_all(&command)).and_then(|()| {
            err.write_all(
                b"
",
            )
        });
    }
}

/// This very command line, with the approval and for real, quoted for a shell.
fn approving(plan_id: &str) -> Vec<u8> {
    let mut words: Vec<Vec<u8>> = vec![b"syncagent".to_vec()];
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_bytes() {
            b"--" => {
                words.push(b"--".to_vec());
                words.extend(args.by_ref().map(|a| a.as_bytes().to_vec()));
            }
            b"--dry-run" => {}
            b"--approve" => drop(args.next()),
            a if a.starts_with(b"--approve=") => {}
            // a cluster of short options, none of which takes a value
            a if a.len() > 1 && a[0] == b'-' && a[1] != b'-' => {
                let rest: Vec<u8> = a.iter().copied().filter(|&c| c != b'n').collect();
                words.extend((rest.len() > 1).then_some(rest));
            }
            a => words.push(a.to_vec()),
        }
    }
    let at = words.iter().position(|w| w == b"--").unwrap_or(words.len());
    words.splice(at..at, [b"--approve".to_vec(), plan_id.into()]);
    // arguments cannot hold NUL, the only byte that cannot be quoted
    shlex::bytes::try_join(words.iter().map(Vec::as_slice)).unwrap_or_default()
}
