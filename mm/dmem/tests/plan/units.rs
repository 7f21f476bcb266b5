// SPDX-License-Identifier: GPL-2.0

//! The units: sizes, alignment, and arithmetic that says no instead of wrapping.

use crate::strategies::config;
use dmem_plan::{Leaf, PageOff, PhysAddr, VirtAddr, PAGE_SIZE};
use proptest::prelude::*;

const LEAVES: [Leaf; 3] = [Leaf::Pte, Leaf::Pmd, Leaf::Pud];

#[test]
fn leaf_sizes_are_those_of_x86() {
    assert_eq!(LEAVES.map(Leaf::size), [4 << 10, 2 << 20, 1 << 30]);
    assert_eq!(LEAVES.map(Leaf::pages), [1, 512, 512 * 512]);
    assert_eq!(LEAVES.map(Leaf::order), [0, 9, 18]);
    assert_eq!(
        LEAVES.map(Leaf::smaller),
        [None, Some(Leaf::Pte), Some(Leaf::Pmd)]
    );
    assert_eq!(PAGE_SIZE, 4096);
}

#[test]
fn leaves_are_ordered_by_size() {
    assert!(LEAVES.is_sorted_by(|a, b| a < b && a.size() < b.size()));
    assert!(Leaf::LARGEST_FIRST.is_sorted_by(|a, b| a > b));
}

#[test]
fn only_the_orders_of_leaves_are_orders() {
    let known: Vec<u32> = (0..=u32::from(u16::MAX))
        .filter(|&order| Leaf::from_order(order).is_some())
        .collect();
    assert_eq!(known, [0, 9, 18]);
    assert_eq!(Leaf::from_order(u32::MAX), None);
    assert!(LEAVES
        .iter()
        .all(|leaf| Leaf::from_order(leaf.order()) == Some(*leaf)));
}

#[test]
fn addresses_print_in_hexadecimal() {
    assert_eq!(
        format!("{:?}", PhysAddr::from_raw(0x1_4000_0000)),
        "PhysAddr(0x140000000)"
    );
    assert_eq!(
        format!("{:?}", VirtAddr::from_raw(0x7f00_dead_b000)),
        "VirtAddr(0x7f00deadb000)"
    );
}

/// Numbers where wrapping, if any, shows.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..8_u64,
        (u64::MAX - 8)..=u64::MAX,
        (1_u64 << 52) - 4..(1_u64 << 52) + 4
    ]
}

fn exact(value: i128) -> Option<u64> {
    u64::try_from(value).ok()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn address_arithmetic_is_exact_or_refused(a in number(), b in number()) {
        let (wide_a, wide_b) = (i128::from(a), i128::from(b));
        let phys = PhysAddr::from_raw(a);
        prop_assert_eq!(phys.checked_add(b).map(PhysAddr::raw), exact(wide_a + wide_b));
        prop_assert_eq!(phys.checked_sub(b).map(PhysAddr::raw), exact(wide_a - wide_b));
        prop_assert_eq!(phys.bytes_above(PhysAddr::from_raw(b)), exact(wide_a - wide_b));
        prop_assert_eq!(phys.pfn(), a / 4096);
        let virt = VirtAddr::from_raw(a);
        prop_assert_eq!(virt.checked_add(b).map(VirtAddr::raw), exact(wide_a + wide_b));
        prop_assert_eq!(virt.checked_sub(b).map(VirtAddr::raw), exact(wide_a - wide_b));
        prop_assert_eq!(virt.bytes_above(VirtAddr::from_raw(b)), exact(wide_a - wide_b));
    }

    #[test]
    fn offset_arithmetic_is_exact_or_refused(a in number(), b in number()) {
        let (wide_a, wide_b) = (i128::from(a), i128::from(b));
        let off = PageOff::from_raw(a);
        prop_assert_eq!(off.checked_add(b).map(PageOff::raw), exact(wide_a + wide_b));
        prop_assert_eq!(off.pages_beyond(PageOff::from_raw(b)), exact(wide_a - wide_b));
        prop_assert_eq!(off.bytes(), exact(wide_a * 4096));
    }

    #[test]
    fn alignment_is_a_multiple_of_the_size(
        leaf in prop::sample::select(&LEAVES[..]),
        a in number(),
        half in prop::option::of(any::<u64>()),
    ) {
        // Multiples of half the size as well: chance alone hits none.
        let a = half.map_or(a, |n| n.wrapping_mul(leaf.size() / 2));
        let size = u128::from(leaf.size());
        let down = u128::from(a) / size * size;
        prop_assert_eq!(u128::from(PhysAddr::from_raw(a).align_down(leaf).raw()), down);
        prop_assert_eq!(u128::from(VirtAddr::from_raw(a).align_down(leaf).raw()), down);
        prop_assert_eq!(PhysAddr::from_raw(a).is_aligned(leaf), down == u128::from(a));
        prop_assert_eq!(VirtAddr::from_raw(a).is_aligned(leaf), down == u128::from(a));
    }
}
