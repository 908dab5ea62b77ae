//! What operators and deploy jobs order: pause, drain, hold.

use std::path::Path;

use super::{Agent, lock};
use crate::agent::orders::Ordered;
use crate::agent::role::HoldOrder;
use crate::disk::{Dir, ensure_dir_all, write_atomic};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::escaped;

const DRAINED: &str = "drained.json";

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

    /// A deploy job's hold. Blocking, up to a minute.
    ///
    /// # Errors
    /// There is no such tree, or as [`Role::hold`](crate::agent::Role::hold).
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
        let refresher = self.role(tree)?.refresher().ok_or_else(|| {
            let what = format!(
                "no [[tree.{tree}.refresh]] is configured on this node: no server is told of changes"
            );
            Error::new(Class::Config, what)
        })?;
        self.log(&format!("refresh {tree}"), by);
        refresher.force(force).await
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
