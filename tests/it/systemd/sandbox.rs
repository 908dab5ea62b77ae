//! What docs/operations.md says of the sandbox: hooks, credentials, another user.

use super::container::Container;
use super::{FIRST, OPEN};
use crate::agents::cluster::run;
use crate::support::{Scratch, needs_root};

#[test]
fn hooks_reach_outside_by_systemd_and_neither_root_nor_a_readable_key_is_needed() {
    if !needs_root("a systemd of its own") {
        return;
    }
    let s = Scratch::new();
    let dir = s.path().join("pki");
    let dir = dir.to_str().unwrap();
    run(&["pki", "init", "--dir", dir]).code(0);
    run(&["pki", "issue", "a", "--dir", dir]).code(0);
    let a = Container::start("sandbox-a");
    a.install(FIRST);
    for file in ["ca.pem", "a.pem", "a.key"] {
        a.write(&format!("/etc/syncagent/{file}"), s.read(format!("pki/{file}")));
    }
    a.sh("chmod 600 /etc/syncagent/a.key");
    let config = "[node]\nid = \"a\"\n[listen]\ndata = \"127.0.0.1:0\"\n[tls]\ncert = \"/etc/syncagent/a.pem\"\n\
                  key = \"/run/credentials/syncagent.service/node.key\"\nca = \"/etc/syncagent/ca.pem\"\n\
                  [tree.t]\npath = \"/srv/t\"\nrole = \"source\"\nallow = [\"*\"]\nsettle = \"50ms\"\n";
    a.write("/etc/syncagent/syncagent.toml", config);
    a.write("/srv/t/file", "1");
    a.sh(OPEN);
    let drop_in = "/etc/systemd/system/syncagent.service.d/more.conf";
    let other = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\nExecReload=/bin/touch /srv/reloaded\n";
    a.write("/etc/systemd/system/other.service", other);
    // what follows the start runs where hooks run
    let hooks = "[Service]\nLoadCredential=node.key:/etc/syncagent/a.key\n\
                 ExecStartPost=-/bin/touch /srv/inside\n\
                 ExecStartPost=/usr/bin/systemctl reload other\n\
                 ExecStartPost=/usr/bin/systemd-run --quiet --wait --collect /bin/touch /srv/outside\n";
    a.write(drop_in, hooks);
    a.sh("systemctl daemon-reload; systemctl start other; systemctl restart syncagent");
    assert_eq!(a.property("ActiveState"), "active", "{}", a.journal());
    let there = |name: &str| a.path("/srv").join(name).exists();
    assert_eq!((there("inside"), there("reloaded"), there("outside")), (false, true, true));
    a.until("the first generation", || a.own("t")["generation"].is_object());

    a.write(drop_in, "[Service]\nLoadCredential=node.key:/etc/syncagent/a.key\nUser=syncagent\n");
    a.sh("chown -R syncagent: /srv/t; systemctl daemon-reload; systemctl restart syncagent");
    a.sh("echo 2 > /srv/t/file");
    let content = a.digest("/srv/t");
    a.until("the next generation", || a.tree("t")["content"].as_str() == Some(&content));
    let pid = a.property("MainPID");
    assert_eq!(a.sh(&format!("stat -c %U /proc/{pid}")), "syncagent");
    assert_ne!(
        a.run(&["setpriv", "--reuid=syncagent", "--clear-groups", "cat", "/etc/syncagent/a.key"]).code,
        0
    );
}
