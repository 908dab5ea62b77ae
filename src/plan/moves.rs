//! Content that only changed its name: matched among the plan's own deletions and creations, so that
//! it is renamed instead of read again, and is not counted as a deletion.

use std::collections::{BTreeSet, HashMap};

use super::{Diff, Op, Side, Step};
use crate::error::{PathError, Result};
use crate::model::{Digest, Entry, LocalId, Node, Object, TreePath};

/// More deletions than this are not searched for moves (a bound on memory, about 50 MiB).
const MAX_CANDIDATES: usize = 100_000;

/// Where a moved entry is now, and what it was when it was seen there.
#[derive(Clone, Debug)]
pub struct Moved {
    /// The old path.
    pub path: TreePath,
    /// The old entry.
    pub entry: Entry,
    /// Its identity.
    pub id: Option<LocalId>,
}

/// The moves of a plan.
#[derive(Debug, Default)]
pub struct Moves {
    to: HashMap<TreePath, Moved>,
    from: BTreeSet<TreePath>,
}

impl Moves {
    /// What becomes `path`.
    pub fn to(&self, path: &TreePath) -> Option<&Moved> {
        self.to.get(path)
    }

    /// Whether `path` becomes something else.
    pub fn takes(&self, path: &TreePath) -> bool {
        self.from.contains(path)
    }

    /// Whether something below `path` becomes something else.
    fn takes_below(&self, path: &TreePath) -> bool {
        // bytewise, what lies below a path comes after it, perhaps behind siblings such as `path.txt`
        self.from
            .range(path.clone()..)
            .skip_while(|p| *p == path)
            .take_while(|p| p.as_bytes().starts_with(path.as_bytes()))
            .any(|p| p.is_within(path))
    }

    fn add(&mut self, to: TreePath, moved: Moved) {
        self.from.insert(moved.path.clone());
        self.to.insert(to, moved);
    }
}

/// What a directory or a file is moved by. Empty files and directories are not worth it.
fn key(entry: &Entry) -> Option<(bool, Digest)> {
    match &entry.node {
        Node::File { size, digest } if *size > 0 => Some((false, *digest)),
        Node::Dir { object, .. } if *object != Digest::of(&Object::default().encode()) => {
            Some((true, *object))
        }
        _ => None,
    }
}

/// What the search for moves found.
#[derive(Debug)]
pub struct Found {
    /// The moves.
    pub moves: Moves,
    /// Without moves the search was a walk of the whole plan: its conflicts.
    pub walked: Option<Vec<PathError>>,
}

/// Finds moves: whole directories with equal object digests first, from the top, then files with equal
/// content digests. Among several origins one with the same file name wins, then the first by path.
/// `visit` is called for every step as if there were no moves.
///
/// # Errors
/// A directory description cannot be read.
pub fn find_moves<O: Side, N: Side>(
    diff: &Diff<'_, O, N>,
    visit: &mut dyn FnMut(&Step<'_, O::Handle>),
) -> Result<Found> {
    let mut moves = Moves::default();
    let searched = !diff.options.no_delete && diff.old_root.is_some();
    let none = Moves::default();
    let mut origins: HashMap<(bool, Digest), Vec<Moved>> = HashMap::new();
    let mut count = 0;
    let conflicts = diff.walk(&none, &mut |step| {
        visit(&step);
        if searched
            && step.op == Op::Delete
            && !step.swapped
            && count < MAX_CANDIDATES
            && let Some(old) = step.old
            && !old.shared
            && let Some(key) = key(&old.entry)
        {
            count += 1;
            let moved = Moved { path: step.path.clone(), entry: old.entry.clone(), id: old.id };
            origins.entry(key).or_default().push(moved);
        }
        Ok(())
    })?;
    if origins.is_empty() {
        return Ok(Found { moves, walked: Some(conflicts) });
    }
    let mut targets: Vec<(TreePath, (bool, Digest))> = Vec::new();
    diff.walk(&none, &mut |step| {
        if step.op == Op::Create
            && !step.swapped
            && let Some(key) = step.new.and_then(key)
            && origins.contains_key(&key)
        {
            targets.push((step.path.clone(), key));
        }
        Ok(())
    })?;
    for dirs in [true, false] {
        for (to, key) in targets.iter().filter(|(_, key)| key.0 == dirs) {
            if within(to, |p| moves.to.contains_key(p)) {
                continue;
            }
            let Some(list) = origins.get_mut(key) else {
                continue;
            };
            // neither a part of what is taken already, nor something of which a part is
            list.retain(|m| !within(&m.path, |p| moves.from.contains(p)) && !moves.takes_below(&m.path));
            let same_name = list.iter().position(|m| m.path.split().1 == to.split().1);
            if !list.is_empty() {
                let moved = list.remove(same_name.unwrap_or(0));
                moves.add(to.clone(), moved);
            }
        }
    }
    let walked = moves.to.is_empty().then_some(conflicts);
    Ok(Found { moves, walked })
}

/// Whether `test` holds for the path or a directory above it.
fn within(path: &TreePath, test: impl Fn(&TreePath) -> bool) -> bool {
    path.ancestors().any(|p| test(&p))
}
