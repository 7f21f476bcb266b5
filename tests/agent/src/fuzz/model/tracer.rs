// SPDX-License-Identifier: GPL-2.0
//! What a tracer sees and changes.

use super::{physical, Model};
use crate::fuzz::memory::Cell;
use crate::fuzz::op::{Expected, Seen, Touch, Want, PAGE, SLOTS};
use crate::fuzz::random::mix;
use crate::fuzz::space::Vma;

impl Model {
    /// How many bytes from there on a tracer reaches.
    fn reach(&self, who: usize, at: u64, bytes: u64, write: bool) -> u64 {
        let mut end = at;
        while end < at + bytes {
            let page = end / PAGE;
            let vma = self
                .process(who)
                .and_then(|process| process.space.find(page));
            let live = |vma: &Vma| self.binding_of(vma.file).is_some_and(|b| b.live);
            let allowed = vma.is_some_and(|vma| live(vma) && (!write || vma.prot.write));
            if !allowed {
                break;
            }
            end = (page + 1) * PAGE;
        }
        end.min(at + bytes) - at
    }

    /// The word behind a page whatever its protection, as a tracer sees it.
    fn traced(&self, who: usize, page: u64, slot: usize) -> Option<Cell> {
        let vma = self.process(who)?.space.find(page)?;
        let parts = &self.binding_of(vma.file)?.parts;
        let page = physical(parts, vma.offset_of(page))?;
        Some(Cell { page, slot })
    }

    fn count(reach: u64) -> Want {
        match reach {
            0 => Want::Is(Seen::Errno(libc::EIO)),
            reach => Want::Is(Seen::Number(reach)),
        }
    }

    pub(super) fn peek(&mut self, who: usize, at: u64, bytes: u64) -> Expected {
        let reach = self.reach(who, at, bytes, false);
        let mut steps = vec![Model::count(reach)];
        for (page, slot, _) in words_in(at, reach) {
            let cell = self.traced(who, page, slot);
            steps.push(cell.map_or(Want::AnyWord, |cell| self.known(cell)));
        }
        Expected { steps, shown: None }
    }

    pub(super) fn poke(&mut self, who: usize, at: u64, bytes: u64, seed: u64) -> Expected {
        let reach = self.reach(who, at, bytes, true);
        for (page, slot, byte) in words_in(at, reach) {
            if let Some(cell) = self.traced(who, page, slot) {
                self.memory.write(cell, Some(poked(seed, byte)));
            }
        }
        Expected::one(Model::count(reach))
    }

    pub(super) fn trace(&mut self, who: usize, touch: Touch) -> Want {
        let at = touch.page * PAGE + SLOTS[touch.slot];
        if self.reach(who, at, 8, touch.write.is_some()) < 8 {
            return Want::Is(Seen::Errno(libc::EIO));
        }
        match (self.traced(who, touch.page, touch.slot), touch.write) {
            (Some(cell), Some(word)) => {
                self.memory.write(cell, Some(word));
                Want::DONE
            }
            (Some(cell), None) => self.known(cell),
            (None, _) => Want::AnyWord,
        }
    }
}

/// Checked words wholly inside a range of bytes of the arena: page, slot, and the word's byte address.
pub fn words_in(at: u64, bytes: u64) -> Vec<(u64, usize, u64)> {
    let mut words = Vec::new();
    for page in at / PAGE..(at + bytes).div_ceil(PAGE) {
        for (slot, offset) in SLOTS.iter().enumerate() {
            let byte = page * PAGE + offset;
            if at <= byte && byte + 8 <= at + bytes {
                words.push((page, slot, byte));
            }
        }
    }
    words
}

/// The word that [`Op::Poke`](crate::fuzz::op::Op::Poke) writes at a byte of the arena.
pub fn poked(seed: u64, byte: u64) -> u64 {
    mix(seed ^ byte)
}
