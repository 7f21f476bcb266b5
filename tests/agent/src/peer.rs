// SPDX-License-Identifier: GPL-2.0
//! What people give to guests as memory: page-less memory, and what they would pick instead.

use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use crate::case::{Failure, Outcome};
use crate::check_eq;
use crate::device::{Device, DAX_DMEM, DEVICE_DAX};
use crate::mapping::{Map, Mapping};
use crate::region::{Region, GIB, KIB, MIB};
use crate::scrub::Policy;
use crate::sysfs;

/// A kind of memory, and the leaf that maps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// `dax_dmem`, with this leaf.
    PageLess(u64),
    /// `device_dax` with this align.
    DeviceDax(u64),
    /// hugetlbfs with pages of this size, with or without vmemmap optimisation.
    Huge(u64, bool),
    /// Shared memory, with pages of this size.
    Shared(u64),
}

/// Those that live in a region.
pub const IN_REGION: [Peer; 6] = [
    Peer::PageLess(GIB),
    Peer::PageLess(2 * MIB),
    Peer::PageLess(4 * KIB),
    Peer::DeviceDax(GIB),
    Peer::DeviceDax(2 * MIB),
    Peer::DeviceDax(4 * KIB),
];

/// The forms of hugetlbfs.
pub const HUGE: [Peer; 4] = [
    Peer::Huge(GIB, false),
    Peer::Huge(GIB, true),
    Peer::Huge(2 * MIB, false),
    Peer::Huge(2 * MIB, true),
];

/// Memory made ready: given back to where it came from when it is dropped.
pub enum Ready {
    /// A device, bound.
    Device(Device),
    /// A pool of hugetlb pages, of this size.
    Pool(u64),
    /// There is nothing to make ready.
    Nothing,
}

const KINDS: &str = "/sys/kernel/mm/hugepages/hugepages-";
const OPTIMIZE: &str = "/proc/sys/vm/hugetlb_optimize_vmemmap";
const SHMEM: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
/// Page sizes in memfd_create's flags: the logarithm, from this bit on.
const MFD_HUGE_SHIFT: u32 = 26;
/// Memory of a pool of huge pages, of the usual size where the flags name none.
pub const MFD_HUGETLB: u32 = 4;
/// Where mappings go for which no leaf of 1 GiB fits.
const APART: usize = (64 << 40) + (2 << 20);

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, leaf, more) = match *self {
            Peer::PageLess(leaf) => ("dax_dmem", leaf, ""),
            Peer::DeviceDax(leaf) => ("device_dax", leaf, ""),
            Peer::Huge(leaf, true) => ("hugetlbfs", leaf, " HVO"),
            Peer::Huge(leaf, false) => ("hugetlbfs", leaf, ""),
            Peer::Shared(leaf) => ("memfd", leaf, ""),
        };
        let size = match leaf {
            GIB => "1G",
            KIB4 => "4K",
            _ => "2M",
        };
        write!(f, "{kind} {size}{more}")
    }
}

const KIB4: u64 = 4 * KIB;

impl Peer {
    /// Bytes of a leaf.
    pub fn leaf(self) -> u64 {
        match self {
            Peer::PageLess(leaf) | Peer::DeviceDax(leaf) | Peer::Huge(leaf, _) => leaf,
            Peer::Shared(leaf) => leaf,
        }
    }

    /// Whether its memory is a device of a region.
    pub fn in_region(self) -> bool {
        matches!(self, Peer::PageLess(_) | Peer::DeviceDax(_))
    }

    /// Settings, and what needs no count: an unbound device of `size` bytes at the region's start.
    pub fn prepare(self, size: u64) -> Outcome<Ready> {
        match self {
            // Leaves are as large as fit, whatever its align is.
            Peer::PageLess(_) => {
                let device = Region::first()?.create(2 * MIB, &[(0, size)])?;
                Ok(Ready::Device(device))
            }
            Peer::DeviceDax(align) => {
                Ok(Ready::Device(Region::first()?.create(align, &[(0, size)])?))
            }
            Peer::Huge(page, optimize) => {
                sysfs::write(OPTIMIZE, if optimize { "1" } else { "0" })?;
                Ok(Ready::Pool(page))
            }
            Peer::Shared(page) => {
                sysfs::write(SHMEM, if page == KIB4 { "never" } else { "always" })?;
                Ok(Ready::Nothing)
            }
        }
    }

    /// Makes the memory ready: binds the device, reserves the pages.
    pub fn ready(self, ready: &Ready, size: u64, policy: Policy) -> Outcome {
        match (self, ready) {
            (Peer::PageLess(_), Ready::Device(device)) => policy.bind(device),
            (Peer::DeviceDax(_), Ready::Device(device)) => device.bind(DEVICE_DAX),
            (Peer::Huge(page, _), _) => pool(page, size / page),
            _ => Ok(()),
        }
    }

    /// Opens what a guest's memory is mapped from.
    pub fn open(self, ready: &Ready, size: u64) -> Outcome<File> {
        match (self, ready) {
            (_, Ready::Device(device)) => device.open(),
            (Peer::Huge(page, _), _) => memfd(
                c"guest",
                MFD_HUGETLB | (page.trailing_zeros() << MFD_HUGE_SHIFT),
                size,
            ),
            _ => memfd(c"guest", 0, size),
        }
    }

    /// Maps it so that its leaves are of the peer's size.
    pub fn map(self, file: &File, size: u64) -> Outcome<Mapping> {
        let map = Map::new(size);
        let mapping = match self {
            Peer::PageLess(leaf) if leaf == 2 * MIB => map.at(APART).file(file)?,
            _ => map.file(file)?,
        };
        if self == Peer::PageLess(KIB4) {
            mapping.advise(0, size, libc::MADV_NOHUGEPAGE)?;
        }
        Ok(mapping)
    }

    /// Touches each leaf once: memory of a region is read, as what is written to it the machine has to have.
    pub fn touch(self, mapping: &Mapping) {
        if self.in_region() {
            mapping.touch(self.leaf());
        } else {
            self.write(mapping);
        }
    }

    /// Has all leaves there, to be written through: those of `dax_dmem` are as soon as they are read.
    pub fn populate(self, mapping: &Mapping) {
        match self {
            Peer::PageLess(leaf) => mapping.touch(leaf),
            _ => self.write(mapping),
        }
    }

    fn write(self, mapping: &Mapping) {
        let mut offset = 0;
        while offset < mapping.len() as u64 {
            mapping.write(offset, 1);
            offset += self.leaf();
        }
    }
}

impl Ready {
    /// Gives the memory back.
    pub fn give_back(&self) -> Outcome {
        match self {
            Ready::Device(device) => device.unbind(),
            Ready::Pool(page) => pool(*page, 0),
            Ready::Nothing => Ok(()),
        }
    }
}

/// Loads what the peers in a region need.
pub fn load_drivers() -> Outcome {
    crate::payload::need_module()?;
    check_eq!(DAX_DMEM, crate::payload::MODULE, "name of the driver");
    crate::module::load(DEVICE_DAX)
}

/// Sets the number of hugetlb pages of a size.
fn pool(page: u64, count: u64) -> Outcome {
    let attribute = format!("{KINDS}{}kB/nr_hugepages", page / KIB);
    sysfs::write(&attribute, &count.to_string())?;
    check_eq!(
        sysfs::read_number(&attribute)?,
        count,
        "pages of {page} bytes in the pool"
    );
    Ok(())
}

/// An empty file of memory, of this size.
pub fn memfd(name: &CStr, flags: u32, size: u64) -> Outcome<File> {
    // SAFETY: the name is NUL-terminated.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(Failure::Fail(format!(
            "memfd_create: {}",
            std::io::Error::last_os_error()
        )));
    }
    // SAFETY: the kernel has just made this descriptor for nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    // SAFETY: plain numbers.
    if unsafe { libc::ftruncate(file.as_raw_fd(), size as libc::off_t) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(file)
}
