//! What changed in a displaced directory since it was scanned: files that somebody wrote into it while
//! the commit was on its way.

use std::collections::HashMap;

use super::index::Index;
use super::list::Listing;
use super::row::DirRow;
use crate::disk::{Dir, FileKind, FsClass};
use crate::error::{Context as _, Result};
use crate::model::{Kind, Name, Node, TreePath};
use crate::plan::Filter;

/// The paths below `path` (in `root`, which mirrors the tree) that are not what the row says. What is
/// missing is none: moves took it, or its owner.
///
/// # Errors
/// A directory cannot be read, or the index.
pub fn changed_within(root: &Dir, path: &TreePath, row: i64, index: &Index) -> Result<Vec<TreePath>> {
    let filter = Filter::new(Vec::new())?;
    let stable_ino = FsClass::of(root) != FsClass::Fuse;
    let mut changed = Vec::new();
    let mut stack = vec![(path.clone(), row)];
    while let Some((path, row)) = stack.pop() {
        let listing = root.open(&path).and_then(|dir| Listing::read(&dir, &path, &filter, stable_ino));
        let listing = listing.context(|| format!("look at the replaced directory {path}"))?;
        let rows: HashMap<Vec<u8>, DirRow> =
            index.children(row)?.into_iter().map(|r| (r.name.clone(), r)).collect();
        let clean = index.row(row)?.is_some_and(|r| r.stat == listing.stat_hash());
        let body = if clean { None } else { index.body(row)? };
        for e in &listing.entries {
            let Ok(name) = Name::new(listing.name(e)) else {
                continue;
            };
            let Ok(stat) = &e.stat else { continue };
            let known = body.as_ref().and_then(|(object, ids)| {
                let i = object.entries.binary_search_by(|e| e.name.cmp(&name)).ok()?;
                Some((&object.entries[i], &ids[i]))
            });
            let same = clean
                || known.is_some_and(|(entry, id)| match (&entry.node, stat.kind) {
                    (Node::Dir { .. }, FileKind::Dir) => id.id.ino == stat.id.ino,
                    (Node::File { size, .. }, FileKind::File) => {
                        // of a file with other names they move the ctime
                        let same_id = id.id == stat.id || stat.nlink > 1 && id.id.ino == stat.id.ino;
                        *size == stat.size && entry.mtime == stat.mtime && same_id
                    }
                    (Node::Link { .. }, FileKind::Link) => id.id == stat.id,
                    (Node::Unreadable { kind }, _) => *kind != Kind::Dir,
                    _ => false,
                });
            match (same, stat.kind, rows.get(&*name)) {
                (false, ..) => changed.push(path.join(&name)),
                (true, FileKind::Dir, Some(row)) => stack.push((path.join(&name), row.id)),
                _ => {}
            }
        }
    }
    Ok(changed)
}
