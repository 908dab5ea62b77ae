//! Carries out one order: tells the server, or asks it.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal as Number, kill_process};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::blocking::Gate;
use super::changed::Changed;
use super::machine::{Job, Order};
use super::template::Facts;
use super::{child, http, leftover};
use crate::config::{Action, Ask, Refresh, Signal, SignalTo};
use crate::model::{NodeId, escape, escaped};

/// In the state directory, while a program runs.
const RUN: &str = "refresh-run";

/// What all orders of a tree have in common.
pub(super) struct Runner {
    pub tree: String,
    pub node: NodeId,
    /// The tree.
    pub path: PathBuf,
    pub state: PathBuf,
    pub gate: Gate,
    pub cancel: CancellationToken,
    /// Found by `PATH`.
    pub systemctl: PathBuf,
}

impl Runner {
    /// Takes no longer than the rule's time limit and what it takes to end a program.
    ///
    /// # Errors
    /// What went wrong, in one line without secrets.
    pub(super) async fn carry_out(&self, rule: &Refresh, order: &Order) -> Result<(), String> {
        match (order.job, &rule.verify) {
            (Job::Tell, _) => self.tell(rule, order).await,
            (Job::Ask, None) => Ok(()),
            (Job::Ask, Some(verify)) => match &verify.ask {
                Ask::Http(request) => self.http(request, order, verify.timeout).await,
                Ask::Exec(argv) => self.exec(argv, order, verify.timeout, &rule.name).await,
            },
        }
    }

    async fn tell(&self, rule: &Refresh, order: &Order) -> Result<(), String> {
        let limit = rule.timeout;
        match &rule.action {
            Action::Http(request) => self.http(request, order, limit).await,
            Action::Exec(argv) => self.exec(argv, order, limit, &rule.name).await,
            Action::Systemd { verb, unit } => self.systemctl(&[verb.as_str(), unit], limit, &rule.name).await,
            Action::Signal { signal, to: SignalTo::Unit(unit) } => {
                let argv = ["kill", "--kill-whom=main", "-s", signal.as_str(), unit];
                self.systemctl(&argv, limit, &rule.name).await
            }
            Action::Signal { signal, to: SignalTo::PidFile(file) } => {
                let (file, signal) = (file.clone(), *signal);
                within(limit, self.gate.call(vec![file.clone()], move || send(&file, signal))).await
            }
            Action::Touch(file) => {
                let file = file.clone();
                within(limit, self.gate.call(vec![file.clone()], move || touch(&file))).await
            }
        }
    }

    async fn http(
        &self,
        request: &crate::config::Http,
        order: &Order,
        limit: Duration,
    ) -> Result<(), String> {
        let (tree, node) = (self.tree.as_str(), &self.node);
        let facts = Facts { tree, node, generation: order.generation, changed: &order.changed };
        let asked = timeout(limit, http::ask(request, &facts, &self.gate)).await;
        asked.unwrap_or_else(|_| {
            Err(format!("{} {} gave no answer within {}", request.method, request.url, child::seconds(limit)))
        })
    }

    async fn systemctl(&self, arguments: &[&str], limit: Duration, rule: &str) -> Result<(), String> {
        let mut argv = vec![self.systemctl.as_os_str(), OsStr::new("--no-ask-password")];
        argv.extend(arguments.iter().map(OsStr::new));
        let label = format!("{}: {rule}", self.tree);
        child::run(&argv, &[], limit, &self.cancel, &label)
            .await
            .map_err(|e| format!("{}: {e}", arguments.join(" ")))
    }

    async fn exec(&self, argv: &[String], order: &Order, limit: Duration, rule: &str) -> Result<(), String> {
        let dir = self.state.join(RUN);
        let (file, list) = (dir.join(leftover::name()), listed(&order.changed));
        let made = (dir.clone(), file.clone());
        within(limit, self.gate.call(Vec::new(), move || make_list(&made.0, &made.1, &list))).await?;
        let generation = order.generation.to_string();
        let all = if order.changed == Changed::Everything { "1" } else { "0" };
        let env = [
            ("SYNCAGENT_TREE", OsStr::new(&self.tree)),
            ("SYNCAGENT_GENERATION", OsStr::new(&generation)),
            ("SYNCAGENT_NODE", OsStr::new(self.node.as_str())),
            ("SYNCAGENT_PATH", self.path.as_os_str()),
            ("SYNCAGENT_CHANGED", file.as_os_str()),
            ("SYNCAGENT_CHANGED_ALL", OsStr::new(all)),
        ];
        let label = format!("{}: {rule}", self.tree);
        let done = child::run(argv, &env, limit, &self.cancel, &label).await;
        // the next one makes it anew in any case
        let _ = self
            .gate
            .call(Vec::new(), move || std::fs::remove_dir_all(&dir).map_err(|e| e.to_string()))
            .await;
        done
    }
}

/// Ends and removes what an agent that died in a run left.
pub(super) async fn clean(state: &Path) {
    let dir = state.join(RUN);
    leftover::end(dir.clone()).await;
    let remove = move || match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {e}", escaped(&dir));
        }
        _ => {}
    };
    // one that breaks down has said why
    let _ = tokio::task::spawn_blocking(remove).await;
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let late = || format!("took longer than {}: the file system hangs", child::seconds(limit));
    timeout(limit, work).await.unwrap_or_else(|_| Err(late()))
}

/// Each path as it is, with a NUL behind it, which no name holds.
fn listed(changed: &Changed) -> Vec<u8> {
    let Changed::Paths(paths) = changed else { return Vec::new() };
    paths.iter().flat_map(|path| path.as_bytes().iter().copied().chain([0])).collect()
}

fn make_list(dir: &Path, file: &Path, list: &[u8]) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("cannot write {}: {e}", escaped(file));
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(dir).map_err(failed)?;
    let open = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    open.and_then(|mut file| file.write_all(list)).map_err(failed)
}

fn send(file: &Path, signal: Signal) -> Result<(), String> {
    let shown = escaped(file);
    let mut text = String::new();
    let read = File::open(file).and_then(|file| file.take(64).read_to_string(&mut text));
    read.map_err(|e| format!("cannot read the pid file {shown}: {e}"))?;
    let first = text.lines().next().unwrap_or_default().trim();
    let bad = || format!("the pid file {shown} holds no process id: `{}`", escape(first.as_bytes()));
    let number: i32 = first.parse().map_err(|_| bad())?;
    let own = number == rustix::process::getpid().as_raw_nonzero().get();
    // looked at before: a negative one would be a whole group, 1 is the init of the system
    let number = if number > 1 && !own { number } else { return Err(bad()) };
    let pid = Pid::from_raw(number).ok_or_else(bad)?;
    let number = match signal {
        Signal::Hup => Number::HUP,
        Signal::Int => Number::INT,
        Signal::Quit => Number::QUIT,
        Signal::Usr1 => Number::USR1,
        Signal::Usr2 => Number::USR2,
        Signal::Term => Number::TERM,
        Signal::Winch => Number::WINCH,
        Signal::Cont => Number::CONT,
    };
    kill_process(pid, number).map_err(|e| match e {
        rustix::io::Errno::SRCH => format!("there is no process {first}, which the pid file {shown} names"),
        e => format!("cannot signal the process {first}: {}", std::io::Error::from(e)),
    })
}

/// Sets a file's modification time, and makes it when it is missing. Follows no link in its last part, and touches
/// nothing but files.
fn touch(path: &Path) -> Result<(), String> {
    let shown = escaped(path);
    let failed = |e: std::io::Error| {
        let hint = match e.kind() {
            std::io::ErrorKind::ReadOnlyFilesystem => {
                "; the service's sandbox is opened by `syncagent config systemd`, see operations.md"
            }
            _ => "",
        };
        format!("cannot touch {shown}: {e}{hint}")
    };
    let flags =
        (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits();
    let open = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(i32::try_from(flags).unwrap_or(0))
        .open(path);
    let file = open.map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(format!("cannot touch {shown}: it is not a file"));
    }
    file.set_modified(std::time::SystemTime::now()).map_err(failed)
}
