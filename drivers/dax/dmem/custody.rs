// SPDX-License-Identifier: GPL-2.0

//! Memory between two tenants: what is known to be clean, and what is on its way to be.
//!
//! What this module says nothing about is dirty. So after a crash, a reboot or a reload of the
//! module all memory is, and whoever gets it next finds it scrubbed.
//!
//! Locks: all of it is part of the registry's [`Book`](crate::registry::Book), under its mutex.

use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;

use crate::device::{Cleanness, Device};
use crate::error::Error;
use crate::ffi::reservation::Reservation;
use crate::ffi::workqueue::WorkQueue;
use crate::plan::{Extent, ExtentSet, RangeMap};
use crate::scrub::{Policy, Prepared, Scrub};
use crate::store::Extents;

/// A scrub of memory whose device is gone or unbound. Keeps others off the memory until it ends.
pub(crate) struct Release {
    scrub: Arc<Scrub>,
    reservation: Arc<Reservation>,
}

impl Release {
    /// The name of the device the memory belonged to.
    pub(crate) fn name(&self) -> &CStr {
        self.reservation.name()
    }

    /// The job.
    pub(crate) fn scrub(&self) -> &Scrub {
        &self.scrub
    }

    /// Ends the job early.
    pub(crate) fn stop(&self) {
        self.scrub.stop();
    }

    /// Whether it claims memory of these ranges, be it clean already.
    fn claims(&self, ranges: &RangeMap<'_>) -> bool {
        let mut claimed = self.reservation.extents().iter();
        claimed.any(|claimed| extents_of(ranges).any(|range| range.overlaps(claimed)))
    }
}

/// The memory this driver has handed back and still knows about.
pub(crate) struct Custody {
    /// Zero, and out of everybody's reach since.
    clean: ExtentSet<Extents>,
    releases: KVec<Release>,
}

impl Custody {
    pub(crate) const fn new() -> Self {
        Self {
            clean: ExtentSet::new(Extents::new()),
            releases: KVec::new(),
        }
    }

    /// What is known to be clean, in ascending order.
    pub(crate) fn clean(&self) -> &[Extent] {
        self.clean.extents()
    }

    /// The scrubs under way.
    pub(crate) fn releases(&self) -> &[Release] {
        &self.releases
    }

    /// The parts of these ranges that are not known to be clean.
    pub(crate) fn dirty_parts(&self, ranges: &RangeMap<'_>) -> Result<KVec<Extent>> {
        let mut dirty = KVec::new();
        for range in extents_of(ranges) {
            for part in self.clean.missing(&range) {
                dirty.push(part, GFP_KERNEL)?;
            }
        }
        Ok(dirty)
    }

    /// Forgets that this memory is clean: somebody may write to it from here on.
    pub(crate) fn forget(&mut self, extent: &Extent) {
        self.clean.remove(extent);
    }

    /// Forgets everything.
    pub(crate) fn forget_all(&mut self) {
        self.clean = ExtentSet::new(Extents::new());
    }

    /// Takes over the memory of a device that nobody can reach any more: keeps what is clean in
    /// mind, and begins to scrub the rest if that is the device's policy.
    pub(crate) fn receive(&mut self, device: &Device, queue: Option<&WorkQueue>) {
        let dirty = self.sort_out(device);
        if device.policy() != Policy::Release {
            return;
        }
        let begun = dirty.and_then(|dirty| self.begin(device.reservation(), &dirty, queue));
        if let Err(error) = begun {
            pr_warn!(
                "{}: cannot be scrubbed now: {}; it will be when it is handed out\n",
                device.name(),
                error
            );
        }
    }

    /// Learns what is clean of a device's memory, and tells what is not.
    fn sort_out(&mut self, device: &Device) -> Result<KVec<Extent>, Error> {
        let ranges = device.map();
        let untouched = !device.was_opened() && device.cleanness() != Cleanness::Unscrubbed;
        if untouched {
            for range in extents_of(&ranges) {
                self.clean.add(range);
            }
            for undone in device.scrub().iter().flat_map(|scrub| scrub.undone()) {
                self.clean.remove(&undone);
            }
        }
        Ok(self.dirty_parts(&ranges)?)
    }

    /// Begins to scrub memory that is claimed by `reservation`.
    fn begin(
        &mut self,
        reservation: &Arc<Reservation>,
        dirty: &[Extent],
        queue: Option<&WorkQueue>,
    ) -> Result<(), Error> {
        let Some(queue) = queue.filter(|_| !dirty.is_empty()) else {
            return Ok(());
        };
        let job = Prepared::new(dirty)?;
        let release = Release {
            scrub: job.scrub().clone(),
            reservation: reservation.clone(),
        };
        self.releases.push(release, GFP_KERNEL)?;
        job.start(queue);
        Ok(())
    }

    /// Takes a scrub that has ended by itself off the list, and keeps what it did in mind. `None`
    /// when it is not one of a release, or somebody has taken it over. The caller drops the result
    /// after the lock.
    pub(crate) fn end(&mut self, scrub: &Scrub) -> Option<Release> {
        let is_it = |release: &Release| core::ptr::eq(&*release.scrub, scrub);
        let index = self.releases.iter().position(is_it)?;
        let release = self.releases.remove(index).ok()?;
        self.learn(&release);
        Some(release)
    }

    /// Takes a scrub that is in the way of these ranges off the list. The caller stops it and
    /// comes back with [`Custody::carry_on`].
    pub(crate) fn take_over(&mut self, ranges: &RangeMap<'_>) -> Option<Release> {
        let in_the_way = |release: &Release| release.claims(ranges);
        let index = self.releases.iter().position(in_the_way)?;
        self.releases.remove(index).ok()
    }

    /// Takes the last scrub off the list, for the end of the module.
    pub(crate) fn take_last(&mut self) -> Option<Release> {
        self.releases.pop()
    }

    /// Keeps what a stopped scrub did in mind, gives up its claims, and goes on with what lies
    /// outside `ranges`.
    pub(crate) fn carry_on(
        &mut self,
        release: Release,
        ranges: &RangeMap<'_>,
        queue: Option<&WorkQueue>,
    ) -> Result<(), Error> {
        self.learn(&release);
        let mut rest = ExtentSet::new(Extents::new());
        for undone in release.scrub.undone() {
            if !rest.add(undone) {
                return Err(Error::Kernel(ENOMEM));
            }
        }
        for range in extents_of(ranges) {
            rest.remove(&range);
        }
        let name = CString::try_from(release.name())?;
        drop(release);
        if rest.extents().is_empty() {
            return Ok(());
        }
        let reservation = Reservation::new(&name, rest.extents().iter().copied())?;
        let reservation = Arc::new(reservation, GFP_KERNEL)?;
        self.begin(&reservation, rest.extents(), queue)
    }

    fn learn(&mut self, release: &Release) {
        for done in release.scrub.done() {
            // Without memory for it, it is scrubbed once more.
            self.clean.add(done);
        }
    }
}

/// A device's ranges as pieces of physical memory.
pub(crate) fn extents_of<'a>(ranges: &RangeMap<'a>) -> impl Iterator<Item = Extent> + 'a {
    ranges.ranges().iter().map(|range| range.extent())
}
