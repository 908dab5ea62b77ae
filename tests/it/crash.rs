//! What the crash campaigns share: two states of one source, a tree compared with them, seeded chance,
//! and kills and faults at exact system calls.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use tempfile::TempDir;
use walkdir::WalkDir;

use crate::support::{Ran, program};

/// The long campaigns were asked for.
pub(crate) fn long() -> bool {
    std::env::var_os("SYNCAGENT_TEST_LONG").is_some_and(|v| v == "1")
}

/// `ci` rounds, or `more` in a long campaign.
pub(crate) fn rounds(ci: usize, more: usize) -> usize {
    if long() { more } else { ci }
}

/// Chance from a seed (splitmix64).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn up_to(&mut self, limit: Duration) -> Duration {
        Duration::from_nanos(self.next() % (limit.as_nanos() as u64).max(1))
    }

    /// At most `n` of `1..=total`, spread evenly, ascending.
    pub(crate) fn spread(&mut self, total: usize, n: usize) -> Vec<usize> {
        if total <= n {
            return (1..=total).collect();
        }
        let at = |i: usize| i * total / n;
        (0..n).map(|i| 1 + at(i) + self.below(at(i + 1) - at(i))).collect()
    }
}

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Dir,
    File(Vec<u8>),
    Link(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) node: Node,
    mode: u32,
    mtime: (i64, i64),
}

/// Everything below a directory but `.syncagent`; the directory itself is the empty path, without mtime.
pub(crate) type Tree = BTreeMap<PathBuf, Item>;

pub(crate) fn read_tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    if !root.exists() {
        return tree;
    }
    let own = |e: &walkdir::DirEntry| e.depth() == 1 && e.file_name() == ".syncagent";
    for e in WalkDir::new(root).into_iter().filter_entry(|e| !own(e)) {
        let e = e.unwrap();
        let meta = e.path().symlink_metadata().unwrap();
        let node = if meta.is_dir() {
            Node::Dir
        } else if meta.is_symlink() {
            Node::Link(std::fs::read_link(e.path()).unwrap())
        } else {
            Node::File(std::fs::read(e.path()).unwrap())
        };
        let mode = if meta.is_symlink() { 0 } else { meta.mode() & 0o7777 };
        let mtime = if e.depth() == 0 { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
        let path = e.path().strip_prefix(root).unwrap().to_owned();
        tree.insert(path, Item { node, mode, mtime });
    }
    tree
}

/// The first difference, in words.
pub(crate) fn difference(now: &Tree, want: &Tree) -> Option<String> {
    let paths: BTreeSet<_> = now.keys().chain(want.keys()).collect();
    paths
        .into_iter()
        .find(|p| now.get(*p) != want.get(*p))
        .map(|p| format!("{p:?} is {} instead of {}", short(now, p), short(want, p)))
}

fn short(tree: &Tree, path: &Path) -> String {
    tree.get(path).map_or_else(
        || "missing".into(),
        |i| {
            let node = match &i.node {
                Node::File(c) => format!(
                    "a file of {} bytes, {:?}",
                    c.len(),
                    String::from_utf8_lossy(&c[..c.len().min(40)])
                ),
                other => format!("{other:?}"),
            };
            format!("({node}, {:o}, {:?})", i.mode, i.mtime)
        },
    )
}

/// What is half-written or half-deleted: each path must be whole and of one of the two states, and what
/// both have must be there. `gaps`: directories may be missing for an instant while they are replaced.
pub(crate) fn half(now: &Tree, old: &Tree, new: &Tree, gaps: bool) -> Option<String> {
    for (path, item) in now {
        if path.as_os_str().is_empty() {
            continue;
        }
        let of = |t: &Tree| t.get(path).is_some_and(|w| w.node == item.node);
        let mode = |t: &Tree| t.get(path).is_some_and(|w| w.mode == item.mode);
        let is_file = matches!(item.node, Node::File(_));
        if !(of(old) || of(new)) || is_file && !(mode(old) || mode(new)) {
            return Some(format!(
                "{path:?} is {}, neither {} nor {}",
                short(now, path),
                short(old, path),
                short(new, path)
            ));
        }
    }
    let both = old.iter().filter(|(p, _)| new.contains_key(*p) && !now.contains_key(*p));
    for (path, item) in both {
        let swapped = gaps && (item.node == Node::Dir) != (new[path].node == Node::Dir);
        if !swapped && !now.is_empty() {
            return Some(format!("{path:?} is missing, and is in both states"));
        }
    }
    None
}

/// Which of the two states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    A,
    B,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// Memory where there is some, so that the disk's speed does not matter.
pub(crate) fn fast_place() -> TempDir {
    let mut build = tempfile::Builder::new();
    let build = build.prefix("syncagent-it");
    build.tempdir_in("/dev/shm").or_else(|_| build.tempdir()).unwrap()
}

/// Two states of a source, an empty one, and a destination.
pub(crate) struct Bed {
    place: TempDir,
    pub(crate) dst: PathBuf,
    pub(crate) state: PathBuf,
    a: Tree,
    b: Tree,
    digests: [String; 2],
}

impl Bed {
    /// About `12 * n + 60` entries on each side.
    pub(crate) fn new(n: usize) -> Self {
        Self::at(fast_place(), n)
    }

    pub(crate) fn at(place: TempDir, n: usize) -> Self {
        let p = place.path();
        for side in [Side::A, Side::B] {
            build(&p.join(side.name()), side, n);
        }
        std::fs::create_dir(p.join("empty")).unwrap();
        let (a, b) = (read_tree(&p.join("a")), read_tree(&p.join("b")));
        let mut bed =
            Self { dst: p.join("dst"), state: p.join("state"), a, b, digests: Default::default(), place };
        bed.digests = [Side::A, Side::B].map(|s| bed.digest(&bed.source(s)));
        bed
    }

    pub(crate) fn path(&self) -> &Path {
        self.place.path()
    }

    pub(crate) fn source(&self, side: Side) -> PathBuf {
        self.path().join(side.name())
    }

    pub(crate) fn tree(&self, side: Side) -> &Tree {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    pub(crate) fn now(&self) -> Tree {
        read_tree(&self.dst)
    }

    fn command_from(&self, source: &Path, args: &[&str]) -> Command {
        let mut c = Command::new(program());
        c.arg("sync").arg(source).arg(&self.dst);
        c.args(["--max-delete", "100%"]).args(args);
        c.arg("--state-dir").arg(&self.state);
        c
    }

    /// `sync SIDE DST`.
    pub(crate) fn command(&self, side: Side, args: &[&str]) -> Command {
        self.command_from(&self.source(side), args)
    }

    pub(crate) fn sync(&self, side: Side, args: &[&str]) -> Ran {
        self.command(side, args).output().unwrap().into()
    }

    /// Recovery alone: an empty source is refused, but only after a crash's leftovers were finished.
    pub(crate) fn recover_command(&self) -> Command {
        self.command_from(&self.path().join("empty"), &[])
    }

    fn digest(&self, dir: &Path) -> String {
        let out = Command::new(program()).arg("digest").arg(dir).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        let out = String::from_utf8(out.stdout).unwrap();
        out.split_whitespace().next().unwrap().to_owned()
    }

    /// DST is exactly this side.
    #[track_caller]
    pub(crate) fn assert_is(&self, side: Side, what: &str) {
        if let Some(d) = difference(&self.now(), self.tree(side)) {
            panic!("{what}: not {side:?}: {d}");
        }
    }

    /// DST is this side also for those who did not write the engine: by digest, by rsync, by a second run
    /// that finds nothing to do.
    #[track_caller]
    pub(crate) fn assert_is_for_all(&self, side: Side, what: &str) {
        assert_eq!(self.digest(&self.dst), self.digests[side as usize], "{what}");
        let again = self.sync(side, &["-i"]).code(0);
        assert!(again.out.contains("up to date"), "{what}: {}", again.out);
        let slash = |p: PathBuf| format!("{}/", p.display());
        let out = Command::new("rsync")
            .args(["-ain", "--no-D", "--checksum", "--delete"])
            .arg("--exclude=/.syncagent")
            .args([slash(self.source(side)), slash(self.dst.clone())])
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        assert_eq!(String::from_utf8_lossy(&out.stdout), "", "{what}");
    }

    /// Nothing of a run is left where it stages.
    #[track_caller]
    pub(crate) fn assert_nothing_staged(&self, what: &str) {
        for name in ["stage", "stage.old", "stage.done", "unplaced", "journal"] {
            let left = self.dst.join(".syncagent").join(name);
            assert!(!left.exists(), "{what}: {name} is left");
        }
        let beside = self.dst.parent().unwrap().read_dir().unwrap();
        let beside: Vec<_> = beside
            .map(|e| e.unwrap().file_name())
            .filter(|n| n.as_bytes().starts_with(b".syncagent"))
            .collect();
        assert!(beside.is_empty(), "{what}: {beside:?} is left");
    }

    /// Every content of `old` is in DST or in the trash.
    #[track_caller]
    pub(crate) fn assert_nothing_lost(&self, old: &Tree, what: &str) {
        let there = contents(&self.dst);
        for (path, item) in old {
            if let Node::File(content) = &item.node {
                assert!(
                    there.contains(content),
                    "{what}: what was {path:?} is neither in DST nor in the trash"
                );
            }
        }
    }

    pub(crate) fn empty_trash(&self) {
        let trash = self.dst.join(".syncagent/trash");
        if trash.exists() {
            remove_all(&trash);
        }
    }

    pub(crate) fn remove_dst(&self) {
        if self.dst.exists() {
            remove_all(&self.dst);
        }
    }
}

/// All file contents in DST, trash and staging included.
pub(crate) fn contents(dst: &Path) -> BTreeSet<Vec<u8>> {
    WalkDir::new(dst)
        .into_iter()
        .map(Result::unwrap)
        .filter(|e| e.file_type().is_file())
        .map(|e| std::fs::read(e.path()).unwrap())
        .collect()
}

fn remove_all(dir: &Path) {
    // directories may be read-only, for whom that means something
    for e in WalkDir::new(dir) {
        let e = e.unwrap();
        if e.file_type().is_dir() {
            std::fs::set_permissions(e.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        }
    }
    std::fs::remove_dir_all(dir).unwrap();
}

fn hash(bytes: &[u8]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325;
    for b in bytes {
        h = (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    }
    h
}

/// Writes one side.
struct Builder<'b> {
    root: &'b Path,
    side: Side,
    /// Of paths whose mtime is not what their name says.
    shifted: BTreeSet<PathBuf>,
}

impl Builder<'_> {
    fn file(&mut self, path: impl AsRef<Path>, content: impl AsRef<[u8]>, mode: u32) {
        let at = self.root.join(path);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(&at, content).unwrap();
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn text(&mut self, path: &str, version: &str) {
        self.file(path, format!("{path} {version}\n"), 0o644);
    }

    fn link(&mut self, path: &str, target: &str) {
        let at = self.root.join(path);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        symlink(target, at).unwrap();
    }

    fn dir(&mut self, path: &str) {
        std::fs::create_dir_all(self.root.join(path)).unwrap();
    }

    /// The mtime of this path differs between the sides.
    fn shift(&mut self, path: &str) {
        self.shifted.insert(path.into());
    }

    /// On one side only.
    fn on(&mut self, side: Side, f: impl FnOnce(&mut Self)) {
        if self.side == side {
            f(self);
        }
    }

    fn finish(&self, modes: &[(&str, u32)]) {
        let paths: Vec<_> = WalkDir::new(self.root)
            .min_depth(1)
            .contents_first(true)
            .into_iter()
            .map(|e| e.unwrap().into_path())
            .collect();
        for path in paths {
            let own = path.strip_prefix(self.root).unwrap();
            let h = hash(own.as_os_str().as_bytes());
            let shift = self.shifted.contains(own) || path.is_dir() && !path.is_symlink();
            let later = i64::from(shift && self.side == Side::B) * 3600;
            let time = Timespec {
                tv_sec: 1_600_000_000 + (h % 1_000_000) as i64 + later,
                tv_nsec: (h % 1_000_000_007 % 1_000_000_000) as i64,
            };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        for (path, mode) in modes {
            let mode = std::fs::Permissions::from_mode(*mode);
            std::fs::set_permissions(self.root.join(path), mode).unwrap();
        }
    }
}

/// Edits, attribute changes, creations, deletions, moves and type swaps, at the top and below.
fn build(root: &Path, side: Side, n: usize) {
    let mut b = Builder { root, side, shifted: BTreeSet::new() };
    let v = side.name();
    for i in 0..n {
        let d = format!("dir{}", i % 7);
        b.text(&format!("{d}/same{i}"), "");
        // same size, and for some also the same mtime
        b.text(&format!("{d}/edit{i}"), v);
        if i % 3 != 0 {
            b.shift(&format!("{d}/edit{i}"));
        }
        let longer = v.repeat(if side == Side::A { 10 } else { 3000 + i });
        b.text(&format!("{d}/grow{i}"), &longer);
        let mode = if side == Side::A { 0o644 } else { 0o755 };
        b.file(format!("{d}/mode{i}"), format!("mode {i}"), mode);
        b.text(&format!("{d}/time{i}"), "");
        b.shift(&format!("{d}/time{i}"));
        b.on(Side::A, |b| {
            b.text(&format!("{d}/gone{i}"), "");
            b.file(format!("{d}/before{i}"), format!("moves from {d} to elsewhere, {i}"), 0o640);
        });
        b.on(Side::B, |b| {
            b.text(&format!("{d}/born{i}"), "");
            b.file(format!("to{}/after{i}", i % 3), format!("moves from {d} to elsewhere, {i}"), 0o640);
        });
    }
    let renamed = if side == Side::A { "renamed-old" } else { "renamed-new" };
    for i in 0..5 {
        let content = format!("goes along {i}");
        b.file(format!("{renamed}/sub/file{i}"), content, 0o644);
    }
    b.on(Side::A, |b| {
        for i in 0..4 {
            b.text(&format!("dead/deep/er{i}/file"), "");
        }
        b.text("swap/file-dir", "");
        b.text("swap/dir-file/one", "");
        b.file("swap/dir-file/moves-out", "moves out of a directory", 0o600);
        b.text("swap/dir-file/sub/two", "");
        b.link("swap/link-file", "../dir0");
        b.text("swap/file-link", "");
        b.text("swap/dir-link/one", "");
        b.file("swap/dir-link/escapes", "escapes from a directory", 0o600);
        b.link("swap/link-dir", "/nowhere/at/all");
        b.link("swap/link-link", "one");
        b.dir("hollow/in");
        b.text("void", "was not empty");
    });
    b.on(Side::B, |b| {
        for i in 0..4 {
            b.text(&format!("young/deep/er{i}/file"), "");
        }
        b.text("swap/file-dir/one", "");
        b.text("swap/file-dir/sub/two", "");
        b.text("swap/dir-file", "");
        b.file("to0/moved-out", "moves out of a directory", 0o600);
        b.text("swap/link-file", "");
        b.link("swap/file-link", "../dir1/same1");
        b.link("swap/dir-link", "../dir2");
        b.file("to1/escaped", "escapes from a directory", 0o600);
        b.text("swap/link-dir/one", "");
        b.link("swap/link-link", "two");
        b.dir("shallow/in");
        b.file("void", "", 0o644);
    });
    b.file("empty", "", 0o644);
    b.link("stays", "void");
    b.file(OsStr::from_bytes(b"odd \xff\n\x1b name"), v, 0o644);
    b.text("locked/inside", v);
    b.text("group/inside", v);
    let big = |seed: &str| -> Vec<u8> {
        let mut out = vec![0; 300_000];
        let mut h = blake3::Hasher::new();
        h.update(seed.as_bytes());
        h.finalize_xof().fill(&mut out);
        out
    };
    b.file("big", big(v), 0o644);
    b.file(format!("{renamed}/big"), big("moved"), 0o644);
    let top = if side == Side::A { 0o755 } else { 0o750 };
    b.finish(&[("locked", 0o555), ("group", 0o2775), ("", top)]);
}

/// The same command under strace.
pub(crate) fn traced(command: &Command, options: &[String]) -> Command {
    let mut c = Command::new("strace");
    c.args(["-f", "-qq", "-o", "/dev/null"]);
    c.args(options);
    c.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => c.env(key, value),
            None => c.env_remove(key),
        };
    }
    c
}

/// How often the busiest thread makes each of these system calls.
pub(crate) fn count_calls(command: &Command, calls: &[&str], more: &[String]) -> BTreeMap<String, usize> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut options = vec![
        "-o".to_owned(),
        log.path().display().to_string(),
        "-e".to_owned(),
        format!("trace=renameat2,{}", calls.join(",")),
    ];
    options.extend_from_slice(more);
    let out = traced(command, &options).output();
    let out = out.expect("strace must be installed");
    assert!(out.status.success(), "{out:?}");
    let text = std::fs::read(log.path()).unwrap();
    let text = String::from_utf8_lossy(&text);
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        if let Some((call, _)) = call.trim_start().split_once('(')
            && calls.contains(&call)
        {
            *counts.entry((thread, call)).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, call), n) in counts {
        let at = most.entry(call.to_owned()).or_insert(0);
        *at = n.max(*at);
    }
    assert!(!most.is_empty(), "strace saw nothing; may it trace?");
    most
}

/// Ended by SIGKILL, itself or strace in its stead.
pub(crate) fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(9) || status.code() == Some(137)
}

/// Runs and kills at the `nth` call of `call` of some thread; says whether that came.
#[track_caller]
pub(crate) fn kill_at(command: &Command, call: &str, nth: usize, more: &[String]) -> bool {
    let mut options = vec!["-e".to_owned(), format!("trace=renameat2,{call}")];
    options.extend(["-e".to_owned(), format!("inject={call}:signal=KILL:when={nth}")]);
    options.extend_from_slice(more);
    let out = traced(command, &options).output();
    let out = out.expect("strace must be installed");
    let killed = was_killed(out.status);
    assert!(killed || matches!(out.status.code(), Some(0 | 4)), "{out:?}");
    killed
}

/// Starts, waits until `begun`, then for `delay`, and kills; says whether it still ran.
pub(crate) fn kill_after(mut command: Command, begun: impl Fn() -> bool, delay: Duration) -> bool {
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    while !begun() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_micros(100));
    }
    std::thread::sleep(delay);
    let _ = child.kill();
    was_killed(child.wait().unwrap())
}

/// How long an undisturbed run takes from `begun` to its end.
pub(crate) fn measure(mut command: Command, begun: impl Fn() -> bool) -> Duration {
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut since = Instant::now();
    while !begun() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_micros(100));
        since = Instant::now();
    }
    assert!(child.wait().unwrap().success());
    since.elapsed()
}
