//! Clients that know the way in and mean no good.

use std::io::Read as _;

use super::serve::contents_of;
use super::*;

fn status(rig: &Rig, bytes: &[u8]) -> String {
    let mut stream = raw(&rig.socket, bytes);
    answer(&mut stream).lines().next().unwrap_or("closed").to_owned()
}

/// Whether the server closes the connection by itself.
fn closes(stream: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    // a reset is an end as well
    stream.read_to_end(&mut rest).map_or_else(|e| e.kind() == std::io::ErrorKind::ConnectionReset, |_| true)
}

#[test]
fn garbage_is_answered_with_400_and_closed() {
    let rig = Rig::new();
    for garbage in [&b"\0\0\0\0\r\n\r\n"[..], b"GET\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0", &[b'x'; 20_000]] {
        let before = rig.refused(Reason::Malformed) + rig.refused(Reason::TooLarge);
        let mut stream = raw(&rig.socket, garbage);
        assert!(closes(&mut stream));
        eventually("counted", || rig.refused(Reason::Malformed) + rig.refused(Reason::TooLarge) > before);
    }
    rig.runtime.block_on(rig.client().head(None, None, 0, Duration::ZERO)).unwrap();
}

#[test]
fn another_protocol_is_told_what_is_spoken_here() {
    let rig = Rig::new();
    let request = String::from_utf8(request("GET", "head", b"")).unwrap();
    for (theirs, said) in [("syncagent-protocol: 2\r\n", "not 2"), ("", "not none")] {
        let mut stream = raw(&rig.socket, request.replace("syncagent-protocol: 1\r\n", theirs).as_bytes());
        let head = answer(&mut stream);
        assert!(head.starts_with("HTTP/1.1 426") && head.contains("syncagent-protocol: 1"), "{head}");
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.contains("protocol 1 is spoken here") && text.contains(said), "{text}");
    }
    assert_eq!(rig.refused(Reason::Protocol), 2);
}

#[test]
fn a_connection_speaks_for_one_node() {
    let rig = Rig::new();
    let mine = String::from_utf8(request("GET", "head", b"")).unwrap();
    let mut stream = raw(&rig.socket, mine.as_bytes());
    assert!(answer(&mut stream).starts_with("HTTP/1.1 204"));
    stream.write_all(mine.replace("node: mirror", "node: other").as_bytes()).unwrap();
    assert!(answer(&mut stream).starts_with("HTTP/1.1 403"));
    assert!(status(&rig, mine.replace("node: mirror", "node: a/../b").as_bytes()).contains("403"));
}

#[test]
fn bodies_that_are_too_large_or_malformed_are_refused() {
    let rig = Rig::new();
    let digest = Digest::of(b"");
    let says = |what: &str, body: &[u8], expected: &str| {
        let status = status(&rig, &request("POST", what, body));
        assert!(status.contains(expected), "{what}: {status}");
    };
    let digests = |n: usize| wire::encode(&vec![digest; n]).unwrap();
    says("objects", &digests(1024), "200");
    says("objects", &digests(1025), "413");
    says("objects", b"\xff\xff\xff\xff\x0f", "400");
    says("objects", &[digests(2), vec![0]].concat(), "400");
    for bad in ["..", "a/b", "", ".", "a\0"] {
        says("contents", &contents_of(bad, 1, digest), "400");
    }
    let file = || wire::AskFile { name: b"f", size: 1, digest: &digest, from: 2 };
    let beyond = [wire::AskDir { dir: b"", files: vec![file()] }];
    says("contents", &wire::encode(&beyond.as_slice()).unwrap(), "400");
    for dir in [&b"../x"[..], b"/etc", b"a//b", b"a/."] {
        let file = wire::AskFile { from: 0, ..file() };
        let outside = [wire::AskDir { dir, files: vec![file] }];
        says("contents", &wire::encode(&outside.as_slice()).unwrap(), "400");
        says("suspect", &wire::encode(&vec![dir]).unwrap(), "400");
    }
    let many: Vec<_> = (0..4097).map(|_| wire::AskFile { from: 0, ..file() }).collect();
    says("contents", &wire::encode(&vec![wire::AskDir { dir: b"", files: many }]).unwrap(), "400");
    let dirs: Vec<_> = (0..4097).map(|_| wire::AskDir { dir: b"", files: vec![] }).collect();
    says("contents", &wire::encode(&dirs).unwrap(), "400");
    says("suspect", &wire::encode(&vec![b"f"; 1001]).unwrap(), "400");
    says("report", b"{", "400");
    says("report", &vec![b' '; wire::REPORT_BODY + 1], "413");
    // what is only claimed is refused before it is sent
    let huge = "POST /sync/1/t/contents HTTP/1.1\r\nhost: x\r\nsyncagent-protocol: 1\r\nsyncagent-node: mirror\r\n\
                syncagent-cluster: test\r\ncontent-length: 99999999999\r\n\r\n";
    assert!(status(&rig, huge.as_bytes()).contains("413"));
    // and what is not said in advance when it is too much
    let chunked = huge.replace("content-length: 99999999999", "transfer-encoding: chunked");
    let body = format!("500000\r\n{}", "x".repeat(0x500000 - 1));
    let mut stream = UnixStream::connect(&rig.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    let mut sending = stream.try_clone().unwrap();
    // the server closes before it has all
    let sent = std::thread::spawn(move || sending.write_all((chunked + &body).as_bytes()).is_ok());
    assert!(answer(&mut stream).contains("413"));
    drop(stream);
    sent.join().unwrap();
    for query in ["?wait=x", "?known=1", "?seen=1.1", "?seen=1.1&root=zz", "?wait=1&wait=2", "?known=%ff"] {
        assert!(status(&rig, &request("GET", &format!("head{query}"), b"")).contains("400"), "{query}");
    }
    for (method, what, expected) in [("GET", "objects", "405"), ("POST", "nothing", "404")] {
        assert!(status(&rig, &request(method, what, b"")).contains(expected));
    }
}

#[test]
fn a_node_has_no_more_than_its_share_of_connections() {
    let rig = Rig::new();
    let ask = request("GET", "head", b"");
    let mut open: Vec<_> = (0..64).map(|_| raw(&rig.socket, &ask)).collect();
    open.iter_mut().for_each(|s| assert!(answer(s).starts_with("HTTP/1.1 204")));
    let mut more = raw(&rig.socket, &ask);
    assert!(answer(&mut more).starts_with("HTTP/1.1 429"));
    assert!(closes(&mut more), "it does not stay");
    let other = rig.client_of(rig.unix(), "other", "test", "t");
    rig.runtime.block_on(other.head(None, None, 0, Duration::ZERO)).unwrap();
    open.pop();
    eventually("there is room again", || {
        let mut again = raw(&rig.socket, &ask);
        answer(&mut again).starts_with("HTTP/1.1 204")
    });
}

#[test]
fn a_head_that_trickles_is_cut_off_after_ten_seconds() {
    let rig = Rig::new();
    let ask = request("GET", "head", b"");
    // one on a new connection, one after a request, one that says nothing at all, one that dribbles
    let fresh = raw(&rig.socket, &ask[..20]);
    let mut second = raw(&rig.socket, &ask);
    assert!(answer(&mut second).starts_with("HTTP/1.1 204"));
    second.write_all(&ask[..20]).unwrap();
    let silent = raw(&rig.socket, b"");
    let dribbles = raw(&rig.socket, b"G");
    let mut writes = dribbles.try_clone().unwrap();
    let dribble = std::thread::spawn(move || {
        while writes.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(300));
        }
    });
    let began = Instant::now();
    for mut stream in [fresh, second, silent, dribbles] {
        assert!(closes(&mut stream));
    }
    dribble.join().unwrap();
    let took = began.elapsed();
    assert!(took > Duration::from_secs(8) && took < Duration::from_secs(16), "{took:?}");
    // one that never said a word is just closed
    eventually("they are counted", || rig.refused(Reason::Slow) == 3);
}

#[test]
#[ignore = "takes 30 s"]
fn a_reader_that_stalls_is_cut_off_and_held_no_thread() {
    let rig = Rig::new();
    let content = vec![7; 16 << 20];
    let digest = rig.tree.file("large", &content);
    let want = request("POST", "contents", &contents_of("large", content.len(), digest));
    let mut stalled: Vec<_> = (0..8).map(|_| raw(&rig.socket, &want)).collect();
    stalled.iter_mut().for_each(|s| assert!(answer(s).starts_with("HTTP/1.1 200")));
    let other = rig.client_of(rig.unix(), "other", "test", "t");
    let began = Instant::now();
    assert!(fetch(&other, &[wanted("large", 16 << 20, digest)]).0 == [Came::Whole(content)]);
    assert!(began.elapsed() < Duration::from_secs(10), "the stalled ones hold it up");
    within(Duration::from_secs(45), "they are cut off", || rig.server.counters().open == 1);
    assert!(began.elapsed() > Duration::from_secs(28));
    assert_eq!(rig.refused(Reason::Slow), 8);
}
