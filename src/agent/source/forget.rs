//! The register of nodes on the disk, and taking a mirror out of it that is gone for good.

use super::SourceTree;
use super::nodes::Nodes;
use crate::config::Allow;
use crate::disk::{boot_ms, wall_ms, write_atomic};
use crate::error::{Class, Context as _, Error, Result, lock};
use crate::model::{NodeId, escaped};

impl SourceTree {
    /// Writes the register of nodes down, when it changed.
    pub(super) fn write_nodes(&self) -> Result<()> {
        let _one = lock(&self.keeping);
        self.write_nodes_now()
    }

    /// The same, by whoever has `keeping`.
    fn write_nodes_now(&self) -> Result<()> {
        let Some(text) = self.shared().nodes.snapshot((boot_ms(), wall_ms())) else { return Ok(()) };
        let written = write_atomic(self.state.dir(), Nodes::file(), &text);
        written.inspect_err(|_| self.shared().nodes.not_written()).context(|| {
            let path = escaped(&self.state.file(Nodes::file()));
            format!("write down which nodes there are, in {path}")
        })
    }

    /// Takes a mirror that is gone for good out of the register, written down before it counts.
    ///
    /// # Errors
    /// It is not known or is connected, or that cannot be written down.
    pub(super) fn forget_node(&self, node: &NodeId) -> Result<String> {
        let name = &self.config.name;
        if *node == self.node {
            let what = format!("{node} is this node, the source of {name}; only mirrors can be forgotten");
            return Err(Error::new(Class::Config, what));
        }
        let is_allowed = matches!(&self.role.allow, Allow::Nodes(nodes) if nodes.contains(node));
        let _one = lock(&self.keeping);
        let forgotten = self.shared().nodes.forget(node, name, boot_ms());
        let (was, forgotten) = forgotten.map_err(|e| match e.class {
            Class::Config if is_allowed => {
                let what = format!(
                    "{node} was never heard of, so there is nothing to forget; it is expected because it is in `allow` of \
                     {name}: take it out there, and `systemctl reload syncagent`"
                );
                Error::new(Class::Config, what)
            }
            _ => e,
        })?;
        if let Err(e) = self.write_nodes_now() {
            self.shared().nodes.remember(forgotten);
            return Err(e);
        }
        let still = if is_allowed {
            ". It is still in `allow`, so `wait` goes on to expect it: take it out there, and `systemctl reload syncagent`".to_owned()
        } else {
            String::new()
        };
        Ok(format!("{node} is forgotten in {name}: {was}{still}"))
    }
}
