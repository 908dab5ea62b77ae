//! SRC and DST as the user gave them, made certain: both directories, neither inside the other, also not
//! through links or bind mounts.

use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use crate::disk::{Dir, place_in_fs};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::escaped;

/// The source's real path.
///
/// # Errors
/// [`Class::Refused`] when it is missing, [`Class::Config`] when it is no directory.
pub(crate) fn source(path: &Path) -> Result<PathBuf> {
    let shown = escaped(path);
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let what = format!(
                "the source {shown} does not exist; nothing was changed (is its file system mounted?)"
            );
            return Err(Error::new(Class::Refused, what));
        }
        Err(e) if e.kind() == ErrorKind::NotADirectory => {
            return Err(not_a_directory("source", &shown));
        }
        Err(e) => return Err(Error::io(e, format!("cannot open the source {shown}"))),
    };
    if is_dir(&real, &shown)? { Ok(real) } else { Err(not_a_directory("source", &shown)) }
}

fn is_dir(path: &Path, shown: &str) -> Result<bool> {
    path.metadata().map(|m| m.is_dir()).context(|| format!("look at {shown}"))
}

fn not_a_directory(what: &str, shown: &str) -> Error {
    Error::new(Class::Config, format!("the {what} {shown} is not a directory"))
}

/// The destination's real path; it and directories above it need not exist.
///
/// # Errors
/// [`Class::Config`] when something else is there.
pub(crate) fn destination(path: &Path) -> Result<PathBuf> {
    let shown = escaped(path);
    match path.canonicalize() {
        Ok(real) if is_dir(&real, &shown)? => return Ok(real),
        Ok(_) => return Err(not_a_directory("destination", &shown)),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) if e.kind() == ErrorKind::NotADirectory => {
            return Err(not_a_directory("destination", &shown));
        }
        Err(e) => return Err(Error::io(e, format!("cannot open the destination {shown}"))),
    }
    if path.symlink_metadata().is_ok() {
        let what =
            format!("the destination {shown} is a symbolic link to nothing; make its target or remove it");
        return Err(Error::new(Class::Config, what));
    }
    let absolute = std::path::absolute(path).context(|| format!("resolve {shown}"))?;
    let mut missing = Vec::new();
    let mut there = absolute.as_path();
    loop {
        match there.canonicalize() {
            Ok(mut real) => {
                for part in missing.iter().rev() {
                    match part {
                        Component::ParentDir => {
                            let what = format!(
                                "the destination {shown} has `..` behind a directory that does not exist"
                            );
                            return Err(Error::new(Class::Config, what));
                        }
                        part => real.push(part),
                    }
                }
                return Ok(real);
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                missing.extend(there.components().next_back());
                there = there.parent().unwrap_or(Path::new("/"));
            }
            Err(e) if e.kind() == ErrorKind::NotADirectory => {
                return Err(not_a_directory("destination", &shown));
            }
            Err(e) => return Err(Error::io(e, format!("cannot open the destination {shown}"))),
        }
    }
}

/// Refuses trees that are the same or one inside the other.
///
/// # Errors
/// [`Class::Config`].
pub(crate) fn check_apart(src: &Path, dst: &Path) -> Result<()> {
    let nested = |what: &str| {
        let what = format!("{what}: source {}, destination {}", escaped(src), escaped(dst));
        Err(Error::new(Class::Config, what))
    };
    if src == dst {
        return nested("source and destination are the same directory");
    }
    if dst.starts_with(src) || inside(dst, src) {
        return nested("the destination lies inside the source");
    }
    if src.starts_with(dst) || inside(src, dst) {
        return nested("the source lies inside the destination");
    }
    Ok(())
}

/// Refuses a path of ours (state, staging) inside a tree: it would be taken for content, or write into the
/// source.
///
/// # Errors
/// [`Class::Config`].
pub(crate) fn check_outside(what: &str, path: &Path, tree: &str, root: &Path) -> Result<()> {
    let real = path.ancestors().find_map(|p| {
        let rest = path.strip_prefix(p).ok()?;
        Some(p.canonicalize().ok()?.join(rest))
    });
    if inside(real.as_deref().unwrap_or(path), root) {
        let what = format!(
            "the {what} {} lies inside the {tree} {}; choose another one",
            escaped(path),
            escaped(root)
        );
        return Err(Error::new(Class::Config, what));
    }
    Ok(())
}

/// Whether `path` is `other` or lies in it, by names, by device and inode, or in the file system that both
/// are on, whatever it is mounted as.
pub(crate) fn inside(path: &Path, other: &Path) -> bool {
    let id = |p: &Path| Dir::open_root(p).and_then(|d| d.stat_self()).map(|s| (s.dev, s.id.ino)).ok();
    let Some(other_id) = id(other) else {
        // a tree that is not there yet
        return path.starts_with(other);
    };
    if path.ancestors().any(|p| id(p) == Some(other_id)) {
        return true;
    }
    let there = path.ancestors().find(|p| p.is_dir());
    match (there.and_then(place_in_fs), place_in_fs(other)) {
        (Some((device, path)), Some((other_device, other))) => {
            device == other_device && path.starts_with(other)
        }
        _ => false,
    }
}
