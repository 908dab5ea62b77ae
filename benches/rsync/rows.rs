//! Which rows run on which tree; first copies and runs in which nothing changed.

use std::fs::{self, File};

use crate::job::{Job, Sample};
use crate::net_first::{self, Goals};
use crate::report::{Goal, Line, Report, Stats, Unit, cpus, walls};
use crate::run::{At, Bench, Both, Res, Side, in_turn, sync_file_system, warm};
use crate::spec::Spec;
use crate::tree::{Tree, set_mtime};
use crate::{memory, net_change, net_many, net_rename, net_rest, renamed};

pub(crate) fn t1(bench: &Bench, report: &mut Report) {
    on_tree(
        bench,
        report,
        Spec::t1(bench.scale),
        bench.fresh_copies(),
        &["first-T1", "unchanged-T1"],
        |job, report| {
            let mut ready = false;
            if bench.wants("first-T1") {
                report.attempt("first-T1", |report| {
                    first(job, report, Goal::Ratio { must: 0.85, aim: 0.60 })?;
                    ready = true;
                    Ok(())
                });
            }
            if bench.wants("unchanged-T1") {
                report.attempt("unchanged-T1", |report| {
                    unchanged(job, report, ready, Goal::Ratio { must: 0.40, aim: 0.28 })
                });
            }
        },
    );
}

pub(crate) fn t3(bench: &Bench, report: &mut Report) {
    on_tree(bench, report, Spec::t3(bench.scale), bench.fresh_copies(), &["first-T3"], |job, report| {
        report.attempt("first-T3", |report| first(job, report, Goal::Ratio { must: 0.80, aim: 0.40 }));
    });
}

pub(crate) fn t2(bench: &Bench, report: &mut Report) {
    on_tree(bench, report, Spec::t2(bench.scale), 4, &["memory-T2", "unchanged-T2"], |job, report| {
        let mut ready = false;
        if bench.wants("memory-T2") {
            report.attempt("memory-T2", |report| {
                memory::row(job, report)?;
                ready = true;
                Ok(())
            });
        }
        if bench.wants("unchanged-T2") {
            report.attempt("unchanged-T2", |report| {
                unchanged(job, report, ready, Goal::Ratio { must: 0.60, aim: 0.40 })
            });
        }
    });
}

/// What goes over loopback, between agents and against others.
pub(crate) fn net(bench: &Bench, report: &mut Report) {
    type Row = fn(&Bench, &Tree, &mut Report) -> Res<()>;
    let first_t1: Row = |bench, tree, report| {
        let daemon = Goal::Ratio { must: 0.85, aim: 0.60 };
        net_first::row(bench, tree, report, &Goals { daemon, ssh: None })
    };
    let first_t3: Row = |bench, tree, report| {
        let (daemon, ssh) = (Goal::RatioLimit(1.0), Some(Goal::RatioLimit(0.4)));
        net_first::row(bench, tree, report, &Goals { daemon, ssh })
    };
    let (scale, fresh) = (bench.scale, bench.fresh_copies());
    let rows: [(&str, Spec, u64, Row); 8] = [
        ("net-change-T1", Spec::t1(scale), 3, net_change::row),
        ("net-rest", Spec::t1(scale), 2, net_rest::at_rest),
        ("net-8-mirrors", Spec::eight(scale), 17, net_many::eight),
        ("net-200", Spec::few(), 201, net_many::hundreds),
        ("net-first-T1", Spec::t1(scale), fresh, first_t1),
        ("net-first-T3", Spec::t3(scale), fresh + bench.runs as u64, first_t3),
        ("net-rename-10k", Spec::renamed(scale), fresh, net_rename::row),
        ("net-million", Spec::t2(scale), 2, net_rest::million),
    ];
    let wanted: Vec<_> = rows.iter().filter(|(name, ..)| bench.wants(name)).collect();
    for (at, (name, spec, copies, measure)) in wanted.iter().enumerate() {
        let stays = bench.keep || wanted.get(at + 1).is_some_and(|(_, next, ..)| next.name == spec.name);
        report.attempt(name, |report| {
            bench.make_room(spec, *copies)?;
            let tree = Tree::ensure(bench, spec.clone())?;
            measure(bench, &tree, report)?;
            if stays { Ok(()) } else { tree.remove(bench) }
        });
    }
}

pub(crate) fn rename(bench: &Bench, report: &mut Report) {
    on_tree(
        bench,
        report,
        Spec::renamed(bench.scale),
        bench.fresh_copies(),
        &["rename-10k"],
        |job, report| {
            report.attempt("rename-10k", |report| renamed::row(&job.with(&[], &["--delete"]), report));
        },
    );
}

/// Makes the tree if one of the rows is wanted, and clears up behind them. `copies` is how many there will be at most, the source
/// included.
pub(crate) fn on_tree(
    bench: &Bench,
    report: &mut Report,
    spec: Spec,
    copies: u64,
    rows: &[&str],
    measure: impl FnOnce(&Job<'_>, &mut Report),
) {
    if !rows.iter().any(|row| bench.wants(row)) {
        return;
    }
    let name = spec.name;
    report.attempt(name, |report| {
        bench.make_room(&spec, copies)?;
        let tree = Tree::ensure(bench, spec)?;
        let job = Job::new(bench, &tree, name)?;
        measure(&job, report);
        job.remove()?;
        if bench.keep { Ok(()) } else { tree.remove(bench) }
    });
}

/// First copy into an empty directory, durable at the end on both sides: ours makes it so itself, rsync gets a sync of the file
/// system behind it within the same time.
fn first(job: &Job<'_>, report: &mut Report, goal: Goal) -> Res<()> {
    let name = job.tree.spec.name;
    let found = in_turn(
        job.bench.runs,
        |_| Ok(()),
        |round, side| {
            job.reset(side)?;
            warm(&job.tree.root)?;
            progress(&format!("first-{name}"), round, side, job.run(side, side == Side::Rsync)?)
        },
    )?;
    job.verify_both()?;
    note_cpu(report, &format!("first-{name}"), &found);
    report.line(timed(format!("first-{name}: first copy, durable"), &found, goal));
    Ok(())
}

/// Nothing to do. `ready` says that both destinations hold a first copy. `--delete` on rsync's side, because ours looks for
/// what is too much in the destination as well.
fn unchanged(job: &Job<'_>, report: &mut Report, ready: bool, goal: Goal) -> Res<()> {
    let row = format!("unchanged-{}", job.tree.spec.name);
    let job = &job.with(&[], &["--delete"]);
    if !ready {
        first_copies(job)?;
    }
    see_changes(job)?;
    // Once more, so that both indexes and the caches are those of a tree at rest.
    for side in Side::BOTH {
        job.run(side, true)?;
    }
    let found = in_turn(
        job.bench.runs,
        |_| Ok(()),
        |round, side| {
            sync_file_system(&job.dst(side))?;
            progress(&row, round, side, job.run(side, false)?)
        },
    )?;
    job.verify_both()?;
    note_cpu(report, &row, &found);
    report.line(timed(format!("{row}: nothing changed"), &found, goal));
    Ok(())
}

pub(crate) fn first_copies(job: &Job<'_>) -> Res<()> {
    for side in Side::BOTH {
        job.reset(side)?;
        eprintln!("{}: first copy by {}", job.tree.spec.name, side.name());
        job.run(side, true)?;
    }
    Ok(())
}

/// A program that is quick because it does not look must not win: one changed source file, one changed file in the destination
/// and one too many there have to be noticed by both.
fn see_changes(job: &Job<'_>) -> Res<()> {
    let spec = &job.tree.spec;
    let mut large =
        (spec.files / 2..spec.files).filter(|&index| spec.len(index) >= 8).map(|index| spec.path(index));
    let (Some(changed), Some(spoiled)) = (large.next(), large.next()) else {
        return Err("no file to change".into());
    };
    let source = job.tree.root.join(&changed);
    let (content, mtime) = (fs::read(&source).at(&source)?, source.metadata().at(&source)?.modified()?);
    let inverted: Vec<u8> = content.iter().map(|byte| !byte).collect();
    job.tree.unstamp()?;
    fs::write(&source, &inverted).at(&source)?;
    for side in Side::BOTH {
        let dst = job.dst(side);
        let stray = dst.join("stray");
        fs::write(dst.join(&spoiled), "spoiled in the destination").at(&dst)?;
        fs::write(&stray, "too much").at(&stray)?;
        job.run(side, false)?;
        let right = fs::read(dst.join(&changed)).at(&dst)? == inverted
            && fs::read(dst.join(&spoiled)).at(&dst)? == fs::read(job.tree.root.join(&spoiled)).at(&dst)?
            && !stray.exists();
        if !right {
            return Err(format!("{} did not see a change", side.name()).into());
        }
    }
    fs::write(&source, &content).at(&source)?;
    set_mtime(&File::options().write(true).open(&source).at(&source)?, mtime).at(&source)?;
    job.tree.stamp()?;
    for side in Side::BOTH {
        job.run(side, true)?;
    }
    Ok(())
}

pub(crate) fn progress(row: &str, round: usize, side: Side, sample: Sample) -> Res<Sample> {
    eprintln!(
        "{row}, round {}, {}: {:.3} s, {:.2} s of processor",
        round + 1,
        side.name(),
        sample.wall,
        sample.cpu
    );
    Ok(sample)
}

pub(crate) fn timed(work: String, found: &Both<Vec<Sample>>, goal: Goal) -> Line {
    Line { work, unit: Unit::Seconds, ours: walls(&found.ours), rsync: walls(&found.rsync), goal }
}

/// Processor time varies less than time on the clock.
pub(crate) fn note_cpu(report: &mut Report, row: &str, found: &Both<Vec<Sample>>) {
    if let (Some(ours), Some(rsync)) = (Stats::of(&cpus(&found.ours)), Stats::of(&cpus(&found.rsync))) {
        let (ours, rsync) = (ours.median, rsync.median);
        report.note(format!(
            "{row}: processor time ours {ours:.2} s, rsync {rsync:.2} s, ratio {:.2}.",
            ours / rsync
        ));
    }
}
