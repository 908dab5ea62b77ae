//! Refresh and verify: the local server is told of what was put in place, and asked whether it sees it.
//!
//! [`Refresher`] is what a tree has of this. Its caller says what happens to the files (`expect` before a commit,
//! `applied` after it); one task per tree does the rest, and whatever hangs in it makes this tree's refresh late and
//! nothing else. `machine` decides, without I/O; `run` carries out, by `http` and `child`; `saved` is what outlives
//! the agent. The order that counts: an expectation is on the disk before the first file changes, so that after
//! a crash nothing is taken for known that the server was not told of.

mod blocking;
mod changed;
mod child;
mod http;
mod leftover;
mod machine;
#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod rest_tests;
mod run;
mod saved;
mod template;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use changed::Changed;

use crate::config::Refresh;
use crate::disk::{Dir, boot_ms, wall_ms, write_atomic};
use crate::error::{Class, Context as _, Error, Result, lock};
use crate::model::{GenId, NodeId, RefreshState, RefreshStatus, escaped};
use crate::plan::Filter;
use blocking::Gate;
use machine::{Forced, Job, Machine, Next, Now, Order, Rule, Verify};
use run::Runner;
use saved::Saved;

const FILE: &str = "refresh.json";
/// Whoever forces a refresh waits no longer for its outcome.
const FORCE: Duration = Duration::from_secs(120);
/// The refresh goes on when its state directory hangs; what it did is then done again after a crash.
const PERSIST: Duration = Duration::from_secs(10);

/// What a tree's refresh is made of.
pub struct Setup {
    /// The tree's name.
    pub tree: String,
    /// This node.
    pub node: NodeId,
    /// Where the tree lies.
    pub path: PathBuf,
    /// In their order.
    pub rules: Vec<Refresh>,
    /// A directory of this tree's own that exists, on a local disk.
    pub state: PathBuf,
    /// Called after every change that can be seen from outside, without locks; must not block.
    pub news: Arc<dyn Fn() + Send + Sync>,
    /// Called on a thread that may block, once for each generation that `on-failure = "rollback"` is about.
    pub on_rollback: Option<Arc<dyn Fn(GenId) + Send + Sync>>,
}

/// Tells the local server of a tree's changes. Ends with [`Refresher::stop`], or when it is dropped.
pub struct Refresher {
    inner: Arc<Inner>,
}

struct Inner {
    machine: Mutex<Machine>,
    /// Held while the file is written, so that the newest state is written last.
    disk: Mutex<Dir>,
    file: PathBuf,
    rules: Vec<Refresh>,
    runner: Runner,
    wake: Notify,
    outcomes: watch::Sender<u64>,
    cancel: CancellationToken,
    ended: CancellationToken,
    news: Arc<dyn Fn() + Send + Sync>,
    on_rollback: Option<Arc<dyn Fn(GenId) + Send + Sync>>,
}

impl Refresher {
    /// Begins, and goes on with what was pending when the agent ended. Blocks for the reading of one small file.
    /// Inside of a tokio runtime.
    ///
    /// # Errors
    /// The state directory cannot be read; a pattern that is none.
    pub fn start(setup: Setup) -> Result<Arc<Self>> {
        Self::start_with(setup, "systemctl".into())
    }

    fn start_with(setup: Setup, systemctl: PathBuf) -> Result<Arc<Self>> {
        let Setup { tree, node, path, rules, state, news, on_rollback } = setup;
        let file = state.join(FILE);
        let disk =
            Dir::open_root(&state).context(|| format!("open the state directory {}", escaped(&state)))?;
        let saved = load(&file)?;
        let plain = rules.iter().map(rule).collect::<Result<Vec<_>>>()?;
        let now = now();
        // which of a few milliseconds it is differs from node to node
        let seed = now.boot
            ^ u64::from_le_bytes(
                *blake3::hash(node.as_str().as_bytes()).as_bytes().first_chunk().unwrap_or(&[1; 8]),
            );
        let cancel = CancellationToken::new();
        let (gate, runs) = (Gate::new(), cancel.clone());
        let inner = Arc::new(Inner {
            machine: Mutex::new(Machine::new(plain, saved, now, seed)),
            disk: Mutex::new(disk),
            file,
            rules,
            runner: Runner { tree, node, path, state, gate, cancel: runs, systemctl },
            wake: Notify::new(),
            outcomes: watch::Sender::new(0),
            cancel,
            ended: CancellationToken::new(),
            news,
            on_rollback,
        });
        let task = inner.clone();
        tokio::spawn(async move {
            let _ended = task.ended.clone().drop_guard();
            // before anything new is begun
            tokio::select! {
                () = run::clean(&task.runner.state) => {}
                () = task.cancel.cancelled() => return,
            }
            // an order that is cut off is ended as a time limit would
            task.work().await;
        });
        Ok(Arc::new(Self { inner }))
    }

    /// Files are about to change to `generation`. Blocks until that is on the disk. From now on [`Refresher::is_open`],
    /// until [`Refresher::applied`] or [`Refresher::unchanged`]; a crash in between means that anything may have changed.
    ///
    /// # Errors
    /// It could not be written (nothing is expected then), or the refresher was stopped.
    pub fn expect(&self, generation: GenId) -> Result<()> {
        let before = self.inner.machine().expect(generation);
        let kept = self.inner.persist();
        if kept.is_err() {
            self.inner.machine().unexpect(before);
        }
        self.inner.tidings();
        kept
    }

    /// `generation` is in place, and the server is to be told of `changed`, together with what it was not told of
    /// yet. Blocks until that is on the disk. May come without [`Refresher::expect`] and with the same generation again.
    ///
    /// # Errors
    /// It could not be written: it is pending all the same, but a crash loses what changed (with an expectation before
    /// it: means everything). Or the refresher was stopped.
    pub fn applied(&self, generation: GenId, changed: Changed) -> Result<()> {
        self.inner.machine().applied(generation, changed);
        let kept = self.inner.persist();
        self.inner.wake.notify_one();
        self.inner.tidings();
        kept
    }

    /// What was expected did not happen: all is as before. An expectation that a crash left ends only with
    /// [`Refresher::applied`].
    ///
    /// # Errors
    /// It could not be written: a crash would mean that anything may have changed. Or the refresher was stopped.
    pub fn unchanged(&self) -> Result<()> {
        self.inner.machine().unchanged();
        let kept = self.inner.persist();
        self.inner.wake.notify_one();
        self.inner.tidings();
        kept
    }

    /// Something is expected, pending or failing: the server may not have what is in the tree.
    pub fn is_open(&self) -> bool {
        self.inner.machine().is_open()
    }

    /// The agent ended in the middle of a change. Nothing is told before [`Refresher::applied`] says what is in place;
    /// that counts as a change of everything.
    pub fn is_unsure(&self) -> bool {
        self.inner.machine().saved().unsure
    }

    /// The generation that was applied last, as far as the refresher was told.
    pub fn in_place(&self) -> Option<GenId> {
        self.inner.machine().saved().in_place
    }

    /// The newest generation that the server was told of.
    pub fn refreshed(&self) -> Option<GenId> {
        self.inner.machine().saved().refreshed
    }

    /// The newest generation that the server was seen to have; that it was told of where it is not asked.
    pub fn verified(&self) -> Option<GenId> {
        self.inner.machine().saved().verified
    }

    /// The newest generation for which everything that was required succeeded. While [`Refresher::is_open`] the
    /// tree may be ahead of it.
    pub fn complete(&self) -> Option<GenId> {
        self.inner.machine().saved().complete
    }

    /// The newest generation that the server is known to have had itself, and not only newer files: what a node can go back to.
    pub fn had(&self) -> Option<GenId> {
        self.inner.machine().saved().had
    }

    /// The generation that is in place, when `on-failure = "rollback"` took effect for it and the server still does not
    /// have it. Outlives a restart, unlike the call of [`Setup::on_rollback`].
    pub fn rolls_back(&self) -> Option<GenId> {
        self.inner.machine().rolls_back()
    }

    /// The configuration asks something that the server was not asked of what is in place.
    pub fn has_new_question(&self) -> bool {
        self.inner.machine().has_new_question()
    }

    /// Whether a rule asks the server.
    pub fn has_verify(&self) -> bool {
        self.inner.rules.iter().any(|rule| rule.verify.is_some())
    }

    /// What people see of it; from memory.
    pub fn status(&self) -> RefreshStatus {
        self.inner.machine().status(boot_ms())
    }

    /// By an operator's order: what is pending is done now, whatever it waits for; with `all`, everything is done
    /// again for what is in place. Waits for the outcome, 120 s at most. Gives a sentence.
    ///
    /// # Errors
    /// It failed ([`Class::Transient`], it is tried again by itself) or cannot be done now ([`Class::Busy`]).
    pub async fn force(&self, all: bool) -> Result<String> {
        let inner = &self.inner;
        let mut outcomes = inner.outcomes.subscribe();
        let (before, forced, generation) = {
            let mut machine = inner.machine();
            let before = machine.outcomes();
            let forced = machine.force(all).map_err(|why| Error::new(Class::Busy, why))?;
            (before, forced, machine.saved().in_place)
        };
        let generation = generation.map_or_else(|| "nothing".to_owned(), |g| format!("generation {g}"));
        if forced == Forced::Nothing && !all {
            return Ok(format!("the server has {generation} already; --force tells it again"));
        }
        inner.keep().await;
        inner.wake.notify_one();
        inner.tidings();
        let wait = outcomes.wait_for(|outcome| *outcome > before);
        let waited = tokio::select! {
            waited = timeout(FORCE, wait) => waited.is_ok(),
            () = inner.cancel.cancelled() => return Err(stopped()),
        };
        let status = self.status();
        match status.error {
            Some(error) => Err(Error::new(Class::Transient, error.what)),
            None if waited => Ok(format!("the server was told of {generation}")),
            None => {
                let state =
                    if status.state == RefreshState::Verifying { "being asked" } else { "being told" };
                let what = format!("the server is still {state} after {} s; it goes on", FORCE.as_secs());
                Err(Error::new(Class::Transient, what))
            }
        }
    }

    /// Ends it. What runs is ended, a program with its whole process group: SIGTERM, two seconds later SIGKILL. What is
    /// pending goes on with the next start.
    pub fn stop(&self) {
        self.inner.cancel.cancel();
    }

    /// Whether nothing of it runs any more.
    pub fn has_ended(&self) -> bool {
        self.inner.ended.is_cancelled()
    }

    /// Waits until nothing of it runs any more, after [`Refresher::stop`].
    pub async fn ended(&self) {
        self.inner.ended.cancelled().await;
    }
}

impl Drop for Refresher {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        lock(&self.machine)
    }

    /// Writes what is new. Blocks.
    fn persist(&self) -> Result<()> {
        let disk = lock(&self.disk);
        // another one may have started on the same file
        if self.cancel.is_cancelled() {
            return Err(stopped());
        }
        let text = {
            let mut machine = self.machine();
            if !machine.take_dirty() {
                return Ok(());
            }
            serde_json::to_vec(machine.saved()).map_err(|e| Error::integrity(e.to_string()))?
        };
        let written = write_atomic(&disk, FILE, &text).context(|| format!("write {}", escaped(&self.file)));
        if written.is_err() {
            self.machine().set_dirty();
        }
        written
    }

    /// [`Inner::persist`] from the task: what cannot be written is only done again after a crash.
    async fn keep(self: &Arc<Self>) {
        let inner = self.clone();
        let kept = timeout(PERSIST, tokio::task::spawn_blocking(move || inner.persist())).await;
        let why = match kept {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(e))) if e.class == Class::Interrupted => return,
            Ok(Ok(Err(e))) => e.to_string(),
            Ok(Err(e)) => e.to_string(),
            Err(_) => format!("writing {} takes more than {} s", escaped(&self.file), PERSIST.as_secs()),
        };
        tracing::warn!("{}: the state of the refresh is not kept: {why}", self.runner.tree);
    }

    /// Whoever waits hears of it.
    fn tidings(&self) {
        let outcome = self.machine().outcomes();
        self.outcomes.send_replace(outcome);
        (self.news)();
    }

    async fn work(self: &Arc<Self>) {
        loop {
            let next = self.machine().next(now());
            match next {
                Next::Run(order) => self.carry_out(&order).await,
                Next::Wait(until) => {
                    // what was only found to be done is news, too
                    if self.outcomes.borrow().ne(&self.machine().outcomes()) {
                        self.keep().await;
                        self.tidings();
                    }
                    let wait = until.map(|until| until.saturating_sub(boot_ms()));
                    tokio::select! {
                        () = self.cancel.cancelled() => return,
                        () = self.wake.notified() => {}
                        // in pieces, for this clock stands still while the host sleeps
                        () = sleep(Duration::from_millis(wait.unwrap_or(u64::MAX).min(10_000))), if wait.is_some() => {}
                    }
                }
            }
            if self.cancel.is_cancelled() {
                return;
            }
        }
    }

    async fn carry_out(self: &Arc<Self>, order: &Order) {
        let rule = &self.rules[order.rule];
        self.keep().await;
        self.tidings();
        let began = boot_ms();
        let work = self.runner.carry_out(rule, order);
        let result = match &rule.action {
            // what it runs is ended by itself, and takes a little
            _ if is_program(rule, order.job) => work.await,
            _ => tokio::select! {
                result = work => result,
                () = self.cancel.cancelled() => return,
            },
        };
        if self.cancel.is_cancelled() {
            return;
        }
        let (tree, name, generation) = (&self.runner.tree, &rule.name, order.generation);
        let took = boot_ms().saturating_sub(began);
        let counts = self.machine().counts(order.id);
        match (&result, order.job) {
            (Ok(()), Job::Tell) if !counts => {
                tracing::info!(
                    "{tree}: {name}: told of generation {generation} in {took} ms, which something changed since"
                )
            }
            (Ok(()), Job::Tell) => {
                tracing::info!("{tree}: {name}: refreshed for generation {generation} in {took} ms")
            }
            (Ok(()), Job::Ask) => tracing::info!("{tree}: {name}: the server has generation {generation}"),
            (Err(e), Job::Tell) => {
                tracing::warn!("{tree}: {name}: refresh for generation {generation} failed: {e}")
            }
            (Err(e), Job::Ask) => tracing::debug!("{tree}: {name}: verify of generation {generation}: {e}"),
        }
        let (rollback, verdict) = {
            let mut machine = self.machine();
            let before = machine.outcomes();
            let rollback = machine.finished(order.id, result, now());
            (rollback, machine.outcomes() > before)
        };
        self.keep().await;
        if order.job == Job::Ask
            && verdict
            && let Some(error) = self.machine().status(boot_ms()).error
        {
            tracing::warn!("{tree}: generation {generation}: {}", error.what);
        }
        self.tidings();
        if let (Some(generation), Some(hook)) = (rollback, self.on_rollback.clone()) {
            tracing::warn!(
                "{tree}: {name}: the server does not have generation {generation}; this node is to go back"
            );
            tokio::task::spawn_blocking(move || hook(generation));
        }
    }
}

fn is_program(rule: &Refresh, job: Job) -> bool {
    use crate::config::{Action, Ask, SignalTo};
    match job {
        Job::Tell => matches!(
            rule.action,
            Action::Exec(_) | Action::Systemd { .. } | Action::Signal { to: SignalTo::Unit(_), .. }
        ),
        Job::Ask => rule.verify.as_ref().is_some_and(|verify| matches!(verify.ask, Ask::Exec(_))),
    }
}

fn stopped() -> Error {
    Error::new(Class::Interrupted, "the refresh was stopped")
}

fn now() -> Now {
    Now { boot: boot_ms(), wall: wall_ms() }
}

fn load(file: &std::path::Path) -> Result<Saved> {
    let text = match std::fs::read(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Saved::default()),
        read => read.context(|| format!("read {}", escaped(file)))?,
    };
    Ok(serde_json::from_slice(&text).unwrap_or_else(|e| {
        tracing::warn!("{} is damaged ({e}): the server is told of everything again", escaped(file));
        Saved { unsure: true, ..Saved::default() }
    }))
}

fn rule(refresh: &Refresh) -> Result<Rule> {
    let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let when = if refresh.when.is_empty() { None } else { Some(Filter::new(refresh.patterns())?) };
    let print = |debug: String| blake3::hash(debug.as_bytes()).to_hex()[..16].to_owned();
    let verify = refresh.verify.as_ref().map(|verify| Verify {
        print: print(format!("{:?}", verify.ask)),
        within: ms(verify.within),
        on_failure: verify.on_failure,
        refreshes: verify.refreshes,
    });
    Ok(Rule {
        name: refresh.name.clone(),
        print: print(format!("{refresh:?}")),
        when,
        min_interval: ms(refresh.min_interval),
        retry_max: ms(refresh.retry_max),
        verify,
    })
}
