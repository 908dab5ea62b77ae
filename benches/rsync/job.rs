//! A source and the two destinations that are kept equal to it, one for each program: start, time, reset, verify.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::room::forget;
use crate::run::{At, Bench, Both, Res, Side, sync_file_system};
use crate::tree::Tree;

/// One timed run, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) wall: f64,
    /// User and system time of the program and its children; not what the kernel wrote back later.
    pub(crate) cpu: f64,
}

/// A source and the two destinations that are kept equal to it.
pub(crate) struct Job<'a> {
    pub(crate) bench: &'a Bench,
    pub(crate) tree: &'a Tree,
    dir: PathBuf,
    /// Which of its destinations each program is at.
    turn: Both<Cell<u32>>,
    /// Options beside `sync SRC DST --state-dir S`.
    pub(crate) ours: &'static [&'static str],
    /// Options beside `-a`.
    pub(crate) rsync: &'static [&'static str],
}

impl<'a> Job<'a> {
    /// Destinations lie in the work directory under `name`; what an earlier, killed run left there goes.
    pub(crate) fn new(bench: &'a Bench, tree: &'a Tree, name: &str) -> Res<Self> {
        let dir = bench.work.join(format!("{name}.dst"));
        bench.discard(&dir)?;
        let turn = Both::default();
        Ok(Self { bench, tree, dir, turn, ours: &[], rsync: &[] })
    }

    /// The same source and destinations with other options.
    pub(crate) fn with(&self, ours: &'static [&'static str], rsync: &'static [&'static str]) -> Self {
        Self {
            bench: self.bench,
            tree: self.tree,
            dir: self.dir.clone(),
            turn: self.turn.clone(),
            ours,
            rsync,
        }
    }

    /// The destination of the last [`reset`](Self::reset).
    pub(crate) fn dst(&self, side: Side) -> PathBuf {
        self.dir.join(format!("{}-{}", side.name(), self.turn.of(side).get()))
    }

    fn state(&self) -> PathBuf {
        self.dir.join(format!("state-{}", self.turn.ours.get()))
    }

    /// A new, empty destination and, for ours, no memory of an earlier one. The old one stays (see `room`), but not in the page
    /// cache.
    pub(crate) fn reset(&self, side: Side) -> Res<()> {
        let old = self.dst(side);
        if old.try_exists().at(&old)? {
            forget(&old)?;
        }
        loop {
            let turn = self.turn.of(side);
            turn.set(turn.get() + 1);
            let dst = self.dst(side);
            if !dst.try_exists().at(&dst)? {
                break;
            }
        }
        let dst = self.dst(side);
        fs::create_dir_all(&dst).at(&dst)?;
        if side == Side::Ours {
            fs::create_dir_all(self.state()).at(&self.state())?;
        }
        sync_file_system(&dst)
    }

    /// Moves all destinations aside.
    pub(crate) fn remove(self) -> Res<()> {
        self.bench.discard(&self.dir)
    }

    pub(crate) fn command(&self, side: Side) -> Res<Command> {
        let (src, dst) = (&self.tree.root, self.dst(side));
        let mut command = match side {
            Side::Ours => {
                let mut command = Command::new(&self.bench.syncagent);
                command.arg("sync").args([src, &dst]).arg("--state-dir").arg(self.state()).args(self.ours);
                command
            }
            Side::Rsync => {
                let mut command = Command::new(&self.bench.rsync);
                command.arg("-a").args(self.rsync).args([src.join(""), dst.join("")]);
                command
            }
        };
        self.bench.quiet(&mut command)?;
        Ok(command)
    }

    /// One run, timed from the start of the process to its end, or, with `durable`, to the end of a sync of the file system (as
    /// `sync -f` does it, without the time of starting one more process).
    pub(crate) fn run(&self, side: Side, durable: bool) -> Res<Sample> {
        let mut command = self.command(side)?;
        let cpu = children_cpu()?;
        let start = Instant::now();
        let status = command.status().at(Path::new(command.get_program()))?;
        if durable {
            sync_file_system(&self.dst(side))?;
        }
        let wall = start.elapsed().as_secs_f64();
        self.bench.check(&command, status)?;
        Ok(Sample { wall, cpu: children_cpu()? - cpu })
    }

    /// Fails unless the destination is what rsync itself calls equal, byte for byte. The time of the destination's own root does
    /// not count: a managed root has one directory more in it.
    pub(crate) fn verify(&self, side: Side) -> Res<()> {
        let dst = self.dst(side);
        let mut command = Command::new(&self.bench.rsync);
        command.args(["-ain", "--no-D", "--checksum", "--delete", "--exclude=/.syncagent"]);
        command.args([self.tree.root.join(""), dst.join("")]);
        self.bench.quiet(&mut command)?;
        let output = command.stdout(Stdio::piped()).output().at(&self.bench.rsync)?;
        self.bench.check(&command, output.status)?;
        let differences = String::from_utf8_lossy(&output.stdout);
        let found: Vec<&str> = differences.lines().filter(|line| *line != ".d..t...... ./").collect();
        if found.is_empty() {
            return Ok(());
        }
        let few = found.iter().take(5).copied().collect::<Vec<_>>().join("\n");
        Err(format!("{} differs from its source in {} places:\n{few}", dst.display(), found.len()).into())
    }

    pub(crate) fn verify_both(&self) -> Res<()> {
        Side::BOTH.into_iter().try_for_each(|side| self.verify(side))
    }
}

/// Seconds of processor time of all children waited for so far, and of theirs. In steps of a clock tick (10 ms as a rule).
pub(crate) fn children_cpu() -> Res<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // Fields 16 and 17 of proc_pid_stat(5); the name, field 2, may hold spaces and ends in the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<f64>().ok());
    match (ticks(16), ticks(17)) {
        (Some(user), Some(system)) => Ok((user + system) / rustix::param::clock_ticks_per_second() as f64),
        _ => Err("/proc/self/stat: cutime and cstime not found".into()),
    }
}
