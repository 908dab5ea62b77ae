use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use super::*;

/// A tree whose commit 3 displaced `d/` with files and a link, and whose commit 5 displaced `d/one` again, as drift.
fn tree() -> (tempfile::TempDir, Dir, Dir) {
    let at = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = at.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write(".syncagent/trash/3/tree/d/one", "one of 3");
    write(".syncagent/trash/3/tree/d/sub/two", "two of 3");
    write(".syncagent/trash/3/tree/made/for/the/commit/x", "x");
    symlink("sub/two", at.path().join(".syncagent/trash/3/tree/d/link")).unwrap();
    fs::remove_file(at.path().join(".syncagent/trash/3/tree/made/for/the/commit/x")).unwrap();
    fs::set_permissions(at.path().join(".syncagent/trash/3/tree/d/sub"), fs::Permissions::from_mode(0o751))
        .unwrap();
    write(".syncagent/trash/5/drift/d/one", "one of 5");
    let root = Dir::open_root(at.path()).unwrap();
    let control = root.open_child(b".syncagent").unwrap();
    (at, root, control)
}

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap()
}

fn read(at: &Path, name: &str) -> String {
    fs::read_to_string(at.join(name)).unwrap()
}

#[test]
fn files_and_links_are_listed_newest_first_by_path() {
    let (_at, _root, control) = tree();
    let mut seen = Vec::new();
    trashed(&control, &mut |t| {
        seen.push((t.commit, t.part, t.path.to_string(), t.link));
        true
    })
    .unwrap();
    let expected = [
        (5, TrashPart::Drift, "d/one", false),
        (3, TrashPart::Tree, "d/link", true),
        (3, TrashPart::Tree, "d/one", false),
        (3, TrashPart::Tree, "d/sub/two", false),
    ];
    assert_eq!(seen, expected.map(|(n, part, path, link)| (n, part, path.to_owned(), link)));
}

#[test]
fn the_newest_is_restored_or_the_commit_that_is_named() {
    let (at, root, control) = tree();
    find_trashed(&control, &path("d/one"), None)
        .unwrap()
        .restore(&root, Some(&control), &mut Vec::new())
        .unwrap();
    assert_eq!(read(at.path(), "d/one"), "one of 5");
    fs::remove_dir_all(at.path().join("d")).unwrap();
    let done = find_trashed(&control, &path("d"), Some(3))
        .unwrap()
        .restore(&root, Some(&control), &mut Vec::new())
        .unwrap();
    assert_eq!(done, Amount { files: 3, bytes: 16 });
    assert_eq!(read(at.path(), "d/one"), "one of 3");
    assert_eq!(fs::read_link(at.path().join("d/link")).unwrap(), Path::new("sub/two"));
    assert_eq!(fs::metadata(at.path().join("d/sub")).unwrap().mode() & 0o7777, 0o751);
    assert!(!at.path().join(".syncagent/restore").exists());
    // it is still there, and another commit never had it
    assert!(find_trashed(&control, &path("d/sub"), Some(3)).is_ok());
    for (missing, commit) in [("d/sub", Some(5)), ("nope", None), ("made", None)] {
        let e = find_trashed(&control, &path(missing), commit).err().unwrap();
        assert_eq!(e.class, Class::Config, "{missing}: {e}");
    }
}

#[test]
fn a_directory_fills_what_is_missing_and_replaces_nothing() {
    let (at, root, control) = tree();
    fs::create_dir_all(at.path().join("d/sub")).unwrap();
    let found = find_trashed(&control, &path("d"), Some(3)).unwrap();
    fs::write(at.path().join("d/sub/two"), "mine").unwrap();
    let e = found.restore(&root, Some(&control), &mut Vec::new()).unwrap_err();
    assert!(e.class == Class::Refused && e.what.contains("d/sub/two") && e.what.contains("--to"), "{e}");
    assert!(!at.path().join("d/one").exists(), "something was restored");
    fs::remove_file(at.path().join("d/sub/two")).unwrap();
    found.restore(&root, Some(&control), &mut Vec::new()).unwrap();
    assert_eq!(
        (read(at.path(), "d/one"), read(at.path(), "d/sub/two")),
        ("one of 3".into(), "two of 3".into())
    );
}

#[test]
fn what_else_is_in_the_directory_stays_as_it_is() {
    let (_at, _root, control) = tree();
    let other = tempfile::tempdir().unwrap();
    fs::create_dir(other.path().join("restore")).unwrap();
    fs::write(other.path().join("restore/mine"), "mine").unwrap();
    let to = Dir::open_root(other.path()).unwrap();
    find_trashed(&control, &path("d"), Some(3)).unwrap().restore(&to, None, &mut Vec::new()).unwrap();
    assert_eq!(read(other.path(), "restore/mine"), "mine");
    assert_eq!(read(other.path(), "d/sub/two"), "two of 3");
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 2);
}

#[test]
fn nothing_is_restored_through_a_link() {
    let (at, root, control) = tree();
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), at.path().join("d")).unwrap();
    let e = find_trashed(&control, &path("d/one"), None)
        .unwrap()
        .restore(&root, Some(&control), &mut Vec::new())
        .unwrap_err();
    assert_eq!(e.class, Class::Refused, "{e}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn only_what_is_older_is_freed() {
    let (at, _root, control) = tree();
    let past = Mtime { sec: 1, nsec: 0 };
    assert_eq!(empty_trash(&control, Some(past), false).unwrap(), Amount::default());
    let all = Amount { files: 4, bytes: 24 + 7 };
    let counted = empty_trash(&control, None, true).unwrap();
    assert_eq!((counted.files, counted.bytes >= 24), (all.files, true));
    assert!(find_trashed(&control, &path("d/one"), None).is_ok());
    assert_eq!(empty_trash(&control, None, false).unwrap(), counted);
    assert_eq!(fs::read_dir(at.path().join(".syncagent/trash")).unwrap().count(), 0);
}

#[test]
fn a_commit_is_dated_by_what_it_noted_and_without_that_by_its_directory() {
    let (at, _root, control) = tree();
    let old = Mtime { sec: 1_000_000_000, nsec: 5 };
    symlink("1000000000.000000005", at.path().join(".syncagent/trash/3/at")).unwrap();
    let dates = || {
        let mut seen = std::collections::BTreeMap::new();
        trashed(&control, &mut |t| {
            seen.insert(t.commit, t.at);
            true
        })
        .unwrap();
        (seen[&3], seen[&5])
    };
    let (_, drift) = dates();
    assert_eq!(dates().0, old);
    assert!(drift > old);
    // nothing later than it is of use
    fs::remove_file(at.path().join(".syncagent/trash/3/at")).unwrap();
    symlink("yesterday", at.path().join(".syncagent/trash/3/at")).unwrap();
    assert!(dates().0 > old);
    fs::remove_file(at.path().join(".syncagent/trash/3/at")).unwrap();
    symlink("1000000000.000000005", at.path().join(".syncagent/trash/3/at")).unwrap();
    // as chown -R does: the directory has another ctime
    fs::set_permissions(at.path().join(".syncagent/trash/3/tree"), fs::Permissions::from_mode(0o750))
        .unwrap();
    let before = Some(Mtime { sec: old.sec + 1, nsec: 0 });
    assert_eq!(dates().0, old);
    assert_eq!(empty_trash(&control, before, false).unwrap().files, 3);
    assert!(!at.path().join(".syncagent/trash/3").exists());
    assert!(at.path().join(".syncagent/trash/5").exists());
}

#[test]
fn what_is_being_removed_is_restored_whole_or_not_at_all() {
    let (at, root, control) = tree();
    let home = control.open(&path("trash/3")).unwrap();
    let found = find_trashed(&control, &path("d"), Some(3)).unwrap();
    let asked = std::cell::Cell::new(0);
    let stop = || asked.replace(asked.get() + 1) > 3;
    remove_part(&home, TREE, &stop).unwrap_err();
    assert!(at.path().join(".syncagent/trash/3/tree.gone").exists());
    // by who had found it before, and by who comes now
    let e = found.restore(&root, Some(&control), &mut Vec::new()).unwrap_err();
    assert!(e.what.contains("commit 3"), "{e}");
    assert!(!at.path().join("d").exists(), "a part of it was restored");
    // nor is it nothing that was there to be restored
    fs::create_dir_all(at.path().join("d/sub")).unwrap();
    for name in ["one", "link", "sub/two"] {
        let _ = fs::remove_file(at.path().join(".syncagent/trash/3/tree.gone/d").join(name));
    }
    let e = found.restore(&root, Some(&control), &mut Vec::new()).unwrap_err();
    assert!(e.what.contains("commit 3"), "{e}");
    fs::remove_dir_all(at.path().join("d")).unwrap();
    assert!(find_trashed(&control, &path("d"), Some(3)).is_err());
    // what is left of it goes, too
    assert_eq!(empty_trash(&control, None, false).unwrap(), Amount { files: 1, bytes: 8 });
    assert_eq!(fs::read_dir(at.path().join(".syncagent/trash")).unwrap().count(), 0);
}
