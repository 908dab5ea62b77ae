//! What a certificate says, read by webpki, and the verifier of a server that must be one certain node.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::ring::default_provider;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};

use crate::error::{Class, Error, Result};
use crate::model::NodeId;

/// So many names of a peer's certificate are shown.
const SHOWN: usize = 8;

/// The node ids that a certificate carries: its DNS names that are node ids. Wildcards are none.
pub fn node_ids(cert: &CertificateDer<'_>) -> Vec<NodeId> {
    let Ok(cert) = EndEntityCert::try_from(cert) else {
        return Vec::new();
    };
    cert.valid_dns_names().filter_map(|name| NodeId::new(name).ok()).collect()
}

/// Checks that a node id can stand in a certificate: not every one is a DNS name.
///
/// # Errors
/// [`Class::Config`]: it cannot, such as `10`, `app.1`, `a-.b`.
pub fn check_dns_name(node: &NodeId) -> Result<()> {
    let what = || {
        format!(
            "the node id `{node}` cannot stand in a certificate: as a DNS name its parts between the dots \
             have at most 63 characters and do not begin or end with `-`, and the last one is not a number"
        )
    };
    DnsName::try_from(node.as_str()).map(drop).map_err(|_| Error::new(Class::Config, what()))
}

/// From when until when a certificate is valid, both included, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: i64,
    /// The last second.
    pub not_after: i64,
}

/// A certificate's validity; `None` for what is no certificate.
pub fn validity(cert: &CertificateDer<'_>) -> Option<Validity> {
    // webpki says when a certificate is valid only by refusing it, and looks at that first
    let refused_at = |seconds| {
        let cert = EndEntityCert::try_from(cert).ok()?;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        cert.verify_for_usage(&[], &[], &[], time, KeyUsage::client_auth(), None, None).err()
    };
    let seconds = |time: UnixTime| i64::try_from(time.as_secs()).ok();
    let not_before = match refused_at(0)? {
        webpki::Error::CertNotValidYet { not_before, .. } => seconds(not_before)?,
        _ => 0,
    };
    match refused_at(u64::MAX)? {
        webpki::Error::CertExpired { not_after, .. } => {
            Some(Validity { not_before, not_after: seconds(not_after)? })
        }
        _ => None,
    }
}

/// The common name of a certificate whose subject is that alone, as it is in those made here.
pub fn common_name(cert: &CertificateDer<'_>) -> Option<String> {
    let cert = EndEntityCert::try_from(cert).ok()?;
    // SET { SEQUENCE { OID 2.5.4.3, UTF8String } }, short enough for lengths of one byte
    match cert.subject() {
        [0x31, set, 0x30, _, 0x06, 3, 0x55, 0x04, 0x03, 0x0c, len, name @ ..]
            if *set < 0x80 && usize::from(*len) == name.len() =>
        {
            String::from_utf8(name.to_vec()).ok()
        }
        _ => None,
    }
}

/// A certificate's fingerprint as other tools print it: SHA-256, `AB:CD:...`.
pub fn sha256(cert: &CertificateDer<'_>) -> Option<String> {
    let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13()?;
    let digest = suite.common.hash_provider.hash(cert);
    let bytes: Vec<String> = digest.as_ref().iter().map(|b| format!("{b:02X}")).collect();
    Some(bytes.join(":"))
}

/// "carries `a` and `b`", for messages.
pub(super) fn carries(ids: &[NodeId]) -> String {
    let mut names: Vec<String> = ids.iter().take(SHOWN).map(|id| format!("`{id}`")).collect();
    if ids.len() > SHOWN {
        names.push(format!("{} more", ids.len() - SHOWN));
    }
    match names.split_last() {
        None => "carries no node id (a DNS name, not only a common name)".into(),
        Some((one, [])) => format!("carries the node id {one}"),
        Some((last, others)) => format!("carries the node ids {} and {last}", others.join(", ")),
    }
}

/// The certificate is good, but another node's.
#[derive(Debug, thiserror::Error)]
#[error("{carried}, not `{expect}`, which is expected there: wrong `source-id`, or another node's address")]
pub(super) struct OtherNode {
    carried: String,
    expect: NodeId,
}

/// Verifies a server by chain, validity and node id.
#[derive(Debug)]
pub(super) struct PinnedNode {
    expect: NodeId,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedNode {
    pub(super) fn new(expect: NodeId, roots: Arc<RootCertStore>) -> Self {
        Self { expect, roots, algorithms: default_provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for PinnedNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _host: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let cert = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&cert, &self.roots, intermediates, now, algorithms)?;
        let ids = node_ids(end_entity);
        if ids.contains(&self.expect) {
            return Ok(ServerCertVerified::assertion());
        }
        let other = OtherNode { carried: carries(&ids), expect: self.expect.clone() };
        Err(CertificateError::Other(OtherError(Arc::new(other))).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
