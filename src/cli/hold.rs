//! `syncagent hold TREE -- COMMAND`: a deploy job between "not yet" and "now, all of it".

mod child;

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

pub(super) use child::become_command;

use super::options::HoldArgs;
use crate::disk::{boot_ms, wall_ms};
use crate::error::{Class, Error, Result, lock};
use crate::serve::{HoldAsked, HoldEnd, tell};

/// Our own failures, as env(1) and its like exit.
const OWN: u8 = 125;
/// An agent that restarts meanwhile is asked again for so long.
const PATIENCE: Duration = Duration::from_secs(300);
const START: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(300);

/// Runs it; gives the exit code.
pub(super) fn run(args: &HoldArgs) -> u8 {
    match held(args) {
        Ok(code) => code,
        Err(e) => {
            complain(&e.to_string());
            OWN
        }
    }
}

fn complain(what: &str) {
    // who cannot even be told is not told
    let _ = writeln!(std::io::stderr(), "syncagent: hold: {what}");
}

/// One hold, as the agent knows it.
#[derive(Clone)]
struct Hold {
    socket: PathBuf,
    tree: String,
    id: String,
}

/// What ends the last step.
enum End {
    /// The agent's answer.
    Told(Result<String>),
    /// A signal: it is not waited for any longer.
    GivenUp,
}

impl Hold {
    fn ask(&self, command: Option<String>, end: Option<HoldEnd>) -> Result<String> {
        let asked = HoldAsked { tree: self.tree.clone(), id: self.id.clone(), command, end };
        let answer = tell(&self.socket, "/1/hold", &asked)?;
        let answer: serde_json::Value = serde_json::from_slice(&answer)
            .map_err(|e| Error::integrity(format!("the agent's answer: {e}")))?;
        Ok(answer["message"].as_str().unwrap_or_default().to_owned())
    }

    /// An agent that is just starting is asked again for a while.
    fn begin(&self, command: &str) -> Result<String> {
        let until = Instant::now() + START;
        loop {
            match self.ask(Some(command.to_owned()), None) {
                Err(e) if e.class == Class::Transient && Instant::now() < until => std::thread::sleep(AGAIN),
                done => return done,
            }
        }
    }

    /// Until the agent has heard it, or a signal says that this is not waited for.
    fn end(&self, caught: &Caught, end: impl Fn() -> HoldEnd + Send + 'static) -> Result<String> {
        lock(&caught.signals).over = true;
        let (hold, to) = (self.clone(), caught.to.clone());
        // an agent that hangs must not keep a signal waiting
        let told = move || drop(to.send(End::Told(hold.tell_end(end))));
        let thread = std::thread::Builder::new().name("end".into()).spawn(told);
        thread.map_err(|e| Error::io(e, "cannot start a thread"))?;
        match caught.from.recv() {
            Ok(End::Told(answer)) => answer,
            Ok(End::GivenUp) | Err(_) => {
                let what = format!(
                    "ended by a second signal, before the agent confirmed how the hold ended. Unless it had heard of that \
                     already, {0} stays held until the next hold that succeeds, or `syncagent hold {0} --release`; \
                     `syncagent status {0}` tells",
                    self.tree
                );
                Err(Error::new(Class::Interrupted, what))
            }
        }
    }

    fn tell_end(&self, end: impl Fn() -> HoldEnd) -> Result<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.ask(None, Some(end())) {
                Err(e) if e.class == Class::Transient && Instant::now() < until => std::thread::sleep(AGAIN),
                done => return done,
            }
        }
    }
}

fn held(args: &HoldArgs) -> Result<u8> {
    let socket = args.agent.socket()?;
    let seed = format!("{} {} {}", std::process::id(), boot_ms(), wall_ms());
    let id = blake3::hash(seed.as_bytes()).to_hex()[..16].to_owned();
    let hold = Hold { socket, tree: args.tree.clone(), id };
    if args.release {
        complain(&hold.ask(None, Some(HoldEnd::Release))?);
        return Ok(0);
    }
    let [program, ..] = args.command.as_slice() else {
        return Err(Error::new(Class::Config, "say what to run, after --"));
    };
    let caught = Caught::new();
    forward_signals(&caught)?;
    hold.begin(&shown(&args.command))?;
    if lock(&caught.signals).before.is_some() {
        // nothing was written
        hold.end(&caught, || HoldEnd::NotBegun)?;
        return Err(Error::new(Class::Interrupted, "ended by a signal before the command was begun"));
    }
    let (status, began) = match child::spawn(&args.command) {
        Ok(running) => wait(&caught.signals, running)?,
        Err(e) => {
            let ended = hold.end(&caught, || HoldEnd::NotBegun)?;
            let what = format!("cannot run {}: {e}; {ended}", program.to_string_lossy());
            return Err(Error::new(Class::Permanent, what));
        }
    };
    let code = status.signal().map_or(status.code().unwrap_or(1), |signal| 128 + signal);
    let code = u8::try_from(code).unwrap_or(1);
    if !began {
        // nothing was written, and what was wrong has been said
        complain(&hold.end(&caught, || HoldEnd::NotBegun)?);
        return Ok(code);
    }
    if status.success() {
        complain(&hold.end(&caught, || HoldEnd::Publish)?);
        return Ok(0);
    }
    let how = match status.signal() {
        Some(signal) => format!("{} was ended by signal {signal}", program.to_string_lossy()),
        None => format!("{} ended with exit code {}", program.to_string_lossy(), status.code().unwrap_or(-1)),
    };
    let why = how.clone();
    match hold.end(&caught, move || HoldEnd::Fail(why.clone())) {
        Ok(_) => complain(&format!(
            "{how}; {} stays held until the next hold that succeeds, or `syncagent hold {0} --release`",
            args.tree
        )),
        // its agent finds out by itself that we are gone
        Err(e) => complain(&e.to_string()),
    }
    Ok(code)
}

/// The command as a person would recognise it, not too long.
fn shown(command: &[impl AsRef<OsStr>]) -> String {
    let words: Vec<String> = command.iter().map(|w| w.as_ref().to_string_lossy().into_owned()).collect();
    let words = shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "));
    let short: String = words.chars().take(200).collect();
    crate::model::escaped(Path::new(&short))
}

/// What signals are about.
#[derive(Default)]
struct Signals {
    /// The command, while it runs.
    child: Option<Pid>,
    /// One that came when nothing ran.
    before: Option<Signal>,
    /// Nothing runs any more; the agent is told.
    over: bool,
    /// So many came.
    count: u32,
}

/// What signals are about, and what they can end.
struct Caught {
    signals: Arc<Mutex<Signals>>,
    to: Sender<End>,
    from: Receiver<End>,
}

impl Caught {
    fn new() -> Self {
        let (to, from) = channel();
        Self { signals: Arc::default(), to, from }
    }
}

/// Waits for the command, to which signals are handed on meanwhile. Also gives whether it began at all.
fn wait(signals: &Mutex<Signals>, mut running: Child) -> Result<(ExitStatus, bool)> {
    let set = |pid| {
        let mut caught = lock(signals);
        caught.child = pid;
        caught.over = pid.is_none();
        if let (Some(pid), Some(signal)) = (pid, caught.before.take()) {
            // it may just have ended
            let _ = kill_process(pid, signal);
        }
    };
    set(Some(Pid::from_child(&running)));
    // its number may be another process's once it was waited for
    let own = WaitId::Pid(Pid::from_child(&running));
    let ended =
        rustix::io::retry_on_intr(|| waitid(own.clone(), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT));
    set(None);
    ended.map_err(|e| Error::io(std::io::Error::from(e), "cannot wait for the command"))?;
    let began = !child::never_began(Pid::from_child(&running));
    let status = running.wait().map_err(|e| Error::io(e, "cannot wait for the command"))?;
    Ok((status, began))
}

/// We live until the command ends: SIGTERM and SIGHUP are for it. The terminal sends it SIGINT itself. Afterwards they are for
/// us: a second one ends us, also where the first one was for the command.
fn forward_signals(caught: &Caught) -> Result<()> {
    let cannot = |e| Error::io(e, "cannot handle signals");
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(cannot)?;
    let (child, to) = (caught.signals.clone(), caught.to.clone());
    let forward = move || {
        for signal in signals.forever() {
            let mut caught = lock(&child);
            caught.count = caught.count.saturating_add(1);
            let signal = match signal {
                SIGTERM => Signal::TERM,
                SIGHUP => Signal::HUP,
                _ => Signal::INT,
            };
            match caught.child {
                Some(_) if signal == Signal::INT => {}
                // it may just have ended
                Some(pid) => drop(kill_process(pid, signal)),
                // who waits for the end may have been answered just now
                None if caught.over && caught.count > 1 => drop(to.send(End::GivenUp)),
                None if caught.over => complain(
                    "the command has ended, and the agent is being told how; a second signal ends this at once",
                ),
                None => caught.before = Some(signal),
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(forward).map(drop).map_err(cannot)
}
