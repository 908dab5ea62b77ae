//! A plan's moves and counts, in one walk where there are no moves: what the guard judges and a run needs first.

use super::{Diff, Moves, Side, Tally, find_moves};
use crate::error::{PathError, Result};

/// A plan walked and counted.
#[derive(Debug)]
pub struct Counted {
    /// Its moves.
    pub moves: Moves,
    /// Its counts.
    pub tally: Tally,
    /// Paths that cannot be made right, and why.
    pub conflicts: Vec<PathError>,
}

/// Finds a plan's moves and counts its steps; without moves in one walk. `takeover`: see [`Tally::new`].
///
/// # Errors
/// A directory description cannot be read.
pub fn count<O: Side, N: Side>(diff: &Diff<'_, O, N>, takeover: bool) -> Result<Counted> {
    let mut tally = Tally::new(takeover);
    let found = find_moves(diff, &mut |step| tally.add(step))?;
    let moves = found.moves;
    let conflicts = match found.walked {
        Some(conflicts) => conflicts,
        None => {
            tally = Tally::new(takeover);
            diff.walk(&moves, &mut |step| {
                tally.add(&step);
                Ok(())
            })?
        }
    };
    Ok(Counted { moves, tally, conflicts })
}
