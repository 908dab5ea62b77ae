//! What `sync` prints: plan lines or JSON objects, and the summary.

use std::io::{self, BufWriter, Stdout, Write};
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::output_failed;
use crate::agent::{Monitor, Outcome};
use crate::error::Result;
use crate::error::lock;
use crate::model::{TreePath, counted};
#[cfg(test)]
use crate::plan::Op;
use crate::plan::Step;

/// Prints operations.
pub(crate) struct Printer {
    out: Mutex<BufWriter<Stdout>>,
    lines: bool,
    json: bool,
}

impl Printer {
    pub(crate) fn new(lines: bool, json: bool) -> Self {
        Self { out: Mutex::new(BufWriter::with_capacity(64 * 1024, io::stdout())), lines, json }
    }

    fn write(&self, f: impl FnOnce(&mut BufWriter<Stdout>) -> io::Result<()>) -> Result<()> {
        f(&mut lock(&self.out)).map_err(output_failed)
    }

    /// A line of its own, and everything out.
    pub(crate) fn last(&self, line: impl std::fmt::Display) -> Result<()> {
        self.write(|out| {
            writeln!(out, "{line}")?;
            out.flush()
        })
    }

    pub(crate) fn flush(&self) -> Result<()> {
        self.write(|out| out.flush())
    }
}

impl Monitor for Printer {
    fn step(&self, step: &Step<'_, i64>) -> Result<()> {
        if self.json {
            return self.write(|out| writeln!(out, "{}", Value::Object(object(step))));
        }
        if self.lines { self.write(|out| writeln!(out, "{step}")) } else { Ok(()) }
    }

    fn root_attrs(&self) -> Result<()> {
        if self.json {
            let line = json!({ "op": "attrs", "kind": "dir", "path": ".", "bytes": 0 });
            return self.write(|out| writeln!(out, "{line}"));
        }
        if self.lines { self.write(|out| writeln!(out, "attrs dir .")) } else { Ok(()) }
    }
}

fn object(step: &Step<'_, i64>) -> Map<String, Value> {
    let mut o = Map::new();
    o.insert("op".into(), step.op.word().into());
    o.insert("kind".into(), step.kind().to_string().into());
    bytes(&mut o, "path", step.path.as_bytes());
    if let Some(from) = step.from {
        bytes(&mut o, "from", from.path.as_bytes());
    }
    if let Some(target) = step.target() {
        bytes(&mut o, "target", target);
    }
    // what a deletion had, what the others have
    o.insert("bytes".into(), step.subject().size().into());
    o
}

/// UTF-8 as it is, anything else as `KEY_bytes` in base64.
fn bytes(o: &mut Map<String, Value>, key: &str, value: &[u8]) {
    match std::str::from_utf8(value) {
        Ok(text) => o.insert(key.into(), text.into()),
        Err(_) => {
            let encoded = base64::engine::general_purpose::STANDARD.encode(value);
            o.insert(format!("{key}_bytes"), encoded.into())
        }
    };
}

/// Adds `path`, or `path_bytes` where it is not UTF-8.
pub(crate) fn add_path(to: &mut Value, path: &TreePath) {
    if let Value::Object(o) = to {
        bytes(o, "path", path.as_bytes());
    }
}

fn path_value(path: &TreePath) -> Value {
    let mut o = Map::new();
    bytes(&mut o, "path", path.as_bytes());
    Value::Object(o)
}

/// The summary object.
pub(crate) fn summary(o: &Outcome, dry_run: bool, took: Duration) -> Value {
    let t = &o.tally;
    let (files, copied) = if dry_run { (t.files, t.bytes) } else { o.copied };
    let errors: Vec<Value> = o
        .errors
        .iter()
        .map(|e| {
            let mut v = path_value(&e.path);
            v["error"] = e.error.clone().into();
            v
        })
        .collect();
    let mut summary = json!({
        "files": files, "bytes": copied, "created": t.created, "updated": t.updated, "attrs": t.attrs,
        "moved": t.moved, "deleted": t.deleted, "skipped": o.specials, "errors": errors,
        "plan_id": o.plan_id.to_string(), "content_digest": o.content.to_string(),
        "seconds": took.as_secs_f64(), "dry_run": dry_run, "vanished": o.vanished, "recovered": o.recovered,
        "drift": o.drift.iter().map(path_value).collect::<Vec<_>>(),
        "dropped": { "hard_links": o.dropped.hard_links, "sparse": o.dropped.sparse, "xattrs": o.dropped.xattrs },
    });
    if let Some(refusal) = &o.refusal {
        summary["refused"] = json!({ "reason": refusal.to_string(), "plan_id": o.plan_id.to_string() });
    }
    json!({ "summary": summary })
}

/// The summary for people.
pub(crate) fn summary_text(o: &Outcome, dry_run: bool, took: Duration) -> String {
    let t = &o.tally;
    let (files, copied) = if dry_run { (t.files, t.bytes) } else { o.copied };
    let mut parts: Vec<String> = [
        (t.created, "created"),
        (t.updated, "updated"),
        (t.attrs, "attributes"),
        (t.moved, "moved"),
        (t.deleted, "deleted"),
    ]
    .iter()
    .filter(|(n, _)| *n > 0)
    .map(|(n, word)| format!("{n} {word}"))
    .collect();
    if parts.is_empty() {
        parts.push("up to date".into());
    }
    let head = if dry_run { "would sync" } else { "synced" };
    let mut line = format!("{head}: {}", parts.join(", "));
    if files > 0 {
        line += &format!("; {}, {} copied", counted(files, "file"), human(copied));
    }
    line += &format!("; {:.2} s; content {:.16}", took.as_secs_f64(), o.content.to_string());
    let notes = [
        (o.specials, "special file", "skipped"),
        (o.vanished, "file", "vanished from the source meanwhile"),
        (o.dropped.hard_links, "hard-linked name", "in the source, kept as separate files"),
        (o.dropped.sparse, "file", "with holes in the source, copied without"),
        (o.dropped.xattrs, "copied file", "had extended attributes or ACLs, which are not carried over"),
    ];
    for (n, what, how) in notes.iter().filter(|(n, ..)| *n > 0) {
        line += &format!("\nnote: {} {how}", counted(*n, what));
    }
    if o.recovered {
        line += "\nnote: an interrupted commit was finished first";
    }
    line
}

/// Bytes for people.
pub(crate) fn human(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// The words that begin plan lines and nothing else.
#[cfg(test)]
pub(crate) const RESERVED: [Op; 5] = [Op::Create, Op::Update, Op::Attrs, Op::Move, Op::Delete];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;
    use crate::plan::Tally;

    #[test]
    fn the_summary_never_looks_like_a_plan_line() {
        let mut tally = Tally::new(false);
        (tally.created, tally.attrs, tally.deleted) = (1, 2, 3);
        let o = Outcome {
            mismatched: Vec::new(),
            root: None,
            touched: Default::default(),
            plan_id: tally.plan_id(),
            tally,
            copied: (1, 1),
            refusal: None,
            errors: vec![],
            drift: vec![],
            specials: 1,
            dropped: crate::agent::NotCarried { hard_links: 1, sparse: 1, xattrs: 1 },
            content: Digest::of(b""),
            recovered: true,
            vanished: 1,
        };
        for line in summary_text(&o, false, Duration::ZERO).lines() {
            assert!(RESERVED.iter().all(|op| !line.starts_with(op.word())), "{line}");
        }
    }
}
