//! TOML with its places, walked key by key instead of derived: so one look finds every unknown key and
//! every value of a wrong type, not only the first.

use toml::de::{DeTable, DeValue};

use super::problem::{Complaint, Problems, Severity, wrong};

/// What all trees have.
const TREE: [&str; 12] = [
    "path",
    "role",
    "exclude",
    "include",
    "owner",
    "setid",
    "max-delete",
    "keep",
    "keep-bytes",
    "max-lag",
    "max-contact-age",
    "refresh",
];
/// What only a source has.
pub(super) const SOURCE_ONLY: [&str; 4] = ["allow", "settle", "settle-max", "hold-file"];
/// What only a mirror has.
pub(super) const MIRROR_ONLY: [&str; 7] =
    ["source", "source-id", "activate", "staging", "order", "drift", "adopt"];
const BOTH_ROLES: [&str; 1] = ["scan-interval"];
const REFRESH: [&str; 11] = [
    "name",
    "when",
    "http",
    "exec",
    "systemd",
    "signal",
    "touch",
    "timeout",
    "min-interval",
    "retry-max",
    "verify",
];
const HTTP: [&str; 9] = ["url", "method", "headers", "body", "expect", "contains", "ca", "cert", "key"];

/// The sections by name; the first is the file itself.
const SECTIONS: [(&str, &[&[&str]]); 14] = [
    ("", &[&["node", "listen", "tls", "cluster", "log", "health", "tree", "state-dir"]]),
    ("node", &[&["id", "zone"]]),
    ("listen", &[&["data", "socket", "public", "agent-check"]]),
    ("tls", &[&["cert", "key", "ca"]]),
    ("cluster", &[&["name", "store"]]),
    ("log", &[&["format", "level"]]),
    ("health", &[&["drain-on", "refresh-failures", "startup-grace"]]),
    ("tree.NAME", &[&TREE, &BOTH_ROLES, &SOURCE_ONLY, &MIRROR_ONLY]),
    ("[tree.NAME.refresh]", &[&REFRESH]),
    ("tree.NAME.refresh.http", &[&HTTP]),
    ("tree.NAME.refresh.http.headers.NAME", &[&["file", "credential"]]),
    ("tree.NAME.refresh.systemd", &[&["verb", "unit"]]),
    ("tree.NAME.refresh.signal", &[&["signal", "pid-file", "unit"]]),
    ("tree.NAME.refresh.verify", &[&["http", "exec", "timeout", "within", "on-failure", "refreshes"]]),
];

/// A table of the file, perhaps a missing one, and where its problems go.
pub(super) struct Table<'a> {
    /// As `tree.assets`; empty for the file itself.
    name: String,
    /// Where its name stands.
    at: Option<usize>,
    entries: Option<&'a DeTable<'a>>,
    problems: &'a Problems<'a>,
}

impl<'a> Table<'a> {
    /// The file itself.
    pub(super) fn root(entries: &'a DeTable<'a>, problems: &'a Problems<'a>) -> Self {
        Self { name: String::new(), at: None, entries: Some(entries), problems }
    }

    /// A table in this one; an empty one when it is missing or something else.
    pub(super) fn section(&self, key: &str) -> Table<'a> {
        let mut section = Table { name: self.path(key), at: None, entries: None, problems: self.problems };
        if let Some((at, value)) = self.get(key) {
            section.at = Some(at);
            section.entries = value.as_table();
            if section.entries.is_none() {
                self.error(key, wants("a table", value).hint(format!("write [{}]", section.name)));
            }
        }
        section
    }

    /// The tables in this one with their names, in the order of the file.
    pub(super) fn tables(&self) -> Vec<(&'a str, Table<'a>)> {
        self.keys().into_iter().map(|key| (key, self.section(key))).collect()
    }

    /// The tables of a list of tables, `[[NAME]]`, in the order of the file; none when it is missing or something else.
    pub(super) fn array_of_tables(&self, key: &str) -> Vec<Table<'a>> {
        let Some((_, value)) = self.get(key) else {
            return Vec::new();
        };
        let name = self.path(key);
        let Some(list) = value.as_array() else {
            self.error(key, wants("a list of tables", value).hint(format!("write [[{name}]]")));
            return Vec::new();
        };
        let table = |(i, e): (usize, &'a toml::Spanned<DeValue<'a>>)| {
            let (at, value) = (Some(e.span().start), e.get_ref());
            let name = if list.len() == 1 { name.clone() } else { format!("{name}[{}]", i + 1) };
            let entries = value.as_table();
            if entries.is_none() {
                self.problems.add(Severity::Error, at, name.clone(), wants("a table", value));
            }
            entries.map(|entries| Table { name, at, entries: Some(entries), problems: self.problems })
        };
        list.iter().enumerate().filter_map(table).collect()
    }

    /// The keys, in the order of the file.
    pub(super) fn keys(&self) -> Vec<&'a str> {
        let mut keys: Vec<_> = self.entries.iter().flat_map(|e| e.keys()).collect();
        keys.sort_by_key(|key| key.span().start);
        keys.into_iter().map(|key| &**key.get_ref()).collect()
    }

    /// Complains of every key that does not belong in a section of the kind `section`.
    pub(super) fn known(&self, section: &str) {
        let known: Vec<&str> = keys_of(section).collect();
        for (key, value) in self.entries.into_iter().flatten() {
            let key: &str = key.get_ref();
            if known.contains(&key) {
                continue;
            }
            let mut complaint = wrong("there is no such key");
            let home = SECTIONS.iter().find(|(name, _)| keys_of(name).any(|k| k == key));
            if let Some(near) = nearest(key, &known) {
                complaint = complaint.hint(format!("did you mean `{near}`?"));
            } else if section == "tree.NAME" && value.get_ref().is_table() {
                complaint = complaint.hint("a tree's name with a dot needs quotes: [tree.\"a.b\"]");
            } else if let Some((home, _)) = home {
                complaint = complaint.hint(match *home {
                    "" => "it belongs at the top of the file, before the first [section]".to_owned(),
                    home => format!("it belongs in [{home}]"),
                });
            }
            self.error(key, complaint);
        }
    }

    /// Whether the key is there, with whatever value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The line of a key, for messages about another one.
    pub(super) fn line(&self, key: &str) -> usize {
        self.get(key).map_or(0, |(at, _)| self.problems.line(at))
    }

    /// A value; `None` when it is missing or wrong, which is noted.
    pub(super) fn read<T>(
        &self,
        key: &str,
        parse: impl Fn(&DeValue<'_>) -> Result<T, Complaint>,
    ) -> Option<T> {
        let (_, value) = self.get(key)?;
        parse(value).map_err(|complaint| self.error(key, complaint)).ok()
    }

    /// [`Table::read`] of a value that must be there; `hint` says what to write.
    pub(super) fn need<T>(
        &self,
        key: &str,
        hint: &str,
        parse: impl Fn(&DeValue<'_>) -> Result<T, Complaint>,
    ) -> Option<T> {
        if !self.has(key) {
            self.error(key, wrong("is missing").hint(hint));
        }
        self.read(key, parse)
    }

    /// A list of texts; `None` when it is missing or an element is wrong, each noted in its own line.
    pub(super) fn list<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, Complaint>) -> Option<Vec<T>> {
        self.elements(key, |value| {
            value.as_str().ok_or_else(|| wants("a list of texts", value)).and_then(&parse)
        })
    }

    /// [`Table::list`] of elements of any kind.
    pub(super) fn elements<T>(
        &self,
        key: &str,
        parse: impl Fn(&DeValue<'_>) -> Result<T, Complaint>,
    ) -> Option<Vec<T>> {
        let (_, value) = self.get(key)?;
        let Some(list) = value.as_array() else {
            self.error(key, wants("a list", value).hint(format!("{key} = [\"…\", \"…\"]")));
            return None;
        };
        let element = |e: &toml::Spanned<DeValue<'_>>| {
            let note = |complaint| {
                self.problems.add(Severity::Error, Some(e.span().start), self.path(key), complaint);
            };
            parse(e.get_ref()).map_err(note).ok()
        };
        // all are looked at before the first wrong one ends it
        let elements: Vec<Option<T>> = list.iter().map(element).collect();
        elements.into_iter().collect()
    }

    /// Notes an error at a key, or at the table when the key is missing; an empty key means the table itself.
    pub(super) fn error(&self, key: &str, complaint: Complaint) {
        self.problems.add(Severity::Error, self.place(key), self.path(key), complaint);
    }

    /// Notes a warning.
    pub(super) fn warning(&self, key: &str, complaint: Complaint) {
        self.problems.add(Severity::Warning, self.place(key), self.path(key), complaint);
    }

    fn place(&self, key: &str) -> Option<usize> {
        self.get(key).map(|(at, _)| at).or(self.at)
    }

    fn get(&self, key: &str) -> Option<(usize, &'a DeValue<'a>)> {
        let (key, value) = self.entries?.get_key_value(key)?;
        Some((key.span().start, value.get_ref()))
    }

    fn path(&self, key: &str) -> String {
        if key.is_empty() {
            return self.name.clone();
        }
        let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        let key = if plain { key.to_owned() } else { format!("\"{key}\"") };
        if self.name.is_empty() { key } else { format!("{}.{key}", self.name) }
    }
}

/// "Wants this, not that".
pub(super) fn wants(what: &str, value: &DeValue<'_>) -> Complaint {
    let kind = match value.type_str() {
        "string" => "text",
        kind => kind,
    };
    wrong(format!("wants {what}, not {kind}"))
}

pub(super) fn keys_of(section: &str) -> impl Iterator<Item = &'static str> {
    let lists = SECTIONS.iter().find(|(name, _)| *name == section).map_or(&[][..], |(_, lists)| lists);
    lists.iter().flat_map(|list| list.iter().copied())
}

/// The one of `known` that was probably meant: at most a third of its letters differ.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let key = key.to_ascii_lowercase().replace('_', "-");
    let near = known.iter().map(|k| (distance(&key, k), *k)).min()?;
    (near.0 * 3 <= near.1.len().max(3)).then_some(near.1)
}

/// Levenshtein's edit distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::{distance, nearest};

    #[test]
    fn an_edit_distance_counts_letters_put_in_left_out_and_replaced() {
        for (a, b, expected) in
            [("", "", 0), ("abc", "", 3), ("settle", "setle", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn only_a_near_key_is_suggested() {
        let known = ["settle", "settle-max", "id"];
        assert_eq!(nearest("settle_max", &known), Some("settle-max"));
        assert_eq!(nearest("Setle", &known), Some("settle"));
        assert_eq!(nearest("ip", &known), Some("id"));
        assert_eq!(nearest("color", &known), None);
    }
}
