//! Decoders against arbitrary and mutated bytes: they refuse or give what is within bounds, and never panic.

use proptest::prelude::*;

use super::hostile_server::{Liar, liar, ok};
use super::*;

/// Changes, cuts or repeats parts of valid bytes.
fn mutated(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let n = valid.len().max(1);
    let change = (0..n, any::<u8>(), 0..4u8);
    (Just(valid), proptest::collection::vec(change, 0..6)).prop_map(|(mut bytes, changes)| {
        for (at, with, how) in changes {
            let at = at.min(bytes.len());
            match how {
                0 if at < bytes.len() => bytes[at] = with,
                1 => bytes.truncate(at),
                2 => bytes.insert(at, with),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes
    })
}

fn or_arbitrary(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![4 => mutated(valid), 1 => proptest::collection::vec(any::<u8>(), 0..400)]
}

fn valid_wants() -> Vec<u8> {
    let digest = Digest::of(b"x");
    let file = |name, size, from| wire::AskFile { name, size, digest: &digest, from };
    let dirs = vec![
        wire::AskDir { dir: b"", files: vec![file(b"a", 0, 0), file(b"\xff", 1 << 40, 7)] },
        wire::AskDir { dir: b"d/e", files: vec![file(b"b", 5, 5)] },
    ];
    wire::encode(&dirs).unwrap()
}

fn valid_report() -> Vec<u8> {
    let report = Report {
        applied: Some(GenId { epoch: 1, number: 2 }),
        content: Some(Digest::of(b"x")),
        zone: Some("ä".repeat(700)),
        converged: vec![(GenId::default(), 5); 20],
        ..Report::default()
    };
    serde_json::to_vec(&report).unwrap()
}

#[test]
fn what_was_encoded_is_decoded() {
    let wants = wire::wants(&valid_wants()).unwrap();
    assert_eq!(wants.iter().map(|d| d.files.len()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!((&wants[1].dir, &wants[1].files[0].name), (&path("d/e"), &name("b")));
    assert_eq!((wants[0].files[1].size, wants[0].files[1].from), (1 << 40, 7));
    let digests = vec![Digest::of(b"a"), Digest::of(b"b")];
    let wire_form: Vec<[u8; 32]> = digests.iter().map(|d| d.0).collect();
    assert_eq!(wire::digests(&postcard::to_stdvec(&wire_form).unwrap()).unwrap(), digests);
    assert_eq!(wire::report(&valid_report()).unwrap().zone.unwrap(), "ä".repeat(512));
}

proptest! {
    #[test]
    fn wants_are_refused_or_within_bounds(body in or_arbitrary(valid_wants())) {
        if let Ok(dirs) = wire::wants(&body) {
            prop_assert!(dirs.iter().map(|d| d.files.len()).sum::<usize>() <= wire::MAX_FILES);
            prop_assert!(dirs.iter().flat_map(|d| &d.files).all(|f| f.from <= f.size && Name::new(&f.name).is_ok()));
            prop_assert!(dirs.iter().all(|d| TreePath::new(d.dir.as_bytes()).is_ok()));
        }
    }

    #[test]
    fn digests_are_refused_or_within_bounds(
        body in or_arbitrary(wire::encode(&vec![Digest::of(b"x"); 9]).unwrap())
    ) {
        if let Ok(digests) = wire::digests(&body) {
            prop_assert_eq!(wire::encode(&digests).unwrap().len(), body.len());
        }
    }

    #[test]
    fn paths_are_refused_or_within_bounds(body in or_arbitrary(wire::encode(&vec![&b"a/b"[..], b"", b"\xff"]).unwrap())) {
        if let Ok(paths) = wire::paths(&body) {
            prop_assert!(paths.len() <= wire::MAX_PATHS);
            prop_assert!(paths.iter().all(|p| TreePath::new(p.as_bytes()).is_ok()));
        }
    }

    #[test]
    fn reports_are_refused_or_within_bounds(body in or_arbitrary(valid_report())) {
        if let Ok(report) = wire::report(&body) {
            prop_assert!(report.converged.len() <= 1000 && report.version.len() <= 1024);
            prop_assert!(report.zone.is_none_or(|z| z.len() <= 1024));
        }
    }
}

/// A server that sends whatever it is given, one answer per request.
fn sender() -> (Liar, std::sync::mpsc::Sender<Vec<u8>>) {
    let (send, receive) = std::sync::mpsc::channel::<Vec<u8>>();
    let sends = liar(move |stream| {
        let Ok(body) = receive.recv() else { return false };
        stream.write_all(&ok(&body)).is_ok()
    });
    (sends, send)
}

#[test]
fn answers_of_objects_are_refused_or_right() {
    let (a, b) = (vec![1; 300], b"b".to_vec());
    let part = |o: &[u8]| [&(o.len() as u32).to_le_bytes()[..], o].concat();
    let valid = [part(&a), wire::GONE.to_le_bytes().to_vec(), part(&b)].concat();
    let want = [Digest::of(&a), Digest::of(b"gone"), Digest::of(&b)];
    let (liar, send) = sender();
    proptest!(ProptestConfig::with_cases(300), |(body in or_arbitrary(valid))| {
        send.send(body).unwrap();
        let mut right = true;
        let result = liar.client.objects(&want, &mut |d, o| {
            right &= o.is_none_or(|o| Digest::of(&o) == d);
            Ok(())
        });
        prop_assert!(right && result.err().is_none_or(|e| e.class == Class::Integrity));
    });
}

#[test]
fn answers_of_contents_are_refused_or_of_the_right_length() {
    let chunk = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
    let end = |status: u8| vec![0, 0, 0, 0, status];
    let valid = [
        chunk(&[1; 200]),
        chunk(&[2; 100]),
        end(0),
        end(1),
        end(2),
        vec![3, 0],
        b"why".to_vec(),
        chunk(&[3; 4]),
        end(1),
        end(0),
    ]
    .concat();
    let sizes = [300, 9, 9, 9, 0];
    let want: Vec<_> = sizes.iter().map(|s| wanted("f", *s, Digest::of(b""))).collect();
    let (liar, send) = sender();
    proptest!(ProptestConfig::with_cases(300), |(body in or_arbitrary(valid))| {
        send.send(body).unwrap();
        let (came, result) = fetch(&liar.client, &want);
        for (came, size) in came.iter().zip(sizes) {
            if let Came::Whole(bytes) = came {
                prop_assert_eq!(bytes.len() as u64, size);
            }
        }
        prop_assert!(result.err().is_none_or(|e| e.class == Class::Integrity));
    });
}
