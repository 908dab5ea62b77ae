//! What a source and its mirror use: at rest with 100,000 files, and with a million files during the first mirror, after it, and
//! while they change.

use std::thread;
use std::time::{Duration, Instant};

use crate::changes::{Changes, percentile};
use crate::cluster::{Agent, Cluster, equal};
use crate::report::{Goal, Line, Report, Unit};
use crate::run::{Bench, Res};
use crate::tree::Tree;
use crate::usage::{cpu, memory};

/// Processor time at rest is measured over this, after a while in which what was begun ends.
const REST: Duration = Duration::from_secs(60);
const CALM: Duration = Duration::from_secs(15);
const CHANGES: usize = 100;

pub(crate) fn at_rest(bench: &Bench, tree: &Tree, report: &mut Report) -> Res<()> {
    let cluster = Cluster::new(bench, "net-rest")?;
    cluster.issue("mirror")?;
    let source = cluster.source(&tree.root, "500ms")?;
    let mirror = cluster.mirror("mirror")?;
    mirror.follow(&source)?;
    thread::sleep(CALM);
    let used = |agent: &Agent| cpu(agent.pid());
    let (before, start) = ([used(&source)?, used(&mirror)?], Instant::now());
    thread::sleep(REST);
    let after = [used(&source)?, used(&mirror)?];
    let percent = |at: usize| (after[at] - before[at]) / start.elapsed().as_secs_f64() * 100.0;
    for (at, agent) in [&source, &mirror].into_iter().enumerate() {
        let memory = memory(agent.pid())?;
        single(report, format!("net-rest: {}, processor", agent.node), Unit::Percent, percent(at), 0.1);
        single(report, format!("net-rest: {}, memory", agent.node), Unit::Mib, memory.now, 64.0);
        report.note(format!(
            "net-rest: {} at rest {:.1} MiB, peak since its start {:.1} MiB (start and first mirror of T1).",
            agent.node, memory.now, memory.peak
        ));
    }
    mirror.follow(&source)?;
    equal(bench, &tree.root, [mirror.tree.as_path()])?;
    mirror.stop()?;
    source.stop()?;
    cluster.remove()
}

pub(crate) fn million(bench: &Bench, tree: &Tree, report: &mut Report) -> Res<()> {
    let cluster = Cluster::new(bench, "net-million")?;
    cluster.issue("mirror")?;
    let mut changes = Changes::new(tree)?;
    let source = cluster.source(&tree.root, "0ms")?;
    let published = memory(source.pid())?;
    let start = Instant::now();
    let mirror = cluster.mirror("mirror")?;
    mirror.follow(&source)?;
    let first = start.elapsed().as_secs_f64();
    let peaks = [memory(source.pid())?, memory(mirror.pid())?];
    eprintln!("net-million: source {published:?}, first mirror in {first:.1} s, then {peaks:?}");
    changes.spread(1, &[&mirror.tree])?;
    let times: Res<Vec<f64>> = (0..CHANGES).map(|_| changes.spread(1, &[&mirror.tree])).collect();
    let times = times?;
    let ends = [memory(source.pid())?, memory(mirror.pid())?];
    mirror.follow(&source)?;
    equal(bench, &tree.root, [mirror.tree.as_path()])?;
    for (at, agent) in [&source, &mirror].into_iter().enumerate() {
        let work = format!("net-million: {}, peak memory, first mirror", agent.node);
        single(report, work, Unit::Mib, peaks[at].peak, 128.0);
        let work = format!("net-million: {}, peak memory, after {CHANGES} changes", agent.node);
        single(report, work, Unit::Mib, ends[at].peak, 128.0);
    }
    for (name, part, limit) in [("p50", 0.5, f64::INFINITY), ("p99", 0.99, 0.1), ("max", 1.0, f64::INFINITY)]
    {
        let work = format!("net-million: one 4 KiB file, settle 0, {name} of {CHANGES}");
        single(report, work, Unit::Seconds, percentile(&times, part), limit);
    }
    report.note(format!(
        "net-million: the first mirror took {first:.1} s until it was in place; the source held {:.1} MiB (peak {:.1}) after \
         publishing, {:.1} MiB after the changes, the mirror {:.1} MiB.",
        published.now, published.peak, ends[0].now, ends[1].now
    ));
    mirror.stop()?;
    source.stop()?;
    changes.undo()?;
    cluster.remove()
}

/// A row of one figure.
fn single(report: &mut Report, work: String, unit: Unit, value: f64, limit: f64) {
    let goal = if limit.is_finite() { Goal::Limit(limit) } else { Goal::None };
    report.line(Line { work, unit, ours: vec![value], rsync: Vec::new(), goal });
}
