// SPDX-License-Identifier: GPL-2.0

//! Why guests are not kept over a kexec: refused beforehand, or afterwards.

use std::io;
use std::path::PathBuf;

use crate::bus::Range;
use crate::name::{GuestName, PartName};
use crate::poison::Pages;
use crate::users::Users;

/// Why `kexec-prepare` was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum KexecError {
    #[error(
        "{guest} is not as the layout declares it, and would not come back: {what}\n\
         `daxdmem apply` makes it so, or `daxdmem save` writes it to the layout"
    )]
    NotDeclared { guest: GuestName, what: String },

    #[error(
        "it is not recorded where {part} is, so it might come back elsewhere\n`daxdmem save` records it"
    )]
    NotPlaced { part: PartName },

    #[error(
        "{part} is in use: {users}\n\
         Save the guest's state, by a migration to a file with mode cpr-reboot, and end its QEMU; then repeat the command"
    )]
    InUse { part: PartName, users: Users },

    #[error(
        "{part} is never scrubbed, whoever gets its memory: nothing would be checked\n\
         Give it another policy: `daxdmem set {} --scrub release`", part.guest
    )]
    NeverScrubbed { part: PartName },

    #[error("{part} has {pages} of 4K that failed, and would come back elsewhere\nStart the guest anew after the kexec")]
    Poisoned { part: PartName, pages: Pages },

    #[error(
        "{part} is at {range}, which this kernel's command line does not reserve by memmap=, so the next one would take it\n\
         Reserve memory by `daxdmem reserve`, and reboot"
    )]
    NotReserved { part: PartName, range: Range },

    #[error("there is no kernel in /boot that has modules\nName one: --kernel FILE --initrd FILE")]
    NoKernel,

    #[error(
        "there is no module dax_dmem for the kernel {release}, so no guest would come back\n\
         Install that kernel's headers and source, and see `dkms status`"
    )]
    NoDriver { release: String },

    #[error("the next kernel's command line would have {length} characters, and the kernel takes {longest}\nShorten it")]
    TooLong { length: usize, longest: usize },

    #[error(
        "the kernel does not load {path}: {why}\n\
         The kernel log may say why: `dmesg | tail`. With Secure Boot it has to be signed"
    )]
    NotLoaded { path: PathBuf, why: io::Error },
}

/// Why a record of what is to be kept does not hold.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{path} cannot be read: {why}")]
    Form { path: PathBuf, why: String },

    #[error("{path} was changed: its checksum is wrong")]
    Checksum { path: PathBuf },

    #[error("this kernel was not loaded by the kexec-prepare that wrote the record")]
    OtherKernel,

    #[error("the layout is not the one that was declared then")]
    Layout,

    #[error("the record was used in this boot already")]
    Used,

    #[error("that the record is used cannot be marked: {path}: {why}")]
    Mark { path: PathBuf, why: io::Error },

    #[error("it does not have the same devices as then")]
    Devices,

    #[error("it is not where it was")]
    Place,
}
