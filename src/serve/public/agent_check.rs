//! HAProxy's agent check: one line for everybody who connects.
//!
//! HAProxy takes the line apart at blanks, tabs and commas, and obeys each word: also a percentage (a new weight) and
//! `maint`. A `#` makes the rest a description that is only shown, but only where a word begins: of `down#x` it knows
//! nothing, and goes on behind it. Reasons hold what servers, peers and file names say, so they come after ` #` alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::answers::Answers;
use super::conn::Place;

/// The line, and what the other side still sends, within so long.
const LIMIT: Duration = Duration::from_secs(2);
/// What is read of an `agent-send`.
const READ: usize = 1024;
/// The longest line, in bytes.
const LONGEST: usize = 200;

pub(super) async fn serve(mut stream: TcpStream, place: Place, answers: Arc<Answers>) {
    let line = answers.agent_line().await;
    let talk = async {
        stream.write_all(line.as_bytes()).await?;
        stream.shutdown().await?;
        // closing with something unread would cut the line off on its way
        let mut rest = [0; READ];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    tokio::select! {
        _ = tokio::time::timeout(LIMIT, talk) => {}
        () = place.is_over() => {}
    }
}

/// The line for these faults. `drained`: by an operator; `ready`: what HAProxy was told before is to be taken back.
pub(super) fn line(faults: &[&str], drained: bool, ready: bool) -> String {
    let mut words = match (drained, ready) {
        (true, _) => "drain".to_owned(),
        (false, true) => "ready".to_owned(),
        (false, false) => String::new(),
    };
    let gap = if words.is_empty() { "" } else { " " };
    if faults.is_empty() {
        if !drained {
            words = format!("up{gap}{words}");
        }
    } else {
        // the blank is what keeps the words behind it from being obeyed
        words = format!("{words}{gap}down #{}", faults.join("; "));
    }
    // what is not ASCII would end up in logs as it likes
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    let mut line: String = words.chars().map(plain).take(LONGEST - 1).collect();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn the_words_are_those_of_haproxy() {
        assert_eq!(line(&[], false, true), "up ready\n");
        assert_eq!(line(&[], false, false), "up\n");
        assert_eq!(line(&[], true, true), "drain\n");
        assert_eq!(line(&["t: lag"], false, false), "down #t: lag\n");
        assert_eq!(line(&["t: lag", "u: failed"], false, true), "ready down #t: lag; u: failed\n");
        assert_eq!(line(&["t: lag"], true, false), "drain down #t: lag\n");
    }

    /// The words that HAProxy obeys, as its `check.c` and `tcpcheck.c` find them since 1.5.
    fn obeyed(line: &str) -> Vec<&str> {
        let (line, _) = line.split_once(['\r', '\n']).unwrap();
        let mut words = line.split([' ', '\t', ',']).filter(|word| !word.is_empty());
        words.by_ref().take_while(|word| !word.starts_with('#')).collect()
    }

    #[test]
    fn no_word_of_a_reason_is_obeyed() {
        assert_eq!(obeyed("down#x up,25%\tmaint #y\n"), ["down#x", "up", "25%", "maint"]);
        for reason in [
            "",
            "#",
            " up ready",
            ",up,25%,maint,stopped,maxconn:1",
            "t: more than max-delete = 25% allows",
            "a\tup\rready\nmaint\u{2028}drain\0fail",
            "# up # ready #down",
            &"up 25% ".repeat(80),
            &"ü".repeat(400),
        ] {
            for (drained, ready, own) in [
                (false, false, &["down"][..]),
                (false, true, &["ready", "down"]),
                (true, false, &["drain", "down"]),
            ] {
                let line = line(&[reason, "u: up, ready"], drained, ready);
                assert_eq!(obeyed(&line), own, "{line:?}");
                assert!(line.len() <= 200 && line.find('\n') == Some(line.len() - 1), "{line:?}");
            }
        }
    }

    #[test]
    fn the_line_is_one_short_one_of_ascii() {
        let long = "ü\n".repeat(400);
        let line = line(&[&long], false, false);
        assert_eq!((line.len(), line.matches('\n').count()), (200, 1));
        assert!(line.is_ascii());
    }
}
