//! `syncagent config check|show|example|systemd`.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::exit::Exit;
use super::options::ConfigCommand;
use super::{output_failed, sandbox};
use crate::config::{Config, EXAMPLE, Parsed, Problem, Severity, Tree, socket_of};
use crate::disk::OwnerPolicy;
use crate::error::{Class, Error, Result};
use crate::model::{counted, escaped};
use crate::serve::listens;

pub(super) fn run(command: &ConfigCommand) -> Result<Exit> {
    let text = match command {
        ConfigCommand::Example => EXAMPLE.to_owned(),
        ConfigCommand::Show(arg) => match load(&arg.config)? {
            Some(config) => config.to_toml(),
            None => return Ok(Exit::Usage),
        },
        ConfigCommand::Systemd(arg) => match load(&arg.config)? {
            Some(config) => {
                let (text, warnings) = sandbox::drop_in(&config, &sandbox::seen);
                warnings.iter().for_each(|w| tracing::warn!("{w}"));
                text
            }
            None => return Ok(Exit::Usage),
        },
        ConfigCommand::Check(arg) => match load(&arg.config)? {
            Some(config) => {
                name(&arg.config, &closed_trees(&config));
                format!("{}: ok, {}\n", escaped(&arg.config), counted(config.trees.len(), "tree"))
            }
            None => return Ok(Exit::Usage),
        },
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(output_failed)?;
    Ok(Exit::Done)
}

/// The configuration in `file`, its problems named on standard error; `None` when there is an error.
///
/// # Errors
/// [`Class::Config`]: the file cannot be read.
pub(super) fn load(file: &Path) -> Result<Option<Config>> {
    let (_, mut parsed) = read(file)?;
    parsed.problems.extend(parsed.config.iter().flat_map(unknown_owners));
    name(file, &parsed.problems);
    Ok(parsed.config)
}

/// The socket of the agent that runs by `file`. What was written there since, with a mistake, is no matter of the agent that
/// runs: it is asked where it most likely is, and the mistake only mentioned.
///
/// # Errors
/// [`Class::Config`]: the file cannot be read, or has errors and no agent is there.
pub(super) fn socket(file: &Path) -> Result<PathBuf> {
    let (text, parsed) = read(file)?;
    if let Some(config) = &parsed.config {
        let owners = unknown_owners(config);
        name(file, &parsed.problems.into_iter().chain(owners).collect::<Vec<_>>());
        return Ok(config.listen.socket.clone());
    }
    let socket = socket_of(&text);
    if !listens(&socket) {
        name(file, &parsed.problems);
        let what = "the configuration has errors; the agent's socket can also be given with --socket";
        return Err(Error::new(Class::Config, what));
    }
    let mut errors = parsed.problems.iter().filter(|p| p.severity == Severity::Error);
    let first = errors.next().map(|p| format!("{}: {p}", place(file, p))).unwrap_or_default();
    let more = match errors.count() {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    };
    // a closed standard error must not change what is said by the exit code
    let _ = writeln!(
        std::io::stderr(),
        "syncagent: warning: {first}{more}; the agent on {} is asked all the same, see `syncagent config check`",
        escaped(&socket)
    );
    Ok(socket)
}

fn read(file: &Path) -> Result<(String, Parsed)> {
    let shown = escaped(file);
    let text = std::fs::read_to_string(file).map_err(|e| Error {
        class: Class::Config,
        what: format!(
            "cannot read the configuration {shown} (--config names another file, `syncagent config example` prints one)"
        ),
        source: Some(e),
    })?;
    let parsed = Config::parse(&text);
    Ok((text, parsed))
}

/// Names problems on standard error, a line each.
fn name(file: &Path, problems: &[Problem]) {
    let mut err = std::io::stderr().lock();
    for problem in problems {
        // a closed standard error must not change what is said by the exit code
        let _ = writeln!(err, "{}: {problem}", place(file, problem));
    }
}

/// `FILE:LINE`.
fn place(file: &Path, problem: &Problem) -> String {
    let line = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
    format!("{}{line}", escaped(file))
}

/// Owners that this host does not know: only a warning, the file may be meant for another host.
fn unknown_owners(config: &Config) -> Vec<Problem> {
    let warning = |tree: &Tree| {
        let e = OwnerPolicy::parse("owner", tree.owner.as_deref()).err()?;
        Some(Problem {
            line: None,
            key: format!("tree.{}.owner", tree.name),
            what: e.what.trim_start_matches("owner: ").to_owned(),
            hint: None,
            severity: Severity::Warning,
        })
    };
    config.trees.iter().filter_map(warning).collect()
}

/// Trees whose directory is not there, or cannot be written by who asks: only a warning, the file may be meant for another
/// host or user.
fn closed_trees(config: &Config) -> Vec<Problem> {
    use rustix::fs::{Access, access};
    let warning = |tree: &Tree| {
        let shown = escaped(&tree.path);
        let (what, hint) = match access(&tree.path, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) if tree.path.is_dir() => return None,
            Ok(()) => (format!("{shown} is no directory"), "name another path"),
            Err(rustix::io::Errno::NOENT) => (
                format!("{shown} does not exist"),
                "make it before the service starts: its sandbox cannot open what is made later",
            ),
            Err(e) => (
                format!("{shown} cannot be written here: {}", std::io::Error::from(e)),
                "mount it for writing, or mend its rights; for the service see `syncagent config systemd`",
            ),
        };
        let (key, hint) = (format!("tree.{}.path", tree.name), Some(hint.to_owned()));
        Some(Problem { line: None, key, what, hint, severity: Severity::Warning })
    };
    config.trees.iter().filter_map(warning).collect()
}
