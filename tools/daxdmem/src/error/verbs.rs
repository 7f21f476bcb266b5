// SPDX-License-Identifier: GPL-2.0

//! What can go wrong when a guest's device is changed as a whole: its size, and what it is used as.

use crate::name::{DeviceName, PartName, Target};
use crate::size::Size;
use crate::users::Users;

/// Why `resize` or `mode` was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum VerbError {
    #[error("{target} is in use: {users}\nEnd that first, then repeat the command")]
    Busy { target: String, users: Users },

    #[error("{target} has several devices: {parts}\nName one of them")]
    Several { target: Target, parts: String },

    #[error("size {size} is no multiple of {grain}, the unit of {name}\nUse {near}")]
    Grain {
        name: PartName,
        size: Size,
        grain: Size,
        near: String,
    },

    #[error(
        "the driver {driver} is not loaded, and loading it failed: {said}\n\
         See that `modprobe {driver}` works, then repeat the command"
    )]
    Module { driver: &'static str, said: String },

    #[error(
        "{device} has no whole memory block of {block}, and the host takes no less\n\
         Make it larger: `daxdmem resize`"
    )]
    NoBlock { device: DeviceName, block: Size },

    #[error("this kernel has no memory hotplug, so no memory can be lent to it")]
    NoHotplug,

    #[error(
        "{target} stays system RAM: {held}\n\
         All of it is online again. End what uses it, or see that the host has free memory elsewhere to move it to; \
         then repeat the command. --timeout SECONDS makes it try longer"
    )]
    Held { target: String, held: String },

    #[error(
        "{device} was taken from kmem, but the host keeps memory of it: another program brought some online at that \
         moment\nOnly a reboot gives it back"
    )]
    Kept { device: DeviceName },
}
