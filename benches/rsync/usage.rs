//! What running processes have used so far, and what went over the loopback interface.

use std::fs;
use std::path::Path;

use crate::run::{At, Res};

/// Seconds of processor time of a process and of its children that were waited for. In steps of a clock tick.
pub(crate) fn cpu(pid: u32) -> Res<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).at(Path::new(&path))?;
    // Fields 14 to 17 of proc_pid_stat(5); the name, field 2, may hold spaces and ends in the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<f64>().ok());
    let sum: Option<f64> = (14..=17).map(ticks).sum();
    let sum = sum.ok_or("four times expected in /proc/PID/stat")?;
    Ok(sum / rustix::param::clock_ticks_per_second() as f64)
}

/// Memory of a process in MiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) now: f64,
    pub(crate) peak: f64,
}

pub(crate) fn memory(pid: u32) -> Res<Memory> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).at(Path::new(&path))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib / 1024.0)
    };
    match (field("VmRSS:"), field("VmHWM:")) {
        (Some(now), Some(peak)) => Ok(Memory { now, peak }),
        _ => Err(format!("{path} has no VmRSS and VmHWM").into()),
    }
}

/// Bytes that went over loopback, both directions, with the headers of all layers down to IP. Whatever else uses the
/// interface counts too; `unshare --net sh -c 'ip link set lo up; …'` has one of its own.
pub(crate) fn loopback() -> Res<f64> {
    let text = fs::read_to_string("/proc/self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("lo:"));
    let received = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    received.ok_or_else(|| "/proc/self/net/dev has no lo".into())
}
