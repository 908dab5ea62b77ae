//! The canonical, versioned encoding of a directory: equal directories have equal bytes, so a tree is
//! a Merkle tree and equal digests need no descent.
//!
//! Layout, version 1 (`varint` is LEB128, shortest form; integers little-endian):
//!
//! ```text
//! u8 version = 1
//! varint owners; per owner: varint length, user bytes, varint length, group bytes   (in order of first use)
//! varint entries; per entry, by ascending name:
//!   varint length, name; u8 kind; u16 mode; varint owner; i64 seconds; u32 nanoseconds
//!   kind 1 file:       varint size, 32 bytes digest
//!   kind 2 dir:        32 bytes object digest, 32 bytes content digest
//!   kind 3 link:       varint length, target
//!   kind 4 unreadable: u8 kind it would be
//! ```
//!
//! The root's own mode and owner are not in its object but in its [`RootHeader`], which the root's
//! content digest covers.

use std::sync::Arc;

use super::{Digest, Entry, Kind, Mtime, Name, Node, Owner};
use crate::error::{Error, Result};

const VERSION: u8 = 1;

/// A directory: its entries, by ascending name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// Sorted by name, names unique.
    pub entries: Vec<Entry>,
}

/// The root directory's own attributes (its mtime is not part of a tree).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RootHeader {
    /// Permission bits (0o7777).
    pub mode: u16,
    /// Owner and group.
    pub owner: Owner,
}

/// The content digest of a whole tree: the root's mode over the content of its entries.
pub fn root_content(mode: u16, entries: &Digest) -> Digest {
    let mut h = blake3::Hasher::new();
    h.update(b"syncagent root 1\0").update(&mode.to_le_bytes()).update(&entries.0);
    h.finalize().into()
}

impl Object {
    /// The canonical bytes. `entries` must be sorted by name.
    pub fn encode(&self) -> Vec<u8> {
        debug_assert!(self.entries.is_sorted_by(|a, b| a.name < b.name));
        let mut owners: Vec<&Owner> = Vec::new();
        let mut body = Vec::with_capacity(self.entries.len() * 96);
        put_varint(&mut body, self.entries.len() as u64);
        for e in &self.entries {
            put_bytes(&mut body, &e.name);
            body.push(kind_byte(&e.node));
            body.extend_from_slice(&e.mode.to_le_bytes());
            let owner = owners.iter().rposition(|o| **o == e.owner).unwrap_or_else(|| {
                owners.push(&e.owner);
                owners.len() - 1
            });
            put_varint(&mut body, owner as u64);
            body.extend_from_slice(&e.mtime.sec.to_le_bytes());
            body.extend_from_slice(&e.mtime.nsec.to_le_bytes());
            match &e.node {
                Node::File { size, digest } => {
                    put_varint(&mut body, *size);
                    body.extend_from_slice(&digest.0);
                }
                Node::Dir { object, content } => {
                    body.extend_from_slice(&object.0);
                    body.extend_from_slice(&content.0);
                }
                Node::Link { target } => put_bytes(&mut body, target),
                Node::Unreadable { kind } => body.push(kind_number(*kind)),
            }
        }
        let mut out = Vec::with_capacity(body.len() + 64);
        out.push(VERSION);
        put_varint(&mut out, owners.len() as u64);
        for o in owners {
            put_bytes(&mut out, o.user.as_bytes());
            put_bytes(&mut out, o.group.as_bytes());
        }
        out.extend_from_slice(&body);
        out
    }

    /// Reads canonical bytes. Allocates no more than a small multiple of their length.
    ///
    /// # Errors
    /// [`crate::error::Class::Integrity`] for anything that [`Object::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader { rest: bytes };
        if r.u8()? != VERSION {
            return Err(bad("unknown version"));
        }
        let owners = r.owners()?;
        let count = r.varint()?;
        let mut entries: Vec<Entry> = Vec::with_capacity(r.plausible(count, 19)?);
        let mut used = 0;
        for _ in 0..count {
            let entry = r.entry(&owners, &mut used)?;
            if entries.last().is_some_and(|last| last.name >= entry.name) {
                return Err(bad("names out of order"));
            }
            entries.push(entry);
        }
        if !r.rest.is_empty() || used != owners.len() {
            return Err(bad("trailing bytes or owners"));
        }
        Ok(Self { entries })
    }

    /// The content digest of these entries.
    pub fn content(&self) -> Digest {
        let mut h = blake3::Hasher::new();
        let mut buf = Vec::with_capacity(self.entries.len() * 64 + 32);
        buf.extend_from_slice(b"syncagent content 1\0");
        for e in &self.entries {
            put_bytes(&mut buf, &e.name);
            buf.push(kind_byte(&e.node));
            match &e.node {
                Node::File { size, digest } => {
                    buf.extend_from_slice(&e.mode.to_le_bytes());
                    buf.extend_from_slice(&size.to_le_bytes());
                    buf.extend_from_slice(&digest.0);
                }
                Node::Dir { content, .. } => {
                    buf.extend_from_slice(&e.mode.to_le_bytes());
                    buf.extend_from_slice(&content.0);
                }
                Node::Link { target } => put_bytes(&mut buf, target),
                Node::Unreadable { kind } => buf.push(kind_number(*kind)),
            }
        }
        h.update(&buf).finalize().into()
    }

    /// The entry of this name.
    pub fn get(&self, name: &[u8]) -> Option<&Entry> {
        self.entries.binary_search_by(|e| (*e.name).cmp(name)).ok().map(|i| &self.entries[i])
    }
}

fn bad(what: &str) -> Error {
    Error::integrity(format!("damaged directory object: {what}"))
}

fn kind_number(kind: Kind) -> u8 {
    match kind {
        Kind::File => 1,
        Kind::Dir => 2,
        Kind::Link => 3,
    }
}

fn kind_byte(node: &Node) -> u8 {
    match node {
        Node::File { .. } => 1,
        Node::Dir { .. } => 2,
        Node::Link { .. } => 3,
        Node::Unreadable { .. } => 4,
    }
}

fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or_else(|| bad("cut short"))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk().ok_or_else(|| bad("cut short"))?;
        self.rest = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn varint(&mut self) -> Result<u64> {
        let mut v = 0u64;
        for shift in (0..70).step_by(7) {
            let b = self.u8()?;
            if shift == 63 && b > 1 || shift > 0 && b == 0 {
                return Err(bad("number not in shortest form"));
            }
            v |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return Ok(v);
            }
        }
        Err(bad("number too long"))
    }

    fn bytes(&mut self) -> Result<&'a [u8]> {
        let n = self.varint()?;
        self.take(usize::try_from(n).map_err(|_| bad("length"))?)
    }

    /// `count` items of at least `least` bytes must fit in what is left.
    fn plausible(&self, count: u64, least: usize) -> Result<usize> {
        usize::try_from(count)
            .ok()
            .filter(|n| n.checked_mul(least).is_some_and(|bytes| bytes <= self.rest.len()))
            .ok_or_else(|| bad("count"))
    }

    fn owners(&mut self) -> Result<Vec<Owner>> {
        let count = self.varint()?;
        let mut owners = Vec::with_capacity(self.plausible(count, 2)?);
        for _ in 0..count {
            let owner = Owner { user: self.text()?, group: self.text()? };
            if owners.contains(&owner) {
                return Err(bad("owner twice"));
            }
            owners.push(owner);
        }
        Ok(owners)
    }

    fn text(&mut self) -> Result<Arc<str>> {
        let s = std::str::from_utf8(self.bytes()?).map_err(|_| bad("owner name"))?;
        if s.len() > 255 { Err(bad("owner name")) } else { Ok(s.into()) }
    }

    fn entry(&mut self, owners: &[Owner], used: &mut usize) -> Result<Entry> {
        let name = Name::new(self.bytes()?).map_err(|e| bad(&e.to_string()))?;
        let kind = self.u8()?;
        let mode = u16::from_le_bytes(self.array()?);
        let owner = usize::try_from(self.varint()?).map_err(|_| bad("owner"))?;
        if mode > 0o7777 || owner > *used || owner >= owners.len() {
            return Err(bad("mode or owner"));
        }
        *used = (*used).max(owner + 1);
        let mtime = Mtime { sec: i64::from_le_bytes(self.array()?), nsec: u32::from_le_bytes(self.array()?) };
        if mtime.nsec > 999_999_999 {
            return Err(bad("nanoseconds"));
        }
        let node = match kind {
            1 => Node::File { size: self.varint()?, digest: Digest(self.array()?) },
            2 => Node::Dir { object: Digest(self.array()?), content: Digest(self.array()?) },
            3 => Node::Link { target: self.link_target()? },
            4 => Node::Unreadable {
                kind: match self.u8()? {
                    1 => Kind::File,
                    2 => Kind::Dir,
                    3 => Kind::Link,
                    _ => return Err(bad("kind")),
                },
            },
            _ => return Err(bad("kind")),
        };
        Ok(Entry { name, mode, mtime, owner: owners[owner].clone(), node })
    }

    fn link_target(&mut self) -> Result<Box<[u8]>> {
        let target = self.bytes()?;
        if target.is_empty() || target.len() > 4095 || target.contains(&0) {
            return Err(bad("link target"));
        }
        Ok(target.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry() -> impl Strategy<Value = Entry> {
        let name =
            proptest::collection::vec(any::<u8>(), 1..12).prop_filter_map("name", |b| Name::new(&b).ok());
        let node = prop_oneof![
            (any::<u64>(), any::<[u8; 32]>()).prop_map(|(size, d)| Node::File { size, digest: Digest(d) }),
            any::<([u8; 32], [u8; 32])>()
                .prop_map(|(o, c)| Node::Dir { object: Digest(o), content: Digest(c) }),
            proptest::collection::vec(1..=255u8, 1..9).prop_map(|t| Node::Link { target: t.into() }),
            Just(Node::Unreadable { kind: Kind::Dir }),
        ];
        (name, 0..=0o7777u16, any::<i64>(), 0..1_000_000_000u32, 0..4u8, node).prop_map(
            |(name, mode, sec, nsec, owner, node)| {
                let user: Arc<str> = format!("u{owner}").into();
                let owner = Owner { user: user.clone(), group: user };
                Entry { name, mode, mtime: Mtime { sec, nsec }, owner, node }
            },
        )
    }

    fn object() -> impl Strategy<Value = Object> {
        proptest::collection::vec(entry(), 0..8).prop_map(|mut entries| {
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            entries.dedup_by(|a, b| a.name == b.name);
            Object { entries }
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(o in object()) {
            prop_assert_eq!(Object::decode(&o.encode()).unwrap(), o);
        }

        #[test]
        fn arbitrary_bytes_never_panic(b in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Object::decode(&b);
        }

        #[test]
        fn mutated_bytes_are_refused_or_mean_what_they_say(
            o in object(), at in any::<prop::sample::Index>(), to in any::<u8>(),
        ) {
            let mut b = o.encode();
            let at = at.index(b.len());
            b[at] = to;
            if let Ok(decoded) = Object::decode(&b) {
                prop_assert_eq!(decoded.encode(), b, "a second encoding of one directory");
            }
        }

        #[test]
        fn cut_bytes_are_refused(o in object(), at in any::<prop::sample::Index>()) {
            let b = o.encode();
            prop_assert!(Object::decode(&b[..at.index(b.len())]).is_err());
        }
    }

    #[test]
    fn the_smallest_entry_is_plausible() {
        let node = Node::Unreadable { kind: Kind::File };
        let name = Name::new(b"x").unwrap();
        let e = Entry { name, mode: 0, mtime: Mtime::default(), owner: Owner::default(), node };
        let o = Object { entries: vec![e] };
        assert_eq!(Object::decode(&o.encode()).unwrap(), o);
    }

    #[test]
    fn a_count_that_lies_allocates_nothing() {
        let mut b = vec![VERSION, 0];
        put_varint(&mut b, u64::MAX);
        assert!(Object::decode(&b).is_err());
    }

    #[test]
    fn content_ignores_times_and_owners_only() {
        let e = Entry {
            name: Name::new(b"f").unwrap(),
            mode: 0o644,
            mtime: Mtime { sec: 1, nsec: 2 },
            owner: Owner::default(),
            node: Node::File { size: 0, digest: Digest::of_nothing() },
        };
        let of = |e: &Entry| Object { entries: vec![e.clone()] }.content();
        let mut later = e.clone();
        later.mtime.sec = 9;
        later.owner.user = "x".into();
        assert_eq!(of(&e), of(&later));
        let mut moded = e.clone();
        moded.mode = 0o600;
        assert_ne!(of(&e), of(&moded));
    }
}
