//! A directory's end: its subdirectories' results put in, its object encoded, its row written.

use std::collections::HashSet;

use super::row::{DirRow, StatHash};
use super::state::{Dirent, Kid, State};
use super::walk::Scan;
use crate::disk::now;
use crate::error::Result;
use crate::error::lock;
use crate::model::{Digest, Kind, Name, Node, Object};

impl Scan<'_> {
    pub(super) fn conclude(&self, dir: &Dirent) -> Result<Option<Kid>> {
        let index = self.trees[dir.tree].spec.index;
        let mut state = std::mem::take(&mut *lock(&dir.state));
        let keeps = state.keeps
            || state.kids.iter().any(|(_, _, k)| match k {
                Kid::Done { keeps, .. } => *keeps,
                Kid::Unreadable => true,
                Kid::Vanished | Kid::Open => false,
            });
        let kids = kids_hash(&state.kids);
        let (parent, name) = match &dir.parent {
            Some((parent, _)) => (parent.row, dir.path.split().1.to_vec()),
            None => (0, Vec::new()),
        };
        if let (true, Some(old)) = (state.clean, &dir.old)
            && old.kids == kids
        {
            let row = DirRow { parent, name, ino: state.ino, keeps, ..old.clone() };
            if row != *old {
                index.put_head(&row)?;
            }
            return Ok(Some(Kid::Done { object: row.object, content: row.content, keeps, row: row.id }));
        }
        if let (true, Some(old)) = (state.clean, &dir.old) {
            let Some((object, ids)) = index.body(old.id)? else {
                return Ok(None);
            };
            state.entries = object.entries;
            state.ids = ids;
        }
        insert_kids(&mut state);
        let object = Object { entries: state.entries };
        let body = object.encode();
        let row = DirRow {
            id: dir.row,
            parent,
            name,
            ino: state.ino,
            stat: state.stat,
            kids,
            object: Digest::of(&body),
            content: object.content(),
            racy: state.racy,
            keeps,
            seen: now().sec,
        };
        let unchanged = dir.old.as_ref().is_some_and(|old| DirRow { seen: old.seen, ..row.clone() } == *old);
        if !unchanged || row.racy {
            index.put(&row, &body, &state.ids)?;
        }
        Ok(Some(Kid::Done { object: row.object, content: row.content, keeps, row: row.id }))
    }
}

pub(super) fn kids_hash(kids: &[(Name, u64, Kid)]) -> StatHash {
    let done = |(_, _, kid): &(Name, u64, Kid)| match kid {
        Kid::Done { object, content, keeps, row } => (*object, *content, *keeps, *row),
        Kid::Unreadable => (Digest([1; 32]), Digest([1; 32]), true, 0),
        Kid::Vanished | Kid::Open => (Digest([0; 32]), Digest([0; 32]), false, 0),
    };
    let kids: Vec<_> = kids.iter().map(done).collect();
    kids_hash_of(&kids)
}

/// Digests what a directory's row takes from its subdirectories: object and content digests, whether
/// they keep something, their rows; by ascending name.
pub(crate) fn kids_hash_of(kids: &[(Digest, Digest, bool, i64)]) -> StatHash {
    let mut h = blake3::Hasher::new();
    for (object, content, keeps, row) in kids {
        h.update(&object.0).update(&content.0).update(&[u8::from(*keeps)]).update(&row.to_le_bytes());
    }
    let mut out = [0; 16];
    h.finalize_xof().fill(&mut out);
    out
}

/// Puts the subdirectories' results into the entries, and takes out what vanished.
pub(super) fn insert_kids(state: &mut State) {
    let mut gone: HashSet<usize> = state.gone.drain(..).collect();
    let mut kids = state.kids.drain(..).peekable();
    for (i, entry) in state.entries.iter_mut().enumerate() {
        if entry.kind() != Kind::Dir {
            continue;
        }
        let Some((_, ino, kid)) = kids.next_if(|(name, ..)| *name == entry.name) else {
            continue;
        };
        match kid {
            Kid::Done { object, content, keeps, row } => {
                entry.node = Node::Dir { object, content };
                let id = &mut state.ids[i];
                id.id.ino = ino;
                (id.row, id.keeps) = (row, keeps);
            }
            Kid::Unreadable => {
                entry.node = Node::Unreadable { kind: Kind::Dir };
                state.ids[i].keeps = true;
            }
            Kid::Vanished | Kid::Open => drop(gone.insert(i)),
        }
    }
    drop(kids);
    if !gone.is_empty() {
        let mut i = 0;
        state.entries.retain(|_| (!gone.contains(&i), i += 1).0);
        i = 0;
        state.ids.retain(|_| (!gone.contains(&i), i += 1).0);
    }
}
