// SPDX-License-Identifier: GPL-2.0

//! What can go wrong with poisoned pages.

use std::io;
use std::path::PathBuf;

use crate::name::{DeviceName, Target};
use crate::poison::{Pages, PAGE};
use crate::size::Size;

/// Why something was not done about poison, or because of it.
#[derive(Debug, thiserror::Error)]
pub enum PoisonError {
    /// What is recorded cannot be read.
    #[error(
        "{path} cannot be used: {why}\n\
         It says which memory has failed, so nobody is given memory until you decide. Repair it; or move it away: then \
         dax_dmem still knows what failed since it was loaded, and memory that failed before may be given to guests again"
    )]
    Record { path: PathBuf, why: String },

    /// What is known cannot be recorded.
    #[error(
        "{pages} of 4K failed, and cannot be recorded in {path}: {source}\n\
         No device is made of them now, but a reboot forgets them. Put that right; the next daxdmem command records them"
    )]
    NotWritten {
        pages: Pages,
        path: PathBuf,
        source: io::Error,
    },

    /// What is taken back into use cannot be taken out of the record.
    #[error(
        "{pages} of 4K stood the test, but cannot be taken out of {path}: {source}\n\
         The next daxdmem command has them poisoned again. Put that right, then repeat the command"
    )]
    NotForgotten {
        pages: Pages,
        path: PathBuf,
        source: io::Error,
    },

    /// Only root may know.
    #[error("where poisoned pages are is shown to root only: run it with sudo")]
    NotRoot,

    /// No page starts there.
    #[error("{at:#x} is not where a page of 4K starts\nUse {:#x}", at / PAGE * PAGE)]
    Unaligned { at: u64 },

    /// No region holds it.
    #[error("{page:#x} is not in the memory of a region\n{known}")]
    NoRegion { page: u64, known: String },

    /// A record of memory that is in no region.
    #[error(
        "{page:#x} is in no region now, so it cannot be tested\n\
         It stays recorded, for when that memory is reserved again, and costs nothing until then"
    )]
    Untestable { page: u64 },

    /// The host uses the memory.
    #[error(
        "{page:#x} has a struct page now, being lent to the host or with device_dax: its errors are the host kernel's\n\
         `echo {page:#x} > /sys/devices/system/memory/hard_offline_page` has the kernel take it out of use"
    )]
    HostMemory { page: u64 },

    /// Beyond the device.
    #[error("{target} ends at {size}: there is nothing at offset {offset:#x}\n`daxdmem show {target}` tells its ranges")]
    Beyond {
        target: Target,
        size: Size,
        offset: u64,
    },

    /// It is known already.
    #[error("{page:#x} is known as poisoned already\n`daxdmem poison list` shows all such pages")]
    Known { page: u64 },

    /// It is not known.
    #[error("{page:#x} is not known as poisoned\n`daxdmem poison list` shows all such pages")]
    Unknown { page: u64 },

    /// Somebody uses the device.
    #[error(
        "{page:#x} is a page of {target}, which is in use: {users}\n\
         Taken back now, it would be zeros where its user's data was, without an error. End that first, then repeat the \
         command"
    )]
    InUse {
        page: u64,
        target: String,
        users: String,
    },

    /// The memory does not hold what is written to it.
    #[error(
        "{failed} of {all} of 4K do not stand the test, and stay poisoned: {first:#x}{}\n\
         What was written there is not what was read. Nobody gets them; replace the memory when it suits",
        if *failed > 1 { ", …" } else { "" }
    )]
    Fails {
        failed: usize,
        all: Pages,
        first: u64,
        /// Whether others did.
        some_cleared: bool,
    },

    /// Part of it was done.
    #[error("{error}\nDone before that: {done} of 4K, `daxdmem poison list` shows them")]
    Partly {
        error: Box<crate::error::Error>,
        done: Pages,
    },

    /// The device may not become memory of somebody who does not know of poison.
    #[error(
        "{device} has {pages} of 4K that failed, and stays as it is: who gets it as {mode} would not be kept from \
         them\nMake it anew: `daxdmem destroy` and `daxdmem create` place it around them"
    )]
    Mode {
        device: DeviceName,
        pages: Pages,
        mode: String,
    },
}

impl PoisonError {
    /// Whether the host is not as it was.
    pub fn leaves_something(&self) -> bool {
        matches!(
            self,
            PoisonError::Partly { .. }
                | PoisonError::NotWritten { .. }
                | PoisonError::NotForgotten { .. }
                | PoisonError::Fails {
                    some_cleared: true,
                    ..
                }
        )
    }
}
