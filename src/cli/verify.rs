//! `syncagent verify DIR` and `syncagent digest DIR`.

use std::io::{BufWriter, Write as _};
use std::sync::atomic::AtomicBool;

use clap::ArgMatches;

use super::exit::Exit;
use super::options::{DigestArgs, VerifyArgs};
use super::output_failed;
use crate::agent::{DriftKind, digest as digest_of, verify as verify_tree};
use crate::error::{PathError, Result};
use crate::model::escaped;

pub(super) fn verify(args: &VerifyArgs, cancel: &AtomicBool) -> Result<Exit> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut count = 0u64;
    let errors = verify_tree(&args.dir, &args.state.dir()?, args.threads.count(), cancel, &mut |drift| {
        count += 1;
        let how = match drift.how {
            DriftKind::Modified => "modified",
            DriftKind::Attributes => "attributes",
            DriftKind::Missing => "missing",
            DriftKind::Unexpected => "unexpected",
        };
        writeln!(out, "drift {how} {} {}", drift.kind, drift.path).map_err(output_failed)
    })?;
    let shown = escaped(&args.dir);
    let said = match (count, errors.is_empty()) {
        (0, true) => writeln!(out, "verified: {shown} is what its index says"),
        (0, false) => writeln!(out, "not verified: parts of {shown} could not be read"),
        (1, _) => writeln!(out, "verified: 1 path in {shown} has drifted"),
        (n, _) => writeln!(out, "verified: {n} paths in {shown} have drifted"),
    };
    said.and_then(|()| out.flush()).map_err(output_failed)?;
    complain(&errors);
    Ok(match (count, errors.is_empty()) {
        (0, true) => Exit::Done,
        (0, false) => Exit::Partial,
        _ => Exit::Drift,
    })
}

pub(super) fn digest(args: &DigestArgs, matches: &ArgMatches, cancel: &AtomicBool) -> Result<Exit> {
    let filter = args.filter.compile(matches)?;
    let (digest, errors) = digest_of(&args.dir, &filter, args.threads.count(), cancel)?;
    if !errors.is_empty() {
        // a digest of part of a directory would be taken for the whole one's
        complain(&errors);
        return Ok(Exit::Failed);
    }
    writeln!(std::io::stdout(), "{digest}  {}", escaped(&args.dir)).map_err(output_failed)?;
    Ok(Exit::Done)
}

fn complain(errors: &[PathError]) {
    let mut err = std::io::stderr().lock();
    for e in errors {
        // a closed standard error must not change what happened
        let _ = writeln!(err, "syncagent: {}: {}", e.path, e.error);
    }
}
