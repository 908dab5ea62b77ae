//! How much is kept: what the trash leaves of the budget, and never more than half of what would be free without it.

use std::collections::HashSet;

use super::Keeper;
use crate::apply::Keep;
use crate::disk::Dir;
use crate::model::Digest;

/// What the trash of a source keeps: half of the budget at most, and all of it where nothing else is kept.
pub(in crate::agent::source) fn trash_keep(generations: u64, budget: u64) -> Keep {
    Keep { generations, bytes: if generations == 0 { budget } else { budget / 2 } }
}

/// What is left of the budget for published contents: half of it at least.
pub(super) fn beside(trash: u64, budget: u64) -> u64 {
    budget - trash.min(budget / 2)
}

/// Half of what is taken and what is free together.
fn half(taken: u64, free: u64) -> u64 {
    taken.saturating_add(free) / 2
}

/// Of contents and what they cost, the most wanted first, those that stay within the budget and half of what is free.
pub(super) fn within(order: &[(Digest, u64)], budget: u64, free: u64) -> HashSet<Digest> {
    let all = order.iter().map(|(_, charge)| charge).sum();
    let most = budget.min(half(all, free));
    let mut charged = 0u64;
    let fits = |(digest, charge): &(Digest, u64)| {
        let fits = charged + charge <= most;
        charged += if fits { *charge } else { 0 };
        fits.then_some(*digest)
    };
    order.iter().filter_map(fits).collect()
}

impl Keeper {
    /// Whether there is a name for one more: at most half of those that are free are taken, where they are counted.
    pub(super) fn has_names(&self, keep: &Dir) -> bool {
        let used = self.used.unwrap_or_default().files;
        rustix::fs::fstatvfs(keep).is_ok_and(|s| s.f_files == 0 || used < half(used, s.f_favail))
    }

    /// Whether a copy of so many bytes is within the bounds.
    pub(super) fn fits(&self, keep: &Dir, size: u64) -> bool {
        let used = self.used.unwrap_or_default().bytes;
        let free = rustix::fs::fstatvfs(keep).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
        used + size <= beside(self.trash, self.budget) && used + size <= half(used, free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trash_and_what_is_kept_share_one_budget_and_each_has_half() {
        for budget in [0, 1, 7, 1000, u64::MAX] {
            let most = trash_keep(1, budget).bytes;
            for trash in [0, 1, most / 2, most, budget] {
                let kept = beside(trash, budget);
                assert!(kept >= budget / 2, "{trash} of {budget}");
                assert!(trash > most || trash.checked_add(kept) == Some(budget), "{trash} of {budget}");
            }
        }
        assert_eq!(trash_keep(0, 1000).bytes, 1000);
    }

    #[test]
    fn what_is_kept_yields_when_the_disk_fills() {
        let named = |name: &str| Digest::of(name.as_bytes());
        let order = [(named("current"), 0), (named("new"), 60), (named("old"), 40), (named("small"), 10)];
        let kept = |budget, free| within(&order, budget, free).len();
        assert_eq!(kept(1000, 1000), 4);
        assert_eq!(kept(70, 1000), 3, "the budget");
        assert_eq!(kept(1000, 30), 3, "half of 110 taken and 30 free: 60 and 10");
        assert_eq!(kept(1000, 0), 3, "40 and 10, for 60 are too much");
        assert!(within(&order, 0, 0).contains(&named("current")), "it costs nothing");
    }
}
