//! The effective configuration as TOML, in a fixed order, so that two nodes can be compared by `diff`.
//! Paths of key files are shown; the files are never opened.

use std::path::Path;

use toml::Value;

use super::refresh::{POLICIES, named};
use super::{
    Action, Activate, Allow, Ask, Config, DriftPolicy, Expect, Http, LogFormat, MirrorRole, OnFailure,
    Refresh, Role, SignalTo, SourceRole, Store, Tree, amount, refresh as refreshes,
};

struct Lines(String);

impl Lines {
    fn section(&mut self, name: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        self.0.push_str(&format!("{gap}[{name}]\n"));
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.push_str(&format!("{key} = {}\n", value.into()));
    }

    fn set_if(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

pub(super) fn to_toml(config: &Config) -> String {
    let mut out = Lines(String::new());
    out.set_if("state-dir", config.state_dir.as_deref().map(path));
    out.section("node");
    out.set("id", config.node.id.as_str());
    out.set_if("zone", config.node.zone.as_deref());
    out.section("listen");
    out.set_if("data", config.listen.data.as_ref().map(ToString::to_string));
    out.set("socket", path(&config.listen.socket));
    out.set_if("public", config.listen.public.map(|a| a.to_string()));
    out.set_if("agent-check", config.listen.agent_check.map(|a| a.to_string()));
    if let Some(tls) = &config.tls {
        out.section("tls");
        out.set("cert", path(&tls.cert));
        out.set("key", path(&tls.key));
        out.set("ca", path(&tls.ca));
    }
    out.section("cluster");
    out.set("name", config.cluster.name.as_str());
    let Store::Hub = config.cluster.store;
    out.set("store", "hub");
    out.section("log");
    let format = if config.log.format == LogFormat::Json { "json" } else { "text" };
    out.set("format", format);
    out.set("level", config.log.level.as_str());
    out.section("health");
    let words = config.health.drain_on.iter().map(|fault| fault.word().to_owned());
    out.set("drain-on", words.collect::<Vec<_>>());
    out.set("refresh-failures", i64::try_from(config.health.refresh_failures).unwrap_or(i64::MAX));
    out.set("startup-grace", amount::duration_text(config.health.startup_grace));
    for t in &config.trees {
        tree(&mut out, t);
    }
    out.0
}

fn tree(out: &mut Lines, tree: &Tree) {
    // a name may have dots, which outside of quotes part keys
    let quoted = tree.name.contains('.');
    let name = if quoted { format!("tree.\"{}\"", tree.name) } else { format!("tree.{}", tree.name) };
    out.section(&name);
    out.set("path", path(&tree.path));
    match &tree.role {
        Role::Source(role) => source(out, role),
        Role::Mirror(role) => mirror(out, role),
    }
    out.set("exclude", tree.exclude.clone());
    out.set("include", tree.include.clone());
    out.set_if("owner", tree.owner.as_deref());
    out.set("setid", tree.setid);
    out.set("max-delete", tree.max_delete.to_string());
    out.set("keep", i64::try_from(tree.keep).unwrap_or(i64::MAX));
    out.set("keep-bytes", amount::size_text(tree.keep_bytes));
    out.set_if("max-lag", tree.max_lag.map(amount::duration_text));
    out.set_if("max-contact-age", tree.max_contact_age.map(amount::duration_text));
    for one in &tree.refresh {
        out.section(&format!("[{name}.refresh]"));
        refresh(out, one);
    }
}

fn refresh(out: &mut Lines, refresh: &Refresh) {
    out.set("name", refresh.name.as_str());
    out.set("when", refresh.when.clone());
    let action = match &refresh.action {
        Action::Http(request) => http(request),
        Action::Exec(argv) => argv.clone().into(),
        Action::Systemd { verb, unit } => {
            table([("verb", verb.as_str().into()), ("unit", unit.clone().into())])
        }
        Action::Signal { signal, to } => {
            let to = match to {
                SignalTo::PidFile(file) => ("pid-file", path(file).into()),
                SignalTo::Unit(unit) => ("unit", unit.clone().into()),
            };
            table([("signal", signal.as_str().into()), to])
        }
        Action::Touch(file) => path(file).into(),
    };
    out.set(refresh.action.kind(), action);
    out.set("timeout", amount::duration_text(refresh.timeout));
    out.set("min-interval", amount::duration_text(refresh.min_interval));
    out.set("retry-max", amount::duration_text(refresh.retry_max));
    let Some(verify) = &refresh.verify else { return };
    let ask = match &verify.ask {
        Ask::Http(request) => ("http", http(request)),
        Ask::Exec(argv) => ("exec", argv.clone().into()),
    };
    let mut fields = vec![
        ask,
        ("timeout", amount::duration_text(verify.timeout).into()),
        ("within", amount::duration_text(verify.within).into()),
        ("on-failure", named(&POLICIES, verify.on_failure).into()),
    ];
    if verify.on_failure == OnFailure::Refresh {
        fields.push(("refreshes", Value::Integer(i64::try_from(verify.refreshes).unwrap_or(i64::MAX))));
    }
    out.set("verify", table(fields));
}

fn http(request: &Http) -> Value {
    let header = |(name, value): &(String, refreshes::Value)| {
        let value = match value {
            refreshes::Value::Literal(text) => text.clone().into(),
            refreshes::Value::File(file) => table([("file", path(file).into())]),
            refreshes::Value::Credential(name) => table([("credential", name.clone().into())]),
        };
        (name.clone(), value)
    };
    let expect = |expect: &Expect| match expect {
        Expect::Code(code) => Value::Integer((*code).into()),
        class => class.to_string().into(),
    };
    let mut fields = vec![("url", request.url.to_string().into()), ("method", request.method.clone().into())];
    fields.push(("headers", Value::Table(request.headers.iter().map(header).collect())));
    fields.push(("expect", Value::Array(request.expect.iter().map(expect).collect())));
    let optional = [
        ("body", request.body.clone()),
        ("contains", request.contains.clone()),
        ("ca", request.ca.as_deref().map(path)),
        ("cert", request.identity.as_ref().map(|(cert, _)| path(cert))),
        ("key", request.identity.as_ref().map(|(_, key)| path(key))),
    ];
    fields.extend(optional.into_iter().filter_map(|(key, value)| Some((key, value?.into()))));
    table(fields)
}

/// A table in one line.
fn table(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    Value::Table(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

fn source(out: &mut Lines, role: &SourceRole) {
    out.set("role", "source");
    let allow = match &role.allow {
        Allow::Any => vec!["*".to_owned()],
        Allow::Nodes(nodes) => nodes.iter().map(ToString::to_string).collect(),
    };
    out.set("allow", allow);
    out.set("settle", amount::duration_text(role.settle));
    out.set("settle-max", amount::duration_text(role.settle_max));
    out.set_if(
        "hold-file",
        role.hold_file.as_ref().map(|f| String::from_utf8_lossy(f.as_bytes()).into_owned()),
    );
    out.set("scan-interval", amount::duration_text(role.scan_interval));
}

fn mirror(out: &mut Lines, role: &MirrorRole) {
    out.set("role", "mirror");
    out.set("source", role.upstream.to_string());
    out.set_if("source-id", role.source_id.as_ref().map(|id| id.as_str()));
    out.set("activate", if role.activate == Activate::Swap { "swap" } else { "in-place" });
    out.set_if("staging", role.staging.as_deref().map(path));
    // it is always empty with swap, where it would be warned of
    out.set_if("order", (role.activate == Activate::InPlace).then(|| role.order.clone()));
    out.set("drift", if role.drift == DriftPolicy::Report { "report" } else { "overwrite" });
    out.set("scan-interval", amount::duration_text(role.scan_interval));
    out.set("adopt", role.adopt);
}
