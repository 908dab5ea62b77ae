//! Trees as they come: names, kinds, modes, times, moves, trash, staging, full and read-only disks.

use std::fmt::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags};

use crate::support::{
    Mounted, NOBODY, Ran, Scratch, assert_same, chmod, full_stat, is_root, mkfifo, needs_root, raw,
    set_mtime, set_mtime_like, settle, snapshot, symlink, tool,
};

const NONE: [&str; 0] = [];

fn mode(path: impl AsRef<Path>) -> u32 {
    path.as_ref().symlink_metadata().unwrap().mode() & 0o7777
}

fn mtime(path: impl AsRef<Path>) -> (i64, i64) {
    let m = path.as_ref().symlink_metadata().unwrap();
    (m.mtime(), m.mtime_nsec())
}

// ---- names and sizes

#[test]
fn names_that_sort_between_a_directory_and_its_content_are_copied_in_new_directories() {
    let s = Scratch::new();
    for top in ["", "n/", "n/m/"] {
        for name in ["a.txt", "a-b/y", "a b", "a!/a/x", "a/x", "a/b.c/z", "a/b/y", "a/b-", "a0", "a+"] {
            s.write(format!("src/{top}{name}"), format!("{top}{name}"));
        }
    }
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
    // the same into a tree that is there, and by swap
    let s = Scratch::new();
    s.write("src/z", "z");
    s.sync(["-q"]).code(0);
    for name in ["n/a.txt", "n/a/x", "n/a/b.c", "n/a/b/y"] {
        s.write(format!("src/{name}"), name);
    }
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
    s.write("src/n/a-", "x");
    s.sync(["-q", "--activate=swap"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn any_name_that_the_file_system_takes_is_copied() {
    let s = Scratch::new();
    let mut names: Vec<Vec<u8>> =
        (1..=255u8).filter(|b| ![b'/', b'.'].contains(b)).map(|b| vec![b]).collect();
    names.extend([
        vec![b'x'; 255],
        vec![0xff; 255],
        "ü".repeat(127).into_bytes(),
        "u\u{308}".into(),
        "ü".into(),
        b"...".to_vec(),
        b"-rf".to_vec(),
        b"#x".to_vec(),
        b"trailing ".to_vec(),
        b"stage".to_vec(),
        b"journal".to_vec(),
        b".syncagent.x".to_vec(),
        b"x.new".to_vec(),
    ]);
    for (i, name) in names.iter().enumerate() {
        s.write(raw(&[b"src/files/", &name[..]].concat()), format!("{i}"));
        s.write(raw(&[b"src/dirs/", &name[..], b"/f"].concat()), format!("{i}"));
    }
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
    // all of them change, then move
    for name in &names {
        s.write(raw(&[b"src/files/", &name[..]].concat()), "changed");
    }
    s.rename("src/dirs", "src/moved");
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
    for name in &names {
        s.remove(raw(&[b"src/files/", &name[..]].concat()));
    }
    s.write("src/files/one", "one");
    s.sync(["-q", "--max-delete=100%"]).code(0);
    s.assert_synced(NONE);
}

/// A path too long for the system's calls, made piece by piece.
fn make_deep(top: &Path, depth: usize, file: &str) {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::openat(CWD, top, flags, Mode::empty()).unwrap();
    for i in 0..depth {
        let name = format!("directory{i:03}");
        rustix::fs::mkdirat(&at, &*name, Mode::from_raw_mode(0o755)).unwrap();
        at = rustix::fs::openat(&at, &*name, flags, Mode::empty()).unwrap();
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let file = rustix::fs::openat(&at, file, flags, Mode::from_raw_mode(0o644)).unwrap();
    rustix::io::write(&file, b"deep").unwrap();
}

#[test]
fn a_thousand_levels_are_copied_changed_moved_and_deleted() {
    let s = Scratch::new();
    let count = |ran: &Ran, key: &str| ran.summary()[key].as_u64().unwrap();
    s.mkdir("src/top");
    make_deep(&s.src().join("top"), 1000, "one");
    let ran = s.sync(["--json"]).code(0);
    assert_eq!(count(&ran, "created"), 1002);
    assert_eq!(s.digest("dst"), s.digest("src"));
    let nothing =
        |ran: &Ran| ["created", "updated", "attrs", "moved", "deleted"].iter().all(|k| count(ran, k) == 0);
    assert!(nothing(&s.sync(["--json", "--checksum"]).code(0)));
    s.run("verify", [s.dst()]).code(0);
    s.rename("src/top", "src/moved");
    let ran = s.sync(["--json"]).code(0);
    assert_eq!((count(&ran, "moved"), count(&ran, "bytes")), (1, 0));
    assert_eq!(s.digest("dst"), s.digest("src"));
    s.sync(["-q", "--checksum", "--activate=swap"]).code(0);
    s.mkdir("src/moved/beside");
    let ran = s.sync(["--json", "--activate=swap"]).code(0);
    assert_eq!(count(&ran, "created"), 1);
    assert_eq!(s.digest("dst"), s.digest("src"));
    assert!(nothing(&s.sync(["--json"]).code(0)));
    tool("rm", &["-rf".as_ref(), s.src().join("moved").as_os_str()]);
    s.write("src/f", "f");
    let ran = s.sync(["--json", "--max-delete=100%", "--keep=0"]).code(0);
    assert_eq!(count(&ran, "deleted"), 1003);
    s.assert_synced(NONE);
    assert!(!s.exists("dst/.syncagent/trash/5/tree"));
    // what the test itself cannot remove by its own recursion
    tool("rm", &["-rf".as_ref(), s.dst().as_os_str()]);
}

#[test]
fn a_hundred_thousand_entries_in_one_directory() {
    let s = Scratch::in_memory();
    s.mkdir("src/d");
    let d = s.src().join("d");
    for i in 0..100_000 {
        std::fs::write(d.join(format!("entry-{i:06}")), "").unwrap();
    }
    s.sync(["-q"]).code(0);
    assert_eq!(std::fs::read_dir(s.dst().join("d")).unwrap().count(), 100_000);
    assert_eq!(s.digest("dst"), s.digest("src"));
    std::fs::write(d.join("entry-050000"), "changed").unwrap();
    std::fs::remove_file(d.join("entry-099999")).unwrap();
    std::fs::write(d.join("entry-"), "new").unwrap();
    let ran = s.sync(["-i"]).code(0);
    let want =
        ["attrs dir d", "create file d/entry-", "update file d/entry-050000", "delete file d/entry-099999"];
    assert_eq!(ran.plan(), want);
    assert_eq!(s.digest("dst"), s.digest("src"));
    assert_eq!(s.sync(["-i"]).code(0).plan(), Vec::<&str>::new());
    s.rename("src/d", "src/e");
    let ran = s.sync(["-i"]).code(0);
    assert_eq!(ran.plan(), ["move dir e <- d"]);
}

// ---- kinds

const KINDS: [&str; 7] = ["none", "file", "empty", "dir", "full", "link", "out"];

/// Puts something of this kind at `path`, in place of what is there.
fn put(path: &Path, kind: &str, salt: &str) {
    if path.symlink_metadata().is_ok() {
        let args = ["-rf".as_ref(), path.as_os_str()];
        tool("chmod", &["-Rf".as_ref(), "u+rwx".as_ref(), path.parent().unwrap().as_os_str()]);
        tool("rm", &args);
    }
    let write = |p: PathBuf, text: String| {
        std::fs::create_dir_all(p.parent().unwrap()).unwrap();
        std::fs::write(p, text).unwrap();
    };
    match kind {
        "none" => {}
        "file" => write(path.into(), format!("file {salt} {}", path.display())),
        "empty" => write(path.into(), String::new()),
        "dir" => std::fs::create_dir(path).unwrap(),
        "full" => {
            write(path.join("x"), format!("x {salt} {}", path.display()));
            write(path.join("x.d/y"), format!("y {salt}"));
            write(path.join("z/deep/er"), format!("z {salt}"));
            symlink("x", path.join("l"));
        }
        "link" => symlink(format!("target {salt}"), path),
        "out" => symlink("/etc", path),
        other => panic!("{other}"),
    }
}

fn every_swap(s: &Scratch, sync: &dyn Fn() -> Ran) {
    let all = || KINDS.iter().flat_map(|a| KINDS.iter().map(move |b| (*a, *b)));
    s.mkdir("src/swaps");
    let path = |a: &str, b: &str| s.src().join(format!("swaps/{a}-{b}"));
    for (a, b) in all() {
        put(&path(a, b), a, "1");
    }
    sync().code(0);
    assert_same(&s.src(), &s.dst());
    for (salt, forth) in [("2", true), ("3", false), ("4", true), ("4", false)] {
        for (a, b) in all() {
            put(&path(a, b), if forth { b } else { a }, salt);
        }
        let ran = sync().code(0);
        assert_eq!(ran.err, "");
        assert_same(&s.src(), &s.dst());
        s.assert_nothing_staged();
        let again = sync().code(0);
        assert_eq!(again.plan(), Vec::<&str>::new());
    }
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn every_kind_becomes_every_other_kind_and_back() {
    let s = Scratch::new();
    every_swap(&s, &|| s.sync(["-i", "--max-delete=100%"]));
    s.assert_synced(NONE);
}

#[test]
fn every_kind_becomes_every_other_kind_by_swap() {
    let s = Scratch::new();
    every_swap(&s, &|| s.sync(["-i", "--max-delete=100%", "--activate=swap"]));
    s.assert_synced(NONE);
}

#[test]
fn every_kind_becomes_every_other_kind_when_not_root() {
    let s = Scratch::new();
    s.give("dst");
    every_swap(&s, &|| s.user_sync(["-i", "--max-delete=100%", "--keep=0"]));
}

#[test]
fn every_kind_heals_when_the_destination_drifted_to_another() {
    let s = Scratch::new();
    let path = |top: PathBuf, a: &str, b: &str| top.join(format!("swaps/{a}-{b}"));
    s.mkdir("src/swaps");
    for a in KINDS {
        for b in KINDS {
            put(&path(s.src(), a, b), a, "1");
        }
    }
    s.sync(["-q"]).code(0);
    for a in KINDS {
        for b in KINDS {
            put(&path(s.dst(), a, b), b, "drift");
        }
    }
    s.sync(["-q", "--max-delete=100%"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn links_are_copied_as_links_and_never_followed() {
    let s = Scratch::new();
    s.write("outside/secret", "secret");
    let outside = s.path().join("outside");
    s.write("src/d/f", "f");
    for (name, target) in [
        ("dangling", "no/where"),
        ("absolute", "/etc/passwd"),
        ("up", "../../../../../etc"),
        ("self", "self"),
        ("to-dir", "d"),
        ("slash", "d/"),
        ("root", "/"),
        ("dot", "."),
    ] {
        symlink(target, s.src().join(name));
    }
    symlink("x".repeat(4000), s.src().join("long"));
    symlink(&outside, s.src().join("out"));
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
    // a link in DST where SRC has a directory: what it points to is left alone
    s.remove("dst/d");
    symlink(&outside, s.dst().join("d"));
    let before = full_stat(&outside);
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
    assert_eq!(full_stat(&outside), before);
    assert!(!s.dst().join("d").is_symlink());
    // and the other way round
    s.remove("src/out");
    s.write("src/out/secret", "new");
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
    assert_eq!(s.read("outside/secret"), b"secret");
}

#[test]
fn our_own_directory_as_a_link_is_refused() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.mkdir("dst");
    s.write("outside/precious", "p");
    symlink(s.path().join("outside"), s.dst().join(".syncagent"));
    let before = full_stat(&s.path().join("outside"));
    let ran = s.sync(["-q", "--adopt"]);
    assert!([1, 2].contains(&ran.code), "{ran:?}");
    assert_eq!(full_stat(&s.path().join("outside")), before);
}

#[test]
fn special_files_are_skipped_and_counted() {
    let s = Scratch::new();
    s.write("src/f", "f");
    mkfifo(s.src().join("fifo"));
    mkfifo(s.src().join("in-the-way"));
    let _socket = std::os::unix::net::UnixListener::bind(s.src().join("socket")).unwrap();
    let mut count = 3;
    if is_root() {
        let device = s.src().join("device");
        tool("mknod", &[device.as_os_str(), "c".as_ref(), "1".as_ref(), "3".as_ref()]);
        count += 1;
    }
    let ran = s.sync(["--json"]).code(0);
    assert_eq!(ran.summary()["skipped"], count);
    assert_eq!(snapshot(&s.dst()).len(), 2, "the root and f");
    let ran = s.sync(NONE).code(0);
    assert!(ran.out.contains(&format!("{count} special")), "{}", ran.out);
    // one that becomes a file
    s.remove("src/in-the-way");
    s.write("src/in-the-way", "a file");
    s.sync(["-q"]).code(0);
    assert_same(&s.src(), &s.dst());
    // a file that becomes one is no content any more, and goes
    s.remove("src/f");
    mkfifo(s.src().join("f"));
    let ran = s.sync(["-i"]).code(0);
    assert_eq!(ran.plan(), ["delete file f"]);
}

#[test]
fn a_special_file_in_the_destination_is_left_alone_and_named() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.write("src/g/h", "h");
    s.mkdir("dst");
    mkfifo(s.dst().join("f"));
    mkfifo(s.dst().join("g"));
    mkfifo(s.dst().join("other"));
    let ran = s.sync(["-q"]).code(3);
    assert!(ran.err.contains("f: ") && ran.err.contains("g: "), "{}", ran.err);
    assert_eq!(snapshot(&s.dst())[&b"f"[..]].kind, 's');
    s.remove("dst/f");
    s.remove("dst/g");
    s.sync(["-q"]).code(0);
    assert_same(&s.src(), &s.dst());
    assert!(s.exists("dst/other"));
}

// ---- modes and owners

#[test]
fn modes_are_exact_at_every_level() {
    let s = Scratch::new();
    for m in [0o000, 0o400, 0o644, 0o755, 0o777, 0o1644, 0o2755, 0o4755, 0o6711, 0o7777] {
        s.write(format!("src/f{m:04o}"), "f");
        chmod(s.src().join(format!("f{m:04o}")), m);
    }
    for m in [0o500, 0o555, 0o700, 0o755, 0o777, 0o1777, 0o2755, 0o3770] {
        s.write(format!("src/d{m:04o}/in/f"), "f");
        chmod(s.src().join(format!("d{m:04o}")), m);
    }
    if !is_root() {
        s.remove("src/f0000");
    }
    for (i, options) in [&["-q"][..], &["-q", "--activate=swap"]].iter().enumerate() {
        s.sync(*options).code(0);
        s.assert_synced(NONE);
        // set other modes, all at once, content the same
        for entry in std::fs::read_dir(s.src()).unwrap() {
            let path = entry.unwrap().path();
            chmod(&path, if i == 0 { mode(&path) ^ 0o010 } else { 0o755 });
        }
        let ran = s.sync(["--json"]).code(0).summary();
        assert_eq!(ran["files"], 0, "{ran}");
        s.assert_synced(NONE);
    }
}

#[test]
fn setuid_survives_an_owner_change() {
    if !needs_root("setuid_survives_an_owner_change") {
        return;
    }
    let s = Scratch::new();
    s.write("src/su", "s");
    s.write("src/d/su", "s");
    for f in ["su", "d/su"] {
        let path = s.src().join(f);
        tool("chown", &["65534:65534".as_ref(), path.as_os_str()]);
        chmod(&path, 0o6755);
    }
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
    assert_eq!(mode(s.dst().join("su")), 0o6755);
    tool("chown", &["0:0".as_ref(), s.src().join("su").as_os_str()]);
    chmod(s.src().join("su"), 0o4755);
    assert_eq!(s.sync(["-i"]).code(0).plan(), ["attrs file su"]);
    assert_eq!(mode(s.dst().join("su")), 0o4755);
    s.assert_synced(NONE);
}

#[test]
fn owners_are_preserved_ignored_or_fixed() {
    if !needs_root("owners_are_preserved_ignored_or_fixed") {
        return;
    }
    let s = Scratch::new();
    for f in ["f", "d/in/f"] {
        s.write(format!("src/{f}"), "f");
    }
    symlink("f", s.src().join("l"));
    let src = s.src();
    tool("chown", &["-hR".as_ref(), "12345:54321".as_ref(), src.as_os_str()]);
    let owners = |dst: &str| -> Vec<(u32, u32)> {
        ["", "f", "d", "d/in", "d/in/f", "l"]
            .iter()
            .map(|p| s.path().join(dst).join(p).symlink_metadata().unwrap())
            .map(|m| (m.uid(), m.gid()))
            .collect()
    };
    let sync = |dst: &str, owner: &[&str]| -> Ran {
        let mut c = s.command("sync");
        c.arg(s.src()).arg(s.path().join(dst)).arg("-i").args(owner);
        Ran::from(c.output().unwrap()).code(0)
    };
    for (dst, owner, want) in [
        ("default", &[][..], (12345, 54321)),
        ("preserve", &["--owner=preserve"], (12345, 54321)),
        ("ignore", &["--owner=ignore"], (0, 0)),
        ("both", &["--owner=nobody:nogroup"], (NOBODY, NOBODY)),
        ("numeric", &["--owner=77:#88"], (77, 88)),
        ("user", &["--owner=nobody"], (NOBODY, 54321)),
        ("group", &["--owner=:nogroup"], (12345, NOBODY)),
    ] {
        let first = sync(dst, owner);
        let created = |l: &&&str| l.starts_with("create ");
        assert_eq!(first.plan().iter().filter(created).count(), 5, "{}", first.out);
        assert_eq!(owners(dst), vec![want; 6], "{dst}");
        assert_eq!(sync(dst, owner).plan(), Vec::<&str>::new(), "{dst}");
        assert_eq!(s.digest(dst), s.digest("src"), "{dst}");
        // another policy later is a change of attributes, not of content
        if want != (12345, 54321) && want != (0, 0) {
            let ran = sync(dst, &["--owner=preserve"]);
            assert!(ran.plan().iter().all(|l| l.starts_with("attrs ")), "{}", ran.out);
            assert_eq!(owners(dst), vec![(12345, 54321); 6], "{dst}");
        }
    }
}

#[test]
fn a_setgid_directory_gives_its_group_when_owners_are_ignored() {
    if !needs_root("a_setgid_directory_gives_its_group_when_owners_are_ignored") {
        return;
    }
    let group = 12345;
    let s = Scratch::new();
    s.write("src/shared/f", "f");
    s.write("src/shared/old/f", "f");
    s.write("src/plain/f", "f");
    s.give("dst");
    let run = |args: &[&str]| -> Ran {
        let mut c = s.user_command("sync", "12345");
        c.arg(s.src()).arg(s.dst()).args(args).output().unwrap().into()
    };
    chmod(s.src().join("shared"), 0o2775);
    run(&["-q"]).code(0);
    // the group of a shared directory in DST is the administrator's business
    let chgrp = |path: &str| {
        let path = s.dst().join(path);
        tool("chgrp", &["12345".as_ref(), path.as_os_str()]);
    };
    chgrp("shared");
    chmod(s.dst().join("shared"), 0o2775);
    s.write("src/shared/new", "new");
    s.write("src/shared/new-dir/in", "in");
    s.write("src/shared/f", "changed");
    s.write("src/plain/new", "new");
    run(&["-q"]).code(0);
    let gid = |path: &str| s.dst().join(path).symlink_metadata().unwrap().gid();
    for path in ["shared", "shared/new", "shared/new-dir", "shared/new-dir/in", "shared/f"] {
        assert_eq!(gid(path), group, "{path}");
    }
    assert_eq!(gid("plain/new"), NOBODY);
    assert_eq!(mode(s.dst().join("shared")), 0o2775);
    let again = run(&["-i"]).code(0);
    assert_eq!(again.plan(), Vec::<&str>::new());
    assert_same(&s.src(), &s.dst());
}

/// A tree with read-only directories, SRC and DST the user's own.
fn read_only() -> Scratch {
    let s = Scratch::new();
    for f in ["r/f", "r/g", "r/sub/h", "other/o", "top"] {
        s.write(format!("src/{f}"), f);
    }
    s.give("src");
    s.give("dst");
    lock_all(&s);
    s.user_sync(["-q"]).code(0);
    s
}

const LOCKED: [&str; 3] = ["r/sub", "r", "other"];

fn lock_all(s: &Scratch) {
    s.give("src");
    for d in LOCKED {
        let d = s.src().join(d);
        if d.is_dir() && !d.is_symlink() {
            chmod(d, 0o555);
        }
    }
}

fn unlock_all(s: &Scratch) {
    for d in LOCKED {
        chmod(s.src().join(d), 0o755);
    }
}

#[track_caller]
fn assert_read_only_change(change: impl Fn(&Scratch)) {
    for activate in ["--activate=in-place", "--activate=swap"] {
        let s = read_only();
        assert_same(&s.src(), &s.dst());
        unlock_all(&s);
        change(&s);
        lock_all(&s);
        let ran = s.user_sync(["-q", "--max-delete=100%", activate]);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{activate}");
        assert_same(&s.src(), &s.dst());
        s.assert_nothing_staged();
        let again = s.user_sync(["-i"]).code(0);
        assert_eq!(again.plan(), Vec::<&str>::new(), "{activate}");
    }
}

#[test]
fn files_come_change_and_go_in_read_only_directories_when_not_root() {
    assert_read_only_change(|s| {
        s.write("src/r/new", "new");
        s.write("src/r/f", "changed");
        s.remove("src/r/g");
        s.write("src/r/sub/deep/x", "x");
        chmod(s.src().join("r/sub/h"), 0o600);
    });
}

#[test]
fn files_move_into_and_out_of_read_only_directories_when_not_root() {
    assert_read_only_change(|s| {
        s.rename("src/r/f", "src/other/f");
        s.rename("src/top", "src/r/sub/top");
        s.rename("src/r/g", "src/r/g2");
    });
}

#[test]
fn read_only_directories_move_and_go_when_not_root() {
    assert_read_only_change(|s| {
        s.rename("src/r/sub", "src/other/sub");
        chmod(s.src().join("other/sub"), 0o555);
    });
    assert_read_only_change(|s| s.rename("src/r", "src/q"));
    assert_read_only_change(|s| s.remove("src/r"));
}

#[test]
fn a_read_only_directory_becomes_a_file_when_not_root() {
    assert_read_only_change(|s| {
        s.remove("src/r");
        s.write("src/r", "a file");
    });
}

#[test]
fn a_read_only_directory_becomes_a_link_when_not_root() {
    assert_read_only_change(|s| {
        s.remove("src/r/sub");
        symlink("f", s.src().join("r/sub"));
    });
}

#[test]
fn a_file_becomes_a_read_only_directory_when_not_root() {
    assert_read_only_change(|s| {
        s.remove("src/top");
        s.write("src/top/in/f", "f");
        chmod(s.src().join("top/in"), 0o555);
        chmod(s.src().join("top"), 0o555);
    });
}

#[test]
fn a_file_moves_into_a_new_nested_read_only_directory_when_not_root() {
    assert_read_only_change(|s| {
        s.mkdir("src/n/m");
        s.rename("src/top", "src/n/m/top");
        chmod(s.src().join("n/m"), 0o555);
        chmod(s.src().join("n"), 0o555);
    });
}

#[test]
fn the_root_may_be_read_only_when_not_root() {
    let s = read_only();
    unlock_all(&s);
    s.write("src/new", "new");
    lock_all(&s);
    chmod(s.src(), 0o555);
    s.user_sync(["-q"]).code(0);
    assert_same(&s.src(), &s.dst());
    assert_eq!(mode(s.dst()), 0o555);
    chmod(s.src(), 0o755);
    s.write("src/newer", "newer");
    s.remove("src/top");
    s.give("src");
    lock_all(&s);
    chmod(s.src(), 0o555);
    let ran = s.user_sync(["-q"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_same(&s.src(), &s.dst());
}

#[test]
fn read_only_files_are_replaced_and_keep_their_mode_when_not_root() {
    let s = Scratch::new();
    s.write("src/f", "one");
    chmod(s.src().join("f"), 0o444);
    s.give("src");
    s.give("dst");
    s.user_sync(["-q"]).code(0);
    chmod(s.src().join("f"), 0o644);
    s.write("src/f", "two");
    chmod(s.src().join("f"), 0o444);
    s.user_sync(["-q"]).code(0);
    assert_same(&s.src(), &s.dst());
}

// ---- times

#[test]
fn times_are_exact_to_the_nanosecond_at_every_level() {
    let s = Scratch::new();
    let times = [
        (0, 0),
        (1, 999_999_999),
        (-1, 1),
        (-86_400 * 365, 123_456_789),
        (4_000_000_000, 987_654_321),
        (1_700_000_000, 1),
    ];
    for (i, (sec, ns)) in times.iter().enumerate() {
        s.write(format!("src/d{i}/in/f"), format!("{i}"));
        symlink("f", s.src().join(format!("d{i}/in/l")));
        for p in ["in/f", "in/l", "in", ""] {
            set_mtime(s.src().join(format!("d{i}/{p}")), *sec, *ns);
        }
    }
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
    for (i, time) in times.iter().enumerate() {
        for p in ["in/f", "in/l", "in", ""] {
            assert_eq!(mtime(s.dst().join(format!("d{i}/{p}"))), *time, "{i} {p}");
        }
    }
    // moved by one nanosecond each
    for (i, (sec, ns)) in times.iter().enumerate() {
        for p in ["in/f", "in/l", "in", ""] {
            set_mtime(s.src().join(format!("d{i}/{p}")), *sec, ns ^ 1);
        }
    }
    let ran = s.sync(["--json"]).code(0).summary();
    assert_eq!(ran["attrs"], 4 * times.len());
    assert_eq!(ran["files"], 0);
    s.assert_synced(NONE);
    // a change inside leaves the directory its own time
    for (i, time) in times.iter().enumerate() {
        s.write(format!("src/d{i}/in/g"), "g");
        s.remove(format!("src/d{i}/in/f"));
        set_mtime(s.src().join(format!("d{i}/in")), time.0, time.1 ^ 1);
    }
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn a_directory_that_a_file_was_moved_out_of_keeps_its_own_mtime() {
    let s = Scratch::new();
    s.write("src/a/f", "content");
    s.write("src/a/g", "stays");
    s.mkdir("src/b");
    set_mtime(s.src().join("a"), 1_000_000_000, 5);
    s.sync(["-q"]).code(0);
    s.rename("src/a/f", "src/b/f");
    set_mtime(s.src().join("a"), 1_000_000_000, 5);
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn a_directory_keeps_its_mtime_when_one_file_changes_its_mode_and_another_its_content() {
    let s = Scratch::new();
    for f in ["d/a", "d/b", "d/sub/x", "e/a/x", "e/b"] {
        s.write(format!("src/{f}"), f);
    }
    s.sync(["-q"]).code(0);
    chmod(s.src().join("d/a"), 0o600);
    s.write("src/d/b", "changed");
    chmod(s.src().join("e/a"), 0o700);
    s.write("src/e/b", "changed");
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn a_read_only_directory_keeps_its_mtime_when_two_files_change_when_not_root() {
    assert_read_only_change(|s| {
        chmod(s.src().join("r/f"), 0o600);
        s.write("src/r/g", "changed");
        chmod(s.src().join("r/sub/h"), 0o600);
    });
}

#[test]
fn a_read_only_directory_that_a_file_was_moved_out_of_keeps_its_own_mtime_when_not_root() {
    assert_read_only_change(|s| {
        let meta = s.src().join("r").metadata().unwrap();
        s.rename("src/r/f", "src/other/f");
        set_mtime_like(s.src().join("r"), &meta);
    });
}

#[test]
fn a_directory_that_something_was_deleted_from_keeps_its_own_mtime() {
    let s = Scratch::new();
    s.write("src/a/b/f", "content");
    s.write("src/a/b/g", "stays");
    s.write("src/a/b/d/in", "goes");
    let at = |p: &str| set_mtime(s.src().join(p), 1_000_000_000, 5);
    at("a/b");
    s.sync(["-q"]).code(0);
    s.remove("src/a/b/f");
    s.remove("src/a/b/d");
    at("a/b");
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
    s.rename("src/a/b/g", "src/a/b/renamed");
    at("a/b");
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn other_content_of_the_same_size_and_mtime_is_caught() {
    let s = Scratch::new();
    s.write("src/f", "aaaa");
    s.sync(["-q"]).code(0);
    for content in ["bbbb", "cccc", "dddd"] {
        let path = s.src().join("f");
        let meta = path.metadata().unwrap();
        std::fs::write(&path, content).unwrap();
        set_mtime_like(&path, &meta);
        s.sync(["-q"]).code(0);
        assert_eq!(s.read("dst/f"), content.as_bytes());
        settle();
    }
    // in DST as well
    let path = s.dst().join("f");
    let meta = path.metadata().unwrap();
    std::fs::write(&path, "eeee").unwrap();
    set_mtime_like(&path, &meta);
    s.sync(["-q"]).code(0);
    assert_eq!(s.read("dst/f"), b"dddd");
}

#[test]
fn overwritten_right_after_a_run_it_is_caught() {
    let s = Scratch::in_memory();
    s.write("src/f", "0000");
    s.write("src/d/g", "0000");
    set_mtime(s.src().join("f"), 1_700_000_000, 0);
    for i in 1..12 {
        s.sync(["-q"]).code(0);
        let text = format!("{i:04}");
        for f in ["src/f", "src/d/g"] {
            let path = s.path().join(f);
            let meta = path.metadata().unwrap();
            std::fs::write(&path, &text).unwrap();
            set_mtime_like(&path, &meta);
        }
        s.sync(["-q"]).code(0);
        assert_eq!(s.read("dst/f"), text.as_bytes());
        assert_eq!(s.read("dst/d/g"), text.as_bytes());
    }
}

// ---- what is not carried over

#[test]
fn hard_links_are_copied_as_separate_files_and_counted() {
    let s = Scratch::new();
    s.write("src/a", "shared");
    s.mkdir("src/d");
    std::fs::hard_link(s.src().join("a"), s.src().join("d/b")).unwrap();
    std::fs::hard_link(s.src().join("a"), s.src().join("c")).unwrap();
    let ran = s.sync(["--json"]).code(0);
    assert_eq!(ran.summary()["dropped"]["hard_links"], 3);
    assert_same(&s.src(), &s.dst());
    for f in ["a", "c", "d/b"] {
        assert_eq!(s.dst().join(f).metadata().unwrap().nlink(), 1);
    }
    let ran = s.sync(NONE).code(0);
    assert!(ran.out.contains("hard-linked"), "{}", ran.out);
    // linked in DST by somebody: an edit of one must not change the other
    s.remove("dst/c");
    std::fs::hard_link(s.dst().join("a"), s.dst().join("c")).unwrap();
    s.write("src/a", "changed for all names in SRC");
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn hard_linked_names_in_the_destination_get_their_own_modes_and_times() {
    let s = Scratch::new();
    s.write("src/a", "the same content");
    s.write("src/b", "the same content");
    chmod(s.src().join("a"), 0o600);
    set_mtime(s.src().join("b"), 1, 1);
    s.sync(["-q"]).code(0);
    s.remove("dst/b");
    std::fs::hard_link(s.dst().join("a"), s.dst().join("b")).unwrap();
    let runs: Vec<i32> = (0..3).map(|_| s.sync(["-q"]).code).collect();
    assert_same(&s.src(), &s.dst());
    assert_eq!(runs[2], 0, "{runs:?}");
    // and a rename of the one while the other is changed
    s.remove("dst/b");
    std::fs::hard_link(s.dst().join("a"), s.dst().join("b")).unwrap();
    s.rename("src/a", "src/c");
    s.write("src/b", "changed");
    let runs: Vec<i32> = (0..2).map(|_| s.sync(["-q"]).code).collect();
    assert_eq!(runs[1], 0, "{runs:?}");
    s.assert_synced(NONE);
}

#[test]
fn files_with_holes_are_copied_and_counted() {
    let s = Scratch::new();
    let file = std::fs::File::create(s.src().join("holes")).unwrap();
    file.set_len(4 << 20).unwrap();
    drop(file);
    s.write("src/dense", vec![7; 100_000]);
    let ran = s.sync(["--json"]).code(0);
    assert_eq!(ran.summary()["dropped"]["sparse"], 1);
    assert_eq!(ran.summary()["bytes"], (4 << 20) + 100_000);
    s.assert_synced(NONE);
}

#[test]
fn extended_attributes_are_counted() {
    let s = Scratch::new();
    s.write("src/with", "f");
    s.write("src/without", "f");
    let path = s.src().join("with");
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(&path, "user.colour", b"blue", flags).is_err() {
        eprintln!("skipped: no extended attributes on this file system");
        return;
    }
    let ran = s.sync(["--json"]).code(0);
    assert_eq!(ran.summary()["dropped"]["xattrs"], 1);
    s.assert_synced(NONE);
}

// ---- moves

/// Runs a change of SRC; gives the summary, after a look that DST is right.
#[track_caller]
fn moved(s: &Scratch, change: impl FnOnce(&Scratch)) -> serde_json::Value {
    settle();
    change(s);
    let summary = s.sync(["--json", "--max-delete=100%"]).code(0).summary();
    assert_eq!(summary["content_digest"], s.digest("src").as_str());
    s.assert_synced(NONE);
    summary
}

fn movable() -> Scratch {
    let s = Scratch::new();
    for f in ["a", "b", "d/f", "d/g", "d/sub/h", "e/x"] {
        s.write(format!("src/{f}"), format!("content of {f}"));
    }
    s.sync(["-q"]).code(0);
    s
}

fn counts(v: &serde_json::Value) -> [u64; 4] {
    ["moved", "created", "deleted", "bytes"].map(|k| v[k].as_u64().unwrap())
}

#[test]
fn what_was_renamed_is_moved_and_not_copied() {
    let s = movable();
    let v = moved(&s, |s| s.rename("src/a", "src/z"));
    assert_eq!(counts(&v), [1, 0, 0, 0]);
    let v = moved(&s, |s| s.rename("src/z", "src/e/z"));
    assert_eq!(counts(&v), [1, 0, 0, 0]);
    let v = moved(&s, |s| s.rename("src/d", "src/e/d"));
    assert_eq!(counts(&v), [1, 0, 0, 0]);
    let v = moved(&s, |s| {
        s.mkdir("src/new/er");
        s.rename("src/b", "src/new/er/b");
    });
    assert_eq!(counts(&v), [1, 2, 0, 0]);
    let v = moved(&s, |s| {
        s.rename("src/e/d/f", "src/f");
        s.remove("src/e/d");
    });
    // d, d/g, d/sub and d/sub/h go
    assert_eq!(counts(&v), [1, 0, 4, 0]);
}

#[test]
fn a_moved_file_keeps_its_inode() {
    let s = movable();
    let ino = |p: &str| s.dst().join(p).metadata().unwrap().ino();
    let before = (ino("a"), ino("d"), ino("d/sub/h"));
    moved(&s, |s| {
        s.rename("src/a", "src/z");
        s.rename("src/d", "src/y");
    });
    assert_eq!((ino("z"), ino("y"), ino("y/sub/h")), before);
}

#[test]
fn renamed_and_edited_or_touched_it_is_right() {
    let s = movable();
    moved(&s, |s| {
        s.rename("src/a", "src/z");
        s.write("src/z", "edited");
        s.rename("src/b", "src/y");
        chmod(s.src().join("y"), 0o600);
        set_mtime(s.src().join("y"), 1, 1);
        s.rename("src/d", "src/x");
        s.write("src/x/g", "edited");
        s.write("src/x/new", "new");
        chmod(s.src().join("x"), 0o700);
    });
}

#[test]
fn swapped_and_chained_names_are_right() {
    let s = movable();
    moved(&s, |s| {
        s.rename("src/a", "src/t");
        s.rename("src/b", "src/a");
        s.rename("src/t", "src/b");
    });
    moved(&s, |s| {
        s.rename("src/d", "src/t");
        s.rename("src/e", "src/d");
        s.rename("src/t", "src/e");
    });
    moved(&s, |s| {
        s.rename("src/b", "src/c");
        s.rename("src/a", "src/b");
    });
    moved(&s, |s| {
        s.rename("src/c", "src/c2");
        s.mkdir("src/c");
        s.rename("src/c2", "src/c/c");
    });
    moved(&s, |s| {
        s.rename("src/c/c", "src/t");
        s.remove("src/c");
        s.rename("src/t", "src/c");
    });
    // a directory into itself, as it were
    moved(&s, |s| {
        s.rename("src/e", "src/t");
        s.mkdir("src/e");
        s.rename("src/t", "src/e/e");
    });
    moved(&s, |s| {
        s.rename("src/e/e", "src/t");
        s.remove("src/e");
        s.rename("src/t", "src/e");
    });
}

#[test]
fn a_file_and_a_directory_that_change_names_are_right() {
    let s = movable();
    moved(&s, |s| {
        s.rename("src/a", "src/t");
        s.rename("src/d", "src/a");
        s.rename("src/t", "src/d");
    });
    moved(&s, |s| {
        s.rename("src/a/f", "src/t");
        s.remove("src/a");
        s.rename("src/t", "src/a");
    });
}

#[test]
fn one_of_several_equal_files_is_moved_and_the_others_are_right() {
    let s = Scratch::new();
    for f in ["a", "b", "c", "d/a", "d/b"] {
        s.write(format!("src/{f}"), "the same content");
    }
    s.sync(["-q"]).code(0);
    let v = moved(&s, |s| {
        s.rename("src/a", "src/x");
        s.rename("src/b", "src/y");
        s.write("src/z", "the same content");
    });
    assert_eq!(counts(&v), [2, 1, 0, 16]);
    moved(&s, |s| {
        s.remove("src/x");
        s.rename("src/y", "src/d/y");
        s.rename("src/d", "src/dd");
    });
}

#[test]
fn a_copy_of_a_subdirectory_beside_the_renamed_directory_loses_nothing() {
    let copy = |s: &Scratch, from: &str, to: &str| {
        let (from, to) = (s.src().join(from), s.src().join(to));
        tool("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]);
    };
    let s = movable();
    moved(&s, |s| {
        copy(s, "d/sub", "a-copy");
        s.rename("src/d", "src/z");
    });
    let s = movable();
    moved(&s, |s| {
        copy(s, "d/sub", "zz-copy");
        s.rename("src/d", "src/q");
    });
    let s = movable();
    moved(&s, |s| {
        copy(s, "d/f", "0-copy");
        copy(s, "d/sub/h", "zz-copy");
        s.rename("src/d", "src/q");
    });
    let s = movable();
    moved(&s, |s| {
        copy(s, "d", "d2");
        copy(s, "d", "e/d3");
        s.rename("src/d", "src/q");
    });
}

#[test]
fn a_move_does_not_take_along_what_was_written_into_the_destination() {
    let s = movable();
    s.write("dst/d/drift", "drift");
    s.write("dst/d/f", "changed in DST");
    s.write("dst/z", "in the way of the move");
    moved(&s, |s| {
        s.rename("src/d", "src/y");
        s.rename("src/a", "src/z");
    });
}

#[test]
fn a_renamed_directory_of_10_000_files_is_moved_without_reading_any() {
    let s = Scratch::in_memory();
    s.mkdir("src/old");
    for i in 0..10_000 {
        std::fs::write(s.src().join(format!("old/f{i:05}")), format!("{i}")).unwrap();
    }
    s.sync(["-q"]).code(0);
    settle();
    s.sync(["-q"]).code(0);
    s.rename("src/old", "src/new");
    let mut c = s.command("sync");
    c.arg(s.src()).arg(s.dst()).arg("--json");
    let Some((opened, ran)) = s.content_opens(&c, s.path()) else {
        return;
    };
    let v = ran.code(0).summary();
    assert_eq!(counts(&v), [1, 0, 0, 0]);
    assert_eq!(v["files"], 0);
    let of_trees: Vec<&String> = opened.iter().filter(|l| l.contains("/src") || l.contains("/dst")).collect();
    assert_eq!(of_trees, Vec::<&String>::new());
    assert_eq!(s.digest("dst"), s.digest("src"));
}

#[test]
fn an_unchanged_tree_is_not_read() {
    let s = movable();
    symlink("a", s.src().join("l"));
    settle();
    s.sync(["-q"]).code(0);
    for args in [&["-q"][..], &["-n"]] {
        let mut c = s.command("sync");
        c.arg(s.src()).arg(s.dst()).args(args);
        let Some((opened, ran)) = s.content_opens(&c, s.path()) else {
            return;
        };
        ran.code(0);
        let of_trees: Vec<&String> =
            opened.iter().filter(|l| l.contains("/src") || l.contains("/dst")).collect();
        assert_eq!(of_trees, Vec::<&String>::new(), "{args:?}");
    }
    // the eye that looks is not blind
    let mut c = s.command("sync");
    c.arg(s.src()).arg(s.dst()).args(["-q", "--checksum"]);
    let (opened, _) = s.content_opens(&c, s.path()).unwrap();
    assert!(opened.len() >= 12, "{opened:?}");
}

#[test]
fn one_changed_file_is_the_only_one_that_is_read() {
    let s = movable();
    settle();
    s.sync(["-q"]).code(0);
    s.write("src/d/g", "changed");
    settle();
    let mut c = s.command("sync");
    c.arg(s.src()).arg(s.dst()).arg("-q");
    let Some((opened, ran)) = s.content_opens(&c, s.path()) else {
        return;
    };
    ran.code(0);
    let others: Vec<&String> = opened
        .iter()
        .filter(|l| (l.contains("/src") || l.contains("/dst")) && !l.contains("\"g\""))
        .collect();
    assert_eq!(others, Vec::<&String>::new());
}

// ---- trash

/// All files in the trash by their path in it, and what is in them.
fn trash(s: &Scratch) -> Vec<(String, String)> {
    let top = s.dst().join(".syncagent/trash");
    let mut out = Vec::new();
    for e in walkdir::WalkDir::new(&top).into_iter().flatten() {
        // what says when the commit was is none of it
        let displaced = e.depth() > 2;
        if displaced && (e.file_type().is_file() || e.file_type().is_symlink()) {
            let path = e.path().strip_prefix(&top).unwrap().display().to_string();
            let text = match std::fs::read_link(e.path()) {
                Ok(target) => target.display().to_string(),
                Err(_) => std::fs::read_to_string(e.path()).unwrap(),
            };
            out.push((path, text));
        }
    }
    out.sort();
    out
}

fn pairs(v: &[(&str, &str)]) -> Vec<(String, String)> {
    v.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect()
}

#[test]
fn what_was_replaced_or_deleted_is_in_the_trash_at_its_path() {
    for activate in ["--activate=in-place", "--activate=swap"] {
        let s = Scratch::new();
        for f in ["gone", "changed", "stays", "d/deep/gone", "d/deep/changed", "g/all/f"] {
            s.write(format!("src/{f}"), format!("old {f}"));
        }
        symlink("old", s.src().join("d/link"));
        s.sync(["-q"]).code(0);
        s.remove("src/gone");
        s.remove("src/d/deep/gone");
        s.remove("src/g");
        s.remove("src/d/link");
        symlink("new", s.src().join("d/link"));
        s.write("src/changed", "new");
        s.write("src/d/deep/changed", "new");
        s.sync(["-q", activate]).code(0);
        let all = trash(&s);
        for (path, text) in [
            ("changed", "old changed"),
            ("d/deep/changed", "old d/deep/changed"),
            ("d/deep/gone", "old d/deep/gone"),
            ("d/link", "old"),
            ("g/all/f", "old g/all/f"),
            ("gone", "old gone"),
        ] {
            let want = (format!("2/tree/{path}"), text.to_owned());
            assert!(all.contains(&want), "{activate} {path}: {all:?}");
        }
        assert_eq!(
            all.iter().filter(|(p, _)| p.ends_with("stays")).count(),
            usize::from(activate == "--activate=swap")
        );
        s.assert_synced(NONE);
    }
}

#[test]
fn keep_says_how_many_generations_stay() {
    for activate in ["--activate=in-place", "--activate=swap"] {
        let s = Scratch::new();
        for i in 0..6 {
            s.write("src/f", format!("{i}"));
            s.sync(["-q", "--keep=3", activate]).code(0);
            // a run that changes nothing is none
            s.sync(["-q", "--keep=3", activate]).code(0);
        }
        let want = [("4/tree/f", "2"), ("5/tree/f", "3"), ("6/tree/f", "4")];
        assert_eq!(trash(&s), pairs(&want), "{activate}");
        s.write("src/f", "6");
        s.sync(["-q", activate]).code(0);
        assert_eq!(trash(&s), pairs(&[("7/tree/f", "5")]), "{activate}");
        s.write("src/f", "7");
        s.sync(["-q", "--keep=0", activate]).code(0);
        assert_eq!(trash(&s), pairs(&[]), "{activate}");
        s.assert_synced(NONE);
    }
}

#[test]
fn the_trash_stays_below_its_budget() {
    let s = Scratch::new();
    for i in 0..5u8 {
        s.write("src/f", vec![b'0' + i; 10_000]);
        s.sync(["-q", "--keep=10", "--keep-bytes=25000"]).code(0);
    }
    let paths: Vec<String> = trash(&s).into_iter().map(|(p, _)| p).collect();
    assert_eq!(paths, ["4/tree/f", "5/tree/f"]);
    s.write("src/f", vec![b'x'; 50_000]);
    s.sync(["-q", "--keep=10", "--keep-bytes=1b"]).code(0);
    assert_eq!(trash(&s), pairs(&[]));
}

#[test]
fn the_trash_can_be_emptied_by_hand_and_holds_read_only_directories() {
    let s = read_only();
    unlock_all(&s);
    s.remove("src/r");
    s.mkdir("src/r/sub");
    lock_all(&s);
    s.user_sync(["-q", "--max-delete=100%"]).code(0);
    for i in 0..3 {
        unlock_all(&s);
        s.write("src/r/sub/f", format!("{i}"));
        lock_all(&s);
        s.user_sync(["-q"]).code(0);
    }
    let paths: Vec<String> = trash(&s).into_iter().map(|(p, _)| p).collect();
    assert_eq!(paths, ["5/tree/r/sub/f"]);
    s.remove("dst/.syncagent/trash");
    unlock_all(&s);
    s.write("src/r/sub/f", "again");
    lock_all(&s);
    s.user_sync(["-q"]).code(0);
    assert_same(&s.src(), &s.dst());
}

// ---- staging

#[test]
fn staging_elsewhere_on_the_same_file_system_leaves_nothing_behind() {
    let s = movable();
    s.mkdir("stage");
    s.write("src/new/f", "new");
    s.write("src/a", "changed");
    s.remove("src/e");
    let stage = s.path().join("stage");
    let option = format!("--staging={}", stage.display());
    s.sync(["-q", &option]).code(0);
    s.assert_synced(NONE);
    let left = |path: &Path| {
        walkdir::WalkDir::new(path).into_iter().flatten().filter(|e| !e.file_type().is_dir()).count()
    };
    assert_eq!(left(&stage), 0);
    assert_eq!(trash(&s).len(), 2, "a and e/x");
    // a directory that is made
    let option = format!("--staging={}", s.path().join("made/for/it").display());
    s.write("src/a", "changed again");
    s.sync(["-q", &option]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn staging_on_another_file_system_exits_2() {
    if !needs_root("staging_on_another_file_system_exits_2") {
        return;
    }
    let s = movable();
    let _mount = Mounted::tmpfs(&s.path().join("elsewhere"), "size=1m");
    let before = snapshot(&s.dst());
    s.write("src/a", "changed");
    let option = format!("--staging={}", s.path().join("elsewhere").display());
    let ran = s.sync(["-q", &option]).code(2);
    assert!(ran.err.contains("staging path"), "{}", ran.err);
    assert_eq!(snapshot(&s.dst()), before);
    s.assert_nothing_staged();
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn staging_on_another_mount_of_the_same_file_system_exits_2() {
    if !needs_root("staging_on_another_mount_of_the_same_file_system_exits_2") {
        return;
    }
    let s = movable();
    s.mkdir("real");
    let _mount = Mounted::bind(&s.path().join("real"), &s.path().join("bound"));
    s.write("src/a", "changed");
    let option = format!("--staging={}", s.path().join("bound").display());
    s.sync(["-q", &option]).code(2);
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn a_planted_staging_file_never_wins() {
    let s = movable();
    s.write("src/new", "the true content");
    s.write("src/d/new", "the true content");
    s.write("outside", "outside");
    let stage = s.dst().join(".syncagent/stage");
    s.write("dst/.syncagent/stage/new", "a forged content");
    s.write("dst/.syncagent/stage/extra", "extra");
    s.write("dst/.syncagent/stage.old/new", "a forged content");
    std::fs::create_dir_all(stage.join("d")).unwrap();
    symlink(s.path().join("outside"), stage.join("d/new"));
    s.write("dst/.syncagent/journal", "SYNCAGJ1 but then nonsense");
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
    assert_eq!(s.read("outside"), b"outside");
    assert!(!s.exists("dst/extra"));
    // a link in place of the staging directory
    s.mkdir("target");
    symlink(s.path().join("target"), &stage);
    s.write("src/newer", "newer");
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
    assert_eq!(std::fs::read_dir(s.path().join("target")).unwrap().count(), 0);
}

// ---- swap

#[test]
fn a_swap_exchanges_the_whole_directory_and_later_runs_find_nothing() {
    let s = movable();
    let before = s.dst().metadata().unwrap().ino();
    settle();
    s.sync(["-q"]).code(0);
    s.write("src/a", "changed");
    s.remove("src/e");
    s.write("src/n/new", "new");
    settle();
    let ran = s.sync(["-q", "--activate=swap"]).code(0);
    assert_eq!(ran.err, "");
    assert_ne!(s.dst().metadata().unwrap().ino(), before);
    s.assert_synced(NONE);
    assert_eq!(s.sync(["-i"]).code(0).plan(), Vec::<&str>::new());
    let beside: Vec<_> = std::fs::read_dir(s.path())
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .filter(|n| n.to_string_lossy().contains("syncagent"))
        .collect();
    assert_eq!(beside, Vec::<std::ffi::OsString>::new());
    s.run("verify", [s.dst()]).code(0);
    // the index came along: nothing is read
    let mut c = s.command("sync");
    c.arg(s.src()).arg(s.dst()).arg("-q");
    if let Some((opened, _)) = s.content_opens(&c, &s.dst()) {
        assert_eq!(opened, Vec::<String>::new());
    }
    assert!(trash(&s).contains(&("2/tree/e/x".into(), "content of e/x".into())));
}

#[test]
fn a_swap_with_nothing_to_do_does_nothing() {
    let s = movable();
    let before = s.dst().metadata().unwrap().ino();
    s.sync(["-q", "--activate=swap"]).code(0);
    assert_eq!(s.dst().metadata().unwrap().ino(), before);
}

#[test]
fn a_swap_is_refused_where_excluded_content_lives_inside() {
    let s = movable();
    s.write("dst/d/x.log", "local");
    s.write("src/a", "changed");
    let before = full_stat(&s.dst().join("d"));
    let args = ["--activate=swap", "--exclude=*.log"];
    let ran = s.sync(args).code(4);
    assert!(ran.err.contains("in-place"), "{}", ran.err);
    assert_eq!(full_stat(&s.dst().join("d")), before);
    assert_eq!(s.read("dst/a"), b"content of a");
    s.assert_nothing_staged();
    s.sync(["-q", "--exclude=*.log"]).code(0);
    assert_eq!(s.read("dst/a"), b"changed");
}

#[test]
fn a_swap_is_refused_where_a_fifo_lives_inside() {
    let s = movable();
    mkfifo(s.dst().join("d/fifo"));
    s.write("src/a", "changed");
    s.sync(["--activate=swap"]).code(4);
    assert!(s.exists("dst/d/fifo"));
}

#[test]
fn a_dry_run_of_a_swap_that_would_be_refused_exits_4() {
    let s = movable();
    s.write("dst/d/x.log", "local");
    s.write("src/a", "changed");
    let args = ["--activate=swap", "--exclude=*.log", "-n"];
    let ran = s.sync(args).code(4);
    assert!(ran.plan().contains(&"update file a"), "{}", ran.out);
}

#[test]
fn a_swap_of_a_mount_point_is_refused() {
    if !needs_root("a_swap_of_a_mount_point_is_refused") {
        return;
    }
    let s = Scratch::new();
    s.write("src/f", "f");
    let _mount = Mounted::tmpfs(&s.dst(), "size=8m");
    s.sync(["-q"]).code(0);
    s.write("src/f", "g");
    let ran = s.sync(["-q", "--activate=swap"]).code(4);
    assert!(ran.err.contains("mount"), "{}", ran.err);
    assert_eq!(s.read("dst/f"), b"f");
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn a_swap_with_an_unreadable_source_changes_nothing() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.write("src/g", "g");
    s.give("src");
    s.give("all");
    let sync = |args: &[&str]| -> Ran {
        let mut c = s.user_command("sync", "");
        c.arg(s.src()).arg(s.path().join("all/dst")).args(args);
        c.output().unwrap().into()
    };
    sync(&["-q"]).code(0);
    s.write("src/f", "changed");
    chmod(s.src().join("g"), 0o000);
    let ran = sync(&["-q", "--activate=swap"]);
    assert!([1, 3].contains(&ran.code), "{ran:?}");
    assert!(ran.err.contains("g: "), "{}", ran.err);
    assert_eq!(s.read("all/dst/f"), b"f");
    chmod(s.src().join("g"), 0o644);
    sync(&["-q", "--activate=swap"]).code(0);
    assert_same(&s.src(), &s.path().join("all/dst"));
}

// ---- full, read-only and closed disks

#[test]
fn a_full_disk_is_named_and_leaves_the_destination_as_it_was() {
    if !needs_root("a_full_disk_is_named_and_leaves_the_destination_as_it_was") {
        return;
    }
    let s = Scratch::new();
    s.write("src/small", "small");
    s.write("src/d/f", "old");
    let _mount = Mounted::tmpfs(&s.path().join("disk"), "size=2m");
    let dst = s.path().join("disk/dst");
    let sync = |args: &[&str]| -> Ran {
        let mut c = s.command("sync");
        c.arg(s.src()).arg(&dst).args(args).output().unwrap().into()
    };
    sync(&["-q"]).code(0);
    let before = snapshot(&dst);
    s.write("src/d/f", "new");
    s.write("src/d/new", "new");
    for i in 0..8 {
        s.write(format!("src/big{i}"), vec![i; 500_000]);
    }
    for _ in 0..2 {
        let ran = sync(&["-q"]).code(1);
        assert!(ran.err.contains("o space left"), "{}", ran.err);
        assert!(ran.err.contains("big"), "no path: {}", ran.err);
        assert_eq!(snapshot(&dst), before);
    }
    for i in 2..8 {
        s.remove(format!("src/big{i}"));
    }
    sync(&["-q"]).code(0);
    assert_same(&s.src(), &dst);
    for name in ["stage", "stage.old", "stage.done", "unplaced", "journal"] {
        assert!(!dst.join(".syncagent").join(name).exists(), "{name} is left");
    }
}

#[test]
fn a_disk_that_others_filled_up_is_named_and_heals() {
    if !needs_root("a_disk_that_others_filled_up_is_named_and_heals") {
        return;
    }
    let s = Scratch::new();
    let _mount = Mounted::tmpfs(&s.path().join("disk"), "size=1m,nr_inodes=60");
    let dst = s.path().join("disk/dst");
    let sync = || -> Ran {
        let mut c = s.command("sync");
        c.arg(s.src()).arg(&dst).arg("-q").output().unwrap().into()
    };
    s.write("src/a", "a");
    sync().code(0);
    let before = snapshot(&dst);
    // no inodes
    for i in 0..100 {
        s.write(format!("src/many/f{i}"), "x");
    }
    let ran = sync().code(1);
    assert!(ran.err.contains("o space left"), "{}", ran.err);
    assert_eq!(snapshot(&dst), before);
    s.remove("src/many");
    // not one byte
    let _ = std::fs::write(s.path().join("disk/filler"), vec![0; 2 << 20]);
    s.write("src/a", "changed");
    s.write("src/b", "b");
    let ran = sync();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("o space left"), "{}", ran.err);
    assert_eq!(snapshot(&dst), before);
    s.remove("disk/filler");
    sync().code(0);
    assert_same(&s.src(), &dst);
}

#[test]
fn a_full_state_directory_is_named() {
    if !needs_root("a_full_state_directory_is_named") {
        return;
    }
    let s = Scratch::new();
    s.write("src/f", "f");
    let _mount = Mounted::tmpfs(&s.path().join("state"), "size=64k");
    let _ = std::fs::write(s.path().join("state/filler"), vec![0; 65536]);
    let ran = s.sync(["-q"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("/state"), "{}", ran.err);
    s.remove("state/filler");
    let _ = ran;
    drop(_mount);
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn a_read_only_destination_is_named_and_can_be_dry_run() {
    if !needs_root("a_read_only_destination_is_named_and_can_be_dry_run") {
        return;
    }
    let s = Scratch::new();
    s.write("src/f", "f");
    let mount = Mounted::tmpfs(&s.path().join("disk"), "size=2m");
    let dst = s.path().join("disk/dst");
    let sync = |args: &[&str]| -> Ran {
        let mut c = s.command("sync");
        c.arg(s.src()).arg(&dst).args(args).output().unwrap().into()
    };
    mount.remount("remount,ro");
    let ran = sync(&["-q"]).code(1);
    assert!(ran.err.contains("ead-only file system"), "{}", ran.err);
    assert!(ran.err.contains("disk/dst"), "{}", ran.err);
    assert_eq!(sync(&["-n"]).code(0).plan(), ["create file f"]);
    mount.remount("remount,rw");
    sync(&["-q"]).code(0);
    let before = full_stat(&dst);
    s.write("src/f", "changed");
    mount.remount("remount,ro");
    let ran = sync(&["-q"]).code(1);
    assert!(ran.err.contains("ead-only file system"), "{}", ran.err);
    assert_eq!(sync(&["-n"]).code(0).plan(), ["update file f"]);
    assert_eq!(full_stat(&dst), before);
    mount.remount("remount,rw");
    sync(&["-q"]).code(0);
    assert_same(&s.src(), &dst);
}

#[test]
fn a_destination_without_permission_is_named() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.give("dst");
    s.user_sync(["-q"]).code(0);
    s.write("src/f", "changed");
    // its directory is somebody else's (or closed)
    if is_root() {
        tool("chown", &["-R".as_ref(), "0:0".as_ref(), s.dst().as_os_str()]);
    } else {
        chmod(s.dst().join(".syncagent"), 0o000);
    }
    let ran = s.user_sync(["-q"]).code(1);
    assert!(ran.err.contains("ermission denied"), "{}", ran.err);
    assert!(ran.err.contains("/dst"), "{}", ran.err);
    assert_eq!(s.read("dst/f"), b"f");
    if !is_root() {
        chmod(s.dst().join(".syncagent"), 0o700);
    }
    s.give("dst");
    s.user_sync(["-q"]).code(0);
    assert_eq!(s.read("dst/f"), b"changed");
    // a parent in which nothing can be made
    s.mkdir("closed");
    chmod(s.path().join("closed"), 0o555);
    let mut c = s.user_command("sync", "");
    c.arg(s.src()).arg(s.path().join("closed/new/dst"));
    let ran = Ran::from(c.output().unwrap()).code(1);
    assert!(ran.err.contains("closed/new/dst"), "{}", ran.err);
}

#[test]
fn a_file_that_belongs_to_another_is_named_and_the_rest_goes_on() {
    if !needs_root("a_file_that_belongs_to_another_is_named_and_the_rest_goes_on") {
        return;
    }
    // in a directory of somebody else, also the user's own file cannot be replaced
    let s = Scratch::new();
    s.write("src/closed/f", "f");
    s.write("src/open/f", "f");
    s.give("dst");
    s.user_sync(["-q"]).code(0);
    let closed = s.dst().join("closed");
    tool("chown", &["-R".as_ref(), "0:0".as_ref(), closed.as_os_str()]);
    s.write("src/closed/f", "changed");
    s.write("src/open/f", "changed");
    let ran = s.user_sync(["-q"]).code(3);
    assert!(ran.err.contains("closed"), "{}", ran.err);
    assert_eq!(s.read("dst/open/f"), b"changed");
    assert_eq!(s.read("dst/closed/f"), b"f");
    s.give("dst");
    s.user_sync(["-q"]).code(0);
    assert_same(&s.src(), &s.dst());
    s.assert_nothing_staged();
}

#[test]
fn another_file_system_mounted_in_the_destination_is_named_and_the_rest_goes_on() {
    if !needs_root("another_file_system_mounted_in_the_destination_is_named_and_the_rest_goes_on") {
        return;
    }
    let s = Scratch::new();
    s.write("src/m/f", "f");
    s.write("src/g", "g");
    s.mkdir("dst");
    let _mount = Mounted::tmpfs(&s.dst().join("m"), "size=1m");
    s.write("dst/m/f", "f");
    set_mtime_like(s.dst().join("m/f"), &s.src().join("m/f").metadata().unwrap());
    // it cannot be taken over silently: what is mounted there stays another's
    s.sync(["-q", "--adopt"]).code(0);
    s.write("src/m/f", "changed");
    s.write("src/g", "changed");
    let ran = s.sync(["-q"]).code(3);
    assert!(ran.err.contains("m/f: ") && ran.err.contains("mounted"), "{}", ran.err);
    assert_eq!(s.read("dst/g"), b"changed");
    assert_eq!(s.read("dst/m/f"), b"f");
    s.assert_nothing_staged();
}

// ---- live sources and destinations

#[test]
fn files_that_change_and_vanish_during_the_run_are_whole_or_reported() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let s = Scratch::in_memory();
    for i in 0..300 {
        s.write(format!("src/d{}/f{i}", i % 7), vec![b'a'; 20_000]);
    }
    let stop = AtomicBool::new(false);
    let mut bad = String::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u32;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let i = n as usize % 300;
                let path = s.src().join(format!("d{}/f{i}", i % 7));
                match n % 4 {
                    0 => drop(std::fs::remove_file(path)),
                    _ => {
                        // replaced at once, as a careful writer does: whole files of one letter
                        let new = s.path().join("writing");
                        let letter = b'a' + u8::try_from(n % 26).unwrap();
                        std::fs::write(&new, vec![letter; 20_000 + i]).unwrap();
                        std::fs::rename(new, path).unwrap();
                    }
                }
            }
        });
        for _ in 0..6 {
            let ran = s.sync(["-q", "--max-delete=100%"]);
            if ![0, 3].contains(&ran.code) {
                let _ = writeln!(bad, "{ran:?}");
            }
            for (path, seen) in snapshot(&s.dst()) {
                let torn = seen.content.windows(2).any(|w| w[0] != w[1]);
                if seen.kind == 'f' && (torn || seen.content.len() < 20_000) {
                    let _ = writeln!(bad, "{} is torn", String::from_utf8_lossy(&path));
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(bad, "");
    s.sync(["-q", "--max-delete=100%"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn a_growing_file_does_not_stop_the_others() {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicBool, Ordering};
    let s = Scratch::in_memory();
    s.write("src/log", "start\n");
    s.write("src/z", "z");
    let stop = AtomicBool::new(false);
    let mut codes = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let path = s.src().join("log");
            let mut log = std::fs::File::options().append(true).open(path).unwrap();
            for _ in 0..400_000 {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                log.write_all(b"line\n").unwrap();
            }
        });
        for i in 0..4 {
            s.write("src/z", format!("{i}"));
            let ran = s.sync(["-q"]);
            codes.push(ran.code);
            assert_eq!(s.read("dst/z"), format!("{i}").as_bytes());
            if let Ok(log) = std::fs::read(s.dst().join("log")) {
                let text = String::from_utf8(log).unwrap();
                let whole = text.lines().all(|l| "start line".contains(l));
                assert!(whole, "torn");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(codes.iter().all(|c| [0, 3].contains(c)), "{codes:?}");
    s.sync(["-q"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn a_swapped_in_link_does_not_lead_out_of_the_destination() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let s = Scratch::in_memory();
    for i in 0..50 {
        s.write(format!("src/d/f{i}"), format!("{i}"));
    }
    s.sync(["-q"]).code(0);
    s.mkdir("outside");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (d, away) = (s.dst().join("d"), s.dst().join("away"));
            while !stop.load(Ordering::Relaxed) {
                // the directory goes aside and a link out of the tree comes, and back
                if std::fs::rename(&d, &away).is_ok() {
                    let _ = std::os::unix::fs::symlink(s.path().join("outside"), &d);
                    let _ = std::fs::remove_file(&d);
                    let _ = std::fs::rename(&away, &d);
                }
            }
        });
        for round in 0..8 {
            for i in 0..50 {
                s.write(format!("src/d/f{i}"), format!("{round} {i}"));
            }
            let ran = s.sync(["-q", "--max-delete=100%"]);
            assert!([0, 1, 3].contains(&ran.code), "{ran:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(std::fs::read_dir(s.path().join("outside")).unwrap().count(), 0);
    s.sync(["-q", "--max-delete=100%"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn rsyncs_own_view_of_a_deep_deletion() {
    let s = Scratch::new();
    s.write("src/a/b/c/keep", "k");
    s.sync(["-q"]).code(0);
    for f in ["a/extra", "a/b/extra/x", "a/b/c/extra", "extra/deep/er/x"] {
        s.write(format!("dst/{f}"), "extra");
    }
    s.sync(["-q", "--max-delete=3"]).code(4);
    s.sync(["-q", "--max-delete=4"]).code(0);
    s.assert_synced(NONE);
}

#[test]
fn a_process_with_little_memory_and_few_files_open_copes() {
    let s = Scratch::new();
    for i in 0..2000 {
        s.write(format!("src/d{}/e{}/f{i}", i % 50, i % 7), format!("{i}"));
    }
    let mut c = Command::new("sh");
    c.args(["-c", "ulimit -n 64 && exec \"$@\"", "sh"]);
    let sync = s.command("sync");
    c.arg(sync.get_program()).args(sync.get_args());
    c.env("SYNCAGENT_STATE_DIR", s.path().join("state"));
    c.arg(s.src()).arg(s.dst()).args(["-q", "--threads", "2"]);
    Ran::from(c.output().unwrap()).code(0);
    s.assert_synced(NONE);
    let file = s.dst().join("d0/e0/f0");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o644);
}
