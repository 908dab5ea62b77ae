//! A CA and node certificates made in memory: for `pki`, for the demo, for tests.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Eku, IsCa, Issuer, KeyPair,
    KeyUsagePurpose as Usage, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, DnsName};
use webpki::EndEntityCert;

use super::cert::{check_dns_name, common_name};
use crate::error::{Class, Error, Result};
use crate::model::NodeId;

/// Seconds: certificates are valid a little before they are made, for nodes whose clock is behind.
pub const BACK: i64 = 300;
/// Seconds.
pub const DAY: i64 = 86_400;
/// A CA's common name is the cluster's between these.
const BEFORE: &str = "syncagent ";
const AFTER: &str = " CA";
/// A common name has at most 64 characters.
const CLUSTER_MAX: usize = 64 - BEFORE.len() - AFTER.len();
/// The last second of the year 9999, where certificates end.
const LAST: i64 = 253_402_300_799;

/// A CA's certificate and key, both PEM.
pub struct Ca {
    /// Its certificate; several when an older one is kept beside it.
    pub cert_pem: String,
    /// Its private key: whoever has it can be any node.
    pub key_pem: String,
}

/// A node's certificate and key, both PEM.
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key.
    pub key_pem: String,
}

/// A new CA, valid from five minutes ago for `days`.
///
/// # Errors
/// [`Class::Config`]: `cluster` is empty, longer than 51 bytes or holds control characters.
pub fn new_ca(cluster: &str, days: u32) -> Result<Ca> {
    if cluster.is_empty() || cluster.len() > CLUSTER_MAX || cluster.chars().any(char::is_control) {
        let what = format!("the cluster's name has 1 to {CLUSTER_MAX} bytes and no control characters");
        return Err(Error::new(Class::Config, what));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = called(&format!("{BEFORE}{cluster}{AFTER}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![Usage::KeyCertSign, Usage::CrlSign];
    set_validity(&mut params, (-BACK, i64::from(days) * DAY));
    let key = new_key()?;
    let cert = params.self_signed(&key).map_err(|e| failed("make the CA's certificate", &e))?;
    Ok(Ca { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

/// The cluster that the CA with this common name was made for.
pub fn cluster_of(common_name: &str) -> Option<&str> {
    common_name.strip_prefix(BEFORE)?.strip_suffix(AFTER)
}

impl Ca {
    /// A new key and certificate with the DNS names `node` and `names` and the addresses `ips`, for both
    /// sides of a connection. `validity`: its first and last second, counted from now.
    ///
    /// # Errors
    /// [`Class::Config`]: `node` or a name cannot stand in a certificate; the CA was not made by [`new_ca`].
    pub fn issue(
        &self,
        node: &NodeId,
        names: &[String],
        ips: &[IpAddr],
        validity: (i64, i64),
    ) -> Result<Issued> {
        let mut params = CertificateParams::default();
        check_dns_name(node)?;
        for name in std::iter::once(node.as_str()).chain(names.iter().map(String::as_str)) {
            let bad = || Error::new(Class::Config, format!("`{name}` is not a DNS name"));
            DnsName::try_from(name).map_err(|_| bad())?;
            params.subject_alt_names.push(SanType::DnsName(name.try_into().map_err(|_| bad())?));
        }
        params.subject_alt_names.extend(ips.iter().copied().map(SanType::IpAddress));
        // a common name has no room for a longer one, and only people look at it
        let subject: String = node.as_str().chars().take(64).collect();
        params.distinguished_name = called(&subject);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![Usage::DigitalSignature];
        params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, validity);
        let key = new_key()?;
        let (_, issuer) = self.issuer()?;
        let cert = params.signed_by(&key, &issuer).map_err(|e| failed("make the certificate", &e))?;
        Ok(Issued { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// The one of its certificates that its key belongs to.
    ///
    /// # Errors
    /// [`Class::Config`] as for [`Ca::issue`].
    pub fn certificate(&self) -> Result<CertificateDer<'static>> {
        self.issuer().map(|(cert, _)| cert)
    }

    fn issuer(&self) -> Result<(CertificateDer<'static>, Issuer<'static, KeyPair>)> {
        let unusable = |why: &str| Error::new(Class::Config, format!("the CA cannot be used: {why}"));
        let key =
            KeyPair::from_pem(&self.key_pem).map_err(|_| unusable("its key is not one of `pki init`"))?;
        let spki = key.subject_public_key_info();
        let cert = CertificateDer::pem_slice_iter(self.cert_pem.as_bytes())
            .filter_map(|cert| cert.ok())
            .find(|cert| {
                EndEntityCert::try_from(cert).is_ok_and(|c| c.subject_public_key_info().as_ref() == spki)
            })
            .ok_or_else(|| unusable("its key does not belong to its certificate"))?;
        let name = common_name(&cert)
            .ok_or_else(|| unusable("`pki init` has not made it; issue certificates with what did"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = called(&name);
        Ok((cert, Issuer::new(params, key)))
    }
}

fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| failed("make a key", &e))
}

fn failed(attempt: &str, e: &rcgen::Error) -> Error {
    Error::new(Class::Permanent, format!("cannot {attempt}: {e}"))
}

fn called(name: &str) -> rcgen::DistinguishedName {
    let mut dn = rcgen::DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    dn
}

/// Its first and last second, counted from now.
fn set_validity(params: &mut CertificateParams, (first, last): (i64, i64)) {
    let now = jiff::Timestamp::now().as_second();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |seconds: i64| {
        let second = now.saturating_add(seconds).clamp(0, LAST);
        epoch + Duration::from_secs(second.unsigned_abs())
    };
    (params.not_before, params.not_after) = (at(first), at(last));
}
