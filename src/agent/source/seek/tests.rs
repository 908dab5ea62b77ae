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
    let item = |content: &&[u8]| {
        let path = TreePath::new(b"d/file").unwrap();
        let what = Sought { digest: Digest::of(content), size: content.len() as u64, path };
        Item { what, at: At::Nowhere }
    };
    let items = contents.iter().map(item).collect();
    let nodes = nodes.iter().map(|name| (node(name), Heard::new())).collect();
    let seek = Seek::default();
    *seek.round() = Some(Round { number: 7, dir, items, nodes });
    (at, seek)
}

fn is_over(seek: &Seek) -> bool {
    seek.round().as_mut().unwrap().is_over()
}

fn read(at: &tempfile::TempDir, content: &[u8]) -> Vec<u8> {
    std::fs::read(at.path().join(Digest::of(content).to_string())).unwrap()
}

#[test]
fn one_mirror_is_asked_for_each_and_its_pieces_make_the_content() {
    let (at, seek) = seek(&[b"one", b"twotwo"], &["b", "c"]);
    let (b, c) = (node("b"), node("c"));
    assert_eq!(seek.sought(&b, 7).unwrap().len(), 2);
    assert_eq!(seek.sought(&b, 8), None);
    assert_eq!(seek.found(&b, 7, &[1, 99], true), Some(vec![1]));
    assert_eq!(seek.found(&c, 7, &[0, 1], true), Some(vec![0]), "b was asked for the other");
    assert!(!is_over(&seek));
    seek.piece(&b, piece(1, 0), b"two").unwrap();
    // who did not hear the answer sends it again
    seek.piece(&b, piece(1, 0), b"two").unwrap();
    seek.piece(&b, piece(1, 3), b"two").unwrap();
    seek.piece(&b, piece(1, 3), b"two").unwrap();
    assert!(!is_over(&seek), "c is still awaited");
    seek.piece(&c, piece(0, 0), b"one").unwrap();
    assert!(is_over(&seek));
    assert_eq!((read(&at, b"one"), read(&at, b"twotwo")), (b"one".to_vec(), b"twotwo".to_vec()));
}

#[test]
fn nothing_is_taken_that_was_not_asked_for() {
    let (at, seek) = seek(&[b"one", b"two"], &["b", "c"]);
    let (b, c) = (node("b"), node("c"));
    let class = |done: Result<()>| done.unwrap_err().class;
    assert_eq!(class(seek.piece(&b, piece(0, 0), b"one")), Class::Permanent, "nobody asked");
    assert_eq!(seek.found(&b, 7, &[0], false), Some(vec![0]));
    assert_eq!(class(seek.piece(&c, piece(0, 0), b"one")), Class::Permanent, "b was asked, not c");
    assert_eq!(class(seek.piece(&b, piece(9, 0), b"one")), Class::Permanent);
    assert_eq!(class(seek.piece(&b, piece(0, 1), b"ne")), Class::Permanent, "not from its beginning");
    assert_eq!(class(seek.piece(&b, Piece { round: 6, ..piece(0, 0) }, b"one")), Class::Transient);
    assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 0);
    // more than its size is a lie, and so is another content
    assert_eq!(class(seek.piece(&b, piece(0, 0), b"one more")), Class::Permanent);
    assert_eq!(seek.found(&c, 7, &[0], false), Some(vec![0]), "the next one is asked");
    assert_eq!(class(seek.piece(&c, piece(0, 0), b"eno")), Class::Integrity);
    assert_eq!(seek.found(&c, 7, &[0], true), Some(vec![]), "who sent something wrong is not asked again");
    assert_eq!(seek.found(&b, 7, &[0], true), Some(vec![0]));
    seek.piece(&b, piece(0, 0), b"").unwrap();
    assert!(is_over(&seek), "nobody is left who could have it");
}

#[test]
fn a_mirror_that_does_not_answer_or_falls_silent_is_not_waited_for() {
    let (_at, seek) = seek(&[b"one"], &["b", "c"]);
    let age = |name: &str, age: Duration| {
        let mut round = seek.round();
        let heard = round.as_mut().unwrap().nodes.get_mut(&node(name)).unwrap();
        heard.last = Instant::now().checked_sub(age).unwrap();
    };
    assert_eq!(seek.found(&node("b"), 7, &[0], false), Some(vec![0]));
    age("c", HEAR);
    assert!(!is_over(&seek), "b sends");
    age("b", SILENT - Duration::from_secs(5));
    assert!(!is_over(&seek));
    age("b", SILENT);
    assert!(is_over(&seek));
    assert!(matches!(seek.round().as_ref().unwrap().items[0].at, At::Failed(_)));
}

#[test]
fn who_was_asked_is_said() {
    let mut asked = Asked::default();
    assert_eq!(asked.said(), "no mirror is known that might have it");
    asked.nodes.insert(node("b"), true);
    asked.nodes.insert(node("c"), false);
    asked.away.push(node("d"));
    assert_eq!(asked.said(), "asked, and without it, too: b; asked, and did not answer: c; not connected: d");
}
