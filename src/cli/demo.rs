//! `syncagent demo`: a source and two mirrors on loopback, with certificates of their own, in a temporary
//! directory that is removed at the end; a deployment that changes, and the status table that follows it.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::exit::Exit;
use super::options::DemoArgs;
use super::run::{runtime, say};
use super::status::table;
use crate::agent::{Agent, pki};
use crate::config::Config;
use crate::error::{Context as _, Error, Result};
use crate::model::{GenId, NodeId, State, escaped};

const TREE: &str = "deployment";
const DRAW: Duration = Duration::from_millis(500);
/// A step of the story that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between the steps, for those who read.
const PAUSE: Duration = Duration::from_millis(1500);
const LINES: usize = 14;

macro_rules! fixture {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../fixtures/wso2-ei/server/", $path)))),*]
    };
}

/// A deployment directory of a WSO2 server.
const DEPLOYED: &[(&str, &[u8])] = fixture![
    "README.txt",
    "axis2services/OrderAudit-1.2.aar",
    "axis2services/StockService.aar",
    "axis2services/services.list",
    "carbonapps/OrderRoutingCApp_1.3.2.car",
    "carbonapps/ReturnsCApp_2.0.1.car",
    "dataservices/OrdersDataService.dbs",
    "dataservices/StockDataService.dbs",
    "eventpublishers/OrderAcceptedHttpPublisher.xml",
    "eventpublishers/OrderAcceptedLogger.xml",
    "executionplans/OrderBurstAlert.siddhiql",
    "resources/policies/throttle-stock.json",
    "resources/schemas/order-1.0.xsd",
    "resources/transform/order-response.xslt",
    "synapse-configs/default/api/OrderAPI.xml",
    "synapse-configs/default/api/PingAPI.xml",
    "synapse-configs/default/api/ShipmentAPI.xml",
    "synapse-configs/default/registry.xml",
    "synapse-configs/default/synapse.xml",
];
const NEW: &[(&str, &[u8])] = fixture!["carbonapps/OrderRoutingCApp_1.4.0.car", "webapps/order-monitor.war"];

pub(super) fn run(args: &DemoArgs) -> Result<Exit> {
    super::start_log("off");
    crate::disk::ignore_break_signal()?;
    let runtime = runtime()?;
    let done = runtime.block_on(play(args.seconds.map(Duration::from_secs)));
    runtime.shutdown_timeout(Duration::from_millis(500));
    done
}

/// A temporary directory that goes when this does.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let name = format!("syncagent-demo-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .context(|| format!("make {}", escaped(&path)))?;
        Ok(Self(path))
    }

    fn tree(&self, node: &str) -> PathBuf {
        self.0.join(node).join("server")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // in a temporary directory; what cannot be removed is nobody's harm
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The cluster and what was told of it.
struct Cluster {
    source: Arc<Agent>,
    mirrors: Vec<Arc<Agent>>,
    tree: PathBuf,
    terminal: bool,
    told: std::sync::Mutex<VecDeque<String>>,
    begun: Instant,
    headline: String,
}

async fn play(time: Option<Duration>) -> Result<Exit> {
    let on = |kind: SignalKind| signal(kind).context(|| "handle signals".into());
    // before there is anything to leave behind
    let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    let place = Place::new()?;
    let cluster = start(&place).await?;
    let ended = tokio::select! {
        told = tell(&cluster) => told.map(|()| false),
        () = draw(&cluster) => Ok(false),
        () = tokio::time::sleep(time.unwrap_or(Duration::from_secs(86_400 * 365))) => Ok(false),
        _ = interrupt.recv() => Ok(true),
        _ = terminate.recv() => Ok(true),
    };
    let interrupted = match ended {
        Ok(interrupted) => interrupted,
        Err(e) => {
            cluster.stop().await;
            return Err(e);
        }
    };
    let converged = interrupted || cluster.converged().await;
    cluster.show()?;
    let digests = cluster.digests()?;
    cluster.stop().await;
    if interrupted {
        return Ok(Exit::Done);
    }
    let equal = digests.windows(2).all(|pair| pair[0] == pair[1]);
    let digest = &digests[0];
    if converged && equal {
        say(&format!("every mirror has converged: content digest {digest} on all {} nodes", digests.len()))?;
        Ok(Exit::Done)
    } else {
        say("the mirrors have not converged")?;
        Ok(Exit::Failed)
    }
}

async fn start(place: &Place) -> Result<Cluster> {
    let ca = pki::new_ca("demo", 2)?;
    let base = &place.0;
    write(&base.join("ca.pem"), ca.cert_pem.as_bytes())?;
    for node in ["node-a", "node-b", "node-c"] {
        let id = NodeId::new(node).map_err(|e| Error::integrity(e.to_string()))?;
        let day = 86_400;
        let issued = ca.issue(&id, &[], &[], (-300, day))?;
        write(&base.join(format!("{node}.pem")), issued.cert_pem.as_bytes())?;
        write(&base.join(format!("{node}.key")), issued.key_pem.as_bytes())?;
    }
    let tree = place.tree("node-a");
    for (path, bytes) in DEPLOYED {
        write(&tree.join(path), bytes)?;
    }
    let common = |node: &str, data: &str| {
        let at = base.display();
        format!(
            "state-dir = \"{at}/{node}/state\"\n[node]\nid = \"{node}\"\n[listen]\n{data}socket = \"{at}/{node}.sock\"\n\
             [tls]\ncert = \"{at}/{node}.pem\"\nkey = \"{at}/{node}.key\"\nca = \"{at}/ca.pem\"\n\
             [cluster]\nname = \"demo\"\n[tree.{TREE}]\npath = \"{}\"\n",
            place.tree(node).display()
        )
    };
    let source = common("node-a", "data = \"127.0.0.1:0\"\n")
        + "role = \"source\"\nallow = [\"node-b\", \"node-c\"]\nsettle = \"300ms\"\nsettle-max = \"3s\"\n";
    let source = agent(&source).await?;
    let address = source.data_address().ok_or_else(|| Error::integrity("the source has no address"))?;
    let mut mirrors = Vec::new();
    for node in ["node-b", "node-c"] {
        let mirror = common(node, "")
            + &format!("role = \"mirror\"\nsource = \"https://{address}\"\nsource-id = \"node-a\"\n");
        mirrors.push(agent(&mirror).await?);
    }
    let headline = format!(
        "source   node-a  https://{address}  {}\nmirror   node-b  {}\nmirror   node-c  {}\n\
         ask yourself: syncagent status --socket {}/node-b.sock",
        escaped(&tree),
        escaped(&place.tree("node-b")),
        escaped(&place.tree("node-c")),
        escaped(base)
    );
    let terminal = std::io::stdout().is_terminal();
    if !terminal {
        say(&headline)?;
    }
    Ok(Cluster { source, mirrors, tree, terminal, told: Default::default(), begun: Instant::now(), headline })
}

async fn agent(text: &str) -> Result<Arc<Agent>> {
    let parsed = Config::parse(text);
    match parsed.config {
        Some(config) => Agent::start(config).await,
        None => Err(Error::integrity(format!("the demo's own configuration: {:?}", parsed.problems))),
    }
}

/// What happens, one after the other; then small changes for ever.
async fn tell(c: &Cluster) -> Result<()> {
    c.until("the first copy", |c| c.head().is_some() && c.all_have(c.head())).await?;
    c.tell(&format!("first copy: {} files on both mirrors", DEPLOYED.len()))?;
    c.rest().await?;

    let before = c.head();
    c.tell(&format!("deploying a good archive: {}", NEW[0].0))?;
    let begun = Instant::now();
    write(&c.tree.join(NEW[0].0), NEW[0].1)?;
    c.until("the archive", |c| c.head() > before && c.all_have(c.head())).await?;
    c.tell(&format!(
        "  on both mirrors {} ms after it was written (300 ms of that is the quiet time)",
        ms(begun)
    ))?;
    c.rest().await?;

    let before = c.head();
    let (name, bytes) = NEW[1];
    c.tell(&format!("writing the first half of an archive: {name}"))?;
    write(&c.tree.join(name), &bytes[..bytes.len() / 2])?;
    c.until("it being held back", |c| c.source.status().trees.iter().any(|t| t.held_count > 0)).await?;
    let held = c.source.status().trees.iter().flat_map(|t| t.held.clone()).next();
    c.tell(&format!("  held back on the source: {}", held.map_or_else(String::new, |h| h.why)))?;
    let missing = c.head() == before && c.mirror_trees().iter().all(|tree| !tree.join(name).exists());
    if !missing {
        return Err(Error::integrity("a half-written archive reached a mirror"));
    }
    c.tell("  no mirror has seen it")?;
    c.rest().await?;
    write(&c.tree.join(name), bytes)?;
    c.until("the whole archive", |c| c.head() > before && c.all_have(c.head())).await?;
    c.tell("  complete now, and on both mirrors")?;
    c.rest().await?;

    let before = c.head();
    c.tell("deleting everything but three files, as a vanished mount or a slip would")?;
    for (path, _) in &DEPLOYED[3..] {
        std::fs::remove_file(c.tree.join(path)).context(|| format!("remove {path}"))?;
    }
    c.until("the refusal", |c| c.source_state() == Some(State::Refused)).await?;
    let plan = c.source.status().trees.into_iter().find_map(|t| t.nodes.first().and_then(|n| n.plan.clone()));
    c.tell(&format!("  refused: {}", plan.map_or_else(String::new, |p| p.reason)))?;
    c.rest().await?;
    for (path, bytes) in &DEPLOYED[3..] {
        write(&c.tree.join(path), bytes)?;
    }
    c.until("everything being back", |c| c.source_state() == Some(State::Current) && c.all_have(c.head()))
        .await?;
    c.tell(&format!(
        "  put back; no mirror lost anything (generation {} then, {} now)",
        show(before),
        show(c.head())
    ))?;
    c.tell("small changes from here on; Ctrl-C ends")?;
    for count in 1u64.. {
        c.rest().await?;
        let before = c.head();
        let text = format!("<api name=\"OrderAPI\" context=\"/orders\" version=\"{count}\"/>\n");
        write(&c.tree.join("synapse-configs/default/api/OrderAPI.xml"), text.as_bytes())?;
        c.until("a change", |c| c.head() > before && c.all_have(c.head())).await?;
    }
    Ok(())
}

async fn draw(c: &Cluster) {
    loop {
        // a closed output ends the demo elsewhere
        if c.terminal && c.show().is_err() {
            return;
        }
        tokio::time::sleep(DRAW).await;
    }
}

impl Cluster {
    fn head(&self) -> Option<GenId> {
        self.source.status().trees.first().and_then(|t| t.head)
    }

    fn source_state(&self) -> Option<State> {
        self.source.status().trees.first().and_then(|t| t.nodes.first()).map(|n| n.state)
    }

    fn all_have(&self, head: Option<GenId>) -> bool {
        let has = |m: &Arc<Agent>| {
            m.status()
                .trees
                .iter()
                .all(|t| t.nodes.iter().all(|n| n.generation == head && n.state == State::Current))
        };
        self.mirrors.iter().all(has)
    }

    fn mirror_trees(&self) -> Vec<PathBuf> {
        self.mirrors.iter().flat_map(|m| m.status().trees).map(|t| PathBuf::from(t.path)).collect()
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            if Instant::now() > end {
                self.show()?;
                return Err(Error::integrity(format!("{what} did not come within {PATIENCE:?}")));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn rest(&self) -> Result<()> {
        if !self.terminal {
            self.show()?;
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// Waits until every mirror has what the source has.
    async fn converged(&self) -> bool {
        let rests = |c: &Self| c.source.status().trees.iter().all(|t| t.unpublished_age_ms.is_none());
        let done = |c: &Self| c.source_state() == Some(State::Current) && rests(c) && c.all_have(c.head());
        self.until("convergence", done).await.is_ok()
    }

    fn tell(&self, line: &str) -> Result<()> {
        let line = format!("{:>6.1} s  {line}", self.begun.elapsed().as_secs_f64());
        if !self.terminal {
            say(&line)?;
        }
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        told.push_back(line);
        while told.len() > LINES {
            told.pop_front();
        }
        Ok(())
    }

    fn show(&self) -> Result<()> {
        let table = table(&self.source.status(), None, None);
        if !self.terminal {
            return say(&format!("\n{table}"));
        }
        let told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let told = told.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
        let mut out = std::io::stdout().lock();
        write!(out, "\x1b[H\x1b[2J{}\n\n{table}\n{told}\n", self.headline)
            .and_then(|()| out.flush())
            .map_err(super::output_failed)
    }

    fn digests(&self) -> Result<Vec<String>> {
        let none = crate::plan::Filter::new(Vec::new())?;
        let go_on = std::sync::atomic::AtomicBool::new(false);
        let mut trees = vec![self.tree.clone()];
        trees.extend(self.mirror_trees());
        trees.iter().map(|t| Ok(crate::agent::digest(t, &none, 2, &go_on)?.0.to_string())).collect()
    }

    async fn stop(&self) {
        for mirror in &self.mirrors {
            mirror.stop().await;
        }
        self.source.stop().await;
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let cannot = || format!("write {}", escaped(path));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).context(cannot)?;
    }
    std::fs::write(path, bytes).context(cannot)
}

fn show(id: Option<GenId>) -> String {
    id.map_or_else(|| "none".to_owned(), |id| id.to_string())
}

fn ms(begun: Instant) -> u128 {
    begun.elapsed().as_millis()
}
