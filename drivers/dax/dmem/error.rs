// SPDX-License-Identifier: GPL-2.0

//! Why something was refused, in words for the log and as an errno.

use kernel::alloc::AllocError;
use kernel::fmt;
use kernel::prelude::*;
use kernel::str::CString;

use crate::plan::{PhysAddr, RangeError};

/// A refusal of this driver.
pub(crate) enum Error {
    /// The dax core handed over ranges no mapping can be made of.
    BadRanges(RangeError),
    /// A range overlaps one that was unbound but is still open or mapped.
    Quarantined {
        start: PhysAddr,
        by: CString,
        openers: u32,
    },
    /// Files that were opened through another driver are still open.
    OpenElsewhere,
    /// Another driver has claimed a range.
    RangeTaken { start: PhysAddr },
    /// Memory that should be page-less has struct pages.
    HasPages { at: PhysAddr },
    /// No device of this driver has that number.
    NotBound,
    /// mmap asked for something that cannot work; the reason is in the log.
    MapRefused,
    /// The device is being scrubbed, and the caller does not want to wait.
    ScrubRunning,
    /// The device's scrub broke off.
    ScrubFailed,
    /// The kernel refused.
    Kernel(kernel::error::Error),
}

impl Error {
    /// What the system call returns.
    pub(crate) fn errno(&self) -> kernel::error::Error {
        match self {
            Self::BadRanges(_) | Self::HasPages { .. } | Self::MapRefused => EINVAL,
            Self::Quarantined { .. } | Self::OpenElsewhere | Self::RangeTaken { .. } => EBUSY,
            Self::NotBound => ENXIO,
            Self::ScrubRunning => EAGAIN,
            Self::ScrubFailed => EIO,
            Self::Kernel(error) => *error,
        }
    }
}

impl From<Error> for kernel::error::Error {
    fn from(error: Error) -> Self {
        error.errno()
    }
}

impl From<kernel::error::Error> for Error {
    fn from(error: kernel::error::Error) -> Self {
        Self::Kernel(error)
    }
}

impl From<AllocError> for Error {
    fn from(error: AllocError) -> Self {
        Self::Kernel(error.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRanges(error) => write!(f, "{error}"),
            Self::Quarantined {
                start,
                by,
                openers: 0,
            } => f.write_fmt(fmt!(
                "range at {:#x} is quarantined: {} was unbound while a user of VFIO may have it \
                 mapped for DMA; end the processes that have the container",
                start.raw(),
                &**by,
            )),
            Self::Quarantined { start, by, openers } => f.write_fmt(fmt!(
                "range at {:#x} is quarantined: {} was unbound while {} open file(s) still \
                 reach it; end the processes that hold them",
                start.raw(),
                &**by,
                openers,
            )),
            Self::OpenElsewhere => write!(
                f,
                "files opened through the driver bound before are still open; end the processes \
                 that hold them"
            ),
            Self::RangeTaken { start } => write!(
                f,
                "range at {:#x} is claimed by another driver, see /proc/iomem",
                start.raw()
            ),
            Self::HasPages { at } => write!(
                f,
                "memory at {:#x} has struct pages; reserve whole 128 MiB sections (memmap=) and \
                 unbind other drivers",
                at.raw()
            ),
            Self::NotBound => write!(f, "device is not bound to dax_dmem"),
            Self::MapRefused => write!(f, "mapping refused"),
            Self::ScrubRunning => write!(f, "device is being scrubbed"),
            Self::ScrubFailed => write!(f, "scrub failed for lack of memory; bind it again"),
            Self::Kernel(error) => write!(f, "error {}", error.to_errno()),
        }
    }
}
