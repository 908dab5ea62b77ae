//! The package and the service on a real systemd: installed, configured, started, killed, upgraded, removed.

mod container;
mod faults;
mod notify;
mod operations;
mod package;
mod sandbox;
mod trees;

use std::net::TcpListener;

use container::Container;

use crate::agents::cluster::run;
use crate::support::Scratch;

/// Two nodes with the package and certificates. They share this host's loopback interface.
struct Nodes {
    source: Container,
    mirror: Container,
    port: u16,
    _pki: Scratch,
}

const FIRST: &str = "0.0.1-1";
const SECOND: &str = "0.0.2-1";

impl Nodes {
    /// Installed, with certificates, not configured.
    fn new(name: &str) -> Self {
        let pki = Scratch::new();
        let dir = pki.path().join("pki");
        let dir = dir.to_str().unwrap();
        run(&["pki", "init", "--dir", dir]).code(0);
        let node = |id: &str| {
            run(&["pki", "issue", id, "--dir", dir]).code(0);
            let container = Container::start(&format!("{name}-{id}"));
            container.install(FIRST);
            for file in ["ca.pem".to_owned(), format!("{id}.pem"), format!("{id}.key")] {
                container.write(&format!("/etc/syncagent/{file}"), pki.read(format!("pki/{file}")));
            }
            container
        };
        let (source, mirror) = (node("a"), node("b"));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { source, mirror, port, _pki: pki }
    }

    /// Writes both configurations, with these trees: name, path on the source, path on the mirror, keys of both, of the
    /// mirror.
    fn configure(&self, trees: &[(&str, &str, &str, &str, &str)]) {
        let common = |id: &str| {
            let tls = ["cert = \"/etc/syncagent/ID.pem\"", "key = \"/etc/syncagent/ID.key\""];
            let tls = tls.join("\n").replace("ID", id);
            format!("[node]\nid = \"{id}\"\n[tls]\n{tls}\nca = \"/etc/syncagent/ca.pem\"\n")
        };
        let (mut a, mut b) = (common("a"), common("b"));
        a += &format!("[listen]\ndata = \"127.0.0.1:{}\"\n", self.port);
        for (name, on_a, on_b, both, mirror) in trees {
            a += &format!(
                "[tree.{name}]\npath = \"{on_a}\"\nrole = \"source\"\nallow = [\"b\"]\nsettle = \"50ms\"\n{both}\n"
            );
            b += &format!(
                "[tree.{name}]\npath = \"{on_b}\"\nrole = \"mirror\"\nsource = \"https://127.0.0.1:{}\"\n\
                 source-id = \"a\"\n{both}\n{mirror}\n",
                self.port
            );
        }
        self.source.write("/etc/syncagent/syncagent.toml", a);
        self.mirror.write("/etc/syncagent/syncagent.toml", b);
    }

    /// As operations.md says: the drop-in, then the start.
    #[track_caller]
    fn open_and_start(&self) {
        for node in [&self.source, &self.mirror] {
            node.sh(OPEN);
            node.sh("systemctl restart syncagent");
        }
    }

    /// Waits until the mirror has all of a tree.
    #[track_caller]
    fn converge(&self, tree: &str) {
        self.mirror.until(&format!("all of {tree}"), || {
            let (source, mirror) = (self.source.tree(tree), self.mirror.own(tree));
            source["nodes"][0]["state"] == "current"
                && mirror["state"] == "current"
                && mirror["lag_ms"] == 0
                && source["head"].is_object()
                && source["head"] == mirror["generation"]
        });
    }
}

/// The documented way to let the service write its trees.
const OPEN: &str = "mkdir -p /etc/systemd/system/syncagent.service.d
    syncagent config systemd > /etc/systemd/system/syncagent.service.d/trees.conf
    systemctl daemon-reload";
