//! `syncagent trash restore`: what is asked for is looked up, merged and looked at before anything is done.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::super::paths::{destination, inside};
use super::{Into, Trash, TrashAnswer};
use crate::apply::{Amount, Found, find_trashed};
use crate::disk::ensure_dir_all;
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{TreePath, counted, escaped};
use crate::plan::CONTROL_DIR;

/// So many paths are named at most.
const NAMED: usize = 20;

impl Trash<'_> {
    pub(super) fn restore(
        &self,
        paths: &[TreePath],
        of: Option<&str>,
        to: Option<&[u8]>,
    ) -> Result<TrashAnswer> {
        let commit = of.map(|of| self.commit_of(of)).transpose()?;
        let elsewhere = to.map(|to| self.beside(to)).transpose()?;
        if let (None, Into::Refused(why)) = (&elsewhere, &self.into) {
            let what = format!("{why}. Restore it beside the tree with --to DIR; nothing was changed");
            return Err(Error::new(Class::Refused, what));
        }
        let found =
            paths.iter().map(|path| find_trashed(self.control, path, commit)).collect::<Result<_>>()?;
        let found = merged(found)?;
        let opened;
        let (to, work) = match &elsewhere {
            Some(path) => {
                let cannot = || format!("open {} (--to)", escaped(path));
                opened = ensure_dir_all(path, 0o755).context(cannot).map_err(|e| not_here(e, path))?;
                (&opened, None)
            }
            None => (self.root, Some(self.control)),
        };
        // all or nothing, as far as that shows beforehand
        let mut in_the_way = Vec::new();
        for one in &found {
            in_the_way.extend(one.conflicts(to, NAMED)?);
        }
        if !in_the_way.is_empty() {
            in_the_way.truncate(NAMED);
            let what = format!(
                "something is at {} already, and nothing is ever replaced; nothing was changed. Restore beside it with \
                 --to DIR",
                list(&in_the_way)
            );
            return Err(Error::new(Class::Refused, what));
        }
        let mut sum = Amount::default();
        let mut placed = Vec::new();
        for one in &found {
            let done = one.restore(to, work, &mut placed).map_err(|e| partly(e, &placed));
            let done = match &elsewhere {
                Some(path) => done.map_err(|e| not_here(e, path))?,
                None => done?,
            };
            sum.files += done.files;
            sum.bytes += done.bytes;
        }
        let place = elsewhere.map_or_else(|| "the tree".to_owned(), |path| escaped(&path));
        let commits: BTreeSet<u64> = found.iter().map(|f| f.commit).collect();
        let commits: Vec<String> = commits.iter().map(u64::to_string).collect();
        let message = format!(
            "restored {} ({}) into {place}, as before commit {}",
            counted(sum.files, "file"),
            counted(sum.bytes, "byte"),
            commits.join(", ")
        );
        Ok(TrashAnswer::Done { message, files: sum.files, bytes: sum.bytes })
    }

    /// `--to`, when something may be put there.
    fn beside(&self, to: &[u8]) -> Result<PathBuf> {
        let path = destination(&to_path(to)?)?;
        let refused = |why: &str| {
            let what = format!(
                "--to {} {why}; nothing was changed. Name a directory outside of the tree",
                escaped(&path)
            );
            Err(Error::new(Class::Refused, what))
        };
        let control = self.control.path();
        if path.components().any(|part| part.as_os_str().as_bytes() == CONTROL_DIR)
            || control.is_some_and(|control| inside(&path, &control))
        {
            return refused("lies in a .syncagent, where syncagent has its own files");
        }
        if let (Into::Refused(why), Some(root)) = (&self.into, self.root.path())
            && inside(&path, &root)
        {
            return refused(&format!("lies in the tree, and {why}"));
        }
        Ok(path)
    }
}

/// Each once, what lies in a directory that is restored anyway not again, and directories before what lies in them. What
/// another commit displaced in such a directory stays, unless the directory has something else in its place.
fn merged(found: Vec<Found>) -> Result<Vec<Found>> {
    let mut out: BTreeMap<TreePath, Found> = BTreeMap::new();
    // a path sorts before what lies in it
    let sorted: BTreeMap<TreePath, Found> = found.into_iter().map(|f| (f.path().clone(), f)).collect();
    'each: for (path, one) in sorted {
        for above in path.ancestors().skip(1) {
            let Some(dir) = out.get(&above) else { continue };
            if one.is_part_of(dir) {
                continue 'each;
            }
            let twice = one.conflicts_in(dir, NAMED)?;
            if !twice.is_empty() {
                let what = format!(
                    "{path} as it was before commit {} and {above} as it was before commit {} cannot both be restored: both \
                     have {}; nothing was changed. Restore one of them with --to DIR",
                    one.commit,
                    dir.commit,
                    list(&twice)
                );
                return Err(Error::new(Class::Refused, what));
            }
        }
        out.insert(path, one);
    }
    Ok(out.into_values().collect())
}

/// An error together with what is in place in spite of it.
fn partly(e: Error, placed: &[TreePath]) -> Error {
    if placed.is_empty() {
        let what =
            if e.class == Class::Refused { format!("{}; nothing was changed", e.what) } else { e.what };
        return Error { what, ..e };
    }
    // who is told "refused" may count on it that nothing was changed
    let class = if e.class == Class::Refused { Class::Permanent } else { e.class };
    let more = match placed.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = &placed[..placed.len().min(NAMED)];
    let what = format!("{}{more} came back, and stays; nothing else did: {}", list(named), e.what);
    Error { class, what, ..e }
}

fn list(paths: &[TreePath]) -> String {
    paths.iter().map(TreePath::to_string).collect::<Vec<_>>().join(", ")
}

/// What to do when a directory beside the tree cannot be written, which in a service's sandbox is the rule.
fn not_here(mut e: Error, to: &Path) -> Error {
    if e.errno() == Some(rustix::io::Errno::ROFS) {
        e.what = format!(
            "{} is read-only for the agent; the same command with the tree's path instead of its name does without the \
             agent (syncagent trash /PATH/OF/TREE restore ... --to DIR): {}",
            escaped(to),
            e.what
        );
    }
    e
}

fn to_path(bytes: &[u8]) -> Result<PathBuf> {
    let path = Path::new(std::ffi::OsStr::from_bytes(bytes));
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    Err(Error::new(Class::Config, format!("--to {} is not an absolute path", escaped(path))))
}

#[cfg(test)]
mod tests;
