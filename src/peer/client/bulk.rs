//! What engine threads fetch: many objects or files in one answer.

use std::io::Read;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use axum::http::Method;

use super::answer::Answer;
use super::{ANSWER, Ask, Begun, Client};
use crate::error::Result;
use crate::model::{Digest, Name, TreePath};
use crate::peer::wire::{AskDir, AskFile, encode};

/// Objects and files of one request: enough to forget the round trip, few enough to begin at once.
const OBJECTS: usize = 256;
const FILES: usize = 2048;
/// A request arrives within its 30 s also over a slow line.
const BODY: usize = 256 * 1024;
/// How long a node that has too much under way waits for its turn.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file to fetch.
#[derive(Clone, Copy, Debug)]
pub struct Want<'a> {
    /// The directory that holds it.
    pub dir: &'a TreePath,
    /// Its name there.
    pub name: &'a Name,
    /// Its size in bytes.
    pub size: u64,
    /// The digest of its whole content.
    pub digest: &'a Digest,
    /// The offset to begin at, at most `size`.
    pub from: u64,
}

/// What came of a wanted file.
pub enum Fetched<'a> {
    /// Its bytes from the offset asked for. Fails with `NotFound` when the file changed while it was sent, and with
    /// another kind when the source could not read on, or the transfer broke.
    Stream(&'a mut dyn Read),
    /// It vanished, or is no longer that content.
    Gone,
    /// The source cannot read it, and why.
    Unreadable(String),
}

impl Client {
    /// Blocking; from threads outside any runtime. Fetches directory objects, checks each against its digest and
    /// hands them over in order; `None` when the source does not have it (any more).
    ///
    /// # Errors
    /// As described at [`Client`]; `take`'s own errors are passed through.
    pub fn objects(
        &self,
        want: &[Digest],
        take: &mut dyn FnMut(Digest, Option<Vec<u8>>) -> Result<()>,
    ) -> Result<()> {
        let never = AtomicBool::new(false);
        for some in want.chunks(OBJECTS) {
            let mut answer = self.fetch("objects", encode(&some)?, &never)?;
            for digest in some {
                take(*digest, answer.object(digest)?)?;
            }
            answer.finish()?;
        }
        Ok(())
    }

    /// Blocking; from threads outside any runtime. Fetches files and hands them over in order, each with its index in
    /// `want`; what `take` leaves unread is skipped. Digests of contents are for the caller to check.
    ///
    /// # Errors
    /// As described at [`Client`], and [`Class::Interrupted`](crate::error::Class::Interrupted) soon after `cancel` was set; `take`'s own errors are
    /// passed through.
    pub fn contents(
        &self,
        want: &[Want<'_>],
        cancel: &AtomicBool,
        take: &mut dyn FnMut(usize, Fetched<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < want.len() {
            let some = &want[done..done + fitting(&want[done..])];
            let mut answer = self.fetch("contents", encode(&by_dir(some))?, cancel)?;
            for (i, file) in some.iter().enumerate() {
                answer.file(file, &mut |fetched| take(done + i, fetched))?;
            }
            answer.finish()?;
            done += some.len();
        }
        Ok(())
    }

    fn fetch<'a>(&'a self, what: &str, body: Vec<u8>, cancel: &'a AtomicBool) -> Result<Answer<'a>> {
        let ask = Ask::new(&self.0, Method::POST, what, "", body.into());
        let mut lane = self.0.lanes.take(cancel)?;
        let began = Instant::now();
        loop {
            let idle = lane.link.take();
            let later = match lane.block_on(self.0.begin(idle, &ask, ANSWER, Some(cancel)))? {
                Begun::Answer(link, response) => {
                    return Ok(Answer::new(lane, link, response.into_body(), cancel));
                }
                Begun::NotYet(e) => return Err(e),
                Begun::Busy(e, _) if began.elapsed() >= PATIENCE => return Err(e),
                Begun::Busy(_, later) => later,
            };
            lane.block_on(super::link::pause(later, cancel))?;
        }
    }
}

/// How many of `want` go into one request.
fn fitting(want: &[Want<'_>]) -> usize {
    let mut bytes = 0;
    let fits = |w: &&Want<'_>| {
        bytes += w.dir.as_bytes().len() + w.name.len() + 64;
        bytes <= BODY
    };
    want.iter().take(FILES).take_while(fits).count().max(1)
}

fn by_dir<'a>(want: &'a [Want<'_>]) -> Vec<AskDir<'a>> {
    let file = |w: &'a Want<'_>| AskFile { name: w.name, size: w.size, digest: w.digest, from: w.from };
    let same = want.chunk_by(|a, b| a.dir == b.dir);
    same.map(|files| AskDir { dir: files[0].dir.as_bytes(), files: files.iter().map(file).collect() })
        .collect()
}
