//! A disk that hangs: what is on it waits, the public port does not.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::super::cluster::{Cluster, eventually, noise, until, within};
use super::{Port, open};
use rustix::process::Signal;

use crate::support::{needs_root, program, tool};

/// A file system on a loop device that can be frozen. However the test ends, it thaws and goes.
struct Disk {
    at: PathBuf,
    freezer: Option<Child>,
}

impl Disk {
    fn new(image: &Path, at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        std::fs::File::create(image).unwrap().set_len(96 << 20).unwrap();
        tool("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_ref()]);
        tool("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), at.as_ref()]);
        Self { at, freezer: None }
    }

    /// From now on every write to it hangs.
    fn freeze(&mut self) {
        // in the background: freezing itself may have to wait
        let mut child = Command::new("fsfreeze").arg("-f").arg(&self.at).spawn().unwrap();
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(20), "fsfreeze hangs");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.freezer = Some(child);
    }

    fn thaw(&mut self) {
        if self.freezer.take().is_some() {
            let _ = Command::new("fsfreeze").arg("-u").arg(&self.at).status();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // also when it was not frozen: then it only complains
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.at).output();
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

/// All answers come in under 5 ms.
#[track_caller]
fn is_quick(port: Port) {
    for path in ["/ha/health", "/livez", "/readyz", "/status", "/metrics", "/"] {
        let ask = |_| {
            let begun = Instant::now();
            port.get(path);
            begun.elapsed()
        };
        let mut times: Vec<Duration> = (0..41).map(ask).collect();
        times.sort();
        // other tests use the processors, too: half of the answers tell
        assert!(times[20] < Duration::from_millis(5), "{path}: {times:?}");
    }
}

#[test]
fn with_the_disk_frozen_all_answers_come_at_once_and_the_lag_drains_the_node() {
    if !needs_root("a frozen disk") {
        return;
    }
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/x", "1");
    c.mirror("b", "a", "max-lag = \"2s\"\n");
    // the tree and the state directory
    let mut disk = Disk::new(&c.path().join("disk"), c.path().join("b"));
    let port = open(&c, "b");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    port.wait_for(200, "ok", &b);

    disk.freeze();
    c.scratch.write("a/tree/large", noise(3, 4 << 20));
    port.wait_for(503, "t: lag ", &b);
    let line = port.get("/ha/health").body;
    assert!(line.contains("is over max-lag 2 s"), "{line}");
    assert!(port.check().contains("down #t: lag"), "{}", port.check());
    for path in ["/livez", "/readyz", "/status", "/metrics", "/"] {
        assert_eq!(port.get(path).status, 200, "{path}");
    }
    is_quick(port);
    assert_eq!(
        b.own()["lag_ms"].as_u64().map(|ms| ms > 2_000),
        Some(true),
        "the local socket answers as well"
    );

    disk.thaw();
    port.wait_for(200, "ok", &b);
    c.assert_converges(&a, &b, ("a", "b"));
}

/// The agent itself comes up, says what it waits for, and goes on when the disk does.
#[test]
fn an_agent_that_starts_on_a_frozen_disk_answers_and_says_so() {
    if !needs_root("a frozen disk") {
        return;
    }
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/x", "1");
    c.mirror("b", "a", "");
    let mut disk = Disk::new(&c.path().join("disk"), c.path().join("b"));
    let port = open(&c, "b");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    b.stop();
    disk.freeze();
    let b = c.start_quietly("b", Command::new(program()));
    until("the port", || std::net::TcpStream::connect(("127.0.0.1", port.http)).is_ok());
    let line = port.get("/readyz");
    assert_eq!((line.status, line.body.as_str()), (503, "t: starting\n"));
    is_quick(port);
    assert_eq!(port.get("/livez").status, 200);
    // a disk that hangs for so long is a fault of this node
    let mut last = port.get("/ha/health");
    let failed = eventually(|| {
        last = port.get("/ha/health");
        last.status == 503 && last.body.contains("hangs")
    });
    assert!(failed, "{last:?}\n{}", b.log_tail());
    is_quick(port);
    disk.thaw();
    port.wait_for(200, "ok", &b);
    until("readiness", || port.get("/readyz").status == 200);
    c.assert_converges(&a, &b, ("a", "b"));
}

/// A tree on a mount whose server stops answering, as a network file system's can; on the source's side.
#[test]
fn with_a_mount_that_hangs_all_answers_come_at_once() {
    if !needs_root("a mount that hangs") {
        return;
    }
    let c = Cluster::local();
    c.source("a", "settle = \"50ms\"\nscan-interval = \"1s\"\n");
    let behind = c.path().join("behind");
    std::fs::create_dir(&behind).unwrap();
    let mut server = Command::new("bindfs").arg("-f").args([&behind, &c.tree("a")]).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&server);
    let at = c.tree("a");
    let _end = Ended(move || {
        let _ = rustix::process::kill_process(pid, Signal::CONT);
        let _ = Command::new("umount").arg("-l").arg(&at).output();
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    });
    until("the mount", || {
        std::fs::read_to_string("/proc/self/mounts").unwrap().contains(c.tree("a").to_str().unwrap())
    });
    c.scratch.write("behind/x", "1");
    let port = open(&c, "a");
    let a = c.start("a");
    a.wait_for_state("current");
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    c.scratch.write("behind/y", "2");
    // a scan is under way, and hangs
    let waits = |task: std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("wchan")).is_ok_and(|w| w.contains("request_wait_answer"))
    };
    let tasks = format!("/proc/{}/task", a.pid().as_raw_nonzero());
    until("the hang", || std::fs::read_dir(&tasks).unwrap().flatten().any(waits));
    assert_eq!(port.get("/livez").status, 200);
    is_quick(port);
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    until("the next generation", || a.tree()["head"]["number"] == 2);
    drop(a);
    drop(_end);
    server.wait().unwrap();
}

/// Who reads the log stops reading; whatever writes to it waits.
#[test]
fn with_a_log_that_nobody_reads_all_answers_come_at_once() {
    let c = Cluster::local();
    c.source("a", "");
    let log = c.path().join("log");
    let made = Command::new("mkfifo").arg(&log).status().unwrap();
    assert!(made.success());
    // opened for both, so that neither side waits for the other
    let mut reader = std::fs::File::options().read(true).write(true).open(&log).unwrap();
    rustix::pipe::fcntl_setpipe_size(&reader, 4096).unwrap();
    let port = open(&c, "a");
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 2>\"$LOG\""]).arg(program()).env("LOG", &log);
    let a = c.start_by("a", command);
    let head = || a.tree()["head"]["number"].as_u64().unwrap_or(0);
    let mut hangs = false;
    for i in 0..200 {
        let before = head();
        c.scratch.write("a/tree/x", format!("content {i}"));
        if !within(Duration::from_secs(3), || head() > before) {
            hangs = true;
            break;
        }
    }
    assert!(hangs, "the log never filled");
    is_quick(port);
    assert_eq!((port.get("/livez").status, port.get("/ha/health").status), (200, 200));
    // read again, it goes on
    let before = head();
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    until("the next generation", || head() > before);
}

/// Runs something at the end, also of a test that fails.
struct Ended<F: FnMut()>(F);

impl<F: FnMut()> Drop for Ended<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
