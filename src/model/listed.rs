//! Lists in sentences.

use std::fmt::Display;

/// The first `most` of them, and how many more there are.
pub fn listed<T: Display>(all: impl ExactSizeIterator<Item = T>, most: usize, separator: &str) -> String {
    let more = all.len().saturating_sub(most);
    let named: Vec<String> = all.take(most).map(|one| one.to_string()).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(separator))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_is_counted() {
        let list = |n: usize| listed(["a", "b", "c"][..n].iter(), 2, ", ");
        assert_eq!([0, 1, 2, 3].map(list), ["", "a", "a, b", "a, b and 1 more"]);
    }
}
