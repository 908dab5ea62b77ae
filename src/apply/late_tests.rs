//! What a commit that goes on after a crash does with what was written since.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rustix::io::Errno;

use super::commit::Cached;
use super::control::Control;
use super::journal::{Ident, Record, SetAttrs};
use super::ops::Ops;
use super::unplaced::Unplaced;
use crate::disk::Dir;
use crate::error::PathError;
use crate::model::TreePath;

struct Bed {
    tmp: tempfile::TempDir,
    tree: Dir,
    stage: Dir,
    grown: BTreeSet<TreePath>,
}

fn path(name: &str) -> TreePath {
    TreePath::new(name.as_bytes()).unwrap()
}

impl Bed {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let open = |name| {
            fs::create_dir(tmp.path().join(name)).unwrap();
            Dir::open_root(&tmp.path().join(name)).unwrap()
        };
        let (tree, stage) = (open("tree"), open("stage"));
        Self { tmp, tree, stage, grown: BTreeSet::new() }
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.tmp.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> Ident {
        fs::write(self.at(name), text).unwrap();
        let at = Path::new(name);
        let dir = if at.starts_with("tree") { &self.tree } else { &self.stage };
        Ident::of(&dir.stat(at.file_name().unwrap().to_str().unwrap().as_bytes()).unwrap())
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.at(name)).ok()
    }

    fn again(&self, record: &Record, late_stays: bool) -> Result<(), Errno> {
        let mut drift = BTreeSet::new();
        let mut ops = Ops {
            tree: Cached::new(&self.tree),
            stage: Cached::new(&self.stage),
            again: true,
            late_stays,
            grown: &self.grown,
            drift: &mut drift,
        };
        ops.run(record).map(drop)
    }
}

#[test]
fn a_removal_takes_what_it_was_meant_for_and_nothing_that_came_since() {
    for late_stays in [true, false] {
        let b = Bed::new();
        let old = b.write("tree/f", "old");
        let remove = Record::Remove { path: path("f"), old, row: 0 };
        assert_eq!(b.again(&remove, late_stays), Ok(()));
        assert_eq!((b.read("tree/f"), b.read("stage/f")), (None, Some("old".into())));
        // done: by what lies in the staging directory
        b.write("tree/f", "written since");
        assert_eq!(b.again(&remove, late_stays), Ok(()));
        assert_eq!(b.read("tree/f"), Some("written since".into()));
    }
}

#[test]
fn a_removal_that_was_not_done_leaves_a_new_file_and_one_that_was_written_into() {
    let b = Bed::new();
    let old = b.write("tree/f", "old");
    let remove = Record::Remove { path: path("f"), old, row: 0 };
    b.write("tree/f", "written into");
    assert_eq!(b.again(&remove, true), Err(Errno::AGAIN));
    b.write("tree/other", "another file");
    fs::rename(b.at("tree/other"), b.at("tree/f")).unwrap();
    assert_eq!(b.again(&remove, true), Ok(()));
    assert_eq!((b.read("tree/f"), b.read("stage/f")), (Some("another file".into()), None));
    // in a tree that follows another one that is drift
    assert_eq!(b.again(&remove, false), Ok(()));
    assert_eq!((b.read("tree/f"), b.read("stage/f")), (None, Some("another file".into())));
}

#[test]
fn a_directory_with_something_new_in_it_stays() {
    let mut b = Bed::new();
    fs::create_dir(b.at("tree/d")).unwrap();
    let old = Ident::of(&b.tree.stat(&b"d"[..]).unwrap());
    b.grown.insert(path("d"));
    let remove = Record::Remove { path: path("d"), old, row: 1 };
    assert_eq!(b.again(&remove, true), Err(Errno::AGAIN));
    assert!(b.at("tree/d").exists());
    b.grown.clear();
    assert_eq!(b.again(&remove, true), Ok(()));
    assert!(!b.at("tree/d").exists());
}

#[test]
fn what_shall_come_into_place_does_not_replace_what_came_since() {
    for late_stays in [true, false] {
        let b = Bed::new();
        let put = |name: &str, new, old| Record::Put {
            path: path(name),
            new,
            old,
            row: 0,
            digest: None,
            last: false,
        };
        let old = b.write("tree/changed", "old");
        let changed = put("changed", b.write("stage/changed", "new"), Some(old));
        let made = put("made", b.write("stage/made", "new"), None);
        let old = b.write("tree/same", "old");
        let same = put("same", b.write("stage/same", "new"), Some(old));
        b.write("tree/changed", "written since");
        b.write("tree/made", "made since");
        let want = if late_stays { Err(Errno::AGAIN) } else { Ok(()) };
        assert_eq!(b.again(&changed, late_stays), want);
        assert_eq!(b.again(&made, late_stays), want);
        assert_eq!(b.again(&same, late_stays), Ok(()));
        let (tree, stage) = if late_stays { ("tree", "stage") } else { ("stage", "tree") };
        assert_eq!(b.read(&format!("{tree}/changed")), Some("written since".into()));
        assert_eq!(b.read(&format!("{tree}/made")), Some("made since".into()));
        assert_eq!(b.read(&format!("{stage}/changed")), Some("new".into()));
        assert_eq!((b.read("tree/same"), b.read("stage/same")), (Some("new".into()), Some("old".into())));
    }
}

#[test]
fn a_move_does_not_replace_what_came_since() {
    let b = Bed::new();
    let id = b.write("tree/from", "moves");
    b.write("tree/to", "made since");
    let attrs = SetAttrs::default();
    let moved = Record::Move { from: path("from"), path: path("to"), id, digest: None, attrs };
    assert_eq!(b.again(&moved, true), Err(Errno::AGAIN));
    assert_eq!((b.read("tree/from"), b.read("tree/to")), (Some("moves".into()), Some("made since".into())));
    assert_eq!(b.again(&moved, false), Ok(()));
    assert_eq!((b.read("tree/to"), b.read("stage/to")), (Some("moves".into()), Some("made since".into())));
}

#[test]
fn what_did_not_come_into_place_is_handed_on_once_and_only_for_its_commit() {
    let tmp = tempfile::tempdir().unwrap();
    let control = Control::open(tmp.path()).unwrap();
    let errors =
        [("a\n\u{fc}", "no"), ("b", "attributes")].map(|(p, e)| PathError { path: path(p), error: e.into() });
    let failed = BTreeSet::from([errors[0].path.clone()]);
    let noted = Unplaced::new(7, &errors, &failed);
    noted.write(&control).unwrap();
    assert_eq!(Unplaced::read(&control, 7), Some(noted.clone()));
    let taken = super::recover(&control, None, 7, true, super::Late::Stays).unwrap().unwrap();
    assert_eq!((&taken.errors[..], &taken.failed), (&errors[..], &failed));
    assert!(super::recover(&control, None, 7, true, super::Late::Stays).unwrap().is_none());
    // of an earlier one, which its caller knows of
    noted.write(&control).unwrap();
    assert!(super::recover(&control, None, 8, true, super::Late::Stays).unwrap().is_none());
    assert_eq!(control.unplaced().unwrap(), None);
    // damage must not keep a tree from starting, and not pass for success
    fs::write(tmp.path().join(".syncagent/unplaced"), "{").unwrap();
    let taken = super::recover(&control, None, 8, true, super::Late::Stays).unwrap().unwrap();
    assert!(taken.errors[0].error.contains("damaged"), "{taken:?}");
}

/// A crash right after the drift was taken out of the directory `stage`, before the rest was put away: by that
/// directory nothing tells any more that `f` was removed.
fn drift_was_set_aside(stage: &[u8]) -> (Option<String>, super::Committed) {
    let tmp = tempfile::tempdir().unwrap();
    let control = Control::open(tmp.path()).unwrap();
    let marker = super::Marker::new();
    control.set_marker(&marker).unwrap();
    let at = |name: &str| tmp.path().join(name);
    for name in ["f", "g"] {
        fs::write(at(name), "old").unwrap();
    }
    let id = |name: &str| Ident::of(&control.root.stat(name).unwrap());
    let records = ["f", "g"].map(|name| Record::Remove { path: path(name), old: id(name), row: 0 });
    let mut journal = super::journal::JournalWriter::create(&control.dir).unwrap();
    journal.add(&Record::Begin { tree: marker.id.clone(), seq: 1, staging: None }).unwrap();
    records.iter().for_each(|r| journal.add(r).unwrap());
    drop(journal.finish().unwrap());
    // somebody changed it under the commit's hands
    fs::write(at("f"), "drift").unwrap();
    let displaced = control.dir.ensure_dir(stage, 0o700).unwrap();
    for name in [b"f", b"g"] {
        control.root.rename(name, &displaced, name).unwrap();
    }
    super::trash::set_aside(&control, &displaced, 1, [path("f")].iter()).unwrap();
    fs::write(at("f"), "written after the crash").unwrap();
    let done = super::recover(&control, None, 0, true, super::Late::Displaced).unwrap().unwrap();
    assert_eq!(fs::read_to_string(at(".syncagent/trash/1/drift/f")).unwrap(), "drift");
    assert_eq!(fs::read_to_string(at(".syncagent/trash/1/tree/g")).unwrap(), "old");
    for left in ["journal", "stage", "stage.done"] {
        assert!(!at(".syncagent").join(left).exists(), "{left} is left");
    }
    (fs::read_to_string(at("f")).ok(), done)
}

#[test]
fn what_is_written_where_drift_was_already_set_aside_stays() {
    let (f, done) = drift_was_set_aside(super::control::DONE_STAGE);
    assert_eq!(f.as_deref(), Some("written after the crash"));
    assert!(done.errors.is_empty() && done.drift.is_empty(), "{done:?}");
    // had the directory still its first name, it would be taken for something that has yet to go
    let (f, done) = drift_was_set_aside(super::control::STAGE);
    assert_eq!((f, &done.drift[..]), (None, &[path("f")][..]));
}
