//! A pair of numbers that only grows and survives a power cut: two records in one small file, written in
//! turn and in place, so that a write costs one `fdatasync` and a torn one leaves the other record.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::Dir;
use crate::error::{Context as _, Result};
use crate::model::GenId;

/// 2 × u64 little-endian, 16 bytes of BLAKE3 over them.
const RECORD: usize = 32;
/// Far enough apart that no disk writes both in one sector.
const DISTANCE: u64 = 4096;

/// The highest generation ever used.
#[derive(Debug)]
pub struct HighWater {
    file: File,
    newest: GenId,
    next: u64,
}

impl HighWater {
    /// Opens or creates the file `name` in `dir`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(dir: &Dir, name: &str) -> Result<Self> {
        let cannot = || format!("open the file `{name}` with the highest generation");
        let file = File::from(dir.open_own_file(name).context(cannot)?);
        let read = |at: u64| -> Option<GenId> {
            let mut record = [0; RECORD];
            file.read_exact_at(&mut record, at * DISTANCE).ok()?;
            decode(&record)
        };
        let (a, b) = (read(0).unwrap_or_default(), read(1).unwrap_or_default());
        Ok(Self { file, newest: a.max(b), next: u64::from(a >= b) })
    }

    /// The highest one noted; 0.0 when there is none.
    pub fn get(&self) -> GenId {
        self.newest
    }

    /// Notes a higher one, durably when this returns. A lower one changes nothing.
    ///
    /// # Errors
    /// The operating system's; the one before still counts.
    pub fn raise(&mut self, to: GenId) -> Result<()> {
        if to <= self.newest {
            return Ok(());
        }
        let cannot = || format!("note generation {to} as the highest one");
        self.file.write_all_at(&encode(to), self.next * DISTANCE).context(cannot)?;
        self.file.sync_data().context(cannot)?;
        self.newest = to;
        self.next = 1 - self.next;
        Ok(())
    }
}

fn encode(id: GenId) -> [u8; RECORD] {
    let mut out = [0; RECORD];
    out[..8].copy_from_slice(&id.epoch.to_le_bytes());
    out[8..16].copy_from_slice(&id.number.to_le_bytes());
    let sum = blake3::hash(&out[..16]);
    out[16..].copy_from_slice(&sum.as_bytes()[..16]);
    out
}

fn decode(record: &[u8; RECORD]) -> Option<GenId> {
    let number = |at: usize| record[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    let id = GenId { epoch: number(0)?, number: number(8)? };
    (encode(id) == *record).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(epoch: u64, number: u64) -> GenId {
        GenId { epoch, number }
    }

    #[test]
    fn the_highest_one_survives_and_a_torn_write_leaves_the_one_before() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(tmp.path()).unwrap();
        let mut high = HighWater::open(&dir, "high").unwrap();
        assert_eq!(high.get(), id(0, 0));
        for n in 1..=5 {
            high.raise(id(1, n)).unwrap();
        }
        high.raise(id(1, 3)).unwrap();
        assert_eq!(HighWater::open(&dir, "high").unwrap().get(), id(1, 5));
        // 1.5 was the fifth write: in record 1, where the first was
        std::fs::OpenOptions::new()
            .write(true)
            .open(tmp.path().join("high"))
            .unwrap()
            .write_all_at(b"torn", DISTANCE + 4)
            .unwrap();
        let mut high = HighWater::open(&dir, "high").unwrap();
        assert_eq!(high.get(), id(1, 4));
        high.raise(id(2, 1)).unwrap();
        assert_eq!(HighWater::open(&dir, "high").unwrap().get(), id(2, 1));
    }
}
