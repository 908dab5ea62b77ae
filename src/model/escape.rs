//! One line per path, whatever bytes it has: C escapes without octal, so that a plan can be read by
//! people and split by scripts.

use std::fmt::Write as _;

/// `bytes` with control characters, `\` and bytes that are not UTF-8 as `\n`, `\t`, `\r`, `\\` or `\xNN`.
/// Printable UTF-8 stays as it is.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                '\\' => out.push_str("\\\\"),
                c if needs_escape(c) => {
                    let mut utf8 = [0; 4];
                    hex(&mut out, c.encode_utf8(&mut utf8).as_bytes());
                }
                c => out.push(c),
            }
        }
        hex(&mut out, chunk.invalid());
    }
    out
}

/// Control characters, and what reorders or hides text on a terminal.
fn needs_escape(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn hex(out: &mut String, bytes: &[u8]) {
    for b in bytes {
        // writing to a String cannot fail
        let _ = write!(out, "\\x{b:02x}");
    }
}

/// [`escape`] for an operating-system path.
pub fn escaped(path: &std::path::Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    escape(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn every_byte_string_becomes_one_printable_line() {
        assert_eq!(escape(b"a\nb\tc\\d\x1b\xff"), "a\\nb\\tc\\\\d\\x1b\\xff");
        assert_eq!(escape("größe 日本".as_bytes()), "größe 日本");
        assert_eq!(escape("\u{202e}x".as_bytes()), "\\xe2\\x80\\xaex");
        assert_eq!(escape(b"\r\x7f"), "\\r\\x7f");
    }
}
