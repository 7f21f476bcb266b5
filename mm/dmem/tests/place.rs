// SPDX-License-Identifier: GPL-2.0

//! The layout planner against its promises, and against a search over every layout of a small space.

use dmem_plan::{place, Extent, Leaf, PhysAddr, PlaceError};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const UNIT: u64 = 2 * MIB;

fn extent(start: u64, len: u64) -> Extent {
    Extent {
        start: PhysAddr::from_raw(start),
        len,
    }
}

fn laid(free: &[Extent], size: u64, align: Leaf) -> Result<Vec<Extent>, PlaceError> {
    let mut out = vec![extent(0, 0); 64];
    let n = place(free, size, align, &mut out)?;
    out.truncate(n);
    Ok(out)
}

/// 1 GiB leaves of a mapping that starts on a 1 GiB boundary, GiB by GiB of its offset.
fn leaves(layout: &[Extent]) -> u64 {
    let size: u64 = layout.iter().map(|piece| piece.len).sum();
    let is_leaf = |offset: u64| {
        let mut at = 0;
        for piece in layout {
            if (at..at + piece.len).contains(&offset) {
                let phys = piece.start.raw() + (offset - at);
                return phys % GIB == 0 && offset + GIB <= at + piece.len;
            }
            at += piece.len;
        }
        false
    };
    (0..size / GIB).filter(|gib| is_leaf(gib * GIB)).count() as u64
}

/// Aligned GiB in the free pieces.
fn blocks(free: &[Extent]) -> u64 {
    free.iter()
        .map(|piece| {
            ((piece.start.raw() + piece.len) / GIB).saturating_sub(piece.start.raw().div_ceil(GIB))
        })
        .sum()
}

/// What the layout leaves free.
fn remainder(free: &[Extent], layout: &[Extent]) -> Vec<Extent> {
    let mut left = Vec::new();
    let mut used = layout.to_vec();
    used.sort_by_key(|piece| piece.start);
    for piece in free {
        let (mut at, end) = (piece.start.raw(), piece.start.raw() + piece.len);
        let hole = at..end;
        for taken in used
            .iter()
            .filter(|taken| hole.contains(&taken.start.raw()))
        {
            if at < taken.start.raw() {
                left.push(extent(at, taken.start.raw() - at));
            }
            at = taken.start.raw() + taken.len;
        }
        if at < end {
            left.push(extent(at, end - at));
        }
    }
    left
}

/// Everything [`place`] promises of a layout on its own.
fn check(free: &[Extent], size: u64, align: Leaf, layout: &[Extent]) {
    let grain = align.size().max(UNIT);
    assert_eq!(
        layout.iter().map(|piece| piece.len).sum::<u64>(),
        size,
        "sum of the pieces"
    );
    for piece in layout {
        assert!(
            piece.len > 0 && piece.start.raw() % grain == 0 && piece.len % grain == 0,
            "{piece:?} on {grain:#x}"
        );
        let end = piece.start.raw() + piece.len;
        let inside =
            |hole: &&Extent| hole.start <= piece.start && end <= hole.start.raw() + hole.len;
        assert!(
            free.iter().any(|hole| inside(&hole)),
            "{piece:?} is not inside a free piece of {free:?}"
        );
    }
    let mut sorted = layout.to_vec();
    sorted.sort_by_key(|piece| piece.start);
    for pair in sorted.windows(2) {
        assert!(
            pair[0].start.raw() + pair[0].len <= pair[1].start.raw(),
            "{pair:?} overlap"
        );
    }
    for pair in layout.windows(2) {
        assert_ne!(
            pair[0].start.raw() + pair[0].len,
            pair[1].start.raw(),
            "{pair:?} are one piece"
        );
    }
    assert_eq!(
        leaves(layout),
        blocks(free).min(size / GIB),
        "1 GiB leaves of {layout:?}"
    );
}

/// A region in which that many units of 2 MiB are bad, at random among 32 times as many, and a device of a tenth of it.
fn scattered(bad: usize) -> (Vec<Extent>, u64) {
    let units = bad as u64 * 32;
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut holes = std::collections::BTreeSet::new();
    while holes.len() < bad {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        holes.insert(random % units);
    }
    let ends = holes.iter().copied().chain([units]);
    let starts = [0].into_iter().chain(holes.iter().map(|hole| hole + 1));
    let pieces = starts.zip(ends).filter(|(start, end)| start < end);
    let pieces = pieces.map(|(start, end)| extent(4 * GIB + start * UNIT, (end - start) * UNIT));
    (pieces.collect(), units / 10 * UNIT)
}

#[test]
fn ten_times_as_many_pieces_cost_not_much_more_than_ten_times_as_much() {
    let cost = |bad: usize| {
        let (free, size) = scattered(bad);
        let mut out = vec![extent(0, 0); bad];
        let once = |_| {
            let began = std::time::Instant::now();
            let pieces = place(&free, size, Leaf::Pmd, &mut out).unwrap();
            (began.elapsed(), pieces)
        };
        let (best, pieces) = (0..20).map(once).min().unwrap();
        check(&free, size, Leaf::Pmd, &out[..pieces]);
        best
    };
    // n log n would be 13 times; the squares that there once were, 1,000 times.
    let (few, many) = (cost(1_000), cost(10_000));
    assert!(many < 50 * few, "{few:?} for 1,000, {many:?} for 10,000");
}

/// A space of `cells` cells of `cell` bytes from `base`, free where the bit is set: small enough to try every layout.
#[derive(Debug, Clone)]
struct Small {
    cell: u64,
    base: u64,
    cells: usize,
    free: u32,
}

impl Small {
    fn pieces(&self) -> Vec<Extent> {
        let mut pieces: Vec<Extent> = Vec::new();
        for cell in (0..self.cells).filter(|cell| (self.free >> cell) & 1 == 1) {
            let start = self.base + cell as u64 * self.cell;
            match pieces.last_mut() {
                Some(last) if last.start.raw() + last.len == start => last.len += self.cell,
                _ => pieces.push(extent(start, self.cell)),
            }
        }
        pieces
    }

    /// Most leaves, and fewest pieces among layouts with so many, over every sequence of disjoint runs of free cells.
    ///
    /// The offset at which the next piece starts is the number of cells taken, whatever the order: so the best way to
    /// have taken a set of cells depends on the set alone.
    fn best(&self, size: u64) -> Option<(u64, usize)> {
        let wanted = (size / self.cell) as u32;
        let mut best: Vec<Option<(u64, i64)>> = vec![None; 1 << self.cells];
        best[0] = Some((0, 0));
        for taken in 0..best.len() {
            let Some((count, minus_pieces)) = best[taken] else {
                continue;
            };
            let offset = u64::from((taken as u32).count_ones()) * self.cell;
            for first in 0..self.cells {
                let mut set = taken;
                for last in first..self.cells {
                    if (self.free >> last) & 1 == 0 || (taken >> last) & 1 == 1 {
                        break;
                    }
                    set |= 1 << last;
                    if (set as u32).count_ones() > wanted {
                        break;
                    }
                    let (start, len) = (
                        self.base + first as u64 * self.cell,
                        (last - first + 1) as u64 * self.cell,
                    );
                    let more = if start % GIB == offset % GIB {
                        blocks(&[extent(start, len)])
                    } else {
                        0
                    };
                    best[set] = best[set].max(Some((count + more, minus_pieces - 1)));
                }
            }
        }
        let full = (0..best.len()).filter(|set| (*set as u32).count_ones() == wanted);
        full.filter_map(|set| best[set])
            .max()
            .map(|(count, minus_pieces)| (count, -minus_pieces as usize))
    }
}

fn small() -> impl Strategy<Value = Small> {
    (
        prop_oneof![Just(GIB / 4), Just(GIB / 2)],
        0u64..4,
        1usize..=12,
        any::<u32>(),
        any::<u32>(),
    )
        .prop_map(|(cell, phase, cells, one, other)| {
            // More ones than zeros: long free runs are the interesting ones.
            let free = (one | other) & ((1 << cells) - 1);
            Small {
                cell,
                base: 4 * GIB + phase * cell,
                cells,
                free,
            }
        })
}

/// Free pieces of any size, on any page.
fn space() -> impl Strategy<Value = Vec<Extent>> {
    let step = prop_oneof![0u64..8, 0u64..1024, 0u64..(3 << 18)];
    prop::collection::vec((step.clone(), step, any::<bool>(), any::<bool>()), 0..24).prop_map(
        |steps| {
            let mut at = GIB;
            let mut free = Vec::new();
            for (gap, len, round_start, round_len) in steps {
                at += (gap + 1) * 4096;
                if round_start {
                    at = at.next_multiple_of(GIB);
                }
                let len = if round_len {
                    (len * 4096).next_multiple_of(GIB)
                } else {
                    len * 4096
                };
                if len > 0 {
                    free.push(extent(at, len));
                }
                at += len;
            }
            free
        },
    )
}

fn align() -> impl Strategy<Value = Leaf> {
    prop_oneof![Just(Leaf::Pte), Just(Leaf::Pmd), Just(Leaf::Pud)]
}

proptest! {
    #[test]
    fn keeps_its_promises(free in space(), units in 1u64..12000, align in align()) {
        let grain = align.size().max(UNIT);
        let size = (units * UNIT).next_multiple_of(grain);
        let usable: u64 = free
            .iter()
            .map(|piece| ((piece.start.raw() + piece.len) / grain).saturating_sub(piece.start.raw().div_ceil(grain)) * grain)
            .sum();
        match laid(&free, size, align) {
            Ok(layout) => {
                check(&free, size, align, &layout);
                prop_assert_eq!(laid(&free, size, align).unwrap(), layout, "same arguments, same layout");
            }
            Err(error) => {
                prop_assert_eq!(error, PlaceError::NoSpace { wanted: size, usable });
                prop_assert!(usable < size);
            }
        }
    }

    #[test]
    fn no_layout_has_more_leaves(small in small(), cells in 1u64..=12) {
        let (free, size) = (small.pieces(), cells * small.cell);
        match (laid(&free, size, Leaf::Pmd), small.best(size)) {
            (Ok(layout), Some((most, fewest))) => {
                check(&free, size, Leaf::Pmd, &layout);
                prop_assert_eq!(leaves(&layout), most, "{:?}", layout);
                if most == size / GIB {
                    prop_assert_eq!(layout.len(), fewest, "{:?}", layout);
                } else {
                    // Not enough whole GiB: what lies before, in and behind them becomes a piece each.
                    prop_assert!(layout.len() <= 3 * free.len(), "{:?}, {} would do", layout, fewest);
                }
            }
            (Err(PlaceError::NoSpace { wanted, usable }), None) => {
                prop_assert_eq!(wanted, size);
                prop_assert_eq!(usable, free.iter().map(|piece| piece.len).sum::<u64>());
            }
            (got, oracle) => prop_assert!(false, "{:?}, the oracle says {:?}", got, oracle),
        }
    }
}

proptest! {
    #[test]
    fn small_devices_spare_whole_gib(free in space(), units in 1u64..512) {
        let size = units * UNIT;
        let Ok(layout) = laid(&free, size, Leaf::Pte) else { return Ok(()) };
        check(&free, size, Leaf::Pte, &layout);
        // Fragments: what of the free pieces lies outside their aligned GiB.
        let fits_in_fragment = free.iter().any(|piece| {
            let (start, end) = (piece.start.raw().next_multiple_of(UNIT), (piece.start.raw() + piece.len) / UNIT * UNIT);
            let (first, last) = (start.next_multiple_of(GIB), end / GIB * GIB);
            if first < last { first - start >= size || end - last >= size } else { start + size <= end }
        });
        if fits_in_fragment {
            prop_assert_eq!(layout.len(), 1, "{:?}", layout);
            prop_assert_eq!(blocks(&remainder(&free, &layout)), blocks(&free), "{:?} breaks a GiB", layout);
        }
    }

    #[test]
    fn whole_gib_come_from_the_best_fit(runs in prop::collection::vec(1u64..9, 1..8), gib in 1u64..9) {
        let mut at = GIB;
        let free: Vec<Extent> = runs.iter().map(|run| {
            let piece = extent(at, run * GIB);
            at += (run + 1) * GIB;
            piece
        }).collect();
        let fits = runs.iter().copied().filter(|run| *run >= gib).min();
        match (laid(&free, gib * GIB, Leaf::Pud), fits) {
            (Ok(layout), Some(run)) => {
                prop_assert_eq!(layout.len(), 1);
                let from = free.iter().find(|piece| (piece.start.raw()..piece.end().unwrap().raw()).contains(&layout[0].start.raw()));
                prop_assert_eq!(from.unwrap().len, run * GIB, "{:?}", layout);
            }
            (Ok(layout), None) => prop_assert!(layout.len() > 1),
            (Err(error), _) => prop_assert_eq!(
                error,
                PlaceError::NoSpace { wanted: gib * GIB, usable: runs.iter().sum::<u64>() * GIB }
            ),
        }
    }
}

#[test]
fn first_fit_halves_are_not_taken() {
    // DESIGN: the kernel would make a 1 GiB device of the two 512 MiB pieces.
    let free = [
        extent(4 * GIB + GIB / 2, GIB / 2),
        extent(6 * GIB, GIB / 2),
        extent(8 * GIB, 2 * GIB),
    ];
    assert_eq!(laid(&free, GIB, Leaf::Pmd), Ok(vec![extent(8 * GIB, GIB)]));
    assert_eq!(
        laid(&free[..2], GIB, Leaf::Pmd),
        Ok(vec![
            extent(4 * GIB + GIB / 2, GIB / 2),
            extent(6 * GIB, GIB / 2)
        ])
    );
    assert_eq!(
        laid(&free[..2], GIB, Leaf::Pud),
        Err(PlaceError::NoSpace {
            wanted: GIB,
            usable: 0
        })
    );
}

#[test]
fn the_odd_rest_follows_the_whole_gib() {
    let free = [extent(4 * GIB + GIB / 2, 2 * GIB)];
    // The GiB first, then its neighbour below: from 4.5 GiB up there would be no leaf at all.
    assert_eq!(
        laid(&free, 2 * GIB, Leaf::Pmd),
        Ok(vec![
            extent(5 * GIB, GIB + GIB / 2),
            extent(4 * GIB + GIB / 2, GIB / 2)
        ])
    );
}

#[test]
fn refusals() {
    let free = [extent(4 * GIB, GIB), extent(6 * GIB, GIB)];
    assert_eq!(
        laid(&free, 0, Leaf::Pte),
        Err(PlaceError::Misaligned { grain: UNIT })
    );
    assert_eq!(
        laid(&free, MIB, Leaf::Pte),
        Err(PlaceError::Misaligned { grain: UNIT })
    );
    assert_eq!(
        laid(&free, GIB + UNIT, Leaf::Pud),
        Err(PlaceError::Misaligned { grain: GIB })
    );
    assert_eq!(
        laid(&[], GIB, Leaf::Pmd),
        Err(PlaceError::NoSpace {
            wanted: GIB,
            usable: 0
        })
    );
    assert_eq!(
        place(&free, 2 * GIB, Leaf::Pud, &mut [extent(0, 0)]),
        Err(PlaceError::TooManyExtents)
    );
    assert_eq!(
        place(&free, GIB, Leaf::Pud, &mut []),
        Err(PlaceError::TooManyExtents)
    );
    let unordered = |free: &[Extent], index| {
        assert_eq!(
            laid(free, GIB, Leaf::Pmd),
            Err(PlaceError::Unordered { index })
        )
    };
    unordered(&[free[1], free[0]], 1);
    unordered(&[free[0], extent(5 * GIB - UNIT, GIB)], 1);
    unordered(&[extent(u64::MAX - GIB, 2 * GIB)], 0);
}

#[test]
fn the_top_of_the_address_space_is_no_trap() {
    let top = u64::MAX - (u64::MAX % GIB);
    let free = [extent(top - GIB, GIB), extent(top + UNIT / 2, GIB - UNIT)];
    assert_eq!(
        laid(&free, GIB, Leaf::Pud),
        Ok(vec![extent(top - GIB, GIB)])
    );
    assert_eq!(
        laid(&free, UNIT, Leaf::Pmd).map(|layout| layout.len()),
        Ok(1)
    );
}

#[test]
fn a_region_in_hundreds_of_pieces_is_no_burden() {
    let free: Vec<Extent> = (0..400)
        .map(|i| extent(GIB + i * (GIB + GIB / 2), GIB + (i % 7) * UNIT))
        .collect();
    let mut out = vec![extent(0, 0); 512];
    let n = place(&free, 300 * GIB + 16 * UNIT, Leaf::Pmd, &mut out).unwrap();
    out.truncate(n);
    check(&free, 300 * GIB + 16 * UNIT, Leaf::Pmd, &out);
}
