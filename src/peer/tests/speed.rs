//! Figures, not facts: `cargo test --release --lib peer::tests::speed -- --ignored --nocapture`.

use super::*;

const DIRS: usize = 1000;
const FILES: usize = 100;

fn small_files(rig: &Rig) -> Vec<Vec<Wanted>> {
    let make = |d: usize| {
        let file = |f: usize| {
            let mut content = vec![0u8; 4096];
            content[..8].copy_from_slice(&((d * FILES + f) as u64).to_le_bytes());
            let at = format!("d{d}/f{f}");
            wanted(&at, 4096, rig.tree.file(&at, &content))
        };
        (0..FILES).map(file).collect()
    };
    (0..DIRS).map(make).collect()
}

/// Wall time, and processor time of both sides.
fn fetch_all(client: &Client, dirs: &[Vec<Wanted>], threads: usize) -> (f64, f64) {
    let (began, used) = (Instant::now(), processor());
    let next = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for _ in 0..threads {
            s.spawn(|| {
                let mut buffer = vec![0; 256 * 1024];
                while let Some(dir) = dirs.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let want: Vec<_> = dir.iter().map(Wanted::want).collect();
                    let take = &mut |_, fetched: Fetched<'_>| {
                        let Fetched::Stream(read) = fetched else { panic!("gone") };
                        while read.read(&mut buffer).unwrap() > 0 {}
                        Ok(())
                    };
                    client.contents(&want, &AtomicBool::new(false), take).unwrap();
                }
            });
        }
    });
    (began.elapsed().as_secs_f64(), processor() - used)
}

fn processor() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "a measurement")]
fn throughput() {
    let rig = Rig::new();
    let dirs = small_files(&rig);
    for (how, client) in [("tls", rig.client()), ("unix", rig.client_of(rig.unix(), "mirror", "test", "t"))] {
        for threads in [1, 2, 4, 1, 2, 4] {
            let (took, used) = fetch_all(&client, &dirs, threads);
            let rate = (DIRS * FILES) as f64 / took;
            println!("{how} {threads} threads: {rate:.0} files/s, {took:.2} s, {used:.2} s of processor");
        }
    }
    const SIZE: usize = 512 << 20;
    let content: Vec<u8> = (0..SIZE).map(|i| (i >> 7) as u8).collect();
    let large = [vec![wanted("large", SIZE as u64, rig.tree.file("large", &content))]];
    drop(content);
    for (how, client) in [("tls", rig.client()), ("unix", rig.client_of(rig.unix(), "mirror", "test", "t"))] {
        for _ in 0..3 {
            let (took, used) = fetch_all(&client, &large, 1);
            let rate = SIZE as f64 / took / 1e9;
            println!("{how} large: {rate:.2} GB/s, {took:.2} s, {used:.2} s of processor");
        }
    }
}
