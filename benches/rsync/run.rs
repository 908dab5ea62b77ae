//! What both programs share: the options of the benchmark, turns that swap who goes first, an exit code that is looked at,
//! and a file system without the other's dirty data.

use std::error::Error;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

pub(crate) type Res<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Puts the path into an error.
pub(crate) trait At<T> {
    fn at(self, path: &Path) -> Res<T>;
}

impl<T, E: Display> At<T> for Result<T, E> {
    fn at(self, path: &Path) -> Res<T> {
        self.map_err(|error| format!("{}: {error}", path.display()).into())
    }
}

/// What the command line asked for.
pub(crate) struct Bench {
    pub(crate) work: PathBuf,
    pub(crate) syncagent: PathBuf,
    pub(crate) rsync: PathBuf,
    pub(crate) runs: usize,
    pub(crate) scale: f64,
    pub(crate) keep: bool,
    pub(crate) only: Vec<String>,
}

impl Bench {
    pub(crate) fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == row)
    }

    /// Copies of a tree, the source included, when every run of both programs gets a new destination.
    pub(crate) fn fresh_copies(&self) -> u64 {
        2 * self.runs as u64 + 3
    }

    /// Where the programs' error output goes: a file, so that a full pipe never stops one.
    pub(crate) fn stderr(&self) -> PathBuf {
        self.work.join("stderr.log")
    }

    /// Turns a bad exit into an error that quotes the program.
    pub(crate) fn check(&self, command: &Command, status: ExitStatus) -> Res<()> {
        if status.success() {
            return Ok(());
        }
        let said = fs::read(self.stderr()).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let tail: Vec<&str> = said.lines().rev().take(5).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        Err(format!("{command:?}: {status}\n{}", tail.join("\n")).into())
    }

    /// No input, no output but errors, and those in one language.
    pub(crate) fn quiet(&self, command: &mut Command) -> Res<()> {
        let stderr = self.stderr();
        let file = File::create(&stderr).at(&stderr)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).env("LC_ALL", "C");
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Ours,
    Rsync,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::Ours, Self::Rsync];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Rsync => "rsync",
        }
    }
}

/// A value for each program.
#[derive(Clone, Default)]
pub(crate) struct Both<T> {
    pub(crate) ours: T,
    pub(crate) rsync: T,
}

impl<T> Both<T> {
    pub(crate) fn of(&self, side: Side) -> &T {
        match side {
            Side::Ours => &self.ours,
            Side::Rsync => &self.rsync,
        }
    }
}

impl<T> Both<Vec<T>> {
    pub(crate) fn push(&mut self, side: Side, value: T) {
        match side {
            Side::Ours => self.ours.push(value),
            Side::Rsync => self.rsync.push(value),
        }
    }
}

/// Runs `each` for both programs in every round, first ours then rsync, the next round the other way round; `before` comes
/// once per round.
pub(crate) fn in_turn<T>(
    runs: usize,
    mut before: impl FnMut(usize) -> Res<()>,
    mut each: impl FnMut(usize, Side) -> Res<T>,
) -> Res<Both<Vec<T>>> {
    let mut found = Both { ours: Vec::new(), rsync: Vec::new() };
    for round in 0..runs {
        before(round)?;
        let mut sides = Side::BOTH;
        if round % 2 == 1 {
            sides.reverse();
        }
        for side in sides {
            found.push(side, each(round, side)?);
        }
    }
    Ok(found)
}

/// Writes out everything dirty in the file system that holds `dir`.
pub(crate) fn sync_file_system(dir: &Path) -> Res<()> {
    let handle = File::open(dir).at(dir)?;
    rustix::fs::syncfs(&handle).at(dir)
}

/// Reads all content once, so that the timed runs find it in the page cache.
pub(crate) fn warm(root: &Path) -> Res<()> {
    let mut buffer = vec![0; 1 << 20];
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.at(root)?;
        if entry.file_type().is_file() {
            let mut file = File::open(entry.path()).at(entry.path())?;
            while file.read(&mut buffer).at(entry.path())? > 0 {}
        }
    }
    Ok(())
}
