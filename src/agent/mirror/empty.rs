//! Whether a tree is empty: nothing was ever completely applied to its directory, and what is in it, if anything, came
//! from us. A server without any deployment must take no traffic; but a directory that had files of its own was served
//! before there was an agent, and goes on being served while its takeover waits for an approval.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::apply::{Control, Marker};
use crate::error::{Context as _, Result};
use crate::model::{Name, TreePath, escaped};
use crate::plan::Filter;

/// Directories that are looked into for a first file. Of more than that without any the scan says what is in them.
const LOOKED_INTO: usize = 10_000;

/// Whether the directory at `path` is empty in that sense. Reads only, and ends at the first file. Blocking.
///
/// # Errors
/// The directory, or what is known of it, cannot be read.
pub(super) fn is_empty(path: &Path, filter: &Filter) -> Result<bool> {
    let marker = Control::find(path)?.map(|control| control.marker()).transpose()?.flatten();
    judged(marker.as_ref(), || has_file(path, filter))
}

/// The same, where `has_file` says whether a file or link that belongs to the tree is in the directory.
///
/// # Errors
/// Those of `has_file`.
pub(super) fn judged(marker: Option<&Marker>, has_file: impl FnOnce() -> Result<bool>) -> Result<bool> {
    match marker {
        Some(marker) => Ok(marker.applied.is_none() && !marker.had_files),
        None => Ok(!has_file()?),
    }
}

fn has_file(path: &Path, filter: &Filter) -> Result<bool> {
    let mut left = vec![TreePath::root()];
    for _ in 0..LOOKED_INTO {
        let Some(dir) = left.pop() else { return Ok(false) };
        let at = path.join(OsStr::from_bytes(dir.as_bytes()));
        let entries = match std::fs::read_dir(&at) {
            Ok(entries) => entries,
            // it is to be made, or went meanwhile
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            // what cannot be read below it is the scan's to complain of
            Err(_) if !dir.is_root() => continue,
            Err(e) => return Err(e).context(|| format!("look into {}", escaped(&at))),
        };
        for entry in entries.flatten() {
            let (name, kind) = (entry.file_name(), entry.file_type());
            let (Ok(name), Ok(kind)) = (Name::new(name.as_bytes()), kind) else { continue };
            if filter.excludes(&dir, &name, kind.is_dir()) {
                continue;
            }
            if kind.is_file() || kind.is_symlink() {
                return Ok(true);
            }
            if kind.is_dir() {
                left.push(dir.join(&name));
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(path: &Path) -> bool {
        is_empty(path, &Filter::new(vec!["*.log".into(), "/work/".into()]).unwrap()).unwrap()
    }

    #[test]
    fn a_directory_without_a_file_of_the_tree_is_empty_and_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        assert!(is(&tree), "it is to be made");
        assert!(!tree.exists());
        std::fs::create_dir_all(tree.join("axis2services/deep")).unwrap();
        std::fs::create_dir_all(tree.join("work")).unwrap();
        std::fs::write(tree.join("x.log"), "").unwrap();
        std::fs::write(tree.join("work/y"), "").unwrap();
        assert!(is(&tree), "only what is excluded");
        assert!(!tree.join(".syncagent").exists());
        std::os::unix::fs::symlink("nowhere", tree.join("axis2services/deep/link")).unwrap();
        assert!(!is(&tree));
    }

    #[test]
    fn a_managed_directory_is_what_its_marker_says() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::open(dir.path()).unwrap();
        assert!(is(dir.path()), "no marker, no files");
        let new = Marker::new();
        control.set_marker(&new).unwrap();
        std::fs::write(dir.path().join("half"), "").unwrap();
        assert!(is(dir.path()), "the half of a first copy");
        control.set_marker(&Marker { had_files: true, ..new.clone() }).unwrap();
        assert!(!is(dir.path()), "the half of a takeover");
        let applied = crate::apply::SyncMark { content: String::new(), at: String::new(), generation: None };
        control.set_marker(&Marker { applied: Some(applied), ..new }).unwrap();
        std::fs::remove_file(dir.path().join("half")).unwrap();
        assert!(!is(dir.path()), "also when all that it brought was nothing, or is gone");
        std::fs::write(dir.path().join(".syncagent/tree"), "damaged").unwrap();
        assert!(is_empty(dir.path(), &Filter::new(vec![]).unwrap()).is_err());
    }
}
