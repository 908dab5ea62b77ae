//! The time in which a reader can meet old and new files together while 2,000 files are replaced.
//!
//! Each round writes a new version into the source, the same names and sizes, and both programs take it over. Versions only
//! count up: were two of them exchanged to and fro, a program that keeps what it replaced could fetch it from its own
//! trash.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::job::{Job, Sample};
use crate::report::{Goal, Line, Report, Stats, Unit};
use crate::rows::{first_copies, on_tree};
use crate::run::{Bench, Res, Side, in_turn, sync_file_system};
use crate::spec::Spec;
use crate::tree::Tree;
use crate::window::{self, Versions, Window};

/// Longer than a sweep of the reader: it must have seen the tree at rest before the run starts and after it ends.
const AT_REST: Duration = Duration::from_millis(30);

type Reader = fn(&Tree, &Path, Versions, &AtomicBool) -> Res<Window>;

pub(crate) fn rows(bench: &Bench, report: &mut Report) {
    on_tree(
        bench,
        report,
        Spec::mixed(bench.scale),
        8,
        &["mixed-window", "mixed-window-swap"],
        |job, report| {
            if bench.wants("mixed-window") {
                report
                    .attempt("mixed-window", |report| in_place(&job.with(&[], &["--delay-updates"]), report));
            }
            if bench.wants("mixed-window-swap") {
                report.attempt("mixed-window-swap", |report| {
                    swap(&job.with(&["--activate", "swap"], &[]), report)
                });
            }
        },
    );
}

/// What one run gave.
struct Run {
    window: Window,
    ctime: Duration,
    sample: Sample,
}

fn in_place(job: &Job<'_>, report: &mut Report) -> Res<()> {
    job.tree.unstamp()?;
    job.tree.write_version(0)?;
    first_copies(job)?;
    let found = in_turn(
        job.bench.runs,
        |round| next_version(job, round),
        |round, side| replaced(job, round, side, window::by_path),
    )?;
    job.verify_both()?;
    restore(job)?;

    for (name, runs) in [("ours", &found.ours), ("rsync --delay-updates", &found.rsync)] {
        report.note(format!(
            "mixed-window, {name}: polled window at most {}, by ctime {}, the whole run {} (medians); {} looks per run \
             at least, {} of all found a file missing or of neither version.",
            millis(median(runs, |run| run.window.at_most.as_secs_f64())),
            millis(median(runs, |run| run.ctime.as_secs_f64())),
            millis(median(runs, |run| run.sample.wall)),
            runs.iter().map(|run| run.window.looks).min().unwrap_or_default(),
            runs.iter().map(|run| run.window.broken).sum::<usize>(),
        ));
    }
    let observed = |runs: &[Run]| runs.iter().map(|run| run.window.observed.as_secs_f64()).collect();
    report.line(Line {
        work: "mixed-window: old and new mixed, 2,000 files replaced in place".to_owned(),
        unit: Unit::Seconds,
        ours: observed(&found.ours),
        rsync: observed(&found.rsync),
        goal: Goal::Ratio { must: 0.10, aim: 0.02 },
    });
    whole(&found.ours)
}

/// Ours alone: rsync has no such mode.
fn swap(job: &Job<'_>, report: &mut Report) -> Res<()> {
    job.tree.unstamp()?;
    job.tree.write_version(0)?;
    job.reset(Side::Ours)?;
    job.run(Side::Ours, true)?;
    let mut runs = Vec::new();
    for round in 0..job.bench.runs {
        next_version(job, round)?;
        runs.push(replaced(job, round, Side::Ours, window::by_handle)?);
    }
    job.verify(Side::Ours)?;
    restore(job)?;

    report.note(format!(
        "mixed-window-swap: the figure is the longest time that the reader cannot exclude, from the start of the last look \
         that found only old files to the end of the first that found only new ones; surely mixed: {}. {} looks through \
         one directory handle met both versions, {} met a missing file, of {} looks in all.",
        millis(runs.iter().map(|run| run.window.observed.as_secs_f64()).fold(0.0, f64::max)),
        runs.iter().map(|run| run.window.torn).sum::<usize>(),
        runs.iter().map(|run| run.window.broken).sum::<usize>(),
        runs.iter().map(|run| run.window.looks).sum::<usize>(),
    ));
    report.line(Line {
        work: "mixed-window-swap: the same with `--activate swap`".to_owned(),
        unit: Unit::Seconds,
        ours: runs.iter().map(|run| run.window.at_most.as_secs_f64()).collect(),
        rsync: Vec::new(),
        goal: Goal::Value { must: 0.001, aim: 0.001 },
    });
    whole(&runs)
}

fn next_version(job: &Job<'_>, round: usize) -> Res<()> {
    job.tree.write_version(round as u64 + 1)?;
    sync_file_system(&job.tree.root)
}

/// What no reader of ours may ever meet.
fn whole(runs: &[Run]) -> Res<()> {
    let looks = |bad: fn(&Window) -> usize| runs.iter().map(|run| bad(&run.window)).sum::<usize>();
    match (looks(|window| window.torn), looks(|window| window.broken)) {
        (0, 0) => Ok(()),
        (torn, broken) => Err(format!(
            "a reader of ours met both versions through one directory handle {torn} times, and a file that was missing or of \
             neither version {broken} times"
        )
        .into()),
    }
}

/// Back to what the stamp says.
fn restore(job: &Job<'_>) -> Res<()> {
    if job.bench.keep {
        job.tree.write_version(0)?;
        job.tree.stamp()?;
    }
    Ok(())
}

fn replaced(job: &Job<'_>, round: usize, side: Side, reader: Reader) -> Res<Run> {
    let dst = job.dst(side);
    sync_file_system(&dst)?;
    let versions = Versions { old: round as u64, new: round as u64 + 1 };
    let stop = AtomicBool::new(false);
    let (sample, window) = thread::scope(|scope| {
        let watching = scope.spawn(|| reader(job.tree, &dst, versions, &stop));
        thread::sleep(AT_REST);
        let sample = job.run(side, false);
        thread::sleep(AT_REST);
        stop.store(true, Ordering::Release);
        (sample, watching.join())
    });
    let (sample, window) = (sample?, window.map_err(|_| "the reader thread died")??);
    let ctime = window::by_ctime(job.tree, &dst)?;
    eprintln!(
        "mixed-window, round {}, {}: polled {} to {}, by ctime {}, run {}",
        round + 1,
        side.name(),
        millis(window.observed.as_secs_f64()),
        millis(window.at_most.as_secs_f64()),
        millis(ctime.as_secs_f64()),
        millis(sample.wall),
    );
    Ok(Run { window, ctime, sample })
}

fn median(runs: &[Run], value: impl Fn(&Run) -> f64) -> f64 {
    let values: Vec<f64> = runs.iter().map(value).collect();
    Stats::of(&values).map_or(0.0, |stats| stats.median)
}

fn millis(seconds: f64) -> String {
    format!("{:.2} ms", seconds * 1e3)
}
