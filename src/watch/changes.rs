//! What the events of a while amount to: paths, directories and whole subtrees to look at. Bounded: what gets
//! too much to name is widened (paths to their directories, directories to the tree), never dropped.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Instant;

use crate::model::TreePath;

/// Paths kept by name, and directories; above it they are widened.
const LIMIT: usize = 20_000;

/// What is known of a touched path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched {
    /// When the last event was read.
    pub last: Instant,
    /// Written to and not closed since. Stays set after a `truncate` by path, which closes nothing.
    pub open: bool,
}

/// Where to look.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Files, links and directories touched, gone or new. Their parents must be listed.
    pub paths: HashMap<TreePath, Touched>,
    /// Directories to list although no path in them is named here.
    pub dirs: HashSet<TreePath>,
    /// Directories that appeared or were renamed: everything below must be looked at and watched anew. They
    /// may be gone again.
    pub deep: HashSet<TreePath>,
    /// Look at everything, and watch it anew.
    pub all: bool,
}

impl Changes {
    /// Nothing happened.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.dirs.is_empty() && self.deep.is_empty() && !self.all
    }

    /// Adds what happened `later`.
    pub fn merge(&mut self, later: Changes) {
        self.paths.extend(later.paths);
        self.dirs.extend(later.dirs);
        self.deep.extend(later.deep);
        self.all |= later.all;
        self.bound();
    }

    /// Leaves out the paths that `keep` refuses (what a filter excludes). Directories to list stay.
    pub fn retain(&mut self, keep: impl Fn(&TreePath) -> bool) {
        self.paths.retain(|path, _| keep(path));
        self.deep.retain(keep);
    }

    /// Leaves out what happened in directories that were listed since. New directories stay: they must be watched.
    pub fn forget_in(&mut self, listed: &BTreeSet<TreePath>) {
        self.paths.retain(|path, _| !listed.contains(&parent_of(path)) && !listed.contains(path));
        self.dirs.retain(|dir| !listed.contains(dir));
    }

    /// Every directory that must be listed for this, without what lies deeper in `deep`.
    pub fn to_list(&self) -> HashSet<TreePath> {
        let parents = self.paths.keys().chain(&self.deep).map(parent_of);
        parents.chain(self.dirs.iter().chain(&self.deep).cloned()).collect()
    }

    /// Notes an event on `path`; `open` is `None` for one that says nothing of writers.
    pub(super) fn touch(&mut self, path: &TreePath, now: Instant, open: Option<bool>) {
        let touched = self.paths.entry(path.clone()).or_insert(Touched { last: now, open: false });
        touched.last = now;
        touched.open = open.unwrap_or(touched.open);
        self.bound();
    }

    pub(super) fn list(&mut self, dir: TreePath) {
        self.dirs.insert(dir);
        self.bound();
    }

    pub(super) fn descend(&mut self, dir: TreePath) {
        self.deep.insert(dir);
        self.bound();
    }

    fn bound(&mut self) {
        if self.paths.len() > LIMIT {
            self.dirs.extend(self.paths.drain().map(|(path, _)| parent_of(&path)));
        }
        if self.dirs.len() > LIMIT || self.deep.len() > LIMIT {
            self.dirs.clear();
            self.deep.clear();
            self.all = true;
        }
    }
}

fn parent_of(path: &TreePath) -> TreePath {
    path.parent().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &str) -> TreePath {
        TreePath::new(s.as_bytes()).unwrap()
    }

    #[test]
    fn too_many_paths_become_their_directories() {
        let now = Instant::now();
        let mut c = Changes::default();
        for i in 0..=LIMIT {
            c.touch(&p(&format!("d{}/f{i}", i % 3)), now, None);
        }
        assert!(c.paths.is_empty() && !c.all);
        assert_eq!(c.dirs, [p("d0"), p("d1"), p("d2")].into());
    }

    #[test]
    fn too_many_directories_become_the_tree() {
        let now = Instant::now();
        let mut c = Changes::default();
        for i in 0..=LIMIT {
            c.touch(&p(&format!("d{i}/f")), now, None);
        }
        assert!(c.all && c.paths.is_empty() && c.dirs.is_empty());
        let mut c = Changes::default();
        (0..=LIMIT).for_each(|i| c.descend(p(&format!("d{i}"))));
        assert!(c.all && c.deep.is_empty());
    }

    #[test]
    fn the_later_word_on_a_path_counts() {
        let now = Instant::now();
        let (mut a, mut b) = (Changes::default(), Changes::default());
        a.touch(&p("f"), now, Some(true));
        a.touch(&p("f"), now, None);
        assert!(a.paths[&p("f")].open, "an event that says nothing of writers closes nothing");
        b.touch(&p("f"), now, Some(false));
        b.all = true;
        a.merge(b);
        assert!(!a.paths[&p("f")].open && a.all);
    }

    #[test]
    fn what_must_be_listed_includes_the_parents() {
        let mut c = Changes::default();
        c.touch(&p("a/f"), Instant::now(), None);
        c.touch(&TreePath::root(), Instant::now(), None);
        c.descend(p("b/new"));
        c.list(p("c"));
        assert_eq!(c.to_list(), ["", "a", "b", "b/new", "c"].map(p).into());
    }

    #[test]
    fn excluded_paths_leave_nothing_behind() {
        let mut c = Changes::default();
        c.touch(&p("a/x.log"), Instant::now(), None);
        c.descend(p("logs"));
        c.retain(|path| path != &p("a/x.log") && path != &p("logs"));
        assert!(c.is_empty());
    }
}
