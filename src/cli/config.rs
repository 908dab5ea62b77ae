//! `syncagent config check|show|example|systemd`.

use std::io::Write as _;
use std::path::Path;

use super::exit::Exit;
use super::options::ConfigCommand;
use super::{output_failed, sandbox};
use crate::config::{Config, EXAMPLE, Problem, Severity, Tree};
use crate::disk::OwnerPolicy;
use crate::error::{Class, Error, Result};
use crate::model::escaped;

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
                let count = config.trees.len();
                let trees = if count == 1 { "tree" } else { "trees" };
                format!("{}: ok, {count} {trees}\n", escaped(&arg.config))
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
    let shown = escaped(file);
    let text = std::fs::read_to_string(file).map_err(|e| Error {
        class: Class::Config,
        what: format!(
            "cannot read the configuration {shown} (--config names another file, `syncagent config example` prints one)"
        ),
        source: Some(e),
    })?;
    let mut parsed = Config::parse(&text);
    parsed.problems.extend(parsed.config.iter().flat_map(unknown_owners));
    let mut err = std::io::stderr().lock();
    for problem in &parsed.problems {
        let place = problem.line.map(|line| format!(":{line}")).unwrap_or_default();
        // a closed standard error must not change what is said by the exit code
        let _ = writeln!(err, "{shown}{place}: {problem}");
    }
    Ok(parsed.config)
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
