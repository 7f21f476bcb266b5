// SPDX-License-Identifier: GPL-2.0

//! Vectors of leaf choice: windows, and what a touch in them installs.

use super::super::plan::{
    fill, fits, largest, Leaf, PageOff, PhysAddr, Placement, RangeMap, VirtAddr, Window,
};
use super::{
    case, check, Case, Mismatch, Ranges, GIB, HALVES, KIB4, MIB2, MIXED, P1G, P2M, PMEM, SEAM,
    SHIFTED, TOP, V, WHOLE,
};

/// Windows, as start, end and device page: whether there is such a one.
pub const WINDOWS: &[Case<(u64, u64, u64), bool>] = &[
    case("a page", (KIB4, 2 * KIB4, 0), true),
    case("from address 0", (0, KIB4, 0), true),
    case("up to the last page", (0, !0xfff, 0), true),
    case("empty", (KIB4, KIB4, 0), false),
    case("backwards", (2 * KIB4, KIB4, 0), false),
    case("misaligned start", (KIB4 + 1, 2 * KIB4, 0), false),
    case("misaligned end", (KIB4, 2 * KIB4 - 1, 0), false),
    case("last offset", (0, KIB4, (1 << 52) - 2), true),
    case(
        "offset beyond 64 bits at the end",
        (0, KIB4, (1 << 52) - 1),
        false,
    ),
    case(
        "offset beyond 64 bits at the start",
        (0, KIB4, 1 << 52),
        false,
    ),
    case("offset that wraps to 0", (0, KIB4, u64::MAX), false),
];

/// Runs [`WINDOWS`].
///
/// # Errors
///
/// The first case that comes out differently.
pub fn check_windows() -> Result<(), Mismatch<bool>> {
    check(WINDOWS, |raw| window(raw).is_some())
}

fn window((start, end, pgoff): (u64, u64, u64)) -> Option<Window> {
    Window::new(
        VirtAddr::from_raw(start),
        VirtAddr::from_raw(end),
        PageOff::from_raw(pgoff),
    )
}

/// A device, a window (start, end, device page) and an address.
pub type Touch = (Ranges, (u64, u64, u64), u64);

const fn placed(virt: u64, phys: u64, pages: u64) -> Option<Placement> {
    Some(Placement {
        virt: VirtAddr::from_raw(virt),
        phys: PhysAddr::from_raw(phys),
        pages,
    })
}

/// Touches and the leaf asked for: what may be installed.
pub const FITS: &[Case<(Touch, Leaf), Option<Placement>>] = &[
    case(
        "1 GiB, touched in its last byte",
        ((WHOLE, (V, V + 3 * GIB, 0), V + 2 * GIB - 1), Leaf::Pud),
        placed(V + GIB, 5 * GIB, P1G),
    ),
    case(
        "1 GiB that the window ends in",
        ((WHOLE, (V, V + GIB - KIB4, 0), V), Leaf::Pud),
        None,
    ),
    case(
        "1 GiB that the window starts in",
        ((WHOLE, (V + KIB4, V + GIB, 1), V + GIB - 1), Leaf::Pud),
        None,
    ),
    case(
        "1 GiB, virtual 2 MiB off",
        ((WHOLE, (V + MIB2, V + 2 * GIB, 0), V + GIB), Leaf::Pud),
        None,
    ),
    case(
        "1 GiB of two ranges that touch",
        ((SEAM, (V, V + GIB, 0), V), Leaf::Pud),
        None,
    ),
    case(
        "1 GiB, physical and virtual 2 MiB off alike",
        (
            (SHIFTED, (V + MIB2, V + 2 * GIB + MIB2, 0), V + GIB),
            Leaf::Pud,
        ),
        placed(V + GIB, 5 * GIB, P1G),
    ),
    case(
        "1 GiB, aligned, but not physically",
        ((SHIFTED, (V, V + 2 * GIB, 0), V), Leaf::Pud),
        None,
    ),
    case(
        "2 MiB, aligned to no more",
        ((SHIFTED, (V, V + 2 * GIB, 0), V), Leaf::Pmd),
        placed(V, 4 * GIB + MIB2, P2M),
    ),
    case(
        "2 MiB, physical start off by 12 KiB",
        ((PMEM, (V, V + 2 * GIB, 0), V + MIB2), Leaf::Pmd),
        None,
    ),
    case(
        "2 MiB, physical and virtual off by 12 KiB alike",
        (
            (PMEM, (V + 3 * KIB4, V + GIB + 3 * KIB4, 0), V + MIB2),
            Leaf::Pmd,
        ),
        placed(V + MIB2, 4 * GIB + MIB2, P2M),
    ),
    case(
        "2 MiB with the end of a range in it",
        ((MIXED, (V, V + 2 * MIB2, P1G - P2M), V + MIB2), Leaf::Pmd),
        None,
    ),
    case(
        "2 MiB up to a range's end",
        ((MIXED, (V, V + 2 * MIB2, P1G - P2M), V), Leaf::Pmd),
        placed(V, 9 * GIB, P2M),
    ),
    case(
        "4 KiB, touched in the middle",
        ((PMEM, (V, V + GIB, 7), V + 0x1fff), Leaf::Pte),
        placed(V + KIB4, 4 * GIB + 11 * KIB4, 1),
    ),
    case(
        "below the window",
        ((WHOLE, (V, V + GIB, 0), V - 1), Leaf::Pte),
        None,
    ),
    case(
        "behind the window",
        ((WHOLE, (V, V + GIB, 0), V + GIB), Leaf::Pte),
        None,
    ),
    case(
        "beyond the device",
        ((WHOLE, (V, V + 4 * GIB, 0), V + 3 * GIB), Leaf::Pte),
        None,
    ),
    case(
        "1 GiB block that ends at 2^64",
        (
            (
                TOP,
                (!0xfff - GIB + MIB2, !0xfff, P1G + P2M - 1),
                u64::MAX - KIB4,
            ),
            Leaf::Pud,
        ),
        None,
    ),
];

/// Runs [`FITS`].
///
/// # Errors
///
/// The first case that comes out differently.
pub fn check_fits() -> Result<(), Mismatch<Option<Placement>>> {
    check(FITS, |((ranges, raw, addr), leaf)| {
        fits(
            &RangeMap::new(ranges).ok()?,
            &window(raw)?,
            VirtAddr::from_raw(addr),
            leaf,
        )
    })
}

/// Touches: the largest leaf that may be installed.
pub const LARGEST: &[Case<Touch, Option<(Leaf, Placement)>>] = &[
    case(
        "1 GiB",
        (WHOLE, (V, V + 3 * GIB, 0), V + GIB),
        sized(Leaf::Pud, V + GIB, 5 * GIB),
    ),
    case(
        "unaligned start: 4 KiB first",
        (WHOLE, (V + 0xc_0000, V + 3 * GIB, 0xc0), V + 0xc_0000),
        sized(Leaf::Pte, V + 0xc_0000, 4 * GIB + 0xc_0000),
    ),
    case(
        "unaligned start: 2 MiB next",
        (WHOLE, (V + 0xc_0000, V + 3 * GIB, 0xc0), V + MIB2),
        sized(Leaf::Pmd, V + MIB2, 4 * GIB + MIB2),
    ),
    case(
        "unaligned start: 1 GiB behind",
        (WHOLE, (V + 0xc_0000, V + 3 * GIB, 0xc0), V + 3 * GIB - 1),
        sized(Leaf::Pud, V + 2 * GIB, 6 * GIB),
    ),
    case(
        "virtual start a page off: 4 KiB throughout",
        (WHOLE, (V + KIB4, V + 2 * GIB, 0), V + GIB),
        sized(Leaf::Pte, V + GIB, 5 * GIB - KIB4),
    ),
    case(
        "halves",
        (HALVES, (V, V + GIB, 0), V + GIB / 2),
        sized(Leaf::Pmd, V + GIB / 2, 6 * GIB),
    ),
    case(
        "beyond the device",
        (HALVES, (V, V + 2 * GIB, 0), V + GIB),
        None,
    ),
    case(
        "outside the window",
        (HALVES, (V, V + GIB, 0), V + GIB),
        None,
    ),
];

const fn sized(leaf: Leaf, virt: u64, phys: u64) -> Option<(Leaf, Placement)> {
    let pages = leaf.pages();
    Some((
        leaf,
        Placement {
            virt: VirtAddr::from_raw(virt),
            phys: PhysAddr::from_raw(phys),
            pages,
        },
    ))
}

/// Runs [`LARGEST`].
///
/// # Errors
///
/// The first case that comes out differently.
pub fn check_largest() -> Result<(), Mismatch<Option<(Leaf, Placement)>>> {
    check(LARGEST, |(ranges, raw, addr)| {
        largest(
            &RangeMap::new(ranges).ok()?,
            &window(raw)?,
            VirtAddr::from_raw(addr),
        )
    })
}

/// Touches: what to map with 4 KiB leaves.
pub const FILLS: &[Case<Touch, Option<Placement>>] = &[
    case(
        "2 MiB",
        (WHOLE, (V, V + GIB, 0), V + MIB2 + 5),
        placed(V + MIB2, 4 * GIB + MIB2, P2M),
    ),
    case(
        "from the window's start",
        (WHOLE, (V + 0xc_0000, V + GIB, 0xc0), V + 0xf_0000),
        placed(V + 0xc_0000, 4 * GIB + 0xc_0000, P2M - 0xc0),
    ),
    case(
        "to the window's end",
        (WHOLE, (V, V + 0xa_0000, 0), V),
        placed(V, 4 * GIB, 0xa0),
    ),
    case(
        "to a range's end",
        (MIXED, (V, V + GIB, P1G), V + 2 * KIB4),
        placed(V, 4 * GIB, 3),
    ),
    case(
        "from a range's start",
        (MIXED, (V, V + GIB, P1G), V + 3 * KIB4),
        placed(V + 3 * KIB4, 16 * GIB + 3 * KIB4, P2M - 3),
    ),
    case(
        "to the device's end",
        (MIXED, (V, V + GIB, 3 * P1G), V + KIB4),
        placed(V, 18 * GIB, 3),
    ),
    case(
        "one page",
        (MIXED, (V, V + KIB4, 7), V),
        placed(V, 8 * GIB + MIB2 + 7 * KIB4, 1),
    ),
    case(
        "physical start off",
        (PMEM, (V, V + GIB, 0), V),
        placed(V, 4 * GIB + 3 * KIB4, P2M),
    ),
    case(
        "last block of the address space",
        (
            TOP,
            (!0xfff - MIB2, !0xfff, 2 * P1G - 1 - P2M),
            u64::MAX - KIB4,
        ),
        placed(0xffff_ffff_ffe0_0000, 0xffff_ffff_ffe0_0000, P2M - 1),
    ),
    case(
        "outside the window",
        (WHOLE, (V, V + GIB, 0), V + GIB),
        None,
    ),
    case(
        "beyond the device",
        (HALVES, (V, V + 2 * GIB, 0), V + GIB),
        None,
    ),
];

/// Runs [`FILLS`].
///
/// # Errors
///
/// The first case that comes out differently.
pub fn check_fills() -> Result<(), Mismatch<Option<Placement>>> {
    check(FILLS, |(ranges, raw, addr)| {
        fill(
            &RangeMap::new(ranges).ok()?,
            &window(raw)?,
            VirtAddr::from_raw(addr),
        )
    })
}
