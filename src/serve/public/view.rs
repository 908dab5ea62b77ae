//! The picture of the agent's state that the public port answers from, and the course of the lag.
//!
//! A thread of its own takes it, when somebody asks and the last one is not fresh, and each second. Who asks waits for
//! a new one only for a moment, and takes the last one otherwise: whatever the agent is at, an answer comes in time, and
//! one who asks rarely does not get what was true when it asked last.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::agent::Agent;
use crate::disk::boot_ms;
use crate::error::{Context as _, Result, lock};
use crate::model::Status;

/// A picture that is younger, in ms, is as good as a new one.
const FRESH: u64 = 100;
/// A new one is waited for so long; answers come within 5 ms.
const PATIENCE: Duration = Duration::from_millis(2);
/// One is taken so often when nobody asks.
const IDLE: Duration = Duration::from_secs(1);
/// After each picture the thread rests so many times as long as it took.
const REST: u32 = 4;
const REST_MAX: Duration = Duration::from_secs(2);
/// A point of the course of the lag, and how many there are: an hour.
const STEP: Duration = Duration::from_secs(15);
const POINTS: usize = 240;
/// Nodes and trees whose course is kept; a bound on memory (1 KiB each).
const COURSES: usize = 512;

/// The agent's state at a moment.
pub(super) struct View {
    pub(super) status: Status,
    /// When it was taken, boot time in ms.
    pub(super) at: u64,
}

impl View {
    /// Why this node takes no traffic: each reason once.
    pub(super) fn faults(&self) -> Vec<&str> {
        let mut faults: Vec<&str> = Vec::new();
        for own in self.status.trees.iter().filter_map(|t| t.nodes.first()) {
            for fault in &own.faults {
                if !faults.contains(&fault.as_str()) {
                    faults.push(fault);
                }
            }
        }
        faults
    }
}

/// Hands out pictures.
pub(super) struct Viewer {
    asks: SyncSender<()>,
    newest: watch::Receiver<Arc<View>>,
    courses: Arc<Mutex<Courses>>,
}

impl Viewer {
    /// A picture that is fresh, or else the last one.
    pub(super) async fn look(&self) -> Arc<View> {
        let mut newest = self.newest.clone();
        let view = newest.borrow_and_update().clone();
        if boot_ms().saturating_sub(view.at) < FRESH {
            return view;
        }
        // a full queue means that it was asked already
        let _ = self.asks.try_send(());
        let _ = tokio::time::timeout(PATIENCE, newest.changed()).await;
        newest.borrow().clone()
    }

    /// The last picture, however old.
    pub(super) fn last(&self) -> Arc<View> {
        self.newest.borrow().clone()
    }

    /// How the lag of a node went during the last hour.
    pub(super) fn courses(&self) -> MutexGuard<'_, Courses> {
        lock(&self.courses)
    }
}

/// Starts the thread that takes the pictures; it ends with the last [`Viewer`].
///
/// # Errors
/// The thread cannot be started.
pub(super) fn start(agent: &Arc<Agent>) -> Result<Viewer> {
    let its = agent.clone();
    let (viewer, begun) = start_by(move || View { status: its.status(), at: boot_ms() })?;
    agent.set_pictures(viewer.asks.clone(), begun);
    Ok(viewer)
}

/// Also gives when the newest picture was begun.
fn start_by(take: impl Fn() -> View + Send + 'static) -> Result<(Viewer, watch::Receiver<u64>)> {
    let (begins, begun) = watch::channel(0);
    let (asks, asked) = sync_channel(1);
    let (sender, newest) = watch::channel(Arc::new(take()));
    let courses = Arc::new(Mutex::new(Courses::default()));
    let its = courses.clone();
    let run = move || look(&take, &asked, &sender, &begins, &its);
    std::thread::Builder::new().name("public view".into()).spawn(run).context(|| "start a thread".into())?;
    Ok((Viewer { asks, newest, courses }, begun))
}

fn look(
    take: &dyn Fn() -> View,
    asked: &Receiver<()>,
    newest: &watch::Sender<Arc<View>>,
    begins: &watch::Sender<u64>,
    courses: &Mutex<Courses>,
) {
    let mut next = Instant::now();
    loop {
        match asked.recv_timeout(next.saturating_duration_since(Instant::now()).min(IDLE)) {
            Err(RecvTimeoutError::Disconnected) => return,
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
        }
        let (begun, begun_ms) = (Instant::now(), boot_ms());
        let view = Arc::new(take());
        if begun >= next {
            lock(courses).add(&view.status);
            next = begun + STEP;
        }
        newest.send_replace(view);
        begins.send_replace(begun_ms);
        std::thread::sleep((begun.elapsed() * REST).min(REST_MAX));
    }
}

/// The lag of nodes and trees during the last hour.
#[derive(Default)]
pub(super) struct Courses(BTreeMap<(String, String), VecDeque<Option<u32>>>);

impl Courses {
    /// A point for every row; a row that is gone loses its course.
    fn add(&mut self, status: &Status) {
        let mut old = std::mem::take(&mut self.0);
        for tree in &status.trees {
            for row in &tree.nodes {
                if self.0.len() >= COURSES {
                    return;
                }
                let key = (tree.name.clone(), row.node.to_string());
                let mut course = old.remove(&key).unwrap_or_default();
                if course.len() >= POINTS {
                    course.pop_front();
                }
                course.push_back(row.lag_ms.map(|ms| u32::try_from(ms).unwrap_or(u32::MAX)));
                self.0.insert(key, course);
            }
        }
    }

    /// Milliseconds of lag, [`STEP`] apart, the last one newest; `None` where it was not known.
    pub(super) fn of(&self, tree: &str, node: &str) -> Vec<Option<u32>> {
        let key = (tree.to_owned(), node.to_owned());
        self.0.get(&key).map(|course| course.iter().copied().collect()).unwrap_or_default()
    }

    /// Points of a whole hour.
    pub(super) const HOUR: usize = POINTS;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/status/schema-1.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn a_course_is_an_hour_long_and_goes_with_its_node() {
        let mut courses = Courses::default();
        let mut status = status();
        for i in 0..300 {
            status.trees[0].nodes[2].lag_ms = (i != 299).then_some(i);
            courses.add(&status);
        }
        let course = courses.of("assets", "app3.example.com");
        assert_eq!((course.len(), course[0], course[239]), (240, Some(60), None));
        status.trees[0].nodes.truncate(2);
        courses.add(&status);
        assert_eq!(courses.of("assets", "app3.example.com"), []);
        assert_eq!(courses.of("assets", "app2.example.com").len(), 240);
    }

    #[tokio::test]
    async fn one_who_asks_for_the_first_time_in_a_while_gets_no_old_picture() {
        // a picture takes longer than anybody waits for it
        let slow = || {
            std::thread::sleep(PATIENCE * 10);
            View { status: status(), at: boot_ms() }
        };
        let (viewer, _begun) = start_by(slow).unwrap();
        // what is tested is that time passes and nobody asks
        tokio::time::sleep(IDLE * 4).await;
        let age = boot_ms() - viewer.look().await.at;
        assert!(Duration::from_millis(age) < IDLE * 3, "{age} ms old");
    }

    #[test]
    fn there_are_only_so_many_courses() {
        let mut courses = Courses::default();
        let mut status = status();
        let row = status.trees[0].nodes[0].clone();
        let named = |i: u32| crate::model::NodeStatus {
            node: crate::model::NodeId::new(&format!("n{i}")).unwrap(),
            ..row.clone()
        };
        status.trees[0].nodes = (0..2000).map(named).collect();
        courses.add(&status);
        courses.add(&status);
        assert_eq!(courses.0.len(), COURSES);
    }

    #[test]
    fn a_fault_of_several_trees_is_said_once_and_other_nodes_do_not_count() {
        let mut status = status();
        for tree in &mut status.trees {
            tree.nodes[0].faults = vec!["drained by ops".into(), format!("{}: failed", tree.name)];
        }
        let view = View { status, at: 0 };
        assert_eq!(view.faults()[..2], ["drained by ops", "assets: failed"]);
        assert_eq!(view.faults().len(), 1 + view.status.trees.len());
    }
}
