//! Peak memory of a program with all its processes, from outside.
//!
//! It polls /proc instead of asking wait4(2), for two reasons: `ru_maxrss` of a child starts with what the benchmark itself
//! held when it forked, and for several processes it is the largest one, not the sum. `VmHWM` is the kernel's own
//! high-water mark, so polling loses at most what is added in the last interval before a process ends.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use crate::job::Job;
use crate::report::{Goal, Line, Report, Unit};
use crate::run::{At, Res, Side, in_turn};

const POLL: Duration = Duration::from_millis(2);
/// Shares are costly to ask for (the kernel walks the page tables), so rarer.
const POLL_SHARES: Duration = Duration::from_millis(50);

/// Peaks in KiB.
#[derive(Clone, Copy, Debug, Default)]
struct Peak {
    /// Sum of every process's high-water mark: an upper bound, in which pages that processes share count once for each.
    resident: u64,
    /// Largest sum of proportional set sizes seen at one time: shared pages count once, short peaks may be missed.
    proportional: u64,
    processes: usize,
}

type Measure = fn(&Peak) -> u64;

/// Peak memory, not timed: looking takes time itself. One first copy (memory varies little, a million files take long).
pub(crate) fn row(job: &Job<'_>, report: &mut Report) -> Res<()> {
    let first = in_turn(
        1,
        |_| Ok(()),
        |_, side| {
            job.reset(side)?;
            peak(job, side, "first copy")
        },
    )?;
    let again = job.with(&[], &["--delete"]);
    let unchanged =
        in_turn(job.bench.runs.min(3), |_| Ok(()), |_, side| peak(&again, side, "nothing changed"))?;
    let goal = Goal::Value { must: 128.0, aim: 64.0 };
    for (what, peaks) in [("first copy", &first), ("nothing changed", &unchanged)] {
        let measures: [(&str, Goal, Measure); 2] = [
            ("sum of peak RSS", goal, |peak| peak.resident),
            ("peak sum of PSS", Goal::None, |peak| peak.proportional),
        ];
        for (measure, goal, kib) in measures {
            let mib = |peaks: &[Peak]| peaks.iter().map(|peak| kib(peak) as f64 / 1024.0).collect();
            let work = format!("memory-T2: {what}, {measure}");
            report.line(Line {
                work,
                unit: Unit::Mib,
                ours: mib(&peaks.ours),
                rsync: mib(&peaks.rsync),
                goal,
            });
        }
    }
    let processes = |peaks: &[Peak]| peaks.iter().map(|peak| peak.processes).max().unwrap_or_default();
    report.note(format!(
        "memory-T2: VmHWM and PSS from /proc, polled every 2 and 50 ms over the whole process tree (ours {}, rsync {} \
         processes). PSS counts pages shared by forked processes once, the sum of RSS counts them for each.",
        processes(&first.ours),
        processes(&first.rsync),
    ));
    Ok(())
}

fn peak(job: &Job<'_>, side: Side, what: &str) -> Res<Peak> {
    let mut command = job.command(side)?;
    let (peak, status) = watch(&mut command)?;
    job.bench.check(&command, status)?;
    eprintln!("memory-T2, {what}, {}: {} KiB", side.name(), peak.resident);
    Ok(peak)
}

/// Runs the command to its end and watches it.
fn watch(command: &mut Command) -> Res<(Peak, ExitStatus)> {
    let mut child = command.spawn().at(Path::new(command.get_program()))?;
    let mut marks: BTreeMap<u32, u64> = BTreeMap::new();
    let mut proportional = 0;
    let mut shares_due = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let family = family(child.id());
        for &pid in &family {
            if let Some(mark) = field(&format!("/proc/{pid}/status"), "VmHWM:") {
                let known = marks.entry(pid).or_default();
                *known = mark.max(*known);
            }
        }
        if Instant::now() >= shares_due {
            let sum =
                family.iter().filter_map(|pid| field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")).sum();
            proportional = proportional.max(sum);
            shares_due = Instant::now() + POLL_SHARES;
        }
        thread::sleep(POLL);
    };
    if marks.is_empty() || proportional == 0 {
        return Err("the program ended before its memory could be seen".into());
    }
    Ok((Peak { resident: marks.values().sum(), proportional, processes: marks.len() }, status))
}

/// The process and all its descendants, as far as they exist. Each thread of a process lists the children it made.
fn family(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        next += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

/// A number of KiB behind its name; nothing when the process or the field is gone.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
