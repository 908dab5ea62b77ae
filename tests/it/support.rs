//! A scratch directory with SRC, DST and a state directory of its own, and the program to run on them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT};
use rustix::process::{Pid, Signal};

use serde_json::Value;
use tempfile::TempDir;

/// The program under test.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_syncagent"))
}

/// A place for one test.
pub struct Scratch {
    pub dir: TempDir,
}

/// What a run did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(o: Output) -> Self {
        Self {
            // -1: ended by a signal
            code: o.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&o.stdout).into_owned(),
            err: String::from_utf8_lossy(&o.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Fails the test unless the exit code is `code`.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// The lines of standard output that are plan lines.
    pub fn plan(&self) -> Vec<&str> {
        let is_plan =
            |l: &&str| ["create ", "update ", "attrs ", "move ", "delete "].iter().any(|w| l.starts_with(w));
        self.out.lines().filter(is_plan).collect()
    }

    /// The summary object of a `--json` run: its last line.
    #[track_caller]
    pub fn summary(&self) -> Value {
        let last = self.out.lines().last().expect("some output");
        serde_json::from_str::<Value>(last).expect("JSON")["summary"].clone()
    }
}

impl Scratch {
    /// With an empty SRC.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("syncagent-it").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("src")).unwrap();
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn src(&self) -> PathBuf {
        self.path().join("src")
    }

    pub fn dst(&self) -> PathBuf {
        self.path().join("dst")
    }

    /// Writes a file below the scratch directory, directories too.
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn read(&self, path: impl AsRef<Path>) -> Vec<u8> {
        std::fs::read(self.path().join(path)).unwrap()
    }

    /// The program with its own state directory; add arguments and run.
    pub fn command(&self, sub: &str) -> Command {
        let mut c = Command::new(program());
        c.arg(sub).env("SYNCAGENT_STATE_DIR", self.path().join("state")).env_remove("STATE_DIRECTORY");
        c
    }

    /// `sync src dst ARGS`.
    pub fn sync<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ran {
        self.command("sync").arg(self.src()).arg(self.dst()).args(args).output().unwrap().into()
    }

    /// `syncagent digest DIR`: the digest.
    #[track_caller]
    pub fn digest(&self, dir: impl AsRef<Path>) -> String {
        let ran = Ran::from(self.command("digest").arg(self.path().join(dir)).output().unwrap()).code(0);
        ran.out.split_whitespace().next().unwrap().to_owned()
    }

    /// rsync finds no difference between SRC and DST.
    #[track_caller]
    pub fn assert_same_by_rsync(&self) {
        let out = Command::new("rsync")
            .args(["-ain", "--no-D", "--checksum", "--delete", "--exclude=/.syncagent"])
            .arg(format!("{}/", self.src().display()))
            .arg(format!("{}/", self.dst().display()))
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        assert_eq!(String::from_utf8_lossy(&out.stdout), "");
    }

    /// Nothing of a run is left where it stages.
    #[track_caller]
    pub fn assert_nothing_staged(&self) {
        for name in ["stage", "stage.old", "stage.done", "unplaced", "journal"] {
            assert!(!self.dst().join(".syncagent").join(name).exists(), "{name} is left");
        }
    }
}

/// More than the racy rule's step, so that what was written counts as quiet in the next scan.
const CLOCK_STEP: Duration = Duration::from_millis(30);
/// No step of a test takes this long unless the program hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A user and a group without rights.
pub const NOBODY: u32 = 65534;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether the test can go on; says why not.
pub fn needs_root(test: &str) -> bool {
    if !is_root() {
        eprintln!("skipped: {test} needs root");
    }
    is_root()
}

/// Lets the clock pass the step within which times prove nothing.
pub fn settle() {
    std::thread::sleep(CLOCK_STEP);
}

/// Waits until `done`; fails the test when that takes too long.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A name or path of arbitrary bytes.
pub fn raw(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Runs a tool that must succeed.
#[track_caller]
pub fn tool(name: &str, args: &[&OsStr]) {
    let out = Command::new(name).args(args).output().unwrap();
    assert!(out.status.success(), "{name} {args:?}: {out:?}");
}

pub fn chmod(path: impl AsRef<Path>, mode: u32) {
    let path = path.as_ref();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Sets an mtime to the nanosecond; a link's own.
pub fn set_mtime(path: impl AsRef<Path>, sec: i64, nsec: i64) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: sec, tv_nsec: nsec },
    };
    rustix::fs::utimensat(CWD, path.as_ref(), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Sets a path's mtime to what `meta` has.
pub fn set_mtime_like(path: impl AsRef<Path>, meta: &std::fs::Metadata) {
    set_mtime(path, meta.mtime(), meta.mtime_nsec());
}

pub fn symlink(target: impl AsRef<Path>, path: impl AsRef<Path>) {
    std::os::unix::fs::symlink(target, path).unwrap();
}

pub fn mkfifo(path: impl AsRef<Path>) {
    tool("mkfifo", &[path.as_ref().as_os_str()]);
}

/// One path of a tree as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub kind: char,
    pub mode: u32,
    pub mtime: (i64, i64),
    /// A file's bytes, a link's target.
    pub content: Vec<u8>,
}

/// All paths below `dir`, our own directory aside. The root is in it, under the empty path.
pub fn snapshot(dir: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut out = BTreeMap::new();
    let walk = walkdir::WalkDir::new(dir).follow_links(false).into_iter();
    for entry in walk.filter_entry(|e| e.file_name() != ".syncagent") {
        let entry = entry.unwrap();
        let path = entry.path();
        let meta = path.symlink_metadata().unwrap();
        let (kind, content) = match meta.file_type() {
            t if t.is_dir() => ('d', Vec::new()),
            t if t.is_file() => ('f', std::fs::read(path).unwrap()),
            t if t.is_symlink() => ('l', path.read_link().unwrap().as_os_str().as_bytes().to_vec()),
            _ => ('s', Vec::new()),
        };
        let seen = Seen {
            kind,
            mode: if kind == 'l' { 0o777 } else { meta.mode() & 0o7777 },
            mtime: (meta.mtime(), meta.mtime_nsec()),
            content,
        };
        let relative = path.strip_prefix(dir).unwrap().as_os_str().as_bytes();
        out.insert(relative.to_vec(), seen);
    }
    out
}

/// Fails the test where two trees differ, path by path. Special files are left out.
#[track_caller]
pub fn assert_same(src: &Path, dst: &Path) {
    let (mut want, mut have) = (snapshot(src), snapshot(dst));
    want.retain(|_, s| s.kind != 's');
    have.retain(|_, s| s.kind != 's');
    for path in want.keys().chain(have.keys()) {
        let shown = String::from_utf8_lossy(path);
        assert_eq!(have.get(path), want.get(path), "{shown}: dst, src");
    }
}

/// Everything that `stat` says of every path below `dir`, times of access aside.
pub fn full_stat(dir: &Path) -> Vec<String> {
    let mut out: Vec<String> = walkdir::WalkDir::new(dir)
        .into_iter()
        .map(|e| {
            let e = e.unwrap();
            let m = e.path().symlink_metadata().unwrap();
            let times = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()];
            let ids = [m.ino(), m.nlink(), m.size(), m.blocks(), m.dev()];
            let who = [m.mode(), m.uid(), m.gid()];
            format!("{:?} {times:?} {ids:?} {who:?}", e.path())
        })
        .collect();
    out.sort();
    out
}

/// Something mounted for as long as this lives.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn new(at: &Path, args: &[&str]) -> Self {
        let out = Command::new("mount").args(args).arg(at).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        Self(at.to_owned())
    }

    pub fn tmpfs(at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        Self::new(at, &["-t", "tmpfs", "-o", options, "tmpfs"])
    }

    pub fn bind(from: &Path, at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        Self::new(at, &["--bind", from.to_str().unwrap()])
    }

    pub fn remount(&self, options: &str) {
        tool("mount", &["-o".as_ref(), options.as_ref(), self.0.as_os_str()]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A running program, killed at the end of the test if it still runs.
pub struct Running(pub Option<Child>);

impl Running {
    pub fn start(command: &mut Command) -> Self {
        use std::process::Stdio;
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self(Some(child))
    }

    pub fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    /// Waits until the program has a file open whose path ends so.
    #[track_caller]
    pub fn wait_for_open(&mut self, end: &str) {
        let fds = format!("/proc/{}/fd", self.pid());
        wait_until(end, || {
            let ended = self.0.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "it ended before it opened {end}");
            let fds = std::fs::read_dir(&fds).into_iter().flatten().flatten();
            fds.filter_map(|fd| std::fs::read_link(fd.path()).ok())
                .any(|to| to.as_os_str().as_bytes().ends_with(end.as_bytes()))
        });
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end, at most `limit`.
    #[track_caller]
    pub fn end_within(mut self, limit: Duration) -> Ran {
        let start = Instant::now();
        while self.0.as_mut().unwrap().try_wait().unwrap().is_none() {
            assert!(start.elapsed() < limit, "it still runs after {limit:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        self.0.take().unwrap().wait_with_output().unwrap().into()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Scratch {
    /// On a file system in memory where there is one: for tests of many runs that need no disk.
    pub fn in_memory() -> Self {
        let mut builder = tempfile::Builder::new();
        builder.prefix("syncagent-it");
        let dir = builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir()).unwrap();
        std::fs::create_dir(dir.path().join("src")).unwrap();
        Self { dir }
    }

    /// The program's command with any arguments.
    pub fn run<A: AsRef<OsStr>>(&self, sub: &str, args: impl IntoIterator<Item = A>) -> Ran {
        self.command(sub).args(args).output().unwrap().into()
    }

    /// The program as a user without rights, who owns nothing but what [`Scratch::give`] gave: root
    /// becomes nobody, with `groups` beside its own.
    pub fn user_command(&self, sub: &str, groups: &str) -> Command {
        if !is_root() {
            return self.command(sub);
        }
        // the build directory may be closed to others
        let copy = self.path().join("program");
        if !copy.exists() {
            // by another process: no child of ours can inherit a descriptor open for writing
            tool("cp", &[program().as_os_str(), copy.as_os_str()]);
            chmod(self.path(), 0o755);
            // a swap needs to write beside DST
            let owner = NOBODY.to_string();
            tool("chown", &[owner.as_ref(), self.path().as_os_str()]);
            std::fs::create_dir_all(self.path().join("state")).unwrap();
            self.give("state");
        }
        let id = NOBODY.to_string();
        let mut c = Command::new("setpriv");
        c.arg(format!("--reuid={id}")).arg(format!("--regid={id}"));
        if groups.is_empty() {
            c.arg("--clear-groups");
        } else {
            c.arg(format!("--groups={groups}"));
        }
        c.arg("--").arg(copy).arg(sub);
        c.env("SYNCAGENT_STATE_DIR", self.path().join("state")).env_remove("STATE_DIRECTORY");
        c
    }

    /// `sync src dst ARGS` as [`Scratch::user_command`].
    pub fn user_sync<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ran {
        self.user_command("sync", "").arg(self.src()).arg(self.dst()).args(args).output().unwrap().into()
    }

    /// Makes a directory for the user, or gives away what is there.
    pub fn give(&self, path: &str) {
        let path = self.path().join(path);
        std::fs::create_dir_all(&path).unwrap();
        if is_root() {
            let owner = format!("{NOBODY}:{NOBODY}");
            let args = ["-hR".as_ref(), owner.as_ref(), path.as_os_str()];
            tool("chown", &args);
        }
    }

    /// A directory below the scratch directory, parents too.
    pub fn mkdir(&self, path: impl AsRef<Path>) {
        std::fs::create_dir_all(self.path().join(path)).unwrap();
    }

    pub fn remove(&self, path: impl AsRef<Path>) {
        let path = self.path().join(path);
        match path.symlink_metadata() {
            Ok(m) if m.is_dir() => std::fs::remove_dir_all(path).unwrap(),
            Ok(_) => std::fs::remove_file(path).unwrap(),
            Err(e) => panic!("{}: {e}", path.display()),
        }
    }

    pub fn rename(&self, from: &str, to: &str) {
        std::fs::rename(self.path().join(from), self.path().join(to)).unwrap();
    }

    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path().join(path).symlink_metadata().is_ok()
    }

    /// DST is what SRC is to the last nanosecond, by our own eyes and rsync's; a further run finds nothing to do;
    /// nothing is left of the staging.
    #[track_caller]
    pub fn assert_synced<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) {
        assert_same(&self.src(), &self.dst());
        self.assert_same_by_rsync();
        self.assert_nothing_staged();
        let again = self.sync(
            ["-n"].map(OsStr::new).into_iter().chain(
                args.into_iter()
                    .map(|a| a.as_ref().to_owned())
                    .collect::<Vec<_>>()
                    .iter()
                    .map(std::ffi::OsString::as_os_str),
            ),
        );
        let again = again.code(0);
        assert_eq!(again.plan(), Vec::<&str>::new(), "a second run");
    }

    /// The content files below `root` that `command` opened, by strace; `None` without strace.
    pub fn content_opens(&self, command: &Command, root: &Path) -> Option<(Vec<String>, Ran)> {
        let log = self.path().join("strace.log");
        let mut c = Command::new("strace");
        c.args(["-f", "-y", "-qq", "--seccomp-bpf", "-s", "4096"])
            .args(["-e", "trace=open,openat,openat2", "-o"])
            .arg(&log)
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => c.env(key, value),
                None => c.env_remove(key),
            };
        }
        let Ok(out) = c.output() else {
            eprintln!("skipped: there is no strace");
            return None;
        };
        let text = std::fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(text.contains("openat"), "strace saw nothing: {out:?}");
        let root = root.to_str().unwrap();
        let is_content = |l: &&str| {
            let own = l.contains("/.syncagent") || l.contains("\".syncagent");
            let own = own || l.contains("/state/trees/");
            // the rest of a line that was shown in two parts, of which the first says all
            let own = own || l.contains("resumed>");
            l.contains(root) && !l.contains("O_DIRECTORY") && !l.contains("O_PATH") && !own
        };
        let lines = text.lines().filter(is_content).map(String::from);
        Some((lines.collect(), out.into()))
    }
}
