//! Trees wherever they lie, written from inside the service's sandbox.

use super::{Container, Nodes, OPEN};
use crate::support::needs_root;

#[test]
fn trees_in_srv_in_homes_with_foreign_owners_and_setgid_bits_are_written() {
    if !needs_root("a systemd of its own") {
        return;
    }
    let n = Nodes::new("trees");
    let (a, b) = (&n.source, &n.mirror);
    n.configure(&[
        ("plain", "/srv/plain", "/srv/plain", "", ""),
        ("home", "/home/app/tree", "/home/app/tree", "", ""),
        ("setgid", "/opt/shared", "/opt/shared", "setid = true", ""),
        ("swapped", "/srv/site", "/srv/www/site", "", "activate = \"swap\""),
        ("staged", "/srv/staged", "/srv/x/staged", "", "staging = \"/srv/x/staging\""),
        ("temporary", "/var/tmp/from", "/var/tmp/to", "", ""),
        ("mounted", "/mnt/share/tree", "/srv/mounted", "scan-interval = \"1s\"", ""),
    ]);
    a.sh("mkdir -p /mnt/share && mount -t tmpfs share /mnt/share && mkdir /mnt/share/tree");
    a.write("/mnt/share/tree/file", "1");
    let all = ["plain", "home", "setgid", "swapped", "staged", "temporary"];
    let on_a = ["/srv/plain", "/home/app/tree", "/opt/shared", "/srv/site", "/srv/staged", "/var/tmp/from"];
    let on_b =
        ["/srv/plain", "/home/app/tree", "/opt/shared", "/srv/www/site", "/srv/x/staged", "/var/tmp/to"];
    for dir in on_a {
        a.write(&format!("{dir}/d/file"), dir);
        a.sh(&format!("chown -R 1234:5678 {dir}/d; chmod 600 {dir}/d/file"));
    }
    a.sh("mkdir /opt/shared/group; chown 0:5678 /opt/shared/group; chmod 2775 /opt/shared/group");
    a.write("/opt/shared/group/file", "1");
    a.sh("chmod 2755 /opt/shared/group/file");
    b.sh("mkdir -p /srv/plain /home/app/tree /opt/shared /srv/www/site /srv/x/staged /srv/x/staging /var/tmp/to /srv/mounted");
    // a tree in a directory whose group is passed on
    b.sh("chgrp 5678 /srv/plain; chmod 2775 /srv/plain");
    n.open_and_start();
    let stats = |at: &Container, dir: &str| {
        at.sh(&format!(
            "cd {dir} && find . -mindepth 1 -path ./.syncagent -prune -o -printf '%p %y %m %U %G %T@\\n' | sort"
        ))
    };
    for (name, (from, to)) in all.into_iter().zip(on_a.into_iter().zip(on_b)) {
        n.converge(name);
        assert_eq!(stats(a, from), stats(b, to), "{name}");
        assert_eq!(a.digest(from), b.digest(to), "{name}");
    }
    assert!(b.sh("stat -c %a /opt/shared/group /opt/shared/group/file").contains("2775\n2755"));

    // changes, too
    for dir in on_a {
        a.write(&format!("{dir}/d/file"), "changed");
        a.write(&format!("{dir}/e/f/new"), "new");
    }
    for (name, (from, to)) in all.into_iter().zip(on_a.into_iter().zip(on_b)) {
        b.until("the change", || b.read(&format!("{to}/e/f/new")) == b"new");
        n.converge(name);
        assert_eq!(stats(a, from), stats(b, to), "{name}");
    }

    // CAP_LEASE: whether somebody else's file is still written to can be told
    let writer = "exec 9>>/srv/plain/half; chown 1234 /srv/plain/half; echo x >&9; sleep 60";
    a.sh(&format!("systemd-run --quiet --unit=writer sh -c '{writer}'"));
    a.until("the file that is held", || a.tree("plain")["held"][0]["path"] == "half");
    a.sh("systemctl stop writer");
    b.until("the whole file", || b.path("/srv/plain/half").exists());

    // another drop-in mounts the trees another way in the sandbox; they are still the same trees
    for node in [a, b] {
        node.sh(OPEN);
        node.sh("sed -i 's,^ReadWritePaths=-/srv/.*,ReadWritePaths=-/srv,' /etc/systemd/system/syncagent.service.d/trees.conf");
        node.sh("systemctl daemon-reload; systemctl restart syncagent");
    }
    for (name, dir) in all.into_iter().zip(on_a) {
        a.write(&format!("{dir}/after"), "the restart");
        b.until("what came after", || n.source.tree(name)["head"] == b.own(name)["generation"]);
        n.converge(name);
    }
    assert_eq!(b.read("/srv/plain/after"), b"the restart");

    // a mount that is lost for everybody is lost for the service, too: nothing that it held is deleted anywhere
    n.converge("mounted");
    a.sh("umount -l /mnt/share && mkdir -p /mnt/share/tree");
    a.until("the lost mount", || a.own("mounted")["error"].is_object());
    assert_eq!(b.read("/srv/mounted/file"), b"1");

    // what is not opened stays closed, to the agent's hooks as well
    let pid = b.property("MainPID");
    let inside = format!("nsenter -t {pid} -m --");
    assert_ne!(b.run(&["sh", "-c", &format!("{inside} touch /etc/x")]).code, 0);
    assert_ne!(b.run(&["sh", "-c", &format!("{inside} touch /home/app/x")]).code, 0);
    b.sh(&format!("{inside} touch /srv/plain/.syncagent/x"));
}
