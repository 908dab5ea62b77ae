//! The directories of a generation, fetched and described as this node does.

use std::sync::Arc;

use super::super::engine::{Engine, Session};
use super::super::remote::check;
use crate::disk::OwnerPolicy;
use crate::error::{Class, Error, Result};
use crate::model::{Digest, Entry, Object, Owner, Root, RootHeader, root_content};

/// What the source does not keep any more.
pub(super) const GONE: &str = "the source does not have any more the directory";

impl Engine {
    /// Fetches the directories that are missing, and describes them as this node does.
    pub(super) fn fetch(&self, s: &Session, root: &Root) -> Result<Root> {
        let tree = &self.tree;
        let setid = tree.config.setid;
        let peers =
            |e: Error| if e.class == Class::Integrity { Error { class: Class::Permanent, ..e } } else { e };
        s.store.take_in(&root.object, &mut |want| {
            let mut out: Vec<Vec<u8>> = Vec::with_capacity(want.len());
            tree.client
                .objects(want, &mut |digest, body| {
                    let gone = || Error::new(Class::Transient, format!("{GONE} {digest}"));
                    let body = body.ok_or_else(gone)?;
                    Object::decode(&body).and_then(|object| check(&object, setid)).map_err(peers)?;
                    out.push(body);
                    Ok(())
                })
                .map_err(peers)?;
            Ok(out)
        })?;
        let described = self.described(s, root)?;
        // what is applied is proven against this in the end
        let content = root_content(root.header.mode, &s.store.object(&described.object)?.content());
        Ok(Root { content, ..described })
    }

    /// A root whose directories are there, as this node describes it.
    pub(super) fn described(&self, s: &Session, root: &Root) -> Result<Root> {
        let policy = &self.options.owner;
        if *policy == OwnerPolicy::Preserve {
            return Ok(root.clone());
        }
        let name = Digest::of(format!("{policy:?}").as_bytes());
        let change = |entry: &mut Entry| entry.owner = owner_by(policy, &entry.owner);
        let object = s.store.translate(&root.object, &name, &change)?;
        let header = RootHeader { mode: root.header.mode, owner: owner_by(policy, &root.header.owner) };
        Ok(Root { object, content: root.content, header })
    }
}

/// An owner as this node's policy describes it.
fn owner_by(policy: &OwnerPolicy, own: &Owner) -> Owner {
    match policy {
        OwnerPolicy::Preserve => own.clone(),
        OwnerPolicy::Ignore => Owner::default(),
        OwnerPolicy::Fixed(fixed) => {
            let or = |fixed: &Arc<str>, own: &Arc<str>| {
                if fixed.is_empty() { own.clone() } else { fixed.clone() }
            };
            Owner { user: or(&fixed.user, &own.user), group: or(&fixed.group, &own.group) }
        }
    }
}
