use std::path::Path;

use super::*;

pub(super) const SOURCE: &str = r#"
[node]
id = "a"
[listen]
data = "unix:/run/a.sock"
[tree.t]
path = "/srv/t"
role = "source"
allow = ["*"]
"#;

pub(super) const MIRROR: &str = r#"
[node]
id = "b"
[tree.t]
path = "/srv/t"
role = "mirror"
source = "unix:/run/a.sock"
"#;

/// `LINE KEY WHAT` of each problem, warnings with a `?` before.
pub(super) fn problems(text: &str) -> Vec<String> {
    let line = |p: &Problem| {
        let severity = if p.severity == Severity::Warning { "?" } else { "" };
        format!("{severity}{} {} {}", p.line.unwrap_or(0), p.key, p.what)
    };
    Config::parse(text).problems.iter().map(line).collect()
}

/// The text has exactly one problem, which contains all of `parts` in its printed form.
#[track_caller]
pub(super) fn one(text: &str, parts: &[&str]) {
    let parsed = Config::parse(text);
    let said: Vec<String> = parsed.problems.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 1, "{said:#?}");
    for part in parts {
        assert!(said[0].contains(part), "{} lacks {part}", said[0]);
    }
    assert_eq!(parsed.config.is_none(), said[0].starts_with("error: "), "{}", said[0]);
}

#[track_caller]
pub(super) fn config(text: &str) -> Config {
    let parsed = Config::parse(text);
    assert_eq!(parsed.problems, [], "{text}");
    parsed.config.unwrap()
}

pub(super) fn samples() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/config");
    let read = |e: std::io::Result<std::fs::DirEntry>| {
        let path = e.unwrap().path();
        (path.display().to_string(), std::fs::read_to_string(path).unwrap())
    };
    let mut samples: Vec<_> = std::fs::read_dir(dir).unwrap().map(read).collect();
    samples.push(("the example".into(), EXAMPLE.into()));
    samples
}

#[test]
fn every_sample_is_without_problems_and_survives_being_shown() {
    let samples = samples();
    assert!(samples.len() >= 6);
    for (name, text) in samples {
        let parsed = Config::parse(&text);
        assert_eq!(parsed.problems, [], "{name}");
        let config = parsed.config.unwrap();
        let shown = config.to_toml();
        let again = Config::parse(&shown);
        assert_eq!(again.problems, [], "{name}:\n{shown}");
        assert_eq!(again.config.as_ref(), Some(&config), "{name}:\n{shown}");
        assert_eq!(again.config.unwrap().to_toml(), shown);
    }
}

#[test]
fn what_the_example_has_commented_out_is_known_too() {
    let uncommented: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    assert!(uncommented.lines().filter(|l| !l.starts_with('#')).count() > 45);
    let full = config(&uncommented);
    let plain = config(EXAMPLE);
    // a comment says of each value whether it is the default or an example
    assert_eq!(full.log, plain.log);
    assert_eq!(full.cluster, plain.cluster);
    assert_eq!((&full.listen.data, &full.listen.socket), (&plain.listen.data, &plain.listen.socket));
    assert_eq!(full.health, plain.health);
    for (full, plain) in full.trees.iter().zip(&plain.trees) {
        assert_eq!(
            (full.keep, full.keep_bytes, full.max_delete),
            (plain.keep, plain.keep_bytes, plain.max_delete)
        );
    }
}

#[test]
fn what_is_not_said_has_the_documented_default() {
    let c = config(SOURCE);
    assert_eq!(c.node, Node { id: NodeId::new("a").unwrap(), zone: None });
    assert_eq!(c.listen.data, Some(Endpoint::Unix("/run/a.sock".into())));
    assert_eq!(c.listen.socket, Path::new("/run/syncagent/syncagent.sock"));
    assert_eq!((c.listen.public, c.listen.agent_check), (None, None));
    let own = [Fault::Lag, Fault::ContactAge, Fault::Failed, Fault::Refresh, Fault::Verify, Fault::Empty];
    let health = Health { drain_on: own.into(), refresh_failures: 3, startup_grace: Duration::from_secs(10) };
    assert_eq!(c.health, health);
    assert_eq!((c.tls, c.state_dir), (None, None));
    assert_eq!(c.cluster, Cluster { name: "default".into(), store: Store::Hub });
    assert_eq!(c.log, Log { format: LogFormat::Text, level: "info".into() });
    let role = SourceRole {
        allow: Allow::Any,
        settle: Duration::from_millis(500),
        settle_max: Duration::from_secs(30),
        hold_file: None,
        scan_interval: Duration::from_secs(600),
    };
    let tree = Tree {
        name: "t".into(),
        path: "/srv/t".into(),
        role: Role::Source(role),
        exclude: Vec::new(),
        include: Vec::new(),
        owner: None,
        setid: false,
        max_delete: MaxDelete::Percent(25.0),
        keep: 1,
        keep_bytes: 10 << 30,
        max_lag: None,
        max_contact_age: None,
        refresh: Vec::new(),
    };
    assert_eq!(c.trees, std::slice::from_ref(&tree));
    let role = MirrorRole {
        upstream: Upstream::Unix("/run/a.sock".into()),
        source_id: None,
        activate: Activate::InPlace,
        staging: None,
        order: Vec::new(),
        drift: DriftPolicy::Overwrite,
        scan_interval: Duration::from_secs(600),
        adopt: false,
    };
    assert_eq!(config(MIRROR).trees, [Tree { role: Role::Mirror(role), ..tree }]);
}

#[test]
fn every_key_is_read_into_its_place() {
    let (_, text) = samples().into_iter().find(|(name, _)| name.ends_with("everything.toml")).unwrap();
    let c = config(&text);
    assert_eq!(
        c.trees.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(),
        ["zz.configs-2026", "assets", "swapped"]
    );
    assert_eq!(c.listen.data, Some(Endpoint::Tcp("[::]:7444".parse().unwrap())));
    assert_eq!(c.listen.public, Some("[::]:7445".parse().unwrap()));
    assert_eq!(c.listen.agent_check, Some("127.0.0.1:7446".parse().unwrap()));
    let health = Health {
        drain_on: [Fault::Lag, Fault::Disconnected].into(),
        refresh_failures: 5,
        startup_grace: Duration::from_secs(60),
    };
    assert_eq!(c.health, health);
    let id = |s: &str| NodeId::new(s).unwrap();
    let role = SourceRole {
        allow: Allow::Nodes([id("app-1"), id("app-2")].into()),
        settle: Duration::ZERO,
        settle_max: Duration::from_secs(45),
        hold_file: Some(TreePath::new(b"deploy [now]/{hold}.lock").unwrap()),
        scan_interval: Duration::from_secs(5400),
    };
    assert_eq!(c.trees[0].role, Role::Source(role));
    let role = MirrorRole {
        upstream: Upstream::Https { host: "2001:db8::7".into(), port: 7444 },
        source_id: Some(id("app-1")),
        activate: Activate::InPlace,
        staging: Some("/srv/staging".into()),
        order: vec!["*.car".into(), "/last.txt".into()],
        drift: DriftPolicy::Report,
        scan_interval: Duration::from_secs(300),
        adopt: true,
    };
    let assets = Tree {
        name: "assets".into(),
        path: "/srv/assets".into(),
        role: Role::Mirror(role),
        exclude: vec!["/cache/".into()],
        include: vec!["/cache".into()],
        owner: Some("ignore".into()),
        setid: true,
        max_delete: MaxDelete::Percent(12.5),
        keep: 0,
        keep_bytes: 1_000_000,
        max_lag: Some(Duration::from_millis(120_500)),
        max_contact_age: Some(Duration::from_secs(3600)),
        refresh: Vec::new(),
    };
    assert_eq!(c.trees[1], assets);
}

#[test]
fn all_problems_come_at_once_in_the_order_of_their_lines() {
    let text = r#"colour = "red"
[node]
zon = "x"
[listen]
data = "0.0.0.0"
[log]
format = "xml"
level = 3
[tree.one]
path = "srv"
role = "source"
settle_max = "1s"
setid = "yes"
keep = -1
exclude = [
  "*.ok",
  "a[",
  7,
]
[tree.two]
role = "mirorr"
max-delete = "200%"
"#;
    let expected = [
        "1 colour there is no such key",
        "2 node.id is missing",
        "3 node.zon there is no such key",
        "5 listen.data `0.0.0.0` is not an address with a port, nor unix:/path",
        "7 log.format `xml` is not \"text\" or \"json\"",
        "8 log.level wants text in quotes, not integer",
        "9 tree.one.allow is missing",
        "10 tree.one.path `srv` is not an absolute path",
        "12 tree.one.settle_max there is no such key",
        "13 tree.one.setid wants true or false, not text",
        "14 tree.one.keep -1 is not a number from 0 to 9223372036854775807",
        "17 tree.one.exclude pattern `a[` is not in gitignore syntax",
        "18 tree.one.exclude wants a list of texts, not integer",
        "20 tree.two.path is missing",
        "21 tree.two.role `mirorr` is not \"source\" or \"mirror\"",
        "22 tree.two.max-delete `200%` is neither a number of files (100) nor a percentage (25%)",
    ];
    let found = problems(text);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}, not {expected}");
    }
}

#[test]
fn an_unknown_key_is_answered_with_the_one_that_was_meant() {
    let tree = |line: &str| format!("{SOURCE}{line}\n");
    one(&tree("setle = \"1s\""), &["tree.t.setle", "did you mean `settle`?"]);
    one(&tree("max_delete = 1"), &["did you mean `max-delete`?"]);
    one(&tree("zone = \"x\""), &["it belongs in [node]"]);
    one(&tree("state-dir = \"/x\""), &["tree.t.state-dir", "before the first [section]"]);
    one(&format!("settle = 1\n{SOURCE}"), &["error: settle: ", "it belongs in [tree.NAME]"]);
    one(&format!("{SOURCE}[trees.u]\n"), &["did you mean `tree`?"]);
    one(&tree("[tree.t.b]\npath = \"/x\""), &["tree.t.b", "needs quotes"]);
    one(&tree("\"\\u001b[31m\" = 1"), &["tree.t.\"\\x1b[31m\""]);
}

#[test]
fn a_text_that_is_not_toml_is_one_problem_with_its_line() {
    one("[node]\nid = app1\nzone = \n", &["error: this is not TOML"]);
    assert_eq!(Config::parse("[node]\nid = app1\n").problems[0].line, Some(2));
    assert_eq!(Config::parse("\n\n[node]\nid = \"a\"\nid = \"b\"\n").problems[0].line, Some(5));
    assert!(Config::parse(&"[".repeat(100_000)).config.is_none());
    assert!(Config::parse(&format!("a = {}", "[".repeat(100_000))).config.is_none());
}

#[test]
fn an_empty_file_says_what_it_needs() {
    assert_eq!(problems(""), ["0 node.id is missing", "0 tree there is no tree"]);
}

#[test]
fn sections_and_trees_must_be_tables() {
    let node = format!("node = 3\n{}", &MIRROR[MIRROR.find("[tree").unwrap()..]);
    assert_eq!(problems(&node), ["1 node wants a table, not integer", "1 node.id is missing"]);
    let list = MIRROR.replace("[tree.t]", "[[tree]]");
    assert_eq!(problems(&list), ["4 tree there is no tree", "4 tree wants a table, not array"]);
    let unnamed = problems(&MIRROR.replace("[tree.t]", "[tree]"));
    assert!(unnamed.contains(&"5 tree.path wants a table, not text".to_owned()), "{unnamed:#?}");
    one(&MIRROR.replace("tree.t", "tree.\"a b\""), &["tree.\"a b\"", "not a name"]);
}

#[test]
fn each_role_has_its_own_keys() {
    one(&format!("{MIRROR}settle = 1\n"), &["tree.t.settle", "is for a source"]);
    one(&format!("{SOURCE}drift = \"report\"\n"), &["tree.t.drift", "is for a mirror"]);
    one(&MIRROR.replace("source =", "#"), &["tree.t.source", "is missing"]);
    one(&SOURCE.replace("allow = [\"*\"]", ""), &["tree.t.allow", "is missing", "[\"*\"]"]);
    one(&SOURCE.replace("\"source\"", "\"shared\""), &["tree.t.role", "\"source\" or \"mirror\""]);
}

#[test]
fn allow_names_nodes_or_everybody() {
    let allow = |list: &str| SOURCE.replace("[\"*\"]", list);
    one(&allow("[]"), &["nobody could read"]);
    one(&allow("[\"*\", \"a\"]"), &["beside \"*\""]);
    one(&allow("\"*\""), &["wants a list, not text"]);
    one(&allow("[\"ok\", \"no/node\"]"), &["`no/node` is not a node id"]);
}

#[test]
fn tcp_goes_with_tls_only() {
    let tcp = SOURCE.replace("unix:/run/a.sock", "0.0.0.0:7420");
    one(&tcp, &["listen.data", "needs [tls]", "only a unix socket goes without"]);
    let tls = "[tls]\ncert = \"/c\"\nkey = \"/k\"\nca = \"/a\"\n";
    config(&format!("{tls}{tcp}"));
    one(&format!("[tls]\ncert = \"/c\"\nkey = \"/k\"\n{tcp}"), &["tls.ca", "is missing"]);
    one(&format!("{tls}{}", tcp.replace("7420", "0")), &["warning: listen.data", "port 0"]);
    let https = MIRROR.replace("unix:/run/a.sock", "https://a");
    assert_eq!(
        problems(&https),
        ["4 tree.t.source-id is missing", "7 tree.t.source https needs [tls], which is missing"]
    );
    config(&format!("{tls}{https}source-id = \"a\"\n"));
    config(&format!("{MIRROR}source-id = \"a\"\n"));
}

#[test]
fn a_source_must_be_reachable_and_a_mirror_is_not_its_own_source() {
    one(&SOURCE.replace("data =", "#"), &["listen.data", "the tree `t` is a source"]);
    one(&format!("{MIRROR}source-id = \"b\"\n"), &["tree.t.source-id", "this node's own id"]);
    let own = MIRROR.replace("[tree", "[listen]\ndata = \"unix:/run//a.sock\"\n[tree");
    one(&own, &["tree.t.source", "own socket"]);
    one(&SOURCE.replace("data", "socket = \"/run/a.sock\"\ndata"), &["listen.data", "listen.socket"]);
}

#[test]
fn trees_do_not_lie_in_each_other() {
    let two =
        |path: &str| format!("{SOURCE}[tree.u]\npath = \"{path}\"\nrole = \"source\"\nallow = [\"*\"]\n");
    one(&two("/srv/./t/"), &["tree.u.path", "`/srv/t` is also the path of the tree `t`, line 7"]);
    one(&two("/srv/t/u"), &["tree.u.path", "lies in"]);
    one(&two("/srv"), &["tree.u.path", "holds"]);
    one(&two("/"), &["tree.u.path", "root directory"]);
    one(&two("/srv/x/../t"), &["tree.u.path", "`..`"]);
    one(&two("~/t"), &["tree.u.path", "not an absolute path", "`~`"]);
    config(&two("/srv/t2"));
}

#[test]
fn what_the_agent_writes_lies_outside_of_trees() {
    one(&format!("state-dir = \"/srv/t/state\"\n{SOURCE}"), &["state-dir", "lies in the tree `t`"]);
    one(&format!("{MIRROR}staging = \"/srv/t/s\"\n"), &["tree.t.staging", "lies in the tree `t`"]);
    one(&SOURCE.replace("/run/a.sock", "/srv/t/a.sock"), &["listen.data", "lies in the tree `t`"]);
    let tls = "[tls]\ncert = \"/c\"\nkey = \"/srv/t/k\"\nca = \"/a\"\n";
    one(&format!("{tls}{SOURCE}"), &["tls.key", "would be copied"]);
}

#[test]
fn durations_are_not_0_where_that_means_nothing() {
    config(&format!("{SOURCE}settle = 0\n"));
    for key in ["settle-max", "scan-interval", "max-lag", "max-contact-age"] {
        let text = format!("{SOURCE}settle = 0\n{key} = \"0s\"\n");
        assert!(problems(&text).iter().any(|p| p.contains(key) && p.contains("longer than 0")), "{key}");
    }
    one(
        &format!("{SOURCE}settle = \"1min\"\n"),
        &["tree.t.settle:", "settle is 1m, and settle-max only 30s"],
    );
    one(&format!("{SOURCE}settle-max = \"100ms\"\n"), &["tree.t.settle-max:", "settle is 500ms"]);
    one(&format!("{SOURCE}scan-interval = \"9000h\"\n"), &["more than a year"]);
    one(&format!("{SOURCE}scan-interval = 1.5\n"), &["wants a duration", "not float"]);
    one(&format!("{SOURCE}settle = \"-1s\"\n"), &["negative"]);
}

#[test]
fn swap_has_neither_staging_nor_an_order() {
    let swap = format!("{MIRROR}activate = \"swap\"\n");
    one(&format!("{swap}staging = \"/x\"\n"), &["error: tree.t.staging", "beside the old one"]);
    one(&format!("{swap}order = [\"*.car\"]\n"), &["warning: tree.t.order", "no effect"]);
}

#[test]
fn only_the_hub_is_a_store() {
    one(
        &format!("{SOURCE}[cluster]\nstore = \"etcd\"\n"),
        &["cluster.store", "`etcd` is not \"hub\"", "no other store"],
    );
}

#[test]
fn patterns_that_would_do_nothing_are_named() {
    one(&format!("{SOURCE}include = [\"!x\"]\n"), &["tree.t.include", "begins with `!`"]);
    one(&format!("{SOURCE}exclude = [\" \"]\n"), &["tree.t.exclude", "not empty"]);
    one(&format!("{SOURCE}exclude = [\"a\\nb\"]\n"), &["tree.t.exclude", "one line"]);
    one(&format!("{MIRROR}order = [\"#x\"]\n"), &["tree.t.order", "begins with"]);
    one(&format!("{SOURCE}hold-file = \"/srv/t/hold\"\n"), &["tree.t.hold-file", "relative"]);
    for bad in ["", "../x", ".syncagent/x", "x ", "./x"] {
        one(&format!("{SOURCE}hold-file = \"{bad}\"\n"), &["tree.t.hold-file"]);
    }
}

#[test]
fn an_owner_is_a_policy_or_names() {
    for good in ["preserve", "ignore", "wso2", "wso2:wso2", ":wso2", "#1000:100"] {
        config(&format!("{SOURCE}owner = \"{good}\"\n"));
    }
    for bad in ["", ":", "a b", "a:b:c"] {
        one(&format!("{SOURCE}owner = \"{bad}\"\n"), &["tree.t.owner", "USER[:GROUP]"]);
    }
}

#[test]
fn includes_win_over_excludes_and_the_hold_file_over_both() {
    let text = "include = [\"#keep\", \"keep.log\", \"*.lock\"]\nexclude = [\"*.log\", \"#*\"]\n\
                hold-file = \"in/{a,b} [x]*!#.lock\"\n";
    let filter = config(&format!("{SOURCE}{text}")).trees[0].filter().unwrap();
    let root = TreePath::root();
    let dir = TreePath::new(b"in").unwrap();
    assert!(filter.excludes(&root, b"x.log", false));
    assert!(!filter.excludes(&root, b"keep.log", false));
    assert!(filter.excludes(&root, b"#auto", false));
    assert!(!filter.excludes(&root, b"#keep", false));
    assert!(filter.excludes(&dir, b"{a,b} [x]*!#.lock", false));
    assert!(!filter.excludes(&dir, b"a x.lock", false));
    assert!(!filter.excludes(&root, b"{a,b} [x]*!#.lock", false));
}

#[test]
fn what_is_wrong_with_health_and_the_public_port_is_named() {
    for (text, needles) in [
        ("[health]\ndrain-on = [\"lagg\"]\n", ["health.drain-on", "contact-age"]),
        ("[health]\nrefresh-failures = 0\n", ["health.refresh-failures", "at least 1"]),
        ("[health]\nstartup-grace = \"soon\"\n", ["health.startup-grace", "duration"]),
        ("[health]\ndrain_on = []\n", ["health.drain_on", "drain-on"]),
    ] {
        one(&format!("{SOURCE}{text}"), &needles);
    }
    let listen = |line: &str| SOURCE.replace("[listen]", &format!("[listen]\n{line}"));
    one(&listen("public = \"unix:/x\""), &["listen.public", "7421"]);
    one(
        &listen("public = \"[::]:7421\"\nagent-check = \"127.0.0.1:7421\""),
        &["listen.agent-check", "listen.public"],
    );
    assert!(config(&format!("{SOURCE}[health]\ndrain-on = []\n")).health.drain_on.is_empty());
}

#[test]
fn a_reload_names_what_it_cannot_take_over() {
    let old = config(SOURCE);
    assert_eq!(old.needs_restart(&old), Vec::<&str>::new());
    let mut new = config(&SOURCE.replace("settle", "").replace("/srv/t", "/srv/u"));
    assert_eq!(old.needs_restart(&new), Vec::<&str>::new());
    new.node = Node { id: NodeId::new("z").unwrap(), zone: Some("z".into()) };
    new.listen = Listen {
        data: None,
        socket: "/z".into(),
        public: Some("0.0.0.0:1".parse().unwrap()),
        agent_check: Some("0.0.0.0:2".parse().unwrap()),
    };
    new.cluster.name = "z".into();
    new.state_dir = Some("/z".into());
    new.log.format = LogFormat::Json;
    new.log.level = "debug".into();
    let all = [
        "node.id",
        "node.zone",
        "listen.data",
        "listen.socket",
        "listen.public",
        "listen.agent-check",
        "cluster.name",
        "state-dir",
        "log.format",
        "log.level",
    ];
    assert_eq!(old.needs_restart(&new), all);
}

#[test]
fn the_socket_is_found_in_a_text_that_is_wrong_elsewhere() {
    use std::path::Path;
    let of = |text: &str| socket_of(text);
    let sound = "[node]\nid = \"a\"\n[listen]\nsocket = \"/run/x.sock\"\n";
    for text in [
        sound.to_owned(),
        format!("{sound}bogus = 1\n"),
        format!("{sound}[tree.t\npath = /srv\n"),
        format!("what is this\n{sound}"),
        format!("{sound}[node]\nid = \"twice\"\n"),
    ] {
        assert_eq!(of(&text), Path::new("/run/x.sock"), "{text}");
    }
    for text in
        ["", "[listen]\n", "[listen]\nsocket = 7\n", "[listen]\nsocket = \"x.sock\"\n", "listen = 3", "\0"]
    {
        assert_eq!(of(text), Path::new(SOCKET), "{text}");
    }
}
