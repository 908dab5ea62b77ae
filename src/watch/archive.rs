//! Whether a zip archive (.car, .war, .jar, ...) has its end: a deployer that picks up half of one fails, and a
//! copy that stalled has no writer left to be seen. The central directory is the last thing written.
//!
//! After APPNOTE.TXT 6.3.10, sections 4.3.12 to 4.3.16 and 4.5.3. Bounded memory; each step of the walk consumes
//! bytes of the file, so a hostile one ends too.

use std::io;

const EXTENSIONS: [&[u8]; 6] = [b".car", b".war", b".jar", b".zip", b".ear", b".aar"];

const END_LEN: usize = 22;
const LOCATOR_LEN: u64 = 20;
const END64_LEN: usize = 56;
const HEADER_LEN: usize = 46;
const LOCAL_LEN: u64 = 30;
/// A value that stands in the ZIP64 field.
const ELSEWHERE: u32 = u32::MAX;
const PIECE: usize = 64 * 1024;

/// Whether the name says that it is a zip archive. Not `.rar`: those are RAR archives too.
pub(super) fn is_archive(name: &[u8]) -> bool {
    EXTENSIONS
        .iter()
        .any(|ext| name.len() > ext.len() && name[name.len() - ext.len()..].eq_ignore_ascii_case(ext))
}

/// Checks that the central directory is there and whole. `read_at` reads from an offset, as `pread`; `size` in bytes.
///
/// # Errors
/// Why it is not.
pub(super) fn check(read_at: impl Fn(&mut [u8], u64) -> io::Result<usize>, size: u64) -> Result<(), String> {
    let file = File { read_at, size };
    let dir = file.directory()?;
    let start = dir.end.checked_sub(dir.len).ok_or("its directory is larger than what precedes it")?;
    // what was put in front (the script of an executable jar) shifts all offsets
    let shift = start.checked_sub(dir.offset).ok_or("its directory is not where its end says")?;
    if shift > 0 && size >= 4 && file.read::<4>(0)? == *b"PK\x03\x04" {
        return Err("its end is that of an archive inside".into());
    }
    let count = file.walk(start, dir.end, shift)?;
    if count != dir.count && !(dir.short && count & 0xffff == dir.count) {
        return Err(format!("its directory has {count} entries and not {}", dir.count));
    }
    Ok(())
}

struct File<R> {
    read_at: R,
    size: u64,
}

/// What the end of an archive says of its central directory.
struct Directory {
    /// Where the directory ends: at the end records.
    end: u64,
    len: u64,
    /// Where it starts, without what was put in front.
    offset: u64,
    count: u64,
    /// `count` is kept in 16 bits, and some writers let it wrap.
    short: bool,
}

fn u16_at(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 2).map_or(0, |b| u64::from(u16::from_le_bytes([b[0], b[1]])))
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    b.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    b.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

impl<R: Fn(&mut [u8], u64) -> io::Result<usize>> File<R> {
    fn fill(&self, buf: &mut [u8], at: u64) -> Result<(), String> {
        let mut n = 0;
        while n < buf.len() {
            match (self.read_at)(&mut buf[n..], at + n as u64) {
                Ok(0) => return Err("it became shorter".into()),
                Ok(m) => n += m,
                Err(e) => return Err(format!("it cannot be read: {e}")),
            }
        }
        Ok(())
    }

    fn read<const N: usize>(&self, at: u64) -> Result<[u8; N], String> {
        let mut buf = [0; N];
        self.fill(&mut buf, at)?;
        Ok(buf)
    }

    fn directory(&self) -> Result<Directory, String> {
        if self.size == 0 {
            return Err("it is empty".into());
        }
        let len = usize::try_from(self.size).unwrap_or(usize::MAX).min(END_LEN + 0xffff);
        let mut tail = vec![0; len];
        self.fill(&mut tail, self.size - len as u64)?;
        let ends_here = |&at: &usize| {
            let end = &tail[at..];
            end.starts_with(b"PK\x05\x06") && u16_at(end, 20) == (end.len() - END_LEN) as u64
        };
        let at = (0..=len.saturating_sub(END_LEN)).rev().filter(|_| len >= END_LEN).find(ends_here);
        let at = at.ok_or("it has no end record")?;
        let end = self.size - (len - at) as u64;
        if let Some(dir) = self.directory64(end)? {
            return Ok(dir);
        }
        let (len, offset) = (u32_at(&tail, at + 12).into(), u32_at(&tail, at + 16).into());
        Ok(Directory { end, len, offset, count: u16_at(&tail, at + 10), short: true })
    }

    /// The ZIP64 end record, when there is one before the end record at `end`.
    fn directory64(&self, end: u64) -> Result<Option<Directory>, String> {
        let Some(at) = end.checked_sub(LOCATOR_LEN) else { return Ok(None) };
        let locator: [u8; LOCATOR_LEN as usize] = self.read(at)?;
        if !locator.starts_with(b"PK\x06\x07") {
            return Ok(None);
        }
        // where it says, or, when something was put in front, just before
        for end in [Some(u64_at(&locator, 8)), at.checked_sub(END64_LEN as u64)].into_iter().flatten() {
            if end.checked_add(END64_LEN as u64).is_none_or(|after| after > at) {
                continue;
            }
            let b: [u8; END64_LEN] = self.read(end)?;
            let after = u64_at(&b, 4).checked_add(end).and_then(|n| n.checked_add(12));
            if b.starts_with(b"PK\x06\x06") && after == Some(at) {
                let (len, offset, count) = (u64_at(&b, 40), u64_at(&b, 48), u64_at(&b, 32));
                return Ok(Some(Directory { end, len, offset, count, short: false }));
            }
        }
        Err("its ZIP64 end record is missing".into())
    }

    /// Walks the headers from `start` to exactly `end`; how many there are.
    fn walk(&self, start: u64, end: u64, shift: u64) -> Result<u64, String> {
        let (mut at, mut count) = (start, 0);
        let (mut buf, mut used) = (Vec::new(), 0);
        while at < end {
            self.more(&mut buf, &mut used, HEADER_LEN, at, end)?;
            let header = &buf[used..];
            if !header.starts_with(b"PK\x01\x02") {
                return Err(format!("its directory is broken at byte {at}"));
            }
            let [name, extra, comment] = [28, 30, 32].map(|i| u16_at(header, i) as usize);
            let len = HEADER_LEN + name + extra + comment;
            self.more(&mut buf, &mut used, len, at, end)?;
            let header = &buf[used..used + len];
            let extra = &header[HEADER_LEN + name..HEADER_LEN + name + extra];
            let (offset, size) = place_of(header, extra);
            let after = offset.checked_add(shift + LOCAL_LEN).and_then(|n| n.checked_add(size));
            if after.is_none_or(|after| after > start) {
                return Err("an entry lies outside of it".into());
            }
            at += len as u64;
            used += len;
            count += 1;
        }
        Ok(count)
    }

    /// Makes `buf[used..]` hold the `want` bytes at `at`, reading in pieces but not beyond `end`.
    fn more(
        &self,
        buf: &mut Vec<u8>,
        used: &mut usize,
        want: usize,
        at: u64,
        end: u64,
    ) -> Result<(), String> {
        let have = buf.len() - *used;
        if have >= want {
            return Ok(());
        }
        if end - at < want as u64 {
            return Err("its directory is cut off".into());
        }
        buf.drain(..*used);
        *used = 0;
        let left = usize::try_from(end - at).unwrap_or(usize::MAX) - have;
        buf.resize(have + left.min((want - have).max(PIECE)), 0);
        self.fill(&mut buf[have..], at + have as u64)
    }
}

/// Where an entry's local header is and how many bytes its content has, by its central header.
fn place_of(header: &[u8], mut extra: &[u8]) -> (u64, u64) {
    let (packed, unpacked, offset) = (u32_at(header, 20), u32_at(header, 24), u32_at(header, 42));
    while extra.len() >= 4 {
        let (id, len) = (u16_at(extra, 0), u16_at(extra, 2) as usize);
        let field = &extra[4..extra.len().min(4 + len)];
        if id == 1 {
            // those that stand here, in this order
            let mut at = if unpacked == ELSEWHERE { 8 } else { 0 };
            let mut value = |short: u32| {
                if short != ELSEWHERE || field.len() < at + 8 {
                    return u64::from(short);
                }
                at += 8;
                u64_at(field, at - 8)
            };
            let packed = value(packed);
            return (value(offset), packed);
        }
        extra = &extra[extra.len().min(4 + len)..];
    }
    (offset.into(), packed.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;
    use std::process::Command;

    fn check_bytes(b: &[u8]) -> Result<(), String> {
        let read = |buf: &mut [u8], at: u64| {
            let rest = b.get(usize::try_from(at).unwrap()..).unwrap_or_default();
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        };
        check(read, b.len() as u64)
    }

    fn fixtures() -> Vec<Vec<u8>> {
        let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wso2-ei/server");
        let files = walkdir::WalkDir::new(server)
            .into_iter()
            .map(|e| e.unwrap())
            .filter(|e| e.file_type().is_file() && is_archive(e.file_name().as_encoded_bytes()));
        files.map(|e| std::fs::read(e.path()).unwrap()).collect()
    }

    /// An archive made by `zip` in `dir` from its files `names`.
    fn zip(dir: &Path, flags: &[&str], names: &[&str]) -> Vec<u8> {
        let out = dir.join("out.zip");
        let _ = std::fs::remove_file(&out);
        let made = Command::new("zip").arg("-q").args(flags).arg(&out).args(names).current_dir(dir).status();
        assert!(made.unwrap().success());
        std::fs::read(out).unwrap()
    }

    /// Plain, stored with an archive inside, ZIP64, commented, empty.
    fn made() -> Vec<Vec<u8>> {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path();
        std::fs::write(dir.join("a.txt"), "hello ".repeat(40)).unwrap();
        std::fs::write(dir.join("b.jar"), zip(dir, &[], &["a.txt"])).unwrap();
        let plain = zip(dir, &[], &["a.txt", "b.jar"]);
        let mut commented = plain.clone();
        let n = commented.len();
        commented[n - 2..].copy_from_slice(&300u16.to_le_bytes());
        commented.extend([b'c'; 300]);
        let empty = [&b"PK\x05\x06"[..], &[0; 18]].concat();
        vec![
            plain,
            zip(dir, &["-0"], &["b.jar", "a.txt"]),
            zip(dir, &["-fz"], &["a.txt", "b.jar"]),
            commented,
            empty,
        ]
    }

    #[test]
    fn whole_archives_are_finished() {
        let fixtures = fixtures();
        assert!(fixtures.len() >= 5);
        for b in fixtures.into_iter().chain(made()) {
            assert_eq!(check_bytes(&b), Ok(()));
        }
    }

    #[test]
    fn every_proper_prefix_is_unfinished() {
        for b in fixtures().into_iter().chain(made()) {
            for n in 0..b.len() {
                assert!(check_bytes(&b[..n]).is_err(), "{n} of {}", b.len());
            }
        }
    }

    #[test]
    fn a_script_in_front_is_allowed_also_of_zip64() {
        for b in made() {
            let b = [b"#!/bin/sh\nexec java -jar $0\n", &b[..]].concat();
            assert_eq!(check_bytes(&b), Ok(()));
        }
    }

    #[test]
    fn something_behind_the_end_is_not_allowed() {
        for b in made() {
            assert!(check_bytes(&[&b[..], b"\0"].concat()).is_err());
        }
    }

    #[test]
    fn more_entries_than_16_bits_hold_and_a_directory_of_many_pieces() {
        let header = |n: u32| {
            let name = format!("{n:08}");
            let mut h = [&b"PK\x01\x02"[..], &[0; 42], name.as_bytes()].concat();
            h[28] = 8;
            h
        };
        let local = [0; 38];
        let dir: Vec<u8> = (0..70_000).flat_map(header).collect();
        let mut end = [&b"PK\x05\x06"[..], &[0; 18]].concat();
        end[10..12].copy_from_slice(&((70_000 & 0xffff) as u16).to_le_bytes());
        end[12..16].copy_from_slice(&(dir.len() as u32).to_le_bytes());
        end[16..20].copy_from_slice(&38u32.to_le_bytes());
        assert_eq!(check_bytes(&[&local[..], &dir, &end].concat()), Ok(()));
        end[10] ^= 1;
        assert!(check_bytes(&[&local[..], &dir, &end].concat()).is_err());
    }

    #[test]
    fn names_are_told_by_their_end_in_any_case() {
        assert!(is_archive(b"a.CaR") && is_archive(b"x.y.jar"));
        assert!(!is_archive(b".jar") && !is_archive(b"a.rar") && !is_archive(b"jar"));
    }

    proptest! {
        #[test]
        fn mutated_archives_never_panic(
            which in any::<prop::sample::Index>(),
            to in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let all = fixtures();
            let mut b = which.get(&all).clone();
            // most of what is read lies at the end
            let tail = b.len().min(400);
            for (at, to) in to {
                let at = b.len() - 1 - at.index(tail);
                b[at] = to;
            }
            let _ = check_bytes(&b);
        }

        #[test]
        fn end_records_of_any_numbers_never_panic(
            end in any::<[u8; 16]>(), end64 in any::<[u8; 52]>(), at64 in 0..200u64, front in 0..100usize,
        ) {
            let mut b = vec![0; front];
            b.extend([&b"PK\x06\x06"[..], &end64].concat());
            b.extend([&b"PK\x06\x07\0\0\0\0"[..], &at64.to_le_bytes(), &[0; 4]].concat());
            b.extend([&b"PK\x05\x06"[..], &end, &[0; 2]].concat());
            let _ = check_bytes(&b);
            let _ = check_bytes(&b[front + 76..]);
        }
    }
}
