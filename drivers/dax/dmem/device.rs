// SPDX-License-Identifier: GPL-2.0

//! A page-less device: one binding of a dax device to this driver, and who uses it.
//!
//! A [`Device`] begins at bind and ends when it is neither bound nor open. In between it may be
//!
//! - *live*: bound; files may be opened, faults map memory;
//! - *quarantined*: unbound, but files or mappings (which hold their file) still exist, or DMA
//!   that a user has set up (`dma.rs`). No process maps it any more, and its ranges stay claimed.
//!
//! Before its first file is opened, what is not known to be clean of its memory is scrubbed; after
//! its end the memory goes into custody (`custody.rs`).
//!
//! Locks: the device lock (driver core) is held by [`bind`] and [`Binding::unbind`]; inside it the
//! registry's (`registry.rs`) are taken.

use kernel::new_mutex;
use kernel::prelude::*;
use kernel::str::CStr;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{Arc, Mutex};

use crate::custody::extents_of;
use crate::error::Error;
use crate::ffi::char_device::CharDevice;
use crate::ffi::dev_dax::DevDax;
use crate::ffi::inode::DaxInode;
use crate::ffi::memory_failure::Registered;
use crate::ffi::reservation::{first_page_struct, Reservation};
use crate::ffi::trace;
use crate::plan::{Checked, DevRange, PageOff, RangeMap};
use crate::poison::Health;
use crate::registry;
use crate::scrub::{Policy, Prepared, Scrub};
use crate::stats::Stats;

/// State of one binding, shared by the binding itself, the registry and every open file.
#[pin_data]
pub(crate) struct Device {
    /// Device number: `/dev/daxX.Y`.
    devt: u32,
    /// What sysfs said at bind: ranges added to a bound device take part from the next bind on.
    ranges: Checked<KVec<DevRange>>,
    /// Outlives every file, whose `f_mapping` points into it.
    inode: DaxInode,
    /// Keeps others off the ranges as long as this value exists.
    reservation: Arc<Reservation>,
    /// What overwrites the memory before the device can be opened; none where nothing is to do.
    scrub: Option<Arc<Scrub>>,
    /// Whether memory that may hold a former tenant's bytes was handed out as it is.
    unscrubbed: bool,
    /// The policy at release, as [`Policy::code`].
    policy: Atomic<u32>,
    /// Set by the first open.
    opened: Atomic<bool>,
    /// Set when there was no memory to keep in mind who maps it.
    unknown_mapper: Atomic<bool>,
    /// Set when nobody has it open any more but a device may reach it by DMA.
    lingers: Atomic<bool>,
    /// Cleared once, by unbind, before it waits for faults under way (`ffi::liveness`).
    live: Atomic<bool>,
    /// What it knows of poison in its ranges.
    health: Health,
    /// What it counts.
    stats: Stats,
    /// Open files; changed under the registry's mutex only.
    openers: Atomic<u32>,
    /// Held while a 1 GiB leaf is installed, and while leaves are removed from mappings in which
    /// faults go on. The kernel looks at the entry twice when it removes leaves
    /// (`mm/memory.c`, `zap_pud_range`), and takes a 1 GiB leaf that was not there at the first
    /// look for a bad table at the second.
    #[pin]
    giants: Mutex<()>,
}

impl Device {
    /// `daxX.Y`.
    pub(crate) fn name(&self) -> &CStr {
        self.reservation.name()
    }

    /// Device number.
    pub(crate) fn devt(&self) -> u32 {
        self.devt
    }

    /// The claims on its memory.
    pub(crate) fn reservation(&self) -> &Arc<Reservation> {
        &self.reservation
    }

    /// The scrub of its memory, if there was anything to scrub.
    pub(crate) fn scrub(&self) -> Option<&Arc<Scrub>> {
        self.scrub.as_ref()
    }

    /// What is to be said of the memory as it was handed out.
    pub(crate) fn cleanness(&self) -> Cleanness {
        match &self.scrub {
            None if self.unscrubbed => Cleanness::Unscrubbed,
            None => Cleanness::Scrubbed,
            Some(scrub) if !scrub.has_ended() => Cleanness::Scrubbing,
            Some(scrub) if scrub.has_failed() => Cleanness::Failed,
            Some(_) => Cleanness::Scrubbed,
        }
    }

    /// What is done with the memory at release.
    pub(crate) fn policy(&self) -> Policy {
        Policy::from_code(self.policy.load(Relaxed))
    }

    /// Changes what is done with the memory at release.
    pub(crate) fn set_policy(&self, policy: Policy) {
        self.policy.store(policy.code(), Relaxed);
    }

    /// The physical ranges in order of device offset.
    pub(crate) fn map(&self) -> RangeMap<'_> {
        self.ranges.map()
    }

    /// The inode whose address space holds all mappings.
    pub(crate) fn inode(&self) -> &DaxInode {
        &self.inode
    }

    /// Whether the device is bound. Stays true to the end of a `liveness::Section` in which it was
    /// true.
    pub(crate) fn is_live(&self) -> bool {
        self.live.load(Relaxed)
    }

    /// Ends [`Device::is_live`].
    pub(crate) fn set_dead(&self) {
        self.live.store(false, Relaxed);
    }

    /// Keeps 1 GiB leaves from being installed. Taken inside the mmap lock, outside of
    /// `i_mmap_rwsem` and the page-table locks.
    pub(crate) fn giants(&self) -> &Mutex<()> {
        &self.giants
    }

    /// Removes every leaf, in any process, that maps these pages of the device. Faults bring them
    /// back.
    pub(crate) fn drop_leaves(&self, pgoff: PageOff, pages: u64) {
        let _giants = self.giants.lock();
        self.inode.unmap(pgoff, pages);
    }

    /// What it knows of poison in its ranges.
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// What it counts.
    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Number of open files.
    pub(crate) fn openers(&self) -> u32 {
        self.openers.load(Relaxed)
    }

    /// Whether a file was ever open.
    pub(crate) fn was_opened(&self) -> bool {
        self.opened.load(Relaxed)
    }

    /// Whether there was a process that mapped it and that nobody knows.
    pub(crate) fn has_unknown_mapper(&self) -> bool {
        self.unknown_mapper.load(Relaxed)
    }

    /// Keeps in mind that there was.
    pub(crate) fn set_unknown_mapper(&self) {
        self.unknown_mapper.store(true, Relaxed);
    }

    /// Whether it is over but for DMA.
    pub(crate) fn lingers(&self) -> bool {
        self.lingers.load(Relaxed)
    }

    /// Notes that it is. Under the registry's mutex.
    pub(crate) fn set_lingers(&self) {
        self.lingers.store(true, Relaxed);
    }

    /// Counts one more open file. Under the registry's mutex.
    pub(crate) fn add_opener(&self) {
        self.opened.store(true, Relaxed);
        self.openers.add(1, Relaxed);
    }

    /// Counts one open file less. Under the registry's mutex.
    pub(crate) fn drop_opener(&self) {
        self.openers.fetch_sub(1, Relaxed);
    }

    /// Whether no process can reach the device's memory any more: neither bound nor open.
    pub(crate) fn is_over(&self) -> bool {
        !self.is_live() && self.openers() == 0
    }
}

/// What is known of the memory of a device that was handed out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cleanness {
    /// It is being overwritten with zeros; nobody can open the device.
    Scrubbing,
    /// It held nothing but zeros before the first open.
    Scrubbed,
    /// It may hold what a former tenant left ([`Policy::Never`]).
    Unscrubbed,
    /// The scrub broke off; nobody can open the device.
    Failed,
}

impl Cleanness {
    /// The name in sysfs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Scrubbing => "scrubbing",
            Self::Scrubbed => "scrubbed",
            Self::Unscrubbed => "unscrubbed",
            Self::Failed => "failed",
        }
    }
}

/// What a bound device owns beyond its [`Device`].
pub(crate) struct Binding {
    device: Arc<Device>,
    node: CharDevice,
    /// Has users signalled when their memory fails.
    failures: Registered,
}

impl Binding {
    /// The device's state.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Takes the device away from its users.
    ///
    /// When this returns, no page table leads to the memory, and none will. Users that are left
    /// find SIGBUS; the range is quarantined until the last of them is gone.
    pub(crate) fn unbind(self, dev_dax: &DevDax<'_>) {
        let Self {
            device,
            node,
            failures,
        } = self;
        drop(failures);
        withdraw(device, Some(node), dev_dax);
    }
}

/// Takes a device from the book, and what is published of it from everybody.
fn withdraw(device: Arc<Device>, node: Option<CharDevice>, dev_dax: &DevDax<'_>) {
    registry::retire(&device);
    drop(node);
    if let Some(scrub) = device.scrub() {
        scrub.stop();
    }
    dev_dax.kill(device.inode());
    trace::unbind(&device);
    registry::release_retired(device);
}

/// Binds a device: claims its ranges, begins to scrub what is not known to be clean, publishes its
/// character device.
///
/// # Errors
///
/// Refuses ranges that are quarantined, taken, or that have struct pages, and says which. Nothing
/// has changed then, but that the policy set for this bind is used up, and that a scrub of these
/// ranges may have been broken off.
pub(crate) fn bind(dev_dax: &DevDax<'_>) -> Result<Binding, Error> {
    let outcome = try_bind(dev_dax);
    let seen = outcome.as_ref().map(Binding::device);
    let errno = |error: &Error| error.errno().to_errno();
    trace::bind(dev_dax.name(), seen.map_err(errno));
    outcome
}

/// Does what [`bind`] says.
fn try_bind(dev_dax: &DevDax<'_>) -> Result<Binding, Error> {
    let policy = registry::take_policy(dev_dax.name()).unwrap_or(Policy::Release);
    let inode = dev_dax.inode();
    if inode.is_open_elsewhere() {
        return Err(Error::OpenElsewhere);
    }
    let ranges = Checked::new(dev_dax.ranges()?).map_err(|(error, _)| Error::BadRanges(error))?;
    let device = registry::in_turn(|| claim(dev_dax, inode, ranges, policy))?;
    let failures = Registered::new(&device.map(), device.inode());
    match failures.and_then(|failures| Ok((failures, CharDevice::publish(dev_dax)?))) {
        Ok((failures, node)) => Ok(Binding {
            device,
            node,
            failures,
        }),
        Err(error) => {
            withdraw(device, None, dev_dax);
            Err(error.into())
        }
    }
}

/// Makes a device of these ranges and enters it in the book.
fn claim(
    dev_dax: &DevDax<'_>,
    inode: DaxInode,
    ranges: Checked<KVec<DevRange>>,
    policy: Policy,
) -> Result<Arc<Device>, Error> {
    registry::check_quarantine(&ranges.map())?;
    registry::take_over(&ranges.map());
    let reservation = Reservation::new(dev_dax.name(), extents_of(&ranges.map()))?;
    for range in ranges.map().ranges() {
        if let Some(at) = first_page_struct(range) {
            return Err(Error::HasPages { at });
        }
    }
    let dirty = registry::dirty_parts(&ranges.map())?;
    let unscrubbed = policy == Policy::Never && !dirty.is_empty();
    let job = if dirty.is_empty() || unscrubbed {
        None
    } else {
        Some(Prepared::new(&dirty)?)
    };
    let reservation = Arc::new(reservation, GFP_KERNEL)?;
    let scrub = job.as_ref().map(|job| job.scrub().clone());
    let device = Arc::pin_init(
        pin_init!(Device {
            devt: dev_dax.devt(),
            ranges,
            inode,
            reservation,
            scrub,
            unscrubbed,
            policy: Atomic::new(policy.code()),
            opened: Atomic::new(false),
            unknown_mapper: Atomic::new(false),
            lingers: Atomic::new(false),
            live: Atomic::new(true),
            health: Health::unknown(),
            stats: Stats::none(),
            openers: Atomic::new(0),
            giants <- new_mutex!((), "Device::giants"),
        }),
        GFP_KERNEL,
    )?;
    // From the registry on, the device may be opened: a node that was looked up before an earlier
    // unbind leads to this driver as well. Mappings made before have no leaf.
    device.inode().set_has_pages(false);
    if let Err(error) = registry::publish(device.clone(), job) {
        dev_dax.kill(device.inode());
        return Err(error.into());
    }
    Ok(device)
}
