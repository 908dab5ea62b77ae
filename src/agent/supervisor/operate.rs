//! What operators and deploy jobs order: pause, drain, hold.

use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use tokio::sync::watch;

use super::{Agent, lock};
use crate::agent::orders::Ordered;
use crate::agent::role::{HoldOrder, Role};
use crate::disk::{Dir, boot_ms, ensure_dir_all, write_atomic};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{GenId, NodeId, RefreshState, State, escaped};
use crate::refresh::Refresher;

const DRAINED: &str = "drained.json";
/// Whoever has a generation tried again waits no longer for the outcome.
const AGAIN: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(20);

/// A picture is asked for again after so long.
const AGAIN_SHOWN: Duration = Duration::from_millis(50);
/// What load balancers are told is waited for no longer.
const SHOWN: Duration = Duration::from_secs(3);

/// The public port answers from pictures of the agent that are taken now and then.
pub(super) struct Pictures {
    /// Asks for one.
    asks: SyncSender<()>,
    /// When the newest one was begun, in milliseconds of the boot clock.
    begun: watch::Receiver<u64>,
}

/// Whether the node was drained when the agent ended. A record that cannot be read counts.
pub(super) fn read_drained(state_dir: &Path) -> Result<Option<Ordered>> {
    let path = state_dir.join(DRAINED);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).context(|| format!("read {}", escaped(&path))),
    };
    let unknown = |_| Ordered {
        who: "unknown".into(),
        reason: Some(format!("{} is damaged", escaped(&path))),
        at_ms: crate::disk::wall_ms(),
    };
    Ok(Some(serde_json::from_slice(&text).unwrap_or_else(unknown)))
}

/// What became of a generation that a node went back from and tries again.
async fn tried_again(role: &dyn Role, refresher: &Refresher, generation: GenId) -> Result<String> {
    let end = tokio::time::Instant::now() + AGAIN;
    while tokio::time::Instant::now() < end {
        if refresher.in_place() == Some(generation) {
            let refresh = refresher.status();
            match refresh.error {
                None if !refresher.is_open() => {
                    return Ok(format!("generation {generation} is in place again, and the server has it"));
                }
                Some(error)
                    if matches!(refresh.state, RefreshState::VerifyFailed | RefreshState::Failing) =>
                {
                    return Err(Error::new(Class::Transient, error.what));
                }
                _ => {}
            }
        }
        let own = role.status().nodes.into_iter().next();
        if let Some(own) = own.filter(|own| own.state == State::RolledBack) {
            let what = own.error.map_or_else(|| "rolled back again".to_owned(), |error| error.what);
            return Err(Error::new(Class::Transient, what));
        }
        tokio::time::sleep(LOOK).await;
    }
    let what =
        format!("generation {generation} is being tried again; `syncagent status` tells how that goes");
    Err(Error::new(Class::Transient, what))
}

impl Agent {
    /// Nothing of this tree is published here or applied any more. Blocking.
    ///
    /// # Errors
    /// There is no such tree, or the state directory cannot be written to.
    pub fn pause(&self, tree: &str, by: Ordered) -> Result<String> {
        self.log(&format!("pause {tree}"), &by);
        self.role(tree)?.pause(by)
    }

    /// Ends a pause. Blocking.
    ///
    /// # Errors
    /// There is no such tree, or it is not paused.
    pub fn resume(&self, tree: &str, by: &Ordered) -> Result<String> {
        self.log(&format!("resume {tree}"), by);
        self.role(tree)?.resume()
    }

    /// A mirror that is gone for good is not shown or waited for any more. Blocking.
    ///
    /// # Errors
    /// There is no such tree, or as [`Role::forget`](crate::agent::Role).
    pub fn forget(&self, tree: &str, node: &NodeId, by: &Ordered) -> Result<String> {
        let said = self.role(tree)?.forget(node)?;
        self.log(&format!("{said}; forget {tree} {node}"), by);
        Ok(said)
    }

    /// A deploy job's hold. Blocking, up to a minute.
    ///
    /// # Errors
    /// There is no such tree, or as [`Role::hold`](crate::agent::Role).
    pub fn hold(&self, tree: &str, order: HoldOrder) -> Result<String> {
        self.role(tree)?.hold(order)
    }

    /// The node takes no traffic any more; files go on. Outlives restarts. Blocking.
    ///
    /// # Errors
    /// The state directory cannot be written to.
    pub fn drain(&self, by: Ordered) -> Result<String> {
        self.log("drain", &by);
        let text = serde_json::to_vec_pretty(&by).map_err(|e| Error::integrity(e.to_string()))?;
        let cannot = || format!("write {}", escaped(&self.state_dir.join(DRAINED)));
        let dir = ensure_dir_all(&self.state_dir, 0o700).context(cannot)?;
        write_atomic(&dir, DRAINED, &text).context(cannot)?;
        self.set_drained(Some(by));
        Ok("drained: load balancers are told to send no new requests here, until `syncagent undrain`".into())
    }

    /// The node takes traffic again. Blocking.
    ///
    /// # Errors
    /// It is not drained, or the state directory cannot be written to.
    pub fn undrain(&self, by: &Ordered) -> Result<String> {
        if self.limits.drained().is_none() {
            return Err(Error::new(Class::Config, "this node is not drained"));
        }
        self.log("undrain", by);
        let cannot = || format!("remove {}", escaped(&self.state_dir.join(DRAINED)));
        let dir = Dir::open_root(&self.state_dir).context(cannot)?;
        match dir.unlink(DRAINED.as_bytes()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e).context(cannot),
        }
        dir.sync().context(cannot)?;
        self.set_drained(None);
        Ok("load balancers may send requests here again".into())
    }

    /// Tells the local server now: what it lacks, or everything (`force`). Gives the outcome.
    ///
    /// # Errors
    /// There is no such tree, no server is told of it, or telling it failed.
    pub async fn refresh(&self, tree: &str, force: bool, by: &Ordered) -> Result<String> {
        let role = self.role(tree)?;
        let refresher = role.refresher().ok_or_else(|| {
            let what = format!(
                "no [[tree.{tree}.refresh]] is configured on this node: no server is told of changes"
            );
            Error::new(Class::Config, what)
        })?;
        self.log(&format!("refresh {tree}"), by);
        if force {
            let again = role.clone();
            let again = tokio::task::spawn_blocking(move || again.try_again()).await;
            let again = again.map_err(|e| Error::new(Class::Transient, e.to_string()))??;
            if let Some(generation) = again {
                return tried_again(&*role, &refresher, generation).await;
            }
        }
        refresher.force(force).await
    }

    /// From now on the public port answers from pictures that `asks` asks for; `begun` says when the newest one was begun, in
    /// milliseconds of the boot clock.
    pub fn set_pictures(&self, asks: SyncSender<()>, begun: watch::Receiver<u64>) {
        if !self.stop.is_cancelled() {
            *lock(&self.pictures) = Some(Pictures { asks, begun });
        }
    }

    /// Waits until the public port, where there is one, tells of all that was ordered before; not longer than some seconds.
    pub async fn until_shown(&self) {
        let Some((asks, mut begun)) =
            lock(&self.pictures).as_ref().map(|p| (p.asks.clone(), p.begun.clone()))
        else {
            return;
        };
        let now = boot_ms();
        let shown = async {
            // one that was begun in this very millisecond may be from before
            while *begun.borrow_and_update() <= now {
                // a full queue means that it was asked already
                let _ = asks.try_send(());
                let again = tokio::time::timeout(AGAIN_SHOWN, begun.changed()).await;
                if matches!(again, Ok(Err(_))) {
                    return;
                }
            }
        };
        if tokio::time::timeout(SHOWN, shown).await.is_err() {
            tracing::warn!("the public port does not tell of it yet");
        }
    }

    fn set_drained(&self, by: Option<Ordered>) {
        self.limits.set_drained(by);
        let roles: Vec<_> = lock(&self.trees).values().map(|t| t.role.clone()).collect();
        roles.iter().for_each(|role| role.node_changed());
    }

    fn log(&self, what: &str, by: &Ordered) {
        let reason = by.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
        tracing::info!("{what}, ordered by {}{reason}", by.who);
    }
}
