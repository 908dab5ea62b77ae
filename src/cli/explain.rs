//! `syncagent explain DIR PATH`.

use std::io::Write as _;

use super::exit::Exit;
use super::options::{ExplainArgs, tree_path};
use super::output_failed;
use crate::agent::explain;
use crate::disk::FileKind;
use crate::error::Result;
use crate::model::{Entry, Mtime, Node, counted, escape};
use crate::plan::Verdict;

pub(super) fn run(args: &ExplainArgs) -> Result<Exit> {
    let path = tree_path(&args.dir, &args.path)?;
    let known = explain(&args.dir, &path, &args.state.dir()?)?;
    let mut lines = vec![format!("path      {path}")];
    if let Some(source) = &known.source {
        lines.push(format!("source    {source}"));
    }
    lines.push(match &known.filter {
        Verdict::Included => "filter    belongs to the tree (no pattern matches)".to_owned(),
        Verdict::IncludedBy(rule) => format!("filter    belongs to the tree by the pattern {rule}"),
        Verdict::ExcludedBy(rule) => format!("filter    excluded by the pattern {rule}"),
    });
    lines.push(match known.now {
        Some((kind, size)) => format!("now       {}", on_disk(kind, size)),
        None => "now       not there".to_owned(),
    });
    lines.push(format!("synced    {}", known.tree.as_ref().map_or_else(|| "not known".to_owned(), entry)));
    lines.push(format!(
        "in source {}",
        known.in_source.as_ref().map_or_else(|| "not known".to_owned(), entry)
    ));
    lines.push(format!("last seen {}", known.last_run.as_deref().unwrap_or("in no finished run")));
    lines.push(match &known.pending {
        Some((plan, line)) => {
            format!("pending   plan {} (refused {}: {}): {line}", plan.plan_id, plan.at, plan.reason)
        }
        None => "pending   no refused plan would lose it".to_owned(),
    });
    writeln!(std::io::stdout(), "{}", lines.join("\n")).map_err(output_failed)?;
    Ok(Exit::Done)
}

fn on_disk(kind: FileKind, size: u64) -> String {
    match kind {
        FileKind::File => format!("file of {}", counted(size, "byte")),
        FileKind::Dir => "dir".into(),
        FileKind::Link => "link".into(),
        FileKind::Special => "special file, never copied".into(),
    }
}

fn entry(e: &Entry) -> String {
    let what = match &e.node {
        Node::File { size, digest } => format!("file of {}, BLAKE3 {digest}", counted(*size, "byte")),
        Node::Dir { content, .. } => format!("dir, content {content}"),
        Node::Link { target } => format!("link -> {}", escape(target)),
        Node::Unreadable { kind } => return format!("{kind} that could not be read"),
    };
    let owner =
        if e.owner.user.is_empty() { String::new() } else { format!(", {}:{}", e.owner.user, e.owner.group) };
    format!("{what}, mode {:04o}, mtime {}{owner}", e.mode, time(e.mtime))
}

fn time(t: Mtime) -> String {
    let nsec = i32::try_from(t.nsec).unwrap_or(0);
    jiff::Timestamp::new(t.sec, nsec).map_or_else(|_| format!("{}.{:09}", t.sec, t.nsec), |t| t.to_string())
}
