//! Texts with places to fill in. One pass, so that what is filled in is never taken for a place; braces that
//! are no place stay, for JSON has many.

use super::changed::Changed;
use crate::model::{GenId, NodeId, escape};

/// What is filled in.
pub(super) struct Facts<'a> {
    pub tree: &'a str,
    pub node: &'a NodeId,
    pub generation: GenId,
    pub changed: &'a Changed,
}

/// `{tree}`, `{node}`, `{generation}`, `{paths}` (one escaped path a line; nothing when anything may have changed)
/// and `{paths-json}` (a list of texts, or `null` then) in `text`.
pub(super) fn fill(text: &str, facts: &Facts<'_>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let place = rest.find('}').map(|end| &rest[..=end]);
        let value = match place {
            Some("{tree}") => Some(facts.tree.to_owned()),
            Some("{node}") => Some(facts.node.to_string()),
            Some("{generation}") => Some(facts.generation.to_string()),
            Some("{paths}") => Some(lines(facts.changed)),
            Some("{paths-json}") => Some(json(facts.changed)),
            _ => None,
        };
        match (value, place) {
            (Some(value), Some(place)) => {
                out.push_str(&value);
                rest = &rest[place.len()..];
            }
            _ => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

fn lines(changed: &Changed) -> String {
    let Changed::Paths(paths) = changed else { return String::new() };
    paths.iter().map(|path| escape(path.as_bytes())).collect::<Vec<_>>().join("\n")
}

fn json(changed: &Changed) -> String {
    let Changed::Paths(paths) = changed else { return "null".into() };
    let text = |path: &crate::model::TreePath| String::from_utf8_lossy(path.as_bytes()).into_owned();
    serde_json::Value::from(paths.iter().map(text).collect::<Vec<_>>()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TreePath;

    #[test]
    fn places_are_filled_in_once_and_other_braces_stay() {
        let node = NodeId::new("app1").unwrap();
        let path = |bytes: &[u8]| TreePath::new(bytes).unwrap();
        let changed = Changed::Paths(vec![path(b"a\n\"{tree}"), path(b"b\xff")]);
        let generation = GenId { epoch: 1, number: 42 };
        let facts = Facts { tree: "t", node: &node, generation, changed: &changed };
        assert_eq!(fill("{tree}/{node}/{generation}", &facts), "t/app1/1.42");
        assert_eq!(
            fill("{\"g\":{\"x\":\"{generation}\"},\"p\":{paths-json}}", &facts),
            "{\"g\":{\"x\":\"1.42\"},\"p\":[\"a\\n\\\"{tree}\",\"b\u{fffd}\"]}"
        );
        assert_eq!(fill("{paths}", &facts), "a\\n\"{tree}\nb\\xff");
        assert_eq!(fill("{{tree}} {other} {", &facts), "{t} {other} {");
        let facts = Facts { changed: &Changed::Everything, ..facts };
        assert_eq!(fill("{paths}|{paths-json}", &facts), "|null");
    }
}
