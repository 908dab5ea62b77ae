//! What the command line promises: output, exit codes, locks, paths, filters, state.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use base64::Engine as _;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    Mounted, PATIENCE, Ran, Running, Scratch, assert_same, chmod, full_stat, is_root, mkfifo, needs_root,
    program, raw, set_mtime, set_mtime_like, settle, snapshot, symlink, tool,
};

/// A tree and a change of it that needs every kind of operation.
fn everything() -> Scratch {
    let s = Scratch::new();
    for path in ["attrs-file", "gone-file", "updated-file", "old-name"] {
        s.write(format!("src/{path}"), path);
    }
    s.write("src/gone-dir/in/f", "g");
    s.write("src/moved-dir/a", "ma");
    s.write("src/moved-dir/b", "mb");
    s.mkdir("src/attrs-dir");
    symlink("one", s.src().join("updated-link"));
    symlink("gone\ttarget", s.src().join("gone-link"));
    s.write("src/swapped", "a file");
    s.sync(["-q"]).code(0);
    chmod(s.src().join("attrs-file"), 0o600);
    chmod(s.src().join("attrs-dir"), 0o700);
    s.remove("src/gone-file");
    s.remove("src/gone-dir");
    s.remove("src/gone-link");
    s.write("src/updated-file", "changed");
    s.rename("src/old-name", "src/new-name");
    s.rename("src/moved-dir", "src/arrived-dir");
    s.remove("src/updated-link");
    symlink("two", s.src().join("updated-link"));
    symlink("x\ny", s.src().join("new-link"));
    s.write("src/new-dir/f", "n");
    s.write("src/new-dir.d", "sorts between");
    s.remove("src/swapped");
    s.write("src/swapped/f", "in a directory");
    s
}

const EVERYTHING: [&str; 18] = [
    "move dir arrived-dir <- moved-dir",
    "attrs dir attrs-dir",
    "attrs file attrs-file",
    "delete dir gone-dir",
    "delete dir gone-dir/in",
    "delete file gone-dir/in/f",
    "delete file gone-file",
    "delete link gone-link -> gone\\ttarget",
    "create dir new-dir",
    "create file new-dir.d",
    "create file new-dir/f",
    "create link new-link -> x\\ny",
    "move file new-name <- old-name",
    "delete file swapped",
    "create dir swapped",
    "create file swapped/f",
    "update file updated-file",
    "update link updated-link -> two",
];

fn expected() -> Vec<&'static str> {
    EVERYTHING.into_iter().filter(|l| !l.is_empty()).collect()
}

#[test]
fn plan_lines_are_exactly_as_documented_and_sorted_by_path() {
    let s = everything();
    assert_eq!(s.sync(["-n"]).code(0).plan(), expected());
}

#[test]
fn a_dry_run_prints_what_the_real_run_then_does() {
    let s = everything();
    let before = full_stat(&s.dst());
    let dry = s.sync(["--dry-run"]).code(0);
    assert_eq!(s.sync(["-n", "-i"]).code(0).plan(), dry.plan());
    let of_tree = |stat: Vec<String>| {
        let keep = |l: &String| !l.contains(".syncagent");
        stat.into_iter().filter(keep).collect::<Vec<_>>()
    };
    assert_eq!(of_tree(full_stat(&s.dst())), of_tree(before));
    let real = s.sync(["-i"]).code(0);
    assert_eq!(real.plan(), dry.plan());
    assert_eq!(real.plan(), expected());
    s.assert_synced([""; 0]);
    assert_eq!(s.sync(["-i"]).code(0).plan(), Vec::<&str>::new());
}

#[test]
fn without_itemize_no_plan_is_printed_and_quiet_prints_nothing() {
    let s = everything();
    let ran = s.sync([""; 0]).code(0);
    assert_eq!(ran.plan(), Vec::<&str>::new());
    assert!(ran.out.starts_with("synced: "), "{}", ran.out);
    let s = everything();
    let ran = s.sync(["-q"]).code(0);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""));
}

#[test]
fn a_swap_prints_and_does_the_same() {
    let s = everything();
    let ran = s.sync(["-i", "--activate", "swap"]).code(0);
    assert_eq!(ran.plan(), expected());
    s.assert_synced([""; 0]);
}

#[test]
fn json_objects_say_what_the_lines_say() {
    let s = everything();
    let dry = s.sync(["-n", "--json"]).code(0);
    let ran = s.sync(["--json"]).code(0);
    let mut lines: Vec<Value> = ran.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let summary = lines.pop().unwrap();
    let text = |v: &Value, key: &str| v[key].as_str().map(str::to_owned);
    let shown: Vec<String> = lines
        .iter()
        .map(|o| {
            let mut line = ["op", "kind", "path"].map(|k| text(o, k).unwrap()).join(" ");
            if let Some(target) = text(o, "target") {
                line += &format!(" -> {}", target.replace('\n', "\\n").replace('\t', "\\t"));
            }
            if let Some(from) = text(o, "from") {
                line += &format!(" <- {from}");
            }
            assert!(o["bytes"].is_u64(), "{o}");
            line
        })
        .collect();
    assert_eq!(shown, expected());
    let of = |path: &str| {
        let is = |o: &&Value| o["path"] == path && o["op"] != "delete";
        lines.iter().find(is).unwrap()["bytes"].as_u64()
    };
    assert_eq!(of("updated-file"), Some(7));
    assert_eq!(of("new-dir"), Some(0));
    let all = &summary["summary"];
    // updated-file, new-dir/f, new-dir.d, swapped/f
    assert_eq!((&all["files"], &all["bytes"]), (&4.into(), &35.into()));
    let counts = ["created", "updated", "attrs", "moved", "deleted", "skipped"];
    assert_eq!(counts.map(|k| all[k].as_u64().unwrap()), [6, 2, 2, 2, 6, 0]);
    assert_eq!(all["errors"], Value::Array(vec![]));
    assert_eq!(all["plan_id"].as_str().unwrap().len(), 16);
    assert!(all["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(all["content_digest"], s.digest("dst").as_str());
    assert_eq!(all["content_digest"], s.digest("src").as_str());
    // the dry run has said so before
    let said = dry.summary();
    for key in counts.iter().chain(&["files", "bytes", "plan_id", "content_digest"]) {
        assert_eq!(said[key], all[key], "{key}");
    }
    let head = |out: &str| {
        let mut lines: Vec<String> = out.lines().map(String::from).collect();
        lines.pop();
        lines
    };
    assert_eq!(head(&dry.out), head(&ran.out));
}

#[test]
fn names_are_escaped_as_c_does_without_octal() {
    let s = Scratch::new();
    let names: [(&[u8], &str); 8] = [
        (b"a\nb", "a\\nb"),
        (b"a\tb", "a\\tb"),
        (b"a\\b", "a\\\\b"),
        (b"a\x1b[1mb", "a\\x1b[1mb"),
        (b"a\xffb", "a\\xffb"),
        (b"a b", "a b"),
        ("größe".as_bytes(), "größe"),
        (b"a\x7f\x01", "a\\x7f\\x01"),
    ];
    for (name, _) in names {
        s.write(raw(&[b"src/", name].concat()), "x");
    }
    symlink(raw(b"to\xfe\n"), s.src().join("~link"));
    let mut sorted = names;
    sorted.sort();
    let mut want: Vec<String> = sorted.iter().map(|(_, shown)| format!("create file {shown}")).collect();
    want.push("create link ~link -> to\\xfe\\n".into());
    // "größe" begins with g, below ~
    let ran = s.sync(["-i"]).code(0);
    assert_eq!(ran.plan(), want);
    s.assert_synced([""; 0]);
    assert!(!ran.out.contains('\x1b') && !ran.out.contains('\t'));
}

#[test]
fn names_that_are_not_utf8_are_base64_in_json() {
    let s = Scratch::new();
    s.write(raw(b"src/one\xff"), "content");
    symlink(raw(b"t\xfe"), s.src().join(raw(b"l\xfd")));
    let ran = s.sync(["--json"]).code(0);
    let object =
        |out: &str, n: usize| -> Value { serde_json::from_str(out.lines().nth(n).unwrap()).unwrap() };
    let b64 = |b: &[u8]| Value::from(base64::engine::general_purpose::STANDARD.encode(b));
    let link = object(&ran.out, 0);
    assert_eq!(link["path_bytes"], b64(b"l\xfd"));
    assert_eq!(link["target_bytes"], b64(b"t\xfe"));
    assert!(link.get("path").is_none() && link.get("target").is_none());
    let file = object(&ran.out, 1);
    assert_eq!(file["path_bytes"], b64(b"one\xff"));
    std::fs::rename(s.src().join(raw(b"one\xff")), s.src().join(raw(b"two\xff"))).unwrap();
    let ran = s.sync(["--json"]).code(0);
    let moved = object(&ran.out, 0);
    assert_eq!(moved["op"], "move");
    assert_eq!(moved["path_bytes"], b64(b"two\xff"));
    assert_eq!(moved["from_bytes"], b64(b"one\xff"));
}

#[test]
fn the_roots_own_attributes_are_a_line_of_their_own() {
    let s = Scratch::new();
    s.write("src/a", "a");
    s.sync(["-q"]).code(0);
    chmod(s.src(), 0o750);
    assert_eq!(s.sync(["-n"]).code(0).plan(), ["attrs dir ."]);
    let json = s.sync(["-n", "--json"]).code(0);
    let first: Value = serde_json::from_str(json.out.lines().next().unwrap()).unwrap();
    assert_eq!((&first["op"], &first["path"]), (&"attrs".into(), &".".into()));
    assert_eq!(json.summary()["attrs"], 1);
    assert_eq!(s.sync(["-i"]).code(0).plan(), ["attrs dir ."]);
    s.assert_synced([""; 0]);
}

#[test]
fn usage_errors_exit_2() {
    let s = Scratch::new();
    s.write("src/f", "f");
    for args in [
        &["--no-such-option"][..],
        &["--activate", "sideways"],
        &["--keep", "-1"],
        &["--keep-bytes", "much"],
        &["--lock-wait", "soon"],
        &["--threads", "0"],
        &["--owner", "no-such-user-here"],
        &["--owner", ":"],
        &["--exclude-from", "no/such/file"],
        &["--activate=swap", "--no-delete"],
        &["--activate=swap", "--staging=x"],
    ] {
        let ran = s.sync(args).code(2);
        assert!(!ran.err.is_empty(), "{args:?}");
    }
    assert!(!s.exists("dst"), "DST was made for nothing");
    for args in [&["sync"][..], &["sync", "src"], &[], &["nonsense"]] {
        let out = Command::new(program()).args(args).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_pattern_that_is_not_one_exits_2() {
    let s = Scratch::new();
    s.write("src/f", "f");
    for bad in ["[z-a]", "a{b", "a\\"] {
        let ran = s.sync(["--exclude", bad]).code(2);
        assert!(ran.err.contains(bad), "{}", ran.err);
        s.write("patterns", format!("# fine\n*.log\n{bad}\n"));
        let from = s.path().join("patterns");
        s.sync([OsStr::new("--exclude-from"), from.as_os_str()]).code(2);
    }
    assert!(!s.exists("dst"));
}

#[test]
fn help_and_version_exit_0_and_list_the_exit_codes() {
    let run = |arg: &str| Ran::from(Command::new(program()).arg(arg).output().unwrap());
    let help = run("--help").code(0);
    for code in ["0 ", "1 ", "2 ", "3 ", "4 ", "5 ", "6 ", "7 ", "130"] {
        assert!(help.out.contains(code), "{code}");
    }
    run("--version").code(0);
}

#[test]
fn source_and_destination_must_be_directories() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.write("file", "x");
    let sync = |a: &str, b: &str| -> Ran {
        let mut c = s.command("sync");
        c.args([a, b]).current_dir(s.path()).output().unwrap().into()
    };
    sync("file", "dst").code(2);
    sync("src", "file").code(2);
    sync("src", "file/below").code(2);
    sync("src/f/x", "dst").code(2);
    assert_eq!(s.read("file"), b"x");
}

#[test]
fn equal_and_nested_paths_exit_2() {
    let s = Scratch::new();
    s.write("src/d/f", "f");
    s.mkdir("other");
    symlink("src", s.path().join("link"));
    symlink("src/d", s.path().join("deep-link"));
    let before = full_stat(&s.src());
    let sync = |a: &str, b: &str| -> Ran {
        let mut c = s.command("sync");
        c.args([a, b]).current_dir(s.path()).output().unwrap().into()
    };
    for (a, b) in [
        ("src", "src"),
        ("src", "src/"),
        ("src", "./src/../src"),
        ("src", "src/d"),
        ("src/d", "src"),
        ("src", "src/new/deeper"),
        ("src", "link"),
        ("link", "src"),
        ("src", "link/d"),
        ("src", "link/new"),
        ("src", "deep-link"),
        ("deep-link", "src"),
        ("link/d", "src/d"),
        ("src", "other/../src/d"),
    ] {
        let ran = sync(a, b);
        assert_eq!(ran.code, 2, "{a} {b}: {ran:?}");
        assert!(ran.err.contains("source"), "{a} {b}: {}", ran.err);
    }
    assert_eq!(full_stat(&s.src()), before);
}

#[test]
fn a_name_that_begins_like_the_source_is_not_nested() {
    let s = Scratch::new();
    s.write("src/f", "f");
    let mut c = s.command("sync");
    let ran: Ran = c.args(["src", "src2"]).current_dir(s.path()).output().unwrap().into();
    ran.code(0);
    assert_same(&s.src(), &s.path().join("src2"));
}

#[test]
fn a_bind_mount_of_the_source_is_refused_as_destination() {
    if !needs_root("a_bind_mount_of_the_source_is_refused_as_destination") {
        return;
    }
    let s = Scratch::new();
    s.write("src/d/f", "f");
    let before = full_stat(&s.src());
    let _mount = Mounted::bind(&s.src(), &s.path().join("bound"));
    for (a, b) in
        [("src", "bound"), ("bound", "src"), ("src", "bound/d"), ("src", "bound/new"), ("bound/d", "src")]
    {
        let mut c = s.command("sync");
        let ran: Ran = c.args([a, b]).current_dir(s.path()).output().unwrap().into();
        assert_eq!(ran.code, 2, "{a} {b}: {ran:?}");
    }
    assert_eq!(full_stat(&s.src()), before);
}

#[test]
fn a_bind_mount_of_a_subdirectory_of_the_source_is_refused_as_destination() {
    if !needs_root("a_bind_mount_of_a_subdirectory_of_the_source_is_refused_as_destination") {
        return;
    }
    let s = Scratch::new();
    s.write("src/f", "f");
    s.mkdir("src/sub");
    let before = full_stat(&s.src());
    let _mount = Mounted::bind(&s.src().join("sub"), &s.dst());
    let ran = s.sync(["-q"]);
    assert_eq!(full_stat(&s.src()), before, "SRC was written to: {ran:?}");
    ran.code(2);
}

#[test]
fn a_bind_mount_of_a_subdirectory_of_the_destination_is_refused_as_source() {
    if !needs_root("a_bind_mount_of_a_subdirectory_of_the_destination_is_refused_as_source") {
        return;
    }
    let s = Scratch::new();
    s.write("dst/sub/f", "f");
    let _mount = Mounted::bind(&s.dst().join("sub"), &s.src());
    let ran = s.sync(["-q", "--adopt"]);
    assert_eq!(s.read("dst/sub/f"), b"f", "the source was deleted: {ran:?}");
    ran.code(2);
}

#[test]
fn trailing_slashes_and_dots_mean_nothing() {
    let s = Scratch::new();
    s.write("src/d/f", "f");
    for (a, b) in [
        ("src/", "dst"),
        ("src", "dst/"),
        ("src//", "./dst///"),
        ("./src/.", "dst/."),
        ("src/d/..", "src/../dst"),
    ] {
        let mut c = s.command("sync");
        let ran: Ran = c.args([a, b]).current_dir(s.path()).output().unwrap().into();
        assert_eq!(ran.code, 0, "{a} {b}: {ran:?}");
        assert_same(&s.src(), &s.dst());
        assert!(!s.exists("dst/src"));
    }
}

#[test]
fn the_destination_is_made_with_its_parents() {
    let s = Scratch::new();
    s.write("src/d/f", "f");
    let mut c = s.command("sync");
    let ran: Ran = c.args(["src", "a/b/c/dst"]).current_dir(s.path()).output().unwrap().into();
    ran.code(0);
    assert_same(&s.src(), &s.path().join("a/b/c/dst"));
}

#[test]
fn links_on_the_way_to_source_and_destination_are_followed() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.mkdir("real");
    symlink("src", s.path().join("to-src"));
    symlink("real", s.path().join("to-dst"));
    let mut c = s.command("sync");
    let ran: Ran = c.args(["to-src", "to-dst"]).current_dir(s.path()).output().unwrap().into();
    ran.code(0);
    assert_same(&s.src(), &s.path().join("real"));
    assert!(s.path().join("to-dst").is_symlink());
    // a dangling link is not replaced
    symlink("nowhere", s.path().join("dangling"));
    let mut c = s.command("sync");
    let ran: Ran = c.args(["src", "dangling"]).current_dir(s.path()).output().unwrap().into();
    ran.code(2);
    assert!(!s.exists("nowhere") && s.path().join("dangling").is_symlink());
}

#[test]
fn the_source_is_never_written_to() {
    let s = everything();
    symlink("/etc", s.src().join("out"));
    mkfifo(s.src().join("fifo"));
    chmod(s.src().join("new-dir"), 0o555);
    let before = full_stat(&s.src());
    s.sync(["-q"]).code(0);
    s.sync(["-q", "--checksum"]).code(0);
    s.sync(["-q", "--activate=swap", "--checksum"]).code(0);
    s.digest("src");
    s.write("dst/drift", "drift");
    s.sync(["-q"]).code(0);
    assert_eq!(full_stat(&s.src()), before);
}

#[test]
fn a_second_run_is_told_who_holds_the_lock() {
    let s = Scratch::new();
    let big = s.src().join("big");
    std::fs::File::create(&big).unwrap().set_len(1 << 42).unwrap();
    let mut first = Running::start(s.command("sync").arg(s.src()).arg(s.dst()));
    first.wait_for_open("src/big");
    let ran = s.sync([""; 0]).code(6);
    let pid = format!("process {} ", first.pid());
    assert!(ran.err.contains(&pid), "{}", ran.err);
    assert!(ran.err.contains("since 20"), "{}", ran.err);
    let json = s.sync(["--json"]).code(6);
    let error: Value = serde_json::from_str(json.out.trim()).unwrap();
    assert_eq!(error["error"]["exit"], 6);
    // a wait that ends too early
    s.sync(["--lock-wait", "20ms"]).code(6);
    // a dry run shares nothing with a commit either
    s.sync(["-n"]).code(6);
    // another source into the same destination is locked out as well
    s.write("src2/f", "f");
    let mut c = s.command("sync");
    let ran: Ran = c.args(["src2", "dst"]).current_dir(s.path()).output().unwrap().into();
    ran.code(6);
    // a wait that is long enough
    let mut second =
        Running::start(s.command("sync").arg(s.src()).arg(s.dst()).args(["--lock-wait", "50s", "-q"]));
    second.wait_for_open(".syncagent/lock");
    std::fs::remove_file(&big).unwrap();
    s.write("src/small", "small");
    first.signal(Signal::KILL);
    second.end_within(PATIENCE).code(0);
    s.assert_synced([""; 0]);
}

#[test]
fn an_interrupt_ends_the_wait_for_a_lock() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.sync(["-q"]).code(0);
    let lock = std::fs::File::open(s.dst().join(".syncagent/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut c = s.command("sync");
    let mut waiting = Running::start(c.arg(s.src()).arg(s.dst()).args(["--lock-wait", "600s"]));
    waiting.wait_for_open(".syncagent/lock");
    waiting.signal(Signal::INT);
    waiting.end_within(PATIENCE).code(130);
}

#[test]
fn an_interrupt_ends_the_scan_at_130_and_changes_nothing() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let s = Scratch::new();
        s.write("src/a", "old");
        s.sync(["-q"]).code(0);
        let before = snapshot(&s.dst());
        s.write("src/a", "new");
        for i in 0..500 {
            let file = std::fs::File::create(s.src().join(format!("big{i:03}"))).unwrap();
            file.set_len(1 << 28).unwrap();
        }
        let run = Running::start(s.command("sync").arg(s.src()).arg(s.dst()));
        let fds = format!("/proc/{}/fd", run.pid());
        crate::support::wait_until("a big file is read", || {
            let fds = std::fs::read_dir(&fds).into_iter().flatten().flatten();
            fds.filter_map(|fd| std::fs::read_link(fd.path()).ok())
                .any(|to| to.to_string_lossy().contains("src/big"))
        });
        run.signal(signal);
        let ran = run.end_within(PATIENCE).code(130);
        assert!(ran.err.contains("interrupted"), "{}", ran.err);
        assert_eq!(snapshot(&s.dst()), before);
        for i in 0..500 {
            s.remove(format!("src/big{i:03}"));
        }
        s.sync(["-q"]).code(0);
        s.assert_synced([""; 0]);
    }
}

#[test]
fn an_interrupt_ends_the_reading_of_one_huge_file() {
    let s = Scratch::new();
    let file = std::fs::File::create(s.src().join("huge")).unwrap();
    file.set_len(1 << 42).unwrap();
    let mut run = Running::start(s.command("sync").arg(s.src()).arg(s.dst()));
    run.wait_for_open("src/huge");
    run.signal(Signal::INT);
    run.end_within(PATIENCE).code(130);
}

#[test]
fn state_goes_where_it_is_told() {
    let s = Scratch::new();
    s.write("src/f", "f");
    let trees = |dir: &str| s.exists(format!("{dir}/trees"));
    let at = |dir: &str| s.path().join(dir);
    // the option before all variables
    let mut c = s.command("sync");
    c.arg(s.src()).arg(s.dst()).arg("--state-dir");
    c.arg(at("by-option")).env("STATE_DIRECTORY", at("systemd"));
    assert_eq!(c.status().unwrap().code(), Some(0));
    assert!(trees("by-option") && !trees("state") && !trees("systemd"));
    // our variable before systemd's
    let mut c = s.command("sync");
    c.arg(s.src()).arg(s.dst()).env("STATE_DIRECTORY", at("systemd"));
    assert_eq!(c.status().unwrap().code(), Some(0));
    assert!(trees("state") && !trees("systemd"));
    // systemd's, which may be a list
    let list = format!("{}:{}", at("systemd").display(), at("second").display());
    let mut c = s.command("sync");
    c.arg(s.src()).arg(s.dst());
    c.env_remove("SYNCAGENT_STATE_DIR").env("STATE_DIRECTORY", list).env("XDG_STATE_HOME", at("xdg"));
    assert_eq!(c.status().unwrap().code(), Some(0));
    assert!(trees("systemd") && !s.exists("second") && !s.exists("xdg"));
    // an empty variable is none
    let mut c = s.command("sync");
    c.arg(s.src()).arg(s.dst());
    c.env("SYNCAGENT_STATE_DIR", "").env("STATE_DIRECTORY", at("systemd2"));
    assert_eq!(c.status().unwrap().code(), Some(0));
    assert!(trees("systemd2"));
    // not in the tree
    assert!(!s.exists("dst/trees"));
}

#[test]
fn a_user_keeps_state_at_home() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.give("dst");
    s.give("xdg");
    s.give("home");
    let user = |xdg: Option<&str>| {
        let mut c = s.user_command("sync", "");
        c.arg(s.src()).arg(s.dst()).env_remove("SYNCAGENT_STATE_DIR");
        c.env("HOME", s.path().join("home"));
        match xdg {
            Some(xdg) => c.env("XDG_STATE_HOME", xdg),
            None => c.env_remove("XDG_STATE_HOME"),
        };
        Ran::from(c.output().unwrap()).code(0)
    };
    user(Some(s.path().join("xdg").to_str().unwrap()));
    assert!(s.exists("xdg/syncagent/trees") && !s.exists("home/.local"));
    user(None);
    assert!(s.exists("home/.local/state/syncagent/trees"));
    // a relative one is to be ignored
    user(Some("relative"));
}

#[test]
fn root_keeps_state_in_var_lib() {
    if !needs_root("root_keeps_state_in_var_lib") {
        return;
    }
    let s = Scratch::new();
    s.write("src/f", "f");
    let script = "mount -t tmpfs none /var/lib && \"$0\" sync src dst -q && ls /var/lib/syncagent";
    let out = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(program())
        .env_remove("SYNCAGENT_STATE_DIR")
        .env_remove("STATE_DIRECTORY")
        .env("XDG_STATE_HOME", s.path().join("xdg"))
        .current_dir(s.path())
        .output()
        .unwrap();
    let ran = Ran::from(out).code(0);
    assert_eq!(ran.out.trim(), "trees");
    assert!(!s.exists("xdg"));
}

#[test]
fn a_lost_or_damaged_state_directory_costs_a_rehash_and_nothing_else() {
    let s = everything();
    s.sync(["-q"]).code(0);
    s.remove("state");
    assert_eq!(s.sync(["-i"]).code(0).plan(), Vec::<&str>::new());
    for entry in walkdir::WalkDir::new(s.path().join("state")) {
        let entry = entry.unwrap();
        if entry.path().extension().is_some_and(|e| e == "db") {
            std::fs::write(entry.path(), b"not a database, but long enough to be read").unwrap();
        }
    }
    s.write("src/new", "new");
    assert_eq!(s.sync(["-i"]).code(0).plan(), ["create file new"]);
    s.assert_synced([""; 0]);
}

#[test]
fn the_order_of_include_and_exclude_counts_and_the_last_match_wins() {
    let s = Scratch::new();
    for f in ["a.log", "keep.log", "b.txt", "d/a.log", "d/keep.log"] {
        s.write(format!("src/{f}"), f);
    }
    let files = |dst: &str| -> Vec<String> {
        let all = snapshot(&s.path().join(dst));
        let files = all.into_iter().filter(|(_, s)| s.kind == 'f');
        files.map(|(p, _)| String::from_utf8(p).unwrap()).collect()
    };
    let sync = |dst: &str, args: &[&str]| {
        let mut c = s.command("sync");
        c.arg(s.src()).arg(s.path().join(dst)).args(args);
        Ran::from(c.output().unwrap()).code(0)
    };
    sync("d1", &["--exclude", "*.log", "--include", "keep.log"]);
    assert_eq!(files("d1"), ["b.txt", "d/keep.log", "keep.log"]);
    sync("d2", &["--include", "keep.log", "--exclude", "*.log"]);
    assert_eq!(files("d2"), ["b.txt"]);
    sync("d3", &["--exclude", "/a.log", "--exclude", "d/"]);
    assert_eq!(files("d3"), ["b.txt", "keep.log"]);
    s.write("patterns", "# comment\n\n*.log\n!keep.log\n");
    let from = s.path().join("patterns");
    let from = from.to_str().unwrap();
    sync("d4", &["--exclude-from", from, "--exclude", "/keep.log"]);
    assert_eq!(files("d4"), ["b.txt", "d/keep.log"]);
    sync("d5", &["--exclude", "/keep.log", "--exclude-from", from]);
    assert_eq!(files("d5"), ["b.txt", "d/keep.log", "keep.log"]);
    // nothing inside an excluded directory is taken in again
    sync("d6", &["--exclude", "d/", "--include", "keep.log"]);
    assert_eq!(files("d6"), ["a.log", "b.txt", "keep.log"]);
}

#[test]
fn what_is_excluded_is_never_deleted_nor_changed() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.write("src/d/f", "f");
    s.sync(["-q"]).code(0);
    s.write("dst/x.log", "local");
    s.write("dst/d/deep/x.log", "local");
    s.write("dst/d/deep/gone", "not excluded");
    s.write("dst/logs/in/x", "local");
    s.write("src/logs/in/x", "from the source");
    s.remove("src/d");
    let args = ["--exclude=*.log", "--exclude=/logs/", "--max-delete=100%"];
    let ran = s.sync(args.iter().chain(&["-i"])).code(0);
    assert_eq!(ran.plan(), ["delete file d/deep/gone", "delete file d/f"]);
    assert_eq!(s.read("dst/x.log"), b"local");
    assert_eq!(s.read("dst/d/deep/x.log"), b"local");
    assert_eq!(s.read("dst/logs/in/x"), b"local");
    assert!(!s.exists("dst/d/deep/gone"));
    assert_eq!(s.sync(args).code(0).plan(), Vec::<&str>::new());
    // a file where the directory with the excluded content is: named, and nothing is lost
    s.write("src/d", "a file now");
    let ran = s.sync(args).code(3);
    assert!(ran.err.contains("d: "), "{}", ran.err);
    assert_eq!(s.read("dst/d/deep/x.log"), b"local");
    // excluded no more: the next run makes it equal
    s.sync(["-q", "--max-delete=100%"]).code(0);
    s.assert_synced([""; 0]);
}

#[test]
fn an_excluded_directory_that_leaves_the_source_stays_with_its_parents() {
    let s = Scratch::new();
    s.write("src/a/b/cache/x", "x");
    s.write("src/a/b/f", "f");
    s.sync(["-q"]).code(0);
    s.remove("src/a");
    s.write("src/z", "z");
    s.sync(["-q", "--exclude", "cache/"]).code(0);
    assert_eq!(s.read("dst/a/b/cache/x"), b"x");
    assert!(!s.exists("dst/a/b/f"));
}

#[test]
fn excluded_and_special_content_is_not_displaced_by_what_comes_under_its_name() {
    // cache/ is excluded as a directory only, so SRC may have something else by that name
    for what in ["file", "link", "moved file"] {
        let s = Scratch::new();
        s.write("src/origin", "origin");
        s.sync(["-q"]).code(0);
        s.write("dst/cache/x", "local");
        mkfifo(s.dst().join("fifo"));
        for name in ["cache", "fifo"] {
            let path = s.src().join(name);
            match what {
                "file" => std::fs::write(path, name).unwrap(),
                "link" => symlink("f", path),
                _ => drop(std::fs::write(path, name)),
            }
        }
        if what == "moved file" {
            s.remove("src/cache");
            s.rename("src/origin", "src/cache");
        }
        let ran = s.sync(["-q", "--exclude", "cache/", "--keep=0"]);
        assert_eq!(s.read("dst/cache/x"), b"local", "{what}: {ran:?}");
        let fifo = std::fs::symlink_metadata(s.dst().join("fifo")).unwrap();
        assert!(!fifo.is_file() && !fifo.is_symlink(), "{what}: {ran:?}");
        let ran = ran.code(3);
        for name in ["cache: ", "fifo: "] {
            assert!(ran.err.contains(name), "{what}: {}", ran.err);
        }
        s.assert_nothing_staged();
    }
}

#[test]
fn a_moved_file_does_not_displace_a_fifo() {
    let s = Scratch::new();
    s.write("src/origin", "origin");
    s.sync(["-q"]).code(0);
    mkfifo(s.dst().join("fifo"));
    s.rename("src/origin", "src/fifo");
    let ran = s.sync(["-q"]);
    let fifo = std::fs::symlink_metadata(s.dst().join("fifo")).unwrap();
    assert!(!fifo.is_file(), "{ran:?}");
    ran.code(3);
}

#[test]
fn our_own_directory_in_the_source_is_not_copied() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.sync(["-q"]).code(0);
    // a chain: DST is the next one's SRC
    let mut c = s.command("sync");
    c.arg(s.dst()).arg(s.path().join("third")).arg("-q");
    Ran::from(c.output().unwrap()).code(0);
    assert_same(&s.src(), &s.path().join("third"));
    let ids = ["dst", "third"].map(|d| s.read(format!("{d}/.syncagent/tree")));
    assert_ne!(ids[0], ids[1], "each tree has its own marker");
    assert_eq!(s.digest("third"), s.digest("src"));
}

#[test]
fn explain_says_what_is_known_of_a_path() {
    let s = Scratch::new();
    s.write("src/d/f.txt", "content");
    s.write("src/x.log", "x");
    symlink("d/f.txt", s.src().join("l"));
    let filters = ["--exclude=*.log", "--exclude=*.txt", "--include=f.txt"];
    s.sync(filters.iter().chain(&["-q"])).code(0);
    let explain = |dir: &str, path: &str| -> Ran {
        let mut c = s.command("explain");
        c.args([dir, path]).current_dir(s.path()).output().unwrap().into()
    };
    let digest = blake3::hash(b"content").to_hex().to_string();
    for (dir, path) in [("dst", "d/f.txt"), ("dst/", "./d/f.txt"), ("dst", "dst/d/f.txt"), ("src", "d/f.txt")]
    {
        let ran = explain(dir, path).code(0);
        assert!(ran.out.contains(&digest), "{dir} {path}: {}", ran.out);
        assert!(ran.out.contains("by the pattern !f.txt"), "{}", ran.out);
        assert!(ran.out.contains("last seen 20"), "{}", ran.out);
    }
    let ran = explain("dst", "x.log").code(0);
    assert!(ran.out.contains("excluded by the pattern *.log"), "{}", ran.out);
    assert!(ran.out.contains("not there"), "{}", ran.out);
    let ran = explain("dst", "l").code(0);
    assert!(ran.out.contains("link -> d/f.txt"), "{}", ran.out);
    let ran = explain("dst", "no/such/path").code(0);
    assert!(ran.out.contains("not known"), "{}", ran.out);
    explain("dst", "../src/d").code(2);
    explain("no-such-dir", "x").code(2);
    s.mkdir("elsewhere");
    explain("elsewhere", "x").code(2);
}

#[test]
fn explain_names_the_refused_plan_that_would_lose_a_path() {
    let s = Scratch::new();
    for i in 0..20 {
        s.write(format!("src/d/f{i:02}"), format!("{i}"));
    }
    s.write("src/stays", "x");
    s.sync(["-q"]).code(0);
    s.remove("src/d");
    let refused = s.sync([""; 0]).code(4);
    let explain = |path: &str| -> Ran {
        let mut c = s.command("explain");
        c.arg(s.dst()).arg(path).output().unwrap().into()
    };
    let ran = explain("d/f07").code(0);
    assert!(ran.out.contains("delete file d/f07"), "{}", ran.out);
    let pending = ran.out.lines().find(|l| l.starts_with("pending")).unwrap();
    let id = pending.split_whitespace().nth(2).unwrap();
    assert!(refused.err.contains(id), "{pending}\n{}", refused.err);
    let ran = explain("stays").code(0);
    assert!(ran.out.contains("no refused plan"), "{}", ran.out);
    s.sync(["-q", "--approve", id]).code(0);
    let ran = explain("d/f07").code(0);
    assert!(ran.out.contains("no refused plan"), "{}", ran.out);
}

#[test]
fn verify_names_drift_of_every_kind() {
    let s = Scratch::new();
    for f in ["mode", "content", "gone", "quiet", "swapped", "d/in"] {
        s.write(format!("src/{f}"), f);
    }
    s.write("src/gone-dir/f", "x");
    symlink("a", s.src().join("link"));
    s.sync(["-q"]).code(0);
    let ran = s.run("verify", [s.dst()]).code(0);
    assert!(ran.out.contains("what its index says"), "{}", ran.out);
    chmod(s.dst().join("mode"), 0o600);
    s.write("dst/content", "changed by hand");
    s.remove("dst/gone");
    s.remove("dst/gone-dir");
    s.write("dst/new-dir/new", "new");
    s.remove("dst/link");
    symlink("b", s.dst().join("link"));
    s.remove("dst/swapped");
    s.mkdir("dst/swapped");
    set_mtime(s.dst().join("d/in"), 5, 5);
    // the same size and mtime: only reading it shows
    let quiet = s.dst().join("quiet");
    let meta = quiet.metadata().unwrap();
    std::fs::write(&quiet, "QUIET").unwrap();
    set_mtime_like(&quiet, &meta);
    let before = full_stat(&s.dst());
    let ran = s.run("verify", [s.dst()]).code(5);
    let drift: Vec<&str> = ran.out.lines().filter_map(|l| l.strip_prefix("drift ")).collect();
    let want = [
        "modified file content",
        "attributes file d/in",
        "missing file gone",
        "missing dir gone-dir",
        "missing file gone-dir/f",
        "modified link link",
        "attributes file mode",
        "unexpected dir new-dir",
        "unexpected file new-dir/new",
        "modified file quiet",
        "missing file swapped",
        "unexpected dir swapped",
    ];
    assert_eq!(drift, want);
    let of_tree = |stat: Vec<String>| {
        let keep = |l: &String| !l.contains(".syncagent");
        stat.into_iter().filter(keep).collect::<Vec<_>>()
    };
    assert_eq!(of_tree(full_stat(&s.dst())), of_tree(before), "only looked");
    // asked again it says the same
    assert_eq!(s.run("verify", [s.dst()]).code(5).out, ran.out);
    // and a sync heals all of it
    s.sync(["-q"]).code(0);
    s.assert_synced([""; 0]);
    s.run("verify", [s.dst()]).code(0);
}

#[test]
fn verify_names_a_changed_mode_of_the_root() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.sync(["-q"]).code(0);
    chmod(s.dst(), 0o711);
    let ran = s.run("verify", [s.dst()]).code(5);
    assert!(ran.out.contains("drift attributes dir ."), "{}", ran.out);
}

#[test]
fn verify_leaves_excluded_paths_alone() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.sync(["-q", "--exclude", "*.log"]).code(0);
    s.write("dst/x.log", "local");
    s.run("verify", [s.dst()]).code(0);
}

#[test]
fn verify_of_what_was_never_synced_exits_2() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.run("verify", [s.src()]).code(2);
    s.run("verify", [s.path().join("none")]).code(2);
    s.run("verify", [s.src().join("f")]).code(2);
}

#[test]
fn verify_exits_3_when_it_cannot_read_all() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.write("src/g", "g");
    s.give("dst");
    s.user_sync(["-q"]).code(0);
    let f = s.dst().join("f");
    let mode = f.metadata().unwrap().permissions();
    let verify = || -> Ran {
        let mut c = s.user_command("verify", "");
        c.arg(s.dst()).output().unwrap().into()
    };
    verify().code(0);
    chmod(&f, 0o000);
    let ran = verify();
    assert!([3, 5].contains(&ran.code), "{ran:?}");
    assert!(ran.err.contains("f: "), "{}", ran.err);
    std::fs::set_permissions(&f, mode).unwrap();
    verify().code(0);
}

#[test]
fn verify_while_a_run_holds_the_lock_exits_6() {
    let s = Scratch::new();
    s.write("src/f", "f");
    s.sync(["-q"]).code(0);
    let lock = std::fs::File::open(s.dst().join(".syncagent/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    s.run("verify", [s.dst()]).code(6);
    drop(lock);
    s.run("verify", [s.dst()]).code(0);
}

#[test]
fn the_digest_is_of_content_and_modes_and_of_nothing_else() {
    let s = Scratch::new();
    s.write("src/d/f", "f");
    s.write("src/x", "x");
    symlink("x", s.src().join("l"));
    s.mkdir("src/empty");
    let cp = |to: &str| {
        let (from, to) = (s.src(), s.path().join(to));
        tool("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]);
    };
    cp("copy");
    let digest = s.digest("src");
    assert_eq!(digest.len(), 64);
    assert_eq!(s.digest("copy"), digest);
    // first word of the line, then the path
    let out = s.run("digest", [s.src()]).out;
    assert_eq!(out, format!("{digest}  {}\n", s.src().display()));
    // times and owners do not count
    set_mtime(s.path().join("copy/x"), 1, 1);
    set_mtime(s.path().join("copy/d"), 1, 1);
    if is_root() {
        let x = s.path().join("copy/x");
        tool("chown", &["65534:65534".as_ref(), x.as_os_str()]);
    }
    mkfifo(s.path().join("copy/fifo"));
    assert_eq!(s.digest("copy"), digest);
    // everything else does
    type Change = (&'static str, fn(&Scratch));
    let changes: [Change; 8] = [
        ("mode", |s| chmod(s.path().join("c/x"), 0o600)),
        ("directory's mode", |s| chmod(s.path().join("c/d"), 0o700)),
        ("root's mode", |s| chmod(s.path().join("c"), 0o700)),
        ("content", |s| s.write("c/x", "y")),
        ("name", |s| s.rename("c/x", "c/y")),
        ("target", |s| {
            s.remove("c/l");
            symlink("y", s.path().join("c/l"));
        }),
        ("empty directory", |s| s.remove("c/empty")),
        ("kind", |s| {
            s.remove("c/empty");
            s.write("c/empty", "");
        }),
    ];
    for (what, change) in changes {
        cp("c");
        assert_eq!(s.digest("c"), digest);
        change(&s);
        assert_ne!(s.digest("c"), digest, "{what}");
        s.remove("c");
    }
    s.sync(["-q"]).code(0);
    assert_eq!(s.digest("dst"), digest);
}

#[test]
fn the_digest_takes_filters_and_refuses_what_it_cannot_read() {
    let s = Scratch::new();
    s.write("src/a", "a");
    let digest = s.digest("src");
    s.write("src/b.log", "b");
    let out = s.run("digest", [OsStr::new("--exclude=*.log"), s.src().as_os_str()]);
    assert!(out.code(0).out.starts_with(&digest));
    s.run("digest", [s.src().join("a")]).code(2);
    s.run("digest", [s.path().join("none")]).code(2);
    chmod(s.src().join("a"), 0o000);
    s.give("src");
    let mut c = s.user_command("digest", "");
    let ran = Ran::from(c.arg(s.src()).output().unwrap()).code(1);
    assert_eq!(ran.out, "", "a digest of part of it would be taken for all");
    assert!(ran.err.contains("a: "), "{}", ran.err);
}

#[test]
fn a_closed_standard_output_is_an_error_with_a_cause() {
    let s = everything();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut c = s.command("sync");
    let out = c.arg(s.src()).arg(s.dst()).arg("-i").stdout(full);
    let ran = Ran::from(out.output().unwrap()).code(1);
    assert!(ran.err.contains("standard output"), "{}", ran.err);
    // the work was done before
    s.assert_synced([""; 0]);
}

#[test]
fn an_error_of_a_json_run_is_an_object_too() {
    let s = Scratch::new();
    s.remove("src");
    let ran = s.sync(["--json"]).code(4);
    let error: Value = serde_json::from_str(ran.out.trim()).unwrap();
    assert_eq!(error["error"]["exit"], 4);
    assert!(error["error"]["message"].as_str().unwrap().contains("does not exist"));
}

#[test]
fn checksum_finds_what_stat_hides() {
    let s = Scratch::new();
    s.write("src/f", "content");
    s.sync(["-q"]).code(0);
    settle();
    s.sync(["-q"]).code(0);
    let ran = s.sync(["--checksum", "-i"]).code(0);
    assert_eq!(ran.plan(), Vec::<&str>::new());
    let name = OsStr::from_bytes(b"f");
    assert_eq!(s.read(std::path::Path::new("dst").join(name)), b"content");
}
