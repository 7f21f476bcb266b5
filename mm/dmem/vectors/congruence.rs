// SPDX-License-Identifier: GPL-2.0

//! Vectors of congruence: where mappings ask to start.

use super::super::plan::{congruence, PageOff, RangeMap};
use super::{
    case, check, range, Case, Mismatch, Ranges, GIB, HALVES, KIB4, MIB2, MIXED, P1G, P2M, PMEM,
    SHIFTED, TOP, V, WHOLE,
};

/// A device, the part of it to map (first page and pages), and the address to start from.
pub type Part = (Ranges, u64, u64, u64);

/// Modulus, residue, and the first such address.
pub type Start = Option<(u64, u64, Option<u64>)>;

/// Parts of a device, as first page and pages, and an address: modulus and residue of the start
/// they ask for, and the first such start from the address on.
pub const CONGRUENCES: &[Case<Part, Start>] = &[
    case("whole", (WHOLE, 0, 3 * P1G, V), Some((GIB, 0, Some(V)))),
    case(
        "whole, from a byte on",
        (WHOLE, 0, 3 * P1G, V + 1),
        Some((GIB, 0, Some(V + GIB))),
    ),
    case(
        "from 0xc0000 on",
        (WHOLE, 0xc0, 3 * P1G - 0xc0, V),
        Some((GIB, 0xc_0000, Some(V + 0xc_0000))),
    ),
    case(
        "less than 1 GiB",
        (WHOLE, 0, P1G - 1, V + 1),
        Some((MIB2, 0, Some(V + MIB2))),
    ),
    case(
        "1 GiB, none aligned",
        (WHOLE, 1, P1G, V),
        Some((MIB2, KIB4, Some(V + KIB4))),
    ),
    case("less than 2 MiB", (WHOLE, 0, P2M - 1, V), None),
    case("2 MiB, none aligned", (WHOLE, 1, P2M, V), None),
    case("no page", (WHOLE, 0, 0, V), None),
    case("beyond the end", (WHOLE, 3 * P1G, P1G, V), None),
    case(
        "across the end",
        (WHOLE, 2 * P1G, u64::MAX - 2 * P1G, V),
        Some((GIB, 0, Some(V))),
    ),
    case("offset beyond 64 bits", (WHOLE, 2, u64::MAX, V), None),
    case(
        "2 MiB off",
        (SHIFTED, 0, 2 * P1G, V),
        Some((GIB, MIB2, Some(V + MIB2))),
    ),
    case(
        "12 KiB off",
        (PMEM, 0, 2 * P1G, V),
        Some((GIB, 3 * KIB4, Some(V + 3 * KIB4))),
    ),
    case(
        "halves",
        (HALVES, 0, P1G, V + KIB4),
        Some((MIB2, 0, Some(V + MIB2))),
    ),
    case(
        "the second of three ranges has no say",
        (MIXED, P1G, 3, V),
        None,
    ),
    // The first has no aligned GiB, the last has one: it decides, though the first is larger in 2
    // MiB leaves.
    case(
        "the last of three ranges decides",
        (MIXED, 0, 3 * P1G + 3, V),
        Some((GIB, 0, Some(V))),
    ),
    case(
        "of two ranges the first, where equal",
        (
            &[
                range(0, 4 * GIB, P1G),
                range(P1G, 8 * GIB + MIB2, P1G + P1G / 2),
            ],
            0,
            4 * P1G,
            V,
        ),
        Some((GIB, 0, Some(V))),
    ),
    case(
        "of two ranges the one with more 2 MiB leaves",
        (
            &[
                range(0, 4 * GIB, P1G),
                range(P1G, 9 * GIB - 3 * KIB4, P1G + P1G / 2),
            ],
            0,
            4 * P1G,
            V,
        ),
        Some((GIB, GIB - 3 * KIB4, Some(V + GIB - 3 * KIB4))),
    ),
    case(
        "no start left below 2^64",
        (WHOLE, 0xc0, 3 * P1G, u64::MAX),
        Some((GIB, 0xc_0000, None)),
    ),
    case(
        "last start below 2^64",
        (TOP, 0, 2 * P1G - 1, !0xfff - GIB),
        Some((GIB, 0, Some(0xffff_ffff_c000_0000))),
    ),
    case(
        "2 GiB, a page short at both ends",
        (TOP, 1, 2 * P1G - 2, V),
        Some((MIB2, KIB4, Some(V + KIB4))),
    ),
];

/// Runs [`CONGRUENCES`].
///
/// # Errors
///
/// The first case that comes out differently.
pub fn check_congruences() -> Result<(), Mismatch<Start>> {
    check(CONGRUENCES, |(ranges, pgoff, pages, base)| {
        let wish = congruence(
            &RangeMap::new(ranges).ok()?,
            PageOff::from_raw(pgoff),
            pages,
        )?;
        Some((wish.modulus(), wish.residue(), wish.apply(base)))
    })
}
