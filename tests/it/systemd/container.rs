//! A systemd of its own on the root directory of this host (tests/nspawn), with the package installed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{PATIENCE, Ran, program};

/// It starts within a second; a machine that is busy with other tests takes longer.
const START: Duration = Duration::from_secs(40);

/// Ends with this value: its processes, and whatever they mounted.
pub struct Container {
    outer: Child,
    /// Its process 1.
    leader: String,
    log: PathBuf,
    name: String,
    _dir: tempfile::TempDir,
}

impl Container {
    /// Boots. Without the rights to do so the test fails, and says why.
    #[track_caller]
    pub fn start(name: &str) -> Self {
        // of this run alone
        let name = format!("{name}-{}", std::process::id());
        let dir = tempfile::Builder::new().prefix("syncagent-it").tempdir().unwrap();
        let at = dir.path().join("at");
        std::fs::create_dir(&at).unwrap();
        let log = dir.path().join("console");
        let out = std::fs::File::create(&log).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nspawn");
        // the process namespace ends with its first process, that one with this thread, so nothing is left behind
        let outer = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ])
            .arg("--")
            .arg(script)
            .arg(&name)
            .arg(&at)
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .expect("setpriv; it is in Debian's util-linux");
        let mut container = Self { outer, leader: String::new(), log, name, _dir: dir };
        let begun = Instant::now();
        while !container.is_up() {
            let ended = container.outer.try_wait().unwrap();
            let text = std::fs::read_to_string(&container.log).unwrap_or_default();
            assert!(ended.is_none(), "no container can be started here ({ended:?}):\n{text}");
            assert!(begun.elapsed() < START, "the container does not come up within {START:?}:\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
        container
    }

    fn is_up(&mut self) -> bool {
        // outer (unshare) -> tests/nspawn -> systemd-nspawn -> systemd
        let child = |pid: &str| {
            let path = format!("/proc/{pid}/task/{pid}/children");
            let all = std::fs::read_to_string(path).ok()?;
            Some(all.split_whitespace().next_back()?.to_owned())
        };
        let outer = self.outer.id().to_string();
        let leader = child(&outer).and_then(|p| child(&p)).and_then(|p| child(&p));
        let Some(leader) = leader else { return false };
        if !std::fs::read_to_string(format!("/proc/{leader}/comm")).is_ok_and(|c| c.trim() == "systemd") {
            return false;
        }
        self.leader = leader;
        let state = self.run(&["systemctl", "is-system-running"]);
        ["running", "degraded"].contains(&state.out.trim())
    }

    /// Where a path of the container is for this process.
    pub fn path(&self, path: &str) -> PathBuf {
        assert!(path.starts_with('/'));
        PathBuf::from(format!("/proc/{}/root{path}", self.leader))
    }

    /// Writes a file in it, directories too.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.path(path)).unwrap_or_default()
    }

    /// Runs a command in it, for at most a minute.
    pub fn run(&self, words: &[&str]) -> Ran {
        let mut c = Command::new("timeout");
        c.args([
            "--signal=KILL",
            "60",
            "nsenter",
            "-t",
            &self.leader,
            "-m",
            "-u",
            "-i",
            "-n",
            "-p",
            "-C",
            "--",
        ]);
        c.args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"]);
        c.args(words).stdin(Stdio::null()).output().unwrap().into()
    }

    /// A line of a shell that must succeed; gives its output without the last line's end.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        let ran = self.run(&["sh", "-ec", line]);
        assert_eq!(ran.code, 0, "{line}\n{}{}", ran.out, ran.err);
        ran.out.trim_end().to_owned()
    }

    /// Installs a package.
    #[track_caller]
    pub fn install(&self, version: &str) {
        self.write("/root/new.deb", std::fs::read(package(version)).unwrap());
        self.sh("dpkg -i /root/new.deb 2>&1 && rm /root/new.deb");
    }

    /// A property of the service.
    #[track_caller]
    pub fn property(&self, name: &str) -> String {
        self.sh(&format!("systemctl show --value --property={name} syncagent"))
    }

    /// The service's own row of a tree.
    pub fn own(&self, tree: &str) -> Value {
        self.tree(tree)["nodes"][0].clone()
    }

    /// A tree as the service shows it; null when it does not.
    pub fn tree(&self, tree: &str) -> Value {
        let ran = self.run(&["syncagent", "status", "--json"]);
        let status: Value = serde_json::from_str(&ran.out).unwrap_or_default();
        let trees = status["trees"].as_array();
        trees.and_then(|t| t.iter().find(|t| t["name"] == tree)).cloned().unwrap_or_default()
    }

    /// The content digest of a directory.
    #[track_caller]
    pub fn digest(&self, dir: &str) -> String {
        self.sh(&format!("syncagent digest '{dir}'")).split_whitespace().next().unwrap().to_owned()
    }

    /// What the service wrote to its log, and systemd of it.
    pub fn journal(&self) -> String {
        self.run(&["journalctl", "--no-pager", "--unit=syncagent", "--output=cat"]).out
    }

    /// Waits until `done`; a test that waits in vain ends with the log.
    #[track_caller]
    pub fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !done() {
            if begun.elapsed() > PATIENCE {
                let status = self.run(&["syncagent", "status"]);
                let journal = self.journal();
                let lines: Vec<&str> = journal.lines().collect();
                let tail = lines[lines.len().saturating_sub(40)..].join("\n");
                panic!("{what} did not come\n{}{}\n{tail}", status.out, status.err);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Container {
    /// What tests/nspawn made, and systemd in it; the processes may need a moment to be gone.
    fn remove_groups(&self) {
        let tops = ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"];
        for top in tops.map(|top| Path::new(top).join("syncagent-tests").join(&self.name)) {
            let begun = Instant::now();
            while top.exists() && begun.elapsed() < Duration::from_secs(5) {
                let inside = walkdir::WalkDir::new(&top).contents_first(true).into_iter().flatten();
                for group in inside.filter(|e| e.file_type().is_dir()) {
                    let _ = std::fs::remove_dir(group.path());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // --kill-child: the process namespace goes with it, and the mount namespace with that
        let _ = self.outer.kill();
        let _ = self.outer.wait();
        let gone = Instant::now();
        while Path::new(&format!("/proc/{}/root/etc", self.leader)).exists()
            && gone.elapsed() < Duration::from_secs(5)
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.remove_groups();
    }
}

/// The package of a version, built from the program under test.
#[track_caller]
pub fn package(version: &str) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    // beside the program: rebuilt with it
    let out = program().parent().unwrap().join("deb");
    let package = out.join(format!("syncagent_{version}_{}.deb", architecture()));
    let time = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    let inputs = [
        "Cargo.toml",
        "systemd/syncagent.service",
        "packaging/build-deb",
        "packaging/maintainer-scripts/postrm",
    ];
    let inputs = inputs.map(|p| Path::new(env!("CARGO_MANIFEST_DIR")).join(p));
    let newest = inputs.iter().map(PathBuf::as_path).chain([program()]).filter_map(time).max();
    if time(&package) < newest {
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/build-deb");
        let ran: Ran = Command::new(build)
            .args(["--fast", "--version", version, "--binary"])
            .arg(program())
            .arg("--out")
            .arg(&out)
            .output()
            .unwrap()
            .into();
        assert_eq!(ran.code, 0, "the package cannot be built:\n{}{}", ran.out, ran.err);
    }
    package
}

fn architecture() -> String {
    let out = Command::new("dpkg").arg("--print-architecture").output().expect("dpkg");
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}
