//! Real directories, real events.

use std::fs;
use std::sync::mpsc::{Receiver, channel};

use super::*;

struct World {
    root: PathBuf,
    watcher: Watcher,
    woken: Receiver<()>,
    seen: Changes,
    _tmp: tempfile::TempDir,
}

fn p(s: &str) -> TreePath {
    TreePath::new(s.as_bytes()).unwrap()
}

impl World {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().canonicalize().unwrap().join("tree");
        fs::create_dir(&root).unwrap();
        let (tx, woken) = channel();
        let watcher = Watcher::new(&root, move || _ = tx.send(())).unwrap();
        Self { root, watcher, woken, seen: Changes::default(), _tmp: tmp }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// What a scan does: watch, then list, then the directories below. Gives the files found.
    fn walk(&self, dir: &TreePath) -> Vec<TreePath> {
        let mut found = Vec::new();
        let mut dirs = vec![dir.clone()];
        while let Some(dir) = dirs.pop() {
            self.watcher.watch(&dir);
            for entry in fs::read_dir(self.watcher.shared.path(&dir)).into_iter().flatten() {
                let entry = entry.unwrap();
                let path = dir.join(&crate::model::Name::new(entry.file_name().as_bytes()).unwrap());
                if entry.file_type().unwrap().is_dir() { dirs.push(path) } else { found.push(path) }
            }
        }
        found
    }

    /// Waits until `done` of what was seen since the last time.
    fn until(&mut self, what: &str, done: impl Fn(&Changes) -> bool) -> Changes {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.seen.merge(self.watcher.take());
            if done(&self.seen) {
                return std::mem::take(&mut self.seen);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(self.woken.recv_timeout(left).is_ok(), "{what}: not in {:?}", self.seen);
        }
    }

    /// Everything that happened before the call.
    fn settled(&mut self) -> Changes {
        fs::write(self.at("sentinel"), b"x").unwrap();
        let mut seen = self.until("sentinel", |c| c.paths.get(&p("sentinel")).is_some_and(|t| !t.open));
        seen.paths.remove(&p("sentinel"));
        seen
    }
}

#[test]
fn files_in_new_nested_directories_are_all_found() {
    let mut w = World::new();
    w.walk(&p(""));
    for i in 0..200 {
        let dir = w.at(&format!("n{i}/a/b/c"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("f"), b"x").unwrap();
    }
    let mut found = std::collections::HashSet::new();
    while found.len() < 200 {
        let seen = w.until("new directories", |c| !c.is_empty());
        found.extend(seen.paths.into_keys().filter(|f| f.split().1 == b"f"));
        seen.deep.iter().for_each(|dir| found.extend(w.walk(dir)));
    }
    assert_eq!(w.watcher.count(), 1 + 200 * 4);
    fs::write(w.at("n7/a/b/c/g"), b"x").unwrap();
    w.until("a file in a directory found so", |c| c.paths.contains_key(&p("n7/a/b/c/g")));
}

#[test]
fn a_write_in_a_renamed_directory_is_told_with_its_new_path() {
    let mut w = World::new();
    fs::create_dir_all(w.at("a/b")).unwrap();
    w.walk(&p(""));
    fs::rename(w.at("a"), w.at("z")).unwrap();
    let seen = w.until("the rename", |c| c.deep.contains(&p("z")) && c.paths.contains_key(&p("a")));
    assert!(!seen.all, "{seen:?}");
    w.walk(&p("z"));
    assert_eq!(w.watcher.count(), 3);
    fs::create_dir_all(w.at("a/b")).unwrap();
    w.until("a new one in its place", |c| c.deep.contains(&p("a")));
    w.walk(&p("a"));
    fs::write(w.at("z/b/f"), b"x").unwrap();
    fs::write(w.at("a/b/g"), b"x").unwrap();
    let seen = w.until("writes", |c| c.paths.contains_key(&p("z/b/f")) && c.paths.contains_key(&p("a/b/g")));
    assert!(!seen.paths.contains_key(&p("a/b/f")) && !seen.all, "{seen:?}");
}

#[test]
fn a_scan_that_was_faster_than_the_rename_event_loses_nothing() {
    let mut w = World::new();
    for round in 0..50 {
        let (old, new) = (format!("d{round}"), format!("d{}", round + 1));
        fs::create_dir_all(w.at(&old).join("sub")).unwrap();
        w.walk(&p(""));
        fs::rename(w.at(&old), w.at(&new)).unwrap();
        fs::create_dir_all(w.at(&old).join("sub")).unwrap();
        // before, while and after the events are handled
        w.walk(&p(""));
        let mut dirs = w.settled().deep;
        while !dirs.is_empty() {
            dirs.iter().for_each(|dir| _ = w.walk(dir));
            dirs = w.settled().deep;
        }
        for dir in [&old, &new] {
            let file = format!("{dir}/sub/f");
            fs::write(w.at(&file), b"x").unwrap();
            w.until(&file, |c| c.paths.contains_key(&p(&file)));
        }
    }
}

#[test]
fn a_directory_renamed_over_an_empty_one_is_watched() {
    let mut w = World::new();
    for round in 0..20 {
        fs::create_dir_all(w.at("new")).unwrap();
        fs::create_dir_all(w.at("old")).unwrap();
        w.walk(&p(""));
        fs::rename(w.at("new"), w.at("old")).unwrap();
        w.until("the rename", |c| c.deep.contains(&p("old")));
        w.walk(&p("old"));
        let mut dirs = w.settled().deep;
        while !dirs.is_empty() {
            dirs.iter().for_each(|dir| _ = w.walk(dir));
            dirs = w.settled().deep;
        }
        let file = format!("old/f{round}");
        fs::write(w.at(&file), b"x").unwrap();
        w.until(&file, |c| c.paths.contains_key(&p(&file)));
        fs::remove_dir_all(w.at("old")).unwrap();
        w.settled();
    }
}

#[test]
fn directories_that_are_removed_or_moved_out_are_forgotten() {
    let mut w = World::new();
    fs::create_dir_all(w.at("a/b")).unwrap();
    fs::create_dir_all(w.at("c/d")).unwrap();
    w.walk(&p(""));
    assert_eq!(w.watcher.count(), 5);
    fs::remove_dir_all(w.at("a")).unwrap();
    fs::rename(w.at("c"), w.root.parent().unwrap().join("elsewhere")).unwrap();
    let seen = w.settled();
    assert_eq!(w.watcher.count(), 1, "{seen:?}");
    assert!(seen.paths.contains_key(&p("a")) && seen.paths.contains_key(&p("c")));
}

#[test]
fn looking_and_reading_raise_no_event() {
    let mut w = World::new();
    fs::create_dir(w.at("a")).unwrap();
    fs::write(w.at("a/f"), vec![1; 100_000]).unwrap();
    w.walk(&p(""));
    w.settled();
    for _ in 0..3 {
        w.walk(&p(""));
        let fd = fs::File::open(w.at("a/f")).unwrap();
        crate::disk::ignore_break_signal().unwrap();
        crate::watch::unfinished(std::os::fd::AsFd::as_fd(&fd), b"a.jar", 100_000);
        assert_eq!(fs::read(w.at("a/f")).unwrap().len(), 100_000);
    }
    let seen = w.settled();
    assert!(seen.is_empty(), "{seen:?}");
}

#[test]
fn our_own_directory_is_neither_watched_nor_reported() {
    let mut w = World::new();
    fs::create_dir_all(w.at(".syncagent/stage")).unwrap();
    w.walk(&p(""));
    assert_eq!(w.watcher.count(), 1);
    fs::write(w.at(".syncagent/journal"), b"x").unwrap();
    fs::set_permissions(w.at(".syncagent"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let seen = w.settled();
    assert!(seen.is_empty(), "{seen:?}");
}

#[test]
fn after_an_overflow_everything_is_looked_at_and_watched_anew() {
    let mut w = World::new();
    fs::create_dir(w.at("a")).unwrap();
    w.walk(&p(""));
    {
        // the thread that reads the queue waits for us
        let _held = lock(&w.watcher.shared.state);
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        let files = ["f", "g"].map(|f| fs::File::create(w.at(f)).unwrap());
        for i in 0..limit + 1000 {
            std::io::Write::write_all(&mut &files[i % 2], b"x").unwrap();
        }
        fs::rename(w.at("a"), w.at("b")).unwrap();
    }
    w.until("an overflow", |c| c.all);
    assert_eq!(w.watcher.count(), 0, "no watch can be trusted");
    w.walk(&p(""));
    fs::write(w.at("b/f"), b"x").unwrap();
    w.until("a write", |c| c.paths.contains_key(&p("b/f")));
}

#[test]
fn a_root_that_is_swapped_means_everything_anew() {
    let mut w = World::new();
    fs::create_dir(w.at("a")).unwrap();
    w.walk(&p(""));
    let aside = w.root.parent().unwrap().join("aside");
    fs::rename(&w.root, &aside).unwrap();
    fs::create_dir_all(w.at("a")).unwrap();
    w.until("the swap", |c| c.all);
    w.walk(&p(""));
    fs::write(w.at("a/f"), b"x").unwrap();
    let seen = w.until("a write", |c| c.paths.contains_key(&p("a/f")));
    assert!(!seen.all, "{seen:?}");
    w.watcher.reset();
    assert_eq!(w.watcher.count(), 0);
    assert!(w.watcher.take().all);
}

#[test]
fn an_unreadable_or_vanished_directory_is_no_trouble() {
    let w = World::new();
    w.watcher.watch(&p("never/there"));
    fs::write(w.at("file"), b"x").unwrap();
    w.watcher.watch(&p("file/below"));
    assert_eq!((w.watcher.count(), w.watcher.degraded()), (0, None));
}

/// Run by the next test, where only 10 watches are allowed.
#[test]
#[ignore = "runs in a user namespace of its own"]
fn limited() {
    let w = World::new();
    for i in 0..20 {
        fs::create_dir(w.at(&format!("d{i:02}"))).unwrap();
    }
    w.walk(&p(""));
    assert_eq!(w.watcher.count(), 10);
    let text = w.watcher.degraded().unwrap();
    let start =
        "inotify: user.max_inotify_watches is 10, and only 10 of 21 directories are watched; raise it: ";
    assert!(text.starts_with(start), "{text}");
    fs::write("/proc/sys/user/max_inotify_watches", "1000").unwrap();
    lock(&w.watcher.trouble).as_mut().unwrap().retry_at = Instant::now();
    let seen = w.watcher.take();
    assert_eq!((seen.deep.len(), w.watcher.count()), (11, 21), "what was not watched is looked at");
    assert_eq!(w.watcher.degraded(), None);
}

#[test]
fn a_limit_is_named_with_its_setting_and_is_recovered_from() {
    let this = std::env::current_exe().unwrap();
    let test = "watch::native::tests::limited";
    let script = "echo 10 >/proc/sys/user/max_inotify_watches || exit 9; \"$0\" --ignored --exact \"$1\"";
    let mut command = std::process::Command::new("unshare");
    let run = command.args(["-Ur", "sh", "-c", script]).arg(this).arg(test).output().unwrap();
    let out = String::from_utf8_lossy(&run.stdout);
    // where user namespaces are forbidden there is nothing to try it with
    let forbidden = run.status.code() == Some(9) || String::from_utf8_lossy(&run.stderr).contains("unshare:");
    assert!(forbidden || run.status.success() && out.contains("1 passed"), "{run:?}");
}

/// Prints what it costs: `cargo test --lib cost_of_many -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::print_stdout)]
fn cost_of_many_directories() {
    let mut w = World::new();
    let dirs: Vec<_> = (0..10_000).map(|i| p(&format!("a{}/d{i}", i % 100))).collect();
    dirs.iter().for_each(|d| fs::create_dir_all(w.at(std::str::from_utf8(d.as_bytes()).unwrap())).unwrap());
    let mut took = |what: &str, f: &mut dyn FnMut(&mut World)| {
        let start = Instant::now();
        f(&mut w);
        println!("{what}: {:?}, {} watched", start.elapsed(), w.watcher.count());
    };
    took("watch 10,000", &mut |w| dirs.iter().for_each(|d| w.watcher.watch(d)));
    took("again", &mut |w| dirs.iter().for_each(|d| w.watcher.watch(d)));
    took("parents", &mut |w| (0..100).for_each(|i| w.watcher.watch(&p(&format!("a{i}")))));
    took("root", &mut |w| w.watcher.watch(&p("")));
    took("rename of one of 100", &mut |w| {
        fs::rename(w.at("a0"), w.at("b0")).unwrap();
        w.settled();
    });
    let mut remove = |what: &str, dirs: std::ops::Range<u32>| {
        took(what, &mut |w| {
            dirs.clone().for_each(|i| fs::remove_dir_all(w.at(&format!("a{i}"))).unwrap());
            w.until("the last", |c| c.all || c.paths.contains_key(&p(&format!("a{}", dirs.end - 1))));
            // its answer comes after what notify has to do
            w.watcher.watch(&p("b0"));
        });
    };
    remove("removal of 200", 1..3);
    remove("removal of 5,000", 3..53);
    took("reset", &mut |w| w.watcher.reset());
    took("reset and first watch", &mut |w| w.watcher.watch(&p("")));
}
