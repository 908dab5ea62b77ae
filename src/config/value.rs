//! Single values of the configuration: each function reads one, or says what it wants instead.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};

use toml::de::DeValue;

use super::problem::{Complaint, wrong};
use super::raw::wants;
use super::{Endpoint, PORT, Upstream};
use crate::model::{NodeId, TreePath};
use crate::plan::{CONTROL_DIR, Filter, MaxDelete};

/// What `sun_path` of a Unix socket's address takes, without its NUL.
const SOCKET_PATH: usize = 107;
pub(super) type Read<T> = Result<T, Complaint>;

pub(super) fn text(value: &DeValue<'_>) -> Read<String> {
    value.as_str().map(str::to_owned).ok_or_else(|| wants("text in quotes", value))
}

pub(super) fn flag(value: &DeValue<'_>) -> Read<bool> {
    value.as_bool().ok_or_else(|| wants("true or false", value))
}

/// A number from 0, no larger than TOML promises to carry.
pub(super) fn count(value: &DeValue<'_>) -> Read<u64> {
    let number = value.as_integer().ok_or_else(|| wants("a number", value))?;
    let read = i64::from_str_radix(number.as_str(), number.radix()).ok().and_then(|n| n.try_into().ok());
    read.ok_or_else(|| wrong(format!("{number} is not a number from 0 to {}", i64::MAX)))
}

/// One of a few words.
pub(super) fn word<T: Copy>(words: &[(&str, T)]) -> impl Fn(&DeValue<'_>) -> Read<T> {
    move |value| {
        let text = text(value)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        let all = || words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ");
        found.ok_or_else(|| wrong(format!("`{text}` is not {}", all())))
    }
}

/// The name of a tree, a cluster or a zone.
pub(super) fn name(text: &str) -> Read<()> {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(known) && text != "." && text != ".." {
        return Ok(());
    }
    Err(wrong(format!("`{text}` is not a name: 1 to 64 letters, digits, `.`, `_` and `-`")))
}

pub(super) fn named(value: &DeValue<'_>) -> Read<String> {
    let text = text(value)?;
    name(&text).map(|()| text)
}

pub(super) fn node_id(value: &DeValue<'_>) -> Read<NodeId> {
    NodeId::new(&text(value)?).map_err(|e| wrong(e.to_string()))
}

/// An absolute path, without `.`, `..` and superfluous slashes: two of them are compared by their parts.
pub(super) fn absolute(value: &DeValue<'_>) -> Read<PathBuf> {
    path(&text(value)?)
}

/// The path of a tree.
pub(super) fn tree_path(value: &DeValue<'_>) -> Read<PathBuf> {
    let path = absolute(value)?;
    if path == Path::new("/") { Err(wrong("the root directory cannot be a tree")) } else { Ok(path) }
}

fn path(text: &str) -> Read<PathBuf> {
    let path = Path::new(text);
    if !path.is_absolute() {
        let complaint = wrong(format!("`{text}` is not an absolute path"));
        let expands = text.starts_with(['~', '$', '%']);
        let hint = "a path begins with `/`; `~` and variables are not expanded";
        return Err(if expands { complaint.hint(hint) } else { complaint });
    }
    if path.components().any(|c| c == Component::ParentDir) || text.contains('\0') {
        return Err(wrong(format!("`{text}` has a `..` or a NUL in it")).hint("write the path it means"));
    }
    Ok(path.components().collect())
}

pub(super) fn socket(value: &DeValue<'_>) -> Read<PathBuf> {
    socket_path(&text(value)?)
}

fn socket_path(text: &str) -> Read<PathBuf> {
    let path = path(text)?;
    let length = path.as_os_str().len();
    if length > SOCKET_PATH {
        return Err(wrong(format!(
            "the path of a socket has at most {SOCKET_PATH} bytes, this one {length}"
        )));
    }
    if length <= 1 {
        return Err(wrong(format!("`{text}` names no socket")));
    }
    Ok(path)
}

/// Where to listen.
pub(super) fn endpoint(value: &DeValue<'_>) -> Read<Endpoint> {
    let text = text(value)?;
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path).map(Endpoint::Unix);
    }
    let hint = format!("\"0.0.0.0:{PORT}\" or \"[::]:{PORT}\" for all, \"unix:/path\" for this host only");
    let bad = |_| wrong(format!("`{text}` is not an address with a port, nor unix:/path")).hint(hint);
    text.parse::<SocketAddr>().map(Endpoint::Tcp).map_err(bad)
}

/// A TCP address that anybody may connect to.
pub(super) fn address(value: &DeValue<'_>) -> Read<SocketAddr> {
    let text = text(value)?;
    let hint = "\"0.0.0.0:7421\" or \"[::]:7421\" for all, \"127.0.0.1:7421\" for this host only";
    text.parse().map_err(|_| wrong(format!("`{text}` is not an address with a port")).hint(hint))
}

/// Where a mirror reads.
pub(super) fn upstream(value: &DeValue<'_>) -> Read<Upstream> {
    let text = text(value)?;
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path).map(Upstream::Unix);
    }
    let (host, port) = text.strip_prefix("https://").and_then(host_and_port).ok_or_else(|| {
        let hint = format!("\"https://host:{PORT}\" or \"unix:/path\"");
        wrong(format!("`{text}` is not the address of a source")).hint(hint)
    })?;
    Ok(Upstream::Https { host, port })
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
        (host.parse::<Ipv6Addr>().ok()?.to_string(), port)
    } else {
        let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        // names of hosts are of the same letters
        (NodeId::new(host).ok()?.as_str().to_owned(), port)
    };
    let port = port.map_or(Some(PORT), |port| port.parse().ok().filter(|port| *port != 0))?;
    Some((host, port))
}

pub(super) fn max_delete(value: &DeValue<'_>) -> Read<MaxDelete> {
    match value {
        DeValue::Integer(_) => count(value).map(MaxDelete::Count),
        DeValue::String(text) => text.parse().map_err(|e: String| wrong(e)),
        _ => Err(wants("a number of files or \"25%\"", value)),
    }
}

/// `preserve`, `ignore` or `USER[:GROUP]`.
pub(super) fn owner(value: &DeValue<'_>) -> Read<String> {
    let text = text(value)?;
    let (user, group) = text.split_once(':').unwrap_or((&text, ""));
    let whole = !(user.is_empty() && group.is_empty());
    if whole && !text.contains(|c: char| c.is_whitespace() || c.is_control()) && !group.contains(':') {
        return Ok(text);
    }
    Err(wrong(format!("`{text}` is not `preserve`, `ignore` or USER[:GROUP]")))
}

/// `info`, or levels of modules: `info,syncagent::peer=debug`.
pub(super) fn log_level(value: &DeValue<'_>) -> Read<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let text = text(value)?;
    let module =
        |m: &str| !m.is_empty() && m.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b));
    let good = |part: &str| match part.split_once('=') {
        Some((target, level)) => module(target) && LEVELS.contains(&level),
        None => LEVELS.contains(&part),
    };
    if text.split(',').all(good) {
        return Ok(text);
    }
    let hint = format!("{}; or of modules: info,syncagent::peer=debug", LEVELS.join(", "));
    Err(wrong(format!("`{text}` is not a level")).hint(hint))
}

/// A file of the tree by its path in it.
pub(super) fn hold_file(value: &DeValue<'_>) -> Read<TreePath> {
    let text = text(value)?;
    let bad = |why: &str| wrong(format!("`{text}` {why}")).hint("a path relative to the tree's");
    // the pattern that leaves it out could not be written
    if text.trim() != text || text.contains(char::is_control) {
        return Err(bad("has white space at an end, or control characters"));
    }
    let path = TreePath::new(text.as_bytes()).map_err(|_| bad("is not a path in the tree"))?;
    if path.is_root() || path.components().any(|part| part == CONTROL_DIR) {
        return Err(bad("is not a file of the tree"));
    }
    Ok(path)
}

/// An element of `exclude`.
pub(super) fn exclude(text: &str) -> Read<String> {
    pattern(text, exclude_line(text))
}

/// An element of `include`.
pub(super) fn include(text: &str) -> Read<String> {
    if text.starts_with('!') {
        return Err(wrong(format!("`{text}` begins with `!`")).hint("an include needs none"));
    }
    pattern(text, include_line(text))
}

/// An element of `order`.
pub(super) fn order(text: &str) -> Read<String> {
    if text.starts_with(['!', '#']) {
        return Err(
            wrong(format!("`{text}` begins with `!` or `#`")).hint("write `\\!` or `\\#` for the letter")
        );
    }
    pattern(text, text.to_owned())
}

fn pattern(text: &str, line: String) -> Read<String> {
    if text.trim().is_empty() || text.contains(['\n', '\r', '\0']) {
        return Err(wrong("a pattern is one line, and not empty"));
    }
    Filter::new(vec![line]).map_err(|e| wrong(e.what))?;
    Ok(text.to_owned())
}

/// An exclude as a line of gitignore; a `#` there would begin a comment.
pub(super) fn exclude_line(text: &str) -> String {
    if text.starts_with('#') { format!("\\{text}") } else { text.to_owned() }
}

/// An include as a line of gitignore.
pub(super) fn include_line(text: &str) -> String {
    format!("!{text}")
}

/// The line of gitignore that matches one path and nothing else.
pub(super) fn exact_line(path: &TreePath) -> String {
    let mut line = String::from("/");
    for c in String::from_utf8_lossy(path.as_bytes()).chars() {
        if c.is_ascii_punctuation() && c != '/' {
            line.push('\\');
        }
        line.push(c);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_named_by_host_and_port_or_by_a_socket() {
        let read = |text: &str| upstream(&DeValue::String(text.into())).map(|u| u.to_string());
        for (text, expected) in [
            ("https://App2.example.com", "https://app2.example.com:7420"),
            ("https://10.0.0.7:443/", "https://10.0.0.7:443"),
            ("https://[2001:DB8::1]", "https://[2001:db8::1]:7420"),
            ("https://[::1]:9", "https://[::1]:9"),
            ("unix:///run/a.sock", "unix:/run/a.sock"),
        ] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
        for bad in [
            "http://a",
            "a:7420",
            "https://",
            "https://a:0",
            "https://a:x",
            "https://a:1:2",
            "https://a/b",
            "https://u@a",
            "https://[a]",
            "https://[::1]9",
            "https://::1",
            "unix:run",
            "unix:",
            "unix:/",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_socket_path_ends_at_107_bytes() {
        let read =
            |length: usize| endpoint(&DeValue::String(format!("unix:/{}", "x".repeat(length - 1)).into()));
        assert!(read(107).is_ok());
        assert!(read(108).is_err());
    }

    #[test]
    fn a_misspelt_log_level_is_no_module() {
        let read = |text: &str| log_level(&DeValue::String(text.into())).is_ok();
        for good in ["info", "off", "warn,syncagent::peer=debug", "syncagent=trace"] {
            assert!(read(good), "{good}");
        }
        for bad in ["", "inof", "INFO,", "info,", "=debug", "syncagent=loud", "a b=info"] {
            assert!(!read(bad), "{bad}");
        }
    }
}
