// SPDX-License-Identifier: GPL-2.0

//! DMA that outlives its user: which processes ever mapped a device, and whether one of them has
//! given the memory to a device of the machine that may still write to it.
//!
//! VFIO's type1 driver takes no reference to memory without pages, and asks nobody before it keeps
//! such memory mapped for a device after the process has unmapped it, closed the file, even ended:
//! the container may have been passed on. But for each mapping it makes for DMA it holds on to
//! the address space (`struct mm_struct`) that it found the memory in. So does this module, for
//! every address space in which a device was ever mapped, and where somebody else does as well the
//! memory stays where it is.
//!
//! That is more than needed: KVM and others hold on to address spaces, too. So this counts only on
//! machines on which a driver of VFIO has a device, and ends with the process. And it is less
//! than could be wished: who has a container can pass each mapping on to another process's
//! address space (`VFIO_DMA_MAP_FLAG_VADDR`), which need not have the device mapped.
//!
//! Locks: `MAPPERS` is innermost, taken under the mmap write lock, in turn, and under none.

use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::time::delay::fsleep;
use kernel::time::Delta;
use kernel::workqueue::{impl_has_work, new_work, Work, WorkItem};

use crate::device::Device;
use crate::ffi::globals::MAPPERS;
use crate::ffi::space::{dma_is_lent, Space};
use crate::ffi::task::{pin_module, unpin_module};
use crate::ffi::workqueue::WorkQueue;
use crate::registry;

/// The address spaces in which devices were ever mapped.
pub(crate) struct Mappers {
    list: KVec<Mapper>,
    /// How many there may be before it is looked for some that do not matter any more.
    roomy: usize,
}

/// Below this number nobody looks.
const FEW: usize = 64;

struct Mapper {
    space: Space,
    device: DeviceId,
}

/// Tells devices apart while they exist.
#[derive(Clone, Copy, PartialEq, Eq)]
struct DeviceId(usize);

impl DeviceId {
    fn of(device: &Device) -> Self {
        Self(core::ptr::from_ref(device).addr())
    }
}

impl Mappers {
    pub(crate) const fn new() -> Self {
        Self {
            list: KVec::new(),
            roomy: FEW,
        }
    }

    /// References of this module to an address space.
    fn own(&self, space: &Space) -> usize {
        let is_one = |mapper: &&Mapper| mapper.space == *space;
        self.list.iter().filter(is_one).count()
    }

    /// Drops what matters no more: the process has ended, and nobody holds on to its address space.
    fn prune(&mut self) {
        let mut at = 0;
        while let Some(mapper) = self.list.get(at) {
            if mapper.space.has_only(self.own(&mapper.space)) {
                let _ = self.list.remove(at);
            } else {
                at += 1;
            }
        }
        self.roomy = FEW.max(2 * self.list.len());
    }
}

/// Keeps in mind that the device is mapped in this address space from here on.
///
/// # Errors
///
/// ENOMEM.
pub(crate) fn note_mapper(device: &Device, space: Space) -> Result {
    let device = DeviceId::of(device);
    let mut mappers = MAPPERS.lock();
    let is_it = |mapper: &Mapper| mapper.device == device && mapper.space == space;
    if mappers.list.iter().any(is_it) {
        return Ok(());
    }
    if mappers.list.len() >= mappers.roomy {
        mappers.prune();
    }
    Ok(mappers.list.push(Mapper { space, device }, GFP_KERNEL)?)
}

/// Whether a device of the machine may still read and write the memory, though no process has it
/// mapped.
pub(crate) fn may_reach(device: &Device) -> bool {
    if !dma_is_lent() {
        return false;
    }
    let id = DeviceId::of(device);
    let mappers = MAPPERS.lock();
    let is_held = |mapper: &Mapper| {
        mapper.device == id && mapper.space.has_more_than(mappers.own(&mapper.space))
    };
    device.has_unknown_mapper() || mappers.list.iter().any(is_held)
}

/// Looks, once in a while, whether DMA has come to its end.
#[pin_data]
pub(crate) struct Watch {
    #[pin]
    work: Work<Watch>,
}

impl_has_work! {
    impl HasWork<Self> for Watch { self.work }
}

/// From one look to the next.
const PAUSE: Delta = Delta::from_secs(1);

impl WorkItem for Watch {
    type Pointer = Arc<Self>;

    fn run(_: Arc<Self>) {
        loop {
            fsleep(PAUSE);
            if !registry::look_after_lingering() {
                break;
            }
        }
        unpin_module();
    }
}

impl Watch {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self { work <- new_work!("Watch::work") }),
            GFP_KERNEL,
        )
    }

    /// Begins to look, and keeps the module loaded meanwhile. Whether it does: not when the module
    /// is going.
    pub(crate) fn begin(self: &Arc<Self>, queue: &WorkQueue) -> bool {
        if !pin_module() {
            return false;
        }
        if queue.enqueue(self.clone()).is_err() {
            // Queued already, with a reference of its own.
            unpin_module();
        }
        true
    }
}

/// Forgets a device that is no more.
pub(crate) fn forget(device: &Device) {
    let id = DeviceId::of(device);
    MAPPERS.lock().list.retain(|mapper| mapper.device != id);
}

/// Ends it. No device is left.
pub(crate) fn finish() {
    *MAPPERS.lock() = Mappers::new();
}
