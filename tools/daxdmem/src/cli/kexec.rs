// SPDX-License-Identifier: GPL-2.0

//! The command line of `kexec-prepare`.

use std::path::PathBuf;

use clap::Args;

use crate::name::GuestName;

/// Examples of [`KexecArgs`].
pub const EXAMPLES: &str = "\
Examples:
  daxdmem kexec-prepare vm1 vm2 --dry-run
  daxdmem kexec-prepare vm1 vm2
  daxdmem kexec-prepare vm1 --kernel /boot/vmlinuz-7.3.4 --initrd /boot/initrd.img-7.3.4 --append panic=10
  systemctl kexec
  daxdmem kexec-prepare --cancel

Documentation/live-upgrade.md has the whole way, with QEMU's part of it.";

/// What `kexec-prepare` takes.
#[derive(Debug, Args)]
pub struct KexecArgs {
    /// The guests whose memory is to be kept; their QEMUs have ended
    #[arg(required_unless_present = "cancel")]
    pub guests: Vec<GuestName>,
    /// The kernel to go on with [default: the newest in /boot]
    #[arg(long, value_name = "FILE", requires = "initrd")]
    pub kernel: Option<PathBuf>,
    /// Its initramfs
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Parameters for it besides those of the running kernel
    #[arg(long, value_name = "PARAMETERS", allow_hyphen_values = true)]
    pub append: Option<String>,
    /// Check everything and print the next kernel's command line, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Give up what was prepared: no kernel is loaded and no guest is kept
    #[arg(long, conflicts_with_all = ["guests", "kernel", "append", "dry_run"])]
    pub cancel: bool,
}
