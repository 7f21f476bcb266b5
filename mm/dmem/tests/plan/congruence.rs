// SPDX-License-Identifier: GPL-2.0

//! Congruence: the chosen start yields what it promises, and no other yields more.

use crate::oracle::{check_apply, check_congruence};
use crate::strategies::{config, devices, parts};
use dmem_plan::{congruence, DevRange, Leaf, PageOff, PhysAddr, RangeMap, MAX_RANGES};
use proptest::prelude::*;

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_start_is_better(
        (ranges, (pgoff, pages)) in parts(),
        base in (0..1_u64 << 35).prop_map(|page| page * 4096),
        others in prop::collection::vec((0..1_u64 << 18).prop_map(|page| page * 4096), 4),
    ) {
        let map = RangeMap::new(&ranges).unwrap();
        let got = congruence(&map, PageOff::from_raw(pgoff), pages);
        check_congruence(&map, got, pgoff, pages, base, &others);
    }

    #[test]
    fn a_part_without_pages_has_no_wish(ranges in devices(), beyond in 0..4_u64) {
        let map = RangeMap::new(&ranges).unwrap();
        prop_assert_eq!(congruence(&map, PageOff::from_raw(0), 0), None);
        prop_assert_eq!(congruence(&map, PageOff::from_raw(map.pages() + beyond), 1 << 20), None);
        prop_assert_eq!(congruence(&map, PageOff::from_raw(u64::MAX - beyond), 5), None);
    }

    #[test]
    fn apply_is_the_first_address_that_fits(
        ranges in devices(),
        base in any::<u64>(),
        near in 0..1_u64 << 31,
    ) {
        let map = RangeMap::new(&ranges).unwrap();
        if let Some(wish) = congruence(&map, PageOff::from_raw(0), map.pages()) {
            for base in [base, near, u64::MAX - near] {
                check_apply(wish, base);
            }
        }
    }
}

/// As many ranges as a device may have, each asking for a residue of its own, the last one for the
/// best.
#[test]
fn the_best_of_many_ranges_is_found() {
    let last = u64::try_from(MAX_RANGES).unwrap() - 1;
    let mut pgoff = 0;
    let mut ranges = Vec::new();
    for index in 0..=last {
        // Starts move by a page each, so no two residues are equal. 2 GiB hold one aligned GiB
        // then, 3 GiB two.
        let pages = Leaf::Pud.pages() * if index == last { 3 } else { 2 };
        let start = (index + 1) * ((4 << 30) + 4096);
        ranges.push(DevRange {
            pgoff: PageOff::from_raw(pgoff),
            start: PhysAddr::from_raw(start),
            pages,
        });
        pgoff += pages;
    }
    let map = RangeMap::new(&ranges).unwrap();
    let wish = congruence(&map, PageOff::from_raw(0), map.pages()).unwrap();
    assert_eq!(
        (wish.modulus(), wish.residue()),
        (1 << 30, (last + 1) * 4096)
    );
}
