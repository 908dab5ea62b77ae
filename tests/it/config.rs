//! `syncagent config`: what is said where, and the exit codes.

use std::path::Path;

use crate::support::{Ran, Scratch, raw};

const PAIR: &str = "
[node]
id = \"a\"
[listen]
data = \"unix:/run/a.sock\"
[tree.t]
path = \"/srv/t\"
role = \"source\"
allow = [\"*\"]
";

fn config(s: &Scratch, action: &str, file: impl AsRef<Path>) -> Ran {
    s.command("config").arg(action).arg("--config").arg(s.path().join(file)).output().unwrap().into()
}

/// What is said but for directories that this host has not.
fn not_of_paths(ran: &Ran) -> Vec<&str> {
    ran.err.lines().filter(|line| !line.contains(".path: /")).collect()
}

#[test]
fn a_sound_configuration_is_counted() {
    let s = Scratch::new();
    std::fs::create_dir(s.path().join("t")).unwrap();
    s.write("one.toml", PAIR.replace("/srv/t", s.path().join("t").to_str().unwrap()));
    let ran = config(&s, "check", "one.toml").code(0);
    assert_eq!(ran.out, format!("{}: ok, 1 tree\n", s.path().join("one.toml").display()));
    assert_eq!(ran.err, "");
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/config/wso2-mirror.toml");
    let ran = config(&s, "check", &sample).code(0);
    assert!(ran.out.ends_with("wso2-mirror.toml: ok, 1 tree\n"), "{}", ran.out);
}

#[test]
fn a_tree_that_is_not_there_or_no_directory_is_a_warning() {
    let s = Scratch::new();
    let at = s.path().join("t");
    s.write("one.toml", PAIR.replace("/srv/t", at.to_str().unwrap()));
    let ran = config(&s, "check", "one.toml").code(0);
    let said = format!("one.toml: warning: tree.t.path: {} does not exist (make it before", at.display());
    assert!(ran.err.contains(&said) && ran.out.ends_with("ok, 1 tree\n"), "{ran:?}");
    s.write("t", "a file");
    let ran = config(&s, "check", "one.toml").code(0);
    assert!(ran.err.contains("tree.t.path: ") && ran.err.lines().count() == 1, "{ran:?}");
    // what only shows the configuration does not look at the disk
    assert_eq!(config(&s, "show", "one.toml").code(0).err, "");
}

#[test]
fn every_problem_is_a_line_with_file_line_and_key() {
    let s = Scratch::new();
    s.write("bad.toml", format!("{PAIR}setle = 1\nkeep = \"x\"\n").replace("id =", "ip ="));
    let file = s.path().join("bad.toml").display().to_string();
    for action in ["check", "show"] {
        let ran = config(&s, action, "bad.toml").code(2);
        assert_eq!(ran.out, "", "{action}");
        let expected = [
            format!(
                "{file}:2: error: node.id: is missing (the name that this node's certificate carries, such as \"app1\")"
            ),
            format!("{file}:3: error: node.ip: there is no such key (did you mean `id`?)"),
            format!("{file}:10: error: tree.t.setle: there is no such key (did you mean `settle`?)"),
            format!("{file}:11: error: tree.t.keep: wants a number, not text"),
        ];
        assert_eq!(ran.err.lines().collect::<Vec<_>>(), expected, "{action}");
    }
}

#[test]
fn a_warning_alone_is_no_failure() {
    let s = Scratch::new();
    s.write("warn.toml", format!("{PAIR}owner = \"nobody-of-that-name\"\n"));
    let ran = config(&s, "check", "warn.toml").code(0);
    assert!(ran.out.ends_with("ok, 1 tree\n"), "{}", ran.out);
    assert!(ran.err.contains("warn.toml: warning: tree.t.owner: there is no user"), "{}", ran.err);
}

#[test]
fn what_show_prints_is_a_configuration_that_shows_the_same() {
    let s = Scratch::new();
    s.write("one.toml", PAIR);
    let shown = config(&s, "show", "one.toml").code(0).out;
    assert!(shown.contains("settle = \"500ms\"\n"), "{shown}");
    s.write("two.toml", &shown);
    assert_eq!(config(&s, "show", "two.toml").code(0).out, shown);
}

#[test]
fn the_key_file_is_never_opened() {
    let s = Scratch::new();
    s.write("key.pem", "-----BEGIN PRIVATE KEY-----secret");
    let key = s.path().join("key.pem");
    s.write("tls.toml", format!("{PAIR}[tls]\ncert = \"/c\"\nca = \"/ca\"\nkey = \"{}\"\n", key.display()));
    let mut command = s.command("config");
    command.arg("show").arg("--config").arg(s.path().join("tls.toml"));
    let Some((opened, ran)) = s.content_opens(&command, s.path()) else {
        return;
    };
    assert!(ran.code(0).out.contains("key.pem"));
    assert!(opened.iter().any(|line| line.contains("tls.toml")), "{opened:?}");
    assert!(!opened.iter().any(|line| line.contains("key.pem")), "{opened:?}");
}

#[test]
fn the_example_is_sound() {
    let s = Scratch::new();
    let ran = Ran::from(s.command("config").arg("example").output().unwrap()).code(0);
    s.write("example.toml", &ran.out);
    let checked = config(&s, "check", "example.toml").code(0);
    assert!(checked.out.ends_with("ok, 2 trees\n"), "{}", checked.out);
    assert_eq!(not_of_paths(&checked), [""; 0]);
}

/// What `docs/operations.md` says to write on two nodes, with the refresh that it adds to both.
#[test]
fn the_configurations_of_the_operations_chapter_are_sound() {
    let s = Scratch::new();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let text = std::fs::read_to_string(file).unwrap();
    let blocks: Vec<&str> = text.split("```toml\n").skip(1).map(|b| b.split("```").next().unwrap()).collect();
    let refresh = blocks.iter().find(|b| b.starts_with("[[tree.deploy.refresh]]")).unwrap();
    let nodes: Vec<&&str> = blocks.iter().filter(|b| b.starts_with("[node]")).collect();
    assert_eq!(nodes.len(), 2);
    for node in nodes {
        s.write("node.toml", format!("{node}\n{refresh}"));
        let checked = config(&s, "check", "node.toml").code(0);
        assert!(checked.out.ends_with("ok, 1 tree\n"), "{}{}", checked.out, checked.err);
        assert_eq!(not_of_paths(&checked), [""; 0]);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_of_configuration() {
    let s = Scratch::new();
    let ran = config(&s, "check", "missing.toml").code(2);
    assert!(ran.err.contains("missing.toml"), "{}", ran.err);
    assert!(ran.err.contains("No such file"), "{}", ran.err);
    assert!(ran.err.contains("syncagent config example"), "{}", ran.err);
    s.write("latin1.toml", b"[node]\nid = \"\xe9\"\n");
    assert!(config(&s, "show", "latin1.toml").code(2).err.contains("UTF-8"));
    config(&s, "check", raw(b"no\xffne\n.toml")).code(2);
}

#[test]
fn the_installed_documents_link_to_nothing_outside_of_them() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    for page in std::fs::read_dir(&docs).unwrap() {
        let path = page.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            let there = file.is_empty()
                || link.starts_with("http")
                || docs.join(file).is_file() && !file.contains('/');
            assert!(there, "{}: {link}", path.display());
        }
    }
}
