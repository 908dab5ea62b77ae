//! From TOML to [`Config`]: one function for each section. A section that is wrong gives `None`; that it
//! is wrong was noted, and the others are still looked at.

use std::path::PathBuf;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::problem::{Parsed, Problems, Severity, wrong};
use super::raw::{MIRROR_ONLY, SOURCE_ONLY, Table};
use super::{
    Activate, Allow, Cluster, Config, DriftPolicy, Listen, Log, LogFormat, MirrorRole, Node, Role,
    SourceRole, Store, Tls, Tree, Upstream, across, amount, health, refresh, value,
};
use crate::model::NodeId;

const SETTLE: Duration = Duration::from_millis(500);
const SETTLE_MAX: Duration = Duration::from_secs(30);
const SCAN_INTERVAL: Duration = Duration::from_secs(600);
const KEEP_BYTES: u64 = 10 << 30;

/// A role's word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Source,
    Mirror,
}

/// The words of `role`.
pub(super) const ROLES: [(&str, Kind); 2] = [("source", Kind::Source), ("mirror", Kind::Mirror)];

pub(super) fn parse(text: &str) -> Parsed {
    let problems = Problems::new(text);
    let doc = match DeTable::parse(text) {
        Ok(doc) => doc,
        Err(e) => {
            let at = e.span().map(|span| span.start);
            problems.add(
                Severity::Error,
                at,
                String::new(),
                wrong(format!("this is not TOML: {}", e.message())),
            );
            return Parsed { config: None, problems: problems.finish() };
        }
    };
    let config = config(&Table::root(doc.get_ref(), &problems));
    let problems = problems.finish();
    let sound = problems.iter().all(|p| p.severity != Severity::Error);
    Parsed { config: config.filter(|_| sound), problems }
}

/// What a text has as `listen.socket`, whatever else is wrong with it.
pub(super) fn socket_of(text: &str) -> PathBuf {
    let read = |text: &str| {
        let (doc, _) = DeTable::parse_recoverable(text);
        let problems = Problems::new(text);
        Table::root(doc.get_ref(), &problems).section("listen").read("socket", value::socket)
    };
    // where the parser does not find back, the section alone
    let from_section = text.lines().skip_while(|line| line.trim() != "[listen]");
    let section = from_section.take_while(|line| !line.starts_with('[') || line.trim() == "[listen]");
    read(text)
        .or_else(|| read(&section.collect::<Vec<_>>().join("\n")))
        .unwrap_or_else(|| PathBuf::from(super::SOCKET))
}

fn config(root: &Table<'_>) -> Option<Config> {
    root.known("");
    let node = node(&root.section("node"));
    let listen = listen(&root.section("listen"));
    let tls = root.has("tls").then(|| tls(&root.section("tls")));
    let cluster = cluster(&root.section("cluster"));
    let log = log(&root.section("log"));
    let health = health::health(&root.section("health"));
    let state_dir = root.read("state-dir", value::absolute);
    let trees = root.section("tree");
    let tables = trees.tables();
    if tables.is_empty() {
        root.error("tree", wrong("there is no tree").hint("[tree.NAME] with a path and a role"));
    }
    let built: Vec<Option<Tree>> = tables.iter().map(|(name, table)| tree(&trees, name, table)).collect();
    across::check(root, &tables);
    Some(Config {
        node: node?,
        listen,
        tls: tls.flatten(),
        cluster,
        log,
        health,
        state_dir,
        trees: built.into_iter().collect::<Option<_>>()?,
    })
}

fn node(t: &Table<'_>) -> Option<Node> {
    t.known("node");
    let zone = t.read("zone", value::named);
    let id =
        t.need("id", "the name that this node's certificate carries, such as \"app1\"", value::node_id)?;
    Some(Node { id, zone })
}

fn listen(t: &Table<'_>) -> Listen {
    t.known("listen");
    Listen {
        data: t.read("data", value::endpoint),
        socket: t.read("socket", value::socket).unwrap_or_else(|| PathBuf::from(super::SOCKET)),
        public: t.read("public", value::address),
        agent_check: t.read("agent-check", value::address),
    }
}

fn tls(t: &Table<'_>) -> Option<Tls> {
    t.known("tls");
    let cert = t.need("cert", "the path of this node's certificate, PEM", value::absolute);
    let key = t.need("key", "the path of its private key, PEM", value::absolute);
    let ca = t.need("ca", "the path of the cluster's CA certificate, PEM", value::absolute);
    Some(Tls { cert: cert?, key: key?, ca: ca? })
}

fn cluster(t: &Table<'_>) -> Cluster {
    t.known("cluster");
    let store = |v: &DeValue<'_>| {
        value::word(&[("hub", Store::Hub)])(v)
            .map_err(|e| e.hint("no other store is there yet: each tree's source is its hub"))
    };
    Cluster {
        name: t.read("name", value::named).unwrap_or_else(|| "default".into()),
        store: t.read("store", store).unwrap_or(Store::Hub),
    }
}

fn log(t: &Table<'_>) -> Log {
    t.known("log");
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    Log {
        format: t.read("format", value::word(&formats)).unwrap_or(LogFormat::Text),
        level: t.read("level", value::log_level).unwrap_or_else(|| "info".into()),
    }
}

fn tree(trees: &Table<'_>, name: &str, t: &Table<'_>) -> Option<Tree> {
    if let Err(complaint) = value::name(name) {
        trees.error(name, complaint);
    }
    t.known("tree.NAME");
    let path = t.need("path", "the directory, such as \"/srv/assets\"", value::tree_path);
    let kind = t.need("role", "\"source\" where it is written, \"mirror\" elsewhere", value::word(&ROLES));
    let role = role(kind, t);
    let exclude = t.list("exclude", value::exclude).unwrap_or_default();
    let include = t.list("include", value::include).unwrap_or_default();
    let owner = t.read("owner", value::owner);
    let setid = t.read("setid", value::flag).unwrap_or(false);
    let max_delete = t.read("max-delete", value::max_delete).unwrap_or_default();
    let keep = t.read("keep", value::count).unwrap_or(1);
    let keep_bytes = t.read("keep-bytes", amount::size).unwrap_or(KEEP_BYTES);
    let max_lag = t.read("max-lag", amount::period);
    let max_contact_age = t.read("max-contact-age", amount::period);
    let refreshes = refresh::read(t);
    let tree = Tree {
        name: name.to_owned(),
        path: path?,
        role: role?,
        exclude,
        include,
        owner,
        setid,
        max_delete,
        keep,
        keep_bytes,
        max_lag,
        max_contact_age,
        refresh: refreshes?,
    };
    refresh::outside(t, &tree);
    refresh::suits(t, &tree);
    Some(tree)
}

fn role(kind: Option<Kind>, t: &Table<'_>) -> Option<Role> {
    let (source, mirror) = match kind {
        Some(Kind::Source) => (source(t), None),
        Some(Kind::Mirror) => (None, mirror(t)),
        None => {
            // which keys are too many cannot be told, what is wrong with their values can
            let _ = (source(t), mirror(t));
            return None;
        }
    };
    let (foreign, whose) = if kind == Some(Kind::Source) {
        (&MIRROR_ONLY[..], "is for a mirror, and this tree's role is source")
    } else {
        (&SOURCE_ONLY[..], "is for a source, and this tree's role is mirror")
    };
    for key in foreign.iter().filter(|key| t.has(key)) {
        t.error(key, wrong(whose));
    }
    if kind == Some(Kind::Source) && !t.has("allow") {
        t.error(
            "allow",
            wrong("is missing").hint("the node ids that may read, or [\"*\"] for the whole cluster"),
        );
    }
    if kind == Some(Kind::Mirror) && !t.has("source") {
        t.error("source", wrong("is missing").hint("\"https://host:7420\" or \"unix:/path\""));
    }
    source.map(Role::Source).or(mirror.map(Role::Mirror))
}

fn source(t: &Table<'_>) -> Option<SourceRole> {
    let settle = t.read("settle", amount::duration).unwrap_or(SETTLE);
    let settle_max = t.read("settle-max", amount::period).unwrap_or(SETTLE_MAX);
    if settle > settle_max {
        let key = if t.has("settle") { "settle" } else { "settle-max" };
        let (settle, most) = (amount::duration_text(settle), amount::duration_text(settle_max));
        t.error(key, wrong(format!("settle is {settle}, and settle-max only {most}")));
    }
    let hold_file = t.read("hold-file", value::hold_file);
    let scan_interval = t.read("scan-interval", amount::period).unwrap_or(SCAN_INTERVAL);
    Some(SourceRole { allow: allow(t)?, settle, settle_max, hold_file, scan_interval })
}

fn allow(t: &Table<'_>) -> Option<Allow> {
    let id = |text: &str| match text {
        "*" => Ok(None),
        text => NodeId::new(text).map(Some).map_err(|e| wrong(e.to_string())),
    };
    let allowed = t.list("allow", id)?;
    if allowed.is_empty() {
        t.error("allow", wrong("nobody could read").hint("name node ids, or [\"*\"] for the whole cluster"));
    }
    if !allowed.contains(&None) {
        return Some(Allow::Nodes(allowed.into_iter().flatten().collect()));
    }
    if allowed.len() > 1 {
        t.error("allow", wrong("has node ids beside \"*\", which is everybody").hint("choose one"));
    }
    Some(Allow::Any)
}

fn mirror(t: &Table<'_>) -> Option<MirrorRole> {
    let upstream = t.read("source", value::upstream);
    let source_id = t.read("source-id", value::node_id);
    if matches!(upstream, Some(Upstream::Https { .. })) && !t.has("source-id") {
        t.error(
            "source-id",
            wrong("is missing").hint("the node id that the source's certificate must carry"),
        );
    }
    let ways = [("in-place", Activate::InPlace), ("swap", Activate::Swap)];
    let activate = t.read("activate", value::word(&ways)).unwrap_or_default();
    let staging = t.read("staging", value::absolute);
    let mut order = t.list("order", value::order).unwrap_or_default();
    if activate == Activate::Swap && t.has("staging") {
        t.error(
            "staging",
            wrong("activate = \"swap\" builds the new tree beside the old one; staging has no place there"),
        );
    }
    if activate == Activate::Swap && t.has("order") {
        t.warning(
            "order",
            wrong("with activate = \"swap\" all becomes visible at once; order has no effect"),
        );
        order.clear();
    }
    let policies = [("overwrite", DriftPolicy::Overwrite), ("report", DriftPolicy::Report)];
    let drift = t.read("drift", value::word(&policies)).unwrap_or_default();
    let scan_interval = t.read("scan-interval", amount::period).unwrap_or(SCAN_INTERVAL);
    let adopt = t.read("adopt", value::flag).unwrap_or(false);
    Some(MirrorRole { upstream: upstream?, source_id, activate, staging, order, drift, scan_interval, adopt })
}
