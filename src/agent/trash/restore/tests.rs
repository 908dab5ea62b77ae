use std::fs;
use std::path::Path;

use super::super::TrashOrder;
use super::*;
use crate::disk::Dir;

fn write(at: &Path, path: &str, text: &str) {
    let path = at.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A tree whose commit 3 displaced `p/q/f`, `p/old` and `a`, and whose commit 5 displaced `p/new`.
fn tree() -> tempfile::TempDir {
    let at = tempfile::tempdir().unwrap();
    for (path, text) in
        [("3/tree/p/q/f", "f"), ("3/tree/p/old", "old"), ("3/tree/a", "a"), ("5/tree/p/new", "new")]
    {
        write(at.path(), &format!(".syncagent/trash/{path}"), text);
    }
    at
}

/// Something that nothing can copy, as commit 3 displaced it.
fn broken(at: &Path, path: &str) {
    let path = at.join(".syncagent/trash/3/tree").join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
}

fn restore_in(at: &Path, into: Into, paths: &[&str], of: Option<&str>, to: Option<&Path>) -> Result<u64> {
    use std::os::unix::ffi::OsStrExt as _;
    let root = Dir::open_root(at).unwrap();
    let control = root.open_child(b".syncagent").unwrap();
    let order = TrashOrder::Restore {
        paths: paths.iter().map(|p| TreePath::new(p.as_bytes()).unwrap()).collect(),
        of: of.map(str::to_owned),
        to: to.map(|to| to.as_os_str().as_bytes().to_vec()),
    };
    let done = Trash { root: &root, control: &control, generation: &|_| None, into }.carry_out(&order)?;
    let TrashAnswer::Done { files, .. } = done else { panic!("{done:?}") };
    Ok(files)
}

fn restore(at: &Path, paths: &[&str], of: Option<&str>) -> Result<u64> {
    restore_in(at, Into::Allowed, paths, of, None)
}

fn is_empty(at: &Path) -> bool {
    fs::read_dir(at).unwrap().flatten().all(|e| e.file_name() == ".syncagent")
}

#[test]
fn paths_named_twice_or_within_others_are_restored_once() {
    let at = tree();
    assert_eq!(restore(at.path(), &["a", "a"], None).unwrap(), 1);
    assert_eq!(restore(at.path(), &["p/q/f", "p", "p/q", "p/old"], Some("3")).unwrap(), 2);
    assert_eq!(fs::read(at.path().join("p/q/f")).unwrap(), b"f");
}

#[test]
fn what_another_commit_displaced_in_a_directory_comes_back_too() {
    let at = tree();
    // the newest that displaced anything of p has only p/new
    assert_eq!(restore(at.path(), &["p/q/f", "p"], None).unwrap(), 2);
    assert!(at.path().join("p/q/f").exists() && at.path().join("p/new").exists());
    assert!(!at.path().join("p/old").exists());
}

#[test]
fn two_commits_with_something_at_one_place_are_refused_before_anything_is_done() {
    let at = tree();
    write(at.path(), ".syncagent/trash/5/tree/p/q", "a file where commit 3 has a directory");
    let e = restore(at.path(), &["a", "p/q/f", "p"], None).unwrap_err();
    assert!(e.class == Class::Refused && e.what.contains("both have p/q;"), "{e}");
    assert!(e.what.contains("nothing was changed") && is_empty(at.path()), "{e}");
}

#[test]
fn an_error_of_a_later_path_says_what_is_in_place() {
    let at = tree();
    broken(at.path(), "z");
    let e = restore(at.path(), &["z", "a"], None).unwrap_err();
    assert!(at.path().join("a").exists());
    assert!(e.what.contains("a came back") && e.what.contains("restore z"), "{e}");
    assert!(!e.what.contains("nothing was changed"), "{e}");
}

#[test]
fn directories_made_for_what_does_not_come_back_go_again_unless_something_is_in_them() {
    let at = tree();
    broken(at.path(), "x/y/z");
    restore(at.path(), &["x/y/z"], None).unwrap_err();
    assert!(is_empty(at.path()));
    // what was there before, and where something came into place, stays
    fs::create_dir(at.path().join("x")).unwrap();
    restore(at.path(), &["x/y/z"], None).unwrap_err();
    assert!(at.path().join("x").exists() && !at.path().join("x/y").exists());
    broken(at.path(), "p/q/z");
    fs::create_dir(at.path().join("p")).unwrap();
    restore(at.path(), &["p/q/f", "p/q/z"], None).unwrap_err();
    assert_eq!(fs::read_dir(at.path().join("p/q")).unwrap().count(), 1);
}

#[test]
fn nothing_is_put_among_our_own_files_or_into_a_mirror() {
    let at = tree();
    let other = tempfile::tempdir().unwrap();
    let link = other.path().join("link");
    std::os::unix::fs::symlink(at.path().join(".syncagent"), &link).unwrap();
    let mirror = || Into::Refused("it is a mirror".into());
    let own = at.path().join(".syncagent");
    for (to, into) in [
        (own.join("keep"), Into::Allowed),
        (own.clone(), Into::Allowed),
        (link.join("keep/89"), Into::Allowed),
        (other.path().join("tree/.syncagent/trash"), Into::Allowed),
        (at.path().to_owned(), mirror()),
        (at.path().join("not/there"), mirror()),
    ] {
        let e = restore_in(at.path(), into, &["a"], None, Some(&to)).unwrap_err();
        assert!(e.class == Class::Refused && e.what.contains("nothing was changed"), "{e}");
        assert!(e.what.contains(if to.starts_with(&own) { ".syncagent, where" } else { "lies in" }), "{e}");
    }
    assert_eq!(fs::read_dir(&own).unwrap().count(), 1);
    assert!(is_empty(at.path()) && !other.path().join("tree").exists());
    assert_eq!(
        restore_in(at.path(), mirror(), &["a"], None, Some(&other.path().join("new/dir"))).unwrap(),
        1
    );
    // of a source's own tree it is a change like any other
    assert_eq!(restore_in(at.path(), Into::Allowed, &["a"], None, Some(&at.path().join("sub"))).unwrap(), 1);
}
