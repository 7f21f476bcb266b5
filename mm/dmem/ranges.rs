// SPDX-License-Identifier: GPL-2.0

//! The physical ranges behind a device: checked once at bind, then looked up by device offset.
//!
//! The dax bus keeps a device's ranges as an array that grows by sysfs writes while a driver is
//! bound (`drivers/dax/bus.c`, `alloc_dev_dax_range`), so the driver copies them at probe.
//! [`Checked`] owns that copy, [`RangeMap`] is the borrowed view every computation takes.

use core::fmt;
use core::ops::Deref;

use super::extents::Extent;
use super::units::{Leaf, PageOff, PhysAddr, PAGE_SIZE};

/// Most ranges a device may have.
///
/// [`RangeMap::new`] compares every range with every other and [`congruence()`](super::congruence())
/// may do so on each mmap; neither has memory to sort in. At this bound both stay at about a
/// million comparisons, a few milliseconds.
pub const MAX_RANGES: usize = 1024;

/// One physically contiguous part of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevRange {
    /// Device offset of the first page.
    pub pgoff: PageOff,
    /// Physical address of the first page.
    pub start: PhysAddr,
    /// Length in 4 KiB pages.
    pub pages: u64,
}

impl DevRange {
    /// First physical address behind the range; `None` where range and end do not fit 64 bits.
    #[inline]
    pub fn end(&self) -> Option<PhysAddr> {
        self.start.checked_add(self.pages.checked_mul(PAGE_SIZE)?)
    }

    /// The range as a piece of physical memory; one that exceeds 64 bits is cut off there.
    #[inline]
    pub fn extent(&self) -> Extent {
        Extent {
            start: self.start,
            len: self.pages.saturating_mul(PAGE_SIZE),
        }
    }

    /// Device offset behind the last page; `None` where it exceeds 64 bits.
    #[inline]
    pub fn pgoff_end(&self) -> Option<PageOff> {
        self.pgoff.checked_add(self.pages)
    }

    /// Physical address of the page at device offset `pgoff`; `None` outside the range.
    #[inline]
    pub fn phys(&self, pgoff: PageOff) -> Option<PhysAddr> {
        let page = pgoff.pages_beyond(self.pgoff)?;
        if page >= self.pages {
            return None;
        }
        self.start.checked_add(page.checked_mul(PAGE_SIZE)?)
    }
}

/// What is wrong with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeFault {
    /// The device has no range at all (reported at index 0).
    NoRanges,
    /// The device has more than [`MAX_RANGES`] ranges (reported at the first one too many).
    TooManyRanges,
    /// The range has no page.
    NoPages,
    /// The range does not start on a page.
    Misaligned,
    /// The end of the range does not fit 64 bits.
    Overflow,
    /// The range should have started at device offset `expected`: offsets run on from 0 without
    /// gap.
    Discontiguous {
        /// End of the range before, or 0.
        expected: PageOff,
    },
    /// The range shares physical pages with an earlier one.
    Overlaps {
        /// Index of the first such range.
        earlier: usize,
    },
}

/// Why a list of ranges is refused. Reports the first bad range, and of its faults the first in the
/// order of [`RangeFault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeError {
    /// Index of the range, counted from 0 in the order given.
    pub index: usize,
    /// What is wrong with it.
    pub fault: RangeFault,
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = self.index;
        match self.fault {
            RangeFault::NoRanges => write!(f, "device has no ranges: give it a size first"),
            RangeFault::TooManyRanges => write!(
                f,
                "device has more than {MAX_RANGES} ranges: use fewer, larger ones"
            ),
            RangeFault::NoPages => write!(f, "range {index} is empty"),
            RangeFault::Misaligned => write!(f, "range {index} does not start on a 4 KiB page"),
            RangeFault::Overflow => write!(f, "range {index} ends beyond 64 bits"),
            RangeFault::Discontiguous { expected } => {
                write!(
                    f,
                    "range {index} does not start at device page {:#x}",
                    expected.raw()
                )
            }
            RangeFault::Overlaps { earlier } => write!(f, "range {index} overlaps range {earlier}"),
        }
    }
}

/// The ranges of one device, by device offset.
///
/// # Invariants
///
/// There is at least one range and at most [`MAX_RANGES`]. Every range starts on a page, has at
/// least one page, and its end fits 64 bits. Device offsets start at 0 and run on without gap. No
/// two ranges share a physical page (so that the byte size of the whole device fits 64 bits as
/// well).
#[derive(Clone, Copy, Debug)]
pub struct RangeMap<'a> {
    ranges: &'a [DevRange],
}

impl<'a> RangeMap<'a> {
    /// Checks a device's ranges. Costs a comparison for every pair: for probe, not for the fault
    /// path (see [`Checked`]).
    ///
    /// # Errors
    ///
    /// [`RangeError`] names the first range that breaks an invariant of the type, and how.
    pub fn new(ranges: &'a [DevRange]) -> Result<Self, RangeError> {
        check(ranges)?;
        // INVARIANT: `check` has just established all of them.
        Ok(Self { ranges })
    }

    /// Size of the device, in 4 KiB pages.
    #[inline]
    pub fn pages(&self) -> u64 {
        // The invariants make both fallbacks unreachable; a device of no pages is the harmless
        // answer.
        self.ranges
            .last()
            .and_then(DevRange::pgoff_end)
            .map_or(0, PageOff::raw)
    }

    /// The ranges, in order of device offset.
    #[inline]
    pub fn ranges(&self) -> &'a [DevRange] {
        self.ranges
    }

    /// The range that holds the page at this device offset; `None` beyond the device's end.
    ///
    /// A binary search: O(log n) for n ranges.
    #[inline]
    pub fn find(&self, pgoff: PageOff) -> Option<&'a DevRange> {
        let behind = self.ranges.partition_point(|range| range.pgoff <= pgoff);
        let range = self.ranges.get(behind.checked_sub(1)?)?;
        // Only the last range has an end that is not the start of another one.
        (pgoff < range.pgoff_end()?).then_some(range)
    }

    /// Device offset of the page at this physical address; `None` where it is not the device's.
    /// O(n).
    #[inline]
    pub fn pgoff_of(&self, phys: PhysAddr) -> Option<PageOff> {
        let holds = |range: &&DevRange| range.extent().contains(phys);
        let range = self.ranges.iter().find(holds)?;
        let pages = phys.bytes_above(range.start)? / PAGE_SIZE;
        range.pgoff.checked_add(pages)
    }

    /// Physical address of the page at this device offset; `None` beyond the device's end. O(log
    /// n).
    #[inline]
    pub fn phys(&self, pgoff: PageOff) -> Option<PhysAddr> {
        self.find(pgoff)?.phys(pgoff)
    }
}

/// Establishes the invariants of [`RangeMap`].
fn check(ranges: &[DevRange]) -> Result<(), RangeError> {
    if ranges.is_empty() {
        return Err(RangeError {
            index: 0,
            fault: RangeFault::NoRanges,
        });
    }
    let mut expected = PageOff::from_raw(0);
    for (index, range) in ranges.iter().enumerate() {
        let earlier = ranges.get(..index).unwrap_or_default();
        expected =
            check_one(earlier, range, expected).map_err(|fault| RangeError { index, fault })?;
    }
    Ok(())
}

/// Checks one range against those before it; gives the device offset at which the next one has to
/// start.
fn check_one(
    earlier: &[DevRange],
    range: &DevRange,
    expected: PageOff,
) -> Result<PageOff, RangeFault> {
    if earlier.len() >= MAX_RANGES {
        return Err(RangeFault::TooManyRanges);
    }
    if range.pages == 0 {
        return Err(RangeFault::NoPages);
    }
    if !range.start.is_aligned(Leaf::Pte) {
        return Err(RangeFault::Misaligned);
    }
    let (Some(end), Some(pgoff_end)) = (range.end(), range.pgoff_end()) else {
        return Err(RangeFault::Overflow);
    };
    if range.pgoff != expected {
        return Err(RangeFault::Discontiguous { expected });
    }
    let overlaps = |other: &DevRange| {
        other.start < end && other.end().is_none_or(|other_end| range.start < other_end)
    };
    match earlier.iter().position(overlaps) {
        Some(earlier) => Err(RangeFault::Overlaps { earlier }),
        None => Ok(pgoff_end),
    }
}

/// Owner of ranges that have passed [`RangeMap::new`], so that a view of them costs nothing at each
/// fault.
///
/// `T` is whatever holds the slice: `KVec<DevRange>` in the kernel, `Vec` or a borrowed slice on
/// the host.
///
/// # Invariants
///
/// The slice `T` dereferences to fulfils the invariants of [`RangeMap`]: it was checked, and
/// nothing gives out a mutable reference to it. (A `T` whose `Deref` changes its answer breaks
/// that; the answers computed from it are then wrong, but nothing becomes unsound or panics.)
#[derive(Debug)]
pub struct Checked<T: Deref<Target = [DevRange]>>(T);

impl<T: Deref<Target = [DevRange]>> Checked<T> {
    /// Checks the ranges and keeps them.
    ///
    /// # Errors
    ///
    /// Those of [`RangeMap::new`], with the ranges given back.
    pub fn new(ranges: T) -> Result<Self, (RangeError, T)> {
        match check(&ranges) {
            // INVARIANT: `check` has just established it.
            Ok(()) => Ok(Self(ranges)),
            Err(error) => Err((error, ranges)),
        }
    }

    /// The view to compute with.
    #[inline]
    pub fn map(&self) -> RangeMap<'_> {
        // INVARIANT: those of `Self` are the same.
        RangeMap { ranges: &self.0 }
    }

    /// Gives the ranges back.
    pub fn into_inner(self) -> T {
        self.0
    }
}
