//! Counts what a plan would lose and says no where that is more than was allowed. Pure: the decision
//! is a value; printing and exit codes are others' work.

use std::fmt;
use std::str::FromStr;

use super::{Op, Step};
use crate::model::{Kind, counted};

/// Below this many deletions a percentage does not bite: 3 of 10 files are not a mass deletion.
const FLOOR: u64 = 10;

/// How much one run may delete.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxDelete {
    /// So many files and links.
    Count(u64),
    /// So many percent of the files and links that are there. Does not bite below 10 deletions.
    Percent(f64),
}

impl Default for MaxDelete {
    fn default() -> Self {
        Self::Percent(25.0)
    }
}

impl FromStr for MaxDelete {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("`{s}` is neither a number of files (100) nor a percentage (25%)");
        match s.strip_suffix('%') {
            Some(p) => match p.trim().parse::<f64>() {
                Ok(p) if (0.0..=100.0).contains(&p) => Ok(Self::Percent(p)),
                _ => Err(bad()),
            },
            None => s.parse().map(Self::Count).map_err(|_| bad()),
        }
    }
}

impl fmt::Display for MaxDelete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(n) => write!(f, "{n}"),
            Self::Percent(p) => write!(f, "{p}%"),
        }
    }
}

/// Names exactly one set of losses. Printed as 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanId(pub [u8; 8]);

impl fmt::Display for PlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl FromStr for PlanId {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || format!("`{s}` is not a plan id: 16 hex digits, as a refused run prints them");
        let n = u64::from_str_radix(s, 16).map_err(|_| bad())?;
        if s.len() == 16 && s.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(n.to_be_bytes()))
        } else {
            Err(bad())
        }
    }
}

/// What a plan does, counted; fed by [`Tally::add`] in the plan's order.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Entries that come into being.
    pub created: u64,
    /// Entries whose content is replaced.
    pub updated: u64,
    /// Entries of which only attributes change.
    pub attrs: u64,
    /// Entries that are moved.
    pub moved: u64,
    /// Entries that go, of all kinds.
    pub deleted: u64,
    /// Files and links that go, or become empty.
    pub lost: u64,
    /// Files and links whose content is replaced by other content.
    pub replaced: u64,
    /// Files whose content must be copied.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files and links more than before.
    pub net: i64,
    takeover: bool,
    hasher: blake3::Hasher,
}

impl Tally {
    /// An empty tally. `takeover`: the directory was never managed, so replaced content counts among
    /// the losses that the plan id names.
    pub fn new(takeover: bool) -> Self {
        Self {
            created: 0,
            updated: 0,
            attrs: 0,
            moved: 0,
            deleted: 0,
            lost: 0,
            replaced: 0,
            files: 0,
            bytes: 0,
            net: 0,
            takeover,
            hasher: blake3::Hasher::new_derive_key("syncagent plan id 1"),
        }
    }

    /// Counts one step.
    pub fn add<H>(&mut self, step: &Step<'_, H>) {
        let is_dir = step.kind() == Kind::Dir;
        match step.op {
            Op::Create => self.created += 1,
            Op::Update => self.updated += 1,
            Op::Attrs => self.attrs += 1,
            Op::Move => self.moved += 1,
            Op::Delete => self.deleted += 1,
        }
        match step.op {
            Op::Create if !is_dir => self.net += 1,
            Op::Delete if !is_dir => self.net -= 1,
            _ => {}
        }
        if matches!(step.op, Op::Create | Op::Update) && step.kind() == Kind::File {
            self.files += 1;
            self.bytes += step.subject().size();
        }
        if step.op == Op::Delete {
            self.lost += u64::from(!is_dir);
            self.name(b"delete", step);
        }
        if step.op == Op::Update {
            let emptied = step.kind() == Kind::File
                && step.subject().size() == 0
                && step.old.is_some_and(|o| o.entry.size() > 0 || !o.entry.is_readable());
            self.lost += u64::from(emptied);
            self.replaced += 1;
            if emptied {
                self.name(b"empty", step);
            } else if self.takeover {
                self.name(b"replace", step);
            }
        }
    }

    fn name<H>(&mut self, what: &[u8], step: &Step<'_, H>) {
        self.hasher.update(what).update(b" ").update(step.path.as_bytes()).update(b"\0");
    }

    /// Names the set of losses counted so far.
    pub fn plan_id(&self) -> PlanId {
        let mut id = [0; 8];
        self.hasher.finalize_xof().fill(&mut id);
        PlanId(id)
    }
}

/// Why a plan is refused; [`PlanId`] can let it through.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The source has nothing in it, the destination has.
    EmptySource {
        /// Files and links in the destination.
        there: u64,
    },
    /// More deletions than allowed.
    TooManyDeletions {
        /// Files and links that would go or become empty.
        lost: u64,
        /// Of so many.
        there: u64,
        /// The limit.
        limit: MaxDelete,
    },
    /// The destination was never managed, and something in it would be lost.
    Takeover {
        /// Files and links that would go.
        lost: u64,
        /// Files and links that would be replaced.
        replaced: u64,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptySource { there } => {
                write!(
                    f,
                    "the source is empty, and the destination has {}: is the source really there?",
                    counted(*there, "file")
                )
            }
            Self::TooManyDeletions { lost, there, limit } => {
                write!(f, "{lost} of {there} files would be deleted, more than --max-delete {limit} allows")
            }
            Self::Takeover { lost, replaced } => write!(
                f,
                "the destination was never managed by syncagent (or holds excluded content that nobody handed over), is not empty, and would lose {} by deletion \
                 and {replaced} by replacement",
                counted(*lost, "file")
            ),
        }
    }
}

/// What the guard knows beside the tally.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Files and links in the destination.
    pub there: u64,
    /// The source has no entries.
    pub source_is_empty: bool,
    /// The destination is not empty and was never managed, and nobody said `--adopt`.
    pub unmanaged: bool,
}

/// The first reason to refuse, most serious first.
pub fn judge(tally: &Tally, facts: Facts, limit: MaxDelete) -> Option<Refusal> {
    let (lost, replaced, there) = (tally.lost, tally.replaced, facts.there);
    if facts.source_is_empty && tally.deleted > 0 {
        return Some(Refusal::EmptySource { there });
    }
    let too_many = match limit {
        MaxDelete::Count(n) => lost > n,
        MaxDelete::Percent(p) => (lost >= FLOOR || p == 0.0) && lost as f64 * 100.0 > there as f64 * p,
    };
    if too_many {
        return Some(Refusal::TooManyDeletions { lost, there, limit });
    }
    let losses = lost + replaced + tally.deleted;
    (facts.unmanaged && losses > 0).then_some(Refusal::Takeover { lost, replaced })
}
