//! What the source trees consist of: the same bytes, names, sizes and times on every machine, from a seed, so that figures of
//! two machines or two versions speak of the same work.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Name, under the root, of the one wide directory that `rename-10k` moves to and fro.
pub(crate) const WIDE: &str = "library-old";

/// How large the files are. All content is pseudo-random: nothing in it can be compressed or found twice.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Size {
    /// Log-normal, median 4 KiB, sigma 1 (mean 6.7 KiB), 64 B to 256 KiB: configuration and source files.
    Small,
    /// 0 to 64 bytes.
    Tiny,
    /// 0.25 to 1.75 MiB, mean 2 GiB / 2,000. Zip archives of one stored entry: an agent publishes no archive without its end.
    Archive,
    /// 48 to 80 KiB; the first 8 bytes are the version (see `Tree::write_version`).
    Marked,
}

const ARCHIVE_MEAN: u64 = (2 << 30) / 2_000;

/// What a tree consists of. Its `Debug` form is the stamp, so every change of it makes the tree anew.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) files: u64,
    pub(crate) dirs: u64,
    /// Files in the directory [`WIDE`], beside the others.
    pub(crate) wide: u64,
    pub(crate) size: Size,
    extension: &'static str,
}

impl Spec {
    pub(crate) fn t1(scale: f64) -> Self {
        Self::new("T1", scaled(100_000, scale), scaled(1_000, scale), Size::Small, "xml")
    }

    pub(crate) fn t2(scale: f64) -> Self {
        Self::new("T2", scaled(1_000_000, scale), scaled(10_000, scale), Size::Tiny, "properties")
    }

    pub(crate) fn t3(scale: f64) -> Self {
        Self::new("T3", scaled(2_000, scale), scaled(20, scale), Size::Archive, "car")
    }

    /// T1 and beside it one directory of 10,000 more files.
    pub(crate) fn renamed(scale: f64) -> Self {
        let t1 = Self::t1(scale);
        Self { name: "renamed", wide: scaled(10_000, scale), ..t1 }
    }

    /// What eight mirrors have.
    pub(crate) fn eight(scale: f64) -> Self {
        Self::new("eight", scaled(30_000, scale), scaled(300, scale), Size::Small, "xml")
    }

    /// What two hundred mirrors have, each of them.
    pub(crate) fn few() -> Self {
        Self::new("few", 100, 10, Size::Small, "xml")
    }

    pub(crate) fn mixed(scale: f64) -> Self {
        Self::new("mixed", scaled(2_000, scale), scaled(20, scale), Size::Marked, "car")
    }

    fn new(name: &'static str, files: u64, dirs: u64, size: Size, extension: &'static str) -> Self {
        Self { name, files, dirs, wide: 0, size, extension }
    }

    /// All files, those of the wide directory included; indices run from 0 to here, in path order up to `files`.
    pub(crate) fn total(&self) -> u64 {
        self.files + self.wide
    }

    /// Path of a file below the root. Ten directories to each top-level directory.
    pub(crate) fn path(&self, index: u64) -> PathBuf {
        let name = format!("f{index:07}.{}", self.extension);
        if index >= self.files {
            return Path::new(WIDE).join(name);
        }
        // The directory whose range, as in `files_of`, holds the index.
        let dir = ((index + 1) * self.dirs - 1) / self.files;
        dir_path(dir).join(name)
    }

    /// Bytes of a file.
    pub(crate) fn len(&self, index: u64) -> u64 {
        let mut rng = Rng::new(&[2, index]);
        match self.size {
            Size::Small => {
                // The sum of twelve uniform numbers less 6 is close to a normal one, and needs no tables.
                let normal = (0..12).map(|_| rng.unit()).sum::<f64>() - 6.0;
                ((4096.0 * normal.exp()) as u64).clamp(64, 256 << 10)
            }
            Size::Tiny => rng.below(65),
            Size::Archive => {
                // Pairs of one smaller and one larger file keep the total exact.
                let off = Rng::new(&[2, index / 2]).below(ARCHIVE_MEAN / 4 * 3);
                if index.is_multiple_of(2) { ARCHIVE_MEAN - off } else { ARCHIVE_MEAN + off }
            }
            Size::Marked => (48 << 10) + rng.below(32 << 10),
        }
    }

    /// Disk space of one copy, in blocks of 4 KiB.
    pub(crate) fn blocks_bytes(&self) -> u64 {
        (0..self.total()).map(|index| self.len(index).next_multiple_of(4096)).sum()
    }

    /// Mtime of a file: between 2020 and 2023, with nanoseconds; one hour later with every version.
    pub(crate) fn mtime(&self, index: u64, version: u64) -> SystemTime {
        let mut rng = Rng::new(&[3, index]);
        let old = Duration::new(1_600_000_000 + rng.below(100_000_000), rng.below(1_000_000_000) as u32);
        SystemTime::UNIX_EPOCH + old + Duration::from_secs(3600 * version)
    }

    pub(crate) fn files_of(&self, dir: u64) -> Range<u64> {
        dir * self.files / self.dirs..(dir + 1) * self.files / self.dirs
    }
}

/// Makes an archive of one stored entry of the buffer by putting the three headers into it (APPNOTE.TXT 6.3.10, 4.3.7, 4.3.12,
/// 4.3.16). Its checksum is wrong; nobody here unpacks it.
pub(crate) fn archive(buffer: &mut [u8]) {
    const ENDS: usize = 31 + 47 + 22;
    let Some(body) = buffer.len().checked_sub(ENDS) else { return };
    let size = (body as u32).to_le_bytes();
    let (mut local, mut central, mut end) = ([0; 31], [0; 47], [0; 22]);
    local[..4].copy_from_slice(b"PK\x03\x04");
    central[..4].copy_from_slice(b"PK\x01\x02");
    end[..4].copy_from_slice(b"PK\x05\x06");
    for (header, at) in [(&mut local[..], 18), (&mut central[..], 20)] {
        header[at..at + 4].copy_from_slice(&size);
        header[at + 4..at + 8].copy_from_slice(&size);
        header[at + 8] = 1;
    }
    (local[30], central[46]) = (b'x', b'x');
    (end[8], end[10], end[12]) = (1, 1, 47);
    end[16..20].copy_from_slice(&(31 + body as u32).to_le_bytes());
    buffer[..31].copy_from_slice(&local);
    buffer[31 + body..31 + body + 47].copy_from_slice(&central);
    buffer[31 + body + 47..].copy_from_slice(&end);
}

fn scaled(count: u64, scale: f64) -> u64 {
    ((count as f64 * scale).round() as u64).max(if count > 1_000 { 20 } else { 2 })
}

/// Path of a directory below the root.
pub(crate) fn dir_path(dir: u64) -> PathBuf {
    PathBuf::from(format!("group{:04}/dir{}", dir / 10, dir % 10))
}

/// SplitMix64 (Steele, Lea, Flood 2014): a few instructions per 8 bytes, and any seed will do.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(keys: &[u64]) -> Self {
        let seed = keys.iter().fold(0x5EED_0001, |seed, &key| Self(seed ^ key).next());
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}
