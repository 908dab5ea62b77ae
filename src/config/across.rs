//! What is wrong only between sections: paths that lie in each other, and what one section needs of
//! another. Reads the same values once more; what is wrong with one alone was noted already.

use std::path::{Path, PathBuf};

use super::check::{Kind, ROLES};
use super::problem::wrong;
use super::raw::Table;
use super::{Endpoint, Upstream, value};

type Trees<'a> = [(&'a str, Table<'a>)];

pub(super) fn check(root: &Table<'_>, trees: &Trees<'_>) {
    let listen = root.section("listen");
    let data = listen.read("data", value::endpoint);
    tree_paths(trees);
    places(root, trees, data.as_ref());
    needs(root, trees, data.as_ref());
    own_source(root, trees, data.as_ref());
    one_port_each(&listen, data.as_ref());
    if let Some(Endpoint::Tcp(address)) = data
        && address.port() == 0
    {
        listen.warning("data", wrong("port 0 is another port at every start; mirrors cannot know it"));
    }
}

/// Each TCP port of the agent serves one purpose.
fn one_port_each(listen: &Table<'_>, data: Option<&Endpoint>) {
    let mut before = Vec::new();
    if let Some(Endpoint::Tcp(address)) = data {
        before.push(("data", *address));
    }
    for key in ["public", "agent-check"] {
        let Some(address) = listen.read(key, value::address) else { continue };
        let same = |other: &&(&str, std::net::SocketAddr)| {
            let (ip, own) = (other.1.ip(), address.ip());
            address.port() != 0
                && other.1.port() == address.port()
                && (ip == own || ip.is_unspecified() || own.is_unspecified())
        };
        if let Some((other, _)) = before.iter().find(same) {
            listen.error(key, wrong(format!("`{address}` is also what listen.{other} listens on")));
        }
        before.push((key, address));
    }
}

/// No tree lies in another: each would take the other's files for its own.
fn tree_paths(trees: &Trees<'_>) {
    let mut before: Vec<(&str, &Table<'_>, PathBuf)> = Vec::new();
    for (name, table) in trees {
        let Some(path) = table.read("path", value::tree_path) else {
            continue;
        };
        for (other, its, theirs) in &before {
            let how = match (path.starts_with(theirs), theirs.starts_with(&path)) {
                (true, true) => "is also the path",
                (true, false) => "lies in the path",
                (false, true) => "holds the path",
                (false, false) => continue,
            };
            let shown = path.display();
            table.error(
                "path",
                wrong(format!("`{shown}` {how} of the tree `{other}`, line {}", its.line("path"))),
            );
        }
        before.push((name, table, path));
    }
}

/// What the agent writes, and its key, lie outside of all trees.
fn places(root: &Table<'_>, trees: &Trees<'_>, data: Option<&Endpoint>) {
    let (listen, tls) = (root.section("listen"), root.section("tls"));
    let outside = |table: &Table<'_>, key: &str, path: Option<PathBuf>, why: &str| {
        let Some(path) = path else { return };
        for (name, tree) in trees {
            if tree.read("path", value::tree_path).is_some_and(|tree| path.starts_with(tree)) {
                table.error(key, wrong(format!("`{}` lies in the tree `{name}`{why}", path.display())));
            }
        }
    };
    outside(root, "state-dir", root.read("state-dir", value::absolute), "");
    outside(&listen, "socket", listen.read("socket", value::socket), "");
    if let Some(Endpoint::Unix(path)) = data {
        outside(&listen, "data", Some(path.clone()), "");
    }
    outside(&tls, "key", tls.read("key", value::absolute), " and would be copied to other nodes");
    for (_, tree) in trees {
        let hint = "; leave it out for .syncagent/ in the tree, which belongs to no tree";
        outside(tree, "staging", tree.read("staging", value::absolute), hint);
    }
}

/// TCP needs `[tls]`, a source needs an address.
fn needs(root: &Table<'_>, trees: &Trees<'_>, data: Option<&Endpoint>) {
    let listen = root.section("listen");
    let hint = "[tls] with cert, key and ca; only a unix socket goes without";
    if matches!(data, Some(Endpoint::Tcp(_))) && !root.has("tls") {
        listen.error("data", wrong("a TCP address needs [tls], which is missing").hint(hint));
    }
    for (_, tree) in trees {
        if matches!(tree.read("source", value::upstream), Some(Upstream::Https { .. })) && !root.has("tls") {
            tree.error("source", wrong("https needs [tls], which is missing").hint(hint));
        }
    }
    let is_source = |tree: &Table<'_>| tree.read("role", value::word(&ROLES)) == Some(Kind::Source);
    if let Some((name, _)) = trees.iter().find(|(_, tree)| is_source(tree))
        && !listen.has("data")
    {
        let what = format!("is missing, and the tree `{name}` is a source that its mirrors must reach");
        listen.error("data", wrong(what).hint("\"0.0.0.0:7420\" or \"unix:/path\""));
    }
}

/// A node is not its own source, and each socket serves one purpose.
fn own_source(root: &Table<'_>, trees: &Trees<'_>, data: Option<&Endpoint>) {
    let listen = root.section("listen");
    let id = root.section("node").read("id", value::node_id);
    let socket = listen.read("socket", value::socket);
    let own = |path: &Path| matches!(data, Some(Endpoint::Unix(data)) if data == path);
    if socket.as_deref().is_some_and(own) {
        listen.error("data", wrong("is the same path as listen.socket"));
    }
    for (_, tree) in trees {
        if id.is_some() && tree.read("source-id", value::node_id) == id {
            tree.error("source-id", wrong("is this node's own id: it would mirror itself"));
        }
        if let Some(Upstream::Unix(path)) = tree.read("source", value::upstream)
            && (own(&path) || socket.as_ref() == Some(&path))
        {
            tree.error("source", wrong("is this node's own socket: it would mirror itself"));
        }
    }
}
