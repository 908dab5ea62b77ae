//! What went wrong, as what the caller can do about it.

use std::error::Error as StdError;
use std::io;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::http::{Response, StatusCode};
use hyper::body::Incoming;

use super::link::{Link, within};
use crate::error::{Class, Error};
use crate::model::escape;
use crate::peer::tls::explain;

/// The longest refusal that is shown.
const TEXT: usize = 1024;
/// How long it is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// An error of hyper, TLS or the socket.
pub(super) fn broken(what: &str, e: &(dyn StdError + 'static)) -> Error {
    let (class, text) = causes(e);
    Error::new(class, format!("{what}: {text}"))
}

/// The worst class of an error and its causes, and all their texts.
fn causes(e: &(dyn StdError + 'static)) -> (Class, String) {
    let mut class = Class::Transient;
    let mut text = String::new();
    let mut next = Some(e);
    while let Some(e) = next {
        if e.is::<rustls::Error>() {
            // what surrounds it says less
            return (class_of(e).unwrap_or(class), explain(e));
        }
        let said = e.to_string();
        if !text.contains(&said) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&said);
        }
        if let Some(own) = class_of(e) {
            class = own;
        }
        // an io::Error's source() skips the error that it wraps
        let wrapped = e.downcast_ref::<io::Error>().and_then(|e| e.get_ref());
        next = wrapped.map(|e| e as &(dyn StdError + 'static)).or_else(|| e.source());
    }
    (class, text)
}

fn class_of(e: &(dyn StdError + 'static)) -> Option<Class> {
    if let Some(e) = e.downcast_ref::<hyper::Error>() {
        return e.is_parse().then_some(Class::Integrity);
    }
    if let Some(e) = e.downcast_ref::<rustls::Error>() {
        use rustls::Error as Tls;
        return Some(match e {
            Tls::AlertReceived(_) | Tls::InvalidCertificate(_) | Tls::NoCertificatesPresented => {
                Class::Refused
            }
            _ => Class::Integrity,
        });
    }
    let kind = e.downcast_ref::<io::Error>()?.kind();
    matches!(kind, io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput).then_some(Class::Integrity)
}

/// A status that is no success, with the line that came with it.
pub(super) async fn refused(
    what: &str,
    link: &mut Link,
    response: Response<Incoming>,
    cancel: Option<&AtomicBool>,
) -> Error {
    let status = response.status();
    let class = match status {
        StatusCode::UPGRADE_REQUIRED => Class::Config,
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::CONFLICT => Class::Refused,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Class::Transient,
        s if s.is_server_error() => Class::Transient,
        s if s.is_client_error() => Class::Permanent,
        _ => Class::Integrity,
    };
    let mut text = Vec::new();
    let mut body = response.into_body();
    let read = async {
        while let Ok(Some(bytes)) = link.frame(&mut body, None).await {
            text.extend_from_slice(&bytes[..bytes.len().min(TEXT - text.len())]);
            if text.len() == TEXT {
                break;
            }
        }
    };
    // the status says enough if the line does not come
    let _ = within(PATIENCE, cancel, "", read).await;
    Error::new(class, format!("{what}: {} ({status})", escape(text.trim_ascii())))
}
