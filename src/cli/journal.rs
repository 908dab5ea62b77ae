//! Lines for the journal: each begins with its level as sd-daemon(3) has it (`<4>`), which the journal takes off, so
//! that `journalctl -p warning` finds them. A line for people has no time of its own, because the journal has one.

use std::fmt;
use std::os::fd::AsFd;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Whether `stream` goes straight to the journal: systemd says so, and means this very stream.
pub(super) fn is_journal(stream: impl AsFd) -> bool {
    let Some(told) = std::env::var_os("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(stream).is_ok_and(|s| told.to_str() == Some(&format!("{}:{}", s.st_dev, s.st_ino)))
}

/// Writes the level before each line of another format.
pub(super) struct Leveled<F>(pub(super) F);

impl<S, N, F> FormatEvent<S, N> for Leveled<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(to, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(ctx, to, event)
    }
}

/// A line for people.
pub(super) struct Line(Format<Full, ()>);

impl Line {
    pub(super) fn new() -> Self {
        Self(tracing_subscriber::fmt::format().without_time().with_target(false).with_level(false))
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(to, "{:>5} ", *event.metadata().level())?;
        self.0.format_event(ctx, to, event)
    }
}

/// As syslog(3) has it.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_begins_with_its_level() {
        let lines = Lines::default();
        let to = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .event_format(Leveled(Line::new()))
            .with_writer(move || to.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, some_events);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "<4> WARN drift tree=\"t\"\n<6> INFO started\n<3>ERROR the disk\n");
    }

    fn some_events() {
        tracing::warn!(tree = "t", "drift");
        tracing::info!("started");
        tracing::error!("the disk");
    }

    #[test]
    fn a_line_of_json_begins_with_its_level_too() {
        let lines = Lines::default();
        let to = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .map_event_format(Leveled)
            .with_writer(move || to.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, some_events);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let mut levels = Vec::new();
        for line in text.lines() {
            // what the journal is left with
            let (level, rest) = line.split_at(3);
            let line: serde_json::Value = serde_json::from_str(rest).unwrap();
            levels.push((level, line["level"].as_str().unwrap().to_owned(), line["message"].clone()));
        }
        let expected = [("<4>", "WARN", "drift"), ("<6>", "INFO", "started"), ("<3>", "ERROR", "the disk")];
        assert_eq!(levels, expected.map(|(p, l, m)| (p, l.to_owned(), m.into())));
    }

    #[test]
    fn another_stream_is_not_the_journal() {
        // systemd names one stream; a test's is none
        assert!(!is_journal(tempfile::tempfile().unwrap()));
    }
}
