//! Every operation fails once: whatever system call goes wrong, the run says so, loses nothing, and the
//! next one converges.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::crash::{Bed, Node, Rng, Side, count_calls, difference, half, long, rounds, traced, was_killed};
use crate::support::Ran;

const CALLS: [&str; 23] = [
    "openat",
    "openat2",
    "mkdirat",
    "mkdir",
    "write",
    "pwrite64",
    "read",
    "fsync",
    "syncfs",
    "renameat2",
    "renameat",
    "unlinkat",
    "linkat",
    "symlinkat",
    "readlinkat",
    "fchmod",
    "fchmodat",
    "fchownat",
    "utimensat",
    "statx",
    "getdents64",
    "ftruncate",
    "ioctl",
];

const ERRORS: [(&str, &str); 3] =
    [("EIO", "Input/output error"), ("ENOSPC", "No space left on device"), ("EACCES", "Permission denied")];

struct Campaign {
    bed: Bed,
    rng: Rng,
    at: Side,
    seed: u64,
    codes: BTreeMap<i32, usize>,
    /// Runs that ended before the program itself began.
    not_ours: usize,
    tried: usize,
    /// Runs that failed without saying at which path, or why.
    unnamed: Vec<String>,
}

impl Campaign {
    fn new(seed: u64) -> Self {
        let bed = Bed::new(2);
        bed.sync(Side::A, &[]).code(0);
        Self {
            bed,
            rng: Rng::new(seed),
            at: Side::A,
            seed,
            codes: BTreeMap::new(),
            not_ours: 0,
            tried: 0,
            unnamed: Vec::new(),
        }
    }

    /// One run in which something fails, and what must hold then.
    fn fails(&mut self, options: &[String], cause: &str, args: &[&str]) -> Ran {
        let to = self.at.other();
        let what = format!("seed {:#x}, {options:?} {args:?}, to {to:?}", self.seed);
        self.tried += 1;
        let out = traced(&self.bed.command(to, args), options).output().unwrap();
        assert!(!was_killed(out.status), "{what}: {out:?}");
        let ran = Ran::from(out);
        *self.codes.entry(ran.code).or_default() += 1;
        if ran.code == 127 && ran.err.contains("shared librar") {
            self.not_ours += 1;
            return ran;
        }
        assert!(!ran.err.contains("panicked"), "{what}: {ran:?}");
        assert!(matches!(ran.code, 0 | 1 | 3 | 4), "{what}: {ran:?}");
        let now = self.bed.now();
        let (old, new) = (self.bed.tree(self.at), self.bed.tree(to));
        if let Some(half) = half(&now, old, new, false) {
            panic!("{what}: {half}: {ran:?}");
        }
        if ran.code == 0 {
            assert_eq!(difference(&now, new), None, "{what}: {ran:?}");
        } else {
            // SQLite has its own words
            let causes = [cause, "disk I/O error", "database or disk is full"];
            let names = |l: &str| causes.iter().any(|c| l.contains(c));
            let mut lines = ran.err.lines();
            let shown = lines.any(|l| l.starts_with("syncagent: ") && names(l));
            // the message itself may be what could not be written
            let mute = options[2] == "trace=write" && !ran.err.ends_with('\n');
            if !mute && (!shown || !self.names_a_path(&ran)) {
                let missing = if shown { "path" } else { "cause" };
                let err = ran.err.trim_end();
                self.unnamed.push(format!("{missing} not named: {what}: {}: {err}", ran.code));
            }
        }
        if ran.code == 4 {
            assert_eq!(difference(&now, old), None, "{what}: refused, and yet: {ran:?}");
        }
        self.converges(to, &what);
        ran
    }

    fn names_a_path(&self, ran: &Ran) -> bool {
        let of_tree = |side| {
            let tree: &BTreeMap<PathBuf, _> = self.bed.tree(side);
            let mut names = tree.keys().filter_map(|p| p.to_str());
            names.any(|p| !p.is_empty() && ran.err.contains(p))
        };
        let own = ["journal", "staging directory", "standard output", "index", "odd \\xff", "syncagent: .: "];
        ran.err.contains('/')
            || of_tree(Side::A)
            || of_tree(Side::B)
            || own.iter().any(|w| ran.err.contains(w))
    }

    #[track_caller]
    fn assert_all_named(&self) {
        let n = self.unnamed.len();
        assert!(n == 0, "{n} of {}:\n{}", self.tried, self.unnamed.join("\n"));
    }

    fn converges(&mut self, to: Side, what: &str) {
        let ran = self.bed.sync(to, &[]);
        assert_eq!(ran.code, 0, "{what}: then {ran:?}");
        assert!(!ran.err.contains("drift"), "{what}: then {ran:?}");
        self.bed.assert_is(to, what);
        self.bed.assert_nothing_staged(what);
        if self.rng.one_in(16) {
            self.bed.assert_is_for_all(to, what);
        }
        self.at = to;
    }
}

fn inject(what: &str) -> [String; 4] {
    let call = what.split(':').next().unwrap_or_default();
    ["--seccomp-bpf".into(), "-e".into(), format!("trace={call}"), format!("--inject={what}")]
}

fn once(part: usize) {
    let seed = 0x5eed_0201 + part as u64;
    let mut c = Campaign::new(seed);
    let counts = count_calls(&c.bed.command(Side::B, &[]), &CALLS, &[]);
    c.at = Side::B;
    let mut named = 0;
    for (i, (call, total)) in counts.iter().enumerate() {
        if i % 2 != part {
            continue;
        }
        for (error, cause) in ERRORS {
            for nth in c.rng.spread(*total, rounds(6, 100_000)) {
                let options = inject(&format!("{call}:error={error}:when={nth}"));
                let ran = c.fails(&options, cause, &[]);
                named += usize::from(matches!(ran.code, 1 | 3));
            }
        }
    }
    eprintln!("part {part}: {} runs, codes {:?}", c.tried, c.codes);
    c.assert_all_named();
    assert!(named * 3 > c.tried, "{named} of {} noticed", c.tried);
    assert!(c.not_ours * 10 < c.tried, "{} of {}", c.not_ours, c.tried);
}

#[test]
fn one_failing_call_is_named_loses_nothing_and_the_next_run_converges() {
    once(0);
}

#[test]
fn one_failing_call_is_named_loses_nothing_and_the_next_run_converges_2() {
    once(1);
}

#[test]
fn a_failing_call_during_a_swap_leaves_the_old_or_the_new_tree() {
    let swap = ["--activate", "swap"];
    let mut c = Campaign::new(0x5eed_0203);
    let counts = count_calls(&c.bed.command(Side::B, &swap), &CALLS, &[]);
    c.at = Side::B;
    c.bed.sync(Side::B, &[]).code(0);
    for (call, total) in &counts {
        let errors = if long() { &ERRORS[..] } else { &ERRORS[..1] };
        for (error, cause) in errors {
            for nth in c.rng.spread(*total, rounds(3, 100_000)) {
                let options = inject(&format!("{call}:error={error}:when={nth}"));
                c.fails(&options, cause, &swap);
            }
        }
    }
    eprintln!("swap: {} runs, codes {:?}", c.tried, c.codes);
    c.assert_all_named();
    assert!(c.codes.get(&1).is_some_and(|n| n * 4 > c.tried), "{:?}", c.codes);
}

#[test]
fn everything_fails_from_some_call_on_and_the_tree_is_whole() {
    let mut c = Campaign::new(0x5eed_0204);
    let calls = ["write", "renameat2", "unlinkat", "fsync", "syncfs", "utimensat", "mkdirat"];
    let counts = count_calls(&c.bed.command(Side::B, &[]), &calls, &[]);
    c.at = Side::B;
    c.bed.sync(Side::B, &[]).code(0);
    for (call, total) in &counts {
        for nth in c.rng.spread(*total, rounds(4, 1000)) {
            let (error, cause) = ERRORS[c.rng.below(2)];
            if call == "write" {
                // who cannot even write an error message is not asked for one
                let to = c.at.other();
                let options = inject(&format!("write:error={error}:when={nth}+"));
                let out = traced(&c.bed.command(to, &[]), &options).output().unwrap();
                assert!(matches!(out.status.code(), Some(0 | 1 | 3)), "{out:?}");
                let now = c.bed.now();
                assert_eq!(half(&now, c.bed.tree(c.at), c.bed.tree(to), false), None);
                c.converges(to, "after a disk that was full to the end");
            } else {
                let options = inject(&format!("{call}:error={error}:when={nth}+"));
                c.fails(&options, cause, &[]);
            }
        }
    }
    eprintln!("from some call on: {} runs, codes {:?}", c.tried, c.codes);
    c.assert_all_named();
}

#[test]
fn a_file_system_without_exchange_or_a_kernel_without_openat2_gets_the_same_tree() {
    let mut c = Campaign::new(0x5eed_0205);
    for _ in 0..2 {
        for what in [
            "renameat2:error=EINVAL",
            "renameat2:error=ENOSYS",
            "openat2:error=ENOSYS",
            "openat2:error=EPERM",
            "ioctl:error=EOPNOTSUPP",
        ] {
            let old = c.bed.tree(c.at).clone();
            let to = c.at.other();
            c.bed.empty_trash();
            let out = traced(&c.bed.command(to, &["--keep", "1000"]), &inject(what)).output().unwrap();
            let ran = Ran::from(out);
            assert_eq!(ran.code, 0, "{what}: {ran:?}");
            assert_eq!(ran.err, "", "{what}");
            c.bed.assert_is(to, what);
            c.bed.assert_nothing_lost(&old, what);
            c.bed.assert_nothing_staged(what);
            c.bed.assert_is_for_all(to, what);
            c.at = to;
        }
    }
}

#[test]
fn unreadable_content_is_named_and_nothing_below_it_is_deleted() {
    let mut c = Campaign::new(0x5eed_0206);
    // the second listing call of a directory fails: half of it was seen
    let mut partly = 0;
    for nth in 1..rounds(20, 200) {
        let options = inject(&format!("getdents64:error=EIO:when={nth}"));
        let to = c.at.other();
        let old = c.bed.tree(c.at).clone();
        let out = traced(&c.bed.command(to, &["--no-delete"]), &options).output().unwrap();
        let ran = Ran::from(out);
        assert!(matches!(ran.code, 0 | 1 | 3), "{nth}: {ran:?}");
        partly += usize::from(ran.code == 3);
        let now = c.bed.now();
        let gone = |(p, i): &(&PathBuf, &crate::crash::Item)| {
            matches!(i.node, Node::File(_)) && !now.contains_key(*p)
        };
        let new = c.bed.tree(to);
        let moved = |i: &crate::crash::Item| new.values().any(|n| n.node == i.node);
        let lost = old.iter().filter(gone).find(|(_, i)| !moved(i));
        let swapped = lost.is_none_or(|(p, _)| p.starts_with("swap"));
        assert!(swapped, "{nth}: {lost:?} is gone: {ran:?}");
        c.converges(to, &format!("listing {nth}"));
    }
    assert!(partly > 3, "only {partly} runs were partly done");
}

#[test]
fn old_trash_goes_also_where_nothing_can_be_renamed() {
    // as on a btrfs that is full, or at its quota
    let bed = Bed::new(2);
    for side in [Side::A, Side::B, Side::A] {
        bed.sync(side, &[]).code(0);
    }
    let trash = bed.path().join("dst/.syncagent/trash");
    let commits = || std::fs::read_dir(&trash).unwrap().count();
    assert_eq!(commits(), 1);
    let options = inject("renameat:error=EDQUOT");
    // the run itself fails: nothing can be noted either
    let out = traced(&bed.command(Side::A, &["--keep", "0"]), &options).output().unwrap();
    assert_eq!(commits(), 0, "{out:?}");
    bed.assert_is(Side::A, "a full file system");
}
