//! The first mirror of a tree over loopback: ours over TLS, from the start of the mirror's agent until it says that it is
//! current; rsync from a daemon without TLS, and over ssh. A sync of the file system counts for all.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::cluster::{Agent, Cluster, equal};
use crate::job::{Sample, children_cpu};
use crate::peers::{Daemon, Ssh};
use crate::report::{Goal, Line, Report, Stats, Unit, cpus, walls};
use crate::room::forget;
use crate::run::{At, Bench, Res, sync_file_system, warm};
use crate::tree::Tree;
use crate::usage::{cpu, memory};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Ours,
    Daemon,
    Ssh,
}

pub(crate) struct Goals {
    pub(crate) daemon: Goal,
    /// Not run when there is none.
    pub(crate) ssh: Option<Goal>,
}

pub(crate) fn row(bench: &Bench, tree: &Tree, report: &mut Report, goals: &Goals) -> Res<()> {
    let row = format!("net-first-{}", tree.spec.name);
    let cluster = Cluster::new(bench, &row)?;
    let source = cluster.source(&tree.root, "500ms")?;
    let daemon = Daemon::new(bench, &tree.root)?;
    let ssh = goals.ssh.map(|_| Ssh::new(bench)).transpose()?;
    let dir = bench.work.join(format!("{row}.dst"));
    bench.discard(&dir)?;
    let mut ways = vec![Way::Ours, Way::Daemon];
    ways.extend(ssh.as_ref().map(|_| Way::Ssh));
    let mut found: Vec<Vec<Sample>> = ways.iter().map(|_| Vec::new()).collect();
    for round in 0..bench.runs {
        for turn in 0..ways.len() {
            let at = if round % 2 == 0 { turn } else { ways.len() - 1 - turn };
            warm(&tree.root)?;
            let (sample, dst) = match (ways[at], &ssh) {
                (Way::Ours, _) => ours(&cluster, &source, round)?,
                (Way::Ssh, Some(ssh)) => {
                    theirs(bench, &dir, (round, "ssh"), None, |dst| ssh.pull(bench, &tree.root, dst))?
                }
                _ => {
                    theirs(bench, &dir, (round, "daemon"), Some(&daemon), |dst| daemon.pull(bench, &[], dst))?
                }
            };
            eprintln!("{row}, round {}, {:?}: {sample:?}", round + 1, ways[at]);
            equal(bench, &tree.root, [dst.as_path()])?;
            forget(&dst)?;
            found[at].push(sample);
        }
    }
    let used = memory(source.pid())?;
    report
        .note(format!("{row}: peak memory of the source {:.1} MiB after {} mirrors.", used.peak, bench.runs));
    source.stop()?;
    cluster.remove()?;
    bench.discard(&dir)?;
    for (at, way) in ways.iter().enumerate().skip(1) {
        let (goal, name) = match way {
            Way::Ssh => (goals.ssh.unwrap_or(Goal::None), "rsync over ssh"),
            _ => (goals.daemon, "an rsync daemon"),
        };
        report.line(Line {
            work: format!("{row}: first mirror over TLS, durable, against {name}"),
            unit: Unit::Seconds,
            ours: walls(&found[0]),
            rsync: walls(&found[at]),
            goal,
        });
        // What ssh's server used is nobody's child here.
        if let (Way::Daemon, Some(ours), Some(rsync)) =
            (way, Stats::of(&cpus(&found[0])), Stats::of(&cpus(&found[at])))
        {
            let (ours, rsync) = (ours.median, rsync.median);
            report.note(format!(
                "{row}: processor time of both sides, ours {ours:.2} s, rsync and its daemon {rsync:.2} s, ratio {:.2}.",
                ours / rsync
            ));
        }
    }
    Ok(())
}

fn ours(cluster: &Cluster<'_>, source: &Agent, round: usize) -> Res<(Sample, PathBuf)> {
    let node = format!("mirror{round}");
    cluster.issue(&node)?;
    let dst = cluster.mirror_tree(&node);
    fs::create_dir_all(&dst).at(&dst)?;
    sync_file_system(&dst)?;
    let (head, before) = (source.head(), cpu(source.pid())?);
    let start = Instant::now();
    let mirror = cluster.mirror(&node)?;
    mirror.wait("have the first copy", |own| own["state"] == "current" && own["generation"] == head)?;
    let there = start.elapsed().as_secs_f64();
    sync_file_system(&dst)?;
    let wall = start.elapsed().as_secs_f64();
    let cpu = cpu(source.pid())? - before + cpu(mirror.pid())?;
    let peak = memory(mirror.pid())?.peak;
    eprintln!("in place after {there:.2} s; peak memory of the mirror {peak:.1} MiB");
    mirror.stop()?;
    Ok((Sample { wall, cpu }, dst))
}

fn theirs(
    bench: &Bench,
    dir: &Path,
    (round, name): (usize, &str),
    daemon: Option<&Daemon>,
    command: impl FnOnce(&Path) -> Res<std::process::Command>,
) -> Res<(Sample, PathBuf)> {
    let dst = dir.join(format!("{name}{round}"));
    fs::create_dir_all(&dst).at(&dst)?;
    sync_file_system(&dst)?;
    let served = || daemon.map_or(Ok(0.0), Daemon::cpu);
    let before = children_cpu()? + served()?;
    let mut command = command(&dst)?;
    let start = Instant::now();
    let status = command.status().at(Path::new(command.get_program()))?;
    sync_file_system(&dst)?;
    let wall = start.elapsed().as_secs_f64();
    bench.check(&command, status)?;
    Ok((Sample { wall, cpu: children_cpu()? + served()? - before }, dst))
}
