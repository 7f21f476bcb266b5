// SPDX-License-Identifier: GPL-2.0

//! Command line of the verbs for libvirt.

use std::path::PathBuf;

use clap::Args;

use crate::name::Target;

/// Behind `daxdmem libvirt-xml --help`.
pub const XML_EXAMPLES: &str = "\
Examples:
  daxdmem libvirt-xml vm1 --output vm1.xml        a new domain, to be completed
  virsh dumpxml --inactive vm1 > vm1.xml
  daxdmem libvirt-xml vm1 --into vm1.xml          the domain that vm1 has
  virsh define vm1.xml";

/// Behind `daxdmem libvirt-setup --help`.
pub const SETUP_DETAILS: &str = "\
Files:
  /etc/libvirt/qemu.conf
         cgroup_device_acl gets the guests' links, /dev/daxdmem/NAME; what it had stays in it.
  /etc/apparmor.d/abstractions/libvirt-qemu.d/daxdmem
         lets QEMU open devices, and read their sizes.

Owner and mode of a device are the guest's own: `daxdmem set NAME --owner libvirt-qemu:kvm --mode 0660`.

Again for new guests, since the list names each of them. libvirt reads it when it starts: after a change
`systemctl try-restart libvirtd.service virtqemud.service`, which leaves running guests alone.";

/// See [`super::Command::LibvirtXml`].
#[derive(Debug, Args)]
pub struct LibvirtXmlArgs {
    /// The guest's name, or the device's, daxX.Y
    #[arg(value_name = "NAME|daxX.Y")]
    pub target: Target,
    /// Change this domain, instead of writing a new one
    #[arg(long, value_name = "FILE")]
    pub into: Option<PathBuf>,
    /// Write to this file [default: the one that is changed, or the standard output]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Have disks that bypass the host's page cache, which cannot work, go through it
    ///
    /// cache='none' becomes 'writeback', 'directsync' becomes 'writethrough', io='native' becomes 'threads'. The guest's
    /// flushes reach the disk as before.
    #[arg(long, requires = "into")]
    pub fix_disks: bool,
}

/// See [`super::Command::LibvirtSetup`].
#[derive(Debug, Args)]
pub struct LibvirtSetupArgs {
    /// Make the changes that are shown
    #[arg(long)]
    pub apply: bool,
    /// Undo what --apply has done, and nothing else
    #[arg(long, conflicts_with = "apply")]
    pub remove: bool,
    /// Show the changes only, as without --apply
    #[arg(long, conflicts_with = "apply")]
    pub dry_run: bool,
}
