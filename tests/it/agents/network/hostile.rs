//! Clients at the data port that want to do harm, or do not know better.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use syncagent::model::{Digest, NodeId};
use syncagent::peer::tls::{Identity, TlsFiles};

use super::super::cluster::{Agent, Cluster, noise, until, within};
use super::{MIB, assert_arrives_soon};
use crate::support::needs_root;

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Node `x`, with a certificate of the cluster, on a host of its own.
struct Attacker<'a> {
    c: &'a Cluster,
    tls: Arc<ClientConfig>,
}

impl<'a> Attacker<'a> {
    fn new(c: &'a Cluster) -> Self {
        let at = |name: &str| c.path().join("pki").join(name);
        let files = TlsFiles { cert: at("x.pem"), key: at("x.key"), ca: at("ca.pem") };
        let identity = Identity::load(&files, &NodeId::new("x").unwrap()).unwrap();
        Self { c, tls: identity.client_config(&NodeId::new("a").unwrap()) }
    }

    fn connect(&self, many: usize) -> Vec<TcpStream> {
        let address = self.c.address("a");
        let one = || {
            let socket = TcpStream::connect(&address).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket
        };
        self.c.net().inside("x", || (0..many).map(|_| one()).collect())
    }

    fn secure(&self, many: usize) -> Vec<Tls> {
        let name = ServerName::try_from("a").unwrap();
        let over = |socket| {
            let conn = ClientConnection::new(self.tls.clone(), name.clone()).unwrap();
            StreamOwned::new(conn, socket)
        };
        self.connect(many).into_iter().map(over).collect()
    }
}

fn head(method: &str, what: &str, node: &str, body: usize) -> String {
    format!(
        "{method} /sync/1/t/{what} HTTP/1.1\r\nhost: a\r\nsyncagent-protocol: 1\r\nsyncagent-node: {node}\r\n\
         syncagent-cluster: test\r\ncontent-length: {body}\r\n\r\n"
    )
}

/// Asks for the contents of a file in the root.
fn contents(name: &str, bytes: &[u8]) -> Vec<u8> {
    let file = (name.as_bytes(), bytes.len() as u64, Digest::of(bytes), 0u64);
    let body = postcard::to_stdvec(&[(&b""[..], [file].as_slice())].as_slice()).unwrap();
    [head("POST", "contents", "x", body.len()).into_bytes(), body].concat()
}

fn send(stream: &mut Tls, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    stream.flush().unwrap();
}

/// The first line of what the server answers.
fn status(stream: &mut Tls) -> String {
    let mut buf = [0; 512];
    let n = stream.read(&mut buf).unwrap();
    String::from_utf8_lossy(&buf[..n]).lines().next().unwrap_or_default().to_owned()
}

/// Memory of a process that is in RAM, in bytes.
fn resident(agent: &Agent) -> usize {
    let path = format!("/proc/{}/status", agent.pid().as_raw_nonzero());
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// A source, a mirror and an attacker on three hosts; a file of 32 MiB at the source.
fn besieged() -> (Cluster, Agent, Agent, Vec<u8>) {
    let c = Cluster::on_hosts(&["a", "b", "x"]);
    c.source("a", "");
    let large = noise(1, 32 * MIB);
    c.scratch.write("a/tree/large", &large);
    c.mirror("b", "a", "");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    (c, a, b, large)
}

#[test]
fn garbage_and_connections_that_never_go_on_hold_up_no_mirror_and_are_counted() {
    if !needs_root("hosts of their own") {
        return;
    }
    let (c, a, b, _) = besieged();
    let x = Attacker::new(&c);
    let before = resident(&a);
    let begun = Instant::now();
    let mut garbage = x.connect(50);
    for (i, socket) in (0..).zip(&mut garbage) {
        // refused at the first bytes, so the rest may find a closed door
        let _ = socket.write_all(&noise(i, 20_000));
    }
    let mut halves = x.connect(100);
    for socket in &mut halves {
        // a handshake record of 512 bytes, of which a few come
        socket.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03half a hello").unwrap();
    }
    let mut slow = x.secure(10);
    for stream in &mut slow {
        send(stream, b"GET /sync/1/t/head HTTP/1.1\r\nhost: ");
    }
    for i in 0..3 {
        assert_arrives_soon(&c, [&a, &b], "b", &format!("besieged{i}"));
    }
    c.assert_converges(&a, &b, ("a", "b"));
    let grown = resident(&a).saturating_sub(before);
    assert!(grown < 48 * MIB, "{grown} bytes more than before");
    // a byte now and then keeps no head of a request open; what does not go on is closed, by and by
    until("the time for a head", || {
        for stream in &mut slow {
            let _ = stream.write_all(b"a").and_then(|()| stream.flush());
        }
        begun.elapsed() > Duration::from_secs(11)
    });
    let closed = |socket: &mut TcpStream| !matches!(socket.read(&mut [0; 64]), Err(e) if is_late(&e));
    for socket in garbage.iter_mut().chain(&mut halves) {
        let shut = within(Duration::from_secs(10), || closed(socket));
        assert!(shut, "a connection is kept");
    }
    for stream in &mut slow {
        assert!(ends(stream), "a trickled head is waited for");
    }
    assert!(a.tree()["refused_peers"].as_u64() >= Some(160), "{:#}", a.tree()["refused_peers"]);
    assert_arrives_soon(&c, [&a, &b], "b", "afterwards");
    c.assert_converges(&a, &b, ("a", "b"));
}

fn is_late(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// Whether the other side closes, whatever it says before.
fn ends(stream: &mut Tls) -> bool {
    let mut buf = [0; 4096];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return !is_late(&e),
        }
    }
}

#[test]
fn a_node_that_asks_for_contents_and_never_reads_holds_up_nobody_and_takes_little_memory() {
    if !needs_root("hosts of their own") {
        return;
    }
    let (c, a, b, large) = besieged();
    let x = Attacker::new(&c);
    let before = resident(&a);
    let ask = contents("large", &large);
    let mut deaf = x.secure(40);
    for stream in &mut deaf {
        send(stream, &ask);
    }
    // it gets its share of requests, and no more
    until("the share of one node", || a.log_text().contains("requests under way already"));
    for i in 0..3 {
        assert_arrives_soon(&c, [&a, &b], "b", &format!("deaf{i}"));
    }
    c.scratch.write("a/tree/large2", noise(2, 8 * MIB));
    c.assert_converges(&a, &b, ("a", "b"));
    let grown = resident(&a).saturating_sub(before);
    assert!(grown < 64 * MIB, "{grown} bytes more than before");
    if super::long() {
        for stream in deaf.iter().take(1) {
            let socket = stream.get_ref();
            until("the time for an answer", || a.log_text().contains("took not a byte"));
            assert!(socket.peer_addr().is_ok());
        }
    }
}

#[test]
fn a_node_that_speaks_for_another_or_nonsense_is_refused() {
    if !needs_root("hosts of their own") {
        return;
    }
    let (c, a, b, _) = besieged();
    let x = Attacker::new(&c);
    let refused = || a.tree()["refused_peers"].as_u64().unwrap();
    let before = refused();
    let long_header = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(60_000));
    let mut body = head("POST", "contents", "x", 8).into_bytes();
    body.extend([0xff; 8]);
    let cases = [
        (head("GET", "head", "b", 0).into_bytes(), "403"),
        (head("GET", "head", "../b", 0).into_bytes(), "403"),
        (head("POST", "contents", "x", 1 << 40).into_bytes(), "413"),
        (long_header.into_bytes(), "4"),
        (body, "400"),
        (b"\x00\x01\x02 nonsense\r\n\r\n".to_vec(), "400"),
    ];
    let many = cases.len() as u64;
    for (request, answer) in cases {
        let stream = &mut x.secure(1)[0];
        // the answer may come before all was sent
        let _ = stream.write_all(&request).and_then(|()| stream.flush());
        let line = status(stream);
        let code = line.split(' ').nth(1).unwrap_or_default();
        assert!(
            code.starts_with(answer),
            "{line:?} to {:?}",
            String::from_utf8_lossy(&request[..40.min(request.len())])
        );
    }
    until("the count", || refused() >= before + many);
    assert!(a.row("b")["connected"] == true);
    assert_arrives_soon(&c, [&a, &b], "b", "afterwards");
    c.assert_converges(&a, &b, ("a", "b"));
}
