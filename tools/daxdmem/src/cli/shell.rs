// SPDX-License-Identifier: GPL-2.0

//! Command line of what is generated from the command line itself: completions and man pages.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

/// How completions come into use; behind `daxdmem completion --help`.
pub const COMPLETION_EXAMPLES: &str = "\
Examples:
  daxdmem completion bash > /etc/bash_completion.d/daxdmem
  daxdmem completion zsh > ~/.zfunc/_daxdmem
  daxdmem completion fish > ~/.config/fish/completions/daxdmem.fish

The Debian package has them in place already.";

/// See [`super::Command::Completion`].
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell that is to complete
    #[arg(value_enum)]
    pub shell: Shell,
}

/// See [`super::Command::Man`].
#[derive(Debug, Args)]
pub struct ManArgs {
    /// An existing directory to write them to
    pub dir: PathBuf,
}
