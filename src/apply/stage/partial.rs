//! Large files that arrive over a network grow under their digest in `partial/`, beside the staging
//! directory: whatever ends the transfer, and whichever generation wants the content later, it goes on
//! where it stopped. The whole file's digest decides in the end, so a damaged beginning costs a transfer only.

use std::io::Read;
use std::os::fd::OwnedFd;

use super::super::file::append;
use super::*;

/// A file that grows.
pub(super) struct Partial {
    fd: OwnedFd,
    name: String,
    digest: Digest,
    /// Of what is there.
    hasher: blake3::Hasher,
    /// Bytes that are there.
    pub(super) have: u64,
}

impl Shared<'_> {
    /// What is there of a large file; `None` for a small one, or when it grows for another path right now.
    pub(super) fn partial(&self, entry: &Entry) -> Result<Option<Partial>> {
        let (Some(dir), Node::File { size, digest }) = (&self.partial, &entry.node) else {
            return Ok(None);
        };
        if *size < PARTIAL_FROM || !lock(&self.growing).insert(*digest) {
            return Ok(None);
        }
        let cannot = || format!("go on with the partly received {}", escape(&entry.name));
        let name = digest.to_string();
        let fd = dir.open_own_file(&name).context(cannot)?;
        let have = stat_fd(&fd).context(cannot)?.size;
        let mut hasher = blake3::Hasher::new();
        if have > *size {
            rustix::fs::ftruncate(&fd, 0).context(cannot)?;
            return Ok(Some(Partial { fd, name, digest: *digest, hasher, have: 0 }));
        }
        hash_into(&mut hasher, &fd, self.to.cancel).context(cannot)?;
        Ok(Some(Partial { fd, name, digest: *digest, hasher, have }))
    }

    /// Appends what arrives. A file that is whole and right is staged.
    pub(super) fn grow(
        &self,
        piece: &Piece,
        entry: &Entry,
        old: Option<Ident>,
        partial: &Partial,
        from: &mut dyn Read,
    ) -> Result<()> {
        let path = piece.dir.join(&entry.name);
        let arrived = append(from, &partial.fd, partial.hasher.clone(), &path, self.to.cancel)?;
        lock(&self.growing).remove(&partial.digest);
        let (digest, n) = match arrived {
            Ok(arrived) => arrived,
            Err(e) if e.class == Class::Interrupted => return Err(e),
            Err(e) => {
                self.fail_or_gone(path, &e);
                return Ok(());
            }
        };
        let Some(home) = &self.partial else { return Ok(()) };
        if !is_promised(entry, &digest, partial.have + n) {
            home.unlink(partial.name.as_bytes()).context(|| format!("take back {path}"))?;
            if partial.have > 0 {
                // its beginning may have been damaged here; next time it comes whole
                self.fail_text(path, "what was received before was damaged; it is fetched again".into());
            } else {
                self.mismatch(path);
            }
            return Ok(());
        }
        let place = piece.place.dir();
        home.rename_with(partial.name.as_bytes(), place, &entry.name, RenameFlags::NOREPLACE)
            .or_else(|e| {
                if no_flags(e) { home.rename(partial.name.as_bytes(), place, &entry.name) } else { Err(e) }
            })
            .context(|| format!("stage {path}"))?;
        match self.writer.finish(&partial.fd, &path, entry) {
            Ok(stat) => self.staged(piece, entry.clone(), old, &stat, digest),
            Err(e) if is_of_path(&e) => {
                let _ = place.unlink(&entry.name);
                self.fail(path, &e);
                Ok(())
            }
            Err(e) => Err(e),
        }
    }
}
