//! Guards: what a run refuses to do, and what lets it through.

use std::process::Command;

use crate::support::{Mounted, Ran, Scratch, chmod, full_stat, needs_root, program, settle, snapshot};

/// `n` files in SRC and DST.
fn filled(n: usize) -> Scratch {
    let s = Scratch::new();
    for i in 0..n {
        s.write(format!("src/f{i:03}"), format!("content {i}"));
    }
    s.sync(["-q"]).code(0);
    s
}

fn remove_first(s: &Scratch, n: usize) {
    for i in 0..n {
        s.remove(format!("src/f{i:03}"));
    }
}

/// The plan id in the command that a refusal prints.
#[track_caller]
fn plan_id(ran: &Ran) -> String {
    let line = ran.err.lines().find(|l| l.contains("--approve")).unwrap();
    let mut words = line.split_whitespace();
    words.find(|w| *w == "--approve").unwrap();
    words.next().unwrap().to_owned()
}

#[track_caller]
fn assert_refused(s: &Scratch, args: &[&str]) -> Ran {
    let before = full_stat(&s.dst());
    let ran = s.sync(args).code(4);
    assert_eq!(ran.out, "", "a refusal prints no summary");
    assert!(ran.err.contains("refused"), "{}", ran.err);
    let same = |stat: &Vec<String>| {
        let of_tree = |l: &&String| !l.contains(".syncagent");
        let lines: Vec<String> = stat.iter().filter(of_tree).cloned().collect();
        // the root's own times move when .syncagent comes or goes
        lines[1.min(lines.len())..].to_vec()
    };
    assert_eq!(same(&full_stat(&s.dst())), same(&before), "DST was touched");
    ran
}

#[test]
fn a_quarter_of_the_files_may_go_and_no_more() {
    let s = filled(100);
    remove_first(&s, 25);
    s.sync(["-q"]).code(0);
    assert_eq!(snapshot(&s.dst()).len(), 76, "75 files and the root");
    // 19 of 75 are 25.3 %
    for i in 25..44 {
        s.remove(format!("src/f{i:03}"));
    }
    let ran = assert_refused(&s, &[]);
    assert!(ran.err.contains("19 of 75"), "{}", ran.err);
    s.write("src/f025", "content 25");
    s.sync(["-q"]).code(0);
    s.assert_synced([""; 0]);
}

#[test]
fn the_default_limit_does_not_bite_below_ten_deletions() {
    let s = filled(12);
    remove_first(&s, 9);
    s.sync(["-q"]).code(0);
    let s = filled(12);
    remove_first(&s, 10);
    assert_refused(&s, &[]);
}

#[test]
fn max_delete_as_a_number_is_exact() {
    let s = filled(8);
    remove_first(&s, 4);
    assert_refused(&s, &["--max-delete", "3"]);
    assert_refused(&s, &["--max-delete", "0"]);
    s.sync(["-q", "--max-delete", "4"]).code(0);
    s.assert_synced([""; 0]);
}

#[test]
fn max_delete_as_a_percentage_is_exact() {
    let s = filled(40);
    remove_first(&s, 20);
    assert_refused(&s, &["--max-delete", "49.9%"]);
    assert_refused(&s, &["--max-delete=0%"]);
    s.sync(["-q", "--max-delete", "50%"]).code(0);
    s.assert_synced([""; 0]);
    for bad in ["x", "-1", "101%", "5 %%", ""] {
        s.sync([format!("--max-delete={bad}")]).code(2);
    }
}

#[test]
fn zero_percent_forbids_even_one_deletion() {
    let s = filled(40);
    remove_first(&s, 1);
    assert_refused(&s, &["--max-delete", "0%"]);
}

#[test]
fn only_the_exact_plan_is_approved() {
    let s = filled(40);
    remove_first(&s, 20);
    let first = plan_id(&assert_refused(&s, &[]));
    assert_eq!(first, plan_id(&assert_refused(&s, &[])), "it is stable");
    assert_refused(&s, &["--approve", "0123456789abcdef"]);
    // one more file goes: another plan
    s.remove("src/f020");
    let second = plan_id(&assert_refused(&s, &["--approve", &first]));
    assert_ne!(first, second);
    // the same number, another file
    s.write("src/f020", "content 20");
    s.remove("src/f021");
    let third = plan_id(&assert_refused(&s, &["--approve", &second]));
    assert!(![&first, &second].contains(&&third));
    // what does not delete does not change the id
    s.write("src/new", "new");
    s.write("src/f039", "changed");
    assert_eq!(third, plan_id(&assert_refused(&s, &["--approve", &first])));
    s.sync(["-q", "--approve", &third]).code(0);
    s.assert_synced([""; 0]);
}

#[test]
fn what_is_no_plan_id_exits_2() {
    let s = filled(1);
    for bad in ["", "xyz", "0123456789abcde", "+123456789abcdef"] {
        s.sync([format!("--approve={bad}")]).code(2);
    }
}

#[test]
fn a_deletion_beside_the_approved_ones_is_refused_also_when_moved_meanwhile() {
    let s = filled(40);
    remove_first(&s, 20);
    let id = plan_id(&assert_refused(&s, &[]));
    s.rename("src/f030", "src/renamed");
    // a move is no deletion: the same losses
    s.sync(["-q", "--approve", &id]).code(0);
    s.assert_synced([""; 0]);
}

/// Runs a printed command line through a shell, `syncagent` being the program under test.
fn run_printed(s: &Scratch, line: &str) -> Ran {
    let bin = s.path().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let _ = std::os::unix::fs::symlink(program(), bin.join("syncagent"));
    Command::new("sh")
        .arg("-c")
        .arg(line)
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("SYNCAGENT_STATE_DIR", s.path().join("state"))
        .current_dir(s.path())
        .output()
        .unwrap()
        .into()
}

fn printed(ran: &Ran) -> String {
    ran.err
        .lines()
        .find(|l| l.trim_start().starts_with("syncagent sync"))
        .unwrap_or_else(|| panic!("no command in: {}", ran.err))
        .trim()
        .to_owned()
}

#[test]
fn the_command_that_a_refusal_prints_works_as_it_stands() {
    let s = Scratch::new();
    for i in 0..20 {
        s.write(format!("a b'c/f{i:02}"), format!("{i}"));
    }
    s.write("a b'c/keep me", "x");
    let sync = |args: &[&str]| -> Ran {
        s.command("sync").args(["a b'c", "d $x/"]).args(args).current_dir(s.path()).output().unwrap().into()
    };
    sync(&[]).code(0);
    for i in 0..20 {
        s.remove(format!("a b'c/f{i:02}"));
    }
    let args = ["--exclude", "*.log file", "--keep=2", "-i"];
    let ran = sync(&args).code(4);
    let line = printed(&ran);
    assert!(line.contains(&plan_id(&ran)), "{line}");
    let ran = run_printed(&s, &line).code(0);
    assert_eq!(ran.plan().len(), 20, "{}", ran.out);
    assert!(!s.exists("d $x/f00") && s.exists("d $x/keep me"));
}

#[test]
fn the_command_printed_again_replaces_an_outdated_approval() {
    let s = filled(20);
    remove_first(&s, 15);
    let stale = s.sync(["--approve", "0123456789abcdef"]).code(4);
    assert_eq!(printed(&stale).matches("--approve").count(), 1);
    run_printed(&s, &printed(&stale)).code(0);
    let s = filled(20);
    remove_first(&s, 15);
    let stale = s.sync(["--approve=0123456789abcdef"]).code(4);
    assert_eq!(printed(&stale).matches("--approve").count(), 1);
    run_printed(&s, &printed(&stale)).code(0);
    s.assert_synced([""; 0]);
}

#[test]
fn the_command_printed_by_a_refused_dry_run_really_runs() {
    for flags in [&["-n"][..], &["--dry-run"], &["-n", "-i"], &["-in"], &["-niq"]] {
        let s = filled(20);
        remove_first(&s, 15);
        let line = printed(&s.sync(flags).code(4));
        run_printed(&s, &line).code(0);
        assert!(!s.exists("dst/f000"), "{flags:?}: {line}");
    }
}

#[test]
fn the_printed_command_names_paths_that_are_not_utf8() {
    use std::os::unix::ffi::OsStrExt as _;
    let s = Scratch::new();
    let name = std::ffi::OsStr::from_bytes(b"d\xff");
    for i in 0..20 {
        s.write(format!("src/{i}"), "x");
    }
    let sync = || -> std::process::Output {
        let mut c = s.command("sync");
        c.arg("src").arg(name).current_dir(s.path());
        c.output().unwrap()
    };
    assert_eq!(sync().status.code(), Some(0));
    s.remove("src");
    s.write("src/one", "1");
    let out = sync();
    assert_eq!(out.status.code(), Some(4));
    let mut lines = out.stderr.split(|&b| b == b'\n');
    let line = lines.find(|l| l.trim_ascii_start().starts_with(b"syncagent sync")).unwrap();
    let bin = s.path().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::os::unix::fs::symlink(program(), bin.join("syncagent")).unwrap();
    let ran: Ran = Command::new("bash")
        .arg("-c")
        .arg(std::ffi::OsStr::from_bytes(line))
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("SYNCAGENT_STATE_DIR", s.path().join("state"))
        .current_dir(s.path())
        .output()
        .unwrap()
        .into();
    ran.code(0);
    assert!(s.path().join(name).join("one").exists());
}

#[test]
fn a_dry_run_of_a_refused_plan_prints_it_and_exits_4() {
    let s = filled(20);
    remove_first(&s, 15);
    let before = full_stat(s.path());
    let ran = s.sync(["-n"]).code(4);
    let want: Vec<String> = (0..15).map(|i| format!("delete file f{i:03}")).collect();
    assert_eq!(ran.plan(), want);
    assert!(ran.err.contains("--approve"), "{}", ran.err);
    let changed = |stat: Vec<String>| {
        let kept = |l: &String| !l.contains("/state") && !l.contains("/.syncagent");
        stat.into_iter().filter(kept).collect::<Vec<_>>()
    };
    assert_eq!(changed(full_stat(s.path())), changed(before));
    let json = s.sync(["-n", "--json"]).code(4);
    let summary = json.summary();
    assert_eq!(summary["deleted"], 15);
    assert_eq!(summary["refused"]["plan_id"], summary["plan_id"]);
    assert_eq!(summary["plan_id"], plan_id(&ran).as_str());
}

#[test]
fn files_replaced_by_empty_ones_count_as_deletions() {
    let s = filled(40);
    for i in 0..11 {
        s.write(format!("src/f{i:03}"), "");
    }
    let ran = assert_refused(&s, &[]);
    assert!(ran.err.contains("11 of 40"), "{}", ran.err);
    let id = plan_id(&ran);
    s.sync(["-q", "--approve", &id]).code(0);
    s.assert_synced([""; 0]);
    // they are empty already: nothing more is lost
    for i in 0..11 {
        chmod(s.src().join(format!("f{i:03}")), 0o600);
    }
    s.sync(["-q", "--max-delete", "0"]).code(0);
}

#[test]
fn emptied_and_deleted_files_are_counted_together() {
    let s = filled(40);
    remove_first(&s, 6);
    for i in 6..12 {
        s.write(format!("src/f{i:03}"), "");
    }
    let ran = assert_refused(&s, &[]);
    assert!(ran.err.contains("12 of 40"), "{}", ran.err);
}

#[test]
fn moves_are_no_deletions() {
    let s = filled(40);
    s.mkdir("src/d");
    for i in 0..40 {
        s.rename(&format!("src/f{i:03}"), &format!("src/d/g{i:03}"));
    }
    s.sync(["-q", "--max-delete", "0"]).code(0);
    s.assert_synced([""; 0]);
}

#[test]
fn renamed_and_edited_files_are_deletions() {
    let s = filled(40);
    for i in 0..11 {
        s.remove(format!("src/f{i:03}"));
        s.write(format!("src/g{i:03}"), format!("other {i}"));
    }
    assert_refused(&s, &[]);
}

#[test]
fn a_file_that_becomes_a_directory_is_a_deletion() {
    let s = filled(40);
    for i in 0..11 {
        s.remove(format!("src/f{i:03}"));
        s.write(format!("src/f{i:03}/in"), format!("other {i}"));
    }
    let ran = assert_refused(&s, &[]);
    assert!(ran.err.contains("11 of 40"), "{}", ran.err);
}

#[test]
fn an_empty_source_against_a_full_destination_needs_an_approval() {
    let s = filled(3);
    remove_first(&s, 3);
    let ran = assert_refused(&s, &["--max-delete", "100%"]);
    assert!(ran.err.contains("empty"), "{}", ran.err);
    assert_refused(&s, &["--adopt"]);
    let id = plan_id(&ran);
    s.sync(["-q", "--approve", &id]).code(0);
    s.assert_synced([""; 0]);
}

#[test]
fn an_empty_source_against_an_empty_destination_is_done() {
    let s = Scratch::new();
    s.sync(["-q"]).code(0);
    s.sync(["-q"]).code(0);
    let s = Scratch::new();
    s.mkdir("dst");
    s.sync(["-q"]).code(0);
    s.assert_synced([""; 0]);
}

#[test]
fn an_empty_source_against_empty_directories_is_refused() {
    let s = Scratch::new();
    s.mkdir("src/a/b");
    s.sync(["-q"]).code(0);
    s.remove("src/a");
    assert_refused(&s, &[]);
}

#[test]
fn a_source_of_nothing_but_excluded_files_counts_as_empty() {
    let s = filled(3);
    remove_first(&s, 3);
    s.write("src/x.log", "x");
    assert_refused(&s, &["--exclude", "*.log"]);
}

#[test]
fn a_missing_source_is_refused_and_cannot_be_approved() {
    let s = filled(3);
    s.remove("src");
    let before = snapshot(&s.dst());
    for args in [
        &[][..],
        &["--adopt"],
        &["--approve", "0123456789abcdef"],
        &["--max-delete=100%"],
        &["-n"],
        &["--json"],
    ] {
        let ran = s.sync(args).code(4);
        assert!(!ran.err.contains("--approve"), "{}", ran.err);
        assert!(ran.err.contains("does not exist"), "{}", ran.err);
    }
    assert_eq!(snapshot(&s.dst()), before);
    let s = Scratch::new();
    s.remove("src");
    s.sync([""; 0]).code(4);
    assert!(!s.exists("dst"), "DST was made for nothing");
}

#[test]
fn a_never_managed_destination_is_not_deleted_from() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.write("dst/mine", "mine");
    let ran = assert_refused(&s, &[]);
    assert!(ran.err.contains("never managed"), "{}", ran.err);
    assert!(!s.exists("dst/.syncagent"), "it is still not managed");
    assert_refused(&s, &[]);
    s.sync(["-q", "--adopt"]).code(0);
    s.assert_synced([""; 0]);
}

#[test]
fn a_never_managed_destination_is_not_overwritten() {
    let s = Scratch::new();
    s.write("src/f", "from the source");
    s.write("dst/f", "mine");
    let ran = assert_refused(&s, &[]);
    let id = plan_id(&ran);
    // the id names what is replaced: another file, another id
    s.write("src/g", "from the source");
    s.write("dst/g", "mine too");
    let other = plan_id(&assert_refused(&s, &["--approve", &id]));
    assert_ne!(id, other);
    s.sync(["-q", "--approve", &other]).code(0);
    s.assert_synced([""; 0]);
}

#[test]
fn a_never_managed_destination_keeps_links_and_empty_directories() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.mkdir("dst");
    crate::support::symlink("here", s.dst().join("l"));
    assert_refused(&s, &[]);
    let s = Scratch::new();
    s.write("src/f", "f");
    s.mkdir("dst/empty");
    assert_refused(&s, &[]);
    let s = Scratch::new();
    s.write("src/f/in", "f");
    s.write("dst/f", "a file where a directory comes");
    assert_refused(&s, &[]);
}

#[test]
fn a_never_managed_destination_that_loses_nothing_is_taken_over() {
    let s = Scratch::new();
    s.write("src/same", "same");
    s.write("src/new", "new");
    s.write("dst/same", "same");
    chmod(s.dst().join("same"), 0o600);
    s.sync(["-q"]).code(0);
    s.assert_synced([""; 0]);
    // now it is managed
    s.write("dst/extra", "x");
    s.sync(["-q"]).code(0);
    s.assert_synced([""; 0]);
}

#[test]
fn no_delete_takes_a_never_managed_destination_over_beside_what_it_has() {
    let s = Scratch::new();
    s.write("src/new", "new");
    s.write("dst/mine", "mine");
    s.sync(["-q", "--no-delete"]).code(0);
    assert_eq!(s.read("dst/mine"), b"mine");
    assert_eq!(s.read("dst/new"), b"new");
}

#[test]
fn adopt_does_not_lift_the_limit_on_deletions() {
    let s = Scratch::new();
    s.write("src/f", "f");
    for i in 0..20 {
        s.write(format!("dst/{i}"), "mine");
    }
    let ran = assert_refused(&s, &["--adopt"]);
    assert!(ran.err.contains("--max-delete"), "{}", ran.err);
    s.sync(["-q", "--adopt", "--max-delete", "100%"]).code(0);
}

#[test]
fn a_dry_run_leaves_a_never_managed_destination_without_a_trace() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.write("dst/mine", "mine");
    let before = full_stat(&s.dst());
    s.sync(["-n"]).code(4);
    s.sync(["-n", "--adopt"]).code(0);
    assert_eq!(full_stat(&s.dst()), before);
}

#[test]
fn no_delete_leaves_everything_that_only_the_destination_has() {
    let s = filled(10);
    s.write("src/d/in", "x");
    s.sync(["-q"]).code(0);
    remove_first(&s, 10);
    s.remove("src/d");
    s.write("src/new", "new");
    let ran = s.sync(["-i", "--no-delete"]).code(0);
    assert!(!ran.plan().iter().any(|l| l.starts_with("delete")), "{}", ran.out);
    for i in 0..10 {
        assert!(s.exists(format!("dst/f{i:03}")));
    }
    assert!(s.exists("dst/d/in") && s.exists("dst/new"));
    // without it they go
    s.write("src/keep", "x");
    s.sync(["-q", "--max-delete=100%"]).code(0);
    s.assert_synced([""; 0]);
}

#[test]
fn no_delete_names_a_directory_in_the_way_and_keeps_it() {
    let s = Scratch::new();
    s.write("src/x/in", "kept");
    s.sync(["-q"]).code(0);
    s.remove("src/x");
    s.write("src/x", "a file now");
    let ran = s.sync(["--no-delete"]).code(3);
    assert!(ran.err.contains("x: "), "{}", ran.err);
    assert_eq!(s.read("dst/x/in"), b"kept");
}

#[test]
fn a_source_whose_file_system_vanished_is_refused_whatever_is_said() {
    if !needs_root("a_source_whose_file_system_vanished_is_refused_whatever_is_said") {
        return;
    }
    for below in [None, Some("left over below the mount point")] {
        let s = Scratch::new();
        if let Some(below) = below {
            s.write("src/other", below);
        }
        let mount = Mounted::tmpfs(&s.src(), "size=1m");
        s.write("src/a", "a");
        s.write("src/d/b", "b");
        s.sync(["-q"]).code(0);
        s.assert_synced([""; 0]);
        let before = full_stat(&s.dst());
        drop(mount);
        assert!(!s.exists("src/a"));
        for args in [
            &[][..],
            &["--adopt"],
            &["--max-delete=100%", "--adopt"],
            &["--approve", "0123456789abcdef"],
            &["-n"],
            &["--no-delete"],
            &["--activate=swap"],
        ] {
            let ran = s.sync(args).code(4);
            assert!(ran.err.contains("file system"), "{}", ran.err);
            assert!(!ran.err.contains("--approve"), "{}", ran.err);
        }
        let of_tree = |stat: &Vec<String>| {
            let keep = |l: &&String| !l.contains(".syncagent");
            stat.iter().filter(keep).cloned().collect::<Vec<_>>()
        };
        assert_eq!(of_tree(&full_stat(&s.dst())), of_tree(&before));
        // it comes back
        let _mount = Mounted::tmpfs(&s.src(), "size=1m");
        s.write("src/a", "a");
        s.write("src/d/b", "b");
        s.sync(["-q"]).code(0);
        s.assert_synced([""; 0]);
    }
}

#[test]
fn a_mount_below_the_source_that_vanished_is_refused() {
    if !needs_root("a_mount_below_the_source_that_vanished_is_refused") {
        return;
    }
    let s = Scratch::new();
    s.write("src/a", "a");
    let mount = Mounted::tmpfs(&s.src().join("d/m"), "size=1m");
    s.write("src/d/m/b", "b");
    s.sync(["-q"]).code(0);
    s.assert_synced([""; 0]);
    drop(mount);
    for args in [&[][..], &["--adopt"], &["--max-delete=100%"], &["-n"]] {
        let ran = s.sync(args).code(4);
        assert!(ran.err.contains("d/m"), "{}", ran.err);
        assert!(!ran.err.contains("--approve"), "{}", ran.err);
    }
    assert_eq!(s.read("dst/d/m/b"), b"b");
}

#[test]
fn a_directory_below_a_nested_mount_can_be_deleted() {
    if !needs_root("a_directory_below_a_nested_mount_can_be_deleted") {
        return;
    }
    let s = Scratch::new();
    s.write("src/a", "a");
    let _mount = Mounted::tmpfs(&s.src().join("m"), "size=1m");
    s.write("src/m/d/b", "b");
    s.write("src/m/c", "c");
    s.sync(["-q"]).code(0);
    s.remove("src/m/d");
    s.sync(["-q"]).code(0);
    s.assert_synced([""; 0]);
}

#[test]
fn nothing_below_an_unreadable_directory_is_deleted() {
    let s = Scratch::new();
    s.write("src/d/in/deep", "deep");
    s.write("src/d/f", "f");
    s.write("src/gone", "g");
    s.write("src/stays", "s");
    s.give("src");
    s.give("dst");
    s.user_sync(["-q"]).code(0);
    s.remove("src/gone");
    s.write("src/stays", "changed");
    chmod(s.src().join("d"), 0o000);
    s.give("src");
    for _ in 0..3 {
        let ran = s.user_sync(["-q", "--max-delete=100%"]).code(3);
        assert!(ran.err.contains("d: "), "{}", ran.err);
        assert_eq!(s.read("dst/d/in/deep"), b"deep");
        assert_eq!(s.read("dst/d/f"), b"f");
        settle();
    }
    // the rest went on
    assert!(!s.exists("dst/gone"));
    assert_eq!(s.read("dst/stays"), b"changed");
    chmod(s.src().join("d"), 0o755);
    s.user_sync(["-q"]).code(0);
    crate::support::assert_same(&s.src(), &s.dst());
}

#[test]
fn an_unreadable_source_is_an_error_and_deletes_nothing() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.give("src");
    s.give("dst");
    s.user_sync(["-q"]).code(0);
    chmod(s.src(), 0o000);
    let ran = s.user_sync(["-q", "--max-delete=100%"]);
    assert!([1, 3, 4].contains(&ran.code), "{ran:?}");
    assert!(ran.err.contains("ermission denied"), "{}", ran.err);
    assert_eq!(s.read("dst/f"), b"f");
    chmod(s.src(), 0o755);
}

#[test]
fn an_unreadable_file_is_named_in_every_run() {
    let s = Scratch::new();
    s.write("src/secret", "s");
    s.write("src/f", "f");
    s.write("dst/secret", "the old one");
    chmod(s.src().join("secret"), 0o000);
    s.give("src");
    s.give("dst");
    settle();
    for run in 0..4 {
        let ran = s.user_sync(["-q", "--adopt"]);
        assert_eq!(ran.code, 3, "run {run}: {ran:?}");
        assert!(ran.err.contains("secret: "), "run {run}: {}", ran.err);
        assert_eq!(s.read("dst/secret"), b"the old one");
        assert_eq!(s.read("dst/f"), b"f");
        settle();
    }
    chmod(s.src().join("secret"), 0o644);
    s.user_sync(["-q"]).code(0);
    assert_eq!(s.read("dst/secret"), b"s");
}
