//! `pki`: a CA and node certificates for those who have none.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::builder::RangedI64ValueParser;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Exit, output_failed};
use crate::agent::pki::{self, NodeFiles, Request, Shown};
use crate::error::Result;
use crate::model::{NodeId, escaped};
use crate::peer::tls::{Validity, rough_time};

/// Where the nodes look for their certificate unless their configuration says otherwise.
const ON_NODES: &str = "/etc/syncagent";

/// `pki`.
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make a CA: ca.pem for every node, and ca.key, which stays where it is.
    Init(InitArgs),
    /// Make a certificate and key for a node.
    Issue(IssueArgs),
    /// List the CA and the certificates issued: ids, validity, fingerprints.
    Show(ShowArgs),
}

impl PkiCommand {
    /// Whether standard output is for programs.
    pub(crate) fn json(&self) -> bool {
        matches!(self, Self::Show(ShowArgs { json: true, .. }))
    }
}

#[derive(Debug, Args)]
struct DirArgs {
    /// The CA's directory, on an administrator's host.
    #[arg(long, value_name = "DIR", default_value = "/etc/syncagent/pki")]
    dir: PathBuf,
}

/// `pki init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    #[command(flatten)]
    dir: DirArgs,
    /// The cluster's name, for the CA's. What `status` shows is `name` under `[cluster]` in the configuration.
    #[arg(long, value_name = "NAME", default_value = "cluster")]
    cluster: String,
    /// How long the CA is valid.
    #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = days())]
    days: u32,
}

/// `pki issue`.
#[derive(Debug, Args)]
pub struct IssueArgs {
    /// The node's id, as in its configuration and in `source-id` and `allow` of others.
    node: NodeId,
    #[command(flatten)]
    dir: DirArgs,
    /// A further DNS name. It is an identity of the node, too: never give another node's id.
    #[arg(long = "name", value_name = "DNS-NAME")]
    names: Vec<String>,
    /// An IP address, for other programs that check it; syncagent goes by node ids.
    #[arg(long = "ip", value_name = "ADDR")]
    ips: Vec<IpAddr>,
    /// How long the certificate is valid, at most as long as the CA.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = days())]
    days: u32,
    /// Replace the node's certificate and key.
    #[arg(long)]
    renew: bool,
}

/// `pki show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    dir: DirArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn days() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=36_500)
}

/// Runs one of them.
pub(crate) fn run(command: &PkiCommand) -> Result<Exit> {
    match command {
        PkiCommand::Init(args) => init(args),
        PkiCommand::Issue(args) => issue(args),
        PkiCommand::Show(args) => show(args),
    }
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(output_failed)
}

fn init(args: &InitArgs) -> Result<Exit> {
    let dir = &args.dir.dir;
    pki::init(dir, &args.cluster, args.days)?;
    let at = escaped(dir);
    print(&format!(
        "made {at}/ca.pem, which every node gets, and {at}/ca.key\n\
         keep ca.key here and safe: whoever has it can be any node\n\
         next, for each node: syncagent pki issue NODE{}",
        if dir == Path::new("/etc/syncagent/pki") { String::new() } else { format!(" --dir {at}") }
    ))?;
    Ok(Exit::Done)
}

fn issue(args: &IssueArgs) -> Result<Exit> {
    let IssueArgs { node, dir, names, ips, days, renew } = args;
    let issued = pki::issue(&dir.dir, &Request { node, names, ips, days: *days, renew: *renew })?;
    print(&if *renew { renewed(node, &issued) } else { instructions(node, &issued) })?;
    Ok(Exit::Done)
}

/// What to copy where, once more.
fn renewed(node: &NodeId, issued: &NodeFiles) -> String {
    let why = if issued.shortened { ", when the CA ends" } else { "" };
    format!(
        "issued {node} again, valid until {}{why}; the key is a new one, too\n\
         copy both to {node}, in place of the old ones:\n  \
           {} as {ON_NODES}/{node}.pem\n  \
           {} as {ON_NODES}/{node}.key (secret: mode 0600, owned by syncagent's user)\n\
         then, there: systemctl reload syncagent",
        date(issued.not_after),
        escaped(&issued.cert),
        escaped(&issued.key),
    )
}

/// What to copy where, and a configuration to write.
fn instructions(node: &NodeId, issued: &NodeFiles) -> String {
    let NodeFiles { cert, key, ca, not_after, shortened, cluster } = issued;
    let why = if *shortened { ", when the CA ends" } else { "" };
    // of a foreign CA nobody knows whose it is
    let cluster = cluster.as_deref().unwrap_or("cluster");
    // the CA's name may be any text, a configuration's may not
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let cluster: String = cluster.chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
    format!(
        "issued {node}, valid until {}{why}\n\
         copy to {node}:\n  \
           {} as {ON_NODES}/{node}.pem\n  \
           {} as {ON_NODES}/{node}.key (secret: mode 0600, owned by syncagent's user)\n  \
           {} as {ON_NODES}/ca.pem\n\
         and write in its {ON_NODES}/syncagent.toml:\n\n\
         [node]\n\
         id = \"{node}\"\n\n\
         [cluster]\n\
         name = \"{cluster}\"\n\n\
         [tls]\n\
         cert = \"{ON_NODES}/{node}.pem\"\n\
         key = \"{ON_NODES}/{node}.key\"\n\
         ca = \"{ON_NODES}/ca.pem\"\n\n\
         {TREES}",
        date(*not_after),
        escaped(cert),
        escaped(key),
        escaped(ca),
    )
}

/// What a configuration needs besides, as comments: what a node is for is not known here.
const TREES: &str = "\
# On the node whose directory is written to (the source), without the leading `# `:

# [listen]
# data = \"0.0.0.0:7420\"            # the mirrors read here
# [tree.deploy]
# path = \"/srv/deploy\"
# role = \"source\"
# allow = [\"*\"]                    # every node of this CA; or their ids

# On each node that follows it (a mirror); put the source's id for SOURCE:

# [tree.deploy]
# path = \"/srv/deploy\"
# role = \"mirror\"
# source = \"https://SOURCE:7420\"   # host name or address
# source-id = \"SOURCE\"             # the id in its certificate

# Then: syncagent config check
# and, for the service of systemd, which can write no tree otherwise:
#   mkdir -p /etc/systemd/system/syncagent.service.d
#   syncagent config systemd > /etc/systemd/system/syncagent.service.d/trees.conf
#   systemctl daemon-reload && systemctl restart syncagent";

fn show(args: &ShowArgs) -> Result<Exit> {
    let (shown, errors) = pki::show(&args.dir.dir)?;
    let now = jiff::Timestamp::now().as_second();
    if args.json {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let list: Vec<Value> = shown.iter().map(|c| object(c, now)).collect();
        print(&json!({ "certificates": list, "errors": errors }).to_string())?;
    } else {
        let texts: Vec<String> = shown.iter().map(|c| text(c, now)).collect();
        print(&texts.join("\n"))?;
    }
    for e in &errors {
        tracing::warn!("{e}");
    }
    Ok(if errors.is_empty() { Exit::Done } else { Exit::Partial })
}

/// `valid`, `expired` or `not-yet-valid`, and how long still (or since, or until).
fn state(v: &Validity, now: i64) -> (&'static str, i64) {
    match now {
        now if now > v.not_after => ("expired", now - v.not_after),
        now if now < v.not_before => ("not-yet-valid", v.not_before - now),
        now => ("valid", v.not_after - now),
    }
}

fn ids(c: &Shown) -> Vec<&str> {
    c.ids.iter().map(NodeId::as_str).collect()
}

fn object(c: &Shown, now: i64) -> Value {
    let v = c.validity.as_ref();
    json!({
        "file": c.file, "ca": c.file == "ca.pem", "name": c.ca, "ids": ids(c), "sha256": c.sha256,
        "not_before": v.map(|v| date(v.not_before)), "not_after": v.map(|v| date(v.not_after)),
        "days_left": v.map(|v| (v.not_after - now).div_euclid(86_400)), "state": v.map(|v| state(v, now).0),
    })
}

fn text(c: &Shown, now: i64) -> String {
    let who = match &c.ca {
        Some(name) => format!("the CA \"{name}\""),
        None if c.file == "ca.pem" => "the CA".into(),
        None => ids(c).join(", "),
    };
    let valid = c.validity.as_ref().map_or_else(
        || "cannot be read".into(),
        |v| {
            let (state, seconds) = state(v, now);
            let span = rough_time(seconds.unsigned_abs());
            let note = match state {
                "expired" => format!("EXPIRED {span} ago"),
                "valid" => format!("{span} left"),
                _ => format!("NOT YET VALID, in {span}"),
            };
            format!("{} to {}, {note}", date(v.not_before), date(v.not_after))
        },
    );
    format!("{}: {who}\n    valid    {valid}\n    sha-256  {}", c.file, c.sha256)
}

fn date(second: i64) -> String {
    jiff::Timestamp::from_second(second).map_or_else(|_| second.to_string(), |t| t.to_string())
}
