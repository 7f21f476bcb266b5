// SPDX-License-Identifier: GPL-2.0

//! Recipes: small numbers that make devices, windows and addresses whose boundaries fall where
//! leaves begin and end.
//!
//! Uniformly random addresses would hardly ever be congruent; these are, or miss it by a page. The
//! property tests and the fuzzer draw the numbers, each in its own way; everything here is total,
//! so that any numbers will do.

use dmem_plan::{DevRange, PageOff, PhysAddr, VirtAddr, Window};

const GIG: u128 = 1 << 18;
const MEG2: u128 = 1 << 9;

/// Pages in 64 bits of bytes, less one: the highest page-aligned end that 64 bits can hold.
const TOP: u128 = (1 << 52) - 1;

/// A number of pages: gigs GiB, plus megs2 times 2 MiB, plus pages.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub gigs: u8,
    pub megs2: u16,
    pub pages: u16,
}

impl Size {
    fn get(self) -> u128 {
        u128::from(self.gigs) * GIG + u128::from(self.megs2) * MEG2 + u128::from(self.pages)
    }
}

/// One range: what lies free before it, in order of physical address, and its length.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// 0: as it comes; 1: round the start up to 2 MiB; else to 1 GiB. Before the gap is added.
    pub align: u8,
    pub gap: Size,
    pub size: Size,
    /// Rank in device order; equal ranks stay in physical order.
    pub rank: u8,
}

/// Where in the address space the ranges lie.
#[derive(Clone, Copy, Debug)]
pub enum Base {
    /// From physical address 0.
    Bottom,
    /// As high as possible, moved by whole GiB.
    High,
    /// The last range ends on the last page 64 bits can bound.
    Top,
}

/// A device that [`dmem_plan::RangeMap::new`] has to accept.
pub fn device(chunks: &[Chunk], base: Base) -> Vec<DevRange> {
    let mut cursor = 0;
    let mut placed = Vec::new();
    for chunk in chunks {
        let grain = [1, MEG2, GIG][usize::from(chunk.align.min(2))];
        let start = cursor_up(cursor, grain) + chunk.gap.get();
        let pages = chunk.size.get().max(1);
        cursor = start + pages;
        placed.push((chunk.rank, start, pages));
    }
    let shift = match base {
        Base::Bottom => 0,
        Base::High => (TOP - cursor) / GIG * GIG,
        Base::Top => TOP - cursor,
    };
    placed.sort_by_key(|&(rank, ..)| rank);
    let mut pgoff = 0;
    let mut ranges = Vec::new();
    for (_, start, pages) in placed {
        ranges.push(DevRange {
            pgoff: PageOff::from_raw(u64_of(pgoff)),
            start: PhysAddr::from_raw(u64_of((start + shift) * 4096)),
            pages: u64_of(pages),
        });
        pgoff += pages;
    }
    ranges
}

fn cursor_up(cursor: u128, grain: u128) -> u128 {
    cursor.div_ceil(grain) * grain
}

fn u64_of(value: u128) -> u64 {
    u64::try_from(value).expect("recipes stay within 64 bits")
}

/// A device page near a boundary: the start of range `near` (counted round, the device's end
/// included), moved.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    pub near: u8,
    pub back: bool,
    pub by: Size,
}

impl Spot {
    /// The device page; clipped at 0, possibly beyond the end.
    pub fn pgoff(self, ranges: &[DevRange]) -> u64 {
        let boundary = match ranges.get(usize::from(self.near) % (ranges.len() + 1)) {
            Some(range) => range.pgoff.raw(),
            None => end(ranges),
        };
        let boundary = u128::from(boundary);
        u64_of(if self.back {
            boundary.saturating_sub(self.by.get())
        } else {
            boundary + self.by.get()
        })
    }
}

fn end(ranges: &[DevRange]) -> u64 {
    ranges.iter().map(|range| range.pages).sum()
}

/// A window: from one spot of the device to another, at an address that suits one of the ranges, or
/// misses it.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub from: Spot,
    pub to: Spot,
    /// The range (counted round) whose physical addresses the virtual ones are congruent to, modulo
    /// 1 GiB.
    pub like: u8,
    /// Pages by which they miss it.
    pub off: Size,
    /// GiB below the window; the last that fit, if more.
    pub up: u64,
}

impl View {
    /// The offset and length, in pages, of the part of the device to be mapped; at least one page.
    pub fn part(self, ranges: &[DevRange]) -> (u64, u64) {
        let (from, to) = (self.from.pgoff(ranges), self.to.pgoff(ranges));
        (from.min(to), from.abs_diff(to).max(1))
    }

    /// The window.
    pub fn window(self, ranges: &[DevRange]) -> Window {
        let (pgoff, pages) = self.part(ranges);
        let like = ranges[usize::from(self.like) % ranges.len()];
        let linear =
            i128::from(like.start.raw() / 4096) - i128::from(like.pgoff.raw()) + i128::from(pgoff);
        let linear = u128::try_from(linear.rem_euclid(1 << 18)).expect("not negative");
        let low = linear + self.off.get();
        let room = (TOP - u128::from(pages) - low) / GIG;
        let start = low + u128::from(self.up).min(room) * GIG;
        let addr = |page: u128| VirtAddr::from_raw(u64_of(page * 4096));
        Window::new(
            addr(start),
            addr(start + u128::from(pages)),
            PageOff::from_raw(pgoff),
        )
        .expect("a recipe makes a window")
    }
}

/// The virtual address at which a window would map a spot, `byte` bytes into the page. Possibly
/// outside the window.
pub fn touch(window: &Window, ranges: &[DevRange], spot: Spot, byte: u16) -> VirtAddr {
    let page = i128::from(window.start().raw() / 4096) + i128::from(spot.pgoff(ranges))
        - i128::from(window.pgoff().raw());
    let addr = page.clamp(0, i128::from(u64::MAX / 4096)) * 4096 + i128::from(byte % 4096);
    VirtAddr::from_raw(u64::try_from(addr).expect("clamped"))
}
