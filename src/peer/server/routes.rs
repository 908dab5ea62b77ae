//! What can be asked for.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query};
use axum::http::{Response, StatusCode};
use axum::response::{IntoResponse as _, Json};
use axum::routing::{get, post};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Body as _;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::Piece;
use super::conn::Caller;
use super::content::{Contents, Objects};
use super::refuse::{Reason, Refusal, not_now};
use super::stream;
use crate::model::{Digest, GenId};
use crate::peer::wire::{self, Head, Hello, MAX_WAIT};

/// A request's body arrives within so long; bodies are small.
const BODY: Duration = Duration::from_secs(30);

const ANEW: &str = "the tree is being set up anew";

type Answer = Result<Response<Body>, Refusal>;

pub(super) fn router() -> Router {
    Router::new()
        .route("/sync/1/hello", get(hello))
        .route("/sync/1/{tree}/head", get(head))
        .route("/sync/1/{tree}/objects", post(objects))
        .route("/sync/1/{tree}/contents", post(contents))
        .route("/sync/1/{tree}/report", post(report))
        .route("/sync/1/{tree}/suspect", post(suspect))
        .route("/sync/1/{tree}/sought", get(sought))
        .route("/sync/1/{tree}/found", post(found))
        .route("/sync/1/{tree}/piece", post(piece))
}

async fn hello(Extension(caller): Extension<Caller>) -> Answer {
    let server = &caller.peer.server;
    let version = env!("CARGO_PKG_VERSION");
    let (node, cluster) = (server.node.as_str(), server.cluster.as_str());
    Ok(Json(Hello { protocol: [1], node, cluster, version }).into_response())
}

#[derive(Deserialize)]
struct Seen {
    known: Option<String>,
    seen: Option<String>,
    root: Option<String>,
    /// `None`: it does not know of seeking.
    sought: Option<u64>,
    #[serde(default)]
    wait: u64,
}

impl Seen {
    fn known(&self) -> Result<Option<GenId>, Refusal> {
        self.known.as_deref().map(str::parse).transpose().map_err(bad)
    }

    fn seen(&self) -> Result<Option<(GenId, Digest)>, Refusal> {
        match (&self.seen, &self.root) {
            (Some(id), Some(root)) => {
                Ok(Some((id.parse().map_err(bad)?, root.parse().map_err(|_| bad("root is no digest"))?)))
            }
            (None, None) => Ok(None),
            _ => Err(bad("seen and root go together")),
        }
    }
}

fn bad(text: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, Reason::Malformed, text)
}

async fn head(
    Extension(caller): Extension<Caller>,
    Path(tree): Path<String>,
    Query(query): Query<Seen>,
) -> Answer {
    let tree = caller.tree(&tree)?;
    let (known, seen) = (query.known()?, query.seen()?);
    let begun = Instant::now();
    let until = begun + Duration::from_secs(query.wait.min(MAX_WAIT));
    let mut heads = tree.serve.head();
    let mut seeks = query.sought.and_then(|_| tree.serve.seeks());
    // once: an answer is no sign of life, and `known` may be old by then
    tree.serve.heard(&caller.node, known);
    loop {
        let newest = heads.borrow_and_update().clone();
        // ages grow while it waits
        let behind = tree.serve.behind(&caller.node, known, seen)?;
        if heads.has_changed().unwrap_or(false) {
            // published in between: the two do not belong together
            continue;
        }
        let round = seeks.as_mut().map_or(0, |seeks| *seeks.borrow_and_update());
        let over = Instant::now() >= until || round != 0 && Some(round) != query.sought;
        match newest {
            Some(newest) if over || seen != Some((newest.id, newest.root.object)) => {
                let generation = Arc::unwrap_or_clone(newest);
                let head = Head {
                    generation,
                    age_ms: behind.age_ms,
                    oldest: behind.oldest,
                    behind: behind.behind,
                    waited_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(0),
                    seeks: round,
                };
                return Ok(Json(head).into_response());
            }
            None if over => return Ok(StatusCode::NO_CONTENT.into_response()),
            _ => {}
        }
        tokio::select! {
            changed = heads.changed() => changed.map_err(|_| not_now(ANEW))?,
            changed = next_round(&mut seeks) => changed.map_err(|_| not_now(ANEW))?,
            () = tree.gone.cancelled() => return Err(not_now(ANEW)),
            () = sleep_until(until) => {}
            () = caller.peer.stop.cancelled() => return Err(not_now("the source is stopping")),
        }
    }
}

async fn next_round(seeks: &mut Option<watch::Receiver<u64>>) -> Result<(), watch::error::RecvError> {
    match seeks {
        Some(seeks) => seeks.changed().await,
        None => std::future::pending().await,
    }
}

async fn objects(Extension(caller): Extension<Caller>, Path(tree): Path<String>, body: Body) -> Answer {
    let tree = caller.tree(&tree)?;
    let slot = caller.slot()?;
    let want = wire::digests(&read(body, wire::OBJECTS_BODY).await?).map_err(|e| bad(e.what))?;
    let from = Objects::new(Arc::clone(&tree.serve), want);
    stream::respond(from, Arc::clone(&tree.reads), slot).await
}

async fn contents(Extension(caller): Extension<Caller>, Path(tree): Path<String>, body: Body) -> Answer {
    let tree = caller.tree(&tree)?;
    let slot = caller.slot()?;
    let want = wire::wants(&read(body, wire::CONTENTS_BODY).await?).map_err(|e| bad(e.what))?;
    let from = Contents::new(Arc::clone(&tree.serve), want);
    stream::respond(from, Arc::clone(&tree.reads), slot).await
}

async fn report(Extension(caller): Extension<Caller>, Path(tree): Path<String>, body: Body) -> Answer {
    let tree = caller.tree(&tree)?;
    let report = wire::report(&read(body, wire::REPORT_BODY).await?).map_err(|e| bad(e.what))?;
    tree.serve.report(&caller.node, report);
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn suspect(Extension(caller): Extension<Caller>, Path(tree): Path<String>, body: Body) -> Answer {
    let tree = caller.tree(&tree)?;
    let paths = wire::paths(&read(body, wire::SUSPECT_BODY).await?).map_err(|e| bad(e.what))?;
    tree.serve.suspect(&caller.node, paths);
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Deserialize)]
struct Round {
    round: u64,
    #[serde(default)]
    from: usize,
    #[serde(default)]
    done: bool,
}

async fn sought(
    Extension(caller): Extension<Caller>,
    Path(tree): Path<String>,
    Query(query): Query<Round>,
) -> Answer {
    let tree = caller.tree(&tree)?;
    list(tree.serve.sought(&caller.node, query.round, query.from))
}

async fn found(
    Extension(caller): Extension<Caller>,
    Path(tree): Path<String>,
    Query(query): Query<Round>,
    body: Body,
) -> Answer {
    let tree = caller.tree(&tree)?;
    let found = wire::places(&read(body, wire::FOUND_BODY).await?).map_err(|e| bad(e.what))?;
    list(tree.serve.found(&caller.node, query.round, &found, query.done))
}

/// 204 when there is none.
fn list(list: Option<impl Serialize>) -> Answer {
    match list {
        Some(list) => Ok(Response::new(Body::from(wire::encode(&list)?))),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

#[derive(Deserialize)]
struct PieceOf {
    round: u64,
    index: u32,
    from: u64,
}

async fn piece(
    Extension(caller): Extension<Caller>,
    Path(tree): Path<String>,
    Query(query): Query<PieceOf>,
    body: Body,
) -> Answer {
    let tree = caller.tree(&tree)?;
    let slot = caller.slot()?;
    let bytes = read(body, wire::PIECE).await?;
    let piece = Piece { round: query.round, index: query.index, from: query.from };
    let stopped = || not_now("the source is stopping");
    let permit = Arc::clone(&tree.reads).acquire_owned().await.map_err(|_| stopped())?;
    let written = tokio::task::spawn_blocking(move || {
        // both stay with the thread, even if nobody waits for it any more
        let (_permit, _slot) = (permit, slot);
        tree.serve.piece(&caller.node, piece, &bytes)
    });
    written.await.map_err(|_| stopped())??;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Reads a request's body, in time and up to `most` bytes.
async fn read(body: Body, most: usize) -> Result<Bytes, Refusal> {
    let too_large = || {
        let text = format!("the body is larger than {most} bytes");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Reason::TooLarge, text)
    };
    if body.size_hint().lower() > most as u64 {
        return Err(too_large());
    }
    match timeout(BODY, Limited::new(body, most).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => Err(bad(format!("the body ended early: {e}"))),
        Err(_) => {
            let text = "the body did not arrive within 30 s";
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, Reason::Slow, text))
        }
    }
}
