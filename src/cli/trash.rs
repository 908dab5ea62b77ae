//! `syncagent trash`: through the agent when the tree is named, directly when it is given by its path.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use bytes::Bytes;
use clap::{Args, Subcommand};
use hyper::Method;

use super::exit::Exit;
use super::options::{AgentArgs, tree_path};
use super::output::human;
use super::output_failed;
use super::run::say;
use crate::agent::{TrashAnswer, TrashOrder, trash_of};
use crate::apply::TrashPart;
use crate::config::Span;
use crate::error::{Class, Error, Result};
use crate::serve::{ask_with, query};

/// Freeing many files takes a while.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3600);

/// `trash`.
#[derive(Debug, Args)]
pub struct TrashArgs {
    /// A tree of this node's agent; or, with a `/` in it, the path of a directory that was the DST of a sync.
    tree: String,
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    agent: AgentArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What was replaced or deleted, newest first: commit, generation, time, kind, bytes, path.
    List {
        /// JSON, one object a line.
        #[arg(long)]
        json: bool,
        /// No more than so many entries.
        #[arg(long, value_name = "N", default_value_t = 10_000)]
        limit: u64,
    },
    /// Copy files, links or whole directories back; nothing is ever replaced.
    Restore {
        /// Paths in the tree.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// As they were before this commit (its number in the list) or generation; by default the newest of each.
        #[arg(long, value_name = "N")]
        generation: Option<String>,
        /// Into this directory, under their paths in the tree; made when it is missing.
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
    /// Free it.
    Empty {
        /// Only what was displaced longer ago than this ("720h", "12h").
        #[arg(long, value_name = "DURATION")]
        older_than: Option<Span>,
        /// Do it; without this it is only said how much that would be.
        #[arg(long)]
        yes: bool,
    },
}

impl TrashArgs {
    /// Whether standard output is for programs.
    pub(super) fn json(&self) -> bool {
        matches!(self.what, What::List { json: true, .. })
    }
}

pub(super) fn run(args: &TrashArgs) -> Result<Exit> {
    let by_path = args.tree.contains('/') || args.tree == "." || args.tree == "..";
    let order = match &args.what {
        What::List { limit, .. } => TrashOrder::List { limit: *limit },
        What::Restore { paths, generation, to } => {
            let dir = if by_path { PathBuf::from(&args.tree) } else { PathBuf::new() };
            let absolute = |path: &PathBuf| {
                std::path::absolute(path)
                    .map(|path| path.as_os_str().as_bytes().to_vec())
                    .map_err(|e| Error::io(e, format!("cannot resolve {}", path.display())))
            };
            TrashOrder::Restore {
                paths: paths.iter().map(|path| tree_path(&dir, path)).collect::<Result<_>>()?,
                of: generation.clone(),
                to: to.as_ref().map(absolute).transpose()?,
            }
        }
        What::Empty { older_than, yes } => {
            let ms = |span: &Span| u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX);
            TrashOrder::Empty { older_than_ms: older_than.as_ref().map(ms), dry_run: !yes }
        }
    };
    let answer = if by_path {
        trash_of(&PathBuf::from(&args.tree), &order)?
    } else {
        let body = serde_json::to_vec(&order).map_err(|e| Error::integrity(e.to_string()))?;
        let path = query("/1/trash", &[("tree", &args.tree)]);
        let answer = ask_with(&args.agent.socket()?, &Method::POST, &path, Bytes::from(body), PATIENCE)?;
        serde_json::from_slice(&answer).map_err(|e| Error::integrity(format!("the agent's answer: {e}")))?
    };
    match (answer, &args.what) {
        (answer @ TrashAnswer::List { .. }, _) => show(&answer, args.json()),
        (TrashAnswer::Done { message, files, .. }, What::Empty { yes: false, .. }) if files > 0 => {
            Err(Error::new(Class::Config, format!("{message}; say --yes to do it")))
        }
        (TrashAnswer::Done { message, .. }, _) => say(&message).map(|()| Exit::Done),
    }
}

fn show(answer: &TrashAnswer, json: bool) -> Result<Exit> {
    let TrashAnswer::List { entries, more } = answer else { return Ok(Exit::Done) };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for e in entries {
        let generation = e.generation.map(|id| id.to_string());
        let kind = match (e.kind, e.link) {
            (TrashPart::Tree, false) => "tree",
            (TrashPart::Tree, true) => "tree-link",
            (TrashPart::Drift, false) => "drift",
            (TrashPart::Drift, true) => "drift-link",
        };
        let written = if json {
            let mut line = serde_json::json!({
                "commit": e.commit, "generation": generation, "at": e.at, "kind": e.kind, "link": e.link, "bytes": e.size,
            });
            super::output::add_path(&mut line, &e.path);
            writeln!(out, "{line}")
        } else {
            let generation = generation.unwrap_or_else(|| "-".into());
            writeln!(
                out,
                "{:>6}  {generation:>8}  {}  {kind:<10}  {:>10}  {}",
                e.commit,
                e.at,
                human(e.size),
                e.path
            )
        };
        written.map_err(output_failed)?;
    }
    if *more > 0 && !json {
        writeln!(out, "... and {more} more; see --limit").map_err(output_failed)?;
    }
    if entries.is_empty() && !json {
        writeln!(out, "the trash is empty").map_err(output_failed)?;
    }
    out.flush().map_err(output_failed)?;
    Ok(Exit::Done)
}
