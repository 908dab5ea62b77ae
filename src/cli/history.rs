//! `syncagent history`: the generations of a tree, newest first.

use std::io::Write as _;

use clap::Args;
use hyper::Method;

use super::exit::Exit;
use super::options::AgentArgs;
use super::output::human;
use super::output_failed;
use super::status::count;
use crate::agent::{HistoryEntry, Retention};
use crate::error::{Error, Result};
use crate::model::escape;
use crate::serve::{HistoryAnswer, ask, query};

/// Mirrors that a line names.
const NAMED: usize = 4;

/// `history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// The tree.
    tree: String,
    /// JSON, one object a line; its fields are in docs/history.md.
    #[arg(long)]
    pub(super) json: bool,
    /// No more than so many generations; 1,000 are kept.
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    agent: AgentArgs,
}

pub(super) fn run(args: &HistoryArgs) -> Result<Exit> {
    let path = query("/1/history", &[("tree", &args.tree), ("limit", &args.limit.to_string())]);
    let answer = ask(&args.agent.socket()?, &Method::GET, &path)?;
    let bad = |e: serde_json::Error| Error::integrity(format!("the agent's answer: {e}"));
    let HistoryAnswer { entries, retention } = serde_json::from_slice(&answer).map_err(bad)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for e in &entries {
        let line = if args.json { json(e) } else { text(e) };
        writeln!(out, "{line}").map_err(output_failed)?;
    }
    if entries.is_empty() && !args.json {
        writeln!(out, "no generation yet").map_err(output_failed)?;
    }
    if let Some(r) = retention {
        let line = if args.json { serde_json::json!({ "retention": r }).to_string() } else { kept(&r) };
        writeln!(out, "{line}").map_err(output_failed)?;
    }
    out.flush().map_err(output_failed)?;
    Ok(Exit::Done)
}

/// What a rollback can have.
fn kept(r: &Retention) -> String {
    if r.generations == 0 {
        return "kept for rollbacks: nothing (keep = 0)".to_owned();
    }
    let how = if r.clones { "as clones" } else { "as copies" };
    let mut line = format!(
        "kept for rollbacks, of up to {} before the current one: {} {how}, {} (bound: {}; the trash has {})",
        count(r.generations, "generation"),
        count(r.files, "file"),
        human(r.bytes),
        human(r.limit),
        human(r.trash)
    );
    if r.left_out > 0 {
        line += &format!(
            "; {} of the current one not kept, {}",
            count(r.left_out, "file"),
            human(r.left_out_bytes)
        );
    }
    if let Some(e) = &r.error {
        line += &format!("; {}", escape(e.as_bytes()));
    }
    line
}

fn json(e: &HistoryEntry) -> String {
    let cause = e.cause.to_string();
    let mut value = serde_json::to_value(e).unwrap_or_default();
    value["generation"] = e.generation.to_string().into();
    value["cause_text"] = cause.into();
    value.to_string()
}

fn text(e: &HistoryEntry) -> String {
    let mut line = format!("{:>8}  {}  {}", e.generation.to_string(), e.at, e.origin);
    let counts = [
        (e.created, "created"),
        (e.updated, "updated"),
        (e.attrs, "attributes"),
        (e.moved, "moved"),
        (e.deleted, "deleted"),
    ];
    let counts: Vec<String> =
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    let counts = if counts.is_empty() { "nothing changed".to_owned() } else { counts.join(", ") };
    line += &format!("  {}: {counts}; {}", escape(e.cause.to_string().as_bytes()), human(e.bytes));
    line += &format!("; {}, content {:.12}", count(e.files, "file"), e.content.to_string());
    if let (Some(at), Some(took)) = (&e.applied_at, e.took_ms) {
        line += &format!("; in place {at}, took {took} ms");
    }
    if !e.converged_ms.is_empty() {
        let named: Vec<String> =
            e.converged_ms.iter().take(NAMED).map(|(node, ms)| format!("{node} {ms} ms")).collect();
        line += &format!("; {}", named.join(", "));
        if let Some(slowest) = e.converged_ms.values().max().filter(|_| e.converged_ms.len() > NAMED) {
            line += &format!(" and {} more, the slowest {slowest} ms", e.converged_ms.len() - NAMED);
        }
    }
    line
}
