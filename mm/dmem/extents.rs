// SPDX-License-Identifier: GPL-2.0

//! Sets of physical memory: which bytes are known to be zero, which are still to be.
//!
//! The memory of a set belongs to the caller ([`Store`]): `KVec<Extent>` in the kernel, where every
//! growth may fail, `Vec<Extent>` on the host. A set that cannot grow forgets memory rather than
//! claim too much, so it is good for knowledge that is safe to lose.

use core::ops::Deref;

use super::units::{Leaf, PhysAddr};

/// A piece of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Its first byte.
    pub start: PhysAddr,
    /// Bytes in it.
    pub len: u64,
}

impl Extent {
    /// The bytes from `start` up to `end`; `None` where `end` lies below.
    #[inline]
    pub fn between(start: PhysAddr, end: PhysAddr) -> Option<Self> {
        let len = end.bytes_above(start)?;
        Some(Self { start, len })
    }

    /// First address behind the piece; `None` where that exceeds 64 bits.
    #[inline]
    pub fn end(&self) -> Option<PhysAddr> {
        self.start.checked_add(self.len)
    }

    /// Whether the pieces have a byte in common.
    #[inline]
    pub fn overlaps(&self, other: &Extent) -> bool {
        // A piece that would end beyond 64 bits reaches to the last address.
        let below = |a: &Extent, b: &Extent| a.end().is_none_or(|end| b.start < end);
        self.len > 0 && other.len > 0 && below(self, other) && below(other, self)
    }

    /// The bytes that both have; `None` where there is none, or a piece would end beyond 64 bits.
    #[inline]
    pub fn common(&self, other: &Extent) -> Option<Extent> {
        let end = self.end()?.min(other.end()?);
        Extent::between(self.start.max(other.start), end).filter(|common| common.len > 0)
    }

    /// Whether the byte at this address is in it.
    #[inline]
    pub fn contains(&self, at: PhysAddr) -> bool {
        at.bytes_above(self.start)
            .is_some_and(|into| into < self.len)
    }

    /// The part on that side of `hole` where `at` is; `None` where `at` is in the hole.
    #[inline]
    pub fn beside(&self, hole: &Extent, at: PhysAddr) -> Option<Extent> {
        if !self.overlaps(hole) {
            return Some(*self);
        }
        let side = if at < hole.start {
            Extent::between(self.start, hole.start)
        } else {
            Extent::between(hole.end()?, self.end()?)
        };
        side.filter(|side| side.contains(at))
    }

    /// What to work on next when the first `done` bytes are: up to the next multiple of 2 MiB, so
    /// that one PMD maps every step but a ragged first or last one. `None` at the end.
    #[inline]
    pub fn step(&self, done: u64) -> Option<Extent> {
        let start = self.start.checked_add(done)?;
        let left = self.len.checked_sub(done).filter(|left| *left > 0)?;
        let into = start.bytes_above(start.align_down(Leaf::Pmd))?;
        let len = left.min(Leaf::Pmd.size().saturating_sub(into));
        Some(Extent { start, len })
    }

    /// The first `len` bytes of the piece, or all of it where it has fewer.
    #[inline]
    pub fn head(&self, len: u64) -> Extent {
        Extent {
            start: self.start,
            len: self.len.min(len),
        }
    }

    /// What lies behind the first `len` bytes; `None` where nothing does.
    #[inline]
    pub fn tail(&self, len: u64) -> Option<Extent> {
        Extent::between(self.start.checked_add(len)?, self.end()?).filter(|tail| tail.len > 0)
    }
}

/// Memory for the extents of a set, in ascending order.
pub trait Store: Deref<Target = [Extent]> {
    /// Makes room at `index` (at most the length) and puts `extent` there. `false`, with nothing
    /// changed, when there is no memory.
    fn insert(&mut self, index: usize, extent: Extent) -> bool;
    /// Puts `extent` in the place of the one at `index`, which exists.
    fn replace(&mut self, index: usize, extent: Extent);
    /// Takes out the one at `index`, which exists.
    fn remove(&mut self, index: usize);
}

/// A set of bytes of physical memory.
///
/// # Invariants
///
/// The extents are not empty, end within 64 bits, ascend, and neither overlap nor touch.
#[derive(Debug, Default)]
pub struct ExtentSet<S>(S);

impl<S: Store> ExtentSet<S> {
    /// A set in that store, which must be empty.
    #[inline]
    pub const fn new(empty: S) -> Self {
        // INVARIANT: There are no extents, by the caller.
        Self(empty)
    }

    /// The extents, in ascending order.
    #[inline]
    pub fn extents(&self) -> &[Extent] {
        &self.0
    }

    /// Adds all bytes of `extent`. `false`, with nothing changed, when there is no memory for it or
    /// it ends beyond 64 bits.
    pub fn add(&mut self, extent: Extent) -> bool {
        let Some(end) = extent.end() else {
            return false;
        };
        if extent.len == 0 {
            return true;
        }
        // Everything in [first, behind) overlaps or touches, and becomes one.
        let first = self
            .0
            .partition_point(|e| e.end().is_some_and(|end| end < extent.start));
        let behind = self.0.partition_point(|e| e.start <= end);
        let merged = self.0.get(first..behind).and_then(|joined| {
            let start = joined.first()?.start.min(extent.start);
            Extent::between(start, joined.last()?.end()?.max(end))
        });
        match merged {
            None => self.0.insert(first, extent),
            Some(merged) => {
                self.0.replace(first, merged);
                for index in (first.saturating_add(1)..behind).rev() {
                    self.0.remove(index);
                }
                true
            }
        }
    }

    /// Takes all bytes of `extent` out. Where a hole would need memory that cannot be had, the
    /// bytes above it go as well.
    pub fn remove(&mut self, extent: &Extent) {
        if extent.len == 0 {
            return;
        }
        let end = extent.end().unwrap_or(PhysAddr::from_raw(u64::MAX));
        let mut index = self
            .0
            .partition_point(|e| e.end().is_some_and(|end| end <= extent.start));
        while let Some(old) = self.0.get(index).copied().filter(|old| old.start < end) {
            let part = |from, to| Extent::between(from, to).filter(|part| part.len > 0);
            let below = part(old.start, extent.start);
            let above = old.end().and_then(|old_end| part(end, old_end));
            match (below, above) {
                (None, None) => self.0.remove(index),
                (Some(below), None) => {
                    self.0.replace(index, below);
                    index = index.saturating_add(1);
                }
                (None, Some(above)) => return self.0.replace(index, above),
                (Some(below), Some(above)) => {
                    self.0.replace(index, below);
                    self.0.insert(index.saturating_add(1), above);
                    return;
                }
            }
        }
    }

    /// The part of `extent` around `at` that has no byte of the set; `None` where `at` is in the
    /// set, or outside `extent`.
    pub fn gap_at(&self, extent: &Extent, at: PhysAddr) -> Option<Extent> {
        self.missing(extent).find(|gap| gap.contains(at))
    }

    /// Whether no byte of `extent` is in the set.
    pub fn is_disjoint(&self, extent: &Extent) -> bool {
        let first = self.missing(extent).next();
        extent.len == 0 || first.is_some_and(|gap| gap == *extent)
    }

    /// The parts of `extent` that are in the set, in ascending order.
    pub fn within<'s>(&'s self, extent: &Extent) -> impl Iterator<Item = Extent> + use<'s, S> {
        let extent = *extent;
        let known = self.behind(&extent).iter();
        known.map_while(move |known| known.common(&extent))
    }

    /// The parts of `extent` that are not in the set, in ascending order.
    pub fn missing(&self, extent: &Extent) -> Missing<'_> {
        Missing {
            known: self.behind(extent),
            left: Some(*extent),
        }
    }

    /// The extents of the set from the first on that ends behind the start of `extent`.
    fn behind(&self, extent: &Extent) -> &[Extent] {
        let first = self
            .0
            .partition_point(|e| e.end().is_some_and(|end| end <= extent.start));
        self.0.get(first..).unwrap_or_default()
    }
}

/// See [`ExtentSet::missing`].
#[derive(Debug)]
pub struct Missing<'a> {
    known: &'a [Extent],
    left: Option<Extent>,
}

impl Iterator for Missing<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        loop {
            let left = self.left.take().filter(|left| left.len > 0)?;
            let known = self.known.first().filter(|known| known.overlaps(&left));
            let Some(known) = known else {
                return Some(left);
            };
            self.known = self.known.get(1..).unwrap_or_default();
            self.left = known
                .end()
                .zip(left.end())
                .and_then(|(from, to)| Extent::between(from, to));
            let gap = Extent::between(left.start, known.start).filter(|gap| gap.len > 0);
            if gap.is_some() {
                return gap;
            }
        }
    }
}
