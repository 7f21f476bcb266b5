// SPDX-License-Identifier: GPL-2.0

//! Leaf choice: which leaf sizes may map the memory around a virtual address.
//!
//! A leaf is possible where its whole naturally aligned block lies in the VMA and maps bytes of one
//! physical range that start on a multiple of its size. All of it follows from the *run*: the
//! longest stretch around an address in which virtual and physical addresses advance together.

use super::extents::Extent;
use super::ranges::RangeMap;
use super::units::{Leaf, PageOff, PhysAddr, VirtAddr, PAGE_SIZE};

/// The part of an address space that maps a device: a VMA, `[start, end)`.
///
/// # Invariants
///
/// `start < end`; both are page aligned. The device offset behind the last page fits 64 bits in
/// bytes as well as in pages. The window may reach beyond the device's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    start: VirtAddr,
    end: VirtAddr,
    pgoff: PageOff,
}

impl Window {
    /// A window over `[start, end)` whose first page maps device offset `pgoff`.
    ///
    /// `None` when it is empty or backwards, an end is not page aligned, or an offset in it
    /// overflows.
    #[inline]
    pub fn new(start: VirtAddr, end: VirtAddr, pgoff: PageOff) -> Option<Self> {
        let bytes = end.bytes_above(start)?;
        if bytes == 0 || !start.is_aligned(Leaf::Pte) || !end.is_aligned(Leaf::Pte) {
            return None;
        }
        pgoff.bytes()?.checked_add(bytes)?;
        // INVARIANT: each was checked above.
        Some(Self { start, end, pgoff })
    }

    /// First address.
    #[inline]
    pub fn start(&self) -> VirtAddr {
        self.start
    }

    /// First address behind the window.
    #[inline]
    pub fn end(&self) -> VirtAddr {
        self.end
    }

    /// Device offset of the first page.
    #[inline]
    pub fn pgoff(&self) -> PageOff {
        self.pgoff
    }

    /// Whether the byte at this address is inside.
    #[inline]
    pub fn contains(&self, addr: VirtAddr) -> bool {
        self.start <= addr && addr < self.end
    }

    /// Length in 4 KiB pages.
    #[inline]
    pub fn pages(&self) -> u64 {
        self.end.bytes_above(self.start).map_or(0, pages)
    }

    /// Whether it maps the page at this device offset.
    #[inline]
    pub fn maps(&self, pgoff: PageOff) -> bool {
        let into = pgoff.pages_beyond(self.pgoff);
        into.is_some_and(|into| into < self.pages())
    }

    /// Device offset of the page that contains `addr`; `None` outside the window.
    #[inline]
    pub fn pgoff_at(&self, addr: VirtAddr) -> Option<PageOff> {
        if !self.contains(addr) {
            return None;
        }
        self.pgoff.checked_add(pages(addr.bytes_above(self.start)?))
    }
}

/// What to install: physical memory for a stretch of virtual addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// First virtual address; page aligned, and aligned to the leaf where one leaf is meant.
    pub virt: VirtAddr,
    /// Physical address behind it; aligned alike.
    pub phys: PhysAddr,
    /// Length in 4 KiB pages.
    pub pages: u64,
}

impl Placement {
    /// The physical memory in it.
    #[inline]
    pub fn extent(&self) -> Extent {
        Extent {
            start: self.phys,
            len: self.pages.saturating_mul(PAGE_SIZE),
        }
    }

    /// Physical address of the page that is to be mapped at `addr`.
    #[inline]
    pub fn phys_at(&self, addr: VirtAddr) -> Option<PhysAddr> {
        let into = addr.align_down(Leaf::Pte).bytes_above(self.virt)?;
        self.phys.checked_add(into)
    }

    /// What of it leads to `part`, which lies in its memory and starts and ends on a page.
    #[inline]
    pub fn only(&self, part: &Extent) -> Option<Placement> {
        Some(Placement {
            virt: self.virt.checked_add(part.start.bytes_above(self.phys)?)?,
            phys: part.start,
            pages: pages(part.len),
        })
    }
}

/// The leaf of this size around `addr`, if one may be installed.
///
/// The naturally aligned block around `addr` then lies in the window, its bytes are those of one
/// range, and its physical start is aligned to the size. `None` otherwise, and for an address
/// outside the window or beyond the device's end. `addr` need not be aligned. O(log n) for n
/// ranges.
#[inline]
pub fn fits(map: &RangeMap<'_>, window: &Window, addr: VirtAddr, leaf: Leaf) -> Option<Placement> {
    Run::around(map, window, addr)?.leaf(addr, leaf)
}

/// The largest leaf that may be installed around `addr`.
///
/// `None` for an address outside the window or beyond the device's end; anywhere else at least
/// [`Leaf::Pte`] fits. O(log n) for n ranges.
#[inline]
pub fn largest(map: &RangeMap<'_>, window: &Window, addr: VirtAddr) -> Option<(Leaf, Placement)> {
    let run = Run::around(map, window, addr)?;
    Leaf::LARGEST_FIRST
        .into_iter()
        .find_map(|leaf| Some((leaf, run.leaf(addr, leaf)?)))
}

/// What to map with 4 KiB leaves when `addr` is touched: as much of the naturally aligned 2 MiB
/// around it as lies in the window and in the same range.
///
/// One page table then serves the whole placement, and one fault fills it. `None` for an address
/// outside the window or beyond the device's end. O(log n) for n ranges.
#[inline]
pub fn fill(map: &RangeMap<'_>, window: &Window, addr: VirtAddr) -> Option<Placement> {
    let run = Run::around(map, window, addr)?;
    let block = addr.align_down(Leaf::Pmd);
    let virt = block.max(run.virt);
    // The last block of the address space has no end in 64 bits, but the run has one.
    let end = block
        .checked_add(Leaf::Pmd.size())
        .map_or(run.end, |end| end.min(run.end));
    Some(Placement {
        virt,
        phys: run.phys_at(virt)?,
        pages: pages(end.bytes_above(virt)?),
    })
}

/// Bytes to whole pages.
#[inline]
fn pages(bytes: u64) -> u64 {
    bytes / PAGE_SIZE
}

/// The longest stretch `[virt, end)` of a window that maps consecutive bytes of one range.
///
/// # Invariants
///
/// `virt < end`, all three are page aligned, and `phys + (end - virt)` fits 64 bits.
struct Run {
    virt: VirtAddr,
    end: VirtAddr,
    phys: PhysAddr,
}

impl Run {
    /// The run that contains `addr`; `None` outside the window or beyond the device's end.
    #[inline]
    fn around(map: &RangeMap<'_>, window: &Window, addr: VirtAddr) -> Option<Self> {
        let pgoff = window.pgoff_at(addr)?;
        let range = map.find(pgoff)?;
        let page = addr.align_down(Leaf::Pte);
        let before = pgoff
            .pages_beyond(range.pgoff)?
            .min(pages(page.bytes_above(window.start)?));
        let after = range
            .pgoff_end()?
            .pages_beyond(pgoff)?
            .min(pages(window.end.bytes_above(page)?));
        let before = before.checked_mul(PAGE_SIZE)?;
        // INVARIANT: the page at `addr` is inside, and both ends stay within a window and a range
        // that have theirs.
        Some(Self {
            virt: page.checked_sub(before)?,
            end: page.checked_add(after.checked_mul(PAGE_SIZE)?)?,
            phys: range.phys(pgoff)?.checked_sub(before)?,
        })
    }

    /// Physical address behind an address of the run.
    #[inline]
    fn phys_at(&self, virt: VirtAddr) -> Option<PhysAddr> {
        self.phys.checked_add(virt.bytes_above(self.virt)?)
    }

    /// The leaf of this size around an address of the run, if the run allows it.
    #[inline]
    fn leaf(&self, addr: VirtAddr, leaf: Leaf) -> Option<Placement> {
        let virt = addr.align_down(leaf);
        let phys = self.phys_at(virt)?;
        let inside = virt.checked_add(leaf.size())? <= self.end;
        (inside && phys.is_aligned(leaf)).then_some(Placement {
            virt,
            phys,
            pages: leaf.pages(),
        })
    }
}
