//! The table that is printed: medians with their range, ratios and targets.

use std::env;
use std::process::Command;

use crate::job::Sample;
use crate::machine::{file_system, first_line, machine};
use crate::run::{Bench, Res};

#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Seconds,
    Mib,
    Bytes,
    Percent,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Seconds if value >= 1.0 => format!("{value:.2} s"),
            Self::Seconds if value >= 0.01 => format!("{:.0} ms", value * 1e3),
            Self::Seconds => format!("{:.3} ms", value * 1e3),
            Self::Mib => format!("{value:.1} MiB"),
            Self::Bytes => format!("{value:.0} B"),
            Self::Percent => format!("{value:.3} %"),
        }
    }
}

/// What is demanded of a row, and what is hoped for.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// Ours divided by rsync's, medians.
    Ratio { must: f64, aim: f64 },
    /// Our median itself, in the row's unit.
    Value { must: f64, aim: f64 },
    /// A ratio that is demanded, with nothing hoped for beyond.
    RatioLimit(f64),
    /// The same for our median.
    Limit(f64),
    /// For information.
    None,
}

/// One row of the table.
pub(crate) struct Line {
    pub(crate) work: String,
    pub(crate) unit: Unit,
    pub(crate) ours: Vec<f64>,
    /// Empty where rsync has nothing to compare.
    pub(crate) rsync: Vec<f64>,
    pub(crate) goal: Goal,
}

impl Line {
    fn render(&self, judge: bool) -> String {
        let (ours, rsync) = (Stats::of(&self.ours), Stats::of(&self.rsync));
        let show = |stats: Option<Stats>| stats.map_or_else(|| "–".to_owned(), |stats| stats.show(self.unit));
        let ratio = ours.zip(rsync).map(|(ours, rsync)| ours.median / rsync.median);
        let ratio_text = ratio.map_or_else(
            || "–".to_owned(),
            |ratio| {
                // Runs of one round stand side by side in time, so their ratios show the noise that is left.
                let pairs: Vec<f64> =
                    self.ours.iter().zip(&self.rsync).map(|(ours, rsync)| ours / rsync).collect();
                Stats::of(&pairs).map_or_else(String::new, |all| {
                    format!("{} ({}–{})", digits(ratio), digits(all.min), digits(all.max))
                })
            },
        );
        let judged = |limit: &str, value, bound| verdict(limit, if judge { value } else { None }, bound);
        let (must, aim) = match self.goal {
            Goal::Ratio { must, aim } => {
                (judged(&format!("≤ {must:.2}"), ratio, must), judged(&format!("{aim:.2}"), ratio, aim))
            }
            Goal::Value { must, aim } => {
                let value = ours.map(|stats| stats.median);
                let limit = |limit| self.unit.show(limit);
                (judged(&format!("≤ {}", limit(must)), value, must), judged(&limit(aim), value, aim))
            }
            Goal::RatioLimit(must) => (judged(&format!("≤ {}", digits(must)), ratio, must), "–".to_owned()),
            Goal::Limit(must) => {
                let value = ours.map(|stats| stats.median);
                (judged(&format!("≤ {}", self.unit.show(must)), value, must), "–".to_owned())
            }
            Goal::None => ("–".to_owned(), "–".to_owned()),
        };
        format!("| {} | {} | {} | {ratio_text} | {must} | {aim} |", self.work, show(ours), show(rsync))
    }
}

fn verdict(limit: &str, value: Option<f64>, bound: f64) -> String {
    match value {
        Some(value) if value <= bound => format!("{limit} met"),
        Some(_) => format!("{limit} **missed**"),
        None => limit.to_owned(),
    }
}

/// Two significant places also where ours is a hundredth or a ten-thousandth of theirs.
fn digits(ratio: f64) -> String {
    match ratio {
        small if small < 0.001 => format!("{small:.6}"),
        small if small < 0.1 => format!("{small:.3}"),
        ratio => format!("{ratio:.2}"),
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Stats {
    pub(crate) median: f64,
    min: f64,
    max: f64,
}

impl Stats {
    /// Of an even number the mean of the two in the middle; nothing of nothing.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let median = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        Some(Self { median, min, max })
    }

    fn show(self, unit: Unit) -> String {
        if self.min == self.max {
            return unit.show(self.median);
        }
        format!("{} ({}–{})", unit.show(self.median), unit.show(self.min), unit.show(self.max))
    }
}

pub(crate) fn walls(samples: &[Sample]) -> Vec<f64> {
    samples.iter().map(|sample| sample.wall).collect()
}

pub(crate) fn cpus(samples: &[Sample]) -> Vec<f64> {
    samples.iter().map(|sample| sample.cpu).collect()
}

/// Collects rows; printed once, at the end, so that nothing stands between the lines of the table.
pub(crate) struct Report {
    facts: Vec<String>,
    lines: Vec<Line>,
    notes: Vec<String>,
    failures: Vec<String>,
    /// Not scaled down: targets may be judged.
    whole: bool,
}

impl Report {
    /// Looks at the machine. Fails when the programs cannot be started or the work directory is no disk.
    pub(crate) fn new(bench: &Bench) -> Res<Self> {
        let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
        let mut facts = vec![
            format!("Date: {}", first_line(Command::new("date").args(["-u", "+%F %H:%M UTC"]))?),
            format!("Command: `cargo bench --bench rsync -- {}`", args.join(" ")).replace(" -- `", "`"),
            format!("Machine: {}", machine()?),
            format!("File system of the work directory: {}", file_system(&bench.work)?),
            format!("rsync: {}", first_line(Command::new(&bench.rsync).arg("--version"))?),
            format!("syncagent: {}", first_line(Command::new(&bench.syncagent).arg("--version"))?),
            format!("Runs of each program per row: {}, in turn, the order swapped every round", bench.runs),
        ];
        if bench.scale < 1.0 {
            facts.push(format!("**Scaled to {}: a smoke run; ratios mean nothing**", bench.scale));
        }
        Ok(Self {
            facts,
            lines: Vec::new(),
            notes: Vec::new(),
            failures: Vec::new(),
            whole: bench.scale == 1.0,
        })
    }

    pub(crate) fn line(&mut self, line: Line) {
        eprintln!("{}", line.render(self.whole));
        self.lines.push(line);
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Keeps the other rows' figures when one row fails.
    pub(crate) fn attempt(&mut self, row: &str, measure: impl FnOnce(&mut Self) -> Res<()>) {
        if let Err(error) = measure(self) {
            eprintln!("{row}: {error}");
            self.failures.push(format!("{row}: {error}"));
        }
    }

    pub(crate) fn complete(&self) -> bool {
        self.failures.is_empty()
    }

    pub(crate) fn print(&self) {
        for fact in &self.facts {
            println!("- {fact}");
        }
        println!();
        println!(
            "| work | ours (median, min–max) | rsync or the one named (median, min–max) | ratio (min–max of rounds) | must | aim |"
        );
        println!("| --- | --- | --- | --- | --- | --- |");
        for line in &self.lines {
            println!("{}", line.render(self.whole));
        }
        println!();
        for note in &self.notes {
            println!("- {note}");
        }
        for failure in &self.failures {
            println!("- **FAILED** {}", failure.replace('\n', "; "));
        }
    }
}
