// SPDX-License-Identifier: GPL-2.0

//! How proptest draws recipes. Everything shrinks towards one small range at address 0.

use crate::recipe::{device, touch, Base, Chunk, Size, Spot, View};
use dmem_plan::{DevRange, VirtAddr, Window};
use proptest::prelude::*;

/// 1024 runs of every property; `PROPTEST_CASES` makes it more.
pub fn config() -> ProptestConfig {
    // Regressions are kept as shared vectors, which the kernel runs as well, rather than as seeds.
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases.max(1024),
        failure_persistence: None,
        ..default
    }
}

/// Sizes from a page to some GiB, most of them on a leaf boundary or a page beside one.
fn size() -> impl Strategy<Value = Size> {
    let gigs = prop_oneof![4 => Just(0), 2 => Just(1), 1 => Just(2)];
    let megs2 =
        prop_oneof![3 => Just(0), 2 => 0..4_u16, 1 => Just(256), 1 => Just(511), 1 => 0..512_u16];
    let pages = prop_oneof![4 => Just(0), 2 => 0..4_u16, 2 => 508..512_u16, 1 => Just(256), 1 => 0..512_u16];
    (gigs, megs2, pages).prop_map(|(gigs, megs2, pages)| Size { gigs, megs2, pages })
}

fn chunk() -> impl Strategy<Value = Chunk> {
    (0..3_u8, size(), size(), 0..4_u8).prop_map(|(align, gap, size, rank)| Chunk {
        align,
        gap,
        size,
        rank,
    })
}

/// A well-formed device of one to six ranges.
pub fn devices() -> impl Strategy<Value = Vec<DevRange>> {
    let base = prop_oneof![4 => Just(Base::Bottom), 1 => Just(Base::High), 1 => Just(Base::Top)];
    (prop::collection::vec(chunk(), 1..7), base).prop_map(|(chunks, base)| device(&chunks, base))
}

fn spot() -> impl Strategy<Value = Spot> {
    (0..7_u8, any::<bool>(), size()).prop_map(|(near, back, by)| Spot { near, back, by })
}

fn view() -> impl Strategy<Value = View> {
    let whole = (
        Just(Spot {
            near: 0,
            back: false,
            by: Size {
                gigs: 0,
                megs2: 0,
                pages: 0,
            },
        }),
        spot(),
    );
    let ends = prop_oneof![1 => whole, 3 => (spot(), spot())];
    let off = prop_oneof![2 => Just(Size { gigs: 0, megs2: 0, pages: 0 }), 1 => size()];
    let up = prop_oneof![2 => 0..4_u64, 1 => Just(0x1fc00), 1 => Just(u64::MAX)];
    (ends, 0..6_u8, off, up).prop_map(|((from, to), like, off, up)| View {
        from,
        to,
        like,
        off,
        up,
    })
}

/// A device and a part of it, in pages.
pub fn parts() -> impl Strategy<Value = (Vec<DevRange>, (u64, u64))> {
    (devices(), view()).prop_map(|(ranges, view)| {
        let part = view.part(&ranges);
        (ranges, part)
    })
}

/// A device, a window on it, and addresses in and around the window.
pub fn touches() -> impl Strategy<Value = (Vec<DevRange>, Window, Vec<VirtAddr>)> {
    (
        devices(),
        view(),
        prop::collection::vec((spot(), 0..4096_u16), 1..5),
    )
        .prop_map(|(ranges, view, spots)| {
            let window = view.window(&ranges);
            let mut addrs: Vec<_> = spots
                .iter()
                .map(|&(spot, byte)| touch(&window, &ranges, spot, byte))
                .collect();
            addrs.extend([window.start(), window.end()]);
            addrs.extend(window.end().checked_sub(1));
            addrs.extend(window.start().checked_sub(1));
            (ranges, window, addrs)
        })
}
