//! Arguments, output, exit codes. The only floor that prints.

mod admin;
mod config;
mod demo;
mod exit;
mod explain;
mod generate;
mod history;
mod hold;
mod journal;
mod notify;
mod options;
mod output;
mod pki;
mod progress;
mod rollback;
mod run;
mod sandbox;
mod status;
mod sync;
mod trash;
mod verify;
mod wait;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{CommandFactory as _, FromArgMatches as _};

pub use exit::Exit;
use options::SourceCommand;
pub use options::{Cli, Command};

use crate::error::{Class, Error, Result};

/// Parses the command line, runs the command and gives the process's exit code.
pub fn main() -> std::process::ExitCode {
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    raise_file_limit();
    let result = match &cli.command {
        // these have logs and signals of their own
        Command::Run(args) => run::run(args),
        Command::Demo(args) => demo::run(args),
        // its exit code is the command's
        Command::Hold(args) => return std::process::ExitCode::from(hold::run(args)),
        Command::HoldExec(args) => return hold::become_command(args.parent, &args.command).into(),
        command => other(command, &matches),
    };
    let exit = result.unwrap_or_else(|e| {
        let exit = Exit::from(e.class);
        if cli.command.json() {
            let error = serde_json::json!({ "error": { "exit": exit as u8, "message": e.to_string() } });
            let _ = writeln!(std::io::stdout(), "{error}");
        }
        let _ = writeln!(std::io::stderr(), "syncagent: {e}");
        exit
    });
    std::process::ExitCode::from(exit as u8)
}

fn other(command: &Command, matches: &clap::ArgMatches) -> Result<Exit> {
    start_log("warn");
    let cancel = Arc::new(AtomicBool::new(false));
    on_signals(&cancel)?;
    match command {
        Command::Sync(args) => sync::run(args, matches, &cancel),
        Command::Verify(args) => verify::verify(args, &cancel),
        Command::Digest(args) => verify::digest(args, matches, &cancel),
        Command::Explain(args) => explain::run(args),
        Command::Pki(command) => pki::run(command),
        Command::Config(command) => config::run(command),
        Command::Generate(args) => generate::run(args),
        Command::Status(args) => {
            // once, also where it is watched
            let socket = args.agent.socket()?;
            status::run(args, &cancel, || admin::status(&socket))
        }
        Command::Approve(args) => admin::approve(args),
        Command::History(args) => history::run(args),
        Command::Rollback(args) => rollback::run(args, &cancel),
        Command::Trash(args) => trash::run(args),
        Command::Source(SourceCommand::Reset(args)) => admin::reset(args),
        Command::Wait(args) => wait::run(args, &cancel),
        Command::Refresh(args) => admin::refresh(args),
        Command::Pause(args) => admin::pause(args),
        Command::Resume(args) => admin::resume(args),
        Command::Forget(args) => admin::forget(args),
        Command::Drain(args) => admin::drain(args),
        Command::Undrain(args) => admin::undrain(args),
        Command::Run(args) => run::run(args),
        Command::Demo(args) => demo::run(args),
        Command::HoldExec(_) => Ok(Exit::Failed),
        Command::Hold(args) => Ok(if hold::run(args) == 0 { Exit::Done } else { Exit::Failed }),
    }
}

/// Colours are for terminals.
fn coloured() -> bool {
    use std::io::IsTerminal as _;
    std::io::stderr().is_terminal()
}

fn start_log(level: &str) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("SYNCAGENT_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(coloured())
        .init();
}

/// Scans hold few files open, but the soft limit of 1,024 need not be what decides.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // staying at the soft limit is fine
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The first signal asks for an end at a consistent point, a second one ends at once.
fn on_signals(cancel: &Arc<AtomicBool>) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_conditional_default(signal, cancel.clone())
            .and_then(|_| signal_hook::flag::register(signal, cancel.clone()))
            .map_err(|e| Error::io(e, "cannot handle signals"))?;
    }
    Ok(())
}

/// Output that cannot be written is an error of its own, with a cause that the user knows.
fn output_failed(e: std::io::Error) -> Error {
    Error { class: Class::Permanent, what: "cannot write to standard output".into(), source: Some(e) }
}
