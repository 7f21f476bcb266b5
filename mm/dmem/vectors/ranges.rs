// SPDX-License-Identifier: GPL-2.0

//! Vectors of range maps: lists of ranges that make a device or do not, and where its pages are.

use super::super::plan::{PageOff, PhysAddr, RangeError, RangeFault, RangeMap};
use super::{
    case, check, range, Case, Mismatch, Ranges, GIB, KIB4, MIB2, MIXED, P1G, SEAM, TOP, WHOLE,
};

/// Lists of ranges: the device's pages, or why it is refused.
pub const DEVICES: &[Case<Ranges, Result<u64, RangeError>>] = &[
    case("one range", WHOLE, Ok(3 * P1G)),
    case(
        "ranges in descending physical order",
        MIXED,
        Ok(3 * P1G + 3),
    ),
    case("ranges that touch", SEAM, Ok(P1G)),
    case("one page", &[range(0, 0, 1)], Ok(1)),
    case("last byte but a page", TOP, Ok(2 * P1G - 1)),
    case("none", &[], bad(0, RangeFault::NoRanges)),
    case(
        "empty first",
        &[range(0, GIB, 0)],
        bad(0, RangeFault::NoPages),
    ),
    case(
        "empty second",
        &[range(0, GIB, 1), range(1, 2 * GIB, 0)],
        bad(1, RangeFault::NoPages),
    ),
    case(
        "misaligned by a byte",
        &[range(0, GIB + 1, 1)],
        bad(0, RangeFault::Misaligned),
    ),
    case(
        "misaligned second",
        &[range(0, GIB, 1), range(1, GIB + 0x1800, 1)],
        bad(1, RangeFault::Misaligned),
    ),
    case(
        "ends at 2^64",
        &[range(0, 0xffff_ffff_c000_0000, P1G)],
        bad(0, RangeFault::Overflow),
    ),
    case(
        "pages beyond 64 bits in bytes",
        &[range(0, 0, 1 << 52)],
        bad(0, RangeFault::Overflow),
    ),
    case("does not start at 0", &[range(1, GIB, 1)], bad(0, gap(0))),
    case(
        "gap in offsets",
        &[range(0, GIB, 4), range(5, 2 * GIB, 4)],
        bad(1, gap(4)),
    ),
    case(
        "overlap in offsets",
        &[range(0, GIB, 4), range(3, 2 * GIB, 4)],
        bad(1, gap(4)),
    ),
    case(
        "physical overlap by a page, from above",
        &[range(0, GIB, 4), range(4, GIB + 3 * KIB4, 4)],
        bad(1, RangeFault::Overlaps { earlier: 0 }),
    ),
    case(
        "physical overlap by a page, from below",
        &[
            range(0, 4 * GIB, 4),
            range(4, GIB, 4),
            range(8, GIB - 3 * KIB4, 4),
        ],
        bad(2, RangeFault::Overlaps { earlier: 1 }),
    ),
    case(
        "same range twice",
        &[range(0, GIB, 4), range(4, GIB, 4)],
        bad(1, RangeFault::Overlaps { earlier: 0 }),
    ),
];

const fn bad(index: usize, fault: RangeFault) -> Result<u64, RangeError> {
    Err(RangeError { index, fault })
}

const fn gap(expected: u64) -> RangeFault {
    RangeFault::Discontiguous {
        expected: PageOff::from_raw(expected),
    }
}

/// Runs [`DEVICES`].
///
/// # Errors
///
/// The first case that comes out differently.
pub fn check_devices() -> Result<(), Mismatch<Result<u64, RangeError>>> {
    check(DEVICES, |ranges| {
        RangeMap::new(ranges).map(|map| map.pages())
    })
}

/// Device pages: their physical addresses.
pub const PAGES: &[Case<(Ranges, u64), Option<PhysAddr>>] = &[
    case("first", (WHOLE, 0), at(4 * GIB)),
    case("last", (WHOLE, 3 * P1G - 1), at(7 * GIB - KIB4)),
    case("behind the last", (WHOLE, 3 * P1G), None),
    case("far behind", (WHOLE, u64::MAX), None),
    case(
        "last of the first range",
        (MIXED, P1G - 1),
        at(9 * GIB + MIB2 - KIB4),
    ),
    case("first of the second range", (MIXED, P1G), at(4 * GIB)),
    case(
        "last of the second range",
        (MIXED, P1G + 2),
        at(4 * GIB + 2 * KIB4),
    ),
    case(
        "first of the third range",
        (MIXED, P1G + 3),
        at(16 * GIB + 3 * KIB4),
    ),
    case(
        "highest page",
        (TOP, 2 * P1G - 2),
        at(0xffff_ffff_ffff_e000),
    ),
];

const fn at(phys: u64) -> Option<PhysAddr> {
    Some(PhysAddr::from_raw(phys))
}

/// Runs [`PAGES`].
///
/// # Errors
///
/// The first case that comes out differently.
pub fn check_pages() -> Result<(), Mismatch<Option<PhysAddr>>> {
    check(PAGES, |(ranges, pgoff)| {
        RangeMap::new(ranges).ok()?.phys(PageOff::from_raw(pgoff))
    })
}
