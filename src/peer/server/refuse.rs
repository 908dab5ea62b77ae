//! Why a peer was turned away: one type for the answer, the counter and the log line. A peer that insists
//! fills a counter, not the log.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use serde::Serialize;

use super::lock;
use crate::error::{Class, Error};

/// The same peer and reason is logged once in so long.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// Peers and reasons remembered for that; what is beyond is counted but not logged.
const REMEMBERED: usize = 4096;

/// Why a peer was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It speaks another version.
    Protocol,
    /// It belongs to another cluster.
    Cluster,
    /// It names a node that its certificate does not carry.
    Node,
    /// It asks for a tree that is not here.
    Tree,
    /// It may not read the tree.
    Forbidden,
    /// It knows a newer generation than this source.
    Superseded,
    /// It sent what cannot be understood.
    Malformed,
    /// It sent too much.
    TooLarge,
    /// Its node has too many requests at once.
    Busy,
    /// Its node, or all together, have too many connections.
    Connections,
    /// The TLS handshake failed.
    Handshake,
    /// It sends too slowly, or stopped reading.
    Slow,
    /// The source could not answer.
    Failed,
    /// The source, or the tree, is just being started or stopped: nobody's fault, and neither counted nor a warning.
    NotNow,
}

/// A refusal, as the peer sees it.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) reason: Reason,
    pub(super) text: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, reason: Reason, text: impl Into<String>) -> Self {
        Self { status, reason, text: text.into() }
    }
}

/// It passes by itself, and soon.
pub(super) fn not_now(text: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Reason::NotNow, text)
}

/// What the agent could not do.
impl From<Error> for Refusal {
    fn from(e: Error) -> Self {
        let (status, reason) = match e.class {
            Class::Refused => (StatusCode::CONFLICT, Reason::Superseded),
            Class::Transient | Class::Busy | Class::Interrupted => {
                (StatusCode::SERVICE_UNAVAILABLE, Reason::Failed)
            }
            Class::Permanent | Class::Integrity | Class::Config => {
                (StatusCode::INTERNAL_SERVER_ERROR, Reason::Failed)
            }
        };
        Self::new(status, reason, e.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(format!("{}\n", self.text)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.status == StatusCode::TOO_MANY_REQUESTS || self.reason == Reason::NotNow {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        // for the one place that counts and logs
        response.extensions_mut().insert(self);
        response
    }
}

/// Counts refusals and logs them.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    counts: Mutex<BTreeMap<Reason, u64>>,
    logged: Mutex<HashMap<(String, Reason), Instant>>,
}

impl Ledger {
    pub(super) fn refused(&self, peer: &str, reason: Reason, text: &str) {
        if reason == Reason::NotNow {
            return tracing::debug!(peer, "not now: {text}");
        }
        *lock(&self.counts).entry(reason).or_default() += 1;
        if !self.may_log(peer, reason) {
            return;
        }
        match reason {
            // the tree itself warns of it, and its mirrors cannot but ask again
            Reason::Superseded => tracing::debug!(peer, ?reason, "refused: {text}"),
            _ => tracing::warn!(peer, ?reason, "refused: {text}"),
        }
    }

    pub(super) fn counts(&self) -> BTreeMap<Reason, u64> {
        lock(&self.counts).clone()
    }

    fn may_log(&self, peer: &str, reason: Reason) -> bool {
        let now = Instant::now();
        let mut logged = lock(&self.logged);
        if logged.len() >= REMEMBERED {
            logged.retain(|_, at| now.duration_since(*at) < LOG_EVERY);
        }
        let full = logged.len() >= REMEMBERED;
        match logged.entry((peer.to_owned(), reason)) {
            Entry::Occupied(at) if now.duration_since(*at.get()) < LOG_EVERY => false,
            Entry::Vacant(_) if full => false,
            Entry::Occupied(mut at) => {
                at.insert(now);
                true
            }
            Entry::Vacant(new) => {
                new.insert(now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_insists_is_counted_and_logged_once() {
        let ledger = Ledger::default();
        assert!(ledger.may_log("a", Reason::Node));
        assert!(!ledger.may_log("a", Reason::Node));
        assert!(ledger.may_log("a", Reason::Tree) && ledger.may_log("b", Reason::Node));
        for _ in 0..3 {
            ledger.refused("a", Reason::Node, "");
        }
        assert_eq!(ledger.counts()[&Reason::Node], 3);
        ledger.refused("a", Reason::NotNow, "");
        assert_eq!(ledger.counts().len(), 1);
    }

    #[test]
    fn what_is_remembered_for_the_log_is_bounded() {
        let ledger = Ledger::default();
        for i in 0..2 * REMEMBERED {
            ledger.refused(&i.to_string(), Reason::Malformed, "");
        }
        assert_eq!(lock(&ledger.logged).len(), REMEMBERED);
    }
}
