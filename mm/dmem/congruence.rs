// SPDX-License-Identifier: GPL-2.0

//! Congruence: where a mapping has to start for large leaves to be possible.
//!
//! A leaf needs virtual and physical addresses that are equal modulo its size. For each range of a
//! device one residue of the mapping's start does that; ranges that differ in it compete, and the
//! one that yields most wins. (`thp_get_unmapped_area` knows file offsets only: congruent modulo 2
//! MiB, and blind to where the range is.)

use super::ranges::{DevRange, RangeMap};
use super::units::{Leaf, PageOff, PhysAddr};

/// A wish for the start of a mapping: congruent to `residue` modulo a leaf's size.
///
/// # Invariants
///
/// `modulus` is the size of a leaf, `residue` is page aligned and below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Congruence {
    modulus: u64,
    residue: u64,
}

impl Congruence {
    /// The congruence of all addresses that have the same place in a leaf-sized block as `start`
    /// has. Addresses within a page are not distinguished.
    #[inline]
    const fn of(leaf: Leaf, start: u64) -> Self {
        // INVARIANT: the mask of a power of two leaves what is below it.
        Self {
            modulus: leaf.size(),
            residue: start & leaf.mask(),
        }
    }

    /// 1 GiB or 2 MiB, in bytes.
    #[inline]
    pub const fn modulus(self) -> u64 {
        self.modulus
    }

    /// Wanted remainder of the start divided by the modulus, in bytes.
    #[inline]
    pub const fn residue(self) -> u64 {
        self.residue
    }

    /// The first address at or above `base` (bytes) that is congruent; `None` where that exceeds 64
    /// bits.
    ///
    /// It lies less than one modulus above `base`: a hole that is larger than the mapping by the
    /// modulus suffices.
    #[inline]
    pub fn apply(self, base: u64) -> Option<u64> {
        // The modulus is a power of two, so it divides 2^64 and the wrapped difference has the
        // right remainder.
        let up = self.residue.wrapping_sub(base) & self.modulus.wrapping_sub(1);
        base.checked_add(up)
    }
}

/// How a mapping of `pages` pages of the device, from offset `pgoff` on, should start.
///
/// The modulus is 1 GiB when some start gives at least one 1 GiB leaf, else 2 MiB when one gives a
/// 2 MiB leaf; otherwise, and when the part holds no page of the device, the answer is `None`: any
/// start is as good. Among the residues that the ranges ask for, the one with the most 1 GiB leaves
/// wins, among those with equally many the one with the most 2 MiB leaves beside them, among those
/// the one asked for by the range with the lowest offset.
///
/// Costs O(n·k) for n ranges that ask for k residues in turn; n is at most
/// [`MAX_RANGES`](super::MAX_RANGES). A range too small for the leaf asks for nothing, and
/// neighbours that ask for the same count once, so that ranges cut from one region on 1 GiB (or,
/// where there are no 1 GiB leaves, 2 MiB) boundaries cost O(n).
pub fn congruence(map: &RangeMap<'_>, pgoff: PageOff, pages: u64) -> Option<Congruence> {
    let part = Part {
        first: pgoff,
        end: pgoff.checked_add(pages)?,
    };
    [Leaf::Pud, Leaf::Pmd]
        .into_iter()
        .find_map(|leaf| best(map, part, leaf))
}

/// The part of a device to be mapped: the offsets `[first, end)`.
#[derive(Clone, Copy)]
struct Part {
    first: PageOff,
    end: PageOff,
}

/// What one start yields. Ordered by preference: 1 GiB leaves first.
///
/// `pmds` are the places for 2 MiB leaves, those that 1 GiB leaves take included: they are 512 for
/// each, so that between starts with equally many 1 GiB leaves they make no difference.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Yield {
    puds: u64,
    pmds: u64,
}

/// The best of the residues modulo this leaf's size that give at least one such leaf.
fn best(map: &RangeMap<'_>, part: Part, leaf: Leaf) -> Option<Congruence> {
    let mut best: Option<(Congruence, Yield)> = None;
    let mut last = None;
    for piece in pieces(map, part) {
        let wish = piece.wish(leaf);
        if piece.leaves(leaf) == 0 || last == Some(wish) {
            continue;
        }
        last = Some(wish);
        let yields = total(map, part, wish);
        if best.is_none_or(|(_, most)| most < yields) {
            best = Some((wish, yields));
        }
    }
    best.map(|(wish, _)| wish)
}

/// What a start of this congruence yields over the whole part.
fn total(map: &RangeMap<'_>, part: Part, start: Congruence) -> Yield {
    let mut total = Yield { puds: 0, pmds: 0 };
    for piece in pieces(map, part) {
        total.puds = total
            .puds
            .saturating_add(piece.leaves_from(start, Leaf::Pud));
        total.pmds = total
            .pmds
            .saturating_add(piece.leaves_from(start, Leaf::Pmd));
    }
    total
}

/// The part of one range that is to be mapped.
struct Piece {
    /// Physical address of its first byte.
    start: PhysAddr,
    /// First physical address behind it.
    end: PhysAddr,
    /// Start of the whole mapping, modulo 2^64, if virtual and physical addresses were equal in
    /// this piece.
    origin: u64,
}

/// The pieces of a part, in order of device offset.
fn pieces<'a>(map: &RangeMap<'a>, part: Part) -> impl Iterator<Item = Piece> + use<'a> {
    map.ranges()
        .iter()
        .filter_map(move |range| Piece::of(range, part))
}

impl Piece {
    /// What of `range` lies in `part`; `None` when nothing does.
    fn of(range: &DevRange, part: Part) -> Option<Self> {
        let first = range.pgoff.max(part.first);
        let end = range.pgoff_end()?.min(part.end);
        if first >= end {
            return None;
        }
        let start = range.phys(first)?;
        let bytes = PageOff::from_raw(end.pages_beyond(first)?).bytes()?;
        let lead = PageOff::from_raw(first.pages_beyond(part.first)?).bytes()?;
        Some(Self {
            start,
            end: start.checked_add(bytes)?,
            origin: start.raw().wrapping_sub(lead),
        })
    }

    /// The start of the mapping that makes leaves of this size possible here.
    fn wish(&self, leaf: Leaf) -> Congruence {
        Congruence::of(leaf, self.origin)
    }

    /// Number of naturally aligned physical blocks of this size inside.
    fn leaves(&self, leaf: Leaf) -> u64 {
        let size = leaf.size();
        let first = self.start.raw().div_ceil(size);
        (self.end.raw() / size).saturating_sub(first)
    }

    /// Number of leaves of this size, were the mapping to start at `start`.
    fn leaves_from(&self, start: Congruence, leaf: Leaf) -> u64 {
        // A start known modulo less than the leaf promises nothing of it.
        if start.modulus < leaf.size() || Congruence::of(leaf, start.residue) != self.wish(leaf) {
            return 0;
        }
        self.leaves(leaf)
    }
}
