//! A directory of 10,000 files gets another name on the source: time until it has it on the mirror, and what went over the
//! wire for it.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, equal};
use crate::peers::Daemon;
use crate::report::{Goal, Line, Report, Unit};
use crate::run::{At, Bench, Res, sync_file_system};
use crate::spec::WIDE;
use crate::tree::Tree;
use crate::usage::loopback;

const WIDE_RENAMED: &str = "library-new";

pub(crate) fn row(bench: &Bench, tree: &Tree, report: &mut Report) -> Res<()> {
    let cluster = Cluster::new(bench, "net-rename")?;
    cluster.issue("mirror")?;
    tree.unstamp()?;
    let source = cluster.source(&tree.root, "0ms")?;
    let mirror = cluster.mirror("mirror")?;
    mirror.follow(&source)?;
    let daemon = Daemon::new(bench, &tree.root)?;
    let dir = bench.work.join("net-rename.dst");
    bench.discard(&dir)?;
    let (mut walls, mut bytes) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let (mut from, mut to) = (WIDE, WIDE_RENAMED);
    // An even number: in the end the tree is what its stamp says.
    for round in 0..bench.runs.next_multiple_of(2) {
        // A new one each time: files that were deleted slow down creations.
        let dst = dir.join(round.to_string());
        fs::create_dir_all(&dst).at(&dst)?;
        pull(bench, &daemon, &dst)?;
        sync_file_system(&dst)?;
        thread::sleep(Duration::from_secs(2));

        let (sent, start) = (loopback()?, Instant::now());
        fs::rename(tree.root.join(from), tree.root.join(to)).at(&tree.root)?;
        moved(&mirror.tree, from, to, tree.spec.wide)?;
        let wall = start.elapsed().as_secs_f64();
        mirror.follow(&source)?;
        // The report of the mirror to the source counts, too.
        thread::sleep(Duration::from_secs(1));
        walls[0].push(wall);
        bytes[0].push(loopback()? - sent);

        let (sent, start) = (loopback()?, Instant::now());
        pull(bench, &daemon, &dst)?;
        walls[1].push(start.elapsed().as_secs_f64());
        bytes[1].push(loopback()? - sent);
        eprintln!("net-rename-10k, round {}: {walls:?} s, {bytes:?} bytes", round + 1);
        equal(bench, &tree.root, [mirror.tree.as_path(), &dst])?;
        std::mem::swap(&mut from, &mut to);
    }
    tree.touch_root()?;
    tree.stamp()?;
    mirror.stop()?;
    source.stop()?;
    cluster.remove()?;
    bench.discard(&dir)?;
    let ([ours, rsync], goal) = (walls, Goal::RatioLimit(0.30));
    let work = "net-rename-10k: until in place, settle 0, against an rsync daemon with --delete".to_owned();
    report.line(Line { work, unit: Unit::Seconds, ours, rsync, goal });
    let ([ours, rsync], goal) = (bytes, Goal::RatioLimit(0.01));
    let work = "net-rename-10k: bytes on the wire".to_owned();
    report.line(Line { work, unit: Unit::Bytes, ours, rsync, goal });
    Ok(())
}

/// The last file that appears may be any one, so all are counted.
fn moved(dst: &Path, from: &str, to: &str, files: u64) -> Res<()> {
    let end = Instant::now() + Duration::from_secs(120);
    let (from, to) = (dst.join(from), dst.join(to));
    loop {
        if !from.exists() && fs::read_dir(&to).is_ok_and(|dir| dir.count() as u64 == files) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("{} did not come", to.display()).into());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn pull(bench: &Bench, daemon: &Daemon, dst: &Path) -> Res<()> {
    let mut command = daemon.pull(bench, &["--delete"], dst)?;
    let status = command.status().at(&bench.rsync)?;
    bench.check(&command, status)
}
