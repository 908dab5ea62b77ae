//! What is wrong with a configuration, and where. Problems are collected, never the first one returned:
//! whoever edits a file on ten nodes wants to do it once.

use std::cell::RefCell;
use std::fmt;

use super::Config;
use crate::model::escape;

/// What became of a configuration's text.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// `None` exactly when a problem is an error.
    pub config: Option<Config>,
    /// By line; those of what is missing altogether first.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong. Printed as `error: KEY: WHAT (HINT)`, one line without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// From 1; `None` when it is about something that is not there.
    pub line: Option<usize>,
    /// As `tree.assets.settle`; empty when the text is not TOML.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
    /// Whether it can be lived with.
    pub severity: Severity,
}

/// Whether a problem can be lived with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// There is no configuration.
    Error,
    /// It is hardly what was meant.
    Warning,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.severity == Severity::Error { "error" } else { "warning" };
        let key = if self.key.is_empty() { String::new() } else { format!("{}: ", self.key) };
        let hint = self.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        // it quotes what the file has, which may be anything
        write!(f, "{severity}: {}", escape(format!("{key}{}{hint}", self.what).as_bytes()))
    }
}

/// What is wrong with a value, without its place.
#[derive(Clone, Debug)]
pub(super) struct Complaint {
    what: String,
    hint: Option<String>,
}

/// A complaint without a hint.
pub(super) fn wrong(what: impl Into<String>) -> Complaint {
    Complaint { what: what.into(), hint: None }
}

impl Complaint {
    /// With what to do.
    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// Collects what is wrong with one text.
pub(super) struct Problems<'t> {
    text: &'t str,
    found: RefCell<Vec<Problem>>,
}

impl<'t> Problems<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, found: RefCell::default() }
    }

    /// Notes a problem; `at` is a place in the text, in bytes.
    pub(super) fn add(&self, severity: Severity, at: Option<usize>, key: String, complaint: Complaint) {
        let Complaint { what, hint } = complaint;
        let line = at.map(|at| self.line(at));
        self.found.borrow_mut().push(Problem { line, key, what, hint, severity });
    }

    /// The line of a place in the text, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        1 + before.iter().filter(|&&b| b == b'\n').count()
    }

    /// All of them, by line, each once.
    pub(super) fn finish(self) -> Vec<Problem> {
        let mut found = self.found.into_inner();
        found.sort_by(|a, b| (a.line, &a.key, &a.what).cmp(&(b.line, &b.key, &b.what)));
        found.dedup();
        found
    }
}
