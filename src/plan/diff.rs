//! Walks two trees side by side and names what turns the old one into the new one.
//!
//! Order: bytewise by path (a directory's own step, then siblings that sort before its `/`, then what
//! is in it); a path that changes its kind is first deleted, then created. Directories with equal
//! object digests are not entered. The walk keeps its own stack: depth costs memory, never the
//! program's stack.

use std::cmp::Ordering;

use super::{Moved, Moves, Op};
use crate::error::{PathError, Result};
use crate::model::{Entry, Kind, LocalId, Node, TreePath};

/// One of the two trees: how to read a directory.
pub trait Side {
    /// Names a directory of this side.
    type Handle: Clone;

    /// The entries of a directory, by ascending name.
    ///
    /// # Errors
    /// The directory's description cannot be read.
    fn load(&self, dir: &Self::Handle) -> Result<Vec<Item<Self::Handle>>>;
}

/// An entry as one side knows it.
#[derive(Clone, Debug)]
pub struct Item<H> {
    /// The entry.
    pub entry: Entry,
    /// How to read it, when it is a directory that can be read.
    pub dir: Option<H>,
    /// Old side: it holds, at some depth, what must stay (excluded, special or unreadable content), so
    /// it cannot go as a whole.
    pub keeps: bool,
    /// Old side: a file with other names, whose attributes are theirs too.
    pub shared: bool,
    /// Old side: what identifies the state that was seen.
    pub id: Option<LocalId>,
}

/// One operation of the plan.
#[derive(Debug)]
pub struct Step<'a, H> {
    /// What is done.
    pub op: Op,
    /// To which path.
    pub path: &'a TreePath,
    /// What is there now. For a `Create`: what was there under the same name and had another kind.
    pub old: Option<&'a Item<H>>,
    /// What will be there.
    pub new: Option<&'a Entry>,
    /// The directory that holds the path, as it shall be; `None` for the root, or when it goes.
    pub dir: Option<&'a Entry>,
    /// Where a moved entry is now.
    pub from: Option<&'a Moved>,
    /// Done by the step of a directory above it, or (a deletion) by the creation at the same path.
    pub covered: bool,
    /// A deletion at or below a path whose kind changes, or a creation there: its content stays out of
    /// moves.
    pub swapped: bool,
}

impl<H> Step<'_, H> {
    /// The entry that the step is about: the new one, or what is deleted.
    pub fn subject(&self) -> &Entry {
        match (self.op, self.new, self.old) {
            (Op::Delete, _, Some(old)) => &old.entry,
            (_, Some(new), _) => new,
            (_, None, Some(old)) => &old.entry,
            (_, None, None) => unreachable!("a step has an old or a new entry"),
        }
    }
}

/// What the walk leaves out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Nothing is deleted.
    pub no_delete: bool,
}

/// Two trees and how to compare them.
pub struct Diff<'a, O: Side, N: Side> {
    /// The tree as it is.
    pub old: &'a O,
    /// Its root; `None` when there is no tree yet.
    pub old_root: Option<O::Handle>,
    /// The tree as it shall be.
    pub new: &'a N,
    /// Its root.
    pub new_root: N::Handle,
    /// What the walk leaves out.
    pub options: Options,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Both,
    Creating,
    Deleting { covered: bool },
}

struct Frame<O, N> {
    path: TreePath,
    old: Vec<Item<O>>,
    new: Vec<Item<N>>,
    events: std::vec::IntoIter<Event>,
    mode: Mode,
    swapped: bool,
    dir: Option<Entry>,
}

#[derive(Clone, Copy)]
enum What {
    /// The step of the entry itself.
    Own,
    /// What is in the directory.
    Descend,
}

/// Indices into a frame's entries, and what to do.
#[derive(Clone, Copy)]
struct Event {
    old: Option<usize>,
    new: Option<usize>,
    what: What,
}

/// What the walk calls for every step.
type Visit<'v, H> = &'v mut dyn FnMut(Step<'_, H>) -> Result<()>;

impl<O: Side, N: Side> Diff<'_, O, N> {
    /// Calls `visit` for every step in order, with `moves` in force. Returns the paths that cannot be
    /// made right and why (a directory in the way that holds excluded content).
    ///
    /// # Errors
    /// A directory description cannot be read, or `visit`'s own error.
    pub fn walk(&self, moves: &Moves, visit: Visit<'_, O::Handle>) -> Result<Vec<PathError>> {
        let mut conflicts = Vec::new();
        let mut stack = Vec::new();
        let old = self.old_root.as_ref().map(|r| self.old.load(r)).transpose()?;
        let new = self.new.load(&self.new_root)?;
        stack.push(frame(TreePath::root(), old.unwrap_or_default(), new, Mode::Both, false));
        while let Some(top) = stack.last_mut() {
            let Some(event) = top.events.next() else {
                stack.pop();
                continue;
            };
            if let Some(deeper) = self.event(top, event, moves, visit, &mut conflicts)? {
                stack.push(deeper);
            }
        }
        Ok(conflicts)
    }

    fn event(
        &self,
        top: &Frame<O::Handle, N::Handle>,
        event: Event,
        moves: &Moves,
        visit: Visit<'_, O::Handle>,
        conflicts: &mut Vec<PathError>,
    ) -> Result<Option<Frame<O::Handle, N::Handle>>> {
        let old = event.old.map(|i| &top.old[i]);
        let new = event.new.map(|i| &top.new[i]);
        let name = match (old, new) {
            (Some(o), _) => &o.entry.name,
            (_, Some(n)) => &n.entry.name,
            _ => return Ok(None),
        };
        let path = top.path.join(name);
        let at = At { path: &path, old, new, mode: top.mode, swapped: top.swapped, dir: top.dir.as_ref() };
        match event.what {
            What::Own => {
                self.own(at, moves, visit, conflicts)?;
                Ok(None)
            }
            What::Descend => self.descend(at, moves),
        }
    }

    fn own(
        &self,
        at: At<'_, O::Handle, N::Handle>,
        moves: &Moves,
        visit: Visit<'_, O::Handle>,
        conflicts: &mut Vec<PathError>,
    ) -> Result<()> {
        let step = |op, old, new, covered, swapped| Step {
            op,
            path: at.path,
            old,
            new,
            dir: at.dir,
            from: None,
            covered,
            swapped,
        };
        match (at.old, at.new) {
            (Some(old), None) => {
                let covered = matches!(at.mode, Mode::Deleting { covered: true });
                if self.deletable(old) && !moves.takes(at.path) {
                    visit(step(Op::Delete, Some(old), None, covered, at.swapped))?;
                }
            }
            (None, Some(new)) if !new.entry.is_readable() => {}
            (None, Some(new)) => {
                if let Some(from) = moves.to(at.path) {
                    return visit(Step {
                        op: Op::Move,
                        path: at.path,
                        old: None,
                        new: Some(&new.entry),
                        dir: at.dir,
                        from: Some(from),
                        covered: false,
                        swapped: at.swapped,
                    });
                }
                let covered = at.mode == Mode::Creating;
                visit(step(Op::Create, None, Some(&new.entry), covered, at.swapped))?;
            }
            (Some(old), Some(new)) => match self.pair(old, &new.entry) {
                Pair::Same | Pair::Unknown => {}
                Pair::Attrs => visit(step(Op::Attrs, Some(old), Some(&new.entry), false, false))?,
                Pair::Content => visit(step(Op::Update, Some(old), Some(&new.entry), false, false))?,
                Pair::Kind => {
                    visit(step(Op::Delete, Some(old), None, true, true))?;
                    visit(step(Op::Create, Some(old), Some(&new.entry), false, true))?;
                }
                Pair::InTheWay(why) => {
                    conflicts.push(PathError { path: at.path.clone(), error: why.to_owned() });
                }
            },
            (None, None) => {}
        }
        Ok(())
    }

    fn descend(
        &self,
        at: At<'_, O::Handle, N::Handle>,
        moves: &Moves,
    ) -> Result<Option<Frame<O::Handle, N::Handle>>> {
        let old_dir = at.old.and_then(|o| o.dir.as_ref());
        let new_dir = at.new.and_then(|n| n.dir.as_ref());
        let load_old = || old_dir.map(|d| self.old.load(d)).transpose().map(Option::unwrap_or_default);
        let load_new = || new_dir.map(|d| self.new.load(d)).transpose().map(Option::unwrap_or_default);
        let go = |old, new, mode, swapped| {
            let mut frame = frame(at.path.clone(), old, new, mode, swapped);
            frame.dir = at.new.filter(|n| n.entry.kind() == Kind::Dir).map(|n| n.entry.clone());
            Ok(Some(frame))
        };
        match (at.old, at.new) {
            (Some(old), Some(new)) => {
                match (old.entry.kind(), new.entry.kind(), self.pair(old, &new.entry)) {
                    (Kind::Dir, Kind::Dir, _) => go(load_old()?, load_new()?, Mode::Both, false),
                    (Kind::Dir, _, Pair::Kind) => {
                        go(load_old()?, Vec::new(), Mode::Deleting { covered: true }, true)
                    }
                    (_, Kind::Dir, Pair::Kind) => go(Vec::new(), load_new()?, Mode::Creating, true),
                    _ => Ok(None),
                }
            }
            (Some(old), None) if !self.options.no_delete && !moves.takes(at.path) => {
                let covered = matches!(at.mode, Mode::Deleting { covered: true }) || !old.keeps;
                go(load_old()?, Vec::new(), Mode::Deleting { covered }, at.swapped)
            }
            (None, Some(_)) if moves.to(at.path).is_none() => {
                go(Vec::new(), load_new()?, Mode::Creating, at.swapped)
            }
            _ => Ok(None),
        }
    }

    fn deletable(&self, old: &Item<O::Handle>) -> bool {
        let unreadable_dir = !old.entry.is_readable() && old.entry.kind() == Kind::Dir;
        let kept = old.entry.kind() == Kind::Dir && old.keeps;
        !(self.options.no_delete || unreadable_dir || kept)
    }

    fn pair(&self, old: &Item<O::Handle>, new: &Entry) -> Pair {
        let unknown = |e: &Entry| !e.is_readable() && e.kind() == Kind::Dir;
        if !new.is_readable() || unknown(&old.entry) && new.kind() == Kind::Dir {
            return Pair::Unknown;
        }
        if old.entry.kind() != new.kind() {
            if old.entry.kind() != Kind::Dir {
                return Pair::Kind;
            }
            if old.keeps || !old.entry.is_readable() {
                return Pair::InTheWay(
                    "a directory with excluded, special or unreadable content is in the way",
                );
            }
            if self.options.no_delete {
                return Pair::InTheWay("a directory is in the way, and --no-delete forbids to remove it");
            }
            return Pair::Kind;
        }
        let same = match (&old.entry.node, &new.node) {
            (Node::File { digest: a, .. }, Node::File { digest: b, .. }) => a == b,
            (Node::Link { target: a }, Node::Link { target: b }) => a == b,
            (Node::Dir { .. }, _) => true,
            _ => false,
        };
        match (same, old.entry.same_attrs(new)) {
            (false, _) => Pair::Content,
            (true, false) => Pair::Attrs,
            (true, true) => Pair::Same,
        }
    }
}

enum Pair {
    Same,
    Attrs,
    Content,
    Kind,
    /// The new side could not be read: nothing is concluded.
    Unknown,
    InTheWay(&'static str),
}

struct At<'a, O, N> {
    path: &'a TreePath,
    old: Option<&'a Item<O>>,
    new: Option<&'a Item<N>>,
    mode: Mode,
    swapped: bool,
    dir: Option<&'a Entry>,
}

/// Joins two sorted listings and orders what is to be done bytewise by path.
fn frame<O, N>(
    path: TreePath,
    old: Vec<Item<O>>,
    new: Vec<Item<N>>,
    mode: Mode,
    swapped: bool,
) -> Frame<O, N> {
    let mut events = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        let order = match (old.get(i), new.get(j)) {
            (Some(o), Some(n)) => o.entry.name.cmp(&n.entry.name),
            (Some(_), None) => Ordering::Less,
            _ => Ordering::Greater,
        };
        let (o, n) = (order.is_le().then_some(i), order.is_ge().then_some(j));
        i += usize::from(o.is_some());
        j += usize::from(n.is_some());
        let (oi, ni) = (o.map(|i| &old[i]), n.map(|j| &new[j]));
        if let (Some(a), Some(b)) = (oi, ni)
            && a.entry == b.entry
        {
            continue;
        }
        events.push(Event { old: o, new: n, what: What::Own });
        if enters(oi, ni) {
            events.push(Event { old: o, new: n, what: What::Descend });
        }
    }
    let name = |e: &Event| -> &[u8] {
        match (e.old, e.new) {
            (Some(i), _) => &old[i].entry.name,
            (_, Some(j)) => &new[j].entry.name,
            _ => b"",
        }
    };
    let key = |e: &Event| {
        let slash: &[u8] = if matches!(e.what, What::Descend) { b"/" } else { b"" };
        (name(e), slash)
    };
    events.sort_by(|a, b| {
        let ((an, asl), (bn, bsl)) = (key(a), key(b));
        an.iter().chain(asl).cmp(bn.iter().chain(bsl))
    });
    Frame { path, events: events.into_iter(), mode, swapped, old, new, dir: None }
}

/// Whether anything inside can need a step.
fn enters<O, N>(old: Option<&Item<O>>, new: Option<&Item<N>>) -> bool {
    match (old, new) {
        (Some(o), Some(n)) => match (&o.entry.node, &n.entry.node) {
            (Node::Dir { object: a, .. }, Node::Dir { object: b, .. }) => a != b,
            // nothing is concluded from what cannot be read; the scan has named it
            (_, Node::Unreadable { .. }) | (Node::Unreadable { kind: Kind::Dir }, _) => false,
            _ => o.dir.is_some() || n.dir.is_some(),
        },
        (o, n) => o.is_some_and(|o| o.dir.is_some()) || n.is_some_and(|n| n.dir.is_some()),
    }
}
