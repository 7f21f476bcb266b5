// SPDX-License-Identifier: GPL-2.0

//! Sets of extents against a table of bytes.

use std::ops::Deref;

use dmem_plan::{Extent, ExtentSet, Leaf, PhysAddr, Store};
use proptest::prelude::*;

/// Addresses in play: few, so that extents meet.
const SPAN: u64 = 48;

/// A store that grows to a limit and no further.
#[derive(Debug, Default)]
struct Limited {
    extents: Vec<Extent>,
    most: usize,
}

impl Deref for Limited {
    type Target = [Extent];

    fn deref(&self) -> &[Extent] {
        &self.extents
    }
}

impl Store for Limited {
    fn insert(&mut self, index: usize, extent: Extent) -> bool {
        let room = self.extents.len() < self.most;
        if room {
            self.extents.insert(index, extent);
        }
        room
    }

    fn replace(&mut self, index: usize, extent: Extent) {
        self.extents[index] = extent;
    }

    fn remove(&mut self, index: usize) {
        self.extents.remove(index);
    }
}

fn extent(start: u64, len: u64) -> Extent {
    Extent {
        start: PhysAddr::from_raw(start),
        len,
    }
}

fn bytes(extent: &Extent) -> std::ops::Range<usize> {
    let start = usize::try_from(extent.start.raw()).unwrap();
    start..start + usize::try_from(extent.len).unwrap()
}

fn table(extents: &[Extent]) -> Vec<bool> {
    let mut table = vec![false; 128];
    for extent in extents {
        table[bytes(extent)].fill(true);
    }
    table
}

fn is_normal(set: &[Extent]) -> bool {
    set.iter().all(|e| e.len > 0)
        && set
            .windows(2)
            .all(|pair| pair[0].end().unwrap() < pair[1].start)
}

fn operations() -> impl Strategy<Value = Vec<(bool, Extent)>> {
    let one = (any::<bool>(), 0..SPAN, 0..SPAN / 2);
    prop::collection::vec(
        one.prop_map(|(add, start, len)| (add, extent(start, len))),
        1..60,
    )
}

proptest! {
    #[test]
    fn a_set_holds_the_bytes_that_were_added_and_not_removed(operations in operations()) {
        let mut set = ExtentSet::new(Limited { most: usize::MAX, ..Limited::default() });
        let mut model = vec![false; 128];
        for (add, extent) in operations {
            model[bytes(&extent)].fill(add);
            if add {
                prop_assert!(set.add(extent));
            } else {
                set.remove(&extent);
            }
            prop_assert!(is_normal(set.extents()), "{:?}", set.extents());
            prop_assert_eq!(&table(set.extents()), &model);
        }
    }

    #[test]
    fn a_set_without_memory_never_claims_too_much(operations in operations(), most in 0usize..4) {
        let mut set = ExtentSet::new(Limited { most, ..Limited::default() });
        let mut model = vec![false; 128];
        for (add, extent) in operations {
            let before = table(set.extents());
            let added = add && set.add(extent);
            if added {
                model[bytes(&extent)].fill(true);
            } else if add {
                prop_assert_eq!(table(set.extents()), before);
            } else {
                model[bytes(&extent)].fill(false);
                set.remove(&extent);
            }
            prop_assert!(is_normal(set.extents()), "{:?}", set.extents());
            let claimed = table(set.extents());
            prop_assert!(claimed.iter().zip(&model).all(|(claimed, known)| *known || !claimed));
            // What is forgotten for lack of memory is forgotten for good.
            model = claimed;
        }
    }

    #[test]
    fn the_gap_around_a_byte_is_all_that_is_free_there(
        operations in operations(),
        start in 0..SPAN,
        len in 0..SPAN,
        at in 0..SPAN,
    ) {
        let mut set = ExtentSet::new(Limited { most: usize::MAX, ..Limited::default() });
        for (add, extent) in operations {
            if add {
                prop_assert!(set.add(extent));
            } else {
                set.remove(&extent);
            }
        }
        let known = table(set.extents());
        let within = extent(start, len);
        prop_assert_eq!(set.is_disjoint(&within), known[bytes(&within)].iter().all(|held| !held));
        let free = |byte: u64| within.contains(PhysAddr::from_raw(byte)) && !known[byte as usize];
        let gap = set.gap_at(&within, PhysAddr::from_raw(at));
        prop_assert_eq!(gap.is_some(), free(at));
        if let Some(gap) = gap {
            let (first, end) = (gap.start.raw(), gap.start.raw() + gap.len);
            prop_assert!((first..end).contains(&at) && (first..end).all(free));
            prop_assert!((first == 0 || !free(first - 1)) && !free(end));
            // Cutting off one extent of the set after the other comes to the same.
            let cut = set
                .extents()
                .iter()
                .try_fold(within, |left, hole| left.beside(hole, PhysAddr::from_raw(at)));
            prop_assert_eq!(cut, Some(gap));
        }
    }

    #[test]
    fn what_is_missing_and_what_is_known_make_the_whole(
        operations in operations(),
        start in 0..SPAN,
        len in 0..SPAN,
    ) {
        let mut set = ExtentSet::new(Limited { most: usize::MAX, ..Limited::default() });
        for (add, extent) in operations {
            if add {
                set.add(extent);
            } else {
                set.remove(&extent);
            }
        }
        let whole = extent(start, len);
        let missing: Vec<Extent> = set.missing(&whole).collect();
        let within: Vec<Extent> = set.within(&whole).collect();
        prop_assert!(is_normal(&missing), "{missing:?}");
        prop_assert!(is_normal(&within), "{within:?}");
        let (known, missing, within) = (table(set.extents()), table(&missing), table(&within));
        for (index, inside) in table(&[whole]).into_iter().enumerate() {
            prop_assert_eq!(missing[index], inside && !known[index], "byte {}", index);
            prop_assert_eq!(within[index], inside && known[index], "byte {}", index);
        }
    }

    #[test]
    fn steps_cover_an_extent_without_crossing_2_mib(
        start in 0u64..1 << 23,
        len in 0u64..1 << 23,
    ) {
        let whole = extent(start, len);
        let mut done = 0;
        while let Some(step) = whole.step(done) {
            prop_assert_eq!(step.start, PhysAddr::from_raw(start + done));
            let last = PhysAddr::from_raw(step.end().unwrap().raw() - 1);
            prop_assert_eq!(step.start.align_down(Leaf::Pmd), last.align_down(Leaf::Pmd));
            done += step.len;
            prop_assert!(done <= len);
        }
        prop_assert_eq!(done, len);
    }

    #[test]
    fn head_and_tail_make_the_whole(start in 0..SPAN, len in 0..SPAN, at in 0..SPAN) {
        let whole = extent(start, len);
        let (head, tail) = (whole.head(at), whole.tail(at));
        prop_assert_eq!(head.len + tail.map_or(0, |tail| tail.len), len);
        prop_assert!(tail.is_none_or(|tail| head.end() == Some(tail.start)));
    }
}

#[test]
fn extents_beyond_64_bits_are_refused_and_overlap_up_to_the_last_address() {
    let mut set = ExtentSet::new(Limited {
        most: usize::MAX,
        ..Limited::default()
    });
    let beyond = extent(u64::MAX - 1, 4);
    assert!(!set.add(beyond));
    assert!(set.extents().is_empty());
    assert!(beyond.overlaps(&extent(u64::MAX - 1, 1)));
    assert!(!beyond.overlaps(&extent(u64::MAX - 2, 1)));
    assert!(set.add(extent(u64::MAX - 4, 4)));
    set.remove(&beyond);
    assert_eq!(set.extents(), [extent(u64::MAX - 4, 3)]);
}
