//! The object protocol: what a source serves and a mirror fetches, over TLS or a Unix socket. What comes
//! from the other side is judged here: nothing above sees a name, a length or an object that was not checked,
//! and no peer holds a thread, a slot or memory for longer than the limits below say.
//!
//! # Version 1
//!
//! HTTP/1.1 with keep-alive. Over TLS both sides show certificates; over a Unix socket the file's rights are the
//! authority. Integers are little-endian; *postcard* is <https://postcard.jamesmunns.com/wire-format>.
//!
//! Every request carries `syncagent-protocol: 1`, `syncagent-node: ID` (one of the certificate's ids; one
//! connection speaks for one node) and `syncagent-cluster: NAME`. Every answer carries `syncagent-protocol: 1`.
//!
//! | request | body | answer |
//! | --- | --- | --- |
//! | `GET /sync/1/hello` | | JSON `{protocol: [1], node, cluster, version}` |
//! | `GET /sync/1/TREE/head?known=E.N&seen=E.N&root=HEX&sought=ROUND&wait=SECONDS` | | JSON [`Head`], or 204 when nothing is published |
//! | `POST /sync/1/TREE/objects` | postcard `Vec<[u8; 32]>`, at most 1,024 | objects |
//! | `POST /sync/1/TREE/contents` | postcard `Vec<WantDir>`, at most 4,096 files and 4 MiB | contents |
//! | `POST /sync/1/TREE/report` | JSON [`Report`](crate::model::Report), at most 64 KiB | 204 |
//! | `POST /sync/1/TREE/suspect` | postcard `Vec<Vec<u8>>`, at most 1,000 paths | 204 |
//! | `GET /sync/1/TREE/sought?round=ROUND&from=PLACE` | | postcard `Vec<Sought>`, at most 1,024; 204 when the round is over |
//! | `POST /sync/1/TREE/found?round=ROUND&done=BOOL` | postcard `Vec<u32>`, at most 1,024 | postcard `Vec<u32>`; 204 when the round is over |
//! | `POST /sync/1/TREE/piece?round=ROUND&index=INDEX&from=OFFSET` | at most 1 MiB | 204 |
//!
//! **head** is a long poll. `known` is the newest generation that the mirror has completely, `seen` the newest one
//! that it has heard of and `root` that one's object digest; all may be missing, `seen` and `root` only together. The
//! answer comes at once when the head is not `seen`, else when it changes, or after `wait` (at most 60 s). Who says which
//! round of seeking it dealt with last (`sought`, 0 for none) is answered at once, too, while there is another one.
//!
//! **sought**, **found**, **piece**: a rollback needs contents that the source has no more, and its mirrors may have in
//! their trash. `Sought { digest: [u8; 32], size: u64, path: Vec<u8> }`; the list comes in parts, an empty one ends it. A
//! mirror says which of them it has found, by their places in the list, in as many portions as it likes, `done` from the
//! last one on, and comes back every second until the round is over. The answer to each says which it shall
//! send now: piece by piece from 0 on, the last piece ending at `size`; an empty piece says that it cannot after all. The
//! source takes nothing but what it seeks, from the mirror that it asked, and checks each whole content's digest.
//!
//! **objects**, for each digest in order: `u32` length, then so many bytes; the length 2³²−1 says *gone*.
//! An object has at most 64 MiB, and its BLAKE3 is the digest.
//!
//! **contents**: `WantDir { dir: Vec<u8>, files: Vec<WantFile> }`, `WantFile { name: Vec<u8>, size: u64,
//! digest: [u8; 32], from: u64 }`; `from` is the offset to begin at. For each file in order: chunks of
//! `u32` length (at most 256 KiB) and so many bytes; the length 0 ends the file; then one byte: 0 whole, 1 gone
//! (vanished, or no longer that content), 2 cannot be read, followed by a `u16` length and a reason of at most
//! 1,024 bytes of UTF-8. A file up to 256 KiB is hashed before a byte of it leaves, so only published content does; of
//! a larger one the receiver checks the digest.
//!
//! **suspect** names files whose content was not what their digest says; the source looks at them again.
//!
//! Refusals are a status and one line of text: 426 another protocol version, 403 another cluster, a node id that the
//! certificate does not carry, or a tree that the node may not read; 404 no such tree; 409 the source is older than what
//! the mirror has; 400 and 413 malformed or too large; 408 too slow; 429 (with `Retry-After`) too much at once;
//! 5xx the source itself failed. A body that is cut off before its end leaves no last HTTP chunk.

mod client;
mod server;
mod socket;
pub mod tls;
mod wire;

pub use client::{Address, Client, Fetched, Want};
pub use server::{Behind, Counters, Listener, Piece, Reason, Serve, Server};
pub use wire::{Head, MAX_SOUGHT, PIECE, Sought};

#[cfg(test)]
mod tests;

/// Every decoder of a request's body.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = (wire::digests(bytes), wire::wants(bytes), wire::paths(bytes), wire::report(bytes));
    let _ = (wire::sought(bytes), wire::places(bytes));
}
