use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::*;
use crate::peer::tls::{DAY, Issued, new_ca};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_has_what_its_template_says_and_is_retried_until_it_is_answered_well() {
    let server =
        Server::new(|n, _| if n == 0 { answer(500, "busy\n\u{1b}[31mnow") } else { answer(200, "OK") }).await;
    let bench = Bench::new();
    let secret = bench.write("auth", "Bearer s3cret-s3cret\n");
    let refresher = bench.start(&format!(
        r#"[[refresh]]
        name = "carbon"
        http = {{ url = "http://127.0.0.1:{}/do/{{tree}}?g={{generation}}", headers = {{ Authorization = {{ file = "{secret}" }}, X-A = "b" }}, body = '{{"node":"{{node}}","paths":{{paths-json}}}}' }}
        "#,
        server.port
    ));
    refresher.expect(id(7)).unwrap();
    assert!(refresher.is_open());
    refresher.applied(id(7), paths(&["b \"x\".car", "a"])).unwrap();
    let error = fails(&refresher, RefreshState::Failing).await;
    let expected = format!(
        "carbon: POST http://127.0.0.1:{}/do/t?g=1.7 answered 500, not 2xx: busy \\x1b[31mnow",
        server.port
    );
    assert_eq!(error, expected);
    assert_eq!((refresher.refreshed(), refresher.complete()), (None, None));
    completes(&refresher, id(7)).await;
    assert_eq!((refresher.refreshed(), refresher.verified()), (Some(id(7)), Some(id(7))));
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    let (head, body) = requests[1].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /do/t?g=1.7 HTTP/1.1\r\n"), "{head}");
    for header in [
        &format!("host: 127.0.0.1:{}", server.port),
        "authorization: Bearer s3cret-s3cret",
        "x-a: b",
        "content-type: application/json",
        "connection: close",
    ] {
        assert!(head.split("\r\n").any(|line| line == header), "{header}: {head}");
    }
    assert_eq!(body, r#"{"node":"app1","paths":["a","b \"x\".car"]}"#);
    assert!(bench.news.load(Ordering::Relaxed) >= 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_holds_nothing_else_up() {
    let server = Server::new(|n, _| if n == 0 { Reply::Hang } else { answer(204, "") }).await;
    let bench = Bench::new();
    let url = format!("http://127.0.0.1:{}/", server.port);
    let refresher = bench.start(&format!("[[refresh]]\nhttp = {{ url = \"{url}\" }}\ntimeout = \"2s\"\n"));
    refresher.applied(id(1), paths(&["a"])).unwrap();
    until("the request", || server.count() == 1).await;
    assert_eq!(refresher.status().state, RefreshState::Running);
    // a newer generation comes in meanwhile, and is not held up
    let began = Instant::now();
    refresher.expect(id(2)).unwrap();
    refresher.applied(id(2), paths(&["b"])).unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
    until("the second request", || server.count() == 2).await;
    completes(&refresher, id(2)).await;
    refresher.stop();
    refresher.ended().await;

    let server = Server::new(|_, _| Reply::Hang).await;
    let url = format!("http://127.0.0.1:{}/x", server.port);
    let bench = Bench::new();
    let refresher = bench.start(&format!("[[refresh]]\nhttp = {{ url = \"{url}\" }}\ntimeout = \"200ms\"\n"));
    refresher.applied(id(1), paths(&["a"])).unwrap();
    let error = fails(&refresher, RefreshState::Failing).await;
    assert_eq!(error, format!("http: POST {url} gave no answer within 0.2 s"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_said_so() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let bench = Bench::new();
    let refresher = bench.start(&format!("[[refresh]]\nhttp = {{ url = \"http://127.0.0.1:{port}\" }}\n"));
    refresher.applied(id(1), paths(&["a"])).unwrap();
    let error = fails(&refresher, RefreshState::Failing).await;
    assert!(error.contains("no connection") && error.contains("refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_are_not_followed_and_an_answer_may_have_to_hold_something() {
    let server =
        Server::new(|n, _| if n == 0 { answer(302, "") } else { answer(200, &"x".repeat(2 << 20)) }).await;
    let bench = Bench::new();
    let refresher = bench.start(&format!(
        "[[refresh]]\nhttp = {{ url = \"http://127.0.0.1:{}\", contains = \"OK {{generation}}\" }}\n",
        server.port
    ));
    refresher.applied(id(1), paths(&["a"])).unwrap();
    let error = fails(&refresher, RefreshState::Failing).await;
    assert!(error.ends_with("answered 302, not 2xx"), "{error}");
    until("the second answer", || refresher.status().error.is_some_and(|e| e.what.contains("200"))).await;
    let error = refresher.status().error.unwrap().what;
    assert!(error.contains("answered 200 without `OK 1.1`: xxx") && error.len() < 400, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_is_complete_only_when_the_server_was_seen_to_have_the_change() {
    let shows = Arc::new(AtomicBool::new(false));
    let seen = shows.clone();
    let server = Server::new(move |_, request| match request.starts_with("GET /version") {
        true if seen.load(Ordering::Relaxed) => answer(200, "version 1.4 of t"),
        true => answer(200, "version 1.3 of t"),
        false => answer(200, "OK"),
    })
    .await;
    let bench = Bench::new();
    let url = format!("http://127.0.0.1:{}", server.port);
    let refresher = bench.start(&format!(
        r#"[[refresh]]
        http = {{ url = "{url}/refresh" }}
        verify = {{ http = {{ url = "{url}/version", contains = "version {{generation}} of {{tree}}" }} }}
        "#
    ));
    assert!(refresher.has_verify());
    refresher.applied(id(4), paths(&["a"])).unwrap();
    until("three questions", || server.count() >= 4).await;
    assert_eq!(
        (refresher.refreshed(), refresher.verified(), refresher.complete()),
        (Some(id(4)), None, None)
    );
    let status = refresher.status();
    assert!(
        refresher.is_open() && status.state == RefreshState::Verifying && status.error.is_none(),
        "{status:?}"
    );
    shows.store(true, Ordering::Relaxed);
    completes(&refresher, id(4)).await;
    let told = server.requests().iter().filter(|r| r.starts_with("POST")).count();
    assert_eq!((told, refresher.verified()), (1, Some(id(4))));
}

fn acceptor(issued: &Issued, ca: &str) -> tokio_rustls::TlsAcceptor {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap(),
        )
        .unwrap();
    Arc::new(config).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_verified_against_a_private_ca_and_proves_who_asks() {
    let (ca, foreign) = (new_ca("x", 10).unwrap(), new_ca("y", 10).unwrap());
    let node = |name: &str| NodeId::new(name).unwrap();
    let ip = ["127.0.0.1".parse().unwrap()];
    let server_cert = ca.issue(&node("server"), &["localhost".into()], &ip, (-300, DAY)).unwrap();
    let client = ca.issue(&node("client"), &[], &[], (-300, DAY)).unwrap();
    let server = Server::over(Some(acceptor(&server_cert, &ca.cert_pem)), |_, _| answer(200, "OK")).await;
    let bench = Bench::new();
    let good = bench.write("ca.pem", &ca.cert_pem);
    let bad = bench.write("foreign.pem", &foreign.cert_pem);
    let (cert, key) = (bench.write("c.pem", &client.cert_pem), bench.write("c.key", &client.key_pem));
    let table = |host: &str, rest: &str| {
        format!("[[refresh]]\nhttp = {{ url = \"https://{host}:{}/\", {rest} }}\n", server.port)
    };
    let identity = format!("cert = \"{cert}\", key = \"{key}\"");
    for (host, rest, expected) in [
        ("127.0.0.1", format!("ca = \"{bad}\", {identity}"), "UnknownIssuer"),
        // none of the CAs of the host
        ("127.0.0.1", identity.clone(), "ssuer"),
        ("127.0.0.1", format!("ca = \"{good}\""), "ertificate"),
        ("127.0.0.1", format!("ca = \"{key}\", {identity}"), "no certificate in the CA file"),
    ] {
        let bench = Bench::new();
        let refresher = bench.start(&table(host, &rest));
        refresher.applied(id(1), paths(&["a"])).unwrap();
        let error = fails(&refresher, RefreshState::Failing).await;
        assert!(error.contains(expected), "{error}, not {expected}");
        assert_eq!(server.count(), 0);
    }
    for host in ["127.0.0.1", "localhost"] {
        let bench = Bench::new();
        let refresher = bench.start(&table(host, &format!("ca = \"{good}\", {identity}")));
        refresher.applied(id(1), paths(&["a"])).unwrap();
        completes(&refresher, id(1)).await;
    }
    assert_eq!(server.count(), 2);

    let other = ca.issue(&node("elsewhere"), &[], &[], (-300, DAY)).unwrap();
    let server = Server::over(Some(acceptor(&other, &ca.cert_pem)), |_, _| answer(200, "OK")).await;
    let bench = Bench::new();
    let refresher = bench.start(&format!(
        "[[refresh]]\nhttp = {{ url = \"https://localhost:{}/\", ca = \"{good}\", {identity} }}\n",
        server.port
    ));
    refresher.applied(id(1), paths(&["a"])).unwrap();
    let error = fails(&refresher, RefreshState::Failing).await;
    assert!(error.contains("not valid for name"), "{error}");
    assert_eq!(server.count(), 0);
}
