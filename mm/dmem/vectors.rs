// SPDX-License-Identifier: GPL-2.0

//! Shared vectors: concrete inputs of the pure logic and the answers they have to give.
//!
//! Constant data, one check and one test per table. The host's tests (`tests/plan/vectors.rs`) and
//! the kernel's KUnit tests (`drivers/dax/dmem/kunit.rs`) include this file, so that both run the
//! very same tests. Whoever includes it has the logic as a sibling module named `plan`, and a
//! sibling function `complain` that says what came out differently.

use core::fmt;

use super::complain;
use super::plan::{DevRange, PageOff, PhysAddr};

#[path = "vectors/congruence.rs"]
mod congruence;
#[path = "vectors/leaf.rs"]
mod leaf;
#[path = "vectors/ranges.rs"]
mod ranges;

pub use congruence::{check_congruences, CONGRUENCES};
pub use leaf::{check_fills, check_fits, check_largest, check_windows, FILLS, FITS, LARGEST};
pub use ranges::{check_devices, check_pages, DEVICES, PAGES};

const KIB4: u64 = 0x1000;
const MIB2: u64 = 0x20_0000;
const GIB: u64 = 0x4000_0000;

/// Pages in 2 MiB and in 1 GiB.
const P2M: u64 = 0x200;
const P1G: u64 = 0x4_0000;

/// One input and its answer.
#[derive(Clone, Copy)]
pub struct Case<I, O> {
    /// What is special about it.
    pub name: &'static str,
    /// The input.
    pub given: I,
    /// The answer.
    pub want: O,
}

/// A case that came out differently.
pub struct Mismatch<O> {
    name: &'static str,
    want: O,
    got: O,
}

impl<O: fmt::Debug> fmt::Display for Mismatch<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, want, got } = self;
        write!(f, "case \"{name}\" gives {got:?}, not {want:?}")
    }
}

fn check<I: Copy, O: Copy + PartialEq>(
    cases: &[Case<I, O>],
    answer: fn(I) -> O,
) -> Result<(), Mismatch<O>> {
    for &Case { name, given, want } in cases {
        let got = answer(given);
        if got != want {
            return Err(Mismatch { name, want, got });
        }
    }
    Ok(())
}

const fn case<I, O>(name: &'static str, given: I, want: O) -> Case<I, O>
where
    I: Copy,
    O: Copy,
{
    Case { name, given, want }
}

/// The ranges of a device.
pub type Ranges = &'static [DevRange];

const fn range(pgoff: u64, start: u64, pages: u64) -> DevRange {
    DevRange {
        pgoff: PageOff::from_raw(pgoff),
        start: PhysAddr::from_raw(start),
        pages,
    }
}

/// 3 GiB from a 1 GiB boundary.
const WHOLE: Ranges = &[range(0, 4 * GIB, 3 * P1G)];

/// 2 GiB from 2 MiB behind a 1 GiB boundary.
const SHIFTED: Ranges = &[range(0, 4 * GIB + MIB2, 2 * P1G)];

/// 2 GiB of persistent memory, whose data begins on a 4 KiB boundary only.
const PMEM: Ranges = &[range(0, 4 * GIB + 3 * KIB4, 2 * P1G)];

/// 1 GiB in two halves: no aligned GiB anywhere.
const HALVES: Ranges = &[range(0, 4 * GIB, P1G / 2), range(P1G / 2, 6 * GIB, P1G / 2)];

/// 1 GiB in two halves that lie side by side, so that the bytes of an aligned GiB are there, but of
/// two ranges.
const SEAM: Ranges = &[
    range(0, 4 * GIB, P1G / 2),
    range(P1G / 2, 4 * GIB + GIB / 2, P1G / 2),
];

/// The first GiB behind the second, and 2 MiB off; then 3 pages that end in the middle of a 2 MiB
/// block; then 2 GiB.
const MIXED: Ranges = &[
    range(0, 8 * GIB + MIB2, P1G),
    range(P1G, 4 * GIB, 3),
    range(P1G + 3, 16 * GIB + 3 * KIB4, 2 * P1G),
];

/// The highest addresses a range may have: it ends one page below 2^64.
const TOP: Ranges = &[range(0, 0xffff_ffff_8000_0000, 2 * P1G - 1)];

/// Where most windows lie: a 1 GiB boundary.
const V: u64 = 0x7f00_0000_0000;

/// A test for each table; `make test-debug` demands that both sides ran the same ones.
#[cfg_attr(
    CONFIG_DEV_DAX_DMEM_KUNIT_TEST,
    kernel::macros::kunit_tests(dmem_vectors)
)]
mod tests {
    use super::*;

    /// Whether all cases came out as they have to; complains about the first that did not.
    fn passed<O: fmt::Debug>(result: Result<(), Mismatch<O>>) -> bool {
        result
            .map_err(|mismatch| complain(format_args!("{mismatch}")))
            .is_ok()
    }

    #[test]
    fn devices() {
        assert!(passed(check_devices()));
    }

    #[test]
    fn pages() {
        assert!(passed(check_pages()));
    }

    #[test]
    fn windows() {
        assert!(passed(check_windows()));
    }

    #[test]
    fn fits() {
        assert!(passed(check_fits()));
    }

    #[test]
    fn largest() {
        assert!(passed(check_largest()));
    }

    #[test]
    fn fills() {
        assert!(passed(check_fills()));
    }

    #[test]
    fn congruences() {
        assert!(passed(check_congruences()));
    }
}
