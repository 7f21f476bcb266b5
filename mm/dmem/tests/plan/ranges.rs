// SPDX-License-Identifier: GPL-2.0

//! Range maps: which lists of ranges are refused and why, and where a device page is.

use crate::oracle::{check_page, first_fault};
use crate::strategies::{config, devices};
use dmem_plan::{
    Checked, DevRange, PageOff, PhysAddr, RangeError, RangeFault, RangeMap, MAX_RANGES,
};
use proptest::prelude::*;

fn range(pgoff: u64, start: u64, pages: u64) -> DevRange {
    DevRange {
        pgoff: PageOff::from_raw(pgoff),
        start: PhysAddr::from_raw(start),
        pages,
    }
}

fn total(ranges: &[DevRange]) -> u64 {
    ranges.iter().map(|range| range.pages).sum()
}

/// `count` ranges of one page, every other physical page.
fn scattered(count: u64) -> Vec<DevRange> {
    (0..count)
        .map(|index| range(index, index * 8192, 1))
        .collect()
}

#[test]
fn at_most_max_ranges() {
    let limit = u64::try_from(MAX_RANGES).unwrap();
    let (most, more) = (scattered(limit), scattered(limit + 1));
    assert_eq!(RangeMap::new(&most).unwrap().pages(), limit);
    let error = RangeMap::new(&more).unwrap_err();
    assert_eq!(
        error,
        RangeError {
            index: MAX_RANGES,
            fault: RangeFault::TooManyRanges
        }
    );
}

#[test]
fn refused_ranges_are_given_back() {
    let bad = vec![range(0, 0, 1), range(1, 0x5000, 0)];
    let (error, back) = Checked::new(bad.clone()).unwrap_err();
    assert_eq!(
        error,
        RangeError {
            index: 1,
            fault: RangeFault::NoPages
        }
    );
    assert_eq!(back, bad);
}

#[test]
fn each_refusal_names_the_range() {
    let text = |ranges: &[DevRange]| RangeMap::new(ranges).unwrap_err().to_string();
    assert_eq!(text(&[]), "device has no ranges: give it a size first");
    assert_eq!(
        text(&scattered(1025)),
        "device has more than 1024 ranges: use fewer, larger ones"
    );
    assert_eq!(text(&[range(0, 0, 0)]), "range 0 is empty");
    assert_eq!(
        text(&[range(0, 0x200, 1)]),
        "range 0 does not start on a 4 KiB page"
    );
    assert_eq!(text(&[range(0, !0xfff, 1)]), "range 0 ends beyond 64 bits");
    assert_eq!(
        text(&[range(0, 0, 16), range(17, 1 << 20, 1)]),
        "range 1 does not start at device page 0x10"
    );
    assert_eq!(
        text(&[range(0, 0, 2), range(2, 4096, 2)]),
        "range 1 overlaps range 0"
    );
}

/// Few small ranges in little room: most are bad, in all ways and combinations.
fn small_ranges() -> impl Strategy<Value = Vec<DevRange>> {
    let top = u64::MAX / 4096;
    let frame = prop_oneof![0..40_u64, top - 8..=top];
    let start = (frame, prop_oneof![9 => Just(0), 1 => 0..4096_u64])
        .prop_map(|(frame, byte)| frame * 4096 + byte);
    let pages = prop_oneof![9 => 0..8_u64, 1 => Just(1 << 52), 1 => Just(u64::MAX)];
    // Offsets are given relative to where the range should start, so that good prefixes are not a
    // rarity.
    let slip = prop_oneof![9 => Just(0), 1 => 0..3_u64, 1 => Just(u64::MAX - 3)];
    prop::collection::vec((slip, start, pages), 0..8).prop_map(|raw| {
        let mut next: u64 = 0;
        raw.into_iter()
            .map(|(slip, start, pages)| {
                let pgoff = next.wrapping_add(slip);
                next = pgoff.wrapping_add(pages);
                range(pgoff, start, pages)
            })
            .collect()
    })
}

/// A way to spoil a range, and the fault that has to be found in it.
type Damage = fn(&mut DevRange) -> RangeFault;

const DAMAGES: [Damage; 6] = [
    |range| {
        range.pages = 0;
        RangeFault::NoPages
    },
    |range| {
        range.start = PhysAddr::from_raw(range.start.raw() + 1);
        RangeFault::Misaligned
    },
    |range| {
        range.start = PhysAddr::from_raw(range.start.raw() + 0xfff);
        RangeFault::Misaligned
    },
    // An end of exactly 2^64.
    |range| {
        range.start = PhysAddr::from_raw((range.pages * 4096).wrapping_neg());
        RangeFault::Overflow
    },
    |range| {
        let expected = range.pgoff;
        range.pgoff = PageOff::from_raw(expected.raw() + 1);
        RangeFault::Discontiguous { expected }
    },
    |range| {
        let expected = range.pgoff;
        range.pgoff = PageOff::from_raw(expected.raw().wrapping_sub(1));
        // The last page of offsets: an end beyond 64 bits goes first.
        if range.pgoff.raw() == u64::MAX {
            RangeFault::Overflow
        } else {
            RangeFault::Discontiguous { expected }
        }
    },
];

proptest! {
    #![proptest_config(config())]

    #[test]
    fn good_devices_are_accepted(ranges in devices()) {
        let map = RangeMap::new(&ranges).unwrap();
        prop_assert_eq!(map.ranges(), &ranges[..]);
        prop_assert_eq!(map.pages(), total(&ranges));
        let checked = Checked::new(ranges.clone()).unwrap();
        prop_assert_eq!(checked.map().ranges(), &ranges[..]);
        prop_assert_eq!(checked.into_inner(), ranges);
    }

    #[test]
    fn small_devices_are_judged_page_by_page(ranges in small_ranges()) {
        match (RangeMap::new(&ranges), first_fault(&ranges)) {
            (Ok(map), None) => prop_assert_eq!(map.pages(), total(&ranges)),
            (Err(error), Some((index, faults))) => {
                prop_assert_eq!(error.index, index);
                prop_assert_eq!(error.fault, faults[0]);
            }
            (got, want) => prop_assert!(false, "{got:?} for {want:?}"),
        }
    }

    #[test]
    fn the_one_spoiled_range_is_named(
        mut ranges in devices(),
        which in any::<prop::sample::Index>(),
        damage in prop::sample::select(&DAMAGES[..]),
    ) {
        let index = which.index(ranges.len());
        let fault = damage(&mut ranges[index]);
        prop_assert_eq!(RangeMap::new(&ranges).unwrap_err(), RangeError { index, fault });
    }

    #[test]
    fn one_shared_page_is_an_overlap(
        mut ranges in devices(),
        which in any::<(prop::sample::Index, prop::sample::Index)>(),
        first in any::<bool>(),
    ) {
        let (a, b) = (which.0.index(ranges.len()), which.1.index(ranges.len()));
        let (earlier, index) = (a.min(b), a.max(b));
        let (taken, mine) = (ranges[earlier], ranges[index]);
        // The later range moves so that it shares just the earlier one's first or last page.
        let frame = taken.start.raw() / 4096;
        let frame = match first {
            true => (frame + 1).checked_sub(mine.pages),
            false => Some(frame + taken.pages - 1),
        };
        prop_assume!(earlier != index && frame.is_some_and(|frame| frame + mine.pages < 1 << 52));
        ranges[index].start = PhysAddr::from_raw(frame.unwrap() * 4096);
        let error = RangeMap::new(&ranges).unwrap_err();
        prop_assert_eq!(error.index, index);
        // It may reach yet another, which is reported if it comes before.
        match error.fault {
            RangeFault::Overlaps { earlier: first } => prop_assert!(first <= earlier),
            other => prop_assert!(false, "{other:?}, expected an overlap with range {earlier}"),
        }
    }

    #[test]
    fn pages_are_found_where_they_are(
        ranges in devices(),
        anywhere in any::<prop::sample::Index>(),
    ) {
        let map = RangeMap::new(&ranges).unwrap();
        let inside = anywhere.index(usize::try_from(map.pages()).unwrap());
        check_page(&map, u64::try_from(inside).unwrap());
        for range in &ranges {
            for edge in [range.pgoff.raw(), range.pgoff.raw() + range.pages] {
                check_page(&map, edge.saturating_sub(1));
                check_page(&map, edge);
                check_page(&map, edge + 1);
            }
        }
        check_page(&map, u64::MAX);
    }

    #[test]
    fn small_devices_are_found_page_by_page(ranges in small_ranges()) {
        if let Ok(map) = RangeMap::new(&ranges) {
            (0..map.pages() + 3).for_each(|pgoff| check_page(&map, pgoff));
        }
    }
}
