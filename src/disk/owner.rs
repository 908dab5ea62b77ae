//! Owner and group names: ids differ between hosts, names are what people mean. Look-ups may ask a
//! directory server, so every answer is kept for the run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::error::{Class, Error, Result, lock};
use crate::model::Owner;

/// What becomes of owners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnerPolicy {
    /// As in the source, by name.
    Preserve,
    /// Neither compared nor set.
    Ignore,
    /// All the same; an empty user or group is as in the source.
    Fixed(Owner),
}

impl OwnerPolicy {
    /// From a setting called `name`: `preserve` (the default as root), `ignore` (the default otherwise), or
    /// `USER[:GROUP]`, checked against the users and groups of this host.
    ///
    /// # Errors
    /// [`Class::Config`]: there is no such user or group.
    pub fn parse(name: &str, setting: Option<&str>) -> Result<Self> {
        let unknown = |what: &str, id: &str| {
            let what = format!(
                "{name}: there is no {what} `{id}` on this host (a numeric id is written #1234 or 1234)"
            );
            Err(Error::new(Class::Config, what))
        };
        let numeric = |id: &str| if id.parse::<u32>().is_ok() { format!("#{id}") } else { id.to_owned() };
        match setting {
            None if rustix::process::geteuid().is_root() => Ok(Self::Preserve),
            None | Some("ignore") => Ok(Self::Ignore),
            Some("preserve") => Ok(Self::Preserve),
            Some(spec) => {
                let (user, group) = spec.split_once(':').unwrap_or((spec, ""));
                if user.is_empty() && group.is_empty() {
                    let what = format!("{name}: give `preserve`, `ignore` or USER[:GROUP]");
                    return Err(Error::new(Class::Config, what));
                }
                let names = Owners::default();
                let mut owner = Owner::default();
                if !user.is_empty() {
                    let Some(uid) = user_id(&numeric(user)) else {
                        return unknown("user", user);
                    };
                    owner.user = names.names(uid, 0).user;
                }
                if !group.is_empty() {
                    let Some(gid) = group_id(&numeric(group)) else {
                        return unknown("group", group);
                    };
                    owner.group = names.names(0, gid).group;
                }
                Ok(Self::Fixed(owner))
            }
        }
    }
}

/// A user and a group id, as far as the host knows the names.
type Ids = (Option<u32>, Option<u32>);

/// Names of ids and ids of names, kept for the run.
#[derive(Debug, Default)]
pub struct Owners {
    names: Mutex<HashMap<(u32, u32), Owner>>,
    ids: Mutex<HashMap<Owner, Ids>>,
}

impl Owners {
    /// The names of a user and a group id; `#id` where there is none.
    pub fn names(&self, uid: u32, gid: u32) -> Owner {
        let mut names = lock(&self.names);
        let lookup = || {
            let text = |name: Option<&std::ffi::OsStr>, id: u32| -> Arc<str> {
                name.and_then(|n| n.to_str()).map_or_else(|| format!("#{id}").into(), Arc::from)
            };
            let user = uzers::get_user_by_uid(uid);
            let group = uzers::get_group_by_gid(gid);
            Owner {
                user: text(user.as_ref().map(|u| u.name()), uid),
                group: text(group.as_ref().map(|g| g.name()), gid),
            }
        };
        names.entry((uid, gid)).or_insert_with(lookup).clone()
    }

    /// The ids to set for an owner; `None` where it says nothing or this host does not know the name.
    pub fn ids(&self, owner: &Owner) -> (Option<u32>, Option<u32>) {
        if owner.user.is_empty() && owner.group.is_empty() {
            return (None, None);
        }
        let mut ids = lock(&self.ids);
        *ids.entry(owner.clone()).or_insert_with(|| (user_id(&owner.user), group_id(&owner.group)))
    }
}

/// A user's id by name or `#id`.
pub fn user_id(name: &str) -> Option<u32> {
    match name.strip_prefix('#') {
        Some(id) => id.parse().ok(),
        None => (!name.is_empty()).then(|| uzers::get_user_by_name(name)).flatten().map(|u| u.uid()),
    }
}

/// A group's id by name or `#id`.
pub fn group_id(name: &str) -> Option<u32> {
    match name.strip_prefix('#') {
        Some(id) => id.parse().ok(),
        None => (!name.is_empty()).then(|| uzers::get_group_by_name(name)).flatten().map(|g| g.gid()),
    }
}
