//! From `[[tree.NAME.refresh]]` to [`Refresh`]: everything that is wrong with one is noted.

use std::fmt;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, Uri};
use toml::de::DeValue;

use super::super::problem::{Complaint, wrong};
use super::super::raw::{Table, wants};
use super::super::value::{self, Read};
use super::super::{Role, Tree, amount};
use super::{
    Action, Ask, Expect, HIDDEN, Http, OnFailure, POLICIES, Refresh, SIGNALS, SignalTo, Url, VERBS, Value,
    Verify, is_secret,
};
use crate::model::TreePath;
use crate::plan::Verdict;

const TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(60);
const VERIFY_TIMEOUT: Duration = Duration::from_secs(10);
const WITHIN: Duration = Duration::from_secs(30);
const REFRESHES: u64 = 3;
const ACTIONS: [&str; 5] = ["http", "exec", "systemd", "signal", "touch"];

/// All refreshes of a tree.
pub(in crate::config) fn read(t: &Table<'_>) -> Option<Vec<Refresh>> {
    let tables = t.array_of_tables("refresh");
    let read: Vec<Option<Refresh>> = tables.iter().map(refresh).collect();
    for (i, one) in read.iter().enumerate() {
        let Some(one) = one else { continue };
        if read[..i].iter().flatten().any(|other| other.name == one.name) {
            let hint = "a name of its own, such as name = \"carbon\"";
            tables[i].error("name", wrong(format!("another refresh is called `{}`", one.name)).hint(hint));
        }
    }
    read.into_iter().collect()
}

fn refresh(t: &Table<'_>) -> Option<Refresh> {
    t.known("[tree.NAME.refresh]");
    let given: Vec<&str> = ACTIONS.into_iter().filter(|key| t.has(key)).collect();
    // each is looked at, so that all that is wrong shows at once
    let actions: Vec<Option<Action>> = given.iter().map(|key| action(t, key)).collect();
    match given[..] {
        [] => t.error("", wrong(format!("says nothing to do: one of {}", ACTIONS.join(", ")))),
        [_] => {}
        [first, second, ..] => {
            t.error(second, wrong(format!("there is {first} already")).hint("one [[…refresh]] for each"));
        }
    }
    let name = t.read("name", value::named);
    let when = t.list("when", value::exclude).unwrap_or_default();
    let timeout = t.read("timeout", amount::period).unwrap_or(TIMEOUT);
    let min_interval = t.read("min-interval", amount::duration).unwrap_or_default();
    let retry_max = t.read("retry-max", amount::period).unwrap_or(RETRY_MAX);
    let verify = if t.has("verify") { Some(verify(&t.section("verify"))) } else { None };
    let action = actions.into_iter().next()??;
    let name = name.unwrap_or_else(|| action.kind().to_owned());
    let verify = match verify {
        None => None,
        Some(verify) => Some(verify?),
    };
    Some(Refresh { name, when, action, timeout, min_interval, retry_max, verify })
}

fn action(t: &Table<'_>, key: &str) -> Option<Action> {
    match key {
        "http" => http(&t.section("http"), "POST").map(|http| Action::Http(Box::new(http))),
        "exec" => exec(t).map(Action::Exec),
        "systemd" => {
            let t = t.section("systemd");
            t.known("tree.NAME.refresh.systemd");
            let verb = t.need("verb", "\"reload\", \"restart\", \"start\" or \"stop\"", value::word(&VERBS));
            let unit = t.need("unit", "such as \"tomcat.service\"", unit);
            Some(Action::Systemd { verb: verb?, unit: unit? })
        }
        "signal" => send(&t.section("signal")),
        _ => t.read("touch", value::absolute).map(Action::Touch),
    }
}

fn send(t: &Table<'_>) -> Option<Action> {
    t.known("tree.NAME.refresh.signal");
    let read = |v: &DeValue<'_>| {
        let text = value::text(v)?;
        let plain = text.strip_prefix("SIG").unwrap_or(&text);
        value::word(&SIGNALS)(&DeValue::String(plain.into()))
    };
    let signal = t.need("signal", "such as \"HUP\"", read);
    let file = t.read("pid-file", value::absolute).map(SignalTo::PidFile);
    let of = t.read("unit", unit).map(SignalTo::Unit);
    match (t.has("pid-file"), t.has("unit")) {
        (true, true) => t.error("unit", wrong("there is a pid-file already").hint("choose one")),
        (false, false) => t.error("pid-file", wrong("is missing").hint("or unit: who gets the signal")),
        _ => {}
    }
    Some(Action::Signal { signal: signal?, to: file.or(of)? })
}

fn unit(v: &DeValue<'_>) -> Read<String> {
    let text = value::text(v)?;
    let known = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    let sound = text.len() <= 255 && text.bytes().all(known) && !text.starts_with(['-', '.']);
    if sound && text.rsplit_once('.').is_some_and(|(name, kind)| !name.is_empty() && !kind.is_empty()) {
        return Ok(text);
    }
    Err(wrong(format!("`{text}` is not the name of a unit")).hint("with its suffix: \"tomcat.service\""))
}

fn exec(t: &Table<'_>) -> Option<Vec<String>> {
    let argument = |text: &str| match text.contains('\0') {
        true => Err(wrong("an argument cannot hold a NUL")),
        false => Ok(text.to_owned()),
    };
    let argv = t.list("exec", argument)?;
    match argv.first() {
        Some(program) if program.starts_with('/') => Some(argv),
        first => {
            let what =
                first.map_or("names no program".to_owned(), |p| format!("`{p}` is not an absolute path"));
            t.error(
                "exec",
                wrong(what).hint("[\"/usr/local/bin/redeploy\", \"argument\"]; there is no shell"),
            );
            None
        }
    }
}

fn verify(t: &Table<'_>) -> Option<Verify> {
    t.known("tree.NAME.refresh.verify");
    let http = t.has("http").then(|| http(&t.section("http"), "GET"));
    let exec = t.has("exec").then(|| exec(t));
    match (&http, &exec) {
        (Some(_), Some(_)) => t.error("exec", wrong("there is http already").hint("choose one")),
        (None, None) => t.error("", wrong("says not how to ask: http or exec")),
        _ => {}
    }
    let timeout = t.read("timeout", amount::period).unwrap_or(VERIFY_TIMEOUT);
    let within = t.read("within", amount::duration).unwrap_or(WITHIN);
    let on_failure = t.read("on-failure", value::word(&POLICIES)).unwrap_or_default();
    let refreshes = t.read("refreshes", value::count).unwrap_or(REFRESHES);
    if on_failure != OnFailure::Refresh && t.has("refreshes") {
        t.warning("refreshes", wrong("has no effect without on-failure = \"refresh\""));
    }
    let ask = http.flatten().map(|http| Ask::Http(Box::new(http))).or_else(|| exec.flatten().map(Ask::Exec));
    // as it is shown, where it has an effect only
    let refreshes = if on_failure == OnFailure::Refresh { refreshes } else { REFRESHES };
    Some(Verify { ask: ask?, timeout, within, on_failure, refreshes })
}

fn http(t: &Table<'_>, method: &str) -> Option<Http> {
    t.known("tree.NAME.refresh.http");
    let address = t.need("url", "such as \"http://localhost:8080/refresh\"", url);
    let method = t.read("method", verb).unwrap_or_else(|| method.to_owned());
    let headers = if t.has("headers") { headers(&t.section("headers")) } else { Some(Vec::new()) };
    let body = t.read("body", value::text);
    let expect = match t.has("expect") {
        true => t.elements("expect", expect),
        false => Some(vec![Expect::Class(2)]),
    };
    if expect.as_ref().is_some_and(Vec::is_empty) {
        t.error("expect", wrong("no answer would be a good one").hint("leave it out for [\"2xx\"]"));
    }
    let contains = t.read("contains", |v| match value::text(v)? {
        text if text.is_empty() => Err(wrong("is empty: every answer contains that")),
        text => Ok(text),
    });
    let ca = t.read("ca", value::absolute);
    let (cert, key) = (t.read("cert", value::absolute), t.read("key", value::absolute));
    for (one, other) in [("cert", "key"), ("key", "cert")] {
        if t.has(one) && !t.has(other) {
            t.error(one, wrong(format!("is nothing without {other}")));
        }
    }
    for key in ["ca", "cert", "key"] {
        if t.has(key) && address.as_ref().is_some_and(|url| !url.https) {
            t.error(key, wrong("is for https, and the url begins with http:"));
        }
    }
    let identity = cert.zip(key);
    Some(Http { url: address?, method, headers: headers?, body, expect: expect?, contains, ca, identity })
}

fn verb(v: &DeValue<'_>) -> Read<String> {
    let text = value::text(v)?;
    let sound = Method::from_bytes(text.as_bytes()).is_ok() && text.bytes().all(|b| b.is_ascii_uppercase());
    if sound && text != "CONNECT" {
        return Ok(text);
    }
    Err(wrong(format!("`{text}` is not a method")).hint("in upper case: \"POST\", \"GET\", \"PUT\""))
}

fn url(v: &DeValue<'_>) -> Read<Url> {
    let text = value::text(v)?;
    let bad = |why: &str| wrong(format!("`{text}` {why}")).hint("http://host:port/path or https://…");
    // the secret would be in this message, too
    let userinfo = text.split_once("://").and_then(|(_, rest)| rest.split(['/', '?', '#']).next());
    if userinfo.is_some_and(|authority| authority.contains('@')) {
        let hint = "headers = { Authorization = { file = \"/path\" } }";
        return Err(wrong("has a user or a password in it, where they would be logged").hint(hint));
    }
    if text.contains("{paths") {
        return Err(bad("has the changed paths in it; they belong in the body"));
    }
    if text.contains('#') {
        return Err(bad("has a `#` in it, which no server gets to see"));
    }
    // what is filled in has letters that may stand in an address
    let filled = ["{tree}", "{generation}", "{node}"].iter().fold(text.clone(), |t, key| t.replace(key, "x"));
    let uri: Uri = filled.parse().map_err(|_| bad("is not an address"))?;
    let https = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(bad("does not begin with http:// or https://")),
    };
    let authority = text.split_once("://").map(|(_, rest)| rest.split(['/', '?']).next().unwrap_or(rest));
    let authority = authority.unwrap_or_default();
    let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16());
    let named_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    if host.is_empty() || authority.contains('{') || (named_port && port.is_none_or(|port| port == 0)) {
        return Err(bad("has no host, or no sound port"));
    }
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let rest = text.split_once("://").map_or("", |(_, rest)| &rest[authority.len()..]);
    let target = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    Ok(Url { https, host, port: port.unwrap_or(if https { 443 } else { 80 }), target })
}

fn expect(v: &DeValue<'_>) -> Read<Expect> {
    let bad = |text: &dyn fmt::Display| wrong(format!("`{text}` is not a status")).hint("[200, \"2xx\"]");
    match v {
        DeValue::Integer(number) => match value::count(v)? {
            code @ 100..=599 => Ok(Expect::Code(u16::try_from(code).unwrap_or(0))),
            _ => Err(bad(number)),
        },
        DeValue::String(text) => match text.as_bytes() {
            [class @ b'1'..=b'5', b'x', b'x'] => Ok(Expect::Class(u16::from(class - b'0'))),
            _ => Err(bad(text)),
        },
        _ => Err(wants("a list of statuses", v).hint("[200, \"2xx\"]")),
    }
}

fn headers(t: &Table<'_>) -> Option<Vec<(String, Value)>> {
    let mut read: Vec<(String, Value)> = Vec::new();
    let mut sound = true;
    for name in t.keys() {
        let one = header(t, name);
        let lower = name.to_ascii_lowercase();
        if read.iter().any(|(other, _)| *other == lower) {
            t.error(name, wrong("is there twice: the names of headers are the same in any case"));
        }
        sound &= one.is_some();
        read.extend(one.map(|value| (lower, value)));
    }
    read.sort_by(|a, b| a.0.cmp(&b.0));
    sound.then_some(read)
}

fn header(t: &Table<'_>, name: &str) -> Option<Value> {
    let lower = name.to_ascii_lowercase();
    if HeaderName::from_bytes(lower.as_bytes()).is_err() {
        t.error(name, wrong("is not the name of a header"));
        return None;
    }
    if ["content-length", "transfer-encoding", "connection", "upgrade", "expect", "te"].contains(&&*lower) {
        t.error(name, wrong("is set by the program"));
        return None;
    }
    let literal = |v: &DeValue<'_>| -> Read<Option<String>> {
        match v {
            DeValue::Table(_) => Ok(None),
            _ => {
                let hint = "text, or { file = \"/path\" } or { credential = \"name\" }";
                let text = value::text(v).map_err(|e: Complaint| e.hint(hint))?;
                // a bad value is not quoted, for it may be a secret
                HeaderValue::from_str(&text).map_err(|_| wrong("cannot be the value of a header"))?;
                Ok(Some(text))
            }
        }
    };
    if let Some(text) = t.read(name, literal)? {
        if is_secret(&lower) {
            let what = if text == HIDDEN {
                "is what `config show` writes instead of a secret, not the secret"
            } else {
                "looks like a secret, and everybody who may read the configuration may read it"
            };
            t.warning(name, wrong(what).hint("{ file = \"/path\" } or { credential = \"name\" }"));
        }
        return Some(Value::Literal(text));
    }
    let t = t.section(name);
    t.known("tree.NAME.refresh.http.headers.NAME");
    let file = t.read("file", value::absolute).map(Value::File);
    let credential = |v: &DeValue<'_>| {
        let text = value::text(v)?;
        let known = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let sound =
            !text.is_empty() && text.len() <= 255 && text.bytes().all(known) && !text.starts_with('.');
        if sound { Ok(text) } else { Err(wrong("is not the name of a credential")) }
    };
    let credential = t.read("credential", credential).map(Value::Credential);
    if t.has("file") == t.has("credential") {
        t.error("", wrong("wants either a file or a credential"));
        return None;
    }
    file.or(credential)
}

/// A source has nothing to go back to by itself: it would publish that for everybody.
pub(in crate::config) fn suits(t: &Table<'_>, tree: &Tree) {
    if matches!(tree.role, Role::Mirror(_)) {
        return;
    }
    for (table, refresh) in t.array_of_tables("refresh").iter().zip(&tree.refresh) {
        if refresh.verify.as_ref().is_some_and(|verify| verify.on_failure == OnFailure::Rollback) {
            let what = "\"rollback\" is for mirrors, and this tree's role is source: going back here would change every node";
            let hint = format!("\"alert\", and `syncagent rollback {}` by hand", tree.name);
            table.section("verify").error("on-failure", wrong(what).hint(hint));
        }
    }
}

/// What is touched must not be part of the tree: each refresh would be the next change.
pub(in crate::config) fn outside(t: &Table<'_>, tree: &Tree) {
    for (table, refresh) in t.array_of_tables("refresh").iter().zip(&tree.refresh) {
        let Action::Touch(path) = &refresh.action else { continue };
        let Ok(inside) = path.strip_prefix(&tree.path) else { continue };
        let part = TreePath::new(std::os::unix::ffi::OsStrExt::as_bytes(inside.as_os_str()));
        let excluded = |part: &TreePath| match tree.filter() {
            Ok(filter) => matches!(filter.explain(part, false), Verdict::ExcludedBy(_)),
            Err(_) => true,
        };
        if part.is_ok_and(|part| part.is_root() || !excluded(&part)) {
            let what =
                format!("`{}` is part of the tree: touching it would be the next change", path.display());
            table.error("touch", wrong(what).hint("a file outside of it, or one that `exclude` names"));
        }
    }
}
