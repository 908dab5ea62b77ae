//! Handshake errors in an operator's words: what is wrong, on which side, what to do.
//!
//! In TLS 1.3 a client's handshake is over before the server has looked at its certificate: a refusal reaches
//! it as an alert with the first read. So errors of reads are explained here too, not only of handshakes.

use std::error::Error;
use std::io;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, InvalidMessage};

use super::cert::OtherNode;

const OWN_CA: &str = "this cluster's CA (`ca` under [tls])";

/// A sentence about why a connection failed, without a name for the peer. `err` may hold the TLS error at any
/// depth; without one the sentence is its own.
pub fn explain(err: &(dyn Error + 'static)) -> String {
    let mut next = Some(err);
    while let Some(e) = next {
        if let Some(tls) = e.downcast_ref::<rustls::Error>() {
            return sentence(tls);
        }
        // an io::Error names what its content comes from, not its content
        let inside = e.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inside.map(|e| e as &(dyn Error + 'static)).or_else(|| e.source());
    }
    match err.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::UnexpectedEof) => {
            "the peer ended the connection without a word: it stopped, or it is no syncagent".into()
        }
        // which can overtake its alert
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            format!("the peer broke the connection off ({err}); its log may say why")
        }
        _ => err.to_string(),
    }
}

fn sentence(err: &rustls::Error) -> String {
    use rustls::Error as E;
    match err {
        E::InvalidCertificate(e) => format!("the certificate of the peer {}", fault(e)),
        E::NoCertificatesPresented => {
            "the peer showed no certificate: only nodes of this cluster may connect".into()
        }
        E::AlertReceived(alert) => refusal(*alert),
        E::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            "the peer does not speak TLS: another program, or a wrong port".into()
        }
        E::PeerIncompatible(e) => {
            format!("the peer's TLS and ours have nothing in common (TLS 1.2 or 1.3 is needed): {e:?}")
        }
        E::NoApplicationProtocol => "the peer does not speak HTTP/1.1".into(),
        e => format!("TLS failed: {e}"),
    }
}

/// What the peer says of our certificate.
fn refusal(alert: AlertDescription) -> String {
    use AlertDescription as A;
    let why = match alert {
        A::UnknownCA | A::DecryptError => {
            "not signed by the CA that the peer trusts; compare `ca` under [tls] on both nodes"
        }
        A::CertificateExpired => {
            "expired or not yet valid there; renew it, or compare the clocks of both nodes"
        }
        A::CertificateUnknown => "it expects another node id than those of our certificate",
        A::UnsupportedCertificate => {
            "it is not made for this use; its extended key usages must be serverAuth and clientAuth"
        }
        A::BadCertificate | A::CertificateRevoked | A::AccessDenied => "the peer's log says why",
        A::CertificateRequired => return "the peer wants a certificate and got none".into(),
        A::NoApplicationProtocol => return "the peer does not speak HTTP/1.1".into(),
        A::ProtocolVersion => return "the peer speaks neither TLS 1.2 nor 1.3".into(),
        alert => return format!("the peer broke the connection off ({alert:?}); its log says why"),
    };
    format!("the peer refuses our certificate: {why}")
}

/// What is wrong with a certificate, to be read after "the certificate".
pub(super) fn fault(e: &CertificateError) -> String {
    use CertificateError as C;
    match e {
        C::ExpiredContext { time, not_after } => format!(
            "expired {} ago, at {}: renew it (here it is {})",
            span(not_after, time),
            date(not_after),
            date(time)
        ),
        C::NotValidYetContext { time, not_before } => format!(
            "is not valid before {}, {} from now: compare the clocks of both nodes (here it is {})",
            date(not_before),
            span(time, not_before),
            date(time)
        ),
        C::UnknownIssuer => format!(
            "is not signed by {OWN_CA}: it is another cluster's, the CA was replaced, or its file lacks the \
             certificates between"
        ),
        C::BadSignature => {
            format!(
                "is not signed by {OWN_CA}, but by one of the same name: it is another cluster's, or the CA \
                 was replaced"
            )
        }
        C::InvalidPurposeContext { required, .. } => {
            format!("is not made for {required}: its extended key usages must be serverAuth and clientAuth")
        }
        C::Other(e) if e.0.is::<OtherNode>() => e.0.to_string(),
        e => format!("is not accepted: {e}"),
    }
}

fn date(time: &UnixTime) -> String {
    let second = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(second).map_or_else(|_| format!("second {second}"), |t| t.to_string())
}

fn span(from: &UnixTime, to: &UnixTime) -> String {
    rough_time(to.as_secs().saturating_sub(from.as_secs()))
}

/// A length of time in its largest unit, rounded down: "3 days".
pub fn rough_time(seconds: u64) -> String {
    let units = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let (size, unit) = units.into_iter().find(|(size, _)| seconds >= *size).unwrap_or((1, "second"));
    let n = seconds / size;
    format!("{n} {unit}{}", if n == 1 { "" } else { "s" })
}
