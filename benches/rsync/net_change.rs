//! One small file written into a tree of 100,000: how long until the mirror has it. Ours, then each of those that watch a
//! tree, in every round; only one of them runs at a time.

use std::fs;
use std::path::Path;

use crate::changes::{Changes, percentile};
use crate::cluster::{Cluster, equal};
use crate::peers::{Daemon, installed, lsyncd, syncthing};
use crate::report::{Goal, Line, Report, Unit};
use crate::run::{At, Bench, Res};
use crate::tree::Tree;

/// Changes over all rounds: ours with settle 0, with the default, lsyncd with delay 0 and 1, Syncthing.
const COUNTS: [(Watcher, usize); 5] = [
    (Watcher::Ours("0ms"), 200),
    (Watcher::Ours("500ms"), 30),
    (Watcher::Lsyncd(0), 60),
    (Watcher::Lsyncd(1), 20),
    (Watcher::Syncthing, 12),
];

#[derive(Clone, Copy)]
enum Watcher {
    /// With so much settle time.
    Ours(&'static str),
    /// With so many seconds of delay.
    Lsyncd(u32),
    Syncthing,
}

impl Watcher {
    fn name(self) -> String {
        match self {
            Self::Ours(settle) => format!("ours, settle {settle}"),
            Self::Lsyncd(delay) => format!("lsyncd + rsync, delay {delay}"),
            Self::Syncthing => "Syncthing, watcher delay 1 s".to_owned(),
        }
    }
}

/// Times of one watcher, a list for each round.
type Rounds = Vec<Vec<f64>>;

pub(crate) fn row(bench: &Bench, tree: &Tree, report: &mut Report) -> Res<()> {
    let cluster = Cluster::new(bench, "net-change")?;
    cluster.issue("mirror")?;
    let other = bench.work.join("net-change.dst");
    bench.discard(&other)?;
    fs::create_dir_all(&other).at(&other)?;
    let mut changes = Changes::new(tree)?;
    let mut found: Vec<Rounds> = COUNTS.iter().map(|_| Vec::new()).collect();
    for round in 0..bench.runs {
        for turn in 0..COUNTS.len() {
            let at = if round % 2 == 0 { turn } else { COUNTS.len() - 1 - turn };
            let (watcher, count) = COUNTS[at];
            let count = count.div_ceil(bench.runs);
            let times = match watcher {
                Watcher::Ours(settle) => ours(bench, &cluster, settle, &mut changes, tree, count),
                Watcher::Lsyncd(_) if !installed("lsyncd") => continue,
                Watcher::Syncthing if !installed("syncthing") => continue,
                watcher => theirs(bench, watcher, &mut changes, tree, &other, count),
            };
            let times = times.map_err(|error| format!("{}: {error}", watcher.name()))?;
            let load = fs::read_to_string("/proc/loadavg")?;
            let load = load.split(' ').next().unwrap_or_default();
            eprintln!(
                "net-change-T1, round {}, {}: {}, load {load}",
                round + 1,
                watcher.name(),
                show(&times)
            );
            found[at].push(times);
        }
    }
    changes.undo()?;
    cluster.remove()?;
    bench.discard(&other)?;
    lines(&found, report);
    Ok(())
}

fn ours(
    bench: &Bench,
    cluster: &Cluster<'_>,
    settle: &str,
    changes: &mut Changes<'_>,
    tree: &Tree,
    count: usize,
) -> Res<Vec<f64>> {
    let source = cluster.source(&tree.root, settle)?;
    let mirror = cluster.mirror("mirror")?;
    mirror.follow(&source)?;
    // The first one meets cold paths; not counted.
    changes.spread(1, &[&mirror.tree])?;
    let times: Res<Vec<f64>> = (0..count).map(|_| changes.spread(1, &[&mirror.tree])).collect();
    mirror.follow(&source)?;
    equal(bench, &tree.root, [mirror.tree.as_path()])?;
    mirror.stop()?;
    source.stop()?;
    times
}

fn theirs(
    bench: &Bench,
    watcher: Watcher,
    changes: &mut Changes<'_>,
    tree: &Tree,
    dst: &Path,
    count: usize,
) -> Res<Vec<f64>> {
    let into = Daemon::new(bench, dst)?;
    let from = Daemon::new(bench, &tree.root)?;
    let mut command = from.pull(bench, &["--delete"], dst)?;
    let status = command.status().at(&bench.rsync)?;
    bench.check(&command, status)?;
    let (mut one, mut two) = (None, None);
    match watcher {
        Watcher::Lsyncd(delay) => one = Some(lsyncd(bench, &tree.root, &into, delay)?),
        _ => two = Some(syncthing(bench, &tree.root, dst)?),
    }
    // They have first looked at everything when they bring a change; one more until they rest.
    for _ in 0..2 {
        changes.spread(1, &[dst])?;
    }
    let times = (0..count).map(|_| changes.spread(1, &[dst])).collect();
    drop((one, two));
    for dir in [&tree.root, dst] {
        for (name, remove) in [(".stfolder", true), (".stignore", false)] {
            let path = dir.join(name);
            if path.exists() {
                if remove { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.at(&path)?;
            }
        }
    }
    tree.touch_root()?;
    equal_content(bench, tree, dst)?;
    times
}

/// Syncthing keeps no times of directories: what counts is content.
fn equal_content(bench: &Bench, tree: &Tree, dst: &Path) -> Res<()> {
    let mut command = std::process::Command::new(&bench.rsync);
    command.args(["-rn", "--checksum", "--delete", "--out-format=%n", "--exclude=/.syncagent"]);
    command.args([tree.root.join(""), dst.join("")]);
    bench.quiet(&mut command)?;
    let output = command.stdout(std::process::Stdio::piped()).output().at(&bench.rsync)?;
    bench.check(&command, output.status)?;
    match String::from_utf8_lossy(&output.stdout).lines().find(|line| !line.ends_with('/')) {
        None => Ok(()),
        Some(line) => Err(format!("{} differs: {line}", dst.display()).into()),
    }
}

fn show(times: &[f64]) -> String {
    let ms = |part| percentile(times, part) * 1e3;
    let (p50, p95, p99, max) = (ms(0.5), ms(0.95), ms(0.99), ms(1.0));
    format!("p50 {p50:.2}, p95 {p95:.2}, p99 {p99:.2}, max {max:.2} ms of {}", times.len())
}

fn lines(found: &[Rounds], report: &mut Report) {
    let ours = &found[0];
    let all: Vec<f64> = ours.iter().flatten().copied().collect();
    let medians = |rounds: &Rounds| rounds.iter().map(|times| percentile(times, 0.5)).collect::<Vec<f64>>();
    for ((watcher, _), rounds) in COUNTS.iter().zip(found).skip(1) {
        if rounds.is_empty() {
            report.note(format!("net-change-T1: {} is not installed.", watcher.name()));
            continue;
        }
        let goal = if matches!(watcher, Watcher::Lsyncd(0)) { Goal::Limit(0.010) } else { Goal::None };
        report.line(Line {
            work: format!("net-change-T1: one 4 KiB file, p50 by round, against {}", watcher.name()),
            unit: Unit::Seconds,
            ours: medians(ours),
            rsync: medians(rounds),
            goal,
        });
        let theirs: Vec<f64> = rounds.iter().flatten().copied().collect();
        report.note(format!("net-change-T1, {}: {}.", watcher.name(), show(&theirs)));
    }
    for (name, part, goal) in
        [("p95", 0.95, Goal::None), ("p99", 0.99, Goal::Limit(0.050)), ("max", 1.0, Goal::None)]
    {
        report.line(Line {
            work: format!("net-change-T1: {name} of all {}", all.len()),
            unit: Unit::Seconds,
            ours: vec![percentile(&all, part)],
            rsync: Vec::new(),
            goal,
        });
    }
    report.note(format!("net-change-T1, ours, settle 0: {}.", show(&all)));
}
