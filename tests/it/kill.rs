//! SIGKILL at any instant: no file is half-written, the next run finishes what was decided or drops what
//! was only staged, and recovery alone leaves the old tree or the new one.

use std::time::Duration;

use crate::crash::{
    Bed, Node, Rng, Side, Tree, count_calls, difference, half, kill_after, kill_at, measure, rounds,
};

/// What became of the kills of a campaign.
#[derive(Debug, Default)]
struct Tally {
    rounds: usize,
    /// The run had not ended yet.
    killed: usize,
    /// The tree was neither the old nor the new one.
    mixed: usize,
    /// A later run had a decided commit to finish.
    decided: usize,
}

/// What a round may do.
#[derive(Clone, Copy, Default)]
struct Rules<'r> {
    /// `--activate swap`: never a mix.
    swap: bool,
    /// Replaced directories may be missing for an instant.
    gaps: bool,
    /// Options for runs after the crash.
    strace: Option<&'r [String]>,
}

/// A bed with DST on one side, and the rounds that go from there.
struct Campaign {
    bed: Bed,
    rng: Rng,
    seed: u64,
    at: Option<Side>,
    tally: Tally,
}

impl Campaign {
    fn new(bed: Bed, seed: u64) -> Self {
        bed.sync(Side::A, &[]).code(0);
        bed.assert_is_for_all(Side::A, "at the start");
        Self { bed, rng: Rng::new(seed), seed, at: Some(Side::A), tally: Tally::default() }
    }

    /// Where the next run goes.
    fn to(&self) -> Side {
        self.at.map_or(Side::B, Side::other)
    }

    fn old(&self) -> Tree {
        self.at.map_or_else(Tree::new, |side| self.bed.tree(side).clone())
    }

    fn run(&self, mut command: std::process::Command, rules: Rules<'_>) -> crate::support::Ran {
        if let Some(options) = rules.strace {
            command = crate::crash::traced(&command, options);
        }
        command.output().unwrap().into()
    }

    /// What must hold right after a kill, and after the runs that follow.
    fn check(&mut self, killed: bool, how: &str, rules: Rules<'_>) {
        let to = self.to();
        let (seed, round) = (self.seed, self.tally.rounds);
        let what = format!("seed {seed:#x}, round {round}, {how}, to {to:?}");
        self.tally.rounds += 1;
        self.tally.killed += usize::from(killed);
        let old = self.old();
        let new = self.bed.tree(to).clone();
        let now = self.bed.now();
        if let Some(half) = half(&now, &old, &new, rules.gaps) {
            panic!("{what}: {half}");
        }
        let is_old = difference(&now, &old).is_none() || bare(&now);
        let mixed = !is_old && difference(&now, &new).is_some();
        if rules.swap {
            assert!(!mixed, "{what}: a mix: {:?} {:?}", difference(&now, &old), difference(&now, &new));
        }
        self.tally.mixed += usize::from(mixed);
        if !killed {
            assert_eq!(difference(&now, &new), None, "{what}");
        }
        let keep_all = self.rng.one_in(4);
        let mut args = vec!["--keep"];
        args.push(if keep_all { "1000" } else { "1" });
        let alone = !keep_all && self.rng.one_in(2);
        if alone {
            let ran = self.run(self.bed.recover_command(), rules);
            let after = self.bed.now();
            let is_old = difference(&after, &old).is_none() || bare(&after);
            let want = if is_old && !mixed { &old } else { &new };
            if !bare(&after) {
                assert_eq!(difference(&after, want), None, "{what}: recovery alone");
            }
            assert!(matches!(ran.code, 0 | 4) && !ran.err.contains("drift"), "{what}: {ran:?}");
        }
        let next = match self.at {
            Some(side) if self.rng.one_in(4) => side,
            _ => to,
        };
        let ran = self.run(self.bed.command(next, &args), rules);
        assert_eq!(ran.code, 0, "{what}: {ran:?}");
        assert!(!ran.err.contains("drift"), "{what}: {ran:?}");
        let finished = ran.out.contains("an interrupted commit was finished");
        self.tally.decided += usize::from(finished || mixed);
        assert!(!mixed || alone || finished, "{what}: nobody finished the commit");
        self.bed.assert_is(next, &what);
        self.bed.assert_nothing_staged(&what);
        if keep_all {
            self.bed.assert_nothing_lost(&old, &what);
            self.bed.empty_trash();
        }
        if self.rng.one_in(8) {
            self.bed.assert_is_for_all(next, &what);
        }
        self.at = Some(next);
    }

    /// Kills uniformly over the time that a run takes after `begun`.
    fn at_random(&mut self, n: usize, args: &[&str], rules: Rules<'_>, begun: &dyn Fn(&Bed) -> bool) {
        let mut times: Vec<Duration> = (0..6)
            .map(|_| {
                let to = self.to();
                let took = measure(self.bed.command(to, args), || begun(&self.bed));
                self.at = Some(to);
                took
            })
            .collect();
        times.sort();
        let limit = times[3];
        for _ in 0..n {
            let delay = self.rng.up_to(limit);
            let command = self.bed.command(self.to(), args);
            let killed = kill_after(command, || begun(&self.bed), delay);
            self.check(killed, &format!("{delay:?} of {limit:?}"), rules);
        }
    }

    /// Kills at system calls, at most `most` instants for each.
    fn at_calls(&mut self, calls: &[&str], most: usize, args: &[&str], more: &[String], rules: Rules<'_>) {
        let to = self.to();
        let counts = count_calls(&self.bed.command(to, args), calls, more);
        self.at = Some(to);
        for (call, total) in counts {
            for nth in self.rng.spread(total, most) {
                let command = self.bed.command(self.to(), args);
                let killed = kill_at(&command, &call, nth, more);
                self.check(killed, &format!("at {call} {nth} of {total}"), rules);
            }
        }
    }
}

/// Nothing but the directory itself.
fn bare(tree: &Tree) -> bool {
    tree.len() <= 1
}

fn has_journal(bed: &Bed) -> bool {
    bed.dst.join(".syncagent/journal").exists()
}

#[test]
fn killed_at_any_instant_every_file_is_whole_and_the_next_run_converges() {
    let mut c = Campaign::new(Bed::new(20), 0x5eed_0001);
    c.at_random(rounds(120, 3000), &[], Rules::default(), &|_| true);
    eprintln!("over the whole run: {:?}", c.tally);
    assert!(c.tally.killed * 2 > c.tally.rounds, "{:?}", c.tally);
}

#[test]
fn killed_while_it_stages_and_commits_recovery_leaves_the_old_or_the_new_tree() {
    let mut c = Campaign::new(Bed::new(20), 0x5eed_0002);
    c.at_random(rounds(120, 3000), &[], Rules::default(), &has_journal);
    // how many meet a decided commit depends on the machine: on until enough have
    for _ in 0..30 {
        if c.tally.decided > 6 {
            break;
        }
        c.at_random(20, &[], Rules::default(), &has_journal);
    }
    eprintln!("after the journal was begun: {:?}", c.tally);
    assert!(c.tally.killed * 2 > c.tally.rounds, "{:?}", c.tally);
    assert!(c.tally.decided > 6, "{:?}", c.tally);
}

#[test]
fn killed_at_each_system_call_of_the_commit_recovery_leaves_the_old_or_the_new_tree() {
    let mut c = Campaign::new(Bed::new(3), 0x5eed_0003);
    let calls = [
        "renameat2",
        "renameat",
        "fsync",
        "syncfs",
        "unlinkat",
        "mkdirat",
        "openat",
        "openat2",
        "utimensat",
        "write",
        "fchmod",
        "symlinkat",
    ];
    c.at_calls(&calls, rounds(8, 100_000), &[], &[], Rules::default());
    eprintln!("at system calls: {:?}", c.tally);
    assert!(c.tally.killed * 10 > c.tally.rounds * 8, "{:?}", c.tally);
    assert!(c.tally.mixed >= 6, "{:?}", c.tally);
}

#[test]
fn killed_again_during_recovery_the_third_run_converges() {
    let mut c = Campaign::new(Bed::new(3), 0x5eed_0004);
    let mut twice = 0;
    for _ in 0..rounds(40, 1000) {
        let nth = 1 + c.rng.below(45);
        let command = c.bed.command(c.to(), &[]);
        let mut killed = kill_at(&command, "renameat2", nth, &[]);
        let calls = ["renameat2", "openat2", "unlinkat", "fsync", "renameat"];
        let call = calls[c.rng.below(calls.len())];
        let then = 1 + c.rng.below(if call == "openat2" { 60 } else { 8 });
        if killed {
            let again = kill_at(&c.bed.recover_command(), call, then, &[]);
            twice += usize::from(again);
            killed |= again;
        }
        let how = format!("at renameat2 {nth}, then at {call} {then}");
        c.check(killed, &how, Rules::default());
    }
    eprintln!("twice: {twice} of {:?}", c.tally);
    assert!(twice * 3 > c.tally.rounds, "{twice} {:?}", c.tally);
}

#[test]
fn killed_during_the_first_copy_every_file_is_whole_and_the_next_run_converges() {
    let bed = Bed::new(10);
    let limit = measure(bed.command(Side::A, &[]), || true);
    let mut c = Campaign::new(bed, 0x5eed_0005);
    let calls = ["renameat2", "fsync", "mkdirat", "openat", "utimensat"];
    for round in 0..5 * rounds(60, 1500) {
        // how many meet the commit depends on the machine: on until enough have
        if round >= rounds(60, 1500) && c.tally.mixed > 2 {
            break;
        }
        c.bed.remove_dst();
        c.at = None;
        let command = c.bed.command(c.to(), &[]);
        if round % 2 == 0 {
            let delay = c.rng.up_to(limit);
            let killed = kill_after(command, || true, delay);
            c.check(killed, &format!("first copy, {delay:?} of {limit:?}"), Rules::default());
        } else {
            let call = calls[c.rng.below(calls.len())];
            let nth = 1 + c.rng.below(if call == "fsync" { 8 } else { 24 });
            let killed = kill_at(&command, call, nth, &[]);
            c.check(killed, &format!("first copy, at {call} {nth}"), Rules::default());
        }
    }
    eprintln!("first copy: {:?}", c.tally);
    assert!(c.tally.killed * 2 > c.tally.rounds, "{:?}", c.tally);
    assert!(c.tally.mixed > 2, "{:?}", c.tally);
}

#[test]
fn killed_during_a_swap_the_tree_is_the_old_or_the_new_one_before_any_recovery() {
    let swap = ["--activate", "swap"];
    let rules = Rules { swap: true, ..Rules::default() };
    let mut c = Campaign::new(Bed::new(6), 0x5eed_0006);
    c.at_random(rounds(40, 1500), &swap, rules, &|_| true);
    let calls = [
        "renameat2",
        "renameat",
        "linkat",
        "fsync",
        "syncfs",
        "unlinkat",
        "mkdirat",
        "openat2",
        "ftruncate",
        "pwrite64",
    ];
    c.at_calls(&calls, rounds(7, 100_000), &swap, &[], rules);
    eprintln!("swap: {:?}", c.tally);
    assert!(c.tally.killed * 2 > c.tally.rounds, "{:?}", c.tally);
}

#[test]
fn killed_on_a_file_system_without_exchange_nothing_is_half_written_or_lost() {
    let plain = [
        "-e".to_owned(),
        "inject=renameat2:error=EINVAL".to_owned(),
        "--seccomp-bpf".to_owned(),
        "-e".to_owned(),
        "trace=renameat2".to_owned(),
    ];
    // a signal is not injected by strace's filter for the kernel
    let slow = [plain[0].clone(), plain[1].clone()];
    let mut c = Campaign::new(Bed::new(3), 0x5eed_0007);
    let rules = Rules { gaps: true, strace: Some(&plain), ..Rules::default() };
    let most = rounds(40, 100_000);
    c.at_calls(&["renameat", "linkat"], most, &[], &slow, rules);
    eprintln!("without EXCHANGE: {:?}", c.tally);
    assert!(c.tally.killed * 10 > c.tally.rounds * 8, "{:?}", c.tally);
    assert!(c.tally.mixed >= 20, "{:?}", c.tally);
}

/// Writes a file at each name that the crash found deleted, and that only the old tree has.
fn write_late(bed: &Bed, old: &Tree, new: &Tree) -> Vec<(std::path::PathBuf, String)> {
    let now = bed.now();
    let mut late = Vec::new();
    for (path, item) in old {
        let gone = matches!(item.node, Node::File(_)) && !now.contains_key(path) && !new.contains_key(path);
        // what is in a directory that has yet to go is displaced with it, as drift
        let free = path.ancestors().skip(1).all(|dir| {
            let dir_is = |tree: &Tree| tree.get(dir).map(|i| matches!(i.node, Node::Dir));
            match dir_is(&now) {
                None => dir_is(new).is_none(),
                Some(is) => is && dir_is(new) == Some(true),
            }
        });
        if gone && free {
            let at = bed.dst.join(path);
            let content = format!("late {}", path.display());
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            std::fs::write(at, &content).unwrap();
            late.push((path.clone(), content));
        }
    }
    late
}

fn late_stays(keep: &str, seed: u64) {
    let mut rng = Rng::new(seed);
    let bed = Bed::new(2);
    let args = ["--keep", keep];
    bed.sync(Side::A, &args).code(0);
    let counts = count_calls(&bed.command(Side::B, &args), &["unlinkat", "renameat2", "fsync"], &[]);
    let (old, new) = (bed.tree(Side::A), bed.tree(Side::B));
    let (mut written, mut hit) = (0, 0);
    for (call, total) in counts {
        for nth in rng.spread(total, rounds(10, 100_000)) {
            bed.sync(Side::A, &args).code(0);
            let what = format!("keep {keep}, at {call} {nth} of {total}");
            hit += usize::from(kill_at(&bed.command(Side::B, &args), &call, nth, &[]));
            let late = write_late(&bed, old, new);
            // a recovery that is killed, too, and one that is not
            let mut recover = bed.recover_command();
            recover.args(args);
            if rng.one_in(2) {
                kill_at(&recover, &call, 1 + rng.below(6), &[]);
            }
            let ran = crate::support::Ran::from(recover.output().unwrap());
            assert!(matches!(ran.code, 0 | 4), "{what}: {ran:?}");
            for (path, content) in &late {
                let there = std::fs::read_to_string(bed.dst.join(path));
                assert_eq!(there.ok().as_ref(), Some(content), "{what}: {}: {ran:?}", path.display());
            }
            written += late.len();
        }
    }
    assert!(hit > 20 && written > 60, "{hit} {written}");
    bed.sync(Side::B, &args).code(0);
    bed.assert_is(Side::B, "at the end");
    bed.assert_nothing_staged("at the end");
}

#[test]
fn what_is_written_after_a_kill_where_the_commit_was_done_is_not_taken_when_nothing_is_kept() {
    late_stays("0", 0x5eed_0008);
}

#[test]
fn what_is_written_after_a_kill_where_the_commit_was_done_is_not_taken_when_it_is_kept() {
    late_stays("3", 0x5eed_0009);
}

#[test]
fn what_failed_before_a_kill_is_told_by_the_run_that_finishes_the_commit() {
    let bed = Bed::new(1);
    let (mut told, mut again) = (0, 0);
    let args = ["--keep", "0"];
    let fails = ["-e".to_owned(), "inject=renameat2:error=EPERM:when=5".to_owned()];
    bed.sync(Side::A, &args).code(0);
    let counts = count_calls(&bed.command(Side::B, &args), &["unlinkat", "fsync"], &[]);
    for (call, total) in counts {
        for nth in Rng::new(0x5eed_000a).spread(total, rounds(12, 100_000)) {
            bed.sync(Side::A, &args).code(0);
            let out = crate::crash::traced(
                &bed.command(Side::B, &args),
                &[
                    &fails[..],
                    &["-e".to_owned(), format!("inject={call}:signal=KILL:when={nth}")],
                    &["-e".to_owned(), format!("trace=renameat2,{call}")],
                ]
                .concat(),
            );
            let out = { out }.output().unwrap();
            if !crate::crash::was_killed(out.status) {
                continue;
            }
            let own = |name: &str| bed.dst.join(".syncagent").join(name).exists();
            let decided = own("journal") && !own("stage");
            let what = format!("at {call} {nth} of {total}");
            assert!(!decided || own("unplaced"), "{what}: nobody knows what failed");
            let all_done = decided || own("unplaced") && !own("journal");
            let mut recover = bed.recover_command();
            recover.args(args);
            let ran = crate::support::Ran::from(recover.output().unwrap());
            let says =
                ran.err.contains("the commit that was interrupted") && ran.err.contains("not permitted");
            assert_eq!(says, all_done, "{what}: {ran:?}");
            told += usize::from(says);
            again += usize::from(!says);
            assert!(!own("unplaced"), "{what}: it is told once");
        }
    }
    assert!(told > 5 && again > 5, "{told} {again}");
    bed.sync(Side::B, &args).code(0);
    bed.assert_is(Side::B, "at the end");
}
