//! The middle of docs/operations.md: a server is told, a deployment that it does not take is seen and rolled back.

use std::net::TcpListener;

use super::{Nodes, OPEN};
use crate::support::needs_root;

/// A ZIP archive with the file `version`, or without it.
const ARCHIVE: &str = "import sys, zipfile
with zipfile.ZipFile(sys.argv[1], 'w') as z: z.writestr(sys.argv[2], '1.0')";

#[test]
fn a_deployment_that_the_server_does_not_take_is_seen_and_rolled_back() {
    if !needs_root("a systemd of its own") {
        return;
    }
    let n = Nodes::new("operations");
    let a = &n.source;
    // the nodes share a loopback interface with this host
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let unit = "orders.service";
    let refresh = format!(
        "keep = 10\n[[tree.deploy.refresh]]\nname = \"orders\"\nwhen = [\"*.zip\"]\n\
         http = {{ url = \"http://127.0.0.1:{port}/reload\", body = \"{{generation}}\" }}\n\
         verify = {{ http = {{ url = \"http://127.0.0.1:{port}/version\", contains = \"generation {{generation}}\" }} }}\n\
         [[tree.deploy.refresh]]\ntouch = \"/opt/server/conf/refresh\"\n"
    );
    a.sh(&format!("mkdir -p /srv/deploy /opt/server/conf; cp /usr/share/doc/syncagent/examples/{unit} /etc/systemd/system/"));
    a.sh(&format!("sed -i '/^ExecStart=/s/$/ {port}/' /etc/systemd/system/{unit}"));
    let archive = |content: &str| {
        a.write("/root/archive.py", ARCHIVE);
        a.sh(&format!("python3 /root/archive.py /root/shop.zip {content} && cp /root/shop.zip /srv/deploy/"));
    };
    let served = || {
        a.run(&["python3", "-c", &format!(
        "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{port}/version').read().decode())"
    )]).out
    };
    archive("version");
    n.configure(&[("deploy", "/srv/deploy", "/srv/deploy", &refresh, "")]);
    a.sh(OPEN);
    a.sh("systemctl start orders");
    a.until("the server", || served().contains("shop.zip 1.0"));
    a.sh("systemctl start syncagent");
    a.sh("syncagent wait deploy --node a --timeout 30s");
    assert!(served().starts_with("generation 1.1\n"), "{}", served());
    assert!(a.path("/opt/server/conf/refresh").exists(), "the drop-in opens what is touched");

    archive("verzion");
    let said = "answered 500, not 2xx: shop.zip: There is no item named 'version' in the archive";
    a.until("the status line", || a.property("StatusText").contains(said));
    let ran = a.run(&["syncagent", "wait", "deploy", "--node", "a", "--timeout", "1s"]);
    assert_eq!(ran.code, 7);
    assert!(ran.out.contains(said), "{}", ran.out);
    // by its level, which the journal has taken off
    let warned = a.sh("journalctl --no-pager --unit=syncagent --priority=warning --output=cat");
    assert!(warned.contains(said) && !warned.contains("started node="), "{warned}");
    assert!(served().starts_with("generation 1.1\n"), "{}", served());

    a.sh("syncagent rollback deploy --dry-run && syncagent rollback deploy");
    a.sh("syncagent wait deploy --node a --timeout 30s");
    assert!(served().starts_with("generation 1.3\nshop.zip 1.0\n"), "{}", served());
}
