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
        1 => Just("1979-05-27".to_owned()),
    ];
    let section = prop::sample::select(vec![
        "node",
        "listen",
        "tls",
        "cluster",
        "log",
        "tree.a",
        "tree.b",
        "tree.\"c d\"",
        "[tree]",
        "tree",
        "x.y",
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
        prop_assert_eq!(again.config, Some(config));
    }
    Ok(())
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
    (common, roles).prop_map(|(c, (a, b, hold, staging, flags))| {
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
        config.trees = vec![Tree { role: Role::Source(source), ..tree }, second];
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
