//! `syncagent run`: the agent in the foreground, until a signal ends it.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::config::load;
use super::exit::Exit;
use super::options::RunArgs;
use super::{journal, notify, sandbox};
use crate::agent::Agent;
use crate::config::{Config, Log, LogFormat};
use crate::error::{Context as _, Error, Result};

/// What blocking threads get to end in; a hung disk must not hold up the end.
const LAST: Duration = Duration::from_millis(500);

pub(super) fn run(args: &RunArgs) -> Result<Exit> {
    let Some(config) = load(&args.config)? else { return Ok(Exit::Usage) };
    start_log(&config.log)?;
    crate::disk::ignore_break_signal()?;
    let runtime = runtime()?;
    let done = runtime.block_on(serve(config, &args.config));
    runtime.shutdown_timeout(LAST);
    done.map(|()| Exit::Done)
}

/// A runtime for an agent: it waits for sockets, the disks have threads of their own.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("net")
        .enable_all()
        .build()
        .context(|| "start the runtime".into())
}

fn start_log(log: &Log) -> Result<()> {
    let asked = std::env::var("SYNCAGENT_LOG").unwrap_or_else(|_| log.level.clone());
    let filter = EnvFilter::try_new(&asked)
        .map_err(|e| Error::new(crate::error::Class::Config, format!("log level `{asked}`: {e}")))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(super::coloured())
        .with_target(false);
    match log.format {
        LogFormat::Text if journal::is_journal(std::io::stderr()) => {
            builder.event_format(journal::Leveled(journal::Line::new())).init();
        }
        LogFormat::Text => builder.init(),
        LogFormat::Json if journal::is_journal(std::io::stderr()) => {
            builder.json().flatten_event(true).map_event_format(journal::Leveled).init();
        }
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

async fn serve(config: Config, path: &Path) -> Result<()> {
    let on = |kind: SignalKind| signal(kind).context(|| "handle signals".into());
    let (mut terminate, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let mut reload = on(SignalKind::hangup())?;
    let (node, trees) = (config.node.id.clone(), config.trees.clone());
    let agent = Agent::start(config).await?;
    tracing::info!(%node, version = env!("CARGO_PKG_VERSION"), "started");
    notify::ready();
    // it is not waited for: a disk may hang
    tokio::task::spawn_blocking(move || sandbox::warn_of_read_only(&trees));
    let until_a_signal = async {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = reload.recv() => tokio::select! {
                    () = reread(&agent, path) => {}
                    _ = terminate.recv() => break,
                    _ = interrupt.recv() => break,
                },
            }
        }
    };
    tokio::select! {
        () = until_a_signal => {}
        never = notify::feed_watchdog() => match never {},
        never = notify::report(agent.clone()) => match never {},
    }
    notify::stopping();
    tracing::info!("ending");
    agent.stop().await;
    Ok(())
}

/// A configuration with errors changes nothing.
async fn reread(agent: &Arc<Agent>, path: &Path) {
    notify::reloading();
    take_over(agent, path).await;
    notify::ready();
}

async fn take_over(agent: &Arc<Agent>, path: &Path) {
    let file = path.to_owned();
    // its disk may hang, which must not hold up the loop
    let read = tokio::task::spawn_blocking(move || load(&file)).await;
    let config = match read.unwrap_or_else(|_| Err(Error::integrity("reading the configuration failed"))) {
        Ok(Some(config)) => config,
        Ok(None) => {
            tracing::error!("the new configuration has errors; the old one stays in force");
            return;
        }
        Err(e) => {
            tracing::error!("{e}; the old configuration stays in force");
            return;
        }
    };
    let trees = config.trees.clone();
    let taken = agent.reload(config).await;
    if taken.is_ok() {
        // it is not waited for: a disk may hang
        tokio::task::spawn_blocking(move || sandbox::warn_of_read_only(&trees));
    }
    match taken {
        Ok(restart) if restart.is_empty() => tracing::info!("took over the new configuration"),
        Ok(restart) => {
            tracing::warn!("took over the new configuration but for {}: restart for that", restart.join(", "))
        }
        Err(e) => tracing::error!("the new configuration: {e}"),
    }
}

/// A line on standard output, whose failure is the user's to see.
pub(super) fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").map_err(super::output_failed)
}
