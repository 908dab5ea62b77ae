//! The two conversations with the source: waiting for a newer generation, and reporting.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use super::{MirrorTree, seek};
use crate::disk::boot_ms;
use crate::error::{Class, Error};
use crate::model::{Digest, GenId, State};
use crate::peer::Head;

/// A long poll lasts so long at most; shorter than what proxies cut off.
const WAIT: Duration = Duration::from_secs(50);
/// A report goes out so often even when nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(10);
const BACKOFF: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// Doubles up to a cap, and spreads out what would come all at once after the source was away.
struct Backoff(Duration);

impl Backoff {
    fn next(&mut self) -> Duration {
        self.0 = (self.0 * 2).clamp(BACKOFF, BACKOFF_MAX);
        self.0.mul_f64(0.5 + jitter() / 2.0)
    }
}

/// 0 to 1, from the clock's lowest digits; it need not be good, only different from node to node.
fn jitter() -> f64 {
    let seed = format!("{:?}{}", crate::disk::now(), std::process::id());
    f64::from(blake3::hash(seed.as_bytes()).as_bytes()[0]) / 255.0
}

/// Waits for newer generations until the tree is stopped.
pub(super) async fn listen(tree: Arc<MirrorTree>) {
    let mut backoff = Backoff(Duration::ZERO);
    loop {
        let pause = tokio::select! {
            () = tree.cancel.cancelled() => return,
            () = tree.again.notified() => continue,
            pause = poll(&tree) => pause,
        };
        match pause {
            Ok(()) => backoff = Backoff(Duration::ZERO),
            Err(e) => {
                let news = {
                    let now = boot_ms();
                    let mut shared = tree.shared();
                    shared.connected = false;
                    // a question that nobody answers takes long to fail: the source was away all the while
                    let unheard = shared.lag.contact_age_ms(now).unwrap_or(0);
                    shared.deferred.began(unheard, now);
                    shared.defer(now);
                    shared.contact.set(e.to_string())
                };
                match e.class {
                    _ if !news => {}
                    // it is being restarted or reloaded
                    Class::Busy => tracing::info!(tree = tree.name(), "the source: {e}"),
                    _ => tracing::warn!(tree = tree.name(), "the source: {e}"),
                }
                let wait = backoff.next();
                tokio::select! {
                    () = tree.cancel.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}

async fn poll(tree: &Arc<MirrorTree>) -> Result<(), Error> {
    let (known, seen, sought, wait) = {
        let shared = tree.shared();
        let seen = shared.seen();
        let knows = shared.connected && shared.lag.head().is_some() && shared.answered >= shared.wanted;
        (shared.complete, seen, shared.sought, if knows { WAIT } else { Duration::ZERO })
    };
    let asked = boot_ms();
    let head = tree.client.head(known, seen, sought, wait).await?;
    let now = boot_ms();
    if let Some(head) = &head {
        check(head, seen, tree.name())?;
    }
    let mut shared = tree.shared();
    shared.connected = true;
    shared.contact.clear();
    shared.answered = asked;
    shared.defer(now);
    // a source that began anew, which does not show here, takes nobody's word from before
    tree.news.notify_one();
    let Some(head) = head else { return Ok(()) };
    // what the source held the question back is no age
    shared.lag.heard(asked + head.waited_ms, now, head.oldest, (head.generation.id, head.age_ms));
    if shared.back().is_some_and(|back| back.from == head.generation.id) {
        shared.forgive(now);
    }
    // what was completed since the question does not count
    let ahead = shared.ahead_of_complete(head.generation.id);
    shared.behind = Some(if shared.complete == known { head.behind } else { ahead });
    let round = Some(head.seeks).filter(|round| *round != 0 && *round != shared.sought);
    if let Some(round) = round {
        shared.sought = round;
        // whatever was sought before is not any more
        let help = AbortOnDropHandle::new(tokio::spawn(seek::help(tree.clone(), round)));
        shared.helps = Some(help);
    }
    let is_new = shared.newest.as_ref().is_none_or(|g| g.id < head.generation.id);
    drop(shared);
    if is_new {
        tree.arrived(Arc::new(head.generation));
    }
    Ok(())
}

/// Reports whenever there is news, and regularly.
pub(super) async fn report(tree: Arc<MirrorTree>) {
    loop {
        tokio::select! {
            () = tree.cancel.cancelled() => return,
            () = tree.news.notified() => {}
            () = tokio::time::sleep(HEARTBEAT) => {}
        }
        let suspects = std::mem::take(&mut tree.shared().suspects);
        if !suspects.is_empty()
            && let Err(e) = tree.client.suspect(&suspects).await
        {
            tracing::debug!(tree = tree.name(), "suspects: {e}");
        }
        let report = tree.report_now();
        let sent = tokio::select! {
            () = tree.cancel.cancelled() => return,
            sent = tree.client.report(&report) => sent,
        };
        if sent.is_ok() {
            tree.shared().lag.contacted(boot_ms());
        } else if let Err(e) = sent {
            tracing::debug!(tree = tree.name(), "report: {e}");
            // told again, with the next one
            let mut shared = tree.shared();
            let newer = std::mem::replace(&mut shared.converged, report.converged);
            shared.converged.extend(newer);
            let excess = shared.converged.len().saturating_sub(1_000);
            shared.converged.drain(..excess);
        }
    }
}

impl MirrorTree {
    /// A newer state to show and to report.
    pub(super) fn enter(&self, state: State) {
        let changed = {
            let mut shared = self.shared();
            let changed = std::mem::replace(&mut shared.state, state) != state;
            shared.defer(boot_ms());
            changed
        };
        if changed {
            self.news.notify_one();
        }
    }
}

/// A mirror never goes back, whatever it is offered.
fn check(head: &Head, seen: Option<(GenId, Digest)>, tree: &str) -> Result<(), Error> {
    let offered = head.generation.id;
    if let Some((floor, _)) = seen.filter(|(floor, _)| offered < *floor) {
        let what = format!(
            "the source offers generation {offered}, but this mirror has seen {floor} already and never goes back; on the \
             source: syncagent source reset {tree} --approve"
        );
        return Err(Error::new(Class::Refused, what));
    }
    if !offered.is_plausible() {
        return Err(Error::new(Class::Refused, format!("no source has ever come to generation {offered}")));
    }
    Ok(())
}
