// SPDX-License-Identifier: GPL-2.0

//! The book of all page-less memory: bound devices, quarantined ones whose users are not gone yet,
//! and what is known of memory between two tenants (`custody.rs`).
//!
//! Called by bind and unbind (device lock held), by open and release of files, by workers, and by
//! sysfs.
//!
//! Lock order: device lock (driver core) > `TURN` > `BOOK` > a scrub's own mutex. Under `BOOK`,
//! memory is allocated and the resource lock taken; devices are dropped after it is released, as
//! dropping one may put an inode. Nobody waits for a scrub under `BOOK`, whose workers take it.

use kernel::fmt;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;

use crate::custody::{extents_of, Custody};
use crate::device::{Cleanness, Device};
use crate::dma::{self, Watch};
use crate::error::Error;
use crate::ffi::globals::{BOOK, TURN};
use crate::ffi::trace;
use crate::ffi::workqueue::WorkQueue;
use crate::plan::{Extent, PhysAddr, RangeMap};
use crate::scrub::{Policy, Prepared, Scrub};

/// What the module knows, under one mutex.
pub(crate) struct Book {
    devices: KVec<Arc<Device>>,
    custody: Custody,
    /// Policies for the next bind of a device.
    policies: KVec<(CString, Policy)>,
    /// There while the module is loaded.
    queue: Option<WorkQueue>,
    /// Looks after devices that linger, while there are some.
    watch: Option<Arc<Watch>>,
    watching: bool,
}

/// Policies that may wait for their device: a bound on what a script gone wild can fill memory
/// with.
const MOST_POLICIES: usize = 4096;

impl Book {
    pub(crate) const fn new() -> Self {
        Self {
            devices: KVec::new(),
            custody: Custody::new(),
            policies: KVec::new(),
            queue: None,
            watch: None,
            watching: false,
        }
    }

    /// Takes a device that is over out of the list, and its memory into custody. The caller drops
    /// it after the lock. `None` where somebody else was faster.
    fn give_up(&mut self, device: &Arc<Device>) -> Option<Arc<Device>> {
        let is_it = |other: &Arc<Device>| Arc::ptr_eq(other, device);
        let index = self.devices.iter().position(is_it)?;
        let device = self.devices.remove(index).ok()?;
        self.custody.receive(&device, self.queue.as_ref());
        Some(device)
    }
}

/// Opens the book, at the begin of the module.
pub(crate) fn begin() -> Result {
    let watch = Watch::new()?;
    let mut book = BOOK.lock();
    book.queue = Some(WorkQueue::new(c"dax_dmem_scrub")?);
    book.watch = Some(watch);
    Ok(())
}

/// Closes the book, at the end of the module: stops all scrubs and forgets everything.
pub(crate) fn finish() {
    loop {
        let Some(release) = BOOK.lock().custody.take_last() else {
            break;
        };
        release.stop();
    }
    let book = core::mem::replace(&mut *BOOK.lock(), Book::new());
    // Waits for workers on their last steps, which take the lock.
    drop(book);
}

/// Files a bound device, makes it open to [`open`], and begins its scrub.
pub(crate) fn publish(device: Arc<Device>, job: Option<Prepared>) -> Result {
    let mut book = BOOK.lock();
    book.devices.reserve(1, GFP_KERNEL)?;
    // Whoever opens it may write to it.
    for extent in extents_of(&device.map()) {
        book.custody.forget(&extent);
    }
    book.devices.push(device, GFP_KERNEL)?;
    if let (Some(job), Some(queue)) = (job, book.queue.as_ref()) {
        job.start(queue);
    }
    Ok(())
}

/// Marks a device unbound; it cannot be opened from here on.
pub(crate) fn retire(device: &Device) {
    let _book = BOOK.lock();
    device.set_dead();
}

/// Gives up a retired device: takes its memory into custody when nobody has it open, else it is
/// quarantined until the last user goes.
///
/// Unbind calls this when no leaf leads to the device any more, and its scrub has ended.
pub(crate) fn release_retired(device: Arc<Device>) {
    let book = BOOK.lock();
    let over = device.is_over();
    drop(book);
    if over {
        end(&device);
        return;
    }
    trace::quarantine(&device);
    pr_info!(
        "{}: unbound while in use, its memory is quarantined until {} file(s) are closed\n",
        device.name(),
        device.openers()
    );
}

/// Ends a device that is over, unless its memory may still be reached by DMA: then it lingers in
/// quarantine until that is over, too. Whether it ended here and now.
fn end(device: &Arc<Device>) -> bool {
    if dma::may_reach(device) && linger(device) {
        return false;
    }
    give_up(device)
}

/// Gives up a device that nothing can reach any more, and forgets who mapped it. Whether it was
/// this call that did.
fn give_up(device: &Arc<Device>) -> bool {
    let freed = BOOK.lock().give_up(device);
    if freed.is_some() {
        dma::forget(device);
    }
    freed.is_some()
}

/// Has the watch look after a device until nothing can reach it any more. `false` where there is
/// no watch: the module is going.
fn linger(device: &Arc<Device>) -> bool {
    let mut book = BOOK.lock();
    if !book.watching {
        let (Some(queue), Some(watch)) = (&book.queue, &book.watch) else {
            return false;
        };
        if !watch.begin(queue) {
            return false;
        }
        book.watching = true;
    }
    device.set_lingers();
    drop(book);
    trace::quarantine(device);
    pr_info!(
        "{}: a device may still reach its memory by DMA (VFIO), which is quarantined until then\n",
        device.name()
    );
    true
}

/// Ends the devices that linger and need not any more. May be called in turn only: whoever binds
/// next finds their memory unclaimed.
fn end_lingering() {
    let mut nth = 0;
    loop {
        let book = BOOK.lock();
        let mut lingering = book.devices.iter().filter(|device| device.lingers());
        let Some(device) = lingering.nth(nth).cloned() else {
            return;
        };
        drop(book);
        if dma::may_reach(&device) {
            nth += 1;
            continue;
        }
        if give_up(&device) {
            trace::quarantine(&device);
            pr_info!("{}: DMA is over, quarantine ends\n", device.name());
        }
    }
}

/// The watch's look at the devices that linger. Whether there are any left.
pub(crate) fn look_after_lingering() -> bool {
    in_turn(end_lingering);
    let mut book = BOOK.lock();
    book.watching = book.devices.iter().any(|device| device.lingers());
    book.watching
}

/// Opens the live device of that number. While it is being scrubbed, waits for that if `patient`.
///
/// # Errors
///
/// [`Error::NotBound`] when there is none: it was unbound between look-up of the node and now, or
/// another driver's node led here. [`Error::ScrubRunning`] to the impatient, ERESTARTSYS when a
/// signal came first, [`Error::ScrubFailed`].
pub(crate) fn open(devt: u32, patient: bool) -> Result<Arc<Device>, Error> {
    loop {
        let book = BOOK.lock();
        let is_it = |device: &&Arc<Device>| device.devt() == devt && device.is_live();
        let device = book.devices.iter().find(is_it).ok_or(Error::NotBound)?;
        let scrub = match (device.cleanness(), device.scrub()) {
            (Cleanness::Failed, _) => return Err(Error::ScrubFailed),
            (Cleanness::Scrubbing, Some(scrub)) => scrub.clone(),
            _ => {
                device.add_opener();
                return Ok(device.clone());
            }
        };
        drop(book);
        if !patient {
            return Err(Error::ScrubRunning);
        }
        scrub.wait()?;
    }
}

/// Closes what [`open`] opened; ends a quarantine with the last one.
pub(crate) fn close(device: Arc<Device>) {
    let book = BOOK.lock();
    device.drop_opener();
    let over = device.is_over();
    drop(book);
    if over && end(&device) {
        trace::quarantine(&device);
        pr_info!("{}: last user is gone, quarantine ends\n", device.name());
    }
}

/// Refuses ranges that somebody can still reach although they were unbound. May be called in turn
/// only.
pub(crate) fn check_quarantine(ranges: &RangeMap<'_>) -> Result<(), Error> {
    end_lingering();
    let book = BOOK.lock();
    for device in book.devices.iter().filter(|device| !device.is_live()) {
        for held in extents_of(&device.map()) {
            if extents_of(ranges).any(|range| range.overlaps(&held)) {
                return Err(Error::Quarantined {
                    start: held.start,
                    by: CString::try_from(device.name())?,
                    openers: device.openers(),
                });
            }
        }
    }
    Ok(())
}

/// Runs `bind` while no other device is being bound: from the look at what is clean to the device's
/// entry in the book, no other bind may change what was seen.
pub(crate) fn in_turn<T>(bind: impl FnOnce() -> T) -> T {
    let _turn = TURN.lock();
    bind()
}

/// Ends the release scrubs that claim memory of these ranges, and goes on with what they claim
/// beyond them. May be called in turn only.
pub(crate) fn take_over(ranges: &RangeMap<'_>) {
    loop {
        let Some(release) = BOOK.lock().custody.take_over(ranges) else {
            return;
        };
        release.stop();
        let mut book = BOOK.lock();
        let Book { custody, queue, .. } = &mut *book;
        if let Err(error) = custody.carry_on(release, ranges, queue.as_ref()) {
            pr_warn!(
                "scrub broken off: {}; the rest is scrubbed when it is handed out\n",
                error
            );
        }
    }
}

/// The `nth` device, bound or quarantined, that has the memory at this address: a former binding
/// may still be open beside the present one.
pub(crate) fn device_at(at: PhysAddr, nth: usize) -> Option<Arc<Device>> {
    let book = BOOK.lock();
    let has = |device: &&Arc<Device>| device.map().pgoff_of(at).is_some();
    book.devices.iter().filter(has).nth(nth).cloned()
}

/// The parts of these ranges that are not known to be clean. May be called in turn only.
pub(crate) fn dirty_parts(ranges: &RangeMap<'_>) -> Result<KVec<Extent>> {
    BOOK.lock().custody.dirty_parts(ranges)
}

/// Called by the last worker of any scrub that has ended.
pub(crate) fn scrub_ended(scrub: &Scrub) {
    let release = BOOK.lock().custody.end(scrub);
    if let Some(release) = release {
        if scrub.has_failed() {
            pr_warn!(
                "{}: scrub failed for lack of memory; the rest is scrubbed when it is handed out\n",
                release.name()
            );
        }
    }
}

/// Forgets that this memory is clean: another driver is about to get it, or its region goes.
pub(crate) fn forget(extent: &Extent) {
    BOOK.lock().custody.forget(extent);
}

/// Forgets that any memory is clean.
pub(crate) fn forget_all() {
    BOOK.lock().custody.forget_all();
}

/// Sets the policy for the next bind of the device of that name. [`Policy::Release`] is what it has
/// unless another was set: it takes that back.
///
/// # Errors
///
/// ENOSPC when too many devices have one and were never bound; ENOMEM.
pub(crate) fn set_policy(name: CString, policy: Policy) -> Result {
    if policy == Policy::Release {
        let _ = take_policy(&name);
        return Ok(());
    }
    let mut book = BOOK.lock();
    if let Some(known) = book.policies.iter_mut().find(|(known, _)| **known == *name) {
        known.1 = policy;
        return Ok(());
    }
    if book.policies.len() >= MOST_POLICIES {
        return Err(ENOSPC);
    }
    Ok(book.policies.push((name, policy), GFP_KERNEL)?)
}

/// Takes the policy that was set for this device, if one was.
pub(crate) fn take_policy(name: &CStr) -> Option<Policy> {
    let mut book = BOOK.lock();
    let index = book
        .policies
        .iter()
        .position(|(known, _)| **known == *name)?;
    book.policies.remove(index).ok().map(|(_, policy)| policy)
}

/// A physical extent the way sysfs shows it: `0xSTART-0xEND`, the end inclusive.
pub(crate) struct Shown(pub(crate) Extent);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = self.0.start.raw();
        let last = start.saturating_add(self.0.len).saturating_sub(1);
        f.write_fmt(fmt!("{:#x}-{:#x}", start, last))
    }
}

/// The quarantined ranges, a line each: `0xSTART-0xEND daxX.Y OPENERS`.
pub(crate) struct Quarantine;

impl fmt::Display for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        in_turn(end_lingering);
        let book = BOOK.lock();
        for device in book.devices.iter().filter(|device| !device.is_live()) {
            for extent in extents_of(&device.map()) {
                let (name, openers) = (device.name(), device.openers());
                f.write_fmt(fmt!("{} {} {}\n", Shown(extent), name, openers))?;
            }
        }
        Ok(())
    }
}

/// The scrubs of memory whose device is gone, a line an extent: `0xSTART-0xEND daxX.Y DONE TOTAL`,
/// in bytes.
pub(crate) struct Scrubbing;

impl fmt::Display for Scrubbing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let book = BOOK.lock();
        for release in book.custody.releases() {
            for (extent, progress) in release.scrub().parts() {
                f.write_fmt(fmt!(
                    "{} {} {} {}\n",
                    Shown(extent),
                    release.name(),
                    progress.done,
                    progress.total
                ))?;
            }
        }
        Ok(())
    }
}

/// The memory that is known to be clean and belongs to no device, a line an extent:
/// `0xSTART-0xEND`.
pub(crate) struct Clean;

impl fmt::Display for Clean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let book = BOOK.lock();
        for extent in book.custody.clean() {
            f.write_fmt(fmt!("{}\n", Shown(*extent)))?;
        }
        Ok(())
    }
}

/// The policies that wait for their device, a line each: `daxX.Y POLICY`.
pub(crate) struct Policies;

impl fmt::Display for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let book = BOOK.lock();
        for (name, policy) in &book.policies {
            f.write_fmt(fmt!("{} {}\n", &**name, policy.name()))?;
        }
        Ok(())
    }
}
