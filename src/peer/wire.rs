//! The bytes of protocol 1, and the decoders of what a peer sends: every count is checked before
//! anything is allocated for it.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Class, Error, Result};
use crate::model::{Digest, GenId, Generation, Name, Report, TreePath};

/// What is spoken here.
pub(super) const PROTOCOL: &str = "1";
pub(super) const H_PROTOCOL: &str = "syncagent-protocol";
pub(super) const H_NODE: &str = "syncagent-node";
pub(super) const H_CLUSTER: &str = "syncagent-cluster";

/// The longest chunk of a file; files up to here are hashed before they are sent.
pub(super) const CHUNK: usize = 256 * 1024;
/// The largest directory object: about half a million entries.
pub(super) const MAX_OBJECT: usize = 64 << 20;
/// Instead of an object's length: it is not there (any more).
pub(super) const GONE: u32 = u32::MAX;
pub(super) const MAX_DIGESTS: usize = 1024;
pub(super) const MAX_FILES: usize = 4096;
pub(super) const MAX_PATHS: usize = 1000;
/// The longest reason why a file cannot be read.
pub(super) const MAX_REASON: usize = 1024;
/// The longest long poll, in seconds: shorter than what firewalls forget a connection after.
pub(super) const MAX_WAIT: u64 = 60;

/// A digest is 32 bytes; the count needs at most two more.
pub(super) const OBJECTS_BODY: usize = MAX_DIGESTS * 32 + 2;
pub(super) const CONTENTS_BODY: usize = 4 << 20;
pub(super) const SUSPECT_BODY: usize = 4 << 20;
pub(super) const REPORT_BODY: usize = 64 * 1024;
/// The most contents in one part of the list of what is sought, and in one answer to it.
pub const MAX_SOUGHT: usize = 1024;
pub(super) const SOUGHT_BODY: usize = 8 << 20;
/// An index needs at most five bytes.
pub(super) const FOUND_BODY: usize = MAX_SOUGHT * 5 + 2;
/// The largest piece of a sought content.
pub const PIECE: usize = 1 << 20;
const REPORT_FAULTS: usize = 10;
/// Strings of a report, in bytes.
const REPORT_TEXT: usize = 1024;
const REPORT_CONVERGED: usize = 1000;

/// How a file's chunks end.
pub(super) const WHOLE: u8 = 0;
pub(super) const NO_MORE: u8 = 1;
pub(super) const UNREADABLE: u8 = 2;

/// The newest generation of a tree, and how old it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The newest generation.
    pub generation: Generation,
    /// Milliseconds since it was published, by the source's boot clock.
    pub age_ms: u64,
    /// The oldest published generation that `known` lacks, and its age in milliseconds.
    pub oldest: Option<(GenId, u64)>,
    /// Published generations that `known` lacks.
    pub behind: u64,
    /// Milliseconds that the question waited at the source for its answer.
    #[serde(default)]
    pub waited_ms: u64,
    /// The source seeks contents that its mirrors may still have: the number of the round; 0: it does not.
    #[serde(default)]
    pub seeks: u64,
}

/// A content that the source has no more, and seeks among its mirrors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sought {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes; never 0.
    pub size: u64,
    /// Where it was in the tree.
    pub path: TreePath,
}

/// Files of one directory that a mirror asks for.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct WantDir {
    pub(super) dir: TreePath,
    #[serde(deserialize_with = "at_most::<_, _, MAX_FILES>")]
    pub(super) files: Vec<WantFile>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct WantFile {
    #[serde(deserialize_with = "name")]
    pub(super) name: Name,
    pub(super) size: u64,
    pub(super) digest: Digest,
    pub(super) from: u64,
}

/// [`WantDir`] as the asking side has it at hand.
#[derive(Serialize)]
pub(super) struct AskDir<'a> {
    pub(super) dir: &'a [u8],
    pub(super) files: Vec<AskFile<'a>>,
}

#[derive(Serialize)]
pub(super) struct AskFile<'a> {
    pub(super) name: &'a [u8],
    pub(super) size: u64,
    pub(super) digest: &'a Digest,
    pub(super) from: u64,
}

/// The answer to `hello`.
#[derive(Serialize)]
pub(super) struct Hello<'a> {
    pub(super) protocol: [u32; 1],
    pub(super) node: &'a str,
    pub(super) cluster: &'a str,
    pub(super) version: &'a str,
}

/// Postcard of our own types.
pub(super) fn encode(what: &impl Serialize) -> Result<Vec<u8>> {
    postcard::to_stdvec(what)
        .map_err(|e| Error::new(Class::Permanent, format!("cannot encode a request: {e}")))
}

/// The body of `objects`.
pub(super) fn digests(body: &[u8]) -> Result<Vec<Digest>> {
    Ok(decode::<AtMost<Digest, MAX_DIGESTS>>(body)?.0)
}

/// The body of `contents`.
pub(super) fn wants(body: &[u8]) -> Result<Vec<WantDir>> {
    let dirs = decode::<AtMost<WantDir, MAX_FILES>>(body)?.0;
    let files = dirs.iter().map(|d| d.files.len()).sum::<usize>();
    if files > MAX_FILES {
        return Err(malformed(&format!("{files} files at once, more than {MAX_FILES}")));
    }
    match dirs.iter().flat_map(|d| &d.files).find(|f| f.from > f.size) {
        Some(f) => Err(malformed(&format!("{:?} from {} of {}", f.name, f.from, f.size))),
        None => Ok(dirs),
    }
}

/// The body of `suspect`.
pub(super) fn paths(body: &[u8]) -> Result<Vec<TreePath>> {
    Ok(decode::<AtMost<TreePath, MAX_PATHS>>(body)?.0)
}

/// The answer to `sought`.
pub(super) fn sought(body: &[u8]) -> Result<Vec<Sought>> {
    Ok(decode::<AtMost<Sought, MAX_SOUGHT>>(body)?.0)
}

/// The body of `found`, and its answer: places in the list of what is sought.
pub(super) fn places(body: &[u8]) -> Result<Vec<u32>> {
    Ok(decode::<AtMost<u32, MAX_SOUGHT>>(body)?.0)
}

/// The body of `report`, clipped.
pub(super) fn report(body: &[u8]) -> Result<Report> {
    let mut report: Report = serde_json::from_slice(body).map_err(|e| malformed(&e.to_string()))?;
    clip(&mut report);
    Ok(report)
}

/// Cuts a report to what may be sent: texts of 1 KiB, the newest 1,000 convergence times.
pub(super) fn clip(report: &mut Report) {
    let plan = report.plan.as_mut().map(|p| [&mut p.id, &mut p.reason]);
    let error = report.error.as_mut().map(|e| &mut e.what);
    let others = [error, report.zone.as_mut(), Some(&mut report.version)];
    let marks = [&mut report.paused, &mut report.drained].into_iter().filter_map(Option::as_mut);
    let marks = marks.flat_map(|m| [Some(&mut m.who), m.reason.as_mut()]);
    let refresh = report.refresh.as_mut().map(|r| [r.action.as_mut(), r.error.as_mut().map(|e| &mut e.what)]);
    let optional = others.into_iter().chain(marks).chain(refresh.into_iter().flatten()).flatten();
    report.faults.truncate(REPORT_FAULTS);
    for text in plan.into_iter().flatten().chain(optional).chain(&mut report.faults) {
        clip_text(text, REPORT_TEXT);
    }
    let extra = report.converged.len().saturating_sub(REPORT_CONVERGED);
    report.converged.drain(..extra);
}

/// Cuts a text to at most `most` bytes, between characters.
pub(super) fn clip_text(text: &mut String, most: usize) {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

fn malformed(why: &str) -> Error {
    Error::integrity(format!("malformed body: {why}"))
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(malformed(&format!("{} bytes too many", rest.len()))),
        Err(e) => Err(malformed(&e.to_string())),
    }
}

/// A list that is refused by its count, before its elements are read.
struct AtMost<T, const N: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for AtMost<T, N> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        at_most::<D, T, N>(d).map(Self)
    }
}

fn at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>, const N: usize>(d: D) -> Result<Vec<T>, D::Error> {
    struct List<T, const N: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for List<T, N> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {N}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            // grows with what is really there, whatever count is claimed
            let mut out = Vec::new();
            while let Some(element) = seq.next_element()? {
                if out.len() == N {
                    return Err(A::Error::invalid_length(N + 1, &self));
                }
                out.push(element);
            }
            Ok(out)
        }
    }
    d.deserialize_seq(List::<T, N>(PhantomData))
}

fn name<'de, D: Deserializer<'de>>(d: D) -> Result<Name, D::Error> {
    Name::new(&at_most::<D, u8, 255>(d)?).map_err(D::Error::custom)
}
