//! Properties of every text and of every configuration.

use proptest::prelude::*;

use super::tests::{SOURCE, config};
use super::*;

/// Lines of known and unknown keys with values of any kind, so that the checks are reached.
fn nearly() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "id",
        "zone",
        "data",
        "socket",
        "cert",
        "key",
        "ca",
        "name",
        "store",
        "format",
        "level",
        "path",
        "role",
        "exclude",
        "include",
        "owner",
        "setid",
        "max-delete",
        "keep",
        "keep-bytes",
        "max-lag",
        "public",
        "agent-check",
        "drain-on",
        "refresh-failures",
        "startup-grace",
        "allow",
        "settle",
        "settle-max",
        "hold-file",
        "source",
        "source-id",
        "activate",
        "staging",
        "order",
        "drift",
        "adopt",
        "scan-interval",
        "state-dir",
        "tree",
        "node",
        "what",
        "refresh",
        "http",
        "exec",
        "systemd",
        "signal",
        "touch",
        "verify",
        "when",
    ]);
    let text = prop_oneof![
        any::<String>(),
        "[a-z/:~!#*.\\[{ %0-9]{0,12}",
        prop::sample::select(vec![
            "/a",
            "/a/b",
            "unix:/a/s",
            "unix:/",
            "https://h",
            "https://[::1]:1",
            "[::]:1",
            "lag",
            "source",
            "mirror",
            "swap",
            "hub",
            "*",
            "10GiB",
            "25%",
            "1h 30m",
            "PT1H",
            "99999999999999d",
            "a:b",
            "info",
            "x=debug",
            "http://h/",
            "https://[::1]:9/{tree}",
        ])
        .prop_map(String::from),
    ];
    let text = text.prop_map(|t| toml::Value::String(t).to_string());
    let value = prop_oneof![
        4 => text.clone(),
        1 => any::<i64>().prop_map(|n| n.to_string()),
        1 => any::<bool>().prop_map(|b| b.to_string()),
        2 => prop::collection::vec(text, 0..3).prop_map(|list| format!("[{}]", list.join(", "))),
        1 => Just("1.5".to_owned()),
        1 => Just("{ a = 1 }".to_owned()),
        1 => Just("{ http = { url = \"http://h\", expect = [200], headers = { X-Token = \"s\" } } }".to_owned()),
        1 => Just("{ url = \"https://h/{paths-json}\", headers = { a = { file = \"/a\" } } }".to_owned()),
        1 => Just("{ signal = \"HUP\", unit = \"a.service\", verb = \"stop\" }".to_owned()),
        1 => Just("1979-05-27".to_owned()),
    ];
    let section = prop::sample::select(vec![
        "node",
        "listen",
        "tls",
        "cluster",
        "log",
        "health",
        "tree.a",
        "tree.b",
        "tree.\"c d\"",
        "[tree]",
        "tree",
        "x.y",
        "[tree.a.refresh]",
        "tree.a.refresh.verify",
    ]);
    let keys = || prop::collection::btree_map(key.clone(), value.clone(), 0..8);
    let sections = prop::collection::btree_map(section, keys(), 0..6);
    (keys(), sections).prop_map(|(top, sections)| {
        let lines = |keys: std::collections::BTreeMap<&str, String>| {
            keys.into_iter().map(|(k, v)| format!("{k} = {v}\n")).collect::<String>()
        };
        let sections: String =
            sections.into_iter().map(|(name, keys)| format!("[{name}]\n{}", lines(keys))).collect();
        format!("{}{sections}", lines(top))
    })
}

/// A configuration is there exactly when no problem is an error, and it survives being shown.
fn holds(text: &str) -> Result<(), TestCaseError> {
    let parsed = Config::parse(text);
    let sound = parsed.problems.iter().all(|p| p.severity == Severity::Warning);
    prop_assert_eq!(parsed.config.is_some(), sound);
    let lines = text.split('\n').count();
    for p in &parsed.problems {
        prop_assert!(p.line.is_none_or(|line| (1..=lines).contains(&line)));
        prop_assert!(!p.to_string().contains(char::is_control));
    }
    prop_assert!(parsed.problems.is_sorted_by_key(|p| p.line));
    if let Some(config) = parsed.config {
        let again = Config::parse(&config.to_toml());
        prop_assert_eq!(again.config, Some(config.without_secrets()));
    }
    Ok(())
}

/// A request of arbitrary values that are allowed; none of its headers is a secret.
fn request(https: bool) -> impl Strategy<Value = Http> {
    let value = prop_oneof![
        "[ -~]{0,12}".prop_map(|s| Value::Literal(s.trim().into())),
        "/[a-z]{1,9}".prop_map(|s| Value::File(s.into())),
        "[a-z]{1,9}".prop_map(Value::Credential),
    ];
    let expect = prop_oneof![(100..600u16).prop_map(Expect::Code), (1..6u16).prop_map(Expect::Class)];
    let headers = prop::collection::btree_map("x-[a-z]{1,5}", value, 0..3);
    let (expects, body) = (prop::collection::vec(expect, 1..3), prop::option::of(any::<String>()));
    let target = "/[a-z0-9/._~-]{0,9}(\\{generation\\})?(\\?[a-z0-9=&.{}]{0,9})?";
    ("[a-z][a-z0-9]{0,9}", 1..=u16::MAX, target, headers, expects, body, any::<bool>()).prop_map(
        move |(host, port, target, headers, expect, body, tls)| Http {
            url: Url { https, host, port, target },
            method: if tls { "PUT".into() } else { "GET".into() },
            headers: headers.into_iter().collect(),
            contains: body.clone().filter(|b| !b.is_empty()),
            body,
            expect,
            ca: (https && tls).then(|| "/etc/ca".into()),
            identity: (https && !tls).then(|| ("/etc/c".into(), "/etc/k".into())),
        },
    )
}

/// Refreshes of every kind.
fn refreshes() -> impl Strategy<Value = Vec<Refresh>> {
    let span = || (0..9_000u64, 0..1_000_000_000u32).prop_map(|(s, n)| Duration::new(s, n.max(1)));
    let argv = || {
        prop::collection::vec("[ -~ä\n]{0,9}", 0..3)
            .prop_map(|rest| std::iter::once("/bin/x y".to_owned()).chain(rest).collect::<Vec<_>>())
    };
    let action = prop_oneof![
        request(true).prop_map(|http| Action::Http(http.into())),
        argv().prop_map(Action::Exec),
        prop::sample::select(vec![Verb::Reload, Verb::Restart, Verb::Start, Verb::Stop])
            .prop_map(|verb| Action::Systemd { verb, unit: "a@b-c.service".into() }),
        Just(Action::Signal { signal: Signal::Usr2, to: SignalTo::PidFile("/run/a b".into()) }),
        Just(Action::Signal { signal: Signal::Hup, to: SignalTo::Unit("a.service".into()) }),
        Just(Action::Touch("/touched/\"here\"".into())),
    ];
    let policy = prop::sample::select(vec![OnFailure::Refresh, OnFailure::Alert, OnFailure::Rollback]);
    let ask = prop_oneof![request(false).prop_map(|http| Ask::Http(http.into())), argv().prop_map(Ask::Exec)];
    let verify = (ask, span(), span(), policy, 0..9u64).prop_map(|(ask, timeout, within, on_failure, n)| {
        let refreshes = if on_failure == OnFailure::Refresh { n } else { 3 };
        Verify { ask, timeout, within, on_failure, refreshes }
    });
    let one = (
        action,
        prop::collection::vec("[a-z*/!#]{0,5}[a-z]", 0..3),
        span(),
        span(),
        span(),
        prop::option::of(verify),
    );
    prop::collection::vec(one, 0..4).prop_map(|all| {
        let refresh = |(i, (action, when, timeout, min_interval, retry_max, verify))| {
            let name = format!("r{i}");
            Refresh { name, when, action, timeout, min_interval, retry_max, verify }
        };
        all.into_iter().enumerate().map(refresh).collect()
    })
}

/// A source and a mirror of arbitrary values that are allowed.
fn sound() -> impl Strategy<Value = Config> {
    let duration = || (0..31_000_000u64, 0..1_000_000_000u32).prop_map(|(s, n)| Duration::new(s, n.max(1)));
    let patterns = || {
        let fixed = prop::sample::select(vec!["[a-c]x", "{a,b}", "\\*", "a\ttab"]).prop_map(String::from);
        prop::collection::vec(prop_oneof!["[a-zä*?.'\"#/ -]{0,8}[a-z]", fixed], 0..4)
    };
    let name = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}";
    let limit = prop_oneof![
        any::<u32>().prop_map(|n| MaxDelete::Count(n.into())),
        (0.0..=100.0).prop_map(MaxDelete::Percent)
    ];
    let common =
        (name, name, patterns(), patterns(), limit, any::<i64>(), any::<u64>(), prop::option::of(duration()));
    let hold = prop::option::of("[a-z][ -.0-~]{0,8}[a-z]");
    let roles = (duration(), duration(), hold, prop::option::of("/stage[ -.0-~ä]{0,8}"), any::<[bool; 4]>());
    (common, roles, refreshes()).prop_map(|(c, (a, b, hold, staging, flags), refresh)| {
        let (one, two, exclude, include, max_delete, keep, keep_bytes, lag) = c;
        let mut config = config(SOURCE);
        let tree = Tree {
            name: format!("{one}1"),
            exclude,
            include,
            max_delete,
            keep: keep.unsigned_abs() >> 1,
            keep_bytes,
            max_lag: lag,
            setid: flags[0],
            refresh,
            ..config.trees[0].clone()
        };
        let source = SourceRole {
            allow: Allow::Nodes([NodeId::new("x").unwrap(), NodeId::new("y.z").unwrap()].into()),
            settle: a.min(b),
            settle_max: a.max(b),
            hold_file: hold.map(|h| TreePath::new(h.as_bytes()).unwrap()),
            scan_interval: a,
        };
        let mirror = MirrorRole {
            upstream: Upstream::Unix("/run/other.sock".into()),
            source_id: flags[1].then(|| NodeId::new("m").unwrap()),
            activate: if flags[2] { Activate::InPlace } else { Activate::Swap },
            staging: staging.filter(|_| flags[2]).map(|s| PathBuf::from(s).components().collect()),
            order: Vec::new(),
            drift: if flags[3] { DriftPolicy::Report } else { DriftPolicy::Overwrite },
            scan_interval: b,
            adopt: flags[3],
        };
        let second = Tree {
            name: format!("{two}2"),
            path: "/srv/second".into(),
            role: Role::Mirror(mirror),
            ..tree.clone()
        };
        let mut first = Tree { role: Role::Source(source), ..tree };
        for verify in first.refresh.iter_mut().filter_map(|refresh| refresh.verify.as_mut()) {
            // a source does not go back by itself
            if verify.on_failure == OnFailure::Rollback {
                verify.on_failure = OnFailure::Alert;
            }
        }
        config.trees = vec![first, second];
        config
    })
}

proptest! {
    #[test]
    fn any_text_gives_a_configuration_or_problems(text in any::<String>()) {
        holds(&text)?;
    }

    #[test]
    fn any_keys_and_values_give_a_configuration_or_problems(text in nearly()) {
        holds(&text)?;
    }

    #[test]
    fn what_is_shown_reads_back_as_it_was(config in sound()) {
        let shown = config.to_toml();
        let again = Config::parse(&shown);
        prop_assert_eq!(again.problems, []);
        prop_assert_eq!(again.config, Some(config), "{}", shown);
    }
}
