// SPDX-License-Identifier: GPL-2.0

//! Leaf choice: fits, largest and fill, against pages looked at one by one.

use crate::oracle::check_leaves;
use crate::strategies::{config, touches};
use dmem_plan::{largest, DevRange, Leaf, PageOff, PhysAddr, RangeMap, VirtAddr, Window};
use proptest::prelude::*;

/// A page-aligned number at the ends of 64 bits or anywhere, sometimes not aligned.
fn edge() -> impl Strategy<Value = u64> {
    let page = prop_oneof![0..4_u64, (1_u64 << 52) - 4..(1_u64 << 52), 0..(1_u64 << 52)];
    (page, prop_oneof![5 => Just(0), 1 => 0..4096_u64]).prop_map(|(page, byte)| page * 4096 + byte)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn answers_are_those_of_the_page_walk((ranges, window, addrs) in touches()) {
        let map = RangeMap::new(&ranges).unwrap();
        for addr in addrs {
            check_leaves(&map, &window, addr);
        }
    }

    #[test]
    fn windows_are_aligned_forward_and_within_64_bits(
        start in edge(),
        end in edge(),
        pgoff in prop_oneof![0..4_u64, (1_u64 << 52) - 4..(1_u64 << 52) + 4, any::<u64>()],
    ) {
        let (first, behind) = (VirtAddr::from_raw(start), VirtAddr::from_raw(end));
        let window = Window::new(first, behind, PageOff::from_raw(pgoff));
        let good = start % 4096 == 0 && end % 4096 == 0 && start < end
            && u128::from(pgoff) * 4096 + u128::from(end - start) < 1 << 64;
        prop_assert_eq!(window.is_some(), good);
        if let Some(window) = window {
            prop_assert_eq!((window.start(), window.end()), (first, behind));
            prop_assert_eq!(window.pgoff().raw(), pgoff);
            prop_assert_eq!(window.pgoff_at(window.start()), Some(PageOff::from_raw(pgoff)));
            prop_assert_eq!(window.pgoff_at(VirtAddr::from_raw(end - 1)).map(PageOff::raw),
                Some(pgoff + (end - start) / 4096 - 1));
            prop_assert!(window.contains(VirtAddr::from_raw(end - 1)));
            prop_assert_eq!(window.pgoff_at(window.end()), None);
            prop_assert!(start == 0 || !window.contains(VirtAddr::from_raw(start - 1)));
        }
    }
}

/// Walks a window from its start, leaf by leaf: the leaves tile it, and nothing of the device is
/// left out.
#[test]
fn leaves_tile_a_window_that_starts_unaligned() {
    // vhost-user backends map from offset 0xc0000 on.
    let gig = 1_u64 << 30;
    let ranges = [DevRange {
        pgoff: PageOff::from_raw(0),
        start: PhysAddr::from_raw(4 * gig),
        pages: 3 * Leaf::Pud.pages(),
    }];
    let map = RangeMap::new(&ranges).unwrap();
    let (start, end) = (
        VirtAddr::from_raw(0x7f00_000c_0000),
        VirtAddr::from_raw(0x7f00_c000_0000),
    );
    let window = Window::new(start, end, PageOff::from_raw(0xc0)).unwrap();
    let mut leaves = Vec::new();
    let mut at = window.start();
    while let Some((leaf, placement)) = largest(&map, &window, at) {
        assert_eq!(placement.virt, at);
        assert_eq!(placement.phys.raw() - 4 * gig, at.raw() - 0x7f00_0000_0000);
        leaves.push(leaf);
        at = at.checked_add(leaf.size()).unwrap();
    }
    assert_eq!(at, window.end());
    let count = |leaf| leaves.iter().filter(|&&found| found == leaf).count();
    assert_eq!(
        (count(Leaf::Pte), count(Leaf::Pmd), count(Leaf::Pud)),
        (512 - 0xc0, 511, 2)
    );
    assert!(leaves.is_sorted());
}
