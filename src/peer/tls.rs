//! Who a peer is: mutual TLS on which both sides prove a node id, a DNS name in their certificate.
//!
//! Everything that can be wrong with the own files is found when they are loaded, not in the first handshake.
//! A client pins the node it means: whatever host answers, its certificate must carry that id. Every
//! [`Identity::client_config`] has a session store of its own, so that a session begun with one node is never
//! resumed by a connection that expects another.

mod ca;
mod cert;
mod explain;

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};

pub use ca::{BACK, Ca, DAY, Issued, cluster_of, new_ca};
pub use cert::{Validity, check_dns_name, common_name, node_ids, sha256, validity};
pub use explain::{explain, rough_time};

use crate::error::{Class, Error, Result};
use crate::model::{NodeId, escaped};
use cert::PinnedNode;

const ALPN: &[u8] = b"http/1.1";

/// Where an [`Identity`] is read from: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The node's certificate, then those between it and the CA, if any.
    pub cert: PathBuf,
    /// The certificate's private key, not encrypted.
    pub key: PathBuf,
    /// The CA's certificate; several while the CA is being replaced.
    pub ca: PathBuf,
}

/// Certificate, key and CA, loaded; both directions. Clones share the same.
#[derive(Clone, Debug)]
pub struct Identity {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    roots: Arc<RootCertStore>,
    not_after: i64,
}

impl Identity {
    /// Reads the PEM files. A key file that everybody may read, and a certificate that peers with the same CA
    /// file would refuse, are warned of.
    ///
    /// # Errors
    /// [`Class::Config`]: a file is missing, unreadable or without certificate or key; the key does not
    /// belong to the certificate; the certificate does not carry `node`; it has expired or is not valid yet.
    pub fn load(tls: &TlsFiles, node: &NodeId) -> Result<Self> {
        let provider = Arc::new(default_provider());
        let own = Arc::new(certified_key(tls, &provider)?);
        let roots = Arc::new(roots(&tls.ca)?);
        let shown = escaped(&tls.cert);
        check_node(&own.cert[0], node, &shown)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| config(format!("the CA {} cannot be used: {e}", escaped(&tls.ca))))?;
        check_own_chain(&own.cert, node, &roots, verifier.as_ref(), &shown)?;

        let resolver = Arc::new(SingleCertAndKey::from(own.clone()));
        let unusable = |e: rustls::Error| config(format!("TLS cannot be set up: {e}"));
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(resolver.clone());
        server.alpn_protocols = vec![ALPN.to_vec()];
        // never used as it is: each client gets its own verifier
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(unusable)?
            .with_root_certificates(roots.clone())
            .with_client_cert_resolver(resolver);
        client.alpn_protocols = vec![ALPN.to_vec()];
        let not_after = validity(&own.cert[0])
            .ok_or_else(|| config(format!("the certificate {shown} has no readable validity")))?
            .not_after;
        Ok(Self { server: Arc::new(server), client: Arc::new(client), roots, not_after })
    }

    /// For accepting: TLS 1.3 and 1.2, a client certificate of this cluster's CA required, ALPN `http/1.1`.
    /// Who the client is say the [`node_ids`] of the connection's first peer certificate, also after a
    /// resumption, which does not look at the certificate's validity again.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For connecting to the node `expect`: chain and validity are verified against the CA, and the
    /// certificate must carry `expect`. The host name that is connected to plays no part. Make one per peer
    /// and keep it: it holds the sessions that can be resumed.
    pub fn client_config(&self, expect: &NodeId) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.client);
        let verifier = PinnedNode::new(expect.clone(), self.roots.clone());
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        // a clone shares its store, and a resumed session is not verified again (rustls has a guard, too)
        config.resumption = Resumption::default();
        Arc::new(config)
    }

    /// When the own certificate ends, in seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }
}

fn config(what: impl Into<String>) -> Error {
    Error::new(Class::Config, what)
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error {
        class: Class::Config,
        what: format!("cannot read the {what} {}", escaped(path)),
        source: Some(e),
    })
}

/// All certificates of a PEM file, one at least.
///
/// # Errors
/// [`Class::Config`]: unreadable, damaged, or none in it.
pub fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read(path, what)?;
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|e| config(format!("the {what} {} is damaged: {e}", escaped(path))))?;
    if found.is_empty() {
        return Err(config(format!(
            "there is no certificate in the {what} {} (PEM is expected)",
            escaped(path)
        )));
    }
    Ok(found)
}

fn certified_key(tls: &TlsFiles, provider: &CryptoProvider) -> Result<CertifiedKey> {
    let chain = certificates(&tls.cert, "certificate")?;
    let shown = escaped(&tls.key);
    let pem = read(&tls.key, "key")?;
    let key = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| config(format!("there is no key in {shown} (PEM, not encrypted, is expected)")))?;
    if std::fs::metadata(&tls.key).is_ok_and(|m| m.mode() & 0o007 != 0) {
        tracing::warn!("the key {shown} is open to every user of this host: chmod 0600 {shown}");
    }
    CertifiedKey::from_der(chain, key, provider).map_err(|e| match e {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            config(format!("the key {shown} does not belong to the certificate {}", escaped(&tls.cert)))
        }
        rustls::Error::InvalidCertificate(e) => {
            config(format!("the certificate {} cannot be used: {e}", escaped(&tls.cert)))
        }
        e => config(format!("the key {shown} cannot be used: {e}")),
    })
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(path, "CA file")? {
        roots.add(cert).map_err(|e| {
            config(format!("a certificate in the CA file {} cannot be used: {e}", escaped(path)))
        })?;
    }
    Ok(roots)
}

fn check_node(cert: &CertificateDer<'_>, node: &NodeId, shown: &str) -> Result<()> {
    check_dns_name(node)?;
    let carried = node_ids(cert);
    if carried.contains(node) {
        return Ok(());
    }
    let what = format!(
        "the certificate {shown} {}, not `{node}`: correct `id` under [node], or issue a certificate with \
         the DNS name `{node}`",
        cert::carries(&carried)
    );
    Err(config(what))
}

/// Verifies the own chain as peers will: what has run out is an error, the rest may be meant.
fn check_own_chain(
    chain: &[CertificateDer<'_>],
    node: &NodeId,
    roots: &Arc<RootCertStore>,
    clients: &dyn ClientCertVerifier,
    shown: &str,
) -> Result<()> {
    let (now, between) = (UnixTime::now(), &chain[1..]);
    // our own verifier looks at no host name
    let host = ServerName::from(IpAddr::from(Ipv4Addr::UNSPECIFIED));
    let servers = PinnedNode::new(node.clone(), roots.clone());
    let as_server = servers.verify_server_cert(&chain[0], between, &host, &[], now).map(drop);
    let as_client = clients.verify_client_cert(&chain[0], between, now).map(drop);
    for (result, role) in [(as_server, "serves"), (as_client, "connects")] {
        use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        match result {
            Ok(()) => {}
            Err(rustls::Error::InvalidCertificate(
                e @ (Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }),
            )) => return Err(config(format!("the certificate {shown} {}", explain::fault(&e)))),
            Err(rustls::Error::InvalidCertificate(e)) => {
                tracing::warn!(
                    "peers will refuse this node when it {role}: the certificate {shown} {}",
                    explain::fault(&e)
                );
            }
            Err(e) => {
                tracing::warn!("peers will refuse this node when it {role}: the certificate {shown}: {e}")
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
