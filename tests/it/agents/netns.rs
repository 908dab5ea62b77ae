//! Several hosts on one machine: network namespaces around a bridge that has a namespace of its own. Nothing is
//! added to the machine's own network, so every test has all addresses to itself.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What the namespaces' names begin with; the test's process id and a number follow.
const PREFIX: &str = "syncagent-it";

/// Hosts with one line each to a common switch; they go with it.
pub struct Net {
    name: String,
    hosts: Vec<String>,
}

impl Net {
    /// With these hosts, which reach each other.
    pub fn new(hosts: &[&str]) -> Self {
        static CLEAN: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        CLEAN.call_once(remove_leftovers);
        let name = format!("{PREFIX}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let net = Self { name, hosts: hosts.iter().map(|h| (*h).to_owned()).collect() };
        ip(&["netns", "add", &net.name]);
        let mut switch = "link add name switch type bridge\nlink set dev switch up\n".to_owned();
        for host in hosts {
            let ns = net.namespace(host);
            ip(&["netns", "add", &ns]);
            switch += &format!("link add name port-{host} type veth peer name eth0 netns {ns}\n");
            switch += &format!("link set dev port-{host} master switch up\n");
        }
        batch(&net.name, &switch);
        for host in hosts {
            let address = net.address(host);
            let up = format!("addr add {address}/24 dev eth0\nlink set dev eth0 up\nlink set dev lo up\n");
            batch(&net.namespace(host), &up);
        }
        net
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.name)
    }

    pub fn address(&self, host: &str) -> String {
        let n = self.hosts.iter().position(|h| h == host).unwrap();
        format!("10.77.0.{}", n + 1)
    }

    /// A command that runs on the host; it keeps its process id.
    pub fn command(&self, host: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host)]).arg(program);
        command
    }

    /// What `work` makes on the host: its sockets stay there.
    pub fn inside<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        let ns = std::fs::File::open(format!("/run/netns/{}", self.namespace(host))).unwrap();
        std::thread::scope(|threads| {
            let there = threads.spawn(|| {
                move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            there.join().unwrap()
        })
    }

    /// Takes the host's line away: no packet passes, and nobody is told.
    pub fn cut(&self, host: &str) {
        self.port(host, "0");
    }

    pub fn heal(&self, host: &str) {
        self.port(host, "3");
    }

    fn port(&self, host: &str, state: &str) {
        let port = format!("port-{host}");
        tool("bridge", &["-n", &self.name, "link", "set", "dev", &port, "state", state]);
    }

    /// So many Mbit/s reach the host from now on.
    pub fn throttle(&self, host: &str, mbit: u32) {
        let (port, rate) = (format!("port-{host}"), format!("{mbit}mbit"));
        let args = ["-n", &self.name, "qdisc", "replace", "dev", &port, "root", "tbf", "rate", &rate];
        tool("tc", &[&args[..], &["burst", "64kbit", "latency", "100ms"]].concat());
    }

    /// The line is as fast as it gets again.
    pub fn unthrottle(&self, host: &str) {
        tool("tc", &["-n", &self.name, "qdisc", "del", "dev", &format!("port-{host}"), "root"]);
    }

    /// That part of the packets does not reach the host from now on.
    pub fn lose(&self, host: &str, part: &str) {
        let ns = self.namespace(host);
        let rule = ["-m", "statistic", "--mode", "random", "--probability", part, "-j", "DROP"];
        tool("ip", &[&["netns", "exec", &ns, "iptables", "-A", "INPUT"][..], &rule].concat());
    }

    /// Bytes that reached the host.
    pub fn received(&self, host: &str) -> u64 {
        let out = tool("ip", &["-n", &self.namespace(host), "-j", "-s", "link", "show", "dev", "eth0"]);
        let links: serde_json::Value = serde_json::from_str(&out).unwrap();
        links[0]["stats64"]["rx"]["bytes"].as_u64().unwrap()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let hosts = self.hosts.iter().map(|h| self.namespace(h));
        for ns in hosts.chain([self.name.clone()]) {
            // the next run removes what stays
            let _ = Command::new("ip").args(["netns", "del", &ns]).stderr(Stdio::null()).status();
        }
    }
}

/// Removes what killed test runs left: namespaces of processes that are no more, and the agents in them.
fn remove_leftovers() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Some(rest) = name.strip_prefix(PREFIX).and_then(|r| r.strip_prefix('-')) else { continue };
        let pid = rest.split('-').next().unwrap_or_default();
        if std::path::Path::new("/proc").join(pid).exists() {
            continue;
        }
        let pids = tool("ip", &["netns", "pids", &name]);
        for pid in pids.split_whitespace() {
            // it may have ended meanwhile
            let _ = Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status();
        }
        // another run may be cleaning, too
        let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
    }
}

#[track_caller]
fn ip(args: &[&str]) {
    tool("ip", args);
}

/// Runs a tool that must succeed; gives what it says.
#[track_caller]
fn tool(name: &str, args: &[&str]) -> String {
    let out = Command::new(name).args(args).output().unwrap();
    assert!(out.status.success(), "{name} {args:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// Lines for `ip` in a namespace.
#[track_caller]
fn batch(ns: &str, lines: &str) {
    let mut ip = Command::new("ip").args(["-n", ns, "-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success(), "{lines}");
}
