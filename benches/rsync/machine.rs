//! The facts of the machine, without which the figures say nothing.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::run::{At, Res};

/// Processors, memory, kernel, and how busy they are.
pub(crate) fn machine() -> Res<String> {
    let read = |path: &str| fs::read_to_string(path).at(Path::new(path));
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = value(&read("/proc/cpuinfo")?, "model name").unwrap_or_else(|| env::consts::ARCH.to_owned());
    let memory = value(&read("/proc/meminfo")?, "MemTotal").unwrap_or_default();
    let memory: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
    Ok(format!(
        "{} cores ({model}), {:.1} GiB memory, Linux {}, load at the start {}",
        thread::available_parallelism()?,
        memory as f64 / f64::from(1 << 20),
        read("/proc/sys/kernel/osrelease")?.trim(),
        read("/proc/loadavg")?.split(' ').next().unwrap_or_default(),
    ))
}

/// Type and options of the mount that holds the directory: the longest mount point that is a prefix of it.
pub(crate) fn file_system(dir: &Path) -> Res<String> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut best: Option<(usize, &str, &str)> = None;
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let &[_, point, kind, options, ..] = fields.as_slice() else {
            continue;
        };
        if dir.starts_with(point) && best.is_none_or(|(longest, ..)| point.len() >= longest) {
            best = Some((point.len(), kind, options));
        }
    }
    match best {
        Some((_, kind @ ("tmpfs" | "ramfs" | "devtmpfs"), _)) => {
            Err(format!("{} is on {kind}, which is no disk; choose another with --dir", dir.display()).into())
        }
        Some((_, kind, options)) => Ok(format!("{kind} ({options})")),
        None => Err(format!("{}: no mount found", dir.display()).into()),
    }
}

/// The first line that a command prints.
pub(crate) fn first_line(command: &mut Command) -> Res<String> {
    let output = command.output().at(Path::new(command.get_program()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or("unknown").trim().to_owned())
}
