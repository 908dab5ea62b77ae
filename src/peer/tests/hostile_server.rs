//! Servers that lie to the client.

use std::io::BufRead as _;
use std::io::BufReader;
use std::thread::JoinHandle;

use super::*;

/// A server that answers the n-th request with the n-th of `answers`, each on whatever connection it comes.
pub(super) struct Liar {
    pub(super) client: Client,
    runtime: Runtime,
    pub(super) accepted: Arc<AtomicUsize>,
    _thread: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

pub(super) fn liar(mut says: impl FnMut(&mut UnixStream) -> bool + Send + 'static) -> Liar {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    let thread = std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while read_request(&mut reader).is_some() && says(&mut stream) {}
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = Client::new(Address::Unix(socket), node("mirror"), "test".into(), "t".into());
    Liar { client, runtime, accepted, _thread: thread, _dir: dir }
}

fn read_request(reader: &mut BufReader<UnixStream>) -> Option<()> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(n) = line.strip_prefix("content-length: ") {
            length = n.trim().parse().ok()?;
        }
        if line == "\r\n" {
            return reader.read_exact(&mut vec![0; length]).ok();
        }
    }
}

pub(super) fn ok(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nsyncagent-protocol: 1\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Answers once, then closes.
fn once(bytes: Vec<u8>) -> Liar {
    liar(move |stream| {
        let _ = stream.write_all(&bytes);
        false
    })
}

/// Answers everything the same, and keeps the connection.
fn always(bytes: Vec<u8>) -> Liar {
    liar(move |stream| stream.write_all(&bytes).is_ok())
}

fn objects(client: &Client, want: &[Digest]) -> Result<Vec<Option<Vec<u8>>>> {
    let mut got = Vec::new();
    client
        .objects(want, &mut |_, o| {
            got.push(o);
            Ok(())
        })
        .map(|()| got)
}

fn part(length: u32, bytes: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes()[..], bytes].concat()
}

#[test]
fn objects_that_are_not_what_was_asked_for_are_refused() {
    let right = Digest::of(b"right");
    let lies = [
        (part(5, b"wrong"), "digest is not"),
        (part((64 << 20) + 1, b""), "an object of 67108865 bytes"),
        (part(u32::MAX - 1, b""), "an object of"),
        (part(50, b"right"), "fewer bytes"),
        (b"\x05\0".to_vec(), "fewer bytes"),
        (Vec::new(), "fewer bytes"),
        ([part(5, b"right"), b"more".to_vec()].concat(), "more than was asked for"),
    ];
    for (body, why) in lies {
        let liar = always(ok(&body));
        for attempt in 1..3 {
            let e = objects(&liar.client, &[right]).unwrap_err();
            assert_eq!(e.class, Class::Integrity, "{e}");
            assert!(e.what.contains(why), "{e}");
            assert_eq!(liar.accepted.load(Ordering::SeqCst), attempt, "the connection is not used again");
        }
    }
    let honest = always(ok(&[part(5, b"right"), part(u32::MAX, b"")].concat()));
    for _ in 0..3 {
        let got = objects(&honest.client, &[right, Digest::of(b"gone")]).unwrap();
        assert_eq!(got, [Some(b"right".to_vec()), None]);
    }
    assert_eq!(honest.accepted.load(Ordering::SeqCst), 1, "an honest one's is");
}

#[test]
fn contents_that_lie_about_lengths_are_refused() {
    let end = |status: u8| part(0, &[status]);
    let lies = [
        (part(wire::CHUNK as u32 + 1, b""), 1 << 20, "a chunk of 262145"),
        (part(6, b"sixsix"), 5, "a chunk of 6 bytes where 5"),
        ([part(3, b"abc"), part(3, b"abc")].concat(), 5, "a chunk of 3 bytes where 2"),
        ([part(3, b"abc"), end(0)].concat(), 5, "2 bytes of a file too few"),
        (end(0), 5, "5 bytes of a file too few"),
        ([part(5, b"right"), end(7)].concat(), 5, "unknown status 7"),
        ([part(5, b"right"), end(2), vec![0xff, 0xff]].concat(), 5, "endless reason"),
        ([part(5, b"right"), end(0), vec![0]].concat(), 5, "more than was asked for"),
        (part(5, b"rig"), 5, "fewer bytes"),
        (part(5, b"right"), 5, "fewer bytes"),
    ];
    for (body, size, why) in lies {
        let liar = once(ok(&body));
        let (_, result) = fetch(&liar.client, &[wanted("f", size, Digest::of(b"right"))]);
        let e = result.unwrap_err();
        assert_eq!(e.class, Class::Integrity, "{why}: {e}");
        assert!(e.what.contains(why), "{e}");
    }
    let reason = [&end(2)[..], &9u16.to_le_bytes(), b"disk\x1bfull"].concat();
    let told = always(ok(&[reason, part(2, b"ab"), end(1), end(1)].concat()));
    let want: Vec<_> = (0..3).map(|_| wanted("f", 5, Digest::of(b""))).collect();
    let (came, result) = fetch(&told.client, &want);
    result.unwrap();
    let cut = Came::Cut(std::io::ErrorKind::NotFound);
    assert_eq!(came, [Came::Unreadable("disk\\x1bfull".into()), cut, Came::Gone]);
}

#[test]
fn a_transfer_that_breaks_off_is_transient() {
    let chunked =
        "HTTP/1.1 200 OK\r\nsyncagent-protocol: 1\r\ntransfer-encoding: chunked\r\n\r\n9\r\n\x05\0\0\0right";
    for head in ["", "HTTP/1.1 200 OK\r\nsync", chunked] {
        let liar = once(head.as_bytes().to_vec());
        let (came, result) = fetch(&liar.client, &[wanted("f", 5, Digest::of(b"right"))]);
        let e = result.unwrap_err();
        assert_eq!(e.class, Class::Transient, "{e}");
        assert!(came.iter().all(|c| *c == Came::Cut(std::io::ErrorKind::TimedOut)), "{came:?}");
    }
}

#[test]
fn an_answer_that_is_no_protocol_is_garbage() {
    for garbage in [
        "SSH-2.0-OpenSSH_9.6\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nsyncagent-protocol: 1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\nsyncagent-protocol: 1\r\ncontent-length: 2\r\n\r\n{}",
    ] {
        let liar = once(garbage.into());
        let e = liar.runtime.block_on(liar.client.head(None, None, 0, Duration::ZERO)).unwrap_err();
        assert_eq!(e.class, Class::Integrity, "{garbage}: {e}");
        assert_eq!(
            objects(&liar.client, &[Digest::of(b"")]).unwrap_err().class,
            Class::Integrity,
            "{garbage}"
        );
    }
}

#[test]
fn refusals_are_classed_by_what_can_be_done() {
    for (status, class) in [
        (426, Class::Config),
        (403, Class::Refused),
        (404, Class::Refused),
        (409, Class::Refused),
        (500, Class::Transient),
        (503, Class::Transient),
        (429, Class::Transient),
        (400, Class::Permanent),
    ] {
        let head = format!("HTTP/1.1 {status} No\r\ncontent-length: 4000\r\n\r\nbecause\x1b");
        let liar = once([head.as_bytes(), &[b'x'; 3992]].concat());
        let e = liar.runtime.block_on(liar.client.head(None, None, 0, Duration::ZERO)).unwrap_err();
        assert_eq!(e.class, class, "{e}");
        assert!(e.what.contains("because\\x1b") && e.what.len() < 2000, "{e}");
    }
}

#[test]
fn an_endless_head_is_not_swallowed() {
    let head = b"HTTP/1.1 200 OK\r\nsyncagent-protocol: 1\r\ncontent-length: 999999999999\r\n\r\n".to_vec();
    let liar = liar(move |stream| {
        let _ = stream.write_all(&head);
        while stream.write_all(&[b' '; 4096]).is_ok() {}
        false
    });
    let e = liar.runtime.block_on(liar.client.head(None, None, 0, Duration::ZERO)).unwrap_err();
    assert_eq!(e.class, Class::Integrity);
    assert!(e.what.contains("more than 65536 bytes"), "{e}");
}

#[test]
fn cancelling_ends_every_wait_soon() {
    let head = "HTTP/1.1 200 OK\r\nsyncagent-protocol: 1\r\ncontent-length: 100\r\n\r\n";
    for says in ["", head, "HTTP/1.1 429 No\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n"] {
        let (asked, was_asked) = std::sync::mpsc::channel();
        let liar = liar(move |stream| {
            let _ = stream.write_all(says.as_bytes());
            asked.send(()).is_ok()
        });
        let cancel = AtomicBool::new(false);
        std::thread::scope(|s| {
            let fetching = s.spawn(|| {
                let want = wanted("f", 5, Digest::of(b""));
                liar.client.contents(&[want.want()], &cancel, &mut |_, _| Ok(()))
            });
            was_asked.recv().unwrap();
            cancel.store(true, Ordering::SeqCst);
            let began = Instant::now();
            assert_eq!(fetching.join().unwrap().unwrap_err().class, Class::Interrupted);
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        });
    }
}

#[test]
fn an_address_where_nobody_listens_is_transient() {
    let nobody = |address| Client::new(address, node("mirror"), "test".into(), "t".into());
    let tls = || pki().client(true);
    for address in [
        Address::Unix("/nonexistent/socket".into()),
        Address::Tcp { host: "127.0.0.1".into(), port: 1, tls: tls() },
    ] {
        let e = objects(&nobody(address), &[Digest::of(b"")]).unwrap_err();
        assert_eq!(e.class, Class::Transient, "{e}");
    }
}

#[test]
#[ignore = "takes 30 s"]
fn a_server_that_stalls_is_given_up_after_thirty_seconds() {
    let began = Instant::now();
    let head = "HTTP/1.1 200 OK\r\nsyncagent-protocol: 1\r\ncontent-length: 100\r\n\r\n";
    let silent = liar(|_| true);
    let stalls = liar(move |stream| stream.write_all(head.as_bytes()).is_ok());
    std::thread::scope(|s| {
        for liar in [&silent, &stalls] {
            s.spawn(|| {
                assert_eq!(objects(&liar.client, &[Digest::of(b"")]).unwrap_err().class, Class::Transient)
            });
        }
    });
    assert!(began.elapsed() < Duration::from_secs(40));
}
