// SPDX-License-Identifier: GPL-2.0

//! The command line of `daxdmem check`.

use clap::Args;

/// Shown by the help.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  no finding is an error; warnings may be among them
  1  a finding is an error
  2  the command line was not understood";

/// See [`super::Command::Check`].
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON, in the form that Documentation/daxdmem-json.md describes
    #[arg(long)]
    pub json: bool,
    /// Show only what is a warning or an error
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
}
