// SPDX-License-Identifier: GPL-2.0

//! Layout planner: which free pieces of a region a new device should be made of.
//!
//! The kernel's own allocation is first fit and blind to the start (drivers/dax/bus.c, `dev_dax_resize`): a device
//! aligned to 1 GiB can come out as two halves of a GiB that no 1 GiB leaf maps. [`place`] chooses the pieces so that
//! as many 1 GiB leaves as the free space allows are possible when the mapping starts on a 1 GiB boundary, which is
//! what QEMU's `align=1G` gives it. For that the pieces made of whole GiB come first in the device: then offset and
//! physical address agree modulo 1 GiB in each of them.
//!
//! Used by the operator's tool, and not part of the kernel module: it allocates.

use alloc::vec::Vec;
use core::cmp::Reverse;

use super::plan::{Extent, Leaf, PhysAddr};

const GIB: u64 = Leaf::Pud.size();

/// Why there is no layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceError {
    /// The free pieces hold `usable` bytes that start and end on the wanted boundaries: fewer than `wanted`.
    NoSpace {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes there are.
        usable: u64,
    },
    /// The size is zero or no multiple of `grain` bytes, the smallest unit at this alignment.
    Misaligned {
        /// Bytes in the unit.
        grain: u64,
    },
    /// Every layout needs more pieces than the output holds.
    TooManyExtents,
    /// The free piece at this index overlaps its predecessor, lies below it, or exceeds 64 bits.
    Unordered {
        /// Index into the free pieces.
        index: usize,
    },
}

/// Chooses the pieces of a device of `size` bytes from the `free` ones (ascending, disjoint).
///
/// The first `n` elements of `out`, for the returned `n`, are the pieces in order of device offset. Their lengths add
/// up to `size`; they are disjoint, lie in free pieces, and start and end on multiples of `align`, at least of 2 MiB
/// (the kernel's allocation unit). Of all such layouts the one is taken with
///
/// 1. most 1 GiB leaves, for a mapping that starts on a 1 GiB boundary: the lesser of the whole GiB in `size` and the
///    whole, aligned GiB in `free`, so no layout has more;
/// 2. then few pieces: for a device made of whole GiB, and for one smaller than 1 GiB that fits in one piece, no
///    layout has fewer; else the fewest found by filling the largest pieces first;
/// 3. then most free space left whole: first in aligned GiB that stay free, then in large rather than many pieces.
///
/// The same arguments give the same layout. Costs O(f·log f) for f free pieces, as many as there may be: a region in which
/// single pages have failed all over is in thousands.
///
/// # Errors
///
/// See [`PlaceError`]. `out` has no meaning then.
pub fn place(
    free: &[Extent],
    size: u64,
    align: Leaf,
    out: &mut [Extent],
) -> Result<usize, PlaceError> {
    let grain = align.size().max(Leaf::Pmd.size());
    check(free)?;
    let space = Space::new(free, grain);
    if size == 0 || size % grain != 0 {
        return Err(PlaceError::Misaligned { grain });
    }
    let usable = space
        .spans()
        .fold(0u64, |sum, span| sum.saturating_add(span.len()));
    if usable < size {
        return Err(PlaceError::NoSpace {
            wanted: size,
            usable,
        });
    }
    let blocks = space
        .spans()
        .fold(0u64, |sum, span| sum.saturating_add(span.blocks()));
    let order = Order {
        size,
        leaves: blocks.min(size / GIB),
    };

    let mut best: Option<(Choice, Score)> = None;
    for choice in space.choices(order) {
        let most = best
            .as_ref()
            .map_or(out.len(), |(_, score)| score.pieces.0.min(out.len()));
        let Some(n) = space.build(order, choice, out.get_mut(..most).unwrap_or_default()) else {
            continue;
        };
        let score = space.score(out.get(..n).unwrap_or_default());
        if best.as_ref().is_none_or(|(_, highest)| *highest < score) {
            best = Some((choice, score));
        }
    }
    let (choice, _) = best.ok_or(PlaceError::TooManyExtents)?;
    space
        .build(order, choice, out)
        .ok_or(PlaceError::TooManyExtents)
}

/// What is wanted: bytes, and how many of the GiB in them are to be 1 GiB leaves.
#[derive(Clone, Copy)]
struct Order {
    size: u64,
    leaves: u64,
}

impl Order {
    /// Bytes beside the leaves.
    fn rest(self) -> u64 {
        self.size.saturating_sub(self.leaves.saturating_mul(GIB))
    }
}

/// Order among the spans that hold whole GiB: by their number, then the lower address is higher.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    blocks: u64,
    index: Reverse<usize>,
}

/// One of the layouts to compare: where the last piece that holds 1 GiB leaves, the one that can carry the rest of
/// the device at its end, lies.
#[derive(Clone, Copy)]
struct Choice {
    /// The span it lies in; `None` when there are no 1 GiB leaves to place.
    last: Option<usize>,
    /// At which end of the span's whole GiB.
    seat: Seat,
    /// Whether GiB that the chosen spans have to spare stay free in this one or in another one.
    spare: Spare,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seat {
    Low,
    High,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Spare {
    Here,
    Elsewhere,
}

/// How good a layout is: the greater, the better.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    pieces: Reverse<usize>,
    whole_gib_left: u64,
    /// Sum of the squares of what is left: greater when the same space lies in fewer, larger pieces.
    concentration: u128,
}

/// The half-open interval of addresses `[start, end)`, its bounds on multiples of the grain.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
}

impl Span {
    fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// First 1 GiB boundary at or above the start.
    fn first_block(self) -> u64 {
        self.start.checked_next_multiple_of(GIB).unwrap_or(self.end)
    }

    /// Number of aligned GiB inside.
    fn blocks(self) -> u64 {
        self.end.saturating_sub(self.first_block()) / GIB
    }

    /// Bytes behind the last aligned GiB, or all where there is none.
    fn tail(self) -> u64 {
        self.end
            .saturating_sub(self.start.max(self.end / GIB * GIB))
    }

    /// The lowest `len` bytes.
    fn low(self, len: u64) -> Span {
        Span {
            start: self.start,
            end: self.start.saturating_add(len).min(self.end),
        }
    }

    /// The highest `len` bytes.
    fn high(self, len: u64) -> Span {
        Span {
            start: self.end.saturating_sub(len).max(self.start),
            end: self.end,
        }
    }

    /// Number of this span's aligned GiB that are gone when `part` of it is taken at one of its ends.
    fn broken_by(self, part: Span) -> u64 {
        let below = Span {
            start: self.start,
            end: part.start,
        };
        let above = Span {
            start: part.end,
            end: self.end,
        };
        self.blocks()
            .saturating_sub(below.blocks())
            .saturating_sub(above.blocks())
    }

    fn extent(self) -> Extent {
        Extent {
            start: PhysAddr::from_raw(self.start),
            len: self.len(),
        }
    }
}

/// The free pieces, as seen at one grain (bytes, a leaf's size).
struct Space {
    /// What each piece holds between multiples of the grain, ascending; possibly nothing.
    spans: Vec<Span>,
    /// Those that hold whole GiB, the highest rank first.
    holders: Vec<(Rank, Span)>,
}

/// The pieces chosen so far.
struct Chosen<'o> {
    out: &'o mut [Extent],
    n: usize,
}

impl Chosen<'_> {
    /// Adds a piece behind the others; `None` when the output is full.
    fn push(&mut self, span: Span) -> Option<()> {
        *self.out.get_mut(self.n)? = span.extent();
        self.n = self.n.checked_add(1)?;
        Some(())
    }

    fn pieces(&self) -> &[Extent] {
        self.out.get(..self.n).unwrap_or_default()
    }

    /// Puts the pieces in the order of their addresses.
    fn sort(&mut self) {
        let pieces = self.out.get_mut(..self.n).unwrap_or_default();
        pieces.sort_unstable_by_key(|piece| piece.start);
    }
}

/// Refuses pieces that are not in order.
fn check(free: &[Extent]) -> Result<(), PlaceError> {
    let mut floor = PhysAddr::from_raw(0);
    for (index, piece) in free.iter().enumerate() {
        match piece.end() {
            Some(end) if floor <= piece.start => floor = end,
            _ => return Err(PlaceError::Unordered { index }),
        }
    }
    Ok(())
}

impl Space {
    fn new(free: &[Extent], grain: u64) -> Self {
        let span = |piece: &Extent| {
            let raw = piece.start.raw();
            let end = raw.saturating_add(piece.len) / grain * grain;
            let start = raw.checked_next_multiple_of(grain).unwrap_or(end).min(end);
            Span { start, end }
        };
        let spans: Vec<Span> = free.iter().map(span).collect();
        let ranked = spans.iter().enumerate().map(|(index, span)| {
            let rank = Rank {
                blocks: span.blocks(),
                index: Reverse(index),
            };
            (rank, *span)
        });
        let mut holders: Vec<(Rank, Span)> = ranked.filter(|(rank, _)| rank.blocks > 0).collect();
        holders.sort_unstable_by_key(|(rank, _)| Reverse(*rank));
        Self { spans, holders }
    }

    fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.spans.iter().copied()
    }

    /// The spans that hold whole GiB, each with its index and its rank: the more GiB, the higher.
    fn holders(&self) -> impl Iterator<Item = (Rank, Span)> + '_ {
        self.holders.iter().copied()
    }

    /// The layouts worth building.
    ///
    /// The fewest spans that have the leaves are the highest ranking ones; in place of the lowest of these, any other
    /// that has what the higher ones lack will do. Among those that may come last: the one with the fewest GiB (best
    /// fit), with the smallest tail that takes the whole rest, with the largest tail, with the most GiB (to spare).
    fn choices(&self, order: Order) -> impl Iterator<Item = Choice> {
        let (mut higher, mut lack) = (None, order.leaves);
        for (rank, _) in self.holders() {
            if rank.blocks >= lack {
                break;
            }
            (higher, lack) = (Some(rank), lack.saturating_sub(rank.blocks));
        }
        let rest = order.rest();
        let able = || {
            let able = self.holders().filter(|_| order.leaves > 0);
            able.filter(|(rank, _)| {
                higher.is_some_and(|bound| *rank >= bound) || rank.blocks >= lack
            })
        };
        let lasts = [
            able().min_by_key(|(rank, span)| (rank.blocks, span.len())),
            able().min_by_key(|(rank, span)| (span.tail() < rest, rank.blocks, span.tail())),
            able().max_by_key(|(rank, span)| (span.tail(), rank.index)),
            able().max_by_key(|(rank, _)| *rank),
        ];
        let none = (order.leaves == 0).then_some(Choice {
            last: None,
            seat: Seat::Low,
            spare: Spare::Here,
        });
        let some = lasts.into_iter().flatten().flat_map(|(rank, _)| {
            let Reverse(index) = rank.index;
            [
                (Seat::Low, Spare::Here),
                (Seat::High, Spare::Here),
                (Seat::Low, Spare::Elsewhere),
                (Seat::High, Spare::Elsewhere),
            ]
            .map(|(seat, spare)| Choice {
                last: Some(index),
                seat,
                spare,
            })
        });
        none.into_iter().chain(some)
    }

    /// Builds one layout; returns its number of pieces, `None` when it does not fit in the output or the choice makes
    /// no sense.
    fn build(&self, order: Order, choice: Choice, out: &mut [Extent]) -> Option<usize> {
        let mut chosen = Chosen { out, n: 0 };
        let mut rest = order.rest();
        if let Some(index) = choice.last {
            let last = *self.spans.get(index)?;
            let here = self.leaves_elsewhere(order, choice, index, last, &mut chosen)?;
            let taken = Span::seat(last, here, choice.seat)?;
            let tail = Span {
                start: taken.end,
                end: last.end,
            }
            .low(rest);
            chosen.push(Span {
                start: taken.start,
                end: tail.end,
            })?;
            rest = rest.checked_sub(tail.len())?;
            if tail.len() == 0 {
                // Nothing has to follow the last one, so all can be in the order of their addresses.
                chosen.sort();
            }
        }
        self.fill(rest, &mut chosen)?;
        Some(chosen.n)
    }

    /// Takes leaves from the spans beside the last one, as few spans as possible, in ascending order; returns how
    /// many leaves are left for the last one.
    fn leaves_elsewhere(
        &self,
        order: Order,
        choice: Choice,
        index: usize,
        last: Span,
        chosen: &mut Chosen<'_>,
    ) -> Option<u64> {
        let mut here = order.leaves;
        let mut need = order.leaves.saturating_sub(last.blocks());
        // Each step takes a span that ranks below those before.
        let mut lower = self.holders.as_slice();
        while need > 0 {
            let is_other = |(rank, _): &&(Rank, Span)| rank.index != Reverse(index);
            // The smallest that has all that is missing ends the search; until there is one, the largest.
            let enough = lower.get(..lower.partition_point(|(rank, _)| rank.blocks >= need))?;
            let ending = enough.iter().rfind(is_other).and_then(|(smallest, _)| {
                let larger = enough.partition_point(|(rank, _)| rank.blocks > smallest.blocks);
                enough.get(larger..)?.iter().find(is_other)
            });
            let (rank, span) = *ending.or_else(|| lower.iter().find(is_other))?;
            let blocks = rank.blocks;
            lower = lower.get(lower.partition_point(|(higher, _)| *higher >= rank)..)?;
            let take = match choice.spare {
                Spare::Here => blocks,
                Spare::Elsewhere => blocks.min(need),
            };
            // The side of a free GiB that has the smaller remainder beside it.
            let lead = span.first_block().checked_sub(span.start)?;
            let seat = if lead <= span.tail() {
                Seat::Low
            } else {
                Seat::High
            };
            chosen.push(Span::seat(span, take, seat)?)?;
            here = here.checked_sub(take)?;
            need = need.saturating_sub(take);
        }
        chosen.sort();
        (here > 0).then_some(here)
    }

    /// Takes `rest` bytes from what the chosen pieces leave free: from one piece if there is one large enough, where
    /// it breaks the fewest GiB and then leaves the least behind; until then the largest piece whole.
    fn fill(&self, mut rest: u64, chosen: &mut Chosen<'_>) -> Option<()> {
        if rest == 0 {
            return Some(());
        }
        let mut holes: Vec<Span> = self.holes(chosen.pieces()).collect();
        holes.sort_unstable_by_key(|hole| (Reverse(hole.len()), hole.start));
        let mut left = holes.as_slice();
        while let Some((largest, smaller)) = left.split_first() {
            if largest.len() >= rest {
                break;
            }
            chosen.push(*largest)?;
            rest = rest.checked_sub(largest.len())?;
            left = smaller;
        }
        let fitting = left.get(..left.partition_point(|hole| hole.len() >= rest))?;
        let parts = fitting.iter().map(|hole| {
            let (low, high) = (hole.low(rest), hole.high(rest));
            if hole.broken_by(high) < hole.broken_by(low) {
                (hole, high)
            } else {
                (hole, low)
            }
        });
        let best = parts.min_by_key(|(hole, part)| (hole.broken_by(*part), hole.len(), hole.start));
        chosen.push(best?.1)
    }

    /// What of the free space the pieces leave, ascending, without empty spans.
    fn holes(&self, used: &[Extent]) -> impl Iterator<Item = Span> + use<'_> {
        let mut used: Vec<Extent> = used.to_vec();
        used.sort_unstable_by_key(|piece| piece.start);
        let mut used = used.into_iter().peekable();
        self.spans().flat_map(move |span| {
            let mut holes = Vec::new();
            let mut at = span.start;
            while let Some(piece) = used.next_if(|piece| piece.start.raw() < span.end) {
                let start = piece.start.raw();
                holes.push(Span {
                    start: at,
                    end: start,
                });
                at = start.saturating_add(piece.len);
            }
            holes.push(Span {
                start: at,
                end: span.end,
            });
            holes.into_iter().filter(|hole| hole.start < hole.end)
        })
    }

    fn score(&self, used: &[Extent]) -> Score {
        let mut score = Score {
            pieces: Reverse(used.len()),
            whole_gib_left: 0,
            concentration: 0,
        };
        for hole in self.holes(used) {
            let units = u128::from(hole.len() / Leaf::Pmd.size());
            score.whole_gib_left = score.whole_gib_left.saturating_add(hole.blocks());
            score.concentration = score
                .concentration
                .saturating_add(units.saturating_mul(units));
        }
        score
    }
}

impl Span {
    /// The lowest or highest `blocks` aligned GiB.
    fn seat(self, blocks: u64, seat: Seat) -> Option<Span> {
        let first = self.first_block();
        let spare = self.blocks().checked_sub(blocks)?;
        let start = match seat {
            Seat::Low => first,
            Seat::High => first.checked_add(spare.checked_mul(GIB)?)?,
        };
        Some(Span {
            start,
            end: start.checked_add(blocks.checked_mul(GIB)?)?,
        })
    }
}
