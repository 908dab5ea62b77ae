//! HAProxy's agent check: one line for everybody who connects.

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
        words = format!("{words}{gap}down#{}", faults.join("; "));
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
        assert_eq!(line(&["t: lag"], false, false), "down#t: lag\n");
        assert_eq!(line(&["t: lag", "u: failed"], false, true), "ready down#t: lag; u: failed\n");
        assert_eq!(line(&["t: lag"], true, false), "drain down#t: lag\n");
    }

    #[test]
    fn the_line_is_one_short_one_of_ascii() {
        let long = "ü\n".repeat(400);
        let line = line(&[&long], false, false);
        assert_eq!((line.len(), line.matches('\n').count()), (200, 1));
        assert!(line.is_ascii());
    }
}
