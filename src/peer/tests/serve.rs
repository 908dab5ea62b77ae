//! What is asked for comes, and nothing else does.

use std::io::ErrorKind;
use std::os::unix::fs::symlink;

use super::*;

const LARGE: usize = 16 << 20;

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i / 251 + i) as u8).collect()
}

#[test]
fn the_long_poll_wakes_when_a_generation_is_published() {
    let rig = Rig::new();
    let client = rig.client();
    let head = |known, seen, wait| rig.runtime.block_on(client.head(known, seen, 0, wait));
    assert_eq!(head(None, None, Duration::ZERO).unwrap(), None);
    let first = rig.tree.publish(1);
    let got = head(None, None, Duration::from_secs(60)).unwrap().unwrap();
    assert_eq!((&got.generation, got.age_ms, got.behind), (&first, 5, 1));
    assert_eq!(got.oldest, Some((first.id, 7)));

    let seen = Some((first.id, first.root.object));
    let got = head(Some(first.id), seen, Duration::ZERO).unwrap().unwrap();
    assert_eq!((got.behind, got.oldest), (0, None), "after the wait the head comes even if it was seen");

    let asked = rig.tree.heard.load(Ordering::SeqCst);
    let waiting = client.clone();
    let task = rig.runtime.spawn(async move { waiting.head(None, seen, 0, Duration::from_secs(60)).await });
    eventually("the question arrives", || rig.tree.heard.load(Ordering::SeqCst) > asked);
    let began = Instant::now();
    let second = rig.tree.publish(2);
    assert_eq!(rig.runtime.block_on(task).unwrap().unwrap().unwrap().generation, second);
    assert!(began.elapsed() < Duration::from_secs(10), "it woke, and did not wait for its end");

    // the same number with another root is not what was seen
    let other = Some((second.id, Digest::of(b"other")));
    assert!(head(None, other, Duration::from_secs(60)).unwrap().is_some());
    rig.tree.superseded.store(true, Ordering::SeqCst);
    let refused = head(None, other, Duration::ZERO).unwrap_err();
    assert_eq!(refused.class, Class::Refused);
    assert!(refused.what.contains("older than its mirror (409"), "{refused}");
}

#[test]
fn the_long_poll_wakes_when_contents_are_sought_and_they_are_sent_in_pieces() {
    let rig = Rig::new();
    let client = rig.client();
    let first = rig.tree.publish(1);
    let seen = Some((first.id, first.root.object));
    let waiting = client.clone();
    let long = Duration::from_secs(60);
    let task = rig.runtime.spawn(async move { waiting.head(None, seen, 0, long).await });
    eventually("the question arrives", || rig.tree.heard.load(Ordering::SeqCst) > 0);
    rig.tree.seeks.send_replace(7);
    let got = rig.runtime.block_on(task).unwrap().unwrap().unwrap();
    assert_eq!((got.generation, got.seeks), (first, 7));
    // who dealt with that round waits on, also when it is over
    let waiting = client.clone();
    let asked = rig.tree.heard.load(Ordering::SeqCst);
    let task = rig.runtime.spawn(async move { waiting.head(None, seen, 7, long).await });
    eventually("the question arrives", || rig.tree.heard.load(Ordering::SeqCst) > asked);
    assert_eq!(rig.runtime.block_on(client.sought(6, 0)).unwrap(), None, "it is over");
    let sought = rig.runtime.block_on(client.sought(7, 0)).unwrap().unwrap();
    assert_eq!(rig.runtime.block_on(client.sought(7, 1024)).unwrap(), Some(vec![]));
    assert_eq!((sought.len(), sought[5].size), (1024, 6));
    let all: Vec<u32> = (0..1024).map(|i| u32::MAX - i).collect();
    assert_eq!(rig.runtime.block_on(client.found(7, &all, false)).unwrap(), Some(vec![]));
    assert_eq!(rig.runtime.block_on(client.found(7, &all, true)).unwrap(), Some(all));
    assert_eq!(rig.runtime.block_on(client.found(6, &[], true)).unwrap(), None);
    let content = bytes(PIECE);
    rig.runtime.block_on(client.piece(7, 3, 9, content.clone().into())).unwrap();
    let piece = Piece { round: 7, index: 3, from: 9 };
    assert!(*rig.tree.pieces.lock().unwrap() == [(piece, content)]);
    let more = bytes(PIECE + 1);
    let e = rig.runtime.block_on(client.piece(7, 3, 9, more.into())).unwrap_err();
    // the refusal may come while the rest is being sent
    assert!(e.what.contains("413") || e.class == Class::Transient, "{e}");
    assert_eq!(rig.tree.pieces.lock().unwrap().len(), 1);
    rig.tree.seeks.send_replace(0);
    assert!(!task.is_finished());
    let second = rig.tree.publish(2);
    assert_eq!(rig.runtime.block_on(task).unwrap().unwrap().unwrap().generation, second);
}

#[test]
fn objects_come_in_order_and_what_is_not_there_is_gone() {
    let rig = Rig::new();
    let want: Vec<Digest> = (0..600u32)
        .map(|i| match i % 7 {
            0 => Digest::of(&i.to_le_bytes()),
            1 => rig.tree.object(&vec![i as u8; 40_000 + i as usize]),
            _ => rig.tree.object(&i.to_le_bytes()),
        })
        .collect();
    let big = rig.tree.object(&bytes(3 << 20));
    let want = [want, vec![big]].concat();
    for client in [rig.client(), rig.client_of(rig.unix(), "mirror", "test", "t")] {
        let mut got = Vec::new();
        client
            .objects(&want, &mut |d, o| {
                got.push((d, o));
                Ok(())
            })
            .unwrap();
        let objects = rig.tree.objects.lock().unwrap();
        let expected: Vec<_> = want.iter().map(|d| (*d, objects.get(d).cloned())).collect();
        assert!(got == expected);
    }
}

#[test]
fn contents_come_whole_or_not_at_all() {
    let rig = Rig::new();
    let sizes = [0, 1, 4096, wire::CHUNK - 1, wire::CHUNK, wire::CHUNK + 1, 3 * wire::CHUNK];
    let mut want = Vec::new();
    let mut expected = Vec::new();
    for (i, size) in sizes.into_iter().enumerate() {
        let content = bytes(size);
        let at = format!("d{}/f{i}", i % 2);
        let digest = rig.tree.file(&at, &content);
        for from in [0, size / 2, size] {
            want.push(wanted(&at, size as u64, digest).from(from as u64));
            expected.push(Came::Whole(content[from..].to_vec()));
        }
    }
    let digest = rig.tree.file("changed", b"before");
    std::fs::write(rig.tree.at.path().join("changed"), b"after!").unwrap();
    want.push(wanted("changed", 6, digest));
    want.push(wanted("d0/vanished", 6, digest));
    want.push(wanted("no/such/dir/f", 6, digest));
    // another kind of file, and a file where a directory was
    want.push(wanted("d0", 6, digest));
    want.push(wanted("changed/f", 6, digest));
    expected.extend((0..5).map(|_| Came::Gone));
    for client in [rig.client(), rig.client_of(rig.unix(), "mirror", "test", "t")] {
        let (came, result) = fetch(&client, &want);
        result.unwrap();
        assert!(came == expected);
    }
}

#[test]
fn a_file_that_changes_while_it_is_sent_ends_early_and_the_next_one_follows() {
    let rig = Rig::new();
    let client = rig.client_of(rig.unix(), "mirror", "test", "t");
    let file = rig.tree.at.path().join("large");
    type Change = fn(&Path);
    let changes: [Change; 3] = [
        |file| std::fs::write(file, vec![9; LARGE]).unwrap(),
        |file| std::fs::File::options().write(true).open(file).unwrap().set_len(100).unwrap(),
        |file| std::fs::File::options().append(true).open(file).unwrap().set_len(2 * LARGE as u64).unwrap(),
    ];
    for change in changes {
        let want = [
            wanted("large", LARGE as u64, rig.tree.file("large", &bytes(LARGE))),
            wanted("next", 4, rig.tree.file("next", b"next")),
        ];
        let want: Vec<_> = want.iter().map(Wanted::want).collect();
        let mut ends = Vec::new();
        let read = &mut |_, fetched: Fetched<'_>| {
            let Fetched::Stream(read) = fetched else { panic!("the file was there") };
            let mut all = vec![0];
            read.read_exact(&mut all).unwrap();
            if ends.is_empty() {
                change(&file);
            }
            ends.push(read.read_to_end(&mut all).map(|_| all).map_err(|e| e.kind()));
            Ok(())
        };
        client.contents(&want, &AtomicBool::new(false), read).unwrap();
        assert_eq!(ends, [Err(ErrorKind::NotFound), Ok(b"next".to_vec())]);
    }
}

#[test]
fn a_file_that_is_replaced_while_it_is_sent_ends_early() {
    let rig = Rig::new();
    let content = bytes(LARGE);
    let want = wanted("large", LARGE as u64, rig.tree.file("large", &content));
    let client = rig.client_of(rig.unix(), "mirror", "test", "t");
    let mut got = vec![0];
    let replaced = &mut |_, fetched: Fetched<'_>| {
        let Fetched::Stream(read) = fetched else { panic!("the file was there") };
        read.read_exact(&mut got).unwrap();
        let other = rig.tree.at.path().join("other");
        std::fs::write(&other, b"other").unwrap();
        std::fs::rename(&other, rig.tree.at.path().join("large")).unwrap();
        assert_eq!(read.read_to_end(&mut got).unwrap_err().kind(), ErrorKind::NotFound);
        Ok(())
    };
    client.contents(&[want.want()], &AtomicBool::new(false), replaced).unwrap();
    assert!(content.starts_with(&got), "what came before is what was published");
    assert_eq!(fetch(&client, &[want]).0, [Came::Gone]);
}

#[test]
fn nothing_is_served_through_a_link() {
    let rig = Rig::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), b"secret").unwrap();
    let digest = rig.tree.file("d/secret", b"secret");
    let at = rig.tree.at.path();
    std::fs::remove_dir_all(at.join("d")).unwrap();
    symlink(outside.path(), at.join("d")).unwrap();
    symlink(outside.path().join("secret"), at.join("link")).unwrap();
    let want = || vec![wanted("d/secret", 6, digest), wanted("link", 6, digest)];
    assert_eq!(fetch(&rig.client(), &want()).0, [Came::Gone, Came::Gone]);
}

#[test]
fn what_is_not_published_does_not_leave_even_if_its_name_is_asked_for() {
    let rig = Rig::new();
    let published = rig.tree.file("published", &bytes(LARGE));
    std::fs::write(rig.tree.at.path().join("private"), b"hunter2").unwrap();
    std::fs::write(rig.tree.at.path().join("private.large"), bytes(LARGE)).unwrap();
    let want = [
        wanted("private", 7, published),
        wanted("private.large", LARGE as u64, published),
        // it has changed since
        wanted("published", LARGE as u64, Digest::of(b"of now")),
    ];
    assert_eq!(fetch(&rig.client(), &want).0, [Came::Gone, Came::Gone, Came::Gone]);
}

#[test]
fn what_is_left_unread_is_skipped() {
    let rig = Rig::new();
    let large = rig.tree.file("large", &bytes(1 << 20));
    let want: Vec<_> = (0..6).map(|_| wanted("large", 1 << 20, large)).collect();
    let want: Vec<_> = want.iter().map(Wanted::want).collect();
    let mut read_of = Vec::new();
    let client = rig.client();
    let take = &mut |i: usize, fetched: Fetched<'_>| {
        let Fetched::Stream(read) = fetched else { panic!("the file was there") };
        let mut some = vec![0; i * 200_000];
        read.read_exact(&mut some).unwrap();
        read_of.push(some == bytes(1 << 20)[..some.len()]);
        Ok(())
    };
    client.contents(&want, &AtomicBool::new(false), take).unwrap();
    assert_eq!(read_of, [true; 6]);
}

#[test]
fn an_error_of_the_taker_ends_the_call_and_the_next_call_works() {
    let rig = Rig::new();
    let large = rig.tree.file("large", &bytes(LARGE));
    let client = rig.client();
    let want = wanted("large", LARGE as u64, large);
    let full = &mut |_, _: Fetched<'_>| Err(Error::new(Class::Permanent, "disk full"));
    let e = client.contents(&[want.want()], &AtomicBool::new(false), full).unwrap_err();
    assert_eq!(e.to_string(), "disk full");
    assert!(fetch(&client, &[want]).0 == [Came::Whole(bytes(LARGE))]);
}

#[test]
fn reports_and_suspects_arrive_clipped() {
    let rig = Rig::new();
    let client = rig.client();
    let report = Report {
        zone: Some("ä".repeat(1000)),
        converged: (0..3000).map(|i| (GenId { epoch: 1, number: i }, i)).collect(),
        ..Report::default()
    };
    rig.runtime.block_on(client.report(&report)).unwrap();
    let got = rig.tree.reports.lock().unwrap().pop().unwrap();
    assert_eq!(got.zone.unwrap(), "ä".repeat(512));
    assert_eq!(got.converged, report.converged[2000..]);

    let paths: Vec<_> = (0..1700).map(|i| path(&format!("d/{i}"))).collect();
    rig.runtime.block_on(client.suspect(&paths)).unwrap();
    assert_eq!(*rig.tree.suspects.lock().unwrap(), paths);
}

#[test]
fn a_bug_in_one_request_leaves_the_others_alone() {
    let rig = Rig::new();
    let client = rig.client();
    let bug = Report { zone: Some("bug".into()), ..Report::default() };
    assert_eq!(rig.runtime.block_on(client.report(&bug)).unwrap_err().class, Class::Transient);
    rig.runtime.block_on(client.report(&Report::default())).unwrap();
    eventually("it is counted", || rig.refused(Reason::Failed) == 1);
}

#[test]
fn a_tree_that_is_being_started_is_asked_for_again_and_counts_as_no_refusal() {
    let rig = Rig::new();
    let client = rig.client_of(rig.tcp(true), "mirror", "test", "later");
    let head = || rig.runtime.block_on(client.head(None, None, 0, Duration::ZERO)).unwrap_err();
    rig.server.set_expected(["later".to_owned()].into());
    let e = head();
    assert!(e.class == Class::Busy && e.what.contains("is not ready yet"), "{e}");
    let e = client.objects(&[Digest::of(b"x")], &mut |_, _| Ok(())).unwrap_err();
    assert_eq!(e.class, Class::Transient);
    assert!(rig.server.counters().refused.is_empty(), "{:?}", rig.server.counters());
    rig.server.set_expected(Default::default());
    assert_eq!(head().class, Class::Refused);
    assert_eq!(rig.refused(Reason::Tree), 1);
}

#[test]
fn connections_are_counted_for_the_tree_until_they_go() {
    let rig = Rig::new();
    let client = rig.client();
    rig.runtime.block_on(client.head(None, None, 0, Duration::ZERO)).unwrap();
    rig.runtime.block_on(client.report(&Report::default())).unwrap();
    client.objects(&[Digest::of(b"x")], &mut |_, _| Ok(())).unwrap();
    assert_eq!(rig.tree.connected.lock().unwrap()[&node("mirror")], 2, "connections are used again");
    assert_eq!((rig.server.counters().open, rig.server.counters().accepted), (2, 2));
    // in a runtime, where blocking is not allowed
    rig.runtime.block_on(async move { drop(client) });
    eventually("it left", || rig.tree.connected.lock().unwrap()[&node("mirror")] == 0);
    eventually("nothing is open", || rig.server.counters().open == 0);
}

#[test]
fn a_connection_that_died_while_idle_is_replaced() {
    let mut rig = Rig::new();
    let digest = rig.tree.file("f", b"content");
    let client = rig.client_of(rig.unix(), "mirror", "test", "t");
    for _ in 0..3 {
        let (came, result) = fetch(&client, &[wanted("f", 7, digest)]);
        result.unwrap();
        assert_eq!(came, [Came::Whole(b"content".to_vec())]);
        assert!(rig.runtime.block_on(client.head(None, None, 0, Duration::ZERO)).unwrap().is_none());
        rig.end();
        rig.listen();
    }
    rig.end();
    assert_eq!(fetch(&client, &[wanted("f", 7, digest)]).1.unwrap_err().class, Class::Transient);
}

#[test]
fn the_server_ends_within_two_seconds_whatever_is_under_way() {
    let mut rig = Rig::new();
    let first = rig.tree.publish(1);
    let client = rig.client();
    let polling = client.clone();
    let seen = Some((first.id, first.root.object));
    let poll = rig.runtime.spawn(async move { polling.head(None, seen, 0, Duration::from_secs(60)).await });
    let digest = rig.tree.file("large", &bytes(LARGE));
    let want = contents_of("large", LARGE, digest);
    // a transfer that nobody reads
    let mut stalled = raw(&rig.socket, &request("POST", "contents", &want));
    assert!(answer(&mut stalled).starts_with("HTTP/1.1 200"));
    eventually("both are under way", || rig.tree.heard.load(Ordering::SeqCst) > 0);
    let began = Instant::now();
    rig.end();
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
    assert_eq!(rig.runtime.block_on(poll).unwrap().unwrap_err().class, Class::Busy);
    assert_eq!(rig.server.counters().open, 0);
}

pub(super) fn contents_of(at: &str, size: usize, digest: Digest) -> Vec<u8> {
    let file = wire::AskFile { name: at.as_bytes(), size: size as u64, digest: &digest, from: 0 };
    wire::encode(&[wire::AskDir { dir: b"", files: vec![file] }].as_slice()).unwrap()
}

#[test]
fn a_node_with_too_much_under_way_waits_for_its_turn() {
    let rig = Rig::new();
    let digest = rig.tree.file("large", &bytes(LARGE));
    let want = request("POST", "contents", &contents_of("large", LARGE, digest));
    let mut stalled: Vec<_> = (0..8).map(|_| raw(&rig.socket, &want)).collect();
    stalled.iter_mut().for_each(|s| assert!(answer(s).starts_with("HTTP/1.1 200")));
    let mut ninth = raw(&rig.socket, &want);
    let refused = answer(&mut ninth);
    assert!(refused.starts_with("HTTP/1.1 429") && refused.contains("retry-after: 1"), "{refused}");

    // another node is not held up
    let other = rig.client_of(rig.unix(), "other", "test", "t");
    assert!(fetch(&other, &[wanted("large", LARGE as u64, digest)]).0 == [Came::Whole(bytes(LARGE))]);
    let client = rig.client();
    std::thread::scope(|s| {
        let fetched = s.spawn(|| fetch(&client, &[wanted("large", LARGE as u64, digest)]).0);
        eventually("it is told to wait", || rig.refused(Reason::Busy) >= 2);
        stalled.pop();
        assert!(fetched.join().unwrap() == [Came::Whole(bytes(LARGE))]);
    });
}

#[test]
fn hello_says_who_is_there() {
    let rig = Rig::new();
    let ask = String::from_utf8(request("GET", "hello", b"")).unwrap().replace("/t/hello", "/hello");
    let mut stream = raw(&rig.socket, ask.replace("host: x", "host: x\r\nconnection: close").as_bytes());
    assert!(answer(&mut stream).starts_with("HTTP/1.1 200"));
    let mut body = String::new();
    stream.read_to_string(&mut body).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(r#"{{"protocol":[1],"node":"source","cluster":"test","version":"{version}"}}"#);
    assert_eq!(body, expected);
}

#[test]
fn a_reload_takes_trees_away_and_ends_their_polls() {
    let rig = Rig::new();
    let (client, idle) = (rig.client(), rig.client());
    rig.runtime.block_on(idle.report(&Report::default())).unwrap();
    let polling = client.clone();
    let poll = rig.runtime.spawn(async move { polling.head(None, None, 0, Duration::from_secs(60)).await });
    eventually("it waits", || rig.tree.heard.load(Ordering::SeqCst) > 0);
    // the same tree again disturbs nobody
    let same = Arc::clone(&rig.tree) as Arc<dyn Serve>;
    let other = Tree::new();
    let trees =
        HashMap::from([("t".to_owned(), same), ("u".to_owned(), Arc::clone(&other) as Arc<dyn Serve>)]);
    rig.server.set_trees(trees);
    rig.runtime.block_on(client.report(&Report::default())).unwrap();
    assert!(!poll.is_finished());
    let began = Instant::now();
    rig.server.set_trees(HashMap::from([("t".to_owned(), other as Arc<dyn Serve>)]));
    let e = rig.runtime.block_on(poll).unwrap().unwrap_err();
    assert!(e.class == Class::Busy && e.what.contains("set up anew"), "{e}");
    assert!(began.elapsed() < Duration::from_secs(10));
    rig.runtime.block_on(idle.report(&Report::default())).unwrap();
    rig.runtime.block_on(client.report(&Report::default())).unwrap();
    eventually("nobody is left at the old tree", || {
        rig.tree.connected.lock().unwrap().get(&node("mirror")).is_none_or(|n| *n <= 1)
    });
    rig.server.set_trees(HashMap::new());
    let e = rig.runtime.block_on(client.head(None, None, 0, Duration::ZERO)).unwrap_err();
    assert_eq!(e.class, Class::Refused);
    assert!(e.what.contains("no tree `t` here (404"), "{e}");
}

#[test]
fn who_may_not_is_told_so() {
    let rig = Rig::new();
    let says = |client: Client, class, text: &str| {
        let e = rig.runtime.block_on(client.head(None, None, 0, Duration::ZERO)).unwrap_err();
        assert_eq!(e.class, class, "{e}");
        assert!(e.what.contains(text), "{e}");
        let e = client.objects(&[Digest::of(b"")], &mut |_, _| Ok(())).unwrap_err();
        assert_eq!(e.class, class, "{e}");
    };
    let client = |node, cluster, tree| rig.client_of(rig.tcp(true), node, cluster, tree);
    says(client("mirror", "prod", "t"), Class::Refused, "this is cluster `test`, not `prod`");
    says(client("other", "test", "t"), Class::Refused, "does not carry the node id `other`");
    says(client("mirror", "test", "a/../ä"), Class::Refused, "no tree `a/../ä`");
    let stranger = rig.client_of(rig.unix(), "stranger", "test", "t");
    says(stranger, Class::Refused, "`stranger` may not read tree `t`");
    says(rig.client_of(rig.tcp(false), "mirror", "test", "t"), Class::Refused, "ertificate");
    let reasons = [Reason::Cluster, Reason::Node, Reason::Tree, Reason::Forbidden, Reason::Handshake];
    eventually("all are counted", || reasons.iter().all(|r| rig.refused(*r) >= 2));
}
