//! Properties of the difference over random trees in memory: carried out, the plan of `a` and `b` makes
//! `a` what `b` is; it is sorted; no path has two steps unless its kind changes.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::error::Result;
use crate::model::{Digest, Entry, Mtime, Name, Object, Owner, TreePath};

/// A tree by path, the root not in it. A directory's digests are made when it is loaded.
type Tree = BTreeMap<TreePath, Entry>;

/// A tree that can be walked, and what of it must stay.
struct Mem {
    tree: Tree,
    /// Directories in which something excluded lies.
    keeps: BTreeSet<TreePath>,
}

fn children<'t>(tree: &'t Tree, dir: &TreePath) -> Vec<(&'t TreePath, &'t Entry)> {
    let inside = |p: &&TreePath| p.parent().as_ref() == Some(dir);
    let paths = tree.keys().filter(inside);
    let mut out: Vec<_> = paths.map(|p| (p, &tree[p])).collect();
    out.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    out
}

fn object(tree: &Tree, dir: &TreePath) -> Object {
    let entries = children(tree, dir).into_iter().map(|(path, entry)| with_digests(tree, path, entry));
    Object { entries: entries.collect() }
}

fn with_digests(tree: &Tree, path: &TreePath, entry: &Entry) -> Entry {
    let mut entry = entry.clone();
    if let Node::Dir { .. } = entry.node {
        let object = object(tree, path);
        entry.node = Node::Dir { object: Digest::of(&object.encode()), content: object.content() };
    }
    entry
}

impl Side for Mem {
    type Handle = TreePath;

    fn load(&self, dir: &TreePath) -> Result<Vec<Item<TreePath>>> {
        let item = |(path, entry): (&TreePath, &Entry)| Item {
            shared: false,
            entry: with_digests(&self.tree, path, entry),
            dir: matches!(entry.node, Node::Dir { .. }).then(|| path.clone()),
            keeps: self.keeps.iter().any(|k| k.is_within(path))
                || (!entry.is_readable() && entry.kind() == Kind::Dir),
            id: None,
        };
        Ok(children(&self.tree, dir).into_iter().map(item).collect())
    }
}

/// A small generator (splitmix64): the same trees in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    fn of<'x, T>(&mut self, all: &'x [T]) -> &'x T {
        &all[self.below(all.len())]
    }
}

/// Names around `/` in the order of bytes, and one above.
const NAMES: [&[u8]; 7] = [b"a", b"a-", b"a.b", b"a b", b"a0", b"b", b"\xff"];

fn node(r: &mut Random) -> Node {
    match r.below(10) {
        0..=3 => Node::Dir { object: Digest([0; 32]), content: Digest([0; 32]) },
        4 => Node::Link { target: Box::from(&[b'a' + r.below(3) as u8][..]) },
        _ => {
            let bytes = vec![b'x'; r.below(4)];
            Node::File { size: bytes.len() as u64, digest: Digest::of(&bytes) }
        }
    }
}

fn entry(r: &mut Random, name: Name) -> Entry {
    let node = node(r);
    let is_link = matches!(node, Node::Link { .. });
    Entry {
        name,
        mode: if is_link { 0o777 } else { *r.of(&[0o644, 0o755]) },
        mtime: Mtime { sec: r.below(2) as i64, nsec: 0 },
        owner: Owner::default(),
        node,
    }
}

/// A path in a directory of the tree.
fn somewhere(r: &mut Random, tree: &Tree) -> TreePath {
    let mut dirs = vec![TreePath::root()];
    let is_dir = |e: &&Entry| matches!(e.node, Node::Dir { .. });
    dirs.extend(tree.iter().filter(|(_, e)| is_dir(e)).map(|(p, _)| p.clone()));
    let dir = r.of(&dirs).clone();
    let name: &&[u8] = r.of(&NAMES);
    dir.join(&Name::new(name).unwrap())
}

fn cut(tree: &mut Tree, path: &TreePath) -> Vec<(TreePath, Entry)> {
    let inside: Vec<TreePath> = tree.keys().filter(|p| p.is_within(path)).cloned().collect();
    let take = |p: TreePath| tree.remove(&p).map(|e| (p, e));
    inside.into_iter().filter_map(take).collect()
}

/// Puts what was cut at `from` under `to`.
fn paste(tree: &mut Tree, from: &TreePath, to: &TreePath, what: &[(TreePath, Entry)]) {
    for (path, entry) in what {
        let rest = &path.as_bytes()[from.as_bytes().len()..];
        let new = TreePath::new(&[to.as_bytes(), rest].concat()).unwrap();
        let name = new.name().unwrap();
        tree.insert(new, Entry { name, ..entry.clone() });
    }
}

fn grow(r: &mut Random, tree: &mut Tree, n: usize) {
    for _ in 0..n {
        let path = somewhere(r, tree);
        cut(tree, &path);
        let name = path.name().unwrap();
        tree.insert(path, entry(r, name));
    }
}

/// Renames, copies, deletes, replaces.
fn mutate(r: &mut Random, tree: &mut Tree, n: usize) {
    for _ in 0..n {
        let paths: Vec<TreePath> = tree.keys().cloned().collect();
        if paths.is_empty() {
            return grow(r, tree, 4);
        }
        let path = r.of(&paths).clone();
        match r.below(8) {
            // a copy of what is in a directory, and the directory moved
            7 if path.parent().is_some_and(|p| !p.is_root()) => {
                let what = cut(tree, &path);
                paste(tree, &path, &path, &what);
                let to = somewhere(r, tree);
                let dir = path.parent().unwrap_or_default();
                if !to.is_within(&path) && !path.is_within(&to) {
                    cut(tree, &to);
                    paste(tree, &path, &to, &what);
                    let all = cut(tree, &dir);
                    let to = somewhere(r, tree);
                    cut(tree, &to);
                    paste(tree, &dir, &to, &all);
                }
            }
            0 => drop(cut(tree, &path)),
            1 | 2 => {
                let what = cut(tree, &path);
                let to = somewhere(r, tree);
                cut(tree, &to);
                paste(tree, &path, &to, &what);
            }
            3 => {
                let what = cut(tree, &path);
                paste(tree, &path, &path, &what);
                let to = somewhere(r, tree);
                if !to.is_within(&path) {
                    cut(tree, &to);
                    paste(tree, &path, &to, &what);
                }
            }
            4 => tree.get_mut(&path).unwrap().mtime.sec ^= 1,
            _ => grow(r, tree, 1),
        }
        // what was cut may have held the directory of what was pasted
        let orphan = |p: &TreePath, t: &Tree| {
            let parent = p.parent().unwrap_or_default();
            let is_dir = |e: &Entry| matches!(e.node, Node::Dir { .. });
            !parent.is_root() && !t.get(&parent).is_some_and(is_dir)
        };
        while let Some(p) = tree.keys().find(|p| orphan(p, tree)).cloned() {
            cut(tree, &p);
        }
    }
}

/// A step that outlives the walk.
#[derive(Clone, Debug, PartialEq)]
struct Owned {
    op: Op,
    path: TreePath,
    kind: Kind,
    entry: Entry,
    from: Option<TreePath>,
    line: String,
}

struct Plan {
    steps: Vec<Owned>,
    conflicts: Vec<TreePath>,
}

fn plan(a: &Mem, b: &Mem, options: Options) -> Plan {
    let diff = Diff { old: a, old_root: Some(TreePath::root()), new: b, new_root: TreePath::root(), options };
    let moves = find_moves(&diff, &mut |_| ()).unwrap().moves;
    let mut steps = Vec::new();
    let conflicts = diff
        .walk(&moves, &mut |step| {
            steps.push(Owned {
                op: step.op,
                path: step.path.clone(),
                kind: step.kind(),
                entry: step.subject().clone(),
                from: step.from.map(|m| m.path.clone()),
                line: step.to_string(),
            });
            Ok(())
        })
        .unwrap();
    let mut again = Vec::new();
    diff.walk(&moves, &mut |step| {
        again.push(step.to_string());
        Ok(())
    })
    .unwrap();
    let lines: Vec<&String> = steps.iter().map(|s| &s.line).collect();
    assert_eq!(lines, again.iter().collect::<Vec<_>>(), "two walks differ");
    Plan { steps, conflicts: conflicts.into_iter().map(|c| c.path).collect() }
}

/// Carries steps out as a commit does: moves in order, then what goes, then what comes.
fn apply(a: &Tree, steps: &[Owned]) -> Tree {
    let mut tree = a.clone();
    let mut moved = Vec::new();
    for s in steps.iter().filter(|s| s.op == Op::Move) {
        let from = s.from.as_ref().unwrap();
        let what = cut(&mut tree, from);
        assert!(!what.is_empty(), "{}: its origin is gone", s.line);
        moved.push((s, from, what));
    }
    for s in steps.iter().filter(|s| s.op == Op::Delete) {
        let gone = tree.remove(&s.path);
        assert!(gone.is_some(), "{}: it is not there", s.line);
    }
    for s in steps {
        match s.op {
            Op::Create => {
                let old = tree.insert(s.path.clone(), s.entry.clone());
                assert!(old.is_none(), "{}: something is there", s.line);
            }
            Op::Update | Op::Attrs => {
                let old = tree.insert(s.path.clone(), s.entry.clone());
                let kind = old.map(|o| o.kind());
                assert_eq!(kind, Some(s.kind), "{}", s.line);
            }
            Op::Move | Op::Delete => {}
        }
    }
    for (s, from, what) in moved {
        assert!(!tree.contains_key(&s.path), "{}: something is there", s.line);
        paste(&mut tree, from, &s.path, &what);
        tree.insert(s.path.clone(), s.entry.clone());
    }
    tree
}

/// Without the digests of directories, which are made new when a tree is loaded.
fn flat(tree: &Tree) -> BTreeMap<String, String> {
    let show = |e: &Entry| {
        let node = match &e.node {
            Node::Dir { .. } => "dir".to_owned(),
            other => format!("{other:?}"),
        };
        format!("{:o} {:?} {node}", e.mode, e.mtime)
    };
    let line = |(p, e): (&TreePath, &Entry)| (p.to_string(), show(e));
    tree.iter().map(line).collect()
}

fn mem(tree: Tree) -> Mem {
    Mem { tree, keeps: BTreeSet::new() }
}

fn check_form(steps: &[Owned]) {
    for pair in steps.windows(2) {
        let (x, y) = (&pair[0], &pair[1]);
        let swap = x.op == Op::Delete && y.op == Op::Create && x.kind != y.kind;
        let sorted = x.path < y.path || (x.path == y.path && swap);
        assert!(sorted, "{} before {}", x.line, y.line);
    }
}

fn two_trees(r: &mut Random) -> (Tree, Tree) {
    let mut a = Tree::new();
    let (size, changes) = (r.below(16), r.below(8));
    grow(r, &mut a, size);
    let mut b = a.clone();
    match r.below(8) {
        0 => {
            b.clear();
            grow(r, &mut b, size);
        }
        _ => mutate(r, &mut b, changes),
    }
    (a, b)
}

const CASES: u64 = 6000;

#[test]
fn the_difference_of_two_trees_makes_the_one_the_other() {
    let mut seen = BTreeSet::new();
    for seed in 0..CASES {
        let (a, b) = two_trees(&mut Random(seed));
        let (a, b) = (mem(a), mem(b));
        let plan = plan(&a, &b, Options::default());
        check_form(&plan.steps);
        assert!(plan.conflicts.is_empty(), "seed {seed}");
        let result = apply(&a.tree, &plan.steps);
        assert_eq!(flat(&result), flat(&b.tree), "seed {seed}: {:#?}", lines(&plan));
        seen.extend(plan.steps.iter().map(|s| (s.op, s.kind)));
        // and then there is nothing left to do
        let rest = self::plan(&mem(result), &b, Options::default());
        assert_eq!(lines(&rest), Vec::<String>::new(), "seed {seed}");
    }
    // all of it was tried: every operation on every kind, moved links and updated directories aside
    assert_eq!(seen.len(), 3 * 5 - 2, "{seen:?}");
}

fn lines(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|s| s.line.clone()).collect()
}

#[test]
fn equal_trees_need_no_steps_and_a_tree_from_nothing_only_creations() {
    for seed in 0..500 {
        let (a, _) = two_trees(&mut Random(seed));
        let (x, y) = (mem(a.clone()), mem(a.clone()));
        assert_eq!(lines(&plan(&x, &y, Options::default())), Vec::<String>::new());
        let made = plan(&mem(Tree::new()), &y, Options::default());
        check_form(&made.steps);
        assert!(made.steps.iter().all(|s| s.op == Op::Create));
        assert_eq!(made.steps.len(), a.len());
        let gone = plan(&x, &mem(Tree::new()), Options::default());
        check_form(&gone.steps);
        assert!(gone.steps.iter().all(|s| s.op == Op::Delete));
        assert_eq!(gone.steps.len(), a.len());
    }
}

#[test]
fn without_deletions_everything_that_only_the_old_tree_has_stays() {
    let mut conflicts = 0;
    for seed in 0..CASES {
        let (a, b) = two_trees(&mut Random(seed));
        let (a, b) = (mem(a), mem(b));
        let plan = plan(&a, &b, Options { no_delete: true });
        check_form(&plan.steps);
        conflicts += plan.conflicts.len();
        let result = apply(&a.tree, &plan.steps);
        let blocked = |p: &TreePath| plan.conflicts.iter().any(|c| p.is_within(c));
        for (path, entry) in &b.tree {
            let want = if blocked(path) { a.tree.get(path) } else { Some(entry) };
            let one = |e: Option<&Entry>| e.map(|e| flat(&Tree::from([(path.clone(), e.clone())])));
            assert_eq!(one(result.get(path)), one(want), "seed {seed}: {path}");
        }
        for (path, old) in &a.tree {
            let now = result.get(path).map(Entry::kind);
            // a file or link may become something else, but nothing may be missing
            let is = now.is_some() && (now == Some(old.kind()) || old.kind() != Kind::Dir);
            assert!(is, "seed {seed}: {path} was lost: {:#?}", lines(&plan));
        }
        for s in plan.steps.iter().filter(|s| s.op == Op::Delete) {
            assert_ne!(s.kind, Kind::Dir, "seed {seed}: {}", s.line);
        }
    }
    assert!(conflicts > 50, "only {conflicts} directories were in the way");
}

#[test]
fn directories_that_hold_excluded_content_stay_and_the_rest_is_right() {
    let mut conflicts = 0;
    for seed in 0..CASES {
        let r = &mut Random(seed);
        let (a, b) = two_trees(r);
        let dirs: Vec<TreePath> =
            a.iter().filter(|(_, e)| e.kind() == Kind::Dir).map(|(p, _)| p.clone()).collect();
        let mut keeps = BTreeSet::new();
        for d in &dirs {
            if r.below(4) == 0 {
                keeps.insert(d.clone());
            }
        }
        let (a, b) = (Mem { tree: a, keeps }, mem(b));
        let plan = plan(&a, &b, Options::default());
        check_form(&plan.steps);
        conflicts += plan.conflicts.len();
        let result = apply(&a.tree, &plan.steps);
        let stays = |p: &TreePath| a.keeps.iter().any(|k| k.is_within(p));
        for dir in dirs.iter().filter(|d| stays(d)) {
            let kind = result.get(dir).map(Entry::kind);
            assert_eq!(kind, Some(Kind::Dir), "seed {seed}: {dir} went: {:#?}", lines(&plan));
            let moved = |s: &&Owned| s.from.as_ref() == Some(dir);
            assert!(!plan.steps.iter().any(|s| moved(&s)), "seed {seed}: {dir} moved");
        }
        let blocked = |p: &TreePath| plan.conflicts.iter().any(|c| p.is_within(c));
        let mut want = b.tree.clone();
        want.retain(|p, _| !blocked(p));
        for (path, entry) in &a.tree {
            if blocked(path) || (stays(path) && !want.contains_key(path)) {
                want.insert(path.clone(), entry.clone());
            }
        }
        assert_eq!(flat(&result), flat(&want), "seed {seed}: {:#?}", lines(&plan));
    }
    assert!(conflicts > 50, "only {conflicts} directories were in the way");
}

#[test]
fn nothing_is_concluded_from_what_cannot_be_read_in_the_new_tree() {
    let mut unreadable = 0;
    for seed in 0..CASES {
        let r = &mut Random(seed);
        let (a, mut b) = two_trees(r);
        let paths: Vec<TreePath> = b.keys().cloned().collect();
        let mut closed = Vec::new();
        for path in paths {
            if r.below(6) == 0 && b.contains_key(&path) {
                let kind = b[&path].kind();
                let mut what = cut(&mut b, &path);
                let mut entry = what.swap_remove(0).1;
                entry.node = Node::Unreadable { kind };
                b.insert(path.clone(), entry);
                closed.push(path);
            }
        }
        unreadable += closed.len();
        let (a, b) = (mem(a), mem(b));
        let plan = plan(&a, &b, Options::default());
        check_form(&plan.steps);
        let result = apply(&a.tree, &plan.steps);
        let hidden = |p: &TreePath| closed.iter().any(|c| p.is_within(c));
        let parent_is_dir = |p: &TreePath| {
            let parent = p.parent().unwrap_or_default();
            parent.is_root() || b.tree.get(&parent).is_some_and(|e| e.kind() == Kind::Dir)
        };
        let mut want = b.tree.clone();
        want.retain(|p, _| !hidden(p));
        for (path, entry) in &a.tree {
            // below a directory that was made anew, or moved there, nothing old can be
            if hidden(path) && closed.iter().any(|c| path.is_within(c) && parent_is_dir(c)) {
                want.insert(path.clone(), entry.clone());
            }
        }
        assert_eq!(flat(&result), flat(&want), "seed {seed}: {:#?}", lines(&plan));
    }
    assert!(unreadable > 1000, "only {unreadable} were unreadable");
}

#[test]
fn the_plan_id_names_the_losses_and_nothing_else() {
    for seed in 0..1000 {
        let (a, b) = two_trees(&mut Random(seed));
        let (a, b) = (mem(a), mem(b));
        let tally = |x: &Mem, y: &Mem| {
            let diff = Diff {
                old: x,
                old_root: Some(TreePath::root()),
                new: y,
                new_root: TreePath::root(),
                options: Options::default(),
            };
            let moves = find_moves(&diff, &mut |_| ()).unwrap().moves;
            let mut tally = Tally::new(false);
            diff.walk(&moves, &mut |step| {
                tally.add(&step);
                Ok(())
            })
            .unwrap();
            tally
        };
        let one = tally(&a, &b);
        assert_eq!(one.plan_id(), tally(&a, &b).plan_id());
        let none = Tally::new(false).plan_id();
        assert_eq!(one.plan_id() == none, one.deleted == 0 && one.lost == 0, "seed {seed}");
        let steps = plan(&a, &b, Options::default()).steps;
        let count = |op| steps.iter().filter(|s| s.op == op).count() as u64;
        let counted = [one.created, one.updated, one.attrs, one.moved, one.deleted];
        let ops = [Op::Create, Op::Update, Op::Attrs, Op::Move, Op::Delete];
        assert_eq!(counted, ops.map(count), "seed {seed}");
    }
}
