//! A small cluster in a scratch directory: a CA, nodes with their configurations, and the processes.

use std::io::Read as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::netns::Net;
use crate::support::{Ran, Scratch, program};

/// A cluster.
pub struct Cluster {
    pub scratch: Scratch,
    pub port: u16,
    tls: bool,
    /// The nodes' hosts, if they are not all on this one.
    hosts: Option<Net>,
}

/// A node's process; killed when dropped.
pub struct Agent {
    child: Child,
    pub socket: PathBuf,
    pub log: PathBuf,
}

/// A free port of the loopback interface.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Cluster {
    /// Over TLS, with certificates for these nodes.
    pub fn new(nodes: &[&str]) -> Self {
        let scratch = Scratch::new();
        let pki = scratch.path().join("pki");
        run(&["pki", "init", "--dir", pki.to_str().unwrap(), "--cluster", "test"]).code(0);
        for node in nodes {
            run(&["pki", "issue", node, "--dir", pki.to_str().unwrap()]).code(0);
        }
        Self { scratch, port: free_port(), tls: true, hosts: None }
    }

    /// Over TLS, each node on a host of its own; needs root.
    pub fn on_hosts(nodes: &[&str]) -> Self {
        Self { hosts: Some(Net::new(nodes)), ..Self::new(nodes) }
    }

    /// The hosts of [`Cluster::on_hosts`].
    pub fn net(&self) -> &Net {
        self.hosts.as_ref().unwrap()
    }

    /// A node's address.
    pub fn address(&self, node: &str) -> String {
        let on = self.hosts.as_ref().map_or_else(|| "127.0.0.1".to_owned(), |net| net.address(node));
        format!("{on}:{}", self.port)
    }

    /// Over a Unix socket.
    pub fn local() -> Self {
        Self { scratch: Scratch::new(), port: 0, tls: false, hosts: None }
    }

    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// A node's tree.
    pub fn tree(&self, node: &str) -> PathBuf {
        self.path().join(node).join("tree")
    }

    pub fn config_path(&self, node: &str) -> PathBuf {
        self.path().join(format!("{node}.toml"))
    }

    /// The part of a configuration that all nodes have.
    fn common(&self, node: &str, data: &str) -> String {
        let at = self.path().display();
        let tls = if self.tls {
            format!(
                "[tls]\ncert = \"{at}/pki/{node}.pem\"\nkey = \"{at}/pki/{node}.key\"\nca = \"{at}/pki/ca.pem\"\n"
            )
        } else {
            String::new()
        };
        format!(
            "state-dir = \"{at}/{node}/state\"\n[node]\nid = \"{node}\"\n[listen]\n{data}socket = \"{at}/{node}.sock\"\n{tls}\
             [cluster]\nname = \"test\"\n[log]\nlevel = \"debug\"\n[tree.t]\npath = \"{}\"\n",
            self.tree(node).display()
        )
    }

    /// Writes a source's configuration; `keys` are further lines of its tree.
    pub fn source(&self, node: &str, keys: &str) {
        let data = if self.tls {
            format!("data = \"{}\"\n", self.address(node))
        } else {
            format!("data = \"unix:{}/data.sock\"\n", self.path().display())
        };
        let settle = if keys.contains("settle =") { "" } else { "settle = \"50ms\"\n" };
        let text = self.common(node, &data) + "role = \"source\"\nallow = [\"*\"]\n" + settle + keys;
        std::fs::create_dir_all(self.tree(node)).unwrap();
        std::fs::write(self.config_path(node), text).unwrap();
    }

    /// Writes a mirror's configuration.
    pub fn mirror(&self, node: &str, source: &str, keys: &str) {
        let upstream = if self.tls {
            format!("source = \"https://{}\"\nsource-id = \"{source}\"\n", self.address(source))
        } else {
            format!("source = \"unix:{}/data.sock\"\n", self.path().display())
        };
        let text = self.common(node, "") + "role = \"mirror\"\n" + &upstream + keys;
        std::fs::create_dir_all(self.path().join(node)).unwrap();
        std::fs::write(self.config_path(node), text).unwrap();
    }

    /// Changes a node's configuration.
    pub fn edit(&self, node: &str, from: &str, to: &str) {
        let path = self.config_path(node);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    /// Adds sections, after the tree's.
    pub fn add(&self, node: &str, text: &str) {
        let path = self.config_path(node);
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, before + text).unwrap();
    }

    /// Starts a node, and waits until it answers.
    pub fn start(&self, node: &str) -> Agent {
        let command = match &self.hosts {
            Some(net) => net.command(node, program()),
            None => Command::new(program()),
        };
        self.start_by(node, command)
    }

    /// Starts a node by `command`, and waits until it answers.
    pub fn start_by(&self, node: &str, command: Command) -> Agent {
        let agent = self.start_quietly(node, command);
        until(&format!("the start of {node}"), || agent.try_status().is_some());
        agent
    }

    /// Starts a node by `command`, to which the arguments are added.
    pub fn start_quietly(&self, node: &str, mut command: Command) -> Agent {
        let log = self.path().join(format!("{node}.log"));
        let out = std::fs::OpenOptions::new().append(true).create(true).open(&log).unwrap();
        let child = command
            .args(["run", "--config"])
            .arg(self.config_path(node))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(out)
            .spawn()
            .unwrap();
        Agent { child, socket: self.path().join(format!("{node}.sock")), log }
    }

    /// The content digest of a node's tree.
    pub fn digest(&self, node: &str) -> String {
        self.scratch.digest(self.tree(node))
    }

    /// Waits until `mirror` has what was written so far, and proves it: equal content, nothing staged, no lag.
    ///
    /// What says so is `syncagent wait`, whose source looks first: the states alone are still those of before
    /// when the kernel has not told of a write yet.
    #[track_caller]
    pub fn assert_converges(&self, source: &Agent, mirror: &Agent, nodes: (&str, &str)) {
        let logs = || [source, mirror].map(Agent::log_tail).join("\n");
        // one that was never heard is nobody that can be waited for
        assert!(eventually(|| source.row(nodes.1).is_object()), "{}", logs());
        let mut last = (Value::Null, Value::Null);
        let mut waited = None;
        let has_all = || {
            // one that never came up yet is unknown, which is an error
            let ran = source.order(&["wait", "t", "--node", nodes.1, "--timeout", "60s"]);
            waited.insert(ran).code == 0
        };
        assert!(eventually(has_all), "{waited:?}\n{}", logs());
        let equal = || {
            let (s, m) = (source.tree(), mirror.tree());
            let (own, other) = (&s["nodes"][0], &m["nodes"][0]);
            let done = own["state"] == "current"
                && other["state"] == "current"
                && s["head"].is_object()
                && s["head"] == other["generation"]
                && other["lag_ms"] == 0;
            last = (s, m);
            done
        };
        assert!(eventually(equal), "no convergence:\n{:#}\n{:#}\n{}", last.0, last.1, logs());
        assert_eq!(self.digest(nodes.0), self.digest(nodes.1));
        for left in ["stage", "stage.old", "stage.done", "unplaced", "partial", "journal"] {
            let path = self.tree(nodes.1).join(".syncagent").join(left);
            assert!(!path.exists(), "{} is left", path.display());
        }
    }
}

impl Agent {
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// `syncagent status --json`.
    pub fn try_status(&self) -> Option<Value> {
        let ran = run(&["status", "--json", "--socket", self.socket.to_str().unwrap()]);
        (ran.code == 0).then(|| serde_json::from_str(&ran.out).unwrap())
    }

    /// The status of its tree `t`.
    #[track_caller]
    pub fn tree(&self) -> Value {
        let Some(status) = self.try_status() else {
            panic!("no status; the log ends:\n{}", self.log_tail());
        };
        status["trees"].as_array().unwrap().iter().find(|t| t["name"] == "t").unwrap().clone()
    }

    /// The row of a node.
    #[track_caller]
    pub fn row(&self, node: &str) -> Value {
        let tree = self.tree();
        tree["nodes"].as_array().unwrap().iter().find(|n| n["node"] == node).cloned().unwrap_or_default()
    }

    /// This node's own row.
    #[track_caller]
    pub fn own(&self) -> Value {
        self.tree()["nodes"][0].clone()
    }

    #[track_caller]
    pub fn wait_for_state(&self, state: &str) {
        if !eventually(|| self.own()["state"] == state) {
            panic!("not {state}: {:#}\n{}", self.tree(), self.log_tail());
        }
    }

    /// An order: `approve t ID`, `source reset t --approve`.
    pub fn order(&self, words: &[&str]) -> Ran {
        let mut args = words.to_vec();
        args.extend(["--socket", self.socket.to_str().unwrap()]);
        run(&args)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// kill -9, and gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; gives how long it took.
    #[track_caller]
    pub fn stop(mut self) -> Duration {
        let begun = Instant::now();
        self.signal(Signal::TERM);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}\n{}", self.log_tail());
                return begun.elapsed();
            }
            // a disk under load takes seconds for what is under way
            assert!(begun.elapsed() < Duration::from_secs(30), "it does not end:\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the program.
pub fn run(args: &[&str]) -> Ran {
    Command::new(program()).args(args).output().unwrap().into()
}

/// Whether it comes true within a minute: a disk under load takes seconds for one fsync, and a step may need several.
pub fn eventually(done: impl FnMut() -> bool) -> bool {
    within(Duration::from_secs(60), done)
}

/// Whether it comes true in time.
pub fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
pub fn until(what: &str, done: impl FnMut() -> bool) {
    assert!(eventually(done), "{what} did not come");
}

/// Content that does not compress and is different for each seed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    let key = *blake3::hash(&seed.to_le_bytes()).as_bytes();
    blake3::Hasher::new_keyed(&key).finalize_xof().read_exact(&mut out).unwrap();
    out
}
