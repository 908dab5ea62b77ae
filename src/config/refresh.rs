//! `[[tree.NAME.refresh]]`: how the local server is told of a change, and asked whether it sees it.
//! `read` makes it from the file.

mod read;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::value;
pub(super) use read::{outside, read, suits};

/// What `config show` writes instead of a secret.
pub(super) const HIDDEN: &str = "(hidden)";

/// One refresh: what is done, for which changes, and how it is seen that it worked.
#[derive(Clone, Debug, PartialEq)]
pub struct Refresh {
    /// Names it in status and log; unique in its tree.
    pub name: String,
    /// gitignore patterns against the changed paths; empty: every change.
    pub when: Vec<String>,
    /// How the server is told.
    pub action: Action,
    /// How long telling may take; longer than 0.
    pub timeout: Duration,
    /// At least so long from one beginning to the next; may be 0.
    pub min_interval: Duration,
    /// The longest wait between two attempts; longer than 0.
    pub retry_max: Duration,
    /// How the server is asked; `None`: that it was told is enough.
    pub verify: Option<Verify>,
}

/// How a server is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A request.
    Http(Box<Http>),
    /// A program with its arguments, without a shell; the program's path is absolute.
    Exec(Vec<String>),
    /// `systemctl VERB UNIT`.
    Systemd {
        /// What is done with it.
        verb: Verb,
        /// With its suffix.
        unit: String,
    },
    /// A signal.
    Signal {
        /// Which.
        signal: Signal,
        /// To whom.
        to: SignalTo,
    },
    /// A file whose modification time is set to now, and that is made when it is missing.
    Touch(PathBuf),
}

/// What is done with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// It reads its configuration again.
    Reload,
    /// It is stopped and started.
    Restart,
    /// It is started.
    Start,
    /// It is stopped.
    Stop,
}

/// A signal that servers take for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Signal {
    Hup,
    Int,
    Quit,
    Usr1,
    Usr2,
    Term,
    Winch,
    Cont,
}

/// Who gets a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignalTo {
    /// The process whose id is in this file.
    PidFile(PathBuf),
    /// The main process of this unit.
    Unit(String),
}

/// A request, and which answer is a good one.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// Where to.
    pub url: Url,
    /// In upper case.
    pub method: String,
    /// By name, each once, in lower case.
    pub headers: Vec<(String, Value)>,
    /// A template.
    pub body: Option<String>,
    /// The statuses of a good answer, at least one.
    pub expect: Vec<Expect>,
    /// A template of what the first MiB of a good answer's body holds.
    pub contains: Option<String>,
    /// The CA of the server, PEM; `None` for the system's. Only with https.
    pub ca: Option<PathBuf>,
    /// Certificate and key of the client, PEM. Only with https.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// An address of http or https. Printed as it is written, the port left out where it is the usual one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Over TLS.
    pub https: bool,
    /// A name or an address; an IPv6 address without brackets.
    pub host: String,
    /// Not 0.
    pub port: u16,
    /// Path and query, beginning with `/`; a template.
    pub target: String,
}

/// The value of a header.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// As the configuration has it.
    Literal(String),
    /// What this file holds at each attempt, without the line's end.
    File(PathBuf),
    /// The same of systemd's credential of this name.
    Credential(String),
}

/// A status, or all of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// 100 to 599.
    Code(u16),
    /// 1 to 5: `2xx` is 2.
    Class(u16),
}

/// How a server is asked whether it sees the change.
#[derive(Clone, Debug, PartialEq)]
pub struct Verify {
    /// How it is asked.
    pub ask: Ask,
    /// How long one answer may take; longer than 0.
    pub timeout: Duration,
    /// It is asked again for so long before it has failed; may be 0.
    pub within: Duration,
    /// What then.
    pub on_failure: OnFailure,
    /// With [`OnFailure::Refresh`]: how often the server is told again before that slows down.
    pub refreshes: u64,
}

/// How a server is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// A request whose answer must be a good one.
    Http(Box<Http>),
    /// A program that must end with 0.
    Exec(Vec<String>),
}

/// What a failed verify leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The server is told again.
    #[default]
    Refresh,
    /// It is shown, and the server asked now and then.
    Alert,
    /// The same, and this node goes back to the generation before.
    Rollback,
}

pub(super) const VERBS: [(&str, Verb); 4] =
    [("reload", Verb::Reload), ("restart", Verb::Restart), ("start", Verb::Start), ("stop", Verb::Stop)];
pub(super) const SIGNALS: [(&str, Signal); 8] = [
    ("HUP", Signal::Hup),
    ("INT", Signal::Int),
    ("QUIT", Signal::Quit),
    ("USR1", Signal::Usr1),
    ("USR2", Signal::Usr2),
    ("TERM", Signal::Term),
    ("WINCH", Signal::Winch),
    ("CONT", Signal::Cont),
];
pub(super) const POLICIES: [(&str, OnFailure); 3] =
    [("refresh", OnFailure::Refresh), ("alert", OnFailure::Alert), ("rollback", OnFailure::Rollback)];

pub(super) fn named<T: Copy + PartialEq>(words: &[(&'static str, T)], of: T) -> &'static str {
    words.iter().find(|(_, meaning)| *meaning == of).map_or("", |(word, _)| word)
}

impl Refresh {
    /// `when` as lines of gitignore.
    pub fn patterns(&self) -> Vec<String> {
        self.when.iter().map(|pattern| value::exclude_line(pattern)).collect()
    }
}

impl Verb {
    /// As systemctl takes it.
    pub fn as_str(self) -> &'static str {
        named(&VERBS, self)
    }
}

impl Signal {
    /// Without `SIG`.
    pub fn as_str(self) -> &'static str {
        named(&SIGNALS, self)
    }
}

impl Action {
    /// The key in the configuration.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Exec(_) => "exec",
            Self::Systemd { .. } => "systemd",
            Self::Signal { .. } => "signal",
            Self::Touch(_) => "touch",
        }
    }
}

impl Expect {
    /// Whether a status is meant.
    pub fn matches(self, status: u16) -> bool {
        match self {
            Self::Code(code) => code == status,
            Self::Class(class) => status / 100 == class,
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "{code}"),
            Self::Class(class) => write!(f, "{class}xx"),
        }
    }
}

impl Url {
    /// Host and port as the `Host` header has them.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let usual = if self.https { 443 } else { 80 };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.target)
    }
}

/// A literal may be a secret, and `{:?}` ends up in logs.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(_) => write!(f, "Literal(..)"),
            Self::File(path) => write!(f, "File({path:?})"),
            Self::Credential(name) => write!(f, "Credential({name:?})"),
        }
    }
}

/// Whether the value of a header of this name (in lower case) is probably a secret.
pub(crate) fn is_secret(header: &str) -> bool {
    let marks = ["authorization", "cookie", "token", "secret", "password", "api-key", "apikey", "auth-key"];
    marks.iter().any(|mark| header.contains(mark))
}

impl Http {
    /// With [`HIDDEN`] instead of literal secrets.
    pub(super) fn without_secrets(&self) -> Self {
        let hide = |(name, value): &(String, Value)| match value {
            Value::Literal(_) if is_secret(name) => (name.clone(), Value::Literal(HIDDEN.into())),
            value => (name.clone(), value.clone()),
        };
        Self { headers: self.headers.iter().map(hide).collect(), ..self.clone() }
    }
}
