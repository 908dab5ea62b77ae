//! `syncagent status`: once, or again every second. On a terminal a frame replaces the one before it in one write,
//! so that nothing flickers; elsewhere tables or JSON lines follow each other.

mod table;

use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::exit::Exit;
use super::options::StatusArgs;
use super::output_failed;
use crate::error::{Class, Error, Result};
use crate::model::Status;
pub(crate) use table::table;
pub(super) use table::{count, duration, name, shown};

/// A terminal's columns and rows.
type Size = (u16, u16);

/// Shows what `fetch` gives: the agent's status document.
///
/// # Errors
/// The first `fetch` failed (with `--json` any), there is no such tree, or standard output takes nothing.
pub(super) fn run(
    args: &StatusArgs,
    cancel: &AtomicBool,
    fetch: impl FnMut() -> Result<Status>,
) -> Result<Exit> {
    repeat(args, &mut io::stdout().lock(), size, || second(cancel), fetch)
}

/// The size of standard output, when it is a terminal.
fn size() -> Option<Size> {
    let out = io::stdout();
    let size = out.is_terminal().then(|| rustix::termios::tcgetwinsize(out).ok()).flatten()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Waits a second; false when it was asked to end.
fn second(cancel: &AtomicBool) -> bool {
    // a sleep is not cut short by a signal
    (0..10).all(|_| {
        std::thread::sleep(Duration::from_millis(100));
        !cancel.load(Ordering::Relaxed)
    })
}

fn repeat(
    args: &StatusArgs,
    out: &mut impl Write,
    size: impl Fn() -> Option<Size>,
    mut wait: impl FnMut() -> bool,
    mut fetch: impl FnMut() -> Result<Status>,
) -> Result<Exit> {
    let mut seen = false;
    loop {
        let size = size();
        let text = match fetch().and_then(|status| text(args, status, size)) {
            Ok(text) => text,
            // the agent may be restarting
            Err(e) if args.watch && !args.json && seen => format!("syncagent: {e}"),
            Err(e) => return Err(e),
        };
        seen = true;
        let text = match size {
            Some((_, rows)) if args.watch && !args.json => frame(&text, rows),
            _ => format!("{}\n", text.trim_end_matches('\n')),
        };
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(output_failed)?;
        if !args.watch {
            return Ok(Exit::Done);
        }
        if !wait() {
            return Ok(Exit::Interrupted);
        }
    }
}

fn text(args: &StatusArgs, mut status: Status, size: Option<Size>) -> Result<String> {
    if let Some(tree) = &args.tree
        && !status.trees.iter().any(|t| t.name == *tree)
    {
        let names: Vec<&str> = status.trees.iter().map(|t| t.name.as_str()).collect();
        let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(Error::new(Class::Config, format!("the agent has no tree `{tree}`; it has: {known}")));
    }
    if !args.json {
        return Ok(table(&status, args.tree.as_deref(), size.map(|(columns, _)| columns)));
    }
    status.trees.retain(|t| args.tree.as_ref().is_none_or(|tree| t.name == *tree));
    serde_json::to_string(&status)
        .map_err(|e| Error::new(Class::Permanent, format!("cannot write the status as JSON: {e}")))
}

/// `text` over what the screen shows, cut to `rows`.
fn frame(text: &str, rows: u16) -> String {
    let lines: Vec<&str> = text.trim_end_matches('\n').lines().collect();
    let rows = usize::from(rows).max(2);
    let fits = lines.len() <= rows;
    let shown = if fits { lines.len() } else { rows - 1 };
    let mut out = String::from("\x1b[H");
    // no line end after the last one: it would scroll the first one away
    out += &lines[..shown].join("\x1b[K\r\n");
    if !fits {
        out += &format!("\x1b[K\r\n... {} more lines", lines.len() - shown);
    }
    out + "\x1b[K\x1b[J"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::table::tests::sample;

    fn args(line: &str) -> StatusArgs {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: StatusArgs,
        }
        <Line as clap::Parser>::parse_from(format!("status {line}").split_whitespace()).args
    }

    /// What is written when the agent answers `answers`, one a second.
    fn shown(line: &str, size: Option<Size>, answers: Vec<Result<Status>>) -> (String, Result<Exit>) {
        let mut out = Vec::new();
        let mut left = answers.len();
        let mut answers = answers.into_iter();
        let wait = || {
            left -= 1;
            left > 0
        };
        let exit = repeat(&args(line), &mut out, || size, wait, || answers.next().unwrap());
        (String::from_utf8(out).unwrap(), exit)
    }

    fn gone() -> Result<Status> {
        Err(Error::new(Class::Transient, "no agent"))
    }

    #[test]
    fn once_is_a_table_and_nothing_for_the_terminal() {
        let (text, exit) = shown("", Some((200, 50)), vec![Ok(sample())]);
        assert_eq!(exit.unwrap(), Exit::Done);
        assert_eq!(text, table(&sample(), None, Some(200)));
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn watching_on_a_terminal_draws_over_the_last_frame() {
        let (text, exit) = shown("--watch", Some((200, 50)), vec![Ok(sample()), gone(), Ok(sample())]);
        assert_eq!(exit.unwrap(), Exit::Interrupted);
        let frames: Vec<&str> = text.split("\x1b[H").skip(1).collect();
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[1], "syncagent: no agent\x1b[K\x1b[J");
        assert_eq!(frames[0], frames[2]);
        assert!(!frames[0].ends_with('\n'), "the screen would scroll");
    }

    #[test]
    fn a_frame_is_no_higher_than_the_screen() {
        assert_eq!(frame("1\n2\n3\n", 3), "\x1b[H1\x1b[K\r\n2\x1b[K\r\n3\x1b[K\x1b[J");
        assert_eq!(frame("1\n2\n3\n4\n", 3), "\x1b[H1\x1b[K\r\n2\x1b[K\r\n... 2 more lines\x1b[K\x1b[J");
    }

    #[test]
    fn watching_elsewhere_repeats_plainly() {
        let (text, _) = shown("--watch", None, vec![Ok(sample()), Ok(sample())]);
        assert_eq!(text, table(&sample(), None, None).repeat(2));
        let (text, _) = shown("--watch --json", Some((80, 24)), vec![Ok(sample()), Ok(sample())]);
        let lines: Vec<Status> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines, [sample(), sample()]);
    }

    #[test]
    fn an_agent_that_is_not_there_is_an_error_at_first_and_for_programs_always() {
        assert_eq!(shown("--watch", None, vec![gone()]).1.unwrap_err().class, Class::Transient);
        let (text, exit) = shown("--watch --json", None, vec![Ok(sample()), gone()]);
        assert_eq!((text.lines().count(), exit.unwrap_err().class), (1, Class::Transient));
    }

    #[test]
    fn a_tree_that_the_agent_has_not_is_named_with_those_that_it_has() {
        let e = shown("nope", None, vec![Ok(sample())]).1.unwrap_err();
        assert_eq!(e.to_string(), "the agent has no tree `nope`; it has: assets, deploy");
        let (text, _) = shown("deploy --json", None, vec![Ok(sample())]);
        let status: Status = serde_json::from_str(&text).unwrap();
        assert_eq!(status.trees.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["deploy"]);
    }
}
