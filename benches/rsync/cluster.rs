//! Agents on loopback: certificates, configurations, processes, and their status asked over the local socket without the
//! cost of one more process.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::run::{At, Bench, Res};

/// Between two looks at a status.
const LOOK: Duration = Duration::from_millis(5);
/// A first copy of a million files on a busy machine.
const PATIENCE: Duration = Duration::from_secs(900);

/// One source and its mirrors, over TLS on loopback.
pub(crate) struct Cluster<'a> {
    bench: &'a Bench,
    dir: PathBuf,
    port: u16,
}

/// A running agent; killed when dropped.
pub(crate) struct Agent {
    child: Child,
    pub(crate) node: String,
    socket: PathBuf,
    log: PathBuf,
    /// The tree on this node.
    pub(crate) tree: PathBuf,
}

impl<'a> Cluster<'a> {
    /// Lies in the work directory under `name`; what an earlier, killed run left there goes.
    pub(crate) fn new(bench: &'a Bench, name: &str) -> Res<Self> {
        let dir = bench.work.join(format!("{name}.net"));
        bench.discard(&dir)?;
        fs::create_dir_all(&dir).at(&dir)?;
        let cluster = Self { bench, dir, port: free_port()? };
        cluster.pki(&["init", "--cluster", "bench"])?;
        cluster.pki(&["issue", "source"])?;
        Ok(cluster)
    }

    /// A new certificate for a mirror.
    pub(crate) fn issue(&self, node: &str) -> Res<()> {
        self.pki(&["issue", node])
    }

    fn pki(&self, args: &[&str]) -> Res<()> {
        let mut command = Command::new(&self.bench.syncagent);
        command.arg("pki").args(args).arg("--dir").arg(self.dir.join("pki"));
        self.bench.quiet(&mut command)?;
        let status = command.status().at(&self.bench.syncagent)?;
        self.bench.check(&command, status)
    }

    /// Starts the source of `tree` and waits until it has published it.
    pub(crate) fn source(&self, tree: &Path, settle: &str) -> Res<Agent> {
        let listen = format!("data = \"127.0.0.1:{}\"\n", self.port);
        let keys = format!("role = \"source\"\nallow = [\"*\"]\nsettle = \"{settle}\"\n");
        let agent = self.start("source", tree, &listen, &keys)?;
        agent.wait("publish", |own| own["state"] == "current" && own["generation"].is_object())?;
        Ok(agent)
    }

    /// Starts a mirror in a directory of its own, which may be empty; [`issue`](Self::issue) comes first.
    pub(crate) fn mirror(&self, node: &str) -> Res<Agent> {
        let port = self.port;
        let keys =
            format!("role = \"mirror\"\nsource = \"https://127.0.0.1:{port}\"\nsource-id = \"source\"\n");
        self.start(node, &self.mirror_tree(node), "", &keys)
    }

    pub(crate) fn mirror_tree(&self, node: &str) -> PathBuf {
        self.dir.join(node).join("tree")
    }

    fn start(&self, node: &str, tree: &Path, listen: &str, keys: &str) -> Res<Agent> {
        let (at, shown) = (self.dir.display(), tree.display());
        let home = self.dir.join(node);
        fs::create_dir_all(&home).at(&home)?;
        if node != "source" {
            fs::create_dir_all(tree).at(tree)?;
        }
        let (socket, log) = (home.join("sock"), home.join("log"));
        let text = format!(
            "state-dir = \"{at}/{node}/state\"\n[node]\nid = \"{node}\"\n[listen]\n{listen}socket = \"{at}/{node}/sock\"\n\
             [tls]\ncert = \"{at}/pki/{node}.pem\"\nkey = \"{at}/pki/{node}.key\"\nca = \"{at}/pki/ca.pem\"\n\
             [cluster]\nname = \"bench\"\n[tree.t]\npath = \"{shown}\"\n{keys}"
        );
        let config = home.join("config.toml");
        fs::write(&config, text).at(&config)?;
        let out = File::options().append(true).create(true).open(&log).at(&log)?;
        let child = Command::new(&self.bench.syncagent)
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(out)
            .spawn()
            .at(&self.bench.syncagent)?;
        Ok(Agent { child, node: node.to_owned(), socket, log, tree: tree.to_owned() })
    }

    /// Moves everything aside; the agents must have been stopped.
    pub(crate) fn remove(self) -> Res<()> {
        self.bench.discard(&self.dir)
    }
}

impl Agent {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The tree in `status --json`; nothing while the agent does not answer yet.
    pub(crate) fn status(&self) -> Option<Value> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.write_all(b"GET /1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let mut status: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
        Some(status["trees"][0].take())
    }

    /// The newest generation published or heard of.
    pub(crate) fn head(&self) -> Value {
        self.status().map_or(Value::Null, |mut tree| tree["head"].take())
    }

    /// Waits until the node's own row is as `good` says.
    pub(crate) fn wait(&self, what: &str, good: impl Fn(&Value) -> bool) -> Res<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            if self.status().is_some_and(|tree| good(&tree["nodes"][0])) {
                return Ok(());
            }
            if Instant::now() > end || !Path::new(&format!("/proc/{}/exe", self.pid())).exists() {
                let text = fs::read_to_string(&self.log).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(5).collect();
                let status = self.status().map_or_else(String::new, |tree| tree["nodes"][0].to_string());
                let tail = tail.join("\n");
                return Err(format!("{} did not {what}: {status}\n{tail}", self.node).into());
            }
            thread::sleep(LOOK);
        }
    }

    /// Waits until this mirror has what `source` has published.
    pub(crate) fn follow(&self, source: &Self) -> Res<()> {
        let head = source.head();
        self.wait("follow its source", |own| own["state"] == "current" && own["generation"] == head)
    }

    /// Ends it as an administrator does.
    pub(crate) fn stop(mut self) -> Res<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return if status.success() {
                    Ok(())
                } else {
                    Err(format!("{}: {status}", self.node).into())
                };
            }
            thread::sleep(LOOK);
        }
        Err(format!("{} did not end within 20 s of SIGTERM", self.node).into())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // already ended as a rule
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A free port of the loopback interface.
pub(crate) fn free_port() -> Res<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The content digest that `syncagent digest` prints.
pub(crate) fn digest(bench: &Bench, dir: &Path) -> Res<String> {
    let mut command = Command::new(&bench.syncagent);
    command.arg("digest").arg(dir).args(["--exclude", "/.syncagent"]);
    bench.quiet(&mut command)?;
    let output = command.stdout(Stdio::piped()).output().at(&bench.syncagent)?;
    bench.check(&command, output.status)?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().next().map(str::to_owned).ok_or_else(|| "no digest was printed".into())
}

/// Fails unless all directories have the same content.
pub(crate) fn equal<'p>(bench: &Bench, source: &Path, copies: impl IntoIterator<Item = &'p Path>) -> Res<()> {
    let right = digest(bench, source)?;
    for copy in copies {
        if digest(bench, copy)? != right {
            return Err(format!("{} is not what {} is", copy.display(), source.display()).into());
        }
    }
    Ok(())
}
