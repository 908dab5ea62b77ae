//! Random trees and random changes, with rsync as the judge. The same cases in every run; more of them with
//! `SYNCAGENT_TEST_LONG=1`, or one by `SYNCAGENT_TEST_SEED=N`.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::support::{
    Ran, Scratch, assert_same, chmod, is_root, raw, set_mtime, set_mtime_like, snapshot, symlink, tool,
};

/// A small generator (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    fn of<'x, T: ?Sized>(&mut self, all: &[&'x T]) -> &'x T {
        all[self.below(all.len())]
    }
}

const NAMES: [&[u8]; 11] =
    [b"a", b"a.b", b"a-", b"a b", b"b", b"c\n", b"d\xff", b"e.car", b"k.keep", b"l", b"m"];
/// Never touched, so that SRC is never empty.
const SENTINEL: &str = "sentinel";

/// The paths in `top`, directories among them, without what is ours.
fn paths(top: &Path) -> Vec<PathBuf> {
    let walk = walkdir::WalkDir::new(top).min_depth(1).sort_by_file_name();
    walk.into_iter()
        .filter_entry(|e| e.file_name() != ".syncagent" && e.file_name() != SENTINEL)
        .map(|e| e.unwrap().into_path())
        .collect()
}

fn somewhere(r: &mut Random, top: &Path) -> PathBuf {
    let mut dirs: Vec<PathBuf> = paths(top)
        .into_iter()
        .filter(|p| p.is_dir() && !p.is_symlink() && p.components().count() < 24)
        .collect();
    dirs.push(top.to_owned());
    dirs[r.below(dirs.len())].join(raw(r.of(&NAMES)))
}

fn clear(path: &Path) {
    match path.symlink_metadata() {
        Ok(m) if m.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Ok(_) => std::fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

fn content(r: &mut Random) -> Vec<u8> {
    // few different ones, so that moves and equal files come up; some large
    let size = *r.of(&[&0usize, &1, &5, &5, &5, &4096, &70_000]);
    vec![b'a' + u8::try_from(r.below(3)).unwrap(); size]
}

/// One change below `top`.
fn change(r: &mut Random, top: &Path) {
    let all = paths(top);
    let some = (!all.is_empty()).then(|| all[r.below(all.len())].clone());
    let at = somewhere(r, top);
    match (r.below(12), some) {
        (0, Some(path)) => clear(&path),
        (1 | 2, Some(path)) if !at.starts_with(&path) && !path.starts_with(&at) => {
            clear(&at);
            std::fs::rename(path, at).unwrap();
        }
        (3, Some(path)) if !at.starts_with(&path) && !path.starts_with(&at) => {
            clear(&at);
            tool("cp", &["-aT".as_ref(), path.as_os_str(), at.as_os_str()]);
        }
        (4, Some(path)) if !path.is_symlink() => {
            let mode = if path.is_dir() {
                *r.of(&[&0o755, &0o700, &0o775, &0o2755])
            } else {
                *r.of(&[&0o644, &0o600, &0o755, &0o4755, &0o444])
            };
            chmod(path, mode);
        }
        (5, Some(path)) => {
            let sec = i64::try_from(r.below(5)).unwrap() * 400_000_000 - 100;
            set_mtime(path, sec, i64::try_from(r.below(1_000_000_000)).unwrap());
        }
        (6, Some(path)) if path.is_file() && !path.is_symlink() => {
            // other bytes, size and mtime as they were
            let meta = path.metadata().unwrap();
            let bytes = vec![b'z'; usize::try_from(meta.size()).unwrap()];
            std::fs::write(&path, bytes).unwrap();
            set_mtime_like(&path, &meta);
        }
        // in SRC only: one inode cannot have two modes, so DST's are another test's subject
        (7, Some(path))
            if top.ends_with("src") && path.is_file() && !path.is_symlink() && !path.starts_with(&at) =>
        {
            clear(&at);
            std::fs::hard_link(path, at).unwrap();
        }
        (8, _) => {
            clear(&at);
            std::fs::create_dir(at).unwrap();
        }
        (9, _) => {
            clear(&at);
            symlink(r.of(&["a", "../b", "/etc", "nowhere"]), at);
        }
        _ => {
            clear(&at);
            std::fs::write(at, content(r)).unwrap();
        }
    }
}

fn changes(r: &mut Random, top: &Path, most: usize) {
    for _ in 0..=r.below(most) {
        change(r, top);
    }
}

/// The seeds from `first` on: so many in an ordinary run, so many in a long one.
fn seeds(first: u64, many: u64) -> std::ops::Range<u64> {
    let var = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    match (var("SYNCAGENT_TEST_SEED"), var("SYNCAGENT_TEST_LONG")) {
        (Some(one), _) if (first..first + 1000).contains(&one) => one..one + 1,
        (Some(_), _) => first..first,
        (None, Some(1)) => first..first + 400,
        _ => first..first + many,
    }
}

/// A tree of its own for each seed, synced once.
fn start(r: &mut Random) -> Scratch {
    let s = Scratch::in_memory();
    s.write(format!("src/{SENTINEL}"), "always there");
    changes(r, &s.src(), 40);
    s.sync(["-q"]).code(0);
    s
}

#[track_caller]
fn check(s: &Scratch, case: &str, ran: Ran) {
    println!("{}", ran.out);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{case}");
    let said = ran.summary()["content_digest"].clone();
    assert_same(&s.src(), &s.dst());
    s.assert_same_by_rsync();
    s.assert_nothing_staged();
    assert_eq!(said, s.digest("src").as_str(), "{case}");
    assert_eq!(said, s.digest("dst").as_str(), "{case}");
    let again = s.sync(["-i"]).code(0);
    assert_eq!(again.plan(), Vec::<&str>::new(), "{case}: a second run");
}

fn prefix(case: &str) {
    // shown with a failure, by which the case can be found again
    println!("{case}");
}

const ALL: [&str; 2] = ["--json", "--max-delete=100%"];

#[test]
fn random_changes_in_the_source_arrive() {
    for seed in seeds(0, 15) {
        let r = &mut Random(seed);
        let s = start(r);
        for round in 0..3 {
            let case = format!("seed {seed}, round {round}");
            prefix(&case);
            changes(r, &s.src(), 12);
            check(&s, &case, s.sync(ALL));
        }
    }
}

#[test]
fn random_drift_in_the_destination_is_healed() {
    for seed in seeds(1000, 15) {
        let r = &mut Random(seed);
        let s = start(r);
        for round in 0..3 {
            let case = format!("seed {seed}, round {round}");
            prefix(&case);
            if round != 1 {
                changes(r, &s.src(), 6);
            }
            changes(r, &s.dst(), 8);
            check(&s, &case, s.sync(ALL));
        }
    }
}

#[test]
fn random_changes_arrive_by_swap_and_in_place_in_turn() {
    for seed in seeds(2000, 15) {
        let r = &mut Random(seed);
        let s = start(r);
        for round in 0..3 {
            let case = format!("seed {seed}, round {round}");
            prefix(&case);
            changes(r, &s.src(), 10);
            if r.below(2) == 0 {
                changes(r, &s.dst(), 4);
            }
            let activate = *r.of(&[&"--activate=swap", &"--activate=swap", &"--activate=in-place"]);
            let keep = *r.of(&[&"--keep=0", &"--keep=1", &"--keep=3"]);
            let args = ALL.into_iter().chain([activate, keep]);
            check(&s, &case, s.sync(args));
        }
    }
}

/// Whether the filter of the test below leaves a path out.
fn is_kept(path: &[u8]) -> bool {
    path.split(|&b| b == b'/').any(|name| name.ends_with(b".keep"))
}

#[test]
fn excluded_content_survives_random_changes() {
    let mut refused = 0;
    let mut survived = 0;
    for seed in seeds(3000, 30) {
        let r = &mut Random(seed);
        let s = Scratch::in_memory();
        s.write(format!("src/{SENTINEL}"), "always there");
        changes(r, &s.src(), 30);
        let args = ALL.into_iter().chain(["--exclude=*.keep"]);
        s.sync(args.clone()).code(0);
        for round in 0..3 {
            let case = format!("seed {seed}, round {round}");
            prefix(&case);
            changes(r, &s.src(), 6);
            changes(r, &s.dst(), 10);
            let kept = |mut all: std::collections::BTreeMap<Vec<u8>, _>| {
                all.retain(|p: &Vec<u8>, _| is_kept(p));
                all
            };
            let before = kept(snapshot(&s.dst()));
            survived += before.len();
            let ran = s.sync(args.clone());
            assert_eq!(kept(snapshot(&s.dst())), before, "{case}: {ran:?}");
            s.assert_nothing_staged();
            if ran.code == 3 {
                assert!(ran.err.contains("in the way"), "{case}: {ran:?}");
                refused += 1;
                continue;
            }
            assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{case}");
            let (mut want, mut have) = (snapshot(&s.src()), snapshot(&s.dst()));
            want.retain(|p, _| !is_kept(p));
            have.retain(|p, _| !is_kept(p));
            // a directory that only holds what is excluded stays
            let holds = |p: &[u8]| {
                let inside = [p, b"/"].concat();
                before.keys().any(|k| k.starts_with(&inside))
            };
            have.retain(|p, seen| want.contains_key(p) || seen.kind != 'd' || !holds(p));
            for (path, seen) in &want {
                assert_eq!(have.get(path), Some(seen), "{case}: {}", path.escape_ascii());
            }
            assert_eq!(have.len(), want.len(), "{case}");
            let again = s.sync(["-i", "--exclude=*.keep"]).code(0);
            assert_eq!(again.plan(), Vec::<&str>::new(), "{case}: a second run");
        }
    }
    let all = std::env::var_os("SYNCAGENT_TEST_SEED").is_none();
    assert!(!all || (survived > 50 && refused > 0), "{survived} {refused}");
}

#[test]
fn random_changes_arrive_when_not_root() {
    for seed in seeds(4000, 15) {
        let r = &mut Random(seed);
        let s = Scratch::in_memory();
        s.write(format!("src/{SENTINEL}"), "always there");
        changes(r, &s.src(), 30);
        s.give("dst");
        for round in 0..3 {
            let case = format!("seed {seed}, round {round}");
            prefix(&case);
            let close = |mode: u32| {
                for path in paths(&s.src()).into_iter().rev() {
                    let closed = path.to_string_lossy().len() % 3 == 0;
                    if path.is_dir() && !path.is_symlink() && closed {
                        chmod(path, mode);
                    }
                }
            };
            close(0o755);
            changes(r, &s.src(), 10);
            close(0o555);
            s.give("src");
            println!("{}", s.user_sync(ALL.into_iter().chain(["-n"])).out);
            let ran = s.user_sync(ALL);
            assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{case}: {}", ran.out);
            assert_same(&s.src(), &s.dst());
            s.assert_nothing_staged();
            let again = s.user_sync(["-i"]).code(0);
            assert_eq!(again.plan(), Vec::<&str>::new(), "{case}: a second run");
        }
        if !is_root() {
            tool("chmod", &["-R".as_ref(), "u+rwx".as_ref(), s.path().as_os_str()]);
        }
    }
}
