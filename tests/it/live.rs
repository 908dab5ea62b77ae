//! Somebody else writes while a run goes on: in DST (nothing of theirs is lost), around DST and SRC
//! (directories become links that lead out), in SRC (no file is copied torn).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags};
use walkdir::WalkDir;

use crate::crash::{Bed, Rng, Side, contents, fast_place, rounds};
use crate::support::Ran;

fn exchange(a: &Path, b: &Path) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)
}

/// Sets the flag when it goes, also by a failed assertion, so that no thread is left running.
struct Stop<'f>(&'f AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Every token is 32 bytes, so that one write replaces one by another whole.
const TOKEN: usize = 32;

fn token(n: u64) -> Vec<u8> {
    format!("{:<TOKEN$}", format!("live writer's token {n}")).into_bytes()
}

fn is_token(bytes: &[u8]) -> bool {
    bytes.starts_with(b"live writer's ")
}

/// Writes below DST; knows what it wrote and what it destroyed itself. Alone: of two that work on the same
/// file neither would know.
struct Writer<'w> {
    dst: &'w Path,
    /// Beside DST, on the same file system.
    own: PathBuf,
    rng: Rng,
    n: u64,
    written: BTreeSet<Vec<u8>>,
    destroyed: BTreeSet<Vec<u8>>,
    done: [usize; 5],
}

impl Writer<'_> {
    fn fresh(&mut self) -> Vec<u8> {
        self.n += 1;
        token(self.n)
    }

    /// What is destroyed here is not lost by others.
    fn destroy(&mut self, path: &Path) {
        if path.is_symlink() || !path.is_dir() {
            if let Ok(bytes) = std::fs::read(path)
                && !path.is_symlink()
            {
                self.destroyed.insert(bytes);
            }
            let _ = std::fs::remove_file(path);
        } else {
            // a directory that stood where a file was expected; keep all of it
            let keep = self.own.join(format!("kept-{}", self.n));
            std::fs::rename(path, keep).unwrap();
        }
    }

    fn act(&mut self, paths: &[PathBuf]) {
        let path = self.dst.join(&paths[self.rng.below(paths.len())]);
        let beside = self.own.join("beside");
        let kind = self.rng.below(5);
        let token = self.fresh();
        let fine = match kind {
            // overwrite in place
            0 => {
                let plain = path.symlink_metadata().is_ok_and(|m| m.is_file());
                let open = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
                    .open(&path);
                match open {
                    Ok(mut file) if plain => {
                        let mut before = Vec::new();
                        file.read_to_end(&mut before).unwrap();
                        file.set_len(TOKEN as u64).unwrap();
                        file.write_all_at(&token, 0).unwrap();
                        self.destroyed.insert(before);
                        true
                    }
                    _ => false,
                }
            }
            // a new name, also in directories that go
            1 => {
                let name = format!("live-{}", self.n);
                let dir = if path.is_dir() && !path.is_symlink() {
                    path
                } else {
                    path.parent().unwrap().to_owned()
                };
                File::create_new(dir.join(name)).is_ok_and(|mut f| f.write_all(&token).is_ok())
            }
            // rename over; the exchange tells what it was. Seldom a directory
            2 if path.is_dir() && !self.rng.one_in(10) => return,
            2 => {
                std::fs::write(&beside, &token).unwrap();
                let done = exchange(&beside, &path);
                if done.is_err() {
                    std::fs::remove_file(&beside).unwrap();
                } else {
                    self.destroy(&beside);
                }
                done.is_ok()
            }
            // delete
            3 => {
                let done = path.symlink_metadata().is_ok_and(|m| !m.is_dir())
                    && std::fs::rename(&path, &beside).is_ok();
                if done {
                    self.destroy(&beside);
                }
                self.done[3] += usize::from(done);
                return;
            }
            // create where there is nothing, directories too
            _ => {
                let _ = std::fs::create_dir_all(path.parent().unwrap());
                File::create_new(&path).is_ok_and(|mut f| f.write_all(&token).is_ok())
            }
        };
        if fine {
            self.written.insert(token);
            self.done[kind] += 1;
        }
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn all_paths(bed: &Bed) -> Vec<PathBuf> {
    let both: BTreeSet<_> = [Side::A, Side::B]
        .iter()
        .flat_map(|s| bed.tree(*s).keys())
        .filter(|p| !p.as_os_str().is_empty())
        .cloned()
        .collect();
    both.into_iter().collect()
}

fn writes_while(seed: u64, syncs: usize, pause: Duration, args: &[&str], options: &[String]) {
    let bed = Bed::new(5);
    let own = bed.path().join("own");
    std::fs::create_dir(&own).unwrap();
    bed.sync(Side::A, args).code(0);
    let paths = all_paths(&bed);
    let stop = AtomicBool::new(false);
    let mut named = BTreeSet::new();
    let mut errors = 0;
    let mut codes: BTreeMap<i32, usize> = BTreeMap::new();
    let w = std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        let mut w = Writer {
            dst: &bed.dst,
            own: own.clone(),
            rng: Rng::new(seed),
            n: 0,
            written: BTreeSet::new(),
            destroyed: BTreeSet::new(),
            done: [0; 5],
        };
        let (stop, paths) = (&stop, &paths);
        let writer = scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                w.act(paths);
                std::thread::sleep(w.rng.up_to(pause));
            }
            w
        });
        for i in 0..syncs {
            let side = if i % 2 == 0 { Side::B } else { Side::A };
            let mut command = bed.command(side, args);
            command.args(["--keep", "100000", "--json"]);
            if !options.is_empty() {
                command = crate::crash::traced(&command, options);
            }
            let ran = Ran::from(command.output().unwrap());
            *codes.entry(ran.code).or_default() += 1;
            errors += ran.err.lines().filter(|l| !l.contains(" drift: ")).count();
            let what = format!("seed {seed:#x}, sync {i}");
            assert!(matches!(ran.code, 0 | 1 | 3), "{what}: {ran:?}");
            assert!(ran.code == 0 || ran.err.contains("syncagent: "), "{what}: {ran:?}");
            assert!(!ran.err.contains("panicked"), "{what}: {ran:?}");
            if ran.code != 1 {
                for path in ran.summary()["drift"].as_array().unwrap() {
                    let path = path["path"].as_str().unwrap_or("odd");
                    assert!(path == "odd" || ran.err.contains(path), "{what}: {ran:?}");
                    named.insert(path.to_owned());
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    let what = format!("seed {seed:#x}");
    let mut args = args.to_vec();
    args.extend(["--keep", "100000"]);
    bed.sync(Side::A, &args).code(0);
    bed.sync(Side::B, &args).code(0);
    bed.assert_is(Side::B, &what);
    bed.assert_nothing_staged(&what);
    let mut there = contents(&bed.dst);
    there.extend(contents(&own));
    for token in &w.written {
        assert!(
            there.contains(token) || w.destroyed.contains(token),
            "{what}: {:?} is neither in DST nor in the trash",
            String::from_utf8_lossy(token)
        );
    }
    let written = w.written.len();
    let drift = drift_in_trash(&bed.dst);
    for path in &drift {
        let said = named.iter().any(|n| path.starts_with(n) || n == "odd");
        assert!(said || codes.contains_key(&1), "{what}: {path:?} was not named as drift");
    }
    let tokens = there.iter().filter(|c| is_token(c)).count();
    eprintln!(
        "{what}: {codes:?}, {errors} errors, {written} written, {:?}, {tokens} kept, drift {}",
        w.done,
        drift.len()
    );
    assert!(written > syncs && tokens > syncs, "the writer was too slow");
    assert!(!drift.is_empty(), "no commit was ever surprised");
}

/// Paths of files below `trash/N/drift`.
fn drift_in_trash(dst: &Path) -> BTreeSet<PathBuf> {
    let trash = dst.join(".syncagent/trash");
    let all = WalkDir::new(&trash).into_iter().map(Result::unwrap);
    all.filter(|e| e.file_type().is_file())
        .filter_map(|e| {
            let mut parts = e.path().strip_prefix(&trash).unwrap().components();
            let (_, kind) = (parts.next()?, parts.next()?);
            (kind.as_os_str() == "drift").then(|| parts.as_path().to_owned())
        })
        .collect()
}

#[test]
fn what_a_live_writer_wrote_into_dst_is_there_or_in_the_trash() {
    writes_while(0x5eed_0301, rounds(60, 2000), ms(4), &[], &[]);
}

#[test]
fn what_a_live_writer_wrote_into_dst_survives_a_swap() {
    writes_while(0x5eed_0302, rounds(40, 1000), ms(2), &["--activate", "swap"], &[]);
}

/// Each rename is held up, so that writers get in between. They work beside the one that is held.
#[test]
fn what_a_live_writer_wrote_during_a_slow_commit_is_there_or_in_the_trash() {
    let slow = [
        "-e".to_owned(),
        "trace=renameat2".to_owned(),
        "-e".to_owned(),
        "inject=renameat2:delay_enter=700".to_owned(),
    ];
    writes_while(0x5eed_0303, rounds(30, 600), ms(10), &[], &slow);
}

/// A directory with files, and a link that leads out of the tree, exchange their names all the time.
fn swap_links(at: &Path, holder: &Path, stop: &AtomicBool, gate: &Mutex<()>) -> u64 {
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let open = gate.lock().unwrap_or_else(PoisonError::into_inner);
        if exchange(at, holder).is_ok() {
            n += 1;
        }
        drop(open);
        if n % 7 == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    n
}

fn state_of(dir: &Path) -> Vec<(PathBuf, u64, i64, i64, u32, Vec<u8>)> {
    let mut all: Vec<_> = WalkDir::new(dir)
        .into_iter()
        .map(|e| {
            let e = e.unwrap();
            let m = e.metadata().unwrap();
            let content = if m.is_file() { std::fs::read(e.path()).unwrap() } else { Vec::new() };
            let path = e.path().to_owned();
            (path, m.ino(), m.ctime(), m.ctime_nsec(), m.mode(), content)
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_directory_that_becomes_a_link_during_the_run_never_leads_out() {
    let bed = Bed::new(3);
    let victim = bed.path().join("victim");
    std::fs::create_dir_all(victim.join("sub")).unwrap();
    // the names that the tree's directories have
    for side in [Side::A, Side::B] {
        for path in bed.tree(side).keys() {
            if let (Ok(name), true) = (path.strip_prefix("dir0"), path.starts_with("dir0"))
                && !name.as_os_str().is_empty()
            {
                std::fs::write(victim.join(name), "victim, secret").unwrap();
            }
        }
    }
    let before = state_of(&victim);
    assert!(before.len() > 8);
    bed.sync(Side::A, &[]).code(0);
    let holder = |name: &str| {
        let holder = bed.path().join(name);
        symlink(&victim, &holder).unwrap();
        holder
    };
    let in_dst = (bed.dst.join("dir0"), holder("holder-dst"));
    let in_src = (bed.source(Side::B).join("dir0"), holder("holder-src"));
    let stop = AtomicBool::new(false);
    let swaps = AtomicU64::new(0);
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for (at, holder) in [&in_dst, &in_src] {
            let (stop, swaps, gate) = (&stop, &swaps, &gate);
            scope.spawn(move || {
                let n = swap_links(at, holder, stop, gate);
                swaps.fetch_add(n, Ordering::Relaxed);
            });
        }
        for i in 0..rounds(60, 3000) {
            let side = if i % 2 == 0 { Side::B } else { Side::A };
            let args: &[&str] = match i % 6 {
                4 | 5 => &["--activate", "swap", "--checksum"],
                2 | 3 => &["--checksum"],
                _ => &[],
            };
            let ran = bed.sync(side, args);
            assert!(matches!(ran.code, 0 | 1 | 3 | 4), "sync {i}: {ran:?}");
            assert!(!ran.err.contains("panicked"), "sync {i}: {ran:?}");
            // nobody moves while we look
            let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
            assert_eq!(state_of(&victim), before, "sync {i}: {ran:?}");
            let secret = contents(&bed.dst).into_iter().any(|c| c.windows(6).any(|w| w == b"secret"));
            assert!(!secret, "sync {i} copied what lies outside: {ran:?}");
            drop(closed);
        }
    });
    assert!(swaps.load(Ordering::Relaxed) > 200, "{swaps:?}");
    if in_src.0.is_symlink() {
        exchange(&in_src.0, &in_src.1).unwrap();
    }
    bed.sync(Side::B, &[]).code(0);
    bed.assert_is(Side::B, "at the end");
    assert_eq!(state_of(&victim), before);
}

/// A record carries its own checksum and does not cross a page.
const RECORD: usize = 512;

fn record(n: u64) -> Vec<u8> {
    let mut out = vec![0; RECORD - 32];
    let mut h = blake3::Hasher::new();
    h.update(&n.to_le_bytes());
    h.finalize_xof().fill(&mut out);
    let sum = *blake3::hash(&out).as_bytes();
    out.extend(sum);
    out
}

fn seal(mut content: Vec<u8>) -> Vec<u8> {
    let sum = *blake3::hash(&content).as_bytes();
    content.extend(sum);
    content
}

fn is_sealed(content: &[u8]) -> bool {
    let Some(at) = content.len().checked_sub(32) else {
        return false;
    };
    blake3::hash(&content[..at]).as_bytes() == &content[at..]
}

/// A state that its writer left between two system calls.
fn is_consistent(name: &str, content: &[u8]) -> bool {
    if name.starts_with("whole") {
        return is_sealed(content);
    }
    content.len().is_multiple_of(RECORD) && content.chunks(RECORD).all(is_sealed)
}

/// A writer that the system held up for so long in the middle of one call left a torn file that looks
/// finished: the times of a file are set when a write begins.
const HELD_UP: Duration = Duration::from_millis(1);

/// The longest that one write call took since this was asked last; one that is still going on counts.
#[derive(Default)]
struct Slowest(Mutex<(Duration, Vec<Instant>)>);

impl Slowest {
    fn time<T>(&self, f: impl FnOnce() -> T) -> T {
        let since = Instant::now();
        self.state().1.push(since);
        let out = f();
        let mut state = self.state();
        state.0 = state.0.max(since.elapsed());
        state.1.retain(|s| *s != since);
        out
    }

    fn take(&self) -> Duration {
        let mut state = self.state();
        let current = state.1.iter().map(Instant::elapsed).max().unwrap_or_default();
        std::mem::take(&mut state.0).max(current)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, (Duration, Vec<Instant>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rewrite_in_place(src: &Path, stop: &AtomicBool, slowest: &Slowest, rng: &mut Rng) -> u64 {
    let sizes = [4 << 10, 64 << 10, 300 << 10];
    let files: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(i, size)| {
            let path = src.join(format!("whole{i}"));
            std::fs::write(&path, seal(vec![0; *size])).unwrap();
            (OpenOptions::new().write(true).open(&path).unwrap(), *size)
        })
        .collect();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let (file, size) = &files[rng.below(files.len())];
        let content = seal(vec![n as u8; *size]);
        slowest.time(|| file.write_all_at(&content, 0)).unwrap();
        std::thread::sleep(rng.up_to(Duration::from_millis(3)));
    }
    n
}

fn append_and_truncate(src: &Path, stop: &AtomicBool, slowest: &Slowest, rng: &mut Rng) -> u64 {
    let mut files: Vec<_> = (0..4).map(|i| File::create(src.join(format!("log{i}"))).unwrap()).collect();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let at = rng.below(files.len());
        let length = files[at].metadata().unwrap().len();
        if length > 200 * RECORD as u64 || rng.one_in(40) {
            let keep = rng.below(1 + length as usize / RECORD) * RECORD;
            slowest.time(|| files[at].set_len(keep as u64)).unwrap();
        } else {
            let record = record(n);
            slowest.time(|| files[at].write_all_at(&record, length)).unwrap();
        }
        if rng.one_in(50) {
            // the name gets another file
            let path = src.join(format!("log{at}"));
            std::fs::remove_file(&path).unwrap();
            files[at] = File::create(&path).unwrap();
        }
        std::thread::sleep(rng.up_to(Duration::from_micros(300)));
    }
    n
}

#[test]
fn a_source_file_that_changes_while_it_is_read_is_never_copied_torn() {
    let place = fast_place();
    let (src, dst) = (place.path().join("src"), place.path().join("dst"));
    std::fs::create_dir(&src).unwrap();
    for i in 0..200 {
        std::fs::write(src.join(format!("log-still-{i}")), record(i)).unwrap();
    }
    let stop = AtomicBool::new(false);
    let slowest = Slowest::default();
    let writes = AtomicU64::new(0);
    let (mut checked, mut excused, mut partly) = (0, 0, 0);
    let mut versions = BTreeSet::new();
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        let (stop, slowest, writes, src) = (&stop, &slowest, &writes, &src);
        for writer in [rewrite_in_place, append_and_truncate] {
            scope.spawn(move || {
                let mut rng = Rng::new(0x5eed_0304);
                let n = writer(src, stop, slowest, &mut rng);
                writes.fetch_add(n, Ordering::Relaxed);
            });
        }
        for i in 0..rounds(80, 3000) {
            slowest.take();
            let out = std::process::Command::new(crate::support::program())
                .arg("sync")
                .args([src, &dst])
                .arg("--state-dir")
                .arg(place.path().join("state"))
                .output()
                .unwrap();
            let ran = Ran::from(out);
            assert!(matches!(ran.code, 0 | 3), "sync {i}: {ran:?}");
            if ran.code == 3 {
                partly += 1;
                let named = ran.err.contains("whole") || ran.err.contains("log");
                assert!(named, "sync {i}: {ran:?}");
            }
            let took = slowest.take();
            for e in dst.read_dir().unwrap() {
                let e = e.unwrap();
                let name = e.file_name().into_string().unwrap();
                if name == ".syncagent" {
                    continue;
                }
                let content = std::fs::read(e.path()).unwrap();
                checked += 1;
                if !is_consistent(&name, &content) {
                    // held up inside one call for longer than a file is looked at
                    assert!(took > HELD_UP, "sync {i}: {name} is torn: {ran:?}");
                    excused += 1;
                }
                versions.insert((name, content));
            }
        }
    });
    let (versions, writes) = (versions.len() - 200, writes.load(Ordering::Relaxed));
    eprintln!("{checked} checked, {versions} versions of {writes}, {partly} partly, {excused} excused");
    assert!(versions > 50, "{versions} versions were seen");
    assert!(excused * 20 < checked, "{excused} of {checked}");
}

#[test]
fn source_files_that_vanish_during_the_run_are_no_error() {
    let place = fast_place();
    let (src, dst) = (place.path().join("src"), place.path().join("dst"));
    std::fs::create_dir(&src).unwrap();
    let path = |i: usize| src.join(format!("dir{}/file{i}", i % 5));
    for i in 0..5 {
        std::fs::create_dir(src.join(format!("dir{i}"))).unwrap();
    }
    let stop = AtomicBool::new(false);
    let mut vanished = 0;
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        let (stop, path) = (&stop, &path);
        scope.spawn(move || {
            let mut rng = Rng::new(0x5eed_0305);
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let path = path(rng.below(300));
                match std::fs::remove_file(&path) {
                    Ok(()) => {}
                    Err(e) if e.kind() == ErrorKind::NotFound => {
                        // whole at once, and never with the content of another
                        let new = path.with_extension("new");
                        std::fs::write(&new, format!("{} {n}", path.display())).unwrap();
                        std::fs::rename(new, &path).unwrap();
                    }
                    Err(e) => panic!("{e}"),
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        for i in 0..rounds(60, 2000) {
            let out = std::process::Command::new(crate::support::program())
                .args(["sync", "--json", "--max-delete", "100%"])
                .args([&src, &dst])
                .arg("--state-dir")
                .arg(place.path().join("state"))
                .output()
                .unwrap();
            let ran = Ran::from(out).code(0);
            assert_eq!(ran.err, "", "sync {i}");
            vanished += ran.summary()["vanished"].as_u64().unwrap();
        }
    });
    eprintln!("{vanished} vanished");
    assert!(vanished > 0, "none vanished during a run");
}
