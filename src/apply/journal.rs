//! The list of renames of one commit, durable before the first of them.
//!
//! A file beside the staged data: a magic line, then frames of `u32 length, payload (postcard), 8 bytes
//! of BLAKE3(frame number, payload)`, the last of which is [`Record::End`]. Without its end a journal
//! says that the commit never began; with it every record can be carried out any number of times.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Read, Seek as _, Write as _};

use serde::{Deserialize, Serialize};

use crate::disk::{Dir, FileKind, Stat};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{Digest, Kind, LocalId, Mtime, TreePath};

const NAME: &str = "journal";
const MAGIC: &[u8; 8] = b"SYNCAGJ2";
/// A frame holds two paths at most; a longer one is damage.
const MAX_FRAME: usize = 16 << 20;

/// How a state of a path is recognised after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ident {
    pub(crate) kind: Kind,
    pub(crate) ino: u64,
    pub(crate) ctime: Mtime,
    pub(crate) size: u64,
    pub(crate) mtime: Mtime,
}

impl Ident {
    pub(crate) fn of(stat: &Stat) -> Self {
        let kind = match stat.kind {
            FileKind::Dir => Kind::Dir,
            FileKind::Link => Kind::Link,
            FileKind::File | FileKind::Special => Kind::File,
        };
        Self { kind, ino: stat.id.ino, ctime: stat.id.ctime, size: stat.size, mtime: stat.mtime }
    }

    /// From what the index knows of an entry. A link's size is its target's length.
    pub(crate) fn known(entry: &crate::model::Entry, id: LocalId) -> Self {
        let size = match &entry.node {
            crate::model::Node::Link { target } => target.len() as u64,
            _ => entry.size(),
        };
        Self { kind: entry.kind(), ino: id.ino, ctime: id.ctime, size, mtime: entry.mtime }
    }

    /// The same content, as far as can be told after a rename, which moves the ctime. Of a directory only
    /// the inode counts (0: the file system's are not stable).
    pub(crate) fn is(&self, stat: &Stat) -> bool {
        let now = Self::of(stat);
        let same_ino = self.ino == 0 || self.ino == now.ino;
        self.kind == now.kind
            && same_ino
            && stat.kind != FileKind::Special
            && (self.kind == Kind::Dir || self.size == now.size && self.mtime == now.mtime)
    }

    /// Untouched since: the ctime too.
    pub(crate) fn is_untouched(&self, stat: &Stat) -> bool {
        self.is(stat) && (self.kind == Kind::Dir || self.ctime == stat.id.ctime)
    }
}

/// Attributes to set; `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SetAttrs {
    pub(crate) mode: Option<u16>,
    pub(crate) mtime: Option<Mtime>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

/// One step of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Record {
    /// First: whose commit this is, and where it was staged.
    Begin { tree: String, seq: u64, staging: Option<Vec<u8>> },
    /// The directory needs our right to write for as long as the commit lasts. Before all others.
    Open { path: TreePath },
    /// What is staged under this path takes its place. `old`: what is expected there; `row`: its row in
    /// the index, for a directory.
    /// `last`: after everything else that comes into place.
    Put { path: TreePath, new: Ident, old: Option<Ident>, row: i64, digest: Option<Digest>, last: bool },
    /// An entry of the tree gets another name.
    Move { from: TreePath, path: TreePath, id: Ident, digest: Option<Digest>, attrs: SetAttrs },
    /// The path goes.
    Remove { path: TreePath, old: Ident, row: i64 },
    /// Attributes of what stays. Directories come last, deepest first.
    Attrs { path: TreePath, id: Option<Ident>, digest: Option<Digest>, attrs: SetAttrs },
    /// Last.
    End { records: u64 },
    /// What lies there is in no published state: where it is displaced it goes to the trash as drift.
    Aside { path: TreePath },
}

/// A finished journal, read from its start as often as needed.
#[derive(Debug)]
pub struct Journal {
    file: File,
}

/// A journal being written.
pub(crate) struct JournalWriter {
    out: BufWriter<File>,
    frames: u64,
}

fn sum(number: u64, payload: &[u8]) -> [u8; 8] {
    let mut h = blake3::Hasher::new();
    h.update(&number.to_le_bytes()).update(payload);
    let mut out = [0; 8];
    h.finalize_xof().fill(&mut out);
    out
}

impl JournalWriter {
    /// Starts a journal in the tree's own directory. One that never got its end is overwritten.
    pub(crate) fn create(control: &Dir) -> Result<Self> {
        let file = File::from(control.open_own_file(NAME).context(|| "write the journal".into())?);
        file.set_len(0).context(|| "write the journal".into())?;
        let mut out = BufWriter::with_capacity(256 * 1024, file);
        out.write_all(MAGIC).context(|| "write the journal".into())?;
        Ok(Self { out, frames: 0 })
    }

    pub(crate) fn add(&mut self, record: &Record) -> Result<()> {
        let payload = postcard::to_stdvec(record).map_err(|e| Error::integrity(format!("journal: {e}")))?;
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut write = |bytes: &[u8]| self.out.write_all(bytes).context(|| "write the journal".into());
        write(&length.to_le_bytes())?;
        write(&payload)?;
        write(&sum(self.frames, &payload))?;
        self.frames += 1;
        Ok(())
    }

    /// Ends the journal and makes it durable; that of its name the caller has already seen to. From here on the commit is decided.
    pub(crate) fn finish(mut self) -> Result<Journal> {
        self.add(&Record::End { records: self.frames })?;
        let file =
            self.out.into_inner().map_err(|e| e.into_error()).context(|| "write the journal".into())?;
        file.sync_all().context(|| "sync the journal".into())?;
        Ok(Journal { file })
    }
}

impl Journal {
    /// The journal of a commit that was decided but not finished. `None` when there is none; one without
    /// its end was never decided and counts as none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn pending(control: &Dir) -> Result<Option<Self>> {
        let Some(mut journal) = Self::open(control)? else { return Ok(None) };
        let mut last = None;
        let mut count = 0u64;
        let whole = journal.each(&mut |record| {
            count += 1;
            last = Some(record);
            Ok(())
        });
        match (whole, last) {
            (Ok(()), Some(Record::End { records })) if records + 1 == count => Ok(Some(journal)),
            (Err(e), _) if e.source.is_some() => Err(e),
            _ => Ok(None),
        }
    }

    /// The file, decided or not; `None` without one.
    fn open(control: &Dir) -> Result<Option<Self>> {
        match control.open_file(NAME.as_bytes()) {
            Ok(fd) => Ok(Some(Self { file: File::from(fd) })),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(e).context(|| "open the journal".into()),
        }
    }

    /// Whether there is none, or one whose writing was cut off, so that nothing can have been done by it. Of a damaged one
    /// nobody knows; damage of a length that leads beyond the end of the file looks like a cut.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn was_never_whole(control: &Dir) -> Result<bool> {
        let Some(mut journal) = Self::open(control)? else { return Ok(true) };
        let mut ended = false;
        let whole = journal.read(&mut |record| {
            ended = matches!(record, Record::End { .. });
            Ok(())
        });
        match whole {
            Ok(whole) => Ok(!whole || !ended),
            Err(e) if e.source.is_some() => Err(e),
            Err(_) => Ok(false),
        }
    }

    /// Calls `f` for every record, in the order written.
    pub(crate) fn each(&mut self, f: &mut dyn FnMut(Record) -> Result<()>) -> Result<()> {
        match self.read(f)? {
            true => Ok(()),
            false => Err(Error::integrity("the journal is cut short")),
        }
    }

    /// The same; `false` when it ends within a record.
    fn read(&mut self, f: &mut dyn FnMut(Record) -> Result<()>) -> Result<bool> {
        self.file.rewind().context(|| "read the journal".into())?;
        let mut input = BufReader::with_capacity(256 * 1024, &self.file);
        let mut magic = [0; 8];
        if !fill(&mut input, &mut magic)? {
            return Ok(false);
        }
        if magic != *MAGIC {
            return Err(Error::integrity("the journal has no header"));
        }
        let mut payload = Vec::new();
        for number in 0.. {
            let mut length = [0; 4];
            if input.fill_buf().context(|| "read the journal".into())?.is_empty() {
                break;
            }
            if !fill(&mut input, &mut length)? {
                return Ok(false);
            }
            let length = u32::from_le_bytes(length) as usize;
            let mut check = [0; 8];
            if length > MAX_FRAME {
                return Err(Error::integrity("the journal is damaged: length"));
            }
            payload.resize(length, 0);
            if !fill(&mut input, &mut payload)? || !fill(&mut input, &mut check)? {
                return Ok(false);
            }
            if check != sum(number, &payload) {
                return Err(Error::integrity("the journal is damaged: checksum"));
            }
            let record = postcard::from_bytes(&payload)
                .map_err(|e| Error::integrity(format!("the journal is damaged: {e}")))?;
            f(record)?;
        }
        Ok(true)
    }

    /// An error when there is a journal that was decided and not carried out: it must not be lost.
    pub(crate) fn refuse_pending(control: &Dir) -> Result<()> {
        match Self::pending(control)? {
            None => Ok(()),
            Some(_) => {
                let what = "an unfinished commit must be carried out first; the next start does that";
                Err(Error::new(Class::Permanent, what))
            }
        }
    }

    /// Removes a journal that nothing was decided by.
    pub(crate) fn remove_undecided(control: &Dir) -> Result<()> {
        match control.unlink(NAME.as_bytes()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(e).context(|| "remove the journal".into()),
        }
    }

    /// Removes the journal: the commit is done.
    ///
    /// # Errors
    /// The operating system's.
    pub fn remove(control: &Dir) -> Result<()> {
        match control.unlink(NAME.as_bytes()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {
                control.sync().context(|| "sync the journal's directory".into())
            }
            Err(e) => Err(e).context(|| "remove the journal".into()),
        }
    }
}

/// Fills `buf`; `false` when the input ended first.
fn fill(input: &mut impl Read, buf: &mut [u8]) -> Result<bool> {
    match input.read_exact(buf) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e).context(|| "read the journal".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path() -> impl Strategy<Value = TreePath> {
        "[a-z]{1,5}(/[a-z]{1,5}){0,3}".prop_map(|s| TreePath::new(s.as_bytes()).unwrap())
    }

    fn record() -> impl Strategy<Value = Record> {
        let id = (any::<u64>(), any::<i64>(), any::<u64>()).prop_map(|(ino, sec, size)| Ident {
            kind: Kind::File,
            ino,
            ctime: Mtime { sec, nsec: 1 },
            size,
            mtime: Mtime { sec, nsec: 2 },
        });
        prop_oneof![
            (path(), id.clone(), proptest::option::of(id.clone()), any::<i64>()).prop_map(
                |(path, new, old, row)| {
                    Record::Put { path, new, old, row, digest: Some(Digest::of_nothing()), last: row > 0 }
                }
            ),
            (path(), path(), id.clone()).prop_map(|(from, path, id)| {
                Record::Move { from, path, id, digest: None, attrs: SetAttrs::default() }
            }),
            (path(), id).prop_map(|(path, old)| Record::Remove { path, old, row: 3 }),
            path().prop_map(|path| Record::Attrs {
                path,
                id: None,
                digest: None,
                attrs: SetAttrs { mode: Some(0o644), ..SetAttrs::default() },
            }),
        ]
    }

    fn write(dir: &Dir, records: &[Record]) -> Vec<u8> {
        let mut w = JournalWriter::create(dir).unwrap();
        records.iter().for_each(|r| w.add(r).unwrap());
        drop(w.finish().unwrap());
        let mut bytes = Vec::new();
        File::from(dir.open_file(b"journal").unwrap()).read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn rewrite(dir: &Dir, bytes: &[u8]) {
        let mut f = File::from(dir.open_own_file(NAME).unwrap());
        f.set_len(0).unwrap();
        f.write_all(bytes).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn cut_anywhere_it_counts_as_none_and_whole_it_is_read_back(
            records in proptest::collection::vec(record(), 0..6), at in any::<prop::sample::Index>(),
        ) {
            let tmp = tempfile::tempdir().unwrap();
            let dir = Dir::open_root(tmp.path()).unwrap();
            let bytes = write(&dir, &records);
            let mut back = Vec::new();
            prop_assert!(!Journal::was_never_whole(&dir).unwrap());
            let mut journal = Journal::pending(&dir).unwrap().unwrap();
            journal.each(&mut |r| { back.push(r); Ok(()) }).unwrap();
            prop_assert_eq!(back.pop(), Some(Record::End { records: records.len() as u64 }));
            prop_assert_eq!(back, records);
            rewrite(&dir, &bytes[..at.index(bytes.len())]);
            prop_assert!(Journal::pending(&dir).unwrap().is_none());
            prop_assert!(Journal::was_never_whole(&dir).unwrap());
        }

        #[test]
        fn one_changed_byte_makes_it_count_as_none(
            records in proptest::collection::vec(record(), 1..5), at in any::<prop::sample::Index>(), by in 1..=255u8,
        ) {
            let tmp = tempfile::tempdir().unwrap();
            let dir = Dir::open_root(tmp.path()).unwrap();
            let mut bytes = write(&dir, &records);
            let at = at.index(bytes.len());
            bytes[at] = bytes[at].wrapping_add(by);
            rewrite(&dir, &bytes);
            prop_assert!(Journal::pending(&dir).unwrap().is_none());
        }

        #[test]
        fn arbitrary_bytes_never_panic(b in proptest::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
            let tmp = tempfile::tempdir().unwrap();
            let dir = Dir::open_root(tmp.path()).unwrap();
            let head: &[u8] = if magic { MAGIC } else { b"" };
            rewrite(&dir, &[head, &b].concat());
            prop_assert!(Journal::pending(&dir).unwrap().is_none());
        }
    }
}
