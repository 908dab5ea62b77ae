//! `pki`: a CA and node certificates, made and listed by the program.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::support::{Ran, Scratch};

fn pki(s: &Scratch, args: &[&str]) -> Ran {
    s.command("pki").args(args).arg("--dir").arg(s.path().join("pki")).output().unwrap().into()
}

fn mode(s: &Scratch, file: &str) -> u32 {
    s.path().join("pki").join(file).metadata().unwrap().permissions().mode() & 0o777
}

fn list(s: &Scratch) -> Value {
    serde_json::from_str(&pki(s, &["show", "--json"]).code(0).out).unwrap()
}

#[test]
fn a_ca_is_made_once_and_its_key_is_nobody_elses() {
    let s = Scratch::new();
    let made = pki(&s, &["init", "--cluster", "orders"]).code(0);
    assert!(made.out.contains("ca.key here and safe"), "{}", made.out);
    assert_eq!((mode(&s, "ca.pem"), mode(&s, "ca.key")), (0o644, 0o600));
    let before = s.read("pki/ca.pem");
    let again = pki(&s, &["init"]).code(2);
    assert!(again.err.contains("ca.pem is there already"), "{}", again.err);
    assert_eq!(s.read("pki/ca.pem"), before);
    assert_eq!(list(&s)["certificates"][0]["name"], "syncagent orders CA");
}

#[test]
fn a_certificate_is_issued_with_what_to_copy_and_to_write() {
    let s = Scratch::new();
    pki(&s, &["init"]).code(0);
    let args = ["issue", "App1", "--name", "app1.example.com", "--ip", "192.0.2.7", "--days", "30"];
    let ran = pki(&s, &args).code(0);
    let text = &ran.out[ran.out.find("[node]").unwrap()..];
    let config: toml::Table = toml::from_str(text).unwrap();
    assert_eq!(config["cluster"]["name"].as_str(), Some("cluster"));
    assert_eq!(config["node"]["id"].as_str(), Some("app1"));
    assert_eq!(config["tls"]["key"].as_str(), Some("/etc/syncagent/app1.key"));
    assert!(ran.out.contains(s.path().join("pki/app1.key").to_str().unwrap()), "{}", ran.out);
    assert_eq!((mode(&s, "app1.pem"), mode(&s, "app1.key")), (0o644, 0o600));

    let node = &list(&s)["certificates"][1];
    assert_eq!((&node["file"], &node["state"]), (&"app1.pem".into(), &"valid".into()));
    assert_eq!(node["ids"], serde_json::json!(["app1", "app1.example.com"]));
    let days = node["days_left"].as_i64().unwrap();
    assert!((29..=30).contains(&days), "30 days, moments ago: {days}");
}

#[test]
fn what_issue_prints_is_the_configuration_of_a_source_or_of_a_mirror() {
    let s = Scratch::new();
    pki(&s, &["init", "--cluster", "orders \"eu\""]).code(0);
    let ran = pki(&s, &["issue", "app1"]).code(0);
    let text = &ran.out[ran.out.find("[node]").unwrap()..];
    let blocks: Vec<&str> = text.split("\n\n").collect();
    let is_tree = |block: &&&str| block.contains("# [tree.");
    let common: Vec<&str> = blocks.iter().filter(|b| !is_tree(b)).copied().collect();
    let trees: Vec<&str> = blocks.iter().filter(is_tree).copied().collect();
    assert_eq!(trees.len(), 2, "{text}");
    for (role, tree) in ["source", "mirror"].iter().zip(trees) {
        assert!(tree.contains(role), "{tree}");
        let bare: Vec<&str> = tree.lines().map(|line| line.strip_prefix("# ").unwrap()).collect();
        let config = format!("{}\n\n{}\n", common.join("\n\n"), bare.join("\n")).replace("SOURCE", "app9");
        s.write("syncagent.toml", &config);
        let mut check = s.command("config");
        let ran = Ran::from(
            check.args(["check", "--config"]).arg(s.path().join("syncagent.toml")).output().unwrap(),
        );
        // this host has no such directory
        let only_of_the_path = ran.err.lines().all(|line| line.contains("tree.deploy.path: /"));
        assert!(ran.code == 0 && only_of_the_path, "{config}\n{ran:?}");
        let parsed: toml::Table = toml::from_str(&config).unwrap();
        assert_eq!(parsed["cluster"]["name"].as_str(), Some("orders--eu-"));
    }
}

#[test]
fn a_certificate_is_replaced_only_when_asked_for() {
    let s = Scratch::new();
    pki(&s, &["init"]).code(0);
    pki(&s, &["issue", "app1"]).code(0);
    let before = (s.read("pki/app1.pem"), s.read("pki/app1.key"));
    let ran = pki(&s, &["issue", "app1"]).code(2);
    assert!(ran.err.contains("--renew"), "{}", ran.err);
    assert_eq!((s.read("pki/app1.pem"), s.read("pki/app1.key")), before);
    let ran = pki(&s, &["issue", "app1", "--renew"]).code(0);
    assert!(ran.out.contains("systemctl reload syncagent") && !ran.out.contains("[node]"), "{}", ran.out);
    for copied in ["app1.pem as /etc/syncagent/app1.pem", "app1.key as /etc/syncagent/app1.key"] {
        assert!(ran.out.contains(copied), "{}", ran.out);
    }
    assert_ne!((s.read("pki/app1.pem"), s.read("pki/app1.key")), before);
}

#[test]
fn names_that_would_be_another_nodes_or_no_identity_are_refused() {
    let s = Scratch::new();
    let ran = pki(&s, &["issue", "app1"]).code(2);
    assert!(ran.err.contains("pki init"), "{}", ran.err);
    pki(&s, &["init"]).code(0);
    pki(&s, &["issue", "app1"]).code(0);
    let cases: [(&[&str], &str); 5] = [
        (&["issue", "ca"], "the CA's certificate"),
        (&["issue", "10"], "cannot stand in a certificate"),
        (&["issue", "../x"], "is not a node id"),
        (&["issue", "app2", "--name", "APP1"], "is another node"),
        (&["issue", "app2", "--name", "*.example.com"], "is not a DNS name"),
    ];
    for (args, why) in cases {
        let ran = pki(&s, args).code(2);
        assert!(ran.err.contains(why), "{args:?}: {}", ran.err);
    }
    assert!(!s.exists("pki/app2.pem") && !s.exists("pki/app2.key"));
}

#[test]
fn a_certificate_does_not_outlive_its_ca() {
    let s = Scratch::new();
    pki(&s, &["init", "--days", "7"]).code(0);
    let ran = pki(&s, &["issue", "app1", "--days", "30"]).code(0);
    assert!(ran.out.contains("when the CA ends"), "{}", ran.out);
    let days = list(&s)["certificates"][1]["days_left"].as_i64().unwrap();
    assert!((6..=7).contains(&days), "7 days, moments ago: {days}");
}

#[test]
fn show_marks_what_has_expired_or_is_damaged() {
    use syncagent::agent::pki::new_ca;
    use syncagent::model::NodeId;

    let s = Scratch::new();
    let ca = new_ca("orders", 10).unwrap();
    let issue = |node: &str, validity| ca.issue(&NodeId::new(node).unwrap(), &[], &[], validity).unwrap();
    s.write("pki/ca.pem", &ca.cert_pem);
    s.write("pki/fine.pem", issue("fine", (-60, 9 * 86_400 + 3_600)).cert_pem);
    s.write("pki/old.pem", issue("old", (-900_000, -3 * 86_400 - 60)).cert_pem);
    s.write("pki/early.pem", issue("early", (7_300, 900_000)).cert_pem);
    let ran = pki(&s, &["show"]).code(0);
    for line in [
        "ca.pem: the CA \"syncagent orders CA\"",
        "old.pem: old",
        "EXPIRED 3 days ago",
        "NOT YET VALID, in 2 hours",
        "9 days left",
    ] {
        assert!(ran.out.contains(line), "{line}: {}", ran.out);
    }
    let all = list(&s);
    let states: Vec<&str> =
        all["certificates"].as_array().unwrap().iter().map(|c| c["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["valid", "not-yet-valid", "valid", "expired"], "the CA first, then by name");

    s.write("pki/bad.pem", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
    let ran = pki(&s, &["show"]).code(3);
    assert!(ran.err.contains("bad.pem") && ran.out.contains("old.pem"), "{ran:?}");
}

#[test]
fn openssl_agrees_where_there_is_one() {
    let s = Scratch::new();
    pki(&s, &["init"]).code(0);
    pki(&s, &["issue", "app_1", "--ip", "2001:db8::7"]).code(0);
    let openssl = |args: &[&str]| {
        std::process::Command::new("openssl").args(args).current_dir(s.path().join("pki")).output().ok()
    };
    for purpose in ["sslserver", "sslclient"] {
        let args = ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.pem", "app_1.pem"];
        let Some(out) = openssl(&args) else {
            eprintln!("skipped: there is no openssl");
            return;
        };
        assert!(out.status.success(), "{out:?}");
    }
    let out = openssl(&["x509", "-in", "app_1.pem", "-noout", "-fingerprint", "-sha256"]).unwrap();
    let fingerprint = list(&s)["certificates"][1]["sha256"].as_str().unwrap().to_owned();
    assert!(String::from_utf8(out.stdout).unwrap().contains(&fingerprint));
}
