//! The configuration file: TOML text becomes a checked [`Config`], or every problem at once, each with
//! its line. Nothing here reads a file, so that the agent, `config check` and the tests judge a text
//! alike, and a reload that fails leaves the running configuration as it is.
//!
//! `raw` walks the TOML with its places, `value` and `amount` read single values, `check` makes the sections,
//! `refresh` is a tree's refreshes, `across` looks at what only shows between them, `show` writes the effective configuration.

mod across;
mod amount;
mod check;
mod health;
mod problem;
#[cfg(test)]
mod properties;
mod raw;
mod refresh;
#[cfg(test)]
mod refresh_tests;
mod show;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use amount::{Size, Span};
pub use health::{Fault, Health};
pub use problem::{Parsed, Problem, Severity};
pub(crate) use refresh::is_secret;
pub use refresh::{
    Action, Ask, Expect, Http, OnFailure, Refresh, Signal, SignalTo, Url, Value, Verb, Verify,
};

use crate::error::Result;
use crate::model::{NodeId, TreePath};
use crate::plan::{Filter, MaxDelete};

/// A commented configuration with a source and a mirror tree.
pub const EXAMPLE: &str = include_str!("example.toml");

/// The socket of local administration, where none is given.
pub const SOCKET: &str = "/run/syncagent/syncagent.sock";

/// The port of the agents, where none is given.
pub const PORT: u16 = 7420;

/// One node's configuration, checked: paths are absolute and without `.` and `..`, patterns compile.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[node]`: who this is.
    pub node: Node,
    /// `[listen]`: where it answers.
    pub listen: Listen,
    /// `[tls]`: how it proves who it is; there wherever TCP is used.
    pub tls: Option<Tls>,
    /// `[cluster]`.
    pub cluster: Cluster,
    /// `[log]`.
    pub log: Log,
    /// `[health]`: what takes the node out of its load balancer.
    pub health: Health,
    /// `state-dir`: where indexes and states are kept; `None` for the default of the commands.
    pub state_dir: Option<PathBuf>,
    /// `[tree.NAME]`, at least one, in the order of the file.
    pub trees: Vec<Tree>,
}

/// `[node]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What its certificate carries.
    pub id: NodeId,
    /// Where it stands, for people.
    pub zone: Option<String>,
}

/// `[listen]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Listen {
    /// Where other nodes read; there when a tree is a source.
    pub data: Option<Endpoint>,
    /// The socket of local administration: its file rights are the administrator's rights.
    pub socket: PathBuf,
    /// Where load balancers, Prometheus and browsers ask; `None`: nowhere.
    pub public: Option<SocketAddr>,
    /// Where HAProxy's agent checks ask; `None`: nowhere.
    pub agent_check: Option<SocketAddr>,
}

/// Where to listen. Printed as the configuration has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Endpoint {
    /// An address and a port; TLS only.
    Tcp(SocketAddr),
    /// A socket's path, of at most 107 bytes.
    Unix(PathBuf),
}

/// `[tls]`: paths of PEM files.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// The node's certificate, and what stands between it and the CA.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The cluster's CA.
    pub ca: PathBuf,
}

/// `[cluster]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Where the nodes meet.
    pub store: Store,
}

/// Where the nodes of a cluster meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Each tree's source keeps the registry.
    Hub,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// `info`, or levels of modules as `SYNCAGENT_LOG` takes them: `info,syncagent::peer=debug`.
    pub level: String,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Where a mirror reads. Printed as the configuration has it, with the port.
#[derive(Clone, Debug, PartialEq)]
pub enum Upstream {
    /// Over mutual TLS.
    Https {
        /// A name in lower case, or an address; an IPv6 address without brackets.
        host: String,
        /// Not 0.
        port: u16,
    },
    /// A socket's path, of at most 107 bytes.
    Unix(PathBuf),
}

/// `[tree.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    /// 1 to 64 of `A-Z a-z 0-9 . _ -`; neither `.` nor `..`.
    pub name: String,
    /// The directory. No tree's path lies in another's.
    pub path: PathBuf,
    /// What this node does with it.
    pub role: Role,
    /// What does not belong to it, in gitignore syntax; see [`Tree::filter`].
    pub exclude: Vec<String>,
    /// What belongs to it all the same.
    pub include: Vec<String>,
    /// `preserve`, `ignore` or `USER[:GROUP]`; `None` for `preserve` as root and `ignore` otherwise. That the
    /// names exist on this host is not checked here.
    pub owner: Option<String>,
    /// Whether setuid and setgid bits are carried over.
    pub setid: bool,
    /// What one publication (or one repair of drift) may delete.
    pub max_delete: MaxDelete,
    /// Generations of replaced content that are kept; on a source also of published content, for rollbacks.
    pub keep: u64,
    /// Within so many bytes.
    pub keep_bytes: u64,
    /// The node is unhealthy when its lag is more than this.
    pub max_lag: Option<Duration>,
    /// The node is unhealthy when it has not heard from the source for so long.
    pub max_contact_age: Option<Duration>,
    /// How the local server is told of changes, in the order of the file; names are unique.
    pub refresh: Vec<Refresh>,
}

/// What a node does with a tree.
#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    /// Writes happen here; it publishes.
    Source(SourceRole),
    /// It pulls from a source.
    Mirror(MirrorRole),
}

/// The keys of a source.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceRole {
    /// Who may read.
    pub allow: Allow,
    /// Quiet time before a change is published; may be 0.
    pub settle: Duration,
    /// A file that is written for longer no longer holds the others up; not less than `settle`.
    pub settle_max: Duration,
    /// While this file exists nothing is published. It is no part of the tree.
    pub hold_file: Option<TreePath>,
    /// From one full scan, the safety net, to the next.
    pub scan_interval: Duration,
}

/// Who may read a tree.
#[derive(Clone, Debug, PartialEq)]
pub enum Allow {
    /// Every node of the cluster.
    Any,
    /// These, at least one.
    Nodes(BTreeSet<NodeId>),
}

/// The keys of a mirror.
#[derive(Clone, Debug, PartialEq)]
pub struct MirrorRole {
    /// Where it reads.
    pub upstream: Upstream,
    /// The node that must answer there; there when `upstream` is `Https`.
    pub source_id: Option<NodeId>,
    /// How a generation becomes visible.
    pub activate: Activate,
    /// Where new content is prepared; `None` for `.syncagent/` in the tree, always `None` with `Swap`.
    pub staging: Option<PathBuf>,
    /// Patterns of what becomes visible last, in gitignore syntax; always empty with `Swap`.
    pub order: Vec<String>,
    /// What becomes of edits made here.
    pub drift: DriftPolicy,
    /// From one full scan for drift, the safety net, to the next.
    pub scan_interval: Duration,
    /// Takes over a directory that is not empty and was never managed.
    pub adopt: bool,
}

/// How a generation becomes visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activate {
    /// Path by path.
    #[default]
    InPlace,
    /// The whole directory at once.
    Swap,
}

/// What becomes of edits made on a mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriftPolicy {
    /// They are put back; what was there goes to the trash.
    #[default]
    Overwrite,
    /// They are only reported.
    Report,
}

impl Config {
    /// Reads and checks a whole configuration: every problem at once. Never fails, never panics.
    pub fn parse(text: &str) -> Parsed {
        check::parse(text)
    }

    /// The effective configuration with all defaults written out, in a fixed order; what is not set and has
    /// no default is left out. [`Config::parse`] of it gives an equal configuration, but for literal secrets
    /// in headers, see [`Config::without_secrets`].
    pub fn to_toml(&self) -> String {
        show::to_toml(&self.without_secrets())
    }

    /// The same with "(hidden)" in place of the literal values of headers such as Authorization, of which
    /// reading a configuration warns.
    pub fn without_secrets(&self) -> Self {
        let mut config = self.clone();
        for refresh in config.trees.iter_mut().flat_map(|tree| &mut tree.refresh) {
            if let Action::Http(http) = &mut refresh.action {
                **http = http.without_secrets();
            }
            if let Some(Verify { ask: Ask::Http(http), .. }) = &mut refresh.verify {
                **http = http.without_secrets();
            }
        }
        config
    }

    /// The keys that differ in `new` and that a running agent cannot take over.
    pub fn needs_restart(&self, new: &Config) -> Vec<&'static str> {
        let differ = [
            ("node.id", self.node.id != new.node.id),
            ("node.zone", self.node.zone != new.node.zone),
            ("listen.data", self.listen.data != new.listen.data),
            ("listen.socket", self.listen.socket != new.listen.socket),
            ("listen.public", self.listen.public != new.listen.public),
            ("listen.agent-check", self.listen.agent_check != new.listen.agent_check),
            ("cluster.name", self.cluster.name != new.cluster.name),
            ("state-dir", self.state_dir != new.state_dir),
            ("log.format", self.log.format != new.log.format),
            ("log.level", self.log.level != new.log.level),
        ];
        differ.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }
}

/// The socket of local administration of a configuration that may be wrong in every other respect, even no TOML as a
/// whole: what can be read of it, otherwise [`SOCKET`].
pub fn socket_of(text: &str) -> PathBuf {
    check::socket_of(text)
}

impl Tree {
    /// What belongs to the tree: all excludes, then all includes, the last match wins; the hold file never does.
    ///
    /// # Errors
    /// A pattern that is none; not for a tree that [`Config::parse`] made.
    pub fn filter(&self) -> Result<Filter> {
        let excludes = self.exclude.iter().map(|p| value::exclude_line(p));
        let includes = self.include.iter().map(|p| value::include_line(p));
        let hold_file = match &self.role {
            Role::Source(source) => source.hold_file.as_ref(),
            Role::Mirror(_) => None,
        };
        Filter::new(excludes.chain(includes).chain(hold_file.map(value::exact_line)).collect())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Https { host, port } if host.contains(':') => write!(f, "https://[{host}]:{port}"),
            Self::Https { host, port } => write!(f, "https://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
