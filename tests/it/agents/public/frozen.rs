//! A disk that hangs: what is on it waits, the public port does not.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::super::cluster::{Cluster, noise};
use super::open;
use crate::support::{needs_root, tool};

/// A file system on a loop device that can be frozen. However the test ends, it thaws and goes.
struct Disk {
    at: PathBuf,
    freezer: Option<Child>,
}

impl Disk {
    fn new(image: &Path, at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        std::fs::File::create(image).unwrap().set_len(96 << 20).unwrap();
        tool("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_ref()]);
        tool("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), at.as_ref()]);
        Self { at, freezer: None }
    }

    /// From now on every write to it hangs.
    fn freeze(&mut self) {
        // in the background: freezing itself may have to wait
        let mut child = Command::new("fsfreeze").arg("-f").arg(&self.at).spawn().unwrap();
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(20), "fsfreeze hangs");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.freezer = Some(child);
    }

    fn thaw(&mut self) {
        if self.freezer.take().is_some() {
            let _ = Command::new("fsfreeze").arg("-u").arg(&self.at).status();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // also when it was not frozen: then it only complains
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.at).output();
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

#[test]
fn with_the_disk_frozen_all_answers_come_at_once_and_the_lag_drains_the_node() {
    if !needs_root("a frozen disk") {
        return;
    }
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/x", "1");
    c.mirror("b", "a", "max-lag = \"2s\"\n");
    // the tree and the state directory
    let mut disk = Disk::new(&c.path().join("disk"), c.path().join("b"));
    let port = open(&c, "b");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    port.wait_for(200, "ok", &b);

    disk.freeze();
    c.scratch.write("a/tree/large", noise(3, 4 << 20));
    port.wait_for(503, "t: lag ", &b);
    let line = port.get("/ha/health").body;
    assert!(line.contains("is over max-lag 2 s"), "{line}");
    assert!(port.check().contains("down#t: lag"), "{}", port.check());
    for path in ["/ha/health", "/livez", "/readyz", "/status", "/metrics", "/"] {
        let mut times: Vec<Duration> = (0..41)
            .map(|_| {
                let begun = Instant::now();
                let answer = port.get(path);
                let took = begun.elapsed();
                assert!(answer.status == 200 || path == "/ha/health", "{path}: {answer:?}");
                took
            })
            .collect();
        times.sort();
        // other tests use the processors, too: half of the answers tell
        let limit = if cfg!(debug_assertions) { 10 } else { 5 };
        assert!(times[20] < Duration::from_millis(limit), "{path}: {times:?}");
    }
    assert_eq!(
        b.own()["lag_ms"].as_u64().map(|ms| ms > 2_000),
        Some(true),
        "the local socket answers as well"
    );

    disk.thaw();
    port.wait_for(200, "ok", &b);
    c.assert_converges(&a, &b, ("a", "b"));
}
