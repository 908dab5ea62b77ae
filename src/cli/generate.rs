//! `syncagent generate`: man pages and shell completions, from the same definition that parses the command line.

use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::exit::Exit;
use super::options::{Cli, GenerateArgs, Generated};
use crate::error::{Context as _, Result};
use crate::model::escaped;

pub(super) fn run(args: &GenerateArgs) -> Result<Exit> {
    let cannot = || format!("write to {}", escaped(&args.dir));
    std::fs::create_dir_all(&args.dir).context(cannot)?;
    match args.what {
        Generated::Man => man(&args.dir).context(cannot)?,
        Generated::Completions => {
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                clap_complete::generate_to(shell, &mut Cli::command(), "syncagent", &args.dir)
                    .context(cannot)?;
            }
        }
    }
    Ok(Exit::Done)
}

/// One page per command, named like `syncagent-config-check.1`.
fn man(dir: &Path) -> std::io::Result<()> {
    // each command's own `help` and `--help` need no pages
    let command = Cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_its_completions() {
        let dir = tempfile::tempdir().unwrap();
        for what in [Generated::Man, Generated::Completions] {
            run(&GenerateArgs { what, dir: dir.path().join("new") }).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join("new").join(name)).unwrap();
        for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let name = command.get_name();
            assert!(read(&format!("syncagent-{name}.1")).contains(".TH"), "{name}");
            for below in command.get_subcommands() {
                read(&format!("syncagent-{name}-{}.1", below.get_name()));
            }
            for file in ["syncagent.bash", "_syncagent", "syncagent.fish"] {
                assert!(read(file).contains(name), "{file} lacks {name}");
            }
        }
        assert!(read("syncagent.1").contains("Exit codes"));
        assert!(!dir.path().join("new/syncagent-generate.1").exists());
    }
}
