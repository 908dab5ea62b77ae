//! What systemd is told, seen from its end of the socket.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::agents::cluster::{Agent, Cluster, until};
use crate::support::program;

struct Manager {
    socket: UnixDatagram,
    said: Vec<String>,
}

impl Manager {
    /// Starts a node under it.
    fn start(c: &Cluster, node: &str, watchdog: Duration) -> (Self, Agent) {
        let path = c.path().join(format!("{node}.notify"));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut command = Command::new(program());
        command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        let agent = c.start_by(node, command);
        (Self { socket, said: Vec::new() }, agent)
    }

    /// All that was said so far, a line each.
    fn said(&mut self) -> &[String] {
        let mut buffer = [0; 4096];
        while let Ok(n) = self.socket.recv(&mut buffer) {
            self.said.extend(String::from_utf8_lossy(&buffer[..n]).lines().map(String::from));
        }
        &self.said
    }

    fn count(&mut self, line: &str) -> usize {
        self.said().iter().filter(|l| *l == line).count()
    }
}

#[test]
fn ready_state_reload_and_end_are_told() {
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/x", "1");
    let (mut m, agent) = Manager::start(&c, "a", Duration::from_secs(60));
    until("READY", || m.count("READY=1") == 1);
    until("STATUS", || m.count("STATUS=t: current 1.1, 0 mirrors") == 1);
    agent.signal(Signal::HUP);
    until("the reload's end", || m.count("READY=1") == 2);
    let said = m.said().to_vec();
    let at = |line: &str| {
        said.iter().rposition(|l| l.starts_with(line)).unwrap_or_else(|| panic!("{line}: {said:?}"))
    };
    assert!(at("RELOADING=1") < at("MONOTONIC_USEC=") && at("MONOTONIC_USEC=") < at("READY=1"), "{said:?}");
    // a reload that fails ends, too
    c.edit("a", "role = \"source\"", "role = \"sauce\"");
    agent.signal(Signal::HUP);
    until("the failed reload's end", || m.count("READY=1") == 3);
    agent.stop();
    assert_eq!(m.count("STOPPING=1"), 1);
}

#[test]
fn the_watchdog_is_fed_while_the_agent_runs_and_only_then() {
    const LIMIT: Duration = Duration::from_millis(600);
    let c = Cluster::local();
    c.source("a", "");
    let (mut m, agent) = Manager::start(&c, "a", LIMIT);
    until("feeding", || m.count("WATCHDOG=1") >= 4);
    agent.signal(Signal::STOP);
    let state = format!("/proc/{}/stat", agent.pid().as_raw_nonzero());
    until("its stop", || std::fs::read_to_string(&state).unwrap().contains(") T "));
    let fed = m.count("WATCHDOG=1");
    // time passing is what is tried here
    std::thread::sleep(LIMIT * 2);
    assert_eq!(m.count("WATCHDOG=1"), fed, "a stopped agent feeds its watchdog");
    agent.signal(Signal::CONT);
    until("feeding again", || m.count("WATCHDOG=1") > fed);
}

#[test]
fn a_hung_mount_does_not_stop_the_feeding() {
    const LIMIT: Duration = Duration::from_secs(1);
    if Command::new("bindfs").arg("--version").output().is_err() {
        eprintln!("skipped: there is no bindfs");
        return;
    }
    let c = Cluster::local();
    c.source("a", "scan-interval = \"1s\"\n");
    c.scratch.write("a/real/x", "1");
    let mount = Bindfs::new(&c.path().join("a/real"), &c.tree("a"));
    let (mut m, agent) = Manager::start(&c, "a", LIMIT);
    until("the first generation", || m.count("STATUS=t: current 1.1, 0 mirrors") == 1);
    mount.signal(Signal::STOP);
    // of a scan that hangs, and of a reload that meets the hung mount
    agent.signal(Signal::HUP);
    let (begun, fed) = (Instant::now(), m.count("WATCHDOG=1"));
    let mut last = (Instant::now(), fed);
    while begun.elapsed() < LIMIT * 5 {
        let now = m.count("WATCHDOG=1");
        if now > last.1 {
            last = (Instant::now(), now);
        }
        assert!(last.0.elapsed() < LIMIT, "not fed for {:?} of {:?}", last.0.elapsed(), begun.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    mount.signal(Signal::CONT);
    assert!(agent.try_status().is_some());
}

/// A directory seen through a FUSE process, which hangs when that is stopped.
struct Bindfs(std::process::Child, std::path::PathBuf);

impl Bindfs {
    fn new(from: &std::path::Path, at: &std::path::Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let options = "attr_timeout=0,entry_timeout=0,negative_timeout=0";
        let child = Command::new("bindfs").args(["-f", "-o", options]).args([from, at]).spawn().unwrap();
        let mounted = Self(child, at.to_owned());
        until("the mount", || at.join("x").exists());
        mounted
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Bindfs {
    fn drop(&mut self) {
        // whatever hangs on it gets an error, then it can go
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = Command::new("umount").arg("-l").arg(&self.1).status();
    }
}
