//! One directory of 10,000 files beside the 100,000 of T1 gets another name, and the old one back in the next round: what
//! moved must be moved in the destination, not read again.

use std::fs::{self, File};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::job::Job;
use crate::report::{Goal, Line, Report, Unit};
use crate::rows::{first_copies, note_cpu, progress, timed};
use crate::run::{At, Res, Side, in_turn, sync_file_system};
use crate::spec::WIDE;

/// The new name of the wide directory.
const WIDE_RENAMED: &str = "library-new";

pub(crate) fn row(job: &Job<'_>, report: &mut Report) -> Res<()> {
    job.tree.unstamp()?;
    let found = in_turn(
        job.bench.runs,
        |_| {
            // New destinations in every round: files that rsync deleted in the last one would slow down its creations.
            first_copies(job)?;
            swap_name(job)
        },
        |round, side| {
            sync_file_system(&job.dst(side))?;
            progress("rename-10k", round, side, job.run(side, false)?)
        },
    )?;
    swap_name(job)?;
    let (bytes, moved, read) = content_read(&job.with(&["--json"], &[]))?;
    job.run(Side::Rsync, true)?;
    job.verify_both()?;
    if job.tree.root.join(WIDE_RENAMED).exists() {
        swap_name(job)?;
    }
    job.tree.stamp()?;

    note_cpu(report, "rename-10k", &found);
    let spec = &job.tree.spec;
    let content: u64 = (spec.files..spec.total()).map(|index| spec.len(index)).sum();
    report.note(format!(
        "rename-10k: the summary of ours says {bytes} bytes of content and {moved} moved; all its read calls, index and \
         libraries included, returned {read} bytes; the directory's content is {content} bytes.",
    ));
    report.line(timed(
        "rename-10k: directory of 10,000 files renamed".to_owned(),
        &found,
        Goal::Ratio { must: 0.30, aim: 0.22 },
    ));
    report.line(Line {
        work: "rename-10k: content bytes read by ours".to_owned(),
        unit: Unit::Bytes,
        ours: vec![bytes as f64],
        rsync: Vec::new(),
        goal: Goal::Value { must: 0.0, aim: 0.0 },
    });
    Ok(())
}

fn swap_name(job: &Job<'_>) -> Res<()> {
    let [old, new] = [WIDE, WIDE_RENAMED].map(|name| job.tree.root.join(name));
    let (from, to) = if old.exists() { (old, new) } else { (new, old) };
    fs::rename(&from, &to).at(&from)?;
    sync_file_system(&job.tree.root)
}

/// Runs ours with `--json`, not timed: bytes and moves of its summary, and what the kernel says that its read calls returned
/// (reads through a memory map do not show there).
fn content_read(job: &Job<'_>) -> Res<(u64, u64, u64)> {
    let output = job.bench.work.join("stdout.json");
    let mut command = job.command(Side::Ours)?;
    command.stdout(File::create(&output).at(&output)?);
    let mut child = command.spawn().at(&job.bench.syncagent)?;
    // Ended but not yet waited for, a process still has its counters.
    waitid(WaitId::Pid(Pid::from_child(&child)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
    let io = fs::read_to_string(format!("/proc/{}/io", child.id()));
    job.bench.check(&command, child.wait()?)?;
    let read = io.ok().and_then(|io| io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()));
    let text = fs::read_to_string(&output).at(&output)?;
    fs::remove_file(&output).at(&output)?;
    let last: serde_json::Value =
        serde_json::from_str(text.lines().next_back().unwrap_or_default()).at(&output)?;
    let number = |name: &str| last.get("summary")?.get(name)?.as_u64();
    match (number("bytes"), number("moved"), read) {
        (Some(bytes), Some(moved), Some(read)) => Ok((bytes, moved, read)),
        _ => Err("the last line of --json has no summary with bytes and moved".into()),
    }
}
