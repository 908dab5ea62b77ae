//! Many mirrors of one source: eight against rsync in a loop, and two hundred to see what they cost the source.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::changes::{Changes, percentile};
use crate::cluster::{Agent, Cluster, equal};
use crate::peers::Daemon;
use crate::report::{Goal, Line, Report, Unit};
use crate::run::{At, Bench, Res};
use crate::tree::Tree;
use crate::usage::{cpu, memory};

const EIGHT: usize = 8;
const CHANGED: usize = 20;
/// Changes brought to two hundred mirrors.
const TIMES: usize = 20;
/// Processor time at rest is measured over this.
const REST: Duration = Duration::from_secs(30);
/// Mirrors that make their first copy at a time; all at once they would only wait for two cores.
const AT_ONCE: usize = 20;

pub(crate) fn eight(bench: &Bench, tree: &Tree, report: &mut Report) -> Res<()> {
    let cluster = Cluster::new(bench, "net-8")?;
    let names: Vec<String> = (0..EIGHT).map(|at| format!("mirror{at}")).collect();
    names.iter().try_for_each(|name| cluster.issue(name))?;
    let daemon = Daemon::new(bench, &tree.root)?;
    let dir = bench.work.join("net-8.dst");
    bench.discard(&dir)?;
    let copies: Vec<PathBuf> = (0..EIGHT).map(|at| dir.join(at.to_string())).collect();
    for copy in &copies {
        fs::create_dir_all(copy).at(copy)?;
    }
    let looped = || -> Res<f64> {
        let start = Instant::now();
        for copy in &copies {
            let mut command = daemon.pull(bench, &["--delete"], copy)?;
            let status = command.status().at(&bench.rsync)?;
            bench.check(&command, status)?;
        }
        Ok(start.elapsed().as_secs_f64())
    };
    let mut changes = Changes::new(tree)?;
    let (mut at_once, mut settled, mut rsync) = (Vec::new(), Vec::new(), Vec::new());
    for settle in ["0ms", "500ms"] {
        let source = cluster.source(&tree.root, settle)?;
        let mirrors: Res<Vec<Agent>> = names.iter().map(|name| cluster.mirror(name)).collect();
        let mirrors = mirrors?;
        mirrors.iter().try_for_each(|mirror| mirror.follow(&source))?;
        let trees: Vec<&Path> = mirrors.iter().map(|mirror| mirror.tree.as_path()).collect();
        looped()?;
        changes.spread(CHANGED, &trees)?;
        looped()?;
        for round in 0..bench.runs {
            let ours = changes.spread(CHANGED, &trees)?;
            if settle == "0ms" {
                at_once.push(ours);
                rsync.push(looped()?);
            } else {
                settled.push(ours);
            }
            eprintln!("net-8-mirrors, round {}, settle {settle}: {ours:.3} s, loop {rsync:?} s", round + 1);
        }
        looped()?;
        mirrors.iter().try_for_each(|mirror| mirror.follow(&source))?;
        equal(bench, &tree.root, trees.into_iter().chain(copies.iter().map(PathBuf::as_path)))?;
        mirrors.into_iter().try_for_each(Agent::stop)?;
        source.stop()?;
    }
    changes.undo()?;
    cluster.remove()?;
    bench.discard(&dir)?;
    for (settle, ours, goal) in
        [("0", at_once, Goal::RatioLimit(0.15)), ("500 ms (default)", settled, Goal::None)]
    {
        let work =
            format!("net-8-mirrors: 20 changes in 30,000 files, settle {settle}, against rsync in a loop");
        report.line(Line { work, unit: Unit::Seconds, ours, rsync: rsync.clone(), goal });
    }
    Ok(())
}

/// As many mirrors as the scale says, 200 at full scale, each a process.
pub(crate) fn hundreds(bench: &Bench, tree: &Tree, report: &mut Report) -> Res<()> {
    let count = ((200.0 * bench.scale).ceil() as usize).max(3);
    let cluster = Cluster::new(bench, "net-200")?;
    let names: Vec<String> = (0..count).map(|at| format!("mirror{at}")).collect();
    names.iter().try_for_each(|name| cluster.issue(name))?;
    let source = cluster.source(&tree.root, "0ms")?;
    let alone = memory(source.pid())?;
    let start = Instant::now();
    let mut mirrors: Vec<Agent> = Vec::new();
    for names in names.chunks(AT_ONCE) {
        let before = mirrors.len();
        for name in names {
            mirrors.push(cluster.mirror(name)?);
        }
        mirrors[before..].iter().try_for_each(|mirror| mirror.follow(&source))?;
    }
    eprintln!("net-200: {count} mirrors after {:.1} s", start.elapsed().as_secs_f64());
    thread::sleep(Duration::from_secs(5));
    let before = cpu(source.pid())?;
    thread::sleep(REST);
    let rest = (cpu(source.pid())? - before) / REST.as_secs_f64() * 100.0;
    let trees: Vec<&Path> = mirrors.iter().map(|mirror| mirror.tree.as_path()).collect();
    let mut changes = Changes::new(tree)?;
    changes.spread(1, &trees)?;
    let before = cpu(source.pid())?;
    let times: Res<Vec<f64>> = (0..TIMES).map(|_| changes.spread(1, &trees)).collect();
    let times = times?;
    let each = (cpu(source.pid())? - before) / TIMES as f64;
    let used = memory(source.pid())?;
    mirrors.iter().try_for_each(|mirror| mirror.follow(&source))?;
    let known = source.status().and_then(|tree| tree["nodes"].as_array().map(Vec::len)).unwrap_or_default();
    if known != count + 1 {
        return Err(format!("the source's status lists {known} nodes and not {}", count + 1).into());
    }
    equal(bench, &tree.root, trees)?;
    let resident: Res<f64> = mirrors.iter().try_fold(0.0, |sum, mirror| Ok(sum + memory(mirror.pid())?.now));
    report.note(format!(
        "net-200: {count} mirror processes of {:.1} MiB each (mean) on the source's own machine; the source used {:.1} MiB \
         with none and {:.1} MiB (peak {:.1}) with all of them; at rest {rest:.2} % of a core for {REST:?}; {:.0} ms of \
         processor time for a change; a change was on all of them after p50 {:.0}, max {:.0} ms of {TIMES}.",
        resident? / count as f64,
        alone.now,
        used.now,
        used.peak,
        each * 1e3,
        percentile(&times, 0.5) * 1e3,
        percentile(&times, 1.0) * 1e3,
    ));
    report.line(Line {
        work: format!("net-200: one change on all of {count} mirrors"),
        unit: Unit::Seconds,
        ours: times,
        rsync: Vec::new(),
        goal: Goal::None,
    });
    report.line(Line {
        work: format!("net-200: memory of the source with {count} mirrors"),
        unit: Unit::Mib,
        ours: vec![used.peak],
        rsync: Vec::new(),
        goal: Goal::None,
    });
    mirrors.into_iter().try_for_each(Agent::stop)?;
    source.stop()?;
    changes.undo()?;
    cluster.remove()
}
