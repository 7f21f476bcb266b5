// SPDX-License-Identifier: GPL-2.0

//! The command line of the layout's verbs.

use std::path::PathBuf;

use clap::Args;

use super::WaitArgs;

/// Examples of [`ApplyArgs`].
pub const APPLY_EXAMPLES: &str = "\
Examples:
  daxdmem apply --dry-run
  daxdmem apply
  daxdmem apply --prune --no-wait /root/other-layout.toml

Exit code 1: nothing was changed, where the layout is wrong or does not fit; or some guests are not as declared, each of
which is named. What was done to others stays done.";

/// What `apply` takes.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The layout [default: /etc/daxdmem/layout.toml]
    pub file: Option<PathBuf>,
    /// Show the plan, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the plan as JSON, in the form that Documentation/daxdmem-json.md describes
    #[arg(long, requires = "dry_run")]
    pub json: bool,
    /// Destroy guests that are not in the layout, unless they are in use
    #[arg(long)]
    pub prune: bool,
    /// As at boot: give the regions a minute to appear, and do not wait for scrubs
    #[arg(long, conflicts_with = "dry_run")]
    pub boot: bool,
    /// Waiting
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// What `save` takes.
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// Where to; `-` for the standard output [default: /etc/daxdmem/layout.toml]
    pub file: Option<PathBuf>,
}
