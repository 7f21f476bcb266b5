// SPDX-License-Identifier: GPL-2.0
//! Where operations go: pages and ranges of the arena.

use super::Generator;
use crate::fuzz::model::hot_blocks;
use crate::fuzz::op::{Span, ARENA_PAGES, BLOCK, DENSE, GIANT, WIDE};
use crate::fuzz::random::Random;
use crate::fuzz::space::Vma;

impl Generator {
    /// A number of pages: small ones, whole blocks, and either and a bit.
    pub(super) fn length(&mut self, most: u64) -> u64 {
        let length = match self.random.weighted(&[25, 30, 20, 25]) {
            0 => self.random.between(1, 8),
            1 => BLOCK * self.random.between(1, 8),
            2 => (BLOCK * self.random.between(1, 4) + self.random.between(0, 6)).saturating_sub(3),
            _ => self.random.between(1, most),
        };
        length.clamp(1, most.max(1))
    }

    /// Where to put `length` pages whose first has this physical page: mostly so that large leaves are possible.
    pub(super) fn place(&mut self, wide: bool, length: u64, physical: u64) -> u64 {
        let (low, high) = match wide {
            true => (WIDE, ARENA_PAGES - length),
            false => (0, DENSE - length.min(DENSE)),
        };
        let at = self.random.between(low, high);
        let modulus = match (wide, self.random.weighted(&[55, 25, 20])) {
            (true, 0) => GIANT,
            (false, 0) | (true, 1) => BLOCK,
            _ => return at,
        };
        let congruent = at - at % modulus + physical % modulus;
        if congruent > high {
            congruent.saturating_sub(modulus).max(low)
        } else {
            congruent
        }
    }

    /// A page somewhere interesting: in a mapping, at its edges, at a boundary in it, just outside.
    pub(super) fn page(&mut self, who: usize) -> u64 {
        let vmas = self.vmas(who).to_vec();
        let Some(vma) = self.random.pick(&vmas).copied() else {
            return self.random.below(DENSE);
        };
        let boundary = |random: &mut Random, page: u64, modulus: u64| {
            let page = page - page % modulus + modulus * random.below(2);
            (page + random.below(2)).saturating_sub(1)
        };
        let inside = self.inside(&vma);
        let page = match self.random.weighted(&[14, 14, 10, 6, 6, 40, 4, 4]) {
            0 => vma.start,
            1 => vma.end - 1,
            2 => boundary(&mut self.random, inside, BLOCK),
            3 => vma.end,
            4 => vma.start.saturating_sub(1),
            5 => inside,
            6 => boundary(&mut self.random, inside, GIANT),
            _ => self.random.below(DENSE),
        };
        page.min(ARENA_PAGES - 1)
    }

    /// A page of a mapping, of its device's hot blocks if there are some in it.
    fn inside(&mut self, vma: &Vma) -> u64 {
        let length = vma.end - vma.start;
        let anywhere = vma.start + self.random.below(length);
        let parts = match self.model.binding_of(vma.file) {
            Some(binding) if length > 64 * BLOCK => &binding.parts,
            _ => return anywhere,
        };
        let blocks = hot_blocks(parts);
        let Some(block) = self.random.pick(&blocks) else {
            return anywhere;
        };
        let page = block * BLOCK + self.random.below(BLOCK);
        let last = vma.offset + length - 1;
        vma.start + page.clamp(vma.offset, last) - vma.offset
    }

    /// A range of the arena: about a mapping, a part of one, several.
    pub(super) fn span(&mut self, who: usize) -> Span {
        let at = self.page(who);
        let vma = self
            .model
            .process(who)
            .and_then(|process| process.space.find(at))
            .copied();
        let rest = vma.map_or(8, |vma| vma.end - at);
        let pages = match self.random.weighted(&[30, 25, 25, 15, 5]) {
            0 => self.random.between(1, 8),
            1 => rest,
            2 => self.length(rest),
            3 => self.length(6 * BLOCK),
            _ => rest + self.random.between(1, 2 * BLOCK),
        };
        let span = match (vma, self.random.chance(15)) {
            (Some(vma), true) => vma.span(),
            _ => Span { at, pages },
        };
        Span {
            at: span.at,
            pages: span.pages.min(ARENA_PAGES - span.at),
        }
    }
}
