//! The package's life.

use std::path::Path;
use std::process::Command;

use super::container::package;
use super::{FIRST, Nodes, OPEN, SECOND};
use crate::support::{Ran, Scratch, needs_root};

#[test]
fn from_the_first_installation_to_the_purge() {
    if !needs_root("a systemd of its own") {
        return;
    }
    let n = Nodes::new("life");
    let (a, b) = (&n.source, &n.mirror);

    // nothing is configured yet: that is no failure
    assert_eq!(a.sh("systemctl is-enabled syncagent"), "enabled");
    a.sh("systemctl start syncagent");
    assert_eq!((a.property("ActiveState"), a.property("ConditionResult")), ("inactive".into(), "no".into()));
    for path in [
        "man/man1/syncagent-config-systemd.1.gz",
        "bash-completion/completions/syncagent",
        "doc/syncagent/operations.md",
    ] {
        assert!(a.path("/usr/share").join(path).exists(), "{path}");
    }
    a.sh("syncagent config check --config /usr/share/doc/syncagent/examples/syncagent.toml");
    assert_eq!(a.sh("id -un $(stat -c %u /var/lib/syncagent 2>/dev/null || echo 0)"), "root");

    // without the drop-in the trees cannot be written, and the log says what to do
    n.configure(&[("t", "/srv/deploy", "/srv/deploy", "", "")]);
    a.write("/srv/deploy/app/one", "1");
    b.sh("mkdir -p /srv/deploy");
    a.sh("systemctl start syncagent");
    assert_eq!(a.property("ActiveState"), "active");
    a.until("the hint", || a.journal().contains("syncagent config systemd >"));
    n.open_and_start();
    n.converge("t");
    assert_eq!(a.digest("/srv/deploy"), b.digest("/srv/deploy"));
    a.until("the source's line", || a.property("StatusText") == "t: current 1.1, 1 mirror");
    b.until("the mirror's line", || b.property("StatusText") == "t: current 1.1, lag 0 s");

    // a reload takes over what changed, and one with errors fails and changes nothing
    a.sh("sed -i 's/settle = .*/settle = \"60ms\"\\nexclude = [\"*.log\"]/' /etc/syncagent/syncagent.toml");
    a.sh("systemctl reload syncagent");
    a.until("the reload", || a.journal().contains("took over the new configuration"));
    assert_eq!(a.property("ActiveState"), "active");
    a.sh("echo nonsense >> /etc/syncagent/syncagent.toml");
    assert_ne!(a.run(&["systemctl", "reload", "syncagent"]).code, 0);
    assert_eq!(a.property("ActiveState"), "active");
    a.sh("sed -i /nonsense/d /etc/syncagent/syncagent.toml");
    a.write("/srv/deploy/two.log", "excluded now");
    a.write("/srv/deploy/two", "2");
    b.until("two", || b.read("/srv/deploy/two") == b"2");
    assert!(!b.path("/srv/deploy/two.log").exists());

    // an upgrade restarts what runs with the new program, and leaves alone what does not run
    let before = b.property("MainPID");
    a.sh("systemctl stop syncagent");
    a.install(SECOND);
    b.install(SECOND);
    assert_eq!((a.property("ActiveState"), b.property("ActiveState")), ("inactive".into(), "active".into()));
    let after = b.property("MainPID");
    assert_ne!(before, after);
    assert_eq!(b.sh(&format!("readlink /proc/{after}/exe")), "/usr/bin/syncagent");
    a.sh("systemctl start syncagent");
    a.write("/srv/deploy/three", "3");
    b.until("three", || b.read("/srv/deploy/three") == b"3");
    n.converge("t");

    // removed: stopped, but configuration and state stay for the next installation
    for node in [a, b] {
        node.sh("dpkg --remove syncagent 2>&1");
        assert_ne!(node.run(&["systemctl", "is-active", "syncagent"]).code, 0);
        for path in ["/etc/syncagent/syncagent.toml", "/var/lib/syncagent", "/srv/deploy/three"] {
            assert!(node.path(path).exists(), "{path}");
        }
    }
    b.install(SECOND);
    b.sh("systemctl start syncagent");
    b.until("the new installation", || b.own("t")["generation"].is_object());
    b.sh("dpkg --remove syncagent 2>&1");

    // purged: nothing is left but the trees, and a CA
    a.write("/etc/syncagent/pki/ca.key", "not to be had again");
    for node in [a, b] {
        node.sh("dpkg --purge syncagent 2>&1");
        let left = "find /etc /var /usr/bin /usr/lib /usr/share /run -xdev -name '*syncagent*' -not -path '/var/log/*' \
                    -newer /run/systemd/container";
        let left = node.sh(left);
        let expected = if std::ptr::eq(node, a) { "/etc/syncagent" } else { "" };
        assert_eq!(left, expected);
        assert_eq!(node.read("/srv/deploy/three"), b"3");
        assert!(node.path("/srv/deploy/.syncagent").exists());
    }
    assert_eq!(a.sh("find /etc/syncagent -type f"), "/etc/syncagent/pki/ca.key");
}

#[test]
fn the_unit_is_sound_and_its_sandbox_is_tight() {
    let s = Scratch::new();
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/syncagent.service");
    let text = std::fs::read_to_string(&unit).unwrap();
    let shown = std::fs::read_to_string(unit.with_file_name("syncagent.service")).unwrap();
    assert!(shown.contains("WatchdogSec="));
    // with a program that is there
    s.write("syncagent.service", text.replace("/usr/bin/syncagent", "/bin/true"));
    let copy = s.path().join("syncagent.service");
    let analyze = |args: &[&str]| -> Ran {
        let ran = Command::new("systemd-analyze").args(args).arg(&copy).output();
        ran.expect("systemd-analyze; it is in Debian's systemd").into()
    };
    let ran = analyze(&["verify", "--man=no", "--recursive-errors=no"]).code(0);
    let ours: Vec<&str> = ran.err.lines().filter(|l| l.contains("syncagent")).collect();
    assert_eq!(ours, Vec::<&str>::new());
    analyze(&["security", "--offline=true", "--threshold=30", "--no-pager"]).code(0);
    let ran = analyze(&["security", "--offline=true", "--threshold=10", "--no-pager"]);
    assert_ne!(ran.code, 0, "the threshold decides nothing: {}", ran.out);
}

#[test]
fn lintian_finds_nothing() {
    if Command::new("lintian").arg("--version").output().is_err() {
        eprintln!("skipped: there is no lintian");
        return;
    }
    let ran: Ran = Command::new("lintian").arg("--allow-root").arg(package(FIRST)).output().unwrap().into();
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{}", ran.err);
}

#[test]
fn the_drop_in_goes_where_the_command_says() {
    let s = Scratch::new();
    s.write("c.toml", "[node]\nid = \"a\"\n[listen]\ndata = \"unix:/run/syncagent/d.sock\"\n[tree.t]\npath = \"/srv/none/t\"\nrole = \"source\"\nallow = [\"*\"]\n");
    let file = s.path().join("c.toml");
    let ran = s.run("config", ["systemd", "--config", file.to_str().unwrap()]).code(0);
    assert!(ran.out.contains("[Service]\n# tree t\nReadWritePaths=-/srv/none/t\n"), "{}", ran.out);
    assert!(ran.err.contains("/srv/none/t does not exist"), "{}", ran.err);
    for line in OPEN.lines().filter(|l| l.contains("syncagent config systemd")) {
        assert!(ran.out.contains(line.trim()), "{}", ran.out);
    }
}
