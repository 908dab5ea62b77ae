use std::io;

use proptest::prelude::*;
use rustls::ProtocolVersion;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;

const YEAR: i64 = 365 * DAY;

fn id(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

fn a_ca() -> Ca {
    new_ca("test", 10).unwrap()
}

/// What a node reads, in a directory of its own.
struct Files {
    _dir: tempfile::TempDir,
    files: TlsFiles,
}

impl Files {
    fn new(cert: &str, key: &str, ca: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let files = TlsFiles { cert: path("n.pem", cert), key: path("n.key", key), ca: path("ca.pem", ca) };
        Self { _dir: dir, files }
    }

    fn issued(ca: &Ca, node: &str, validity: (i64, i64)) -> Self {
        let issued = ca.issue(&id(node), &[], &[], validity).unwrap();
        Self::new(&issued.cert_pem, &issued.key_pem, &ca.cert_pem)
    }

    fn load(&self, node: &str) -> Result<Identity> {
        Identity::load(&self.files, &id(node))
    }

    #[track_caller]
    fn refused(&self, node: &str) -> String {
        let e = self.load(node).map(drop).unwrap_err();
        assert_eq!(e.class, Class::Config);
        e.to_string()
    }
}

fn good(ca: &Ca, node: &str) -> Identity {
    Files::issued(ca, node, (-60, YEAR)).load(node).unwrap()
}

/// An identity whose certificate [`Identity::load`] would refuse: what a node has that runs for long, or
/// whose clock is wrong.
fn unchecked(ca: &Ca, node: &str, validity: (i64, i64)) -> Identity {
    let mut identity = good(ca, node);
    let files = Files::issued(ca, node, validity);
    let own = Arc::new(certified_key(&files.files, &default_provider()).unwrap());
    let resolver = Arc::new(SingleCertAndKey::from(own));
    Arc::make_mut(&mut identity.server).cert_resolver = resolver.clone();
    Arc::make_mut(&mut identity.client).client_auth_cert_resolver = resolver;
    identity
}

type Ends = (io::Result<client::TlsStream<DuplexStream>>, io::Result<server::TlsStream<DuplexStream>>);

/// A handshake and a byte each way; so a refusal after a client's handshake reaches the client.
async fn meet(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Ends {
    let (a, b) = tokio::io::duplex(1 << 16);
    let serve = async {
        let mut stream = TlsAcceptor::from(server).accept(a).await?;
        stream.write_all(b"s").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let connect = async {
        let host = ServerName::try_from("192.0.2.1").unwrap();
        let mut stream = TlsConnector::from(client).connect(host, b).await?;
        stream.write_all(b"c").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    tokio::join!(connect, serve)
}

/// Both sides' explanations of a connection that fails: the client's, the server's.
async fn refusal(server: &Identity, client: &Identity, expect: &str) -> (String, String) {
    let (c, s) = meet(server.server_config(), client.client_config(&id(expect))).await;
    (explain(&c.map(drop).unwrap_err()), explain(&s.map(drop).unwrap_err()))
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

fn only(versions: &[&'static rustls::SupportedProtocolVersion], identity: &Identity) -> Arc<ClientConfig> {
    let roots = identity.roots.clone();
    let mut config = ClientConfig::builder_with_provider(default_provider().into())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots.clone())
        .with_client_cert_resolver(identity.client.client_auth_cert_resolver.clone());
    config.dangerous().set_certificate_verifier(Arc::new(PinnedNode::new(id("source"), roots)));
    config.into()
}

#[tokio::test]
async fn nodes_of_one_cluster_meet_and_know_each_other() {
    let ca = a_ca();
    let (source, mirror) = (good(&ca, "source"), good(&ca, "mirror.example.com"));
    let (c, s) = meet(source.server_config(), mirror.client_config(&id("source"))).await;
    let (c, s) = (c.unwrap(), s.unwrap());
    assert_eq!(s.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(s.get_ref().1.alpn_protocol(), Some(ALPN));
    assert_eq!(node_ids(&s.get_ref().1.peer_certificates().unwrap()[0]), [id("mirror.example.com")]);
    assert_eq!(node_ids(&c.get_ref().1.peer_certificates().unwrap()[0]), [id("source")]);
    let (c, s) = meet(mirror.server_config(), source.client_config(&id("mirror.example.com"))).await;
    assert!(c.is_ok() && s.is_ok());
}

#[tokio::test]
async fn tls_1_2_works_with_the_same_checks() {
    let ca = a_ca();
    let (source, mirror) = (good(&ca, "source"), good(&ca, "mirror"));
    let (c, s) = meet(source.server_config(), only(&[&TLS12], &mirror)).await;
    assert!(c.is_ok());
    let s = s.unwrap();
    assert_eq!(s.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_2));
    assert_eq!(node_ids(&s.get_ref().1.peer_certificates().unwrap()[0]), [id("mirror")]);
    let (c, _) = meet(good(&ca, "other").server_config(), only(&[&TLS12], &mirror)).await;
    says(&explain(&c.map(drop).unwrap_err()), &["`other`", "not `source`"]);
}

#[tokio::test]
async fn a_resumed_session_still_says_who_the_client_is() {
    let ca = a_ca();
    let (source, mirror) = (good(&ca, "source"), good(&ca, "mirror"));
    for config in [mirror.client_config(&id("source")), only(&[&TLS12], &mirror)] {
        for kind in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
            let (c, s) = meet(source.server_config(), config.clone()).await;
            let (_c, s) = (c.unwrap(), s.unwrap());
            assert_eq!(s.get_ref().1.handshake_kind(), Some(kind));
            assert_eq!(node_ids(&s.get_ref().1.peer_certificates().unwrap()[0]), [id("mirror")]);
        }
    }
}

#[tokio::test]
async fn a_session_with_one_node_is_not_resumed_for_another() {
    let ca = a_ca();
    let (source, mirror) = (good(&ca, "source"), good(&ca, "mirror"));
    let (c, _) = meet(source.server_config(), mirror.client_config(&id("source"))).await;
    c.unwrap();
    let (c, s) = refusal(&source, &mirror, "standby").await;
    says(&c, &["the certificate of the peer carries the node id `source`, not `standby`"]);
    says(&s, &["refuses our certificate", "another node id"]);
}

#[tokio::test]
async fn another_clusters_certificate_is_refused_on_both_sides() {
    let ca = a_ca();
    let foreign = [("other", "is not signed by this cluster's CA"), ("test", "by one of the same name")];
    for (cluster, why) in foreign {
        let other = new_ca(cluster, 10).unwrap();
        let (ours, theirs) = (good(&ca, "source"), good(&other, "mirror"));
        let (c, s) = refusal(&theirs, &ours, "mirror").await;
        says(&c, &["the certificate of the peer", why]);
        says(&s, &["refuses our certificate: not signed by the CA that the peer trusts"]);
        // it trusts our CA, we not its own
        let mut theirs = theirs;
        theirs.roots = ours.roots.clone();
        let (c, s) = refusal(&ours, &theirs, "source").await;
        says(&s, &["the certificate of the peer", why]);
        says(&c, &["refuses our certificate: not signed by the CA that the peer trusts"]);
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused_on_both_sides() {
    let ca = a_ca();
    let (fine, old) = (good(&ca, "fine"), unchecked(&ca, "old", (-10 * DAY, -3 * DAY)));
    let (c, s) = refusal(&old, &fine, "old").await;
    says(&c, &["the certificate of the peer expired 3 days ago, at 20", "renew it"]);
    says(&s, &["refuses our certificate: expired"]);
    let (c, s) = refusal(&fine, &old, "fine").await;
    says(&s, &["the certificate of the peer expired 3 days ago"]);
    says(&c, &["refuses our certificate: expired"]);
}

#[tokio::test]
async fn a_certificate_of_the_future_is_refused_on_both_sides() {
    let ca = a_ca();
    let (fine, early) = (good(&ca, "fine"), unchecked(&ca, "early", (2 * 3600 + 30, YEAR)));
    let (c, s) = refusal(&early, &fine, "early").await;
    says(&c, &["the certificate of the peer is not valid before 20", "2 hours from now", "clocks"]);
    says(&s, &["refuses our certificate: expired or not yet valid there", "clocks"]);
    let (c, s) = refusal(&fine, &early, "fine").await;
    says(&s, &["is not valid before"]);
    says(&c, &["refuses our certificate"]);
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let ca = a_ca();
    let source = good(&ca, "source");
    for version in [&TLS13, &TLS12] {
        let config = ClientConfig::builder_with_provider(default_provider().into())
            .with_protocol_versions(&[version])
            .unwrap();
        let mut config = config.with_root_certificates(source.roots.clone()).with_no_client_auth();
        let pinned = PinnedNode::new(id("source"), source.roots.clone());
        config.dangerous().set_certificate_verifier(Arc::new(pinned));
        let (c, s) = meet(source.server_config(), config.into()).await;
        says(&explain(&s.map(drop).unwrap_err()), &["the peer showed no certificate"]);
        says(&explain(&c.map(drop).unwrap_err()), &["the peer"]);
    }
}

#[tokio::test]
async fn what_is_no_tls_is_said_to_be_none() {
    let ca = a_ca();
    let (source, mirror) = (good(&ca, "source"), good(&ca, "mirror"));
    let (a, mut b) = tokio::io::duplex(1 << 16);
    b.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let e = TlsAcceptor::from(source.server_config()).accept(a).await.map(drop).unwrap_err();
    says(&explain(&e), &["does not speak TLS"]);

    let (a, mut b) = tokio::io::duplex(1 << 16);
    b.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let host = ServerName::try_from("source").unwrap();
    let e = TlsConnector::from(mirror.client_config(&id("source"))).connect(host, a).await;
    says(&explain(&e.map(drop).unwrap_err()), &["does not speak TLS"]);

    let (a, b) = tokio::io::duplex(1 << 16);
    drop(b);
    let e = TlsAcceptor::from(source.server_config()).accept(a).await.map(drop).unwrap_err();
    says(&explain(&e), &["without a word"]);
}

#[test]
fn an_error_is_explained_at_any_depth() {
    let tls = rustls::Error::NoCertificatesPresented;
    let io = io::Error::new(io::ErrorKind::InvalidData, tls.clone());
    let deep = Error::io(io::Error::other(io), "cannot fetch");
    for e in [&tls as &(dyn std::error::Error + 'static), &deep] {
        says(&explain(e), &["the peer showed no certificate"]);
    }
    assert_eq!(explain(&io::Error::other("odd")), "odd");
}

#[tokio::test]
async fn while_the_ca_is_replaced_both_cas_count() {
    let (old, new) = (a_ca(), new_ca("test", 10).unwrap());
    let both = format!("{}{}", old.cert_pem, new.cert_pem);
    let node = |ca: &Ca, name: &str| {
        let issued = ca.issue(&id(name), &[], &[], (-60, YEAR)).unwrap();
        Files::new(&issued.cert_pem, &issued.key_pem, &both).load(name).unwrap()
    };
    let (a, b) = (node(&old, "a"), node(&new, "b"));
    for (server, client, expect) in [(&a, &b, "a"), (&b, &a, "b")] {
        let (c, s) = meet(server.server_config(), client.client_config(&id(expect))).await;
        assert!(c.is_ok() && s.is_ok());
    }
}

/// A root that signs an intermediate, which signs `node`: the root's PEM, the chain's, the key's.
fn with_intermediate(node: &str, usages: Vec<rcgen::ExtendedKeyUsagePurpose>) -> (String, String, String) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let ca = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params, KeyPair::generate().unwrap())
    };
    let ((root, root_key), (between, between_key)) = (ca("root"), ca("between"));
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let root = Issuer::new(root, root_key);
    let between_pem = between.signed_by(&between_key, &root).unwrap().pem();
    let between = Issuer::new(between, between_key);
    let mut leaf = CertificateParams::new(vec![node.to_owned(), "*.example.com".into()]).unwrap();
    leaf.extended_key_usages = usages;
    let key = KeyPair::generate().unwrap();
    let leaf = leaf.signed_by(&key, &between).unwrap().pem();
    (root_pem, format!("{leaf}{between_pem}"), key.serialize_pem())
}

#[tokio::test]
async fn a_chain_with_an_intermediate_ca_works_and_its_lack_is_named() {
    let (root, chain, key) = with_intermediate("App1.Example.com", vec![]);
    let files = Files::new(&chain, &key, &root);
    let node = files.load("app1.example.com").unwrap();
    let cert = certificates(&files.files.cert, "certificate").unwrap();
    assert_eq!(node_ids(&cert[0]), [id("app1.example.com")], "lower case, no wildcard");
    let (c, s) = meet(node.server_config(), node.client_config(&id("app1.example.com"))).await;
    assert!(c.is_ok() && s.is_ok());

    let leaf = chain.split_inclusive("-----END CERTIFICATE-----").next().unwrap();
    let short = Files::new(leaf, &key, &root).load("app1.example.com").unwrap();
    let (c, _) = refusal(&short, &node, "app1.example.com").await;
    says(&c, &["lacks the certificates between"]);
}

#[tokio::test]
async fn a_certificate_for_servers_only_does_not_connect() {
    let (root, chain, key) = with_intermediate("app1", vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]);
    let node = Files::new(&chain, &key, &root).load("app1").unwrap();
    let (c, s) = refusal(&node, &node, "app1").await;
    says(&s, &["is not made for client authentication", "clientAuth"]);
    says(&c, &["refuses our certificate: it is not made for this use"]);
}

#[test]
fn files_that_cannot_be_used_are_refused_with_the_reason() {
    let ca = a_ca();
    let a = ca.issue(&id("a"), &["a.example.com".into()], &[], (-60, YEAR)).unwrap();
    let b = ca.issue(&id("b"), &[], &[], (-60, YEAR)).unwrap();
    let new = |cert: &str, key: &str| Files::new(cert, key, &ca.cert_pem);

    says(&new("", &a.key_pem).refused("a"), &["no certificate in the certificate", "n.pem"]);
    says(&new(&a.cert_pem, "").refused("a"), &["no key in", "n.key"]);
    says(&new(&a.cert_pem, &b.key_pem).refused("a"), &["n.key does not belong to the certificate", "n.pem"]);
    says(&Files::new(&a.cert_pem, &a.key_pem, "x").refused("a"), &["no certificate in the CA file"]);
    let cut = a.cert_pem.replace("-----END", "");
    says(&new(&cut, &a.key_pem).refused("a"), &["n.pem"]);
    let other = new(&a.cert_pem, &a.key_pem).refused("c");
    says(&other, &["carries the node ids `a` and `a.example.com`, not `c`", "[node]"]);
    says(&new(&a.cert_pem, &a.key_pem).refused("10"), &["`10` cannot stand in a certificate"]);
    let mut gone = new(&a.cert_pem, &a.key_pem);
    gone.files.ca = "/nonexistent/ca.pem".into();
    says(&gone.refused("a"), &["cannot read the CA file /nonexistent/ca.pem", "No such file"]);
    says(&Files::issued(&ca, "a", (-9 * DAY, -2 * DAY)).refused("a"), &["n.pem expired 2 days ago"]);
    says(&Files::issued(&ca, "a", (3700, YEAR)).refused("a"), &["n.pem is not valid before", "1 hour"]);
}

#[test]
fn validity_is_read_to_the_second() {
    let now = jiff::Timestamp::now().as_second();
    let files = Files::issued(&a_ca(), "a", (-60, YEAR));
    let cert = certificates(&files.files.cert, "certificate").unwrap();
    let v = validity(&cert[0]).unwrap();
    assert_eq!(v.not_after - v.not_before, YEAR + 60);
    assert!((now..now + 60).contains(&(v.not_before + 60)), "{v:?}");
    assert_eq!(files.load("a").unwrap().not_after(), v.not_after);
}

#[test]
fn every_name_that_dns_allows_is_read_back_from_the_certificate() {
    let ca = a_ca();
    for name in ["a", "app_1", "node-1.example.com", "1.b2", "x--y", &format!("{}.a", "x".repeat(63))] {
        let issued = ca.issue(&id(name), &[], &[], (-60, YEAR)).unwrap();
        let cert = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
        assert_eq!(node_ids(&cert), [id(name)]);
    }
    for name in ["1", "app.1", "10.0.0.1", "a-.b", &"x".repeat(64)] {
        let e = ca.issue(&id(name), &[], &[], (-60, YEAR)).map(drop).unwrap_err();
        says(&e.to_string(), &[name, "cannot stand in a certificate"]);
    }
}

#[test]
fn a_ca_is_made_for_names_of_sensible_length_only() {
    for cluster in ["", "a\nb", &"x".repeat(52)] {
        assert_eq!(new_ca(cluster, 1).map(drop).unwrap_err().class, Class::Config);
    }
    let long = new_ca(&"x".repeat(51), 1).unwrap();
    assert!(long.issue(&id("a"), &[], &[], (-60, 60)).is_ok());
    let mixed = Ca { cert_pem: a_ca().cert_pem, key_pem: long.key_pem };
    let e = mixed.issue(&id("a"), &[], &[], (-60, 60)).map(drop).unwrap_err();
    says(&e.to_string(), &["does not belong"]);
}

static A_NODE: std::sync::LazyLock<CertificateDer<'static>> = std::sync::LazyLock::new(|| {
    let issued = a_ca().issue(&id("app1"), &["x.example.com".into()], &[], (-60, YEAR)).unwrap();
    CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap()
});

proptest! {
    #[test]
    fn bytes_that_are_no_certificate_are_none(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        at in any::<proptest::sample::Index>(),
    ) {
        let check = |der: Vec<u8>| {
            let cert = CertificateDer::from(der);
            (node_ids(&cert).len(), validity(&cert), common_name(&cert))
        };
        prop_assert_eq!(check(bytes.clone()), (0, None, None));
        // and a damaged one says something or nothing, but does not panic
        let mut der = A_NODE.to_vec();
        let at = at.index(der.len());
        let end = (at + bytes.len()).min(der.len());
        der[at..end].copy_from_slice(&bytes[..end - at]);
        check(der);
    }
}
