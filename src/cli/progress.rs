//! The progress bar on a terminal's standard error: files, bytes, rate, time left.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::output::human;
use crate::agent::{Phase, Progress};

/// Draws until `done`. Draws nothing when standard error is no terminal.
pub(crate) fn start<'s>(
    scope: &'s Scope<'s, '_>,
    progress: &'s Progress,
    done: &'s AtomicBool,
    wanted: bool,
) {
    if !wanted || !std::io::stderr().is_terminal() {
        return;
    }
    scope.spawn(move || {
        let bar = ProgressBar::new(0);
        let mut staging = false;
        while !done.load(Ordering::Relaxed) {
            let is_staging = progress.phase() == Phase::Staging;
            if is_staging != staging || bar.position() == 0 {
                style(&bar, is_staging);
                if is_staging && !staging {
                    bar.reset();
                }
                staging = is_staging;
            }
            draw(&bar, progress);
            std::thread::sleep(Duration::from_millis(100));
        }
        bar.finish_and_clear();
    });
}

fn style(bar: &ProgressBar, staging: bool) {
    let template = if staging {
        "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
    } else {
        "{spinner} {msg}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

fn draw(bar: &ProgressBar, p: &Progress) {
    let n = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    match p.phase() {
        Phase::Starting => bar.set_message("starting"),
        Phase::Scanning => bar.set_message(format!(
            "scanning: {} files in the source, {} in the destination, {} read",
            n(&p.source.files),
            n(&p.tree.files),
            human(n(&p.source.hashed_bytes) + n(&p.tree.hashed_bytes))
        )),
        Phase::Planning => bar.set_message("planning"),
        Phase::Staging => {
            bar.set_length(n(&p.bytes));
            bar.set_position(n(&p.stage.bytes));
            bar.set_message(format!("copying {}/{} files", n(&p.stage.files), n(&p.files)));
        }
        Phase::Committing => bar.set_message("syncing and putting in place"),
        Phase::Finishing => bar.set_message("finishing"),
    }
    bar.tick();
}
