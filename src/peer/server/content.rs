//! Reads what is sent: blocking, about 256 KiB at a time. Files change while they are read, so a small one is
//! sent only after its digest was right, and a large one is looked at again after each chunk.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::Errno;

use super::Serve;
use super::stream::Produce;
use crate::disk::{Dir, FileKind, Stat, stat_fd};
use crate::error::{Error, Result};
use crate::model::{Digest, TreePath};
use crate::peer::wire::{
    CHUNK, GONE, MAX_OBJECT, MAX_REASON, NO_MORE, UNREADABLE, WHOLE, WantDir, WantFile, clip_text,
};
use crate::scan::read_full;

/// A whole chunk with its length, end and status fits into a frame without growing it.
const FRAME: usize = CHUNK + 16;
/// The most objects that are asked for at once; after the first hop as many as make a frame.
const OBJECTS: usize = 64;

/// The body of an answer to `objects`.
pub(super) struct Objects {
    serve: Arc<dyn Serve>,
    want: Vec<Digest>,
    done: usize,
    bytes: usize,
}

impl Objects {
    pub(super) fn new(serve: Arc<dyn Serve>, want: Vec<Digest>) -> Self {
        Self { serve, want, done: 0, bytes: 0 }
    }
}

impl Produce for Objects {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let left = &self.want[self.done..];
        if left.is_empty() {
            return Ok(None);
        }
        let usual = self.bytes.checked_div(self.done).unwrap_or(FRAME / 16);
        let some = &left[..left.len().min((FRAME / usual.max(1)).clamp(1, OBJECTS))];
        let objects = self.serve.objects(some)?;
        if objects.len() != some.len() {
            return Err(Error::integrity("the source's objects are not those asked for; please report this"));
        }
        let mut frame = Vec::with_capacity(some.len() * (usual + 4));
        for object in objects {
            match object.filter(|o| o.len() <= MAX_OBJECT) {
                Some(object) => {
                    frame.extend_from_slice(&length(object.len()));
                    frame.extend_from_slice(&object);
                }
                None => frame.extend_from_slice(&GONE.to_le_bytes()),
            }
        }
        self.done += some.len();
        self.bytes += frame.len();
        Ok(Some(frame.into()))
    }
}

/// The body of an answer to `contents`.
pub(super) struct Contents {
    serve: Arc<dyn Serve>,
    root: Option<Arc<Dir>>,
    want: Vec<WantDir>,
    /// The next file: of which directory, and which one there.
    at: (usize, usize),
    /// The directory of the files before, open.
    dir: Option<Dir>,
    large: Option<Large>,
}

/// How a file ended.
enum End {
    Whole,
    Gone,
    Unreadable(String),
}

impl Contents {
    pub(super) fn new(serve: Arc<dyn Serve>, want: Vec<WantDir>) -> Self {
        Self { serve, root: None, want, at: (0, 0), dir: None, large: None }
    }

    /// Opens a wanted file, if it looks like what is wanted.
    fn open(&mut self, at: (usize, usize)) -> Result<Result<(OwnedFd, Stat), End>> {
        let root = match &self.root {
            Some(root) => Arc::clone(root),
            None => Arc::clone(self.root.insert(self.serve.root()?)),
        };
        let WantDir { dir: path, files } = &self.want[at.0];
        let file = &files[at.1];
        let dir = match self.dir.take().map_or_else(|| root.open(path), Ok) {
            Ok(dir) => self.dir.insert(dir),
            Err(e) => return Ok(Err(End::of(e, path, file))),
        };
        let look = || {
            let fd = dir.open_file(&file.name)?;
            let stat = stat_fd(&fd)?;
            Ok((fd, stat))
        };
        Ok(match look() {
            Ok((_, stat)) if stat.kind != FileKind::File || stat.size != file.size => Err(End::Gone),
            Ok(opened) => Ok(opened),
            Err(e) => Err(End::of(e, path, file)),
        })
    }

    fn large(&mut self, at: (usize, usize)) -> Result<Result<Large, End>> {
        // what is kept holds still, and is right though its file was overwritten and that is not published yet
        if let Some((fd, before)) = self.kept(&self.want[at.0].files[at.1]) {
            let from = self.want[at.0].files[at.1].from;
            return Ok(Ok(Large { fd, before, at: from, place: at }));
        }
        let (fd, before) = match self.open(at)? {
            Ok(opened) => opened,
            Err(end) => return Ok(Err(end)),
        };
        let WantDir { dir, files } = &self.want[at.0];
        let file = &files[at.1];
        if !self.serve.publishes(dir, &file.name, &file.digest) {
            return Ok(Err(End::Gone));
        }
        Ok(Ok(Large { fd, before, at: file.from, place: at }))
    }
}

impl Produce for Contents {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let mut frame = Vec::new();
        loop {
            if let Some(mut large) = self.large.take() {
                let (dir, file) = self.wanted(large.place);
                let more = large.chunk(&mut frame, dir, file);
                self.large = more.then_some(large);
                return Ok(Some(frame.into()));
            }
            let at = self.at;
            let Some(dir) = self.want.get(at.0) else {
                return Ok((!frame.is_empty()).then(|| frame.into()));
            };
            let Some(file) = dir.files.get(at.1) else {
                self.at = (at.0 + 1, 0);
                self.dir = None;
                continue;
            };
            let small = usize::try_from(file.size).ok().filter(|size| *size <= CHUNK);
            if !frame.is_empty() && small.is_none_or(|size| frame.len() + size + 16 > FRAME) {
                return Ok(Some(frame.into()));
            }
            frame.reserve_exact(FRAME.saturating_sub(frame.len()));
            self.at.1 += 1;
            let end = match small {
                Some(_) => match self.open(at)? {
                    Ok((fd, _)) => match small_file(&mut frame, &fd, self.wanted(at)) {
                        End::Gone => self.kept_small(&mut frame, at),
                        end => end,
                    },
                    Err(End::Gone) => self.kept_small(&mut frame, at),
                    Err(end) => end,
                },
                None => match self.large(at)? {
                    Ok(large) => {
                        self.large = Some(large);
                        continue;
                    }
                    Err(end) => end,
                },
            };
            end.put(&mut frame);
        }
    }
}

impl Contents {
    /// What is kept of a content whose file is another one by now.
    fn kept(&self, file: &WantFile) -> Option<(OwnedFd, Stat)> {
        let fd = self.serve.kept(&file.digest, file.size)?;
        let stat = stat_fd(&fd).ok()?;
        Some((fd, stat))
    }

    fn kept_small(&self, frame: &mut Vec<u8>, at: (usize, usize)) -> End {
        let (dir, file) = self.wanted(at);
        self.kept(file).map_or(End::Gone, |(fd, _)| small_file(frame, &fd, (dir, file)))
    }

    fn wanted(&self, at: (usize, usize)) -> (&TreePath, &WantFile) {
        let WantDir { dir, files } = &self.want[at.0];
        (dir, &files[at.1])
    }
}

/// Puts a whole small file into the frame, if it has the wanted digest.
fn small_file(frame: &mut Vec<u8>, fd: &OwnedFd, (dir, file): (&TreePath, &WantFile)) -> End {
    let start = frame.len();
    let (size, from) = (file.size as usize, file.from as usize);
    let body = start + 4;
    // one byte more shows a file that grew
    frame.resize(body + size + 1, 0);
    let read = read_full(fd, &mut frame[body..]);
    frame.pop();
    let end = match read {
        Ok(n) if n == size && Digest::of(&frame[body..]) == file.digest => End::Whole,
        Ok(_) => End::Gone,
        Err(e) => End::of(e, dir, file),
    };
    if !matches!(end, End::Whole) || from == size {
        frame.truncate(start);
    } else {
        frame.drain(body..body + from);
        frame[start..body].copy_from_slice(&length(size - from));
    }
    end
}

/// A file larger than a chunk, between two frames.
struct Large {
    fd: OwnedFd,
    before: Stat,
    at: u64,
    place: (usize, usize),
}

impl Large {
    /// Puts the next chunk, and the end after the last one, into `frame`. Gives whether more follows.
    fn chunk(&mut self, frame: &mut Vec<u8>, dir: &TreePath, file: &WantFile) -> bool {
        let n = CHUNK.min(usize::try_from(self.before.size - self.at).unwrap_or(CHUNK));
        frame.reserve_exact(FRAME);
        frame.extend_from_slice(&length(n));
        frame.resize(4 + n, 0);
        let end = match read_at(&self.fd, &mut frame[4..], self.at).and_then(|m| Ok((m, stat_fd(&self.fd)?)))
        {
            Ok((m, now)) if m == n && self.before.same_state(&now) => End::Whole,
            Ok(_) => End::Gone,
            Err(e) => End::of(e, dir, file),
        };
        self.at += n as u64;
        let whole = matches!(end, End::Whole);
        if whole && self.at < self.before.size {
            return true;
        }
        if !whole || n == 0 {
            frame.clear();
        }
        end.put(frame);
        false
    }
}

fn read_at(fd: &OwnedFd, buf: &mut [u8], at: u64) -> rustix::io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match rustix::io::pread(fd, &mut buf[n..], at + n as u64) {
            Ok(0) => break,
            Ok(m) => n += m,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

impl End {
    fn of(e: Errno, dir: &TreePath, file: &WantFile) -> Self {
        match e {
            // vanished, or something else is there now
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO | Errno::NAMETOOLONG => {
                Self::Gone
            }
            e => Self::Unreadable(format!("cannot read {}: {e}", dir.join(&file.name))),
        }
    }

    fn put(self, frame: &mut Vec<u8>) {
        frame.extend_from_slice(&0u32.to_le_bytes());
        match self {
            Self::Whole => frame.push(WHOLE),
            Self::Gone => frame.push(NO_MORE),
            Self::Unreadable(mut reason) => {
                clip_text(&mut reason, MAX_REASON);
                frame.push(UNREADABLE);
                frame.extend_from_slice(&(reason.len() as u16).to_le_bytes());
                frame.extend_from_slice(reason.as_bytes());
            }
        }
    }
}

/// A length on the wire; what is sent is far below 4 GiB.
fn length(n: usize) -> [u8; 4] {
    (n as u32).to_le_bytes()
}
