// SPDX-License-Identifier: GPL-2.0

//! Oracles: what the answers ought to be, found by looking at every range and every page, in
//! 128-bit arithmetic.
//!
//! Slow and obvious on purpose, and nothing here shares a thought with the code under test.

use dmem_plan::{
    fill, fits, largest, Congruence, DevRange, Leaf, PageOff, PhysAddr, Placement, RangeFault,
    RangeMap, VirtAddr, Window, MAX_RANGES,
};

const PAGE: u128 = 4096;

fn wide(value: u64) -> u128 {
    u128::from(value)
}

fn narrow(value: u128) -> u64 {
    u64::try_from(value).expect("an address inside a window or range fits 64 bits")
}

/// Index of the range that holds a device page, and the page's physical address.
pub fn page(ranges: &[DevRange], pgoff: u128) -> Option<(usize, u128)> {
    ranges.iter().enumerate().find_map(|(index, range)| {
        let first = wide(range.pgoff.raw());
        let inside = first <= pgoff && pgoff < first + wide(range.pages);
        inside.then(|| (index, wide(range.start.raw()) + (pgoff - first) * PAGE))
    })
}

/// The same for the page at a virtual address.
fn mapped(ranges: &[DevRange], window: &Window, virt: u128) -> Option<(usize, u128)> {
    let (start, end) = (wide(window.start().raw()), wide(window.end().raw()));
    if virt < start || virt >= end {
        return None;
    }
    page(ranges, wide(window.pgoff().raw()) + (virt - start) / PAGE)
}

/// Whether every page of the block is mapped, by one range, each where the one before ends.
pub fn leaf_at(
    ranges: &[DevRange],
    window: &Window,
    addr: VirtAddr,
    leaf: Leaf,
) -> Option<Placement> {
    let size = match leaf {
        Leaf::Pte => 4 << 10,
        Leaf::Pmd => 2 << 20,
        Leaf::Pud => 1 << 30,
    };
    let block = wide(addr.raw()) / size * size;
    let (first_range, first_phys) = mapped(ranges, window, block)?;
    if first_phys % size != 0 {
        return None;
    }
    for k in 0..size / PAGE {
        if mapped(ranges, window, block + k * PAGE) != Some((first_range, first_phys + k * PAGE)) {
            return None;
        }
    }
    Some(Placement {
        virt: VirtAddr::from_raw(narrow(block)),
        phys: PhysAddr::from_raw(narrow(first_phys)),
        pages: narrow(size / PAGE),
    })
}

/// What 4 KiB leaves around `addr` may cover: page by page down, then up, until the 2 MiB, the
/// window or the range ends.
pub fn run_at(ranges: &[DevRange], window: &Window, addr: VirtAddr) -> Option<Placement> {
    let here = wide(addr.raw()) / PAGE * PAGE;
    let home = mapped(ranges, window, here)?;
    let block = wide(addr.raw()) >> 21;
    let belongs = |virt: u128| {
        virt >> 21 == block && mapped(ranges, window, virt).map(|p| p.0) == Some(home.0)
    };
    let mut first = here;
    while first >= PAGE && belongs(first - PAGE) {
        first -= PAGE;
    }
    let mut end = here + PAGE;
    while belongs(end) {
        end += PAGE;
    }
    Some(Placement {
        virt: VirtAddr::from_raw(narrow(first)),
        phys: PhysAddr::from_raw(narrow(home.1 - (here - first))),
        pages: narrow((end - first) / PAGE),
    })
}

/// All that is said of one address, against the oracles.
///
/// # Panics
///
/// When an answer is not the oracle's.
pub fn check_leaves(map: &RangeMap<'_>, window: &Window, addr: VirtAddr) {
    let ranges = map.ranges();
    let mut most = None;
    for leaf in [Leaf::Pte, Leaf::Pmd, Leaf::Pud] {
        let want = leaf_at(ranges, window, addr, leaf);
        assert_eq!(
            fits(map, window, addr, leaf),
            want,
            "fits {leaf:?} at {addr:?}"
        );
        most = want.map(|placement| (leaf, placement)).or(most);
    }
    assert_eq!(largest(map, window, addr), most, "largest at {addr:?}");
    assert_eq!(
        fill(map, window, addr),
        run_at(ranges, window, addr),
        "fill at {addr:?}"
    );
}

/// What find and phys say of a device page, against the oracle.
///
/// # Panics
///
/// When an answer is not the oracle's.
pub fn check_page(map: &RangeMap<'_>, pgoff: u64) {
    let want = page(map.ranges(), wide(pgoff));
    let off = PageOff::from_raw(pgoff);
    assert_eq!(
        map.find(off).copied(),
        want.map(|(index, _)| map.ranges()[index]),
        "find page {pgoff:#x}"
    );
    assert_eq!(
        map.phys(off).map(|phys| wide(phys.raw())),
        want.map(|(_, phys)| phys),
        "phys of page {pgoff:#x}"
    );
    for (index, range) in map.ranges().iter().enumerate() {
        let own = want.filter(|&(holder, _)| holder == index);
        assert_eq!(
            range.phys(off).map(|phys| wide(phys.raw())),
            own.map(|(_, phys)| phys),
            "range {index} about page {pgoff:#x}"
        );
    }
    assert_eq!(
        pgoff < map.pages(),
        want.is_some(),
        "device end at page {pgoff:#x}"
    );
}

/// The first bad range and all that is wrong with it. Compares physical pages by their numbers, so
/// `pages` has to be small in all ranges but the overflowing ones.
pub fn first_fault(ranges: &[DevRange]) -> Option<(usize, Vec<RangeFault>)> {
    if ranges.is_empty() {
        return Some((0, vec![RangeFault::NoRanges]));
    }
    let mut next = 0;
    for (index, range) in ranges.iter().enumerate() {
        let mut faults = Vec::new();
        if index >= MAX_RANGES {
            faults.push(RangeFault::TooManyRanges);
        }
        if range.pages == 0 {
            faults.push(RangeFault::NoPages);
        }
        if range.start.raw() % 4096 != 0 {
            faults.push(RangeFault::Misaligned);
        }
        let end = wide(range.start.raw()) + wide(range.pages) * PAGE;
        let overflows = end >= 1 << 64 || wide(range.pgoff.raw()) + wide(range.pages) >= 1 << 64;
        if overflows {
            faults.push(RangeFault::Overflow);
        }
        if wide(range.pgoff.raw()) != next {
            faults.push(RangeFault::Discontiguous {
                expected: PageOff::from_raw(narrow(next)),
            });
        }
        if !overflows {
            let shares = |other: &DevRange| {
                frames(range).any(|frame| frames(other).any(|taken| taken == frame))
            };
            if let Some(earlier) = ranges[..index].iter().position(shares) {
                faults.push(RangeFault::Overlaps { earlier });
            }
        }
        if !faults.is_empty() {
            return Some((index, faults));
        }
        next += wide(range.pages);
    }
    None
}

fn frames(range: &DevRange) -> impl Iterator<Item = u128> {
    let first = wide(range.start.raw()) / PAGE;
    first..first + wide(range.pages)
}

/// A window for a part of the device, starting at `start`.
fn window_at(start: u64, pgoff: u64, pages: u64) -> Window {
    Window::new(
        VirtAddr::from_raw(start),
        VirtAddr::from_raw(start + pages * 4096),
        PageOff::from_raw(pgoff),
    )
    .expect("the test maps within 64 bits")
}

/// How many 1 GiB and 2 MiB leaves faults all over a mapping would get: asks [`largest`] in each 2
/// MiB.
fn count(map: &RangeMap<'_>, start: u64, pgoff: u64, pages: u64) -> (u64, u64) {
    let window = window_at(start, pgoff, pages);
    let (mut puds, mut pmds) = (0, 0);
    let mut at = start;
    while at < window.end().raw() {
        // What is no leaf of 2 MiB or more has only smaller ones up to the next 2 MiB boundary.
        let mut next = (at >> 21 << 21) + (2 << 20);
        match largest(map, &window, VirtAddr::from_raw(at)) {
            Some((Leaf::Pud, leaf)) => {
                assert_eq!(leaf.virt.raw(), at, "1 GiB leaf entered in its middle");
                puds += 1;
                next = at + (1 << 30);
            }
            Some((Leaf::Pmd, leaf)) => {
                assert_eq!(leaf.virt.raw(), at, "2 MiB leaf entered in its middle");
                pmds += 1;
            }
            Some((Leaf::Pte, _)) | None => {}
        }
        at = next;
    }
    (puds, pmds)
}

/// First address from `base` on with this residue.
fn up_to(base: u64, residue: u64, modulus: u64) -> u64 {
    let up = (i128::from(residue) - i128::from(base)).rem_euclid(i128::from(modulus));
    u64::try_from(i128::from(base) + up).expect("the test's base is low")
}

/// The residues modulo `modulus` that single ranges ask for, those in which their own part gets
/// such a leaf.
fn wishes(map: &RangeMap<'_>, base: u64, pgoff: u64, pages: u64, modulus: u64) -> Vec<u64> {
    let mut wishes = Vec::new();
    for range in map.ranges() {
        let first = range.pgoff.raw().max(pgoff);
        let end = (range.pgoff.raw() + range.pages).min(pgoff + pages);
        if first >= end {
            continue;
        }
        // Where the mapping would start if this range were mapped at its own physical addresses.
        let origin = i128::from(range.start.raw())
            - (i128::from(range.pgoff.raw()) - i128::from(pgoff)) * 4096;
        let residue =
            u64::try_from(origin.rem_euclid(i128::from(modulus))).expect("below the modulus");
        let own = up_to(base, residue, modulus) + (first - pgoff) * 4096;
        let (puds, pmds) = count(map, own, first, end - first);
        if puds > 0 || (modulus == 2 << 20 && pmds > 0) {
            wishes.push(residue);
        }
    }
    wishes
}

/// That a congruence's start is the first address from `base` on that fits, or there is none.
///
/// # Panics
///
/// When it is not.
pub fn check_apply(wish: Congruence, base: u64) {
    let behind = i128::from(wish.residue()) - i128::from(base);
    let start = i128::from(base) + behind.rem_euclid(i128::from(wish.modulus()));
    assert_eq!(
        wish.apply(base),
        u64::try_from(start).ok(),
        "{wish:?} from {base:#x}"
    );
}

/// What congruence promises for a part of the device, against leaves counted at the starts it could
/// have chosen: those the ranges ask for, and `other` ones. `base` and the part have to be small
/// enough to stay within 64 bits.
///
/// # Panics
///
/// When another start is better, or an equally good one was asked for by an earlier range.
pub fn check_congruence(
    map: &RangeMap<'_>,
    got: Option<Congruence>,
    pgoff: u64,
    pages: u64,
    base: u64,
    other: &[u64],
) {
    let mut want = None;
    for modulus in [1 << 30, 2 << 20] {
        let mut best = (0, 0);
        for residue in wishes(map, base, pgoff, pages, modulus) {
            let yields = count(map, up_to(base, residue, modulus), pgoff, pages);
            if yields > best {
                best = yields;
                want = Some((modulus, residue, yields));
            }
        }
        if want.is_some() {
            break;
        }
    }
    assert_eq!(
        got.map(|c| (c.modulus(), c.residue())),
        want.map(|(modulus, residue, _)| (modulus, residue))
    );
    let most = want.map_or((0, 0), |(.., yields)| yields);
    if let Some(start) = got.map(|c| c.apply(base).expect("the test's base is low")) {
        assert!(
            base <= start && start - base < got.map_or(0, Congruence::modulus),
            "{start:#x} from {base:#x}"
        );
        assert_eq!(
            count(map, start, pgoff, pages),
            most,
            "leaves at {start:#x}"
        );
    }
    for &residue in other {
        let start = up_to(base, residue % (1 << 30), 1 << 30);
        let yields = count(map, start, pgoff, pages);
        assert!(
            yields <= most,
            "start {start:#x} gives {yields:?} leaves, the chosen one {most:?}"
        );
    }
}
