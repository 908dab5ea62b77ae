//! Reading an answer of many objects or files. Everything that the server says about lengths is checked against what was
//! asked for; an answer that was not read to its end takes its connection along.

use std::io::{self, Read};
use std::sync::MutexGuard;
use std::sync::atomic::AtomicBool;

use bytes::{Buf as _, Bytes};
use hyper::body::Incoming;

use super::bulk::{Fetched, Want};
use super::lane::Lane;
use super::link::Link;
use crate::error::{Class, Error, Result};
use crate::model::{Digest, escape};
use crate::peer::wire::{CHUNK, GONE, MAX_OBJECT, MAX_REASON, NO_MORE, UNREADABLE, WHOLE};

/// An answer that is being read.
pub(super) struct Answer<'a> {
    lane: MutexGuard<'a, Lane>,
    link: Link,
    body: Incoming,
    frame: Bytes,
    cancel: &'a AtomicBool,
}

/// How a file ended.
enum End {
    Whole,
    Gone,
    Unreadable(String),
}

fn lie(what: &str) -> Error {
    Error::integrity(format!("the source sent {what}"))
}

impl<'a> Answer<'a> {
    pub(super) fn new(
        lane: MutexGuard<'a, Lane>,
        link: Link,
        body: Incoming,
        cancel: &'a AtomicBool,
    ) -> Self {
        Self { lane, link, body, frame: Bytes::new(), cancel }
    }

    /// Gets bytes, if there are none at hand; `false` at the end.
    fn fill(&mut self) -> Result<bool> {
        while self.frame.is_empty() {
            match self.lane.block_on(self.link.frame(&mut self.body, Some(self.cancel)))? {
                Some(bytes) => self.frame = bytes,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Copies what is at hand, at least one byte.
    fn some(&mut self, out: &mut [u8]) -> Result<usize> {
        if !self.fill()? {
            return Err(lie("fewer bytes than it said"));
        }
        let n = out.len().min(self.frame.len());
        self.frame.copy_to_slice(&mut out[..n]);
        Ok(n)
    }

    fn exact<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        let mut n = 0;
        while n < N {
            n += self.some(&mut out[n..])?;
        }
        Ok(out)
    }

    /// The next object; `None` when it is gone.
    pub(super) fn object(&mut self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let length = u32::from_le_bytes(self.exact()?);
        if length == GONE {
            return Ok(None);
        }
        let length = length as usize;
        if length > MAX_OBJECT {
            return Err(lie(&format!("an object of {length} bytes")));
        }
        // grows with what really comes
        let mut object = Vec::with_capacity(length.min(CHUNK));
        while object.len() < length {
            if !self.fill()? {
                return Err(lie("fewer bytes than it said"));
            }
            let n = self.frame.len().min(length - object.len());
            object.extend_from_slice(&self.frame[..n]);
            self.frame.advance(n);
        }
        if Digest::of(&object) != *digest {
            return Err(lie(&format!("an object whose digest is not {digest}")));
        }
        Ok(Some(object))
    }

    /// Hands the next file over, and skips what is left of it.
    pub(super) fn file(
        &mut self,
        want: &Want<'_>,
        take: &mut dyn FnMut(Fetched<'_>) -> Result<()>,
    ) -> Result<()> {
        let left = want.size.saturating_sub(want.from);
        let mut file = File { answer: self, left, chunk: 0, end: None, failed: None };
        // the first header says whether there is anything to hand over
        file.header()?;
        let taken = match file.end.take() {
            Some(End::Gone) => return take(Fetched::Gone),
            Some(End::Unreadable(why)) => return take(Fetched::Unreadable(why)),
            end => {
                file.end = end;
                take(Fetched::Stream(&mut file))
            }
        };
        // what broke the transfer, rather than what the taker made of it
        if let Some(e) = file.failed {
            return Err(e);
        }
        taken?;
        file.skip()
    }

    fn end(&mut self) -> Result<End> {
        match self.exact::<1>()?[0] {
            WHOLE => Ok(End::Whole),
            NO_MORE => Ok(End::Gone),
            UNREADABLE => {
                let mut reason = vec![0; usize::from(u16::from_le_bytes(self.exact()?))];
                if reason.len() > MAX_REASON {
                    return Err(lie("an endless reason"));
                }
                let mut n = 0;
                while n < reason.len() {
                    n += self.some(&mut reason[n..])?;
                }
                Ok(End::Unreadable(escape(&reason)))
            }
            other => Err(lie(&format!("the unknown status {other}"))),
        }
    }

    /// Nothing may follow; then the connection can be used again.
    pub(super) fn finish(mut self) -> Result<()> {
        if self.fill()? {
            return Err(lie("more than was asked for"));
        }
        self.lane.link = Some(self.link);
        Ok(())
    }
}

/// A file that is being read.
struct File<'f, 'a> {
    answer: &'f mut Answer<'a>,
    /// Bytes that are still to come, and how many of them in this chunk.
    left: u64,
    chunk: u64,
    end: Option<End>,
    failed: Option<Error>,
}

impl File<'_, '_> {
    /// Reads a chunk's length, and after the last chunk how the file ended.
    fn header(&mut self) -> Result<()> {
        let length = u32::from_le_bytes(self.answer.exact()?);
        if length == 0 {
            let end = self.answer.end()?;
            if matches!(end, End::Whole) && self.left > 0 {
                return Err(lie(&format!("{} bytes of a file too few", self.left)));
            }
            self.end = Some(end);
            return Ok(());
        }
        self.chunk = u64::from(length);
        if self.chunk > CHUNK as u64 || self.chunk > self.left {
            return Err(lie(&format!("a chunk of {length} bytes where {} were left", self.left)));
        }
        self.left -= self.chunk;
        Ok(())
    }

    fn skip(&mut self) -> Result<()> {
        while self.end.is_none() {
            while self.chunk > 0 {
                if !self.answer.fill()? {
                    return Err(lie("fewer bytes than it said"));
                }
                let n = self.chunk.min(self.answer.frame.len() as u64);
                self.answer.frame.advance(n as usize);
                self.chunk -= n;
            }
            self.header()?;
        }
        Ok(())
    }

    fn next(&mut self, buf: &mut [u8]) -> Result<usize> {
        while self.chunk == 0 && self.end.is_none() {
            self.header()?;
        }
        if self.chunk == 0 || buf.is_empty() {
            return Ok(0);
        }
        let most = buf.len().min(usize::try_from(self.chunk).unwrap_or(CHUNK));
        let n = self.answer.some(&mut buf[..most])?;
        self.chunk -= n as u64;
        Ok(n)
    }
}

impl Read for File<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(e) = &self.failed {
            return Err(io::Error::other(e.to_string()));
        }
        match self.next(buf) {
            Ok(0) if !buf.is_empty() => match &self.end {
                Some(End::Gone) => {
                    Err(io::Error::new(io::ErrorKind::NotFound, "it changed while it was sent"))
                }
                Some(End::Unreadable(why)) => Err(io::Error::other(why.clone())),
                Some(End::Whole) | None => Ok(0),
            },
            Ok(n) => Ok(n),
            Err(e) => {
                let kind = match e.class {
                    Class::Integrity => io::ErrorKind::InvalidData,
                    Class::Interrupted => io::ErrorKind::ConnectionAborted,
                    _ => io::ErrorKind::TimedOut,
                };
                let told = io::Error::new(kind, e.to_string());
                self.failed = Some(e);
                Err(told)
            }
        }
    }
}
