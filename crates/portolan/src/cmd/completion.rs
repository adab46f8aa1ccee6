//! `portolan completion`

use anyhow::Result;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::output;

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  source <(portolan completion bash)
  portolan completion zsh > ~/.zfunc/_portolan
  portolan completion fish > ~/.config/fish/completions/portolan.fish")]
pub(crate) struct Args {
    /// bash, elvish, fish, powershell or zsh
    #[arg(hide_possible_values = true)]
    shell: Shell,
}

impl Args {
    pub(crate) fn run(self) -> Result<i32> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "portolan", &mut script);
        output::print(&String::from_utf8_lossy(&script))?;
        Ok(0)
    }
}
