//! A small certificate authority for those who have none, in a directory: `ca.pem`, `ca.key`, and for each
//! node `NODE.pem` and `NODE.key`.
//!
//! It belongs to one administrator on one host; files in it appear whole. A key is written before its
//! certificate: a crash may leave a key alone, or a new key with the old certificate, which `--renew` mends.
//! Two runs at once are not guarded against.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;

use crate::disk::{Dir, ensure_dir_all, write_atomic};
use crate::error::{Class, Context as _, Error, Result};
use crate::model::{NodeId, escaped};
use crate::peer::tls::{
    BACK, DAY, Validity, certificates, cluster_of, common_name, node_ids, sha256, validity,
};
pub use crate::peer::tls::{Ca, Issued, new_ca};

const CA: &str = "ca";

/// Makes `ca.pem` and `ca.key` in `dir`, which is made when it is missing. `days`: how long the CA is valid.
///
/// # Errors
/// [`Class::Config`]: there is one already, or `cluster` is no name; or what the operating system says.
pub fn init(dir: &Path, cluster: &str, days: u32) -> Result<()> {
    let ca = new_ca(cluster, days)?;
    let handle = open(dir)?;
    refuse_existing(
        dir,
        CA,
        "every certificate that it signed would become worthless; choose another directory",
    )?;
    put(&handle, dir, CA, &ca.cert_pem, &ca.key_pem)
}

/// What a node's certificate shall say.
pub struct Request<'a> {
    /// The node.
    pub node: &'a NodeId,
    /// Further DNS names. Each is an identity of the node, too.
    pub names: &'a [String],
    /// IP addresses, for other programs: syncagent does not look at them.
    pub ips: &'a [IpAddr],
    /// How long it is valid.
    pub days: u32,
    /// Whether a certificate that is there is replaced.
    pub renew: bool,
}

/// A certificate that was issued.
pub struct NodeFiles {
    /// The certificate's file.
    pub cert: PathBuf,
    /// The key's file.
    pub key: PathBuf,
    /// The CA's certificate.
    pub ca: PathBuf,
    /// Its last second, since 1970.
    pub not_after: i64,
    /// Whether it ends with the CA, earlier than was asked for.
    pub shortened: bool,
    /// The cluster that the CA was made for; `None` when it was not made here.
    pub cluster: Option<String>,
}

/// Issues a certificate with a new key as `NODE.pem` and `NODE.key` in `dir`.
///
/// # Errors
/// [`Class::Config`]: there is no CA, or an expired one; there is such a certificate already and `renew` is
/// not set; a name cannot stand in a certificate or is another node's; or what the operating system says.
pub fn issue(dir: &Path, request: &Request<'_>) -> Result<NodeFiles> {
    let name = request.node.as_str();
    if name == CA {
        return Err(config(format!("a node cannot be called `{CA}`: {CA}.pem is the CA's certificate")));
    }
    let ca = read_ca(dir)?;
    let own = ca.certificate()?;
    let cluster = common_name(&own).and_then(|name| cluster_of(&name).map(str::to_owned));
    let end = validity(&own).map_or(i64::MAX, |v| v.not_after);
    let now = jiff::Timestamp::now().as_second();
    if end <= now {
        return Err(config(format!(
            "the CA in {} has expired: make a new one in another directory",
            escaped(dir)
        )));
    }
    if !request.renew {
        refuse_existing(dir, name, "--renew replaces it")?;
    }
    let other =
        |n: &&String| n.as_str() != name && dir.join(format!("{}.pem", n.to_ascii_lowercase())).exists();
    if let Some(other) = request.names.iter().find(other) {
        return Err(config(format!("`{other}` is another node: `{name}` could act in its place")));
    }
    let asked = i64::from(request.days) * DAY;
    let last = asked.min(end - now);
    let issued = ca.issue(request.node, request.names, request.ips, (-BACK, last))?;
    put(&open(dir)?, dir, name, &issued.cert_pem, &issued.key_pem)?;
    Ok(NodeFiles {
        cert: dir.join(format!("{name}.pem")),
        key: dir.join(format!("{name}.key")),
        ca: dir.join(format!("{CA}.pem")),
        not_after: now + last,
        shortened: last < asked,
        cluster,
    })
}

/// One certificate of the directory.
pub struct Shown {
    /// The file's name. A file with several certificates is shown several times.
    pub file: String,
    /// The CA's common name; `None` for a node's certificate, and for a CA that was not made here.
    pub ca: Option<String>,
    /// The node ids that it carries.
    pub ids: Vec<NodeId>,
    /// When it is valid; `None` when that cannot be read.
    pub validity: Option<Validity>,
    /// Its SHA-256 fingerprint, `AB:CD:...`.
    pub sha256: String,
}

/// The certificates in `dir`, the CA's first, then by name; and what is wrong with `.pem` files without any.
///
/// # Errors
/// [`Class::Config`]: there is no CA; or what the operating system says.
pub fn show(dir: &Path) -> Result<(Vec<Shown>, Vec<Error>)> {
    let pem = |e: std::io::Result<std::fs::DirEntry>| {
        e.map(|e| e.file_name().into_string().ok().filter(|n| n.ends_with(".pem"))).transpose()
    };
    let names =
        std::fs::read_dir(dir).map(|entries| entries.filter_map(pem).collect::<std::io::Result<Vec<_>>>());
    let mut names = names.and_then(|n| n).map_err(|e| no_ca(dir, e))?;
    let ca = format!("{CA}.pem");
    if !names.contains(&ca) {
        return Err(no_ca(dir, std::io::ErrorKind::NotFound.into()));
    }
    names.sort_by_key(|name| (*name != ca, name.clone()));
    let (mut shown, mut errors) = (Vec::new(), Vec::new());
    for name in names {
        match certificates(&dir.join(&name), "certificate") {
            Ok(certs) => shown.extend(certs.iter().map(|cert| one(&name, cert, name == ca))),
            Err(e) => errors.push(e),
        }
    }
    Ok((shown, errors))
}

fn one(file: &str, cert: &CertificateDer<'_>, ca: bool) -> Shown {
    Shown {
        file: file.into(),
        ca: if ca { common_name(cert) } else { None },
        ids: node_ids(cert),
        validity: validity(cert),
        sha256: sha256(cert).unwrap_or_default(),
    }
}

fn config(what: String) -> Error {
    Error::new(Class::Config, what)
}

fn no_ca(dir: &Path, e: std::io::Error) -> Error {
    let what = format!("there is no CA to be read in {} (`syncagent pki init` makes one)", escaped(dir));
    Error { class: Class::Config, what, source: Some(e) }
}

fn read_ca(dir: &Path) -> Result<Ca> {
    let read = |end| std::fs::read_to_string(dir.join(format!("{CA}.{end}"))).map_err(|e| no_ca(dir, e));
    Ok(Ca { cert_pem: read("pem")?, key_pem: read("key")? })
}

fn refuse_existing(dir: &Path, name: &str, hint: &str) -> Result<()> {
    for end in ["pem", "key"] {
        let path = dir.join(format!("{name}.{end}"));
        if path.symlink_metadata().is_ok() {
            return Err(config(format!("{} is there already: {hint}", escaped(&path))));
        }
    }
    Ok(())
}

fn open(dir: &Path) -> Result<Dir> {
    ensure_dir_all(dir, 0o755).context(|| format!("make {}", escaped(dir)))
}

fn put(handle: &Dir, dir: &Path, name: &str, cert: &str, key: &str) -> Result<()> {
    for (end, text, mode) in [("key", key, 0o600), ("pem", cert, 0o644)] {
        let file = format!("{name}.{end}");
        write_atomic(handle, &file, text.as_bytes())
            .and_then(|()| Ok(handle.chmod(file.as_bytes(), mode)?))
            .context(|| format!("write {}", escaped(&dir.join(&file))))?;
    }
    Ok(())
}
