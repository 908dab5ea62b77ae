//! Power cuts: DST on a file system of its own that is shut down under a run, without or with what its
//! log still holds, unmounted and mounted again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::crash::{Bed, Rng, Side, Tree, difference, fast_place, half, rounds, traced};

/// What is in the log of the file system survives the cut, or not.
#[derive(Clone, Copy, Debug)]
enum Cut {
    FlushLog = 1,
    NoFlush = 2,
}

/// `EXT4_IOC_SHUTDOWN` and `XFS_IOC_GOINGDOWN`: `_IOR('X', 125, __u32)`, which reads, whatever its name.
const SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;

#[allow(unsafe_code)] // there is no safe wrapper for this ioctl; it reads one u32
fn shut_down(mount: &File, cut: Cut) {
    // SAFETY: the kernel reads a u32 through the pointer, and changes no memory
    let done =
        unsafe { rustix::ioctl::ioctl(mount, rustix::ioctl::Setter::<SHUTDOWN, u32>::new(cut as u32)) };
    done.unwrap();
}

fn run(program: &str, args: &[&std::ffi::OsStr]) {
    let out = Command::new(program).args(args).output();
    let out = out.unwrap_or_else(|e| panic!("{program} must be installed: {e}"));
    assert!(out.status.success(), "{program} {args:?}: {out:?}");
}

/// What this thread mounts from here on nobody else sees. A mount namespace that another test makes meanwhile would
/// keep a copy of the mount, and with it the file system as it was shut down.
#[allow(unsafe_code)] // its safe name is deprecated, because of flags that are not used here
fn own_mounts() {
    // SAFETY: no descriptor of this process becomes another one; only this thread's view of the mounts changes
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    run("mount", &["--make-rprivate".as_ref(), "/".as_ref()]);
}

/// An image with a file system, mounted.
struct Disk {
    image: PathBuf,
    at: PathBuf,
    /// To take away after the unmount.
    _place: TempDir,
}

impl Disk {
    fn new(fs: &str) -> Self {
        own_mounts();
        let place = fast_place();
        let (image, at) = (place.path().join("image"), place.path().join("mnt"));
        let file = File::create(&image).unwrap();
        file.set_len(if fs == "xfs" { 400 << 20 } else { 96 << 20 }).unwrap();
        std::fs::create_dir(&at).unwrap();
        run(&format!("mkfs.{fs}"), &["-q".as_ref(), image.as_os_str()]);
        let disk = Self { image, at, _place: place };
        disk.mount();
        disk
    }

    fn mount(&self) {
        let (image, at) = (self.image.as_os_str(), self.at.as_os_str());
        run("mount", &["-o".as_ref(), "loop".as_ref(), image, at]);
    }

    /// The power is off; and on again.
    fn cycle(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let out = Command::new("umount").arg(&self.at).output().unwrap();
            // a process that another test is about to start still has our handles, for a moment
            let busy = String::from_utf8_lossy(&out.stderr).contains("busy");
            if out.status.success() {
                break;
            }
            assert!(busy && Instant::now() < until, "{out:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.mount();
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

#[derive(Debug, Default)]
struct Tally {
    cuts: usize,
    /// The run failed by the cut.
    hit: usize,
    /// The tree was neither old nor new after the mount.
    mixed: usize,
    /// The next run finished a commit.
    finished: usize,
    new: usize,
}

struct Campaign<'d> {
    bed: Bed,
    disk: &'d Disk,
    rng: Rng,
    seed: u64,
    at: Option<Side>,
    took: Duration,
    tally: Tally,
}

impl<'d> Campaign<'d> {
    fn new(disk: &'d Disk, seed: u64) -> Self {
        let mut bed = Bed::new(8);
        bed.dst = disk.dir("dst");
        bed.sync(Side::A, &[]).code(0);
        let mut times = [Side::B, Side::A, Side::B].map(|side| {
            let since = Instant::now();
            bed.sync(side, &[]).code(0);
            since.elapsed()
        });
        times.sort();
        bed.assert_is_for_all(Side::B, "at the start");
        let rng = Rng::new(seed);
        Self { bed, disk, rng, seed, at: Some(Side::B), took: times[1], tally: Tally::default() }
    }

    /// Runs and cuts; says whether the run noticed.
    fn cut(&mut self, to: Side, args: &[&str], in_commit: bool, cut: Cut) -> bool {
        let journal = self.bed.dst.join(".syncagent/journal");
        let mount = File::open(&self.disk.at).unwrap();
        let mut command = self.bed.command(to, args);
        let mut range = self.took;
        if in_commit && self.rng.one_in(2) {
            // a commit that takes its time
            let slow = [
                "--seccomp-bpf".to_owned(),
                "-e".to_owned(),
                "trace=renameat2".to_owned(),
                "-e".to_owned(),
                "inject=renameat2:delay_enter=1500".to_owned(),
            ];
            command = traced(&command, &slow);
            range += Duration::from_millis(100);
        }
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        while in_commit && !journal.exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(100));
        }
        std::thread::sleep(self.rng.up_to(range));
        shut_down(&mount, cut);
        drop(mount);
        let status = child.wait().unwrap();
        assert!(matches!(status.code(), Some(0 | 1 | 3)), "a run whose disk went away ended with {status:?}");
        self.disk.cycle();
        status.code() != Some(0)
    }

    fn round(&mut self, args: &[&str], swap: bool) {
        // the state lies beside the tree, or on a disk that survives
        let same_disk = self.rng.one_in(3);
        let state = if same_disk {
            self.disk
        } else {
            return self.round_in(args, swap, None);
        };
        self.round_in(args, swap, Some(state.dir("state")));
    }

    fn round_in(&mut self, args: &[&str], swap: bool, state: Option<PathBuf>) {
        self.bed.state = state.unwrap_or_else(|| self.bed.path().join("state"));
        if self.rng.one_in(6) {
            self.bed.remove_dst();
            self.at = None;
        }
        let to = self.at.map_or(Side::A, Side::other);
        let old = self.at.map_or_else(Tree::new, |side| self.bed.tree(side).clone());
        let new = self.bed.tree(to).clone();
        let kind = if self.rng.one_in(3) { Cut::FlushLog } else { Cut::NoFlush };
        // what was there before is durable; what this run does need not be
        sync_all(&self.disk.at);
        let in_commit = self.rng.one_in(2);
        let what = format!(
            "seed {:#x}, cut {}, {kind:?}, {:?} to {to:?}, {args:?}, state {:?}",
            self.seed, self.tally.cuts, self.at, self.bed.state
        );
        let hit = self.cut(to, args, in_commit, kind);
        self.tally.cuts += 1;
        self.tally.hit += usize::from(hit);
        let now = self.bed.now();
        if let Some(half) = half(&now, &old, &new, false) {
            panic!("{what}: {half}");
        }
        let is_old = difference(&now, &old).is_none() || self.at.is_none() && now.len() <= 1;
        let is_new = difference(&now, &new).is_none();
        self.tally.new += usize::from(is_new);
        self.tally.mixed += usize::from(!is_old && !is_new);
        assert!(hit || is_new, "{what}: it said that all was done");
        assert!(!swap || self.at.is_none() || is_old || is_new, "{what}: a mix");
        if self.rng.one_in(2) {
            self.bed.recover_command().output().unwrap();
            let after = self.bed.now();
            let undecided = is_old && difference(&after, &old).is_none();
            let want = if undecided { &old } else { &new };
            if after.len() > 1 {
                assert_eq!(difference(&after, want), None, "{what}: recovery alone");
            }
        }
        let next = match self.at {
            Some(side) if self.rng.one_in(4) => side,
            _ => to,
        };
        let ran = self.bed.sync(next, &[]);
        assert_eq!(ran.code, 0, "{what}: {ran:?}");
        assert!(!ran.err.contains("drift"), "{what}: {ran:?}");
        self.tally.finished += usize::from(ran.out.contains("an interrupted commit was finished"));
        self.bed.assert_is(next, &what);
        self.bed.assert_nothing_staged(&what);
        if self.rng.one_in(5) {
            self.bed.assert_is_for_all(next, &what);
        }
        self.at = Some(next);
    }
}

fn sync_all(at: &Path) {
    rustix::fs::syncfs(File::open(at).unwrap()).unwrap();
}

/// Only root mounts.
fn may_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: power cuts need root, for mounts");
    }
    root
}

fn campaign(fs: &str, seed: u64, n: usize, args: &[&str]) {
    if !may_mount() {
        return;
    }
    let disk = Disk::new(fs);
    let mut c = Campaign::new(&disk, seed);
    let swap = args.contains(&"swap");
    // how many cuts meet a running program depends on the machine: on until enough have
    while c.tally.cuts < n || c.tally.hit * 2 <= n && c.tally.cuts < 5 * n {
        c.round(args, swap);
    }
    eprintln!("{fs} {args:?}: {:?}", c.tally);
    assert!(c.tally.hit * 2 > n, "{:?}", c.tally);
    assert!(c.tally.hit < c.tally.cuts || c.tally.new > 0, "{:?}", c.tally);
}

#[test]
fn a_power_cut_on_ext4_leaves_the_old_or_the_new_tree() {
    campaign("ext4", 0x5eed_0101, rounds(60, 800), &[]);
}

#[test]
fn a_power_cut_on_xfs_leaves_the_old_or_the_new_tree() {
    campaign("xfs", 0x5eed_0102, rounds(24, 400), &[]);
}

#[test]
fn a_power_cut_during_a_swap_leaves_the_old_or_the_new_tree_before_any_recovery() {
    campaign("ext4", 0x5eed_0103, rounds(20, 400), &["--activate", "swap"]);
}
