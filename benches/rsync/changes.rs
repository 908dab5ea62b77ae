//! Single changes in a tree, and how long until they are in place elsewhere: written as programs write a file, seen by reading the
//! copies and comparing every byte.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::run::{At, Res};
use crate::spec::Rng;
use crate::tree::Tree;

/// Bytes written by one change.
const SIZE: usize = 4096;
/// Longer than this nothing that still works takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Changes existing files of a tree at random, and puts their content back in the end.
pub(crate) struct Changes<'a> {
    tree: &'a Tree,
    rng: Rng,
    count: u64,
    changed: Vec<u64>,
}

/// A file's new content.
pub(crate) struct Change {
    path: PathBuf,
    content: Vec<u8>,
}

impl<'a> Changes<'a> {
    pub(crate) fn new(tree: &'a Tree) -> Res<Self> {
        tree.unstamp()?;
        Ok(Self { tree, rng: Rng::new(&[4]), count: 0, changed: Vec::new() })
    }

    /// Another file each time, as far as there are enough.
    fn next(&mut self) -> Change {
        self.count += 1;
        let files = self.tree.spec.files;
        let mut index = self.rng.below(files);
        if (self.changed.len() as u64) < files / 2 {
            while self.changed.contains(&index) {
                index = self.rng.below(files);
            }
        }
        self.changed.push(index);
        let mut content = vec![0; SIZE];
        Rng::new(&[5, self.count, index]).fill(&mut content);
        Change { path: self.tree.spec.path(index), content }
    }

    /// Writes so many files and gives the seconds until all copies have all of them. The next call comes after a pause of
    /// random length, so that no period of any program is met again and again.
    pub(crate) fn spread(&mut self, files: usize, copies: &[&Path]) -> Res<f64> {
        let changes: Vec<Change> = (0..files).map(|_| self.next()).collect();
        let start = Instant::now();
        for change in &changes {
            let path = self.tree.root.join(&change.path);
            fs::write(&path, &change.content).at(&path)?;
        }
        for copy in copies {
            for change in &changes {
                change.wait(copy, start)?;
            }
        }
        let took = start.elapsed().as_secs_f64();
        self.pause();
        Ok(took)
    }

    fn pause(&mut self) {
        thread::sleep(Duration::from_millis(20 + self.rng.below(60)));
    }

    /// The tree is again what its spec says.
    pub(crate) fn undo(self) -> Res<()> {
        let mut buffer = Vec::new();
        for index in self.changed {
            self.tree.write_file(index, 0, &mut buffer)?;
        }
        self.tree.stamp()
    }
}

impl Change {
    /// Looks at first every 0.1 ms, later rarer: always a fiftieth of the time that it has waited already.
    fn wait(&self, copy: &Path, start: Instant) -> Res<()> {
        let path = copy.join(&self.path);
        while fs::read(&path).ok().is_none_or(|content| content != self.content) {
            let waited = start.elapsed();
            if waited > PATIENCE {
                return Err(format!("{} did not change within {PATIENCE:?}", path.display()).into());
            }
            thread::sleep((waited / 50).clamp(Duration::from_micros(100), Duration::from_millis(5)));
        }
        Ok(())
    }
}

/// The sample that this part of all does not exceed, by nearest rank.
pub(crate) fn percentile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
