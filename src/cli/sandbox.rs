//! The service runs in a sandbox in which it can write nothing but its own state. `syncagent config systemd` prints
//! what has to be opened for the trees and refreshes of a configuration, and no more.

use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

use crate::config::{Action, Activate, Ask, Config, Endpoint, Role, SignalTo, Tree, Value};
use crate::disk::is_mount_root;
use crate::model::escaped;

/// Where the drop-in belongs.
const FILE: &str = "/etc/systemd/system/syncagent.service.d/trees.conf";
/// What the unit file opens by itself.
const OPEN: [&str; 2] = ["/var/lib/syncagent", "/run/syncagent"];
/// What `ProtectHome=` hides, and `PrivateTmp=` replaces.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];

/// A path as this host has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Without symbolic links, as far as it exists.
    real: PathBuf,
    exists: bool,
    /// Where its file system is mounted, when that is not the root directory.
    mount: Option<PathBuf>,
}

/// Looks at a path of this host.
pub(super) fn seen(path: &Path) -> Seen {
    let there = path.ancestors().find_map(|p| Some((p.canonicalize().ok()?, path.strip_prefix(p).ok()?)));
    let (there, rest) = there.unwrap_or_else(|| ("/".into(), path));
    let mount = there.ancestors().find(|p| is_mount_root(p)).filter(|p| *p != Path::new("/"));
    let mount = mount.map(Path::to_owned);
    let exists = rest.as_os_str().is_empty();
    Seen { real: if exists { there } else { there.join(rest) }, exists, mount }
}

/// What has to be opened, collected.
#[derive(Default)]
struct Opened {
    lines: String,
    real: Vec<PathBuf>,
    /// What the lines open.
    writable: Vec<PathBuf>,
    whole_system: bool,
    warnings: Vec<String>,
}

/// The drop-in for `config`, and what the operator should know of it. `look` is [`seen`], or a test's.
pub(super) fn drop_in(config: &Config, look: &dyn Fn(&Path) -> Seen) -> (String, Vec<String>) {
    let mut o = Opened::default();
    for tree in &config.trees {
        o.tree(tree, look);
    }
    for (what, dir) in config.trees.iter().flat_map(touched) {
        let there = look(dir);
        if !there.exists {
            o.warnings
                .push(format!("{what}: {} does not exist; make it before the service starts", escaped(dir)));
        }
        // what is open already: the tree itself, or the same for another refresh
        let open = OPEN.map(Path::new).into_iter().chain(o.writable.iter().map(PathBuf::as_path));
        if !open.into_iter().any(|open| there.real.starts_with(open)) {
            o.open(&what, dir, &there);
        }
    }
    let data = match &config.listen.data {
        Some(Endpoint::Unix(path)) => path.parent(),
        _ => None,
    };
    let places = [("state-dir", config.state_dir.as_deref())];
    let sockets = [("listen.socket", config.listen.socket.parent()), ("listen.data", data)];
    for (key, path) in places.into_iter().chain(sockets) {
        if let Some(path) = path.filter(|p| !OPEN.iter().any(|open| p.starts_with(open))) {
            o.open(key, path, &look(path));
        }
    }
    let mut out = format!(
        "# Lets syncagent.service write what its configuration names. Written by `syncagent config systemd`; after a\n\
         # change of trees:\n\
         #   syncagent config systemd > {FILE}\n\
         #   systemctl daemon-reload && systemctl restart syncagent\n\
         [Service]\n"
    );
    out += &o.lines;
    if o.whole_system {
        out += "# one of them needs the root directory; /usr, /boot and /etc stay read-only\nProtectSystem=full\n";
    }
    let tls = config.tls.iter().flat_map(|tls| [&tls.cert, &tls.key, &tls.ca]).map(PathBuf::as_path);
    let read = tls.chain(config.trees.iter().flat_map(read)).map(|f| look(f).real);
    let read: Vec<PathBuf> = read.collect();
    let under = |places: &[&str], paths: &[PathBuf]| {
        paths.iter().any(|path| places.iter().any(|place| path.starts_with(place)))
    };
    if under(&HOMES, &o.real) || under(&HOMES, &read) {
        out +=
            "# the homes can be seen, and written only where a line above says so\nProtectHome=read-only\n";
    }
    if under(&TEMPORARY, &o.real) || under(&TEMPORARY, &read) {
        out += "# /tmp is everybody's, not one of the service's own\nPrivateTmp=no\n";
    }
    let data = match &config.listen.data {
        Some(Endpoint::Tcp(address)) => Some(*address),
        _ => None,
    };
    let ports =
        [("data", data), ("public", config.listen.public), ("agent-check", config.listen.agent_check)];
    if let Some((key, _)) = ports.iter().find(|(_, a)| a.is_some_and(|a| (1..1024).contains(&a.port()))) {
        let _ =
            write!(out, "# listen.{key}: a port below 1024\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n");
    }
    if config.trees.iter().any(|t| t.setid) {
        out += "# setid = true: setuid and setgid bits are set\nRestrictSUIDSGID=no\n";
    }
    (out, o.warnings)
}

/// The directories in which a tree's refreshes touch a file, and for whom. The directory, because the file is made
/// when it is missing.
fn touched(tree: &Tree) -> impl Iterator<Item = (String, &Path)> {
    tree.refresh.iter().filter_map(|refresh| match &refresh.action {
        Action::Touch(file) => {
            Some((format!("tree {}, refresh {}", tree.name, refresh.name), file.parent()?))
        }
        _ => None,
    })
}

/// The files that a tree's refreshes read or run.
fn read(tree: &Tree) -> Vec<&Path> {
    let mut files: Vec<&PathBuf> = Vec::new();
    let mut programs: Vec<&str> = Vec::new();
    for refresh in &tree.refresh {
        let asked = refresh.verify.as_ref().map(|v| &v.ask);
        let told = match &refresh.action {
            Action::Http(http) => Some(http),
            Action::Exec(words) => {
                programs.extend(words.first().map(String::as_str));
                None
            }
            Action::Signal { to: SignalTo::PidFile(file), .. } => {
                files.push(file);
                None
            }
            _ => None,
        };
        if let Some(Ask::Exec(words)) = asked {
            programs.extend(words.first().map(String::as_str));
        }
        let asked = asked.and_then(|ask| if let Ask::Http(http) = ask { Some(http) } else { None });
        for http in told.into_iter().chain(asked) {
            files.extend(&http.ca);
            files.extend(http.identity.iter().flat_map(|(cert, key)| [cert, key]));
            files.extend(http.headers.iter().filter_map(|(_, value)| match value {
                Value::File(file) => Some(file),
                _ => None,
            }));
        }
    }
    files.into_iter().map(PathBuf::as_path).chain(programs.into_iter().map(Path::new)).collect()
}

impl Opened {
    fn tree(&mut self, tree: &Tree, look: &dyn Fn(&Path) -> Seen) {
        let what = format!("tree {}", tree.name);
        let there = look(&tree.path);
        if !there.exists {
            self.warnings.push(format!(
                "{what}: {} does not exist; make it before the service starts: what is not there then cannot be written",
                escaped(&tree.path)
            ));
        }
        let Role::Mirror(mirror) = &tree.role else { return self.open(&what, &tree.path, &there) };
        let common = |a: &Path, b: &Path| -> PathBuf {
            let same = a.components().zip(b.components()).take_while(|(a, b)| a == b);
            same.map(|(c, _)| c).collect()
        };
        match &mirror.staging {
            _ if mirror.activate == Activate::Swap => {
                // the new tree is built beside the old one, and both are renamed
                let beside = there.real.parent().unwrap_or(Path::new("/")).to_owned();
                self.open(&format!("{what}: activate = \"swap\""), &beside, &look(&beside));
            }
            // renames work only below one opened path
            Some(staging) => {
                let both = common(&there.real, &look(staging).real);
                self.open(&format!("{what} and its staging"), &both, &look(&both));
            }
            None => self.open(&what, &tree.path, &there),
        }
    }

    /// Opens `path`, or the file system that it is on.
    fn open(&mut self, what: &str, path: &Path, there: &Seen) {
        self.real.push(there.real.clone());
        // a path below a mount would be mounted once more in the sandbox, which then would not notice that the file
        // system is gone; partitions such as /home stay, and hold too much else
        let mount = there.mount.as_deref().filter(|m| m.components().count() > 2 && *m != there.real);
        let opened = mount.unwrap_or(&there.real).to_owned();
        let (path, note) = match mount {
            Some(mount) => {
                (mount, format!(" ({}): all of its file system, so that a lost mount is seen", escaped(path)))
            }
            None => (path, String::new()),
        };
        if path.components().eq([Component::RootDir]) {
            self.whole_system = true;
            return;
        }
        self.writable.push(opened);
        match word(path) {
            Some(word) => {
                let _ = write!(self.lines, "# {what}{note}\nReadWritePaths={word}\n");
            }
            None => self.warnings.push(format!(
                "{what}: {} has control characters, which a unit cannot name; give it another name",
                escaped(path)
            )),
        }
    }
}

/// A path as a word of a unit file, with the `-` that lets the service start without it.
fn word(path: &Path) -> Option<String> {
    let text = path.to_str().filter(|p| !p.chars().any(char::is_control))?;
    let plain = text.chars().all(|c| c.is_alphanumeric() || "/._-+@:,=~".contains(c));
    let quoted = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    Some(if plain { format!("-{text}") } else { format!("\"-{quoted}\"") })
}

/// Says which trees cannot be written for being read-only, when systemd runs this. Blocking: a disk may hang.
pub(super) fn warn_of_read_only(trees: &[Tree]) {
    if std::env::var_os("INVOCATION_ID").is_none() {
        return;
    }
    for tree in trees {
        let there = tree.path.ancestors().find_map(|p| rustix::fs::statvfs(p).ok());
        if there.is_some_and(|s| s.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY)) {
            tracing::warn!(
                tree = tree.name,
                "{} is read-only here. If that is the service's sandbox: syncagent config systemd > {FILE}, then \
                 systemctl daemon-reload and systemctl restart syncagent",
                escaped(&tree.path)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(trees: &str, look: &dyn Fn(&Path) -> Seen) -> (String, Vec<String>) {
        let text = format!("[node]\nid = \"a\"\n[listen]\ndata = \"unix:/run/syncagent/data.sock\"\n{trees}");
        let parsed = Config::parse(&text);
        drop_in(&parsed.config.unwrap_or_else(|| panic!("{:?}", parsed.problems)), look)
    }

    fn there(path: &Path) -> Seen {
        Seen { real: path.to_owned(), exists: true, mount: None }
    }

    fn mirror(name: &str, path: &str, keys: &str) -> String {
        format!(
            "[tree.{name}]\npath = \"{path}\"\nrole = \"mirror\"\nsource = \"unix:/run/x/d.sock\"\n{keys}\n"
        )
    }

    /// The lines that are settings.
    fn settings(trees: &str, look: &dyn Fn(&Path) -> Seen) -> Vec<String> {
        let (text, warnings) = of(trees, look);
        assert_eq!(warnings, Vec::<String>::new(), "{text}");
        let lines = text.lines().filter(|l| !l.starts_with('#')).map(String::from);
        lines.skip_while(|l| l != "[Service]").skip(1).collect()
    }

    #[test]
    fn only_the_trees_are_opened() {
        let trees = "[tree.s]\npath = \"/srv/s\"\nrole = \"source\"\nallow = [\"*\"]\n".to_owned();
        let got = settings(&(trees + &mirror("m", "/opt/m", "")), &there);
        assert_eq!(got, ["ReadWritePaths=-/srv/s", "ReadWritePaths=-/opt/m"]);
    }

    #[test]
    fn what_a_refresh_touches_is_opened_too() {
        let touch =
            |file: &str| mirror("m", "/opt/m", "") + &format!("[[tree.m.refresh]]\ntouch = \"{file}\"\n");
        let got = settings(&touch("/opt/wso2/conf/refresh"), &there);
        assert_eq!(got, ["ReadWritePaths=-/opt/m", "ReadWritePaths=-/opt/wso2/conf"]);
        // twice the same, and what the unit opens by itself
        let twice = touch("/home/app/x") + "[[tree.m.refresh]]\nname = \"y\"\ntouch = \"/home/app/y\"\n";
        let got = settings(&twice, &there);
        assert_eq!(got, ["ReadWritePaths=-/opt/m", "ReadWritePaths=-/home/app", "ProtectHome=read-only"]);
        assert_eq!(settings(&touch("/run/syncagent/x"), &there), ["ReadWritePaths=-/opt/m"]);
        let missing = |p: &Path| Seen { exists: !p.ends_with("conf"), ..there(p) };
        let (_, warnings) = of(&touch("/opt/wso2/conf/refresh"), &missing);
        assert!(warnings[0].contains("refresh touch: /opt/wso2/conf does not exist"), "{warnings:?}");
    }

    #[test]
    fn what_a_refresh_reads_or_runs_can_be_seen() {
        let of = |keys: &str| {
            settings(&(mirror("m", "/opt/m", "") + "[[tree.m.refresh]]\n" + keys), &there).join("\n")
        };
        assert!(of("exec = [\"/home/app/reload\"]").contains("ProtectHome=read-only"));
        assert!(of("signal = { signal = \"HUP\", pid-file = \"/tmp/pid\" }").contains("PrivateTmp=no"));
        let header =
            "http = { url = \"http://localhost/\", headers = { X-Token = { file = \"/root/token\" } } }";
        assert!(of(header).contains("ProtectHome=read-only"));
        let verify = "exec = [\"/usr/bin/true\"]\nverify = { exec = [\"/root/asks\"] }";
        assert!(of(verify).contains("ProtectHome=read-only"));
        assert_eq!(of("exec = [\"/usr/bin/true\"]"), "ReadWritePaths=-/opt/m");
    }

    #[test]
    fn homes_temporary_directories_and_setgid_bits_loosen_what_would_be_in_their_way() {
        let got = settings(&mirror("m", "/home/app/tree", "setid = true"), &there);
        assert_eq!(got, ["ReadWritePaths=-/home/app/tree", "ProtectHome=read-only", "RestrictSUIDSGID=no"]);
        let got = settings(&mirror("m", "/var/tmp/t", ""), &there);
        assert_eq!(got, ["ReadWritePaths=-/var/tmp/t", "PrivateTmp=no"]);
        // not by how it is called but by where it is
        let linked =
            |p: &Path| Seen { real: Path::new("/home/app").join(p.file_name().unwrap()), ..there(p) };
        let got = settings(&mirror("m", "/opt/tree", ""), &linked);
        assert!(got.contains(&"ProtectHome=read-only".to_owned()), "{got:?}");
    }

    #[test]
    fn what_is_renamed_lies_below_one_opened_path() {
        assert_eq!(
            settings(&mirror("m", "/srv/a/m", "activate = \"swap\""), &there),
            ["ReadWritePaths=-/srv/a"]
        );
        let staged = mirror("m", "/srv/a/m", "staging = \"/srv/stage\"");
        assert_eq!(settings(&staged, &there), ["ReadWritePaths=-/srv"]);
        let apart = mirror("m", "/srv/m", "staging = \"/stage\"");
        assert_eq!(settings(&apart, &there), ["ProtectSystem=full"]);
    }

    #[test]
    fn below_a_mount_the_mount_is_opened_but_no_whole_partition() {
        let on = |mount: &'static str| move |p: &Path| Seen { mount: Some(mount.into()), ..there(p) };
        let tree = mirror("m", "/srv/share/deploy", "");
        assert_eq!(settings(&tree, &on("/srv/share")), ["ReadWritePaths=-/srv/share"]);
        assert_eq!(settings(&tree, &on("/srv")), ["ReadWritePaths=-/srv/share/deploy"]);
    }

    #[test]
    fn a_low_port_needs_a_right_of_its_own() {
        let of = |port: u16| {
            let text = format!(
                "[node]\nid = \"a\"\n[listen]\ndata = \"0.0.0.0:{port}\"\n[tls]\ncert = \"/c\"\nkey = \"/k\"\nca = \"/a\"\n\
                 [tree.s]\npath = \"/srv/s\"\nrole = \"source\"\nallow = [\"*\"]\n"
            );
            drop_in(&Config::parse(&text).config.unwrap(), &there).0
        };
        assert!(of(443).ends_with("\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n"), "{}", of(443));
        assert!(!of(7420).contains("CAP_"));
        let text = "[listen]\npublic = \"0.0.0.0:80\"\nagent-check = \"0.0.0.0:81\"\n".to_owned();
        let text = "[node]\nid = \"a\"\n".to_owned() + &text + &mirror("m", "/srv/m", "");
        let (text, _) = drop_in(&Config::parse(&text).config.unwrap(), &there);
        assert!(text.contains("# listen.public: a port below 1024\nCapabilityBoundingSet="), "{text}");
    }

    #[test]
    fn names_are_quoted_and_what_cannot_be_is_said() {
        let got = settings(&mirror("m", "/srv/a b%h", ""), &there);
        assert_eq!(got, ["ReadWritePaths=\"-/srv/a b%%h\""]);
        let (text, warnings) = of(&mirror("m", "/srv/a\\nb", ""), &there);
        assert!(!text.contains("ReadWritePaths") && warnings[0].contains("control characters"), "{text}");
    }

    #[test]
    fn a_tree_that_is_not_there_is_named() {
        let missing = |p: &Path| Seen { exists: false, ..there(p) };
        let (text, warnings) = of(&mirror("m", "/srv/m", ""), &missing);
        assert!(text.contains("ReadWritePaths=-/srv/m\n"));
        assert!(warnings[0].contains("/srv/m does not exist; make it"), "{warnings:?}");
    }

    #[test]
    fn this_host_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        let missing = seen(&real.join("link/none"));
        assert_eq!((missing.real, missing.exists), (real.join("none"), false));
        assert!(seen(&real).exists);
        assert_eq!(seen(Path::new("/")).mount, None);
    }
}
