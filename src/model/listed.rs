//! Lists in sentences.

use std::fmt::Display;

/// The first `most` of them, and how many more there are.
pub fn listed<T: Display>(all: impl ExactSizeIterator<Item = T>, most: usize, separator: &str) -> String {
    let more = all.len().saturating_sub(most);
    let named: Vec<String> = all.take(most).map(|one| one.to_string()).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(separator))
}

/// `1 file`, `2 files`: of a noun that takes an s.
pub fn counted(n: impl TryInto<u64>, noun: &str) -> String {
    // nothing is counted that 64 bits do not hold
    let n: u64 = n.try_into().unwrap_or(u64::MAX);
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// The same with a verb in its singular and plural: `1 path is`, `2 paths are`.
pub fn counted_as(n: impl TryInto<u64>, noun: &str, verb: (&str, &str)) -> String {
    let n: u64 = n.try_into().unwrap_or(u64::MAX);
    format!("{} {}", counted(n, noun), if n == 1 { verb.0 } else { verb.1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_is_counted() {
        let list = |n: usize| listed(["a", "b", "c"][..n].iter(), 2, ", ");
        assert_eq!([0, 1, 2, 3].map(list), ["", "a", "a, b", "a, b and 1 more"]);
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0u64, 1, 2].map(|n| counted(n, "file")), ["0 files", "1 file", "2 files"]);
        assert_eq!(counted_as(1usize, "path", ("is", "are")), "1 path is");
        assert_eq!(counted_as(0usize, "path", ("is", "are")), "0 paths are");
    }
}
