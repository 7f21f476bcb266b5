// SPDX-License-Identifier: GPL-2.0
//! The model of the bytes: what each checked word of physical memory holds.

use std::collections::{BTreeMap, HashMap};

use super::op::BLOCK;
use super::random::mix;

/// A checked word of physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell {
    /// Physical page, counted from the window's start.
    pub page: u64,
    /// Index into [`super::op::SLOTS`].
    pub slot: usize,
}

/// What the words of a block hold that were not written one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    Unknown,
    Zero,
    Stamped(u64),
}

#[derive(Debug, Clone)]
struct Block {
    base: Base,
    /// Words written since; `None`: by several at once.
    written: HashMap<Cell, Option<u64>>,
}

/// All words of the window, by 2 MiB block; a block that is not here is unknown.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    blocks: BTreeMap<u64, Block>,
}

/// What a stamp writes.
pub fn stamp(version: u64, cell: Cell) -> u64 {
    mix(version ^ mix(cell.page * 2 + cell.slot as u64 + 1))
}

impl Memory {
    /// The word, `None` if it may be anything.
    pub fn word(&self, cell: Cell) -> Option<u64> {
        let block = self.blocks.get(&(cell.page / BLOCK))?;
        match (block.written.get(&cell), block.base) {
            (Some(word), _) => *word,
            (None, Base::Unknown) => None,
            (None, Base::Zero) => Some(0),
            (None, Base::Stamped(version)) => Some(stamp(version, cell)),
        }
    }

    /// A word was written; `None`: it is not sure with what.
    pub fn write(&mut self, cell: Cell, word: Option<u64>) {
        let block = self.blocks.entry(cell.page / BLOCK);
        let block = block.or_insert_with(|| Block {
            base: Base::Unknown,
            written: HashMap::new(),
        });
        block.written.insert(cell, word);
    }

    fn rebase(&mut self, block: u64, base: Base) {
        let written = HashMap::new();
        self.blocks.insert(block, Block { base, written });
    }

    /// All of a 2 MiB block was zeroed.
    pub fn zero(&mut self, block: u64) {
        self.rebase(block, Base::Zero);
    }

    /// All checked words of a block were stamped.
    pub fn stamp(&mut self, block: u64, version: u64) {
        self.rebase(block, Base::Stamped(version));
    }

    /// Nothing is known of a block any more.
    pub fn forget(&mut self, block: u64) {
        self.blocks.remove(&block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_what_was_written_last() {
        let mut memory = Memory::default();
        let cell = Cell { page: 700, slot: 1 };
        assert_eq!(memory.word(cell), None);
        memory.write(cell, Some(5));
        assert_eq!(memory.word(cell), Some(5));
        assert_eq!(memory.word(Cell { slot: 0, ..cell }), None);
        memory.zero(1);
        assert_eq!(memory.word(cell), Some(0));
        memory.stamp(1, 9);
        assert_eq!(memory.word(cell), Some(stamp(9, cell)));
        assert_ne!(stamp(9, cell), stamp(9, Cell { slot: 0, ..cell }));
        memory.write(cell, None);
        assert_eq!(memory.word(cell), None);
        memory.forget(1);
        assert_eq!(memory.word(Cell { page: 701, slot: 0 }), None);
    }
}
