use std::time::Duration;

use super::tests::{MIRROR, SOURCE, config, one, problems, samples};
use super::*;

fn with(lines: &str) -> String {
    format!("{SOURCE}[[tree.t.refresh]]\n{lines}\n")
}

fn request(url: &str) -> Http {
    let text = with(&format!("http = {{ url = \"{url}\" }}"));
    let Action::Http(http) = config(&text).trees[0].refresh[0].action.clone() else { unreachable!() };
    *http
}

#[test]
fn what_a_refresh_does_not_say_has_the_documented_default() {
    for base in [SOURCE, MIRROR] {
        let text = format!("{base}[[tree.t.refresh]]\nexec = [\"/x\"]\nverify = {{ exec = [\"/y\"] }}\n");
        let verify = Verify {
            ask: Ask::Exec(vec!["/y".into()]),
            timeout: Duration::from_secs(10),
            within: Duration::from_secs(30),
            on_failure: OnFailure::Refresh,
            refreshes: 3,
        };
        let refresh = Refresh {
            name: "exec".into(),
            when: Vec::new(),
            action: Action::Exec(vec!["/x".into()]),
            timeout: Duration::from_secs(30),
            min_interval: Duration::ZERO,
            retry_max: Duration::from_secs(60),
            verify: Some(verify),
        };
        assert_eq!(config(&text).trees[0].refresh, [refresh]);
    }
    let http = request("http://Host/a");
    let url = Url { https: false, host: "host".into(), port: 80, target: "/a".into() };
    let expect = vec![Expect::Class(2)];
    let (headers, method) = (Vec::new(), "POST".to_owned());
    let full = Http { url, method, headers, body: None, expect, contains: None, ca: None, identity: None };
    assert_eq!(http, full);
}

#[test]
fn every_key_of_a_refresh_is_read_into_its_place() {
    let (_, text) = samples().into_iter().find(|(name, _)| name.ends_with("everything.toml")).unwrap();
    let refresh = config(&text).trees[2].refresh.clone();
    let names: Vec<&str> = refresh.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["carbon", "exec", "systemd", "signal", "second-signal", "touch"]);
    assert_eq!(refresh[0].when, ["*.car", "!/old/*.car"]);
    let Action::Http(http) = &refresh[0].action else { unreachable!() };
    assert_eq!(http.url.to_string(), "https://localhost:9443/{tree}/redeploy?g={generation}");
    let headers = [
        ("accept".to_owned(), Value::Literal("text/plain".into())),
        ("authorization".to_owned(), Value::File("/etc/auth".into())),
        ("x-key".to_owned(), Value::Credential("key".into())),
    ];
    assert_eq!((&http.method[..], &http.headers[..]), ("PUT", &headers[..]));
    assert_eq!((http.body.as_deref(), http.contains.as_deref()), (Some("{paths}\n"), Some("OK")));
    assert_eq!(http.expect, [Expect::Code(200), Expect::Class(3)]);
    assert_eq!(http.ca, Some("/etc/ca.pem".into()));
    assert_eq!(http.identity, Some(("/etc/c.pem".into(), "/etc/k.pem".into())));
    let seconds = Duration::from_secs;
    let spans = (refresh[0].timeout, refresh[0].min_interval, refresh[0].retry_max);
    assert_eq!(spans, (seconds(5), seconds(60), seconds(5)));
    let verify = refresh[0].verify.clone().unwrap();
    assert_eq!((verify.timeout, verify.within, verify.refreshes), (seconds(1), Duration::ZERO, 0));
    let Ask::Http(ask) = verify.ask else { unreachable!() };
    assert_eq!((&ask.method[..], ask.url.to_string()), ("GET", "http://[::1]:8280/v".to_owned()));
    assert_eq!(refresh[1].verify.as_ref().unwrap().on_failure, OnFailure::Rollback);
    assert_eq!(refresh[2].action, Action::Systemd { verb: Verb::Reload, unit: "wso2@a.service".into() });
    assert_eq!(refresh[2].verify.as_ref().unwrap().on_failure, OnFailure::Alert);
    let to = SignalTo::PidFile("/run/x.pid".into());
    assert_eq!(refresh[3].action, Action::Signal { signal: Signal::Hup, to });
    let to = SignalTo::Unit("x.service".into());
    assert_eq!(refresh[4].action, Action::Signal { signal: Signal::Usr1, to });
    assert_eq!(refresh[5].action, Action::Touch("/srv/touched".into()));
}

#[test]
fn every_problem_of_a_refresh_has_its_line() {
    let text = format!(
        "{SOURCE}[[tree.t.refresh]]
name = \"a b\"
wen = [\"x\"]
timeout = 0
http = {{ url = \"ftp://x\", methd = \"GET\" }}
[[tree.t.refresh]]
when = [
  \"a[\",
]
[[tree.t.refresh]]
systemd = {{ verb = \"kick\", unit = \"x\" }}
[tree.t.refresh.verify]
exec = []
[[tree.t.refresh]]
signal = {{ signal = \"KILL\" }}
verify = {{ }}
"
    );
    let expected = [
        "11 tree.t.refresh[1].name `a b` is not a name",
        "12 tree.t.refresh[1].wen there is no such key",
        "13 tree.t.refresh[1].timeout must be longer than 0",
        "14 tree.t.refresh[1].http.methd there is no such key",
        "14 tree.t.refresh[1].http.url `ftp://x` does not begin with",
        "15 tree.t.refresh[2] says nothing to do",
        "17 tree.t.refresh[2].when pattern `a[` is not",
        "20 tree.t.refresh[3].systemd.unit `x` is not the name of a unit",
        "20 tree.t.refresh[3].systemd.verb `kick` is not",
        "22 tree.t.refresh[3].verify.exec names no program",
        "24 tree.t.refresh[4].signal.pid-file is missing",
        "24 tree.t.refresh[4].signal.signal `KILL` is not",
        "25 tree.t.refresh[4].verify says not how to ask",
    ];
    let found = problems(&text);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}, not {expected}");
    }
}

#[test]
fn a_refresh_is_a_list_of_tables_with_one_action_each() {
    one(&format!("{SOURCE}[tree.t.refresh]\n"), &["tree.t.refresh", "write [[tree.t.refresh]]"]);
    one(&format!("{SOURCE}refresh = [1]\n"), &["tree.t.refresh: wants a table"]);
    one(&with("touch = \"/x\"\nexec = [\"/x\"]"), &["tree.t.refresh.touch", "there is exec already"]);
    one(&with("exec = [\"x\"]"), &["`x` is not an absolute path", "no shell"]);
    one(
        &with("touch = \"/x\"\n[[tree.t.refresh]]\ntouch = \"/y\""),
        &["tree.t.refresh[2].name", "another refresh is called `touch`"],
    );
    one(&with("exec = [\"/x\"]\ntim-out = 1"), &["did you mean `timeout`?"]);
    one(&with("exec = [\"/x\"]\nurl = 1"), &["it belongs in [tree.NAME.refresh.http]"]);
    one(&format!("{SOURCE}retry-max = 1\n"), &["it belongs in [[tree.NAME.refresh]]"]);
    let both = "exec = [\"/x\"]\nverify = { exec = [\"/y\"], on-failure = \"alert\", refreshes = 1 }";
    one(&with(both), &["warning: tree.t.refresh.verify.refreshes", "no effect"]);
}

#[test]
fn what_is_touched_is_no_part_of_the_tree() {
    one(&with("touch = \"/srv/t/a/b\""), &["tree.t.refresh.touch", "would be the next change"]);
    one(&with("touch = \"/srv/t\""), &["part of the tree"]);
    config(&with("touch = \"/srv/t/a/b\"").replace("allow", "exclude = [\"/a/\"]\nallow"));
    config(&with("touch = \"/srv/tt\""));
}

#[test]
fn an_address_is_read_or_refused() {
    for (text, shown) in [
        ("http://h", "http://h/"),
        ("https://H:443?x={generation}", "https://h/?x={generation}"),
        ("http://[::1]:8080/{tree}/{node}", "http://[::1]:8080/{tree}/{node}"),
        ("http://h:443/", "http://h:443/"),
    ] {
        assert_eq!(request(text).url.to_string(), shown);
    }
    for bad in [
        "",
        "h",
        "/x",
        "http://",
        "http://h:0/",
        "http://h:x/",
        "http://h:/",
        "http://{tree}/",
        "http://h/#a",
        "http://h/{paths}",
        "http://h/a b",
    ] {
        one(&with(&format!("http = {{ url = \"{bad}\" }}")), &["tree.t.refresh.http.url"]);
    }
    let secret = problems(&with("http = { url = \"https://admin:pa55word@h/\" }"));
    assert!(secret.len() == 1 && !secret[0].contains("pa55word"), "{secret:?}");
}

#[test]
fn a_secret_in_the_configuration_is_warned_of_and_never_shown() {
    let text =
        with("http = { url = \"http://h\", headers = { AUTHORIZATION = \"Bearer abc\", X-A = \"plain\" } }");
    one(&text, &["warning: tree.t.refresh.http.headers.AUTHORIZATION", "looks like a secret", "{ file"]);
    let c = Config::parse(&text).config.unwrap();
    let shown = c.to_toml();
    assert!(!shown.contains("abc") && shown.contains("(hidden)") && shown.contains("plain"), "{shown}");
    assert!(!format!("{c:?}").contains("abc"));
    let again = Config::parse(&shown);
    assert!(again.problems[0].to_string().contains("instead of a secret"), "{:?}", again.problems);
    assert_eq!(again.config, Some(c.without_secrets()));
    for bad in [
        "\"a\\nb\"",
        "1",
        "{ file = \"x\" }",
        "{ }",
        "{ file = \"/x\", credential = \"y\" }",
        "{ credential = \"../x\" }",
        "{ fil = \"/x\", credential = \"y\" }",
    ] {
        one(
            &with(&format!("http = {{ url = \"http://h\", headers = {{ Cookie = {bad} }} }}")),
            &["headers.Cookie"],
        );
    }
    for name in ["\"a b\"", "Content-Length"] {
        one(
            &with(&format!("http = {{ url = \"http://h\", headers = {{ {name} = \"x\" }} }}")),
            &["headers."],
        );
    }
}

#[test]
fn a_request_that_makes_no_sense_is_refused() {
    let http = |rest: &str| with(&format!("http = {{ url = \"http://h\", {rest} }}"));
    one(&http("ca = \"/x\""), &["http.ca", "is for https"]);
    one(&with("http = { url = \"https://h\", cert = \"/x\" }"), &["http.cert", "nothing without key"]);
    one(&http("expect = []"), &["http.expect"]);
    one(&http("expect = [200, 700]"), &["http.expect", "`700` is not a status"]);
    one(&http("expect = [\"6xx\"]"), &["http.expect", "`6xx`"]);
    one(&http("method = \"get\""), &["http.method", "upper case"]);
    one(&http("contains = \"\""), &["http.contains"]);
    one(&http("headers = { a = \"1\", A = \"2\" }"), &["headers.A", "there twice"]);
}

#[test]
fn a_source_cannot_be_told_to_go_back_by_itself() {
    let lines = "exec = [\"/x\"]\nverify = { exec = [\"/y\"], on-failure = \"rollback\" }";
    one(&with(lines), &["verify.on-failure", "role is source", "`syncagent rollback t`", "alert"]);
    config(&format!("{MIRROR}[[tree.t.refresh]]\n{lines}\n"));
}

#[test]
fn the_page_has_every_key_and_its_examples_are_sound() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/refresh.md");
    let page = std::fs::read_to_string(page).unwrap();
    for section in ["[tree.NAME.refresh]", "tree.NAME.refresh.http", "tree.NAME.refresh.verify"] {
        for key in raw::keys_of(section) {
            assert!(page.contains(&format!("`{key}`")), "docs/refresh.md says nothing of {key}");
        }
    }
    let mut examples = 0;
    for example in page.split("```toml\n").skip(1) {
        let example = example.split("```").next().unwrap();
        let tree = example.split("[[tree.").nth(1).unwrap().split('.').next().unwrap();
        let base = if example.contains("rollback") { MIRROR } else { SOURCE };
        let text = format!("{}\n{example}", base.replace("tree.t", &format!("tree.{tree}")));
        assert!(!config(&text).trees[0].refresh.is_empty());
        examples += 1;
    }
    assert!(examples >= 5);
}
