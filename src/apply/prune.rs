//! Removing from the trash what is too old or too much. It may take long, so it can be ended between two files, and it
//! touches only commits that are over: the next one may be under way beside it.

use std::collections::HashMap;

use rustix::io::{Errno, Result as Sys};

use super::control::Control;
use super::trash::{DRIFT, Keep, TRASH, TREE, drop_empty, numbers, remove_part, remove_rest};
use crate::disk::{Dir, tree_size_until};
use crate::error::{Context as _, Result};

/// Commits whose drift is kept. Each of them is looked at with every commit, so there must be a bound.
const DRIFTS: usize = 1_000;

/// Prunes a trash again and again. It remembers how large each part is, so that only what is new is measured.
#[derive(Debug, Default)]
pub struct Pruner {
    sizes: HashMap<(u64, &'static [u8]), u64>,
}

/// Prunes the whole trash of a tree in which no commit is under way; see [`Pruner::prune`].
///
/// # Errors
/// The operating system's; what was not removed stays.
pub fn prune(control: &Control, keep: Keep) -> Result<()> {
    let done = Pruner::default().prune(&control.dir, keep, u64::MAX, &|| false);
    done.context(|| format!("prune the trash of {}", control.shown()))
}

impl Pruner {
    /// Forgets the sizes: somebody else changed the trash.
    pub fn forget(&mut self) {
        self.sizes.clear();
    }

    /// Removes what is too old or too much: generations beyond `keep.generations`, then the oldest ones until
    /// the rest fits the budget, then the oldest drift. Of drift only the newest 1,000 commits' is kept. `control` is an open
    /// `.syncagent`; what commits above `upto` displaced is neither counted nor touched. Ends when `stop` says so.
    ///
    /// # Errors
    /// The operating system's, or `CANCELED` where `stop` ended it; what was not removed stays.
    pub fn prune(&mut self, control: &Dir, keep: Keep, upto: u64, stop: &dyn Fn() -> bool) -> Sys<()> {
        let trash = match control.open_child(TRASH) {
            Ok(trash) => trash,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e),
        };
        let mut all = numbers(&trash)?;
        all.retain(|seq| *seq <= upto);
        let (mut kept, mut drifts) = (0, 0);
        for seq in &all {
            let Some(at) = open(&trash, *seq)? else { continue };
            remove_rest(&at, stop)?;
            if at.stat(TREE).is_ok() {
                kept += 1;
                if kept > keep.generations {
                    self.remove(&at, (*seq, TREE), stop)?;
                }
            }
            if at.stat(DRIFT).is_ok() {
                drifts += 1;
                if drifts > DRIFTS {
                    self.remove(&at, (*seq, DRIFT), stop)?;
                }
            }
        }
        self.fit(&trash, &all, keep.bytes, stop)?;
        for seq in all {
            drop_empty(&trash, seq);
        }
        Ok(())
    }

    /// Removes the oldest until the rest fits.
    fn fit(&mut self, trash: &Dir, all: &[u64], limit: u64, stop: &dyn Fn() -> bool) -> Sys<()> {
        let remembered = !self.sizes.is_empty();
        let mut total = self.measure(trash, all, stop)?;
        if total > limit && remembered {
            // nothing is removed for what may have gone since
            self.forget();
            total = self.measure(trash, all, stop)?;
        }
        for part in [TREE, DRIFT] {
            for seq in all.iter().rev() {
                if total <= limit {
                    return Ok(());
                }
                let size = self.sizes.get(&(*seq, part)).copied().unwrap_or(0);
                if let Some(at) = open(trash, *seq)? {
                    self.remove(&at, (*seq, part), stop)?;
                }
                total -= size.min(total);
            }
        }
        Ok(())
    }

    /// Bytes of all parts.
    fn measure(&mut self, trash: &Dir, all: &[u64], stop: &dyn Fn() -> bool) -> Sys<u64> {
        let mut sizes = HashMap::new();
        for seq in all {
            let Some(at) = open(trash, *seq)? else { continue };
            for part in [TREE, DRIFT] {
                let there = match at.open_child(part) {
                    Ok(there) => there,
                    Err(_) => continue,
                };
                let bytes = match self.sizes.get(&(*seq, part)) {
                    Some(bytes) => *bytes,
                    None => tree_size_until(&there, stop)?.1,
                };
                sizes.insert((*seq, part), bytes);
            }
        }
        self.sizes = sizes;
        Ok(self.sizes.values().sum())
    }

    fn remove(&mut self, at: &Dir, part: (u64, &'static [u8]), stop: &dyn Fn() -> bool) -> Sys<()> {
        self.sizes.remove(&part);
        remove_part(at, part.1, stop)
    }
}

/// `trash/N`, when it is still there.
fn open(trash: &Dir, seq: u64) -> Sys<Option<Dir>> {
    match trash.open_child(seq.to_string().as_bytes()) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::path::Path;

    use super::*;

    fn fill(at: &Path, seq: u64, part: &str, files: u64, bytes: usize) {
        let dir = at.join(format!("trash/{seq}/{part}"));
        std::fs::create_dir_all(&dir).unwrap();
        (0..files).for_each(|i| std::fs::write(dir.join(i.to_string()), vec![0; bytes]).unwrap());
    }

    fn commits(at: &Path) -> Vec<u64> {
        let mut all = numbers(&Dir::open_root(&at.join("trash")).unwrap()).unwrap();
        all.sort_unstable();
        all
    }

    #[test]
    fn what_is_under_way_is_neither_counted_nor_touched() {
        let tmp = tempfile::tempdir().unwrap();
        let (at, dir) = (tmp.path(), Dir::open_root(tmp.path()).unwrap());
        (1..=4).for_each(|seq| fill(at, seq, "tree", 2, 10));
        std::fs::create_dir(at.join("trash/5")).unwrap();
        let keep = Keep { generations: 1, bytes: 1000 };
        Pruner::default().prune(&dir, keep, 3, &|| false).unwrap();
        assert_eq!(commits(at), [3, 4, 5]);
        Pruner::default().prune(&dir, Keep { bytes: 0, ..keep }, 3, &|| false).unwrap();
        assert_eq!(commits(at), [4, 5]);
    }

    #[test]
    fn it_ends_between_two_files_and_goes_on_later() {
        let tmp = tempfile::tempdir().unwrap();
        let (at, dir) = (tmp.path(), Dir::open_root(tmp.path()).unwrap());
        fill(at, 1, "tree", 50, 1);
        fill(at, 1, "drift", 3, 1);
        let (keep, mut pruner) = (Keep { generations: 0, bytes: 1000 }, Pruner::default());
        let asked = Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() > 20
        };
        assert_eq!(pruner.prune(&dir, keep, 1, &stop), Err(Errno::CANCELED));
        let left = std::fs::read_dir(at.join("trash/1/tree.gone")).unwrap().count();
        assert!((1..50).contains(&left), "{left}");
        assert!(!at.join("trash/1/tree").exists(), "half of it is offered to nobody");
        pruner.prune(&dir, keep, 1, &|| false).unwrap();
        assert!(!at.join("trash/1/tree.gone").exists() && at.join("trash/1/drift/2").exists());
        // also where that is all there is
        fill(at, 2, "tree.gone", 2, 1);
        pruner.prune(&dir, Keep { generations: 9, bytes: 1000 }, 2, &|| false).unwrap();
        assert_eq!(commits(at), [1]);
    }

    #[test]
    fn sizes_are_measured_once_and_again_before_something_goes_for_them() {
        let tmp = tempfile::tempdir().unwrap();
        let (at, dir) = (tmp.path(), Dir::open_root(tmp.path()).unwrap());
        let keep = Keep { generations: 10, bytes: 100 };
        fill(at, 1, "tree", 40, 1);
        fill(at, 2, "drift", 1, 20);
        let mut pruner = Pruner::default();
        let asked = Cell::new(0);
        let count = || {
            asked.set(asked.get() + 1);
            false
        };
        pruner.prune(&dir, keep, 9, &count).unwrap();
        assert!(asked.replace(0) >= 41);
        fill(at, 3, "tree", 1, 1);
        pruner.prune(&dir, keep, 9, &count).unwrap();
        assert!(asked.replace(0) < 5, "only what is new is looked at");
        // somebody emptied the first by hand, and there is room for the next
        std::fs::remove_dir_all(at.join("trash/1")).unwrap();
        fill(at, 1, "tree", 1, 1);
        fill(at, 4, "tree", 1, 70);
        pruner.prune(&dir, keep, 9, &count).unwrap();
        assert_eq!(commits(at), [1, 2, 3, 4]);
        // the oldest generations, and drift last
        fill(at, 5, "tree", 1, 75);
        pruner.prune(&dir, keep, 9, &count).unwrap();
        assert_eq!(commits(at), [2, 5]);
    }
}
