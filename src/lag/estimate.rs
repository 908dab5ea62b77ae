//! What a mirror knows of its lag. The source says *ages*, never times; the mirror adds what passed on its
//! own clock, so neither wall clocks nor a common one are needed.
//!
//! The bound: an age is as of the moment when the answer was sent, which lies between asking and hearing. It is
//! counted from **asking**, so the estimate is never too low, and too high by no more than the round trip. The
//! clocks' rate difference comes on top, for the time since the last answer (and what it was held back) only, because
//! every answer replaces what an earlier one said.
//!
//! The race: the mirror applies a generation while an answer that does not know of it is under way, or applies one
//! when others that it never heard of may lie between that one and the next that it knows. Those were published
//! after the last answer that did not have them, and that is when they are counted from until the next answer.

use std::collections::BTreeMap;

use crate::model::GenId;

/// Generations remembered at most; what lies between them is then counted as never heard of.
const MOST: usize = 1024;

/// An age at a moment of this node's clock.
#[derive(Clone, Copy, Debug)]
struct Age {
    ms: u64,
    at: u64,
}

impl Age {
    fn now(self, now_ms: u64) -> u64 {
        self.ms.saturating_add(now_ms.saturating_sub(self.at))
    }
}

/// A published generation.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// At most this old.
    age: Age,
    /// Whatever was published after it is at most this old.
    later: Age,
}

/// A mirror's estimate for one tree. A mirror that forgot what it has applied begins with a new one.
#[derive(Debug, Default)]
pub struct Lag {
    head: Option<GenId>,
    heard_at: Option<u64>,
    applied: Option<GenId>,
    /// Published, not applied, and known.
    waiting: BTreeMap<GenId, Seen>,
    /// Generations that nobody told of may lie before the first of `waiting`; they are at most this old.
    unheard: Option<Age>,
}

impl Lag {
    /// The source answered at `now_ms` a question that was sent at `asked_ms`. An answer that the source held back (a
    /// long poll) counts as asked that much later, or its waiting would be taken for lag.
    ///
    /// `oldest` is the oldest published generation that was not applied when the question was asked, with its age in
    /// milliseconds; `None` when all were. `head` is the newest one with its age. Answers come in the order of their
    /// questions.
    pub fn heard(&mut self, asked_ms: u64, now_ms: u64, oldest: Option<(GenId, u64)>, head: (GenId, u64)) {
        let at = asked_ms.min(now_ms);
        self.head = Some(head.0);
        self.heard_at = Some(now_ms);
        let Some(oldest) = oldest else {
            self.waiting.clear();
            self.unheard = None;
            return;
        };
        let age = Age { ms: oldest.1, at };
        if self.applied < Some(oldest.0) {
            self.unheard = None;
            self.waiting.retain(|id, _| *id >= oldest.0 && *id <= head.0);
            self.see(oldest.0, age, age);
        } else {
            // applied meanwhile; what follows it is younger than it is
            self.unheard = self.unheard.or(Some(age));
            self.waiting.retain(|id, _| *id <= head.0);
        }
        if self.applied < Some(head.0) {
            self.see(head.0, Age { ms: head.1, at }, Age { ms: 0, at });
        }
    }

    fn see(&mut self, id: GenId, age: Age, later: Age) {
        // what followed it was perhaps known better, from when it was the newest
        let before = self.waiting.get(&id).map_or(later.ms, |s| s.later.now(later.at));
        let later = Age { ms: later.ms.min(before), at: later.at };
        self.waiting.insert(id, Seen { age, later });
        if self.waiting.len() > MOST
            && let Some(&second) = self.waiting.keys().nth(1)
        {
            self.waiting.remove(&second);
        }
    }

    /// Generation `id` became completely applied at `now_ms`. Its convergence time, in milliseconds from its
    /// publication until now, when its age is known and it was not applied before.
    pub fn applied(&mut self, id: GenId, now_ms: u64) -> Option<u64> {
        if self.applied >= Some(id) {
            return None;
        }
        self.applied = Some(id);
        let took = self.waiting.get(&id).map(|seen| seen.age.now(now_ms));
        while let Some(first) = self.waiting.first_entry()
            && *first.key() <= id
        {
            self.unheard = Some(first.remove().later);
        }
        took
    }

    /// Age in milliseconds of the oldest generation that is known to be published and not applied, 0 when there
    /// is none; `None` when the source was never heard.
    pub fn lag_ms(&self, now_ms: u64) -> Option<u64> {
        self.heard_at?;
        let Some((&first, seen)) = self.waiting.first_key_value() else { return Some(0) };
        let next = self
            .applied
            .is_some_and(|a| a.epoch == first.epoch && a.number.checked_add(1) == Some(first.number));
        let age = self.unheard.filter(|_| !next).unwrap_or(seen.age);
        Some(age.now(now_ms))
    }

    /// The source answered something else at `now_ms`.
    pub fn contacted(&mut self, now_ms: u64) {
        self.heard_at = self.heard_at.map(|at| at.max(now_ms));
    }

    /// Milliseconds since the source was heard; `None` when it never was.
    pub fn contact_age_ms(&self, now_ms: u64) -> Option<u64> {
        self.heard_at.map(|at| now_ms.saturating_sub(at))
    }

    /// The newest generation of which the source told last.
    pub fn head(&self) -> Option<GenId> {
        self.head
    }
}

#[cfg(test)]
mod tests;
