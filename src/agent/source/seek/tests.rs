use std::time::Instant;

use super::round::{At, HEAR, SILENT};
use super::*;
use crate::model::TreePath;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn piece(index: u32, from: u64) -> Piece {
    Piece { round: 7, index, from }
}

/// Seeks `contents` in round 7 among `nodes`.
fn seek(contents: &[&[u8]], nodes: &[&str]) -> (tempfile::TempDir, Seek) {
    let at = tempfile::tempdir().unwrap();
    let dir = Some(Arc::new(Dir::open_root(at.path()).unwrap()));
    let sought = |content: &&[u8]| {
        let path = TreePath::new(b"d/file").unwrap();
        Sought { digest: Digest::of(content), size: content.len() as u64, path }
    };
    let what: Vec<_> = contents.iter().map(sought).collect();
    let seek = Seek::default();
    *lock(&seek.round) = Some(Round::new(7, dir, &what, nodes.iter().map(|name| node(name)).collect()));
    (at, seek)
}

fn is_over(seek: &Seek) -> bool {
    lock(&seek.round).as_mut().unwrap().is_over()
}

fn end(seek: &Seek) -> (HashMap<Digest, NodeId>, BTreeMap<NodeId, Ended>) {
    lock(&seek.round).take().unwrap().end().unwrap()
}

fn read(at: &tempfile::TempDir, content: &[u8]) -> Vec<u8> {
    std::fs::read(at.path().join(Digest::of(content).to_string())).unwrap()
}

fn class(done: Result<()>) -> Class {
    done.unwrap_err().class
}

/// Moves what was heard of a node so far into the past.
fn age(seek: &Seek, name: &str, age: Duration) {
    let mut round = lock(&seek.round);
    let heard = round.as_mut().unwrap().nodes.get_mut(&node(name)).unwrap();
    heard.last = Instant::now().checked_sub(age).unwrap();
}

#[test]
fn nothing_is_sent_before_all_is_offered_and_pieces_make_the_content() {
    let (at, seek) = seek(&[b"one", b"twotwo"], &["b", "c"]);
    let (b, c) = (node("b"), node("c"));
    assert_eq!(seek.sought(&b, 7, 0).unwrap().len(), 2);
    assert_eq!(seek.sought(&b, 7, 2), Some(vec![]));
    assert_eq!(seek.sought(&b, 8, 0), None);
    assert_eq!(seek.found(&b, 7, &[1, 99], true), Some(vec![]), "nobody has the other");
    assert!(!is_over(&seek));
    assert_eq!(seek.found(&c, 7, &[0, 1], true), Some(vec![0, 1]));
    assert_eq!(seek.found(&b, 7, &[], true), Some(vec![]), "c was asked");
    for _ in 0..2 {
        // who did not hear the answer sends it again
        seek.piece(&c, piece(1, 0), b"two").unwrap();
    }
    assert_eq!(seek.found(&c, 7, &[], true), Some(vec![]), "it has not sent all yet");
    for _ in 0..2 {
        seek.piece(&c, piece(1, 3), b"two").unwrap();
    }
    assert!(!is_over(&seek));
    seek.piece(&c, piece(0, 0), b"one").unwrap();
    assert!(is_over(&seek));
    assert_eq!((read(&at, b"one"), read(&at, b"twotwo")), (b"one".to_vec(), b"twotwo".to_vec()));
    assert_eq!(end(&seek).0.into_values().collect::<Vec<_>>(), [c.clone(), c]);
}

#[test]
fn nothing_is_taken_that_was_not_asked_for() {
    let (at, seek) = seek(&[b"one"], &["b", "c"]);
    let (b, c) = (node("b"), node("c"));
    assert_eq!(class(seek.piece(&b, piece(0, 0), b"one")), Class::Permanent, "nobody asked");
    assert_eq!(seek.found(&b, 7, &[0], false), Some(vec![0]));
    assert_eq!(class(seek.piece(&c, piece(0, 0), b"one")), Class::Permanent, "b was asked, not c");
    assert_eq!(class(seek.piece(&b, piece(9, 0), b"one")), Class::Permanent);
    assert_eq!(class(seek.piece(&b, piece(0, 1), b"ne")), Class::Permanent, "not from its beginning");
    assert_eq!(class(seek.piece(&b, Piece { round: 6, ..piece(0, 0) }, b"one")), Class::Transient);
    assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 0);
    assert_eq!(class(seek.piece(&b, piece(0, 0), b"one more")), Class::Permanent, "more than its size");
    assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 0);
}

#[test]
fn who_fails_is_not_asked_again_and_the_next_one_is() {
    let (at, seek) = seek(&[b"one"], &["b", "c", "d"]);
    let [b, c, d] = ["b", "c", "d"].map(node);
    assert_eq!(seek.found(&b, 7, &[0], true), Some(vec![0]));
    assert_eq!(seek.found(&c, 7, &[0], true), Some(vec![]));
    assert_eq!(seek.found(&d, 7, &[0], true), Some(vec![]));
    assert_eq!(class(seek.piece(&b, piece(0, 0), b"eno")), Class::Integrity, "another content");
    assert_eq!(seek.found(&b, 7, &[0], true), Some(vec![]));
    assert!(!is_over(&seek), "c and d have it, too");
    assert_eq!(seek.found(&c, 7, &[], true), Some(vec![0]));
    seek.piece(&c, piece(0, 0), b"").unwrap();
    assert_eq!(seek.found(&d, 7, &[], true), Some(vec![0]));
    seek.piece(&d, piece(0, 0), b"one").unwrap();
    assert!(is_over(&seek));
    assert_eq!(read(&at, b"one"), b"one");
    let ended = end(&seek).1;
    assert_eq!([&ended[&b], &ended[&c], &ended[&d]], [&Ended::Failed, &Ended::Failed, &Ended::Looked]);
}

#[test]
fn an_answer_that_was_lost_is_given_again() {
    let (_at, seek) = seek(&[b"one"], &["b"]);
    let b = node("b");
    assert_eq!(seek.found(&b, 7, &[0], false), Some(vec![0]));
    assert_eq!(seek.found(&b, 7, &[0], false), Some(vec![0]));
    seek.piece(&b, piece(0, 0), b"on").unwrap();
    // it began anew
    assert_eq!(seek.found(&b, 7, &[0], false), Some(vec![0]));
    assert_eq!(class(seek.piece(&b, piece(0, 2), b"e")), Class::Permanent);
    seek.piece(&b, piece(0, 0), b"one").unwrap();
    assert!(is_over(&seek));
}

#[test]
fn a_mirror_that_does_not_answer_or_falls_silent_is_not_waited_for() {
    let (_at, seek) = seek(&[b"one", b"two"], &["b", "c"]);
    assert_eq!(seek.found(&node("b"), 7, &[0], true), Some(vec![]));
    assert!(!is_over(&seek));
    age(&seek, "c", HEAR);
    assert!(is_over(&seek), "nobody has the other one");
    let (found, ended) = end(&seek);
    assert_eq!(found.into_keys().collect::<Vec<_>>(), [Digest::of(b"one")]);
    assert_eq!(ended[&node("c")], Ended::Silent);
}

/// Signs of life are no progress.
#[test]
fn who_only_drips_is_given_up() {
    let (_at, seek) = seek(&[b"one"], &["b"]);
    let b = node("b");
    assert_eq!(seek.found(&b, 7, &[0], true), Some(vec![0]));
    seek.piece(&b, piece(0, 0), b"o").unwrap();
    let owed = |since: u64, last: u64| {
        let past = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        let mut round = lock(&seek.round);
        round.as_mut().unwrap().nodes.get_mut(&b).unwrap().owes = Some((past(since), 1, past(last)));
    };
    owed(50, 20);
    assert!(!is_over(&seek));
    owed(50, SILENT.as_secs());
    seek.found(&b, 7, &[], true).unwrap();
    assert!(is_over(&seek), "it says something, and sends nothing");
    *lock(&seek.round).as_mut().unwrap() = Round::new(7, None, &[], Vec::new());
}

#[test]
fn who_is_too_slow_is_given_up() {
    let (_at, seek) = seek(&[b"one"], &["b"]);
    let b = node("b");
    assert_eq!(seek.found(&b, 7, &[0], true), Some(vec![0]));
    let past = Instant::now().checked_sub(Duration::from_secs(61)).unwrap();
    let mut round = lock(&seek.round);
    let round = round.as_mut().unwrap();
    round.nodes.get_mut(&b).unwrap().owes = Some((past, 8 * 1024 * 62, Instant::now()));
    assert!(!round.is_over());
    round.nodes.get_mut(&b).unwrap().owes = Some((past, 8 * 1024 * 59, Instant::now()));
    assert!(round.is_over());
    assert!(matches!(round.items[0].at, At::Nowhere));
}

/// What is written after the next one was asked changes nothing.
#[test]
fn a_piece_under_way_does_not_take_back_what_another_one_was_asked_for() {
    let (_at, seek) = seek(&[b"one"], &["b", "c"]);
    let (b, c) = (node("b"), node("c"));
    assert_eq!(seek.found(&b, 7, &[0], true), Some(vec![0]));
    assert_eq!(seek.found(&c, 7, &[0], true), Some(vec![]));
    let accepted = seek.with(7, |round| round.accept(&b, piece(0, 0), 3)).unwrap().unwrap();
    let Accepted::Write { ask, .. } = accepted else { panic!("it was asked for") };
    age(&seek, "b", SILENT);
    assert!(!is_over(&seek));
    assert_eq!(seek.found(&c, 7, &[], true), Some(vec![0]));
    seek.with(7, |round| round.wrote(&b, 0, ask, None));
    assert!(matches!(lock(&seek.round).as_ref().unwrap().items[0].at, At::Asked(..)));
    seek.piece(&c, piece(0, 0), b"one").unwrap();
    assert!(is_over(&seek));
}

#[test]
fn our_own_trouble_ends_it_and_is_said() {
    let (at, seek) = seek(&[b"one"], &["b"]);
    let b = node("b");
    assert_eq!(seek.found(&b, 7, &[0], true), Some(vec![0]));
    // in the way of the file
    std::fs::create_dir(at.path().join("new-0-1")).unwrap();
    seek.piece(&b, piece(0, 0), b"one").unwrap_err();
    assert!(is_over(&seek));
    let e = lock(&seek.round).take().unwrap().end().unwrap_err();
    assert!(e.to_string().contains("File exists"), "{e}");
}

#[test]
fn who_was_asked_is_said() {
    let mut asked = Asked::default();
    assert_eq!(asked.said(), "no mirror is known that might have it");
    asked.nodes = [("b", Ended::Looked), ("c", Ended::Silent), ("e", Ended::Failed)]
        .map(|(name, how)| (node(name), how))
        .into();
    asked.away.push(node("d"));
    assert_eq!(
        asked.said(),
        "asked, and without it, too: b; had some of it, and failed to send it: e; asked, and did not answer: c; \
         not connected: d"
    );
}
