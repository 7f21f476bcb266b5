// SPDX-License-Identifier: GPL-2.0
//! What several threads see that act at once.

use std::collections::BTreeMap;

use super::Model;
use crate::fuzz::memory::Cell;
use crate::fuzz::op::{Expected, Op, Seen, Touch, Want};

impl Model {
    pub(super) fn threads(&mut self, who: usize, threads: &[Vec<Touch>]) -> Expected {
        let mut writes: BTreeMap<Cell, Vec<u64>> = BTreeMap::new();
        for touch in threads.iter().flatten() {
            if let (Some(cell), Some(word)) = (self.cell(who, *touch), touch.write) {
                writes.entry(cell).or_default().push(word);
            }
        }
        let mut steps = Vec::new();
        for touch in threads.iter().flatten() {
            let mut want = self.glance(who, *touch);
            if let (Some(cell), None) = (self.cell(who, *touch), touch.write) {
                for word in writes.get(&cell).into_iter().flatten() {
                    want = want.or(Want::Is(Seen::Word(*word)));
                }
            }
            steps.push(want);
        }
        for (cell, words) in writes {
            let all_same = words.iter().all(|word| *word == words[0]);
            self.memory.write(cell, all_same.then_some(words[0]));
        }
        Expected { steps, shown: None }
    }

    /// Every touch sees the state before the operation or the one after it.
    pub(super) fn race(&mut self, op: &Op, touches: &[Touch]) -> Option<Expected> {
        let before: Vec<_> = touches
            .iter()
            .map(|touch| (self.glance(0, *touch), self.cell(0, *touch)))
            .collect();
        let mut expected = self.try_apply(op)?;
        for (touch, (want, earlier)) in touches.iter().zip(before) {
            let later = self.cell(0, *touch);
            let mut want = want.or(self.glance(0, *touch));
            let Some(word) = touch.write else {
                // Somebody else may write something new there.
                let written = touches.iter().any(|other| {
                    let cell = self.cell(0, *other);
                    let new = |cell| other.write != self.memory.word(cell);
                    let shared = cell.is_some() && (cell == earlier || cell == later);
                    other.write.is_some() && shared && cell.is_some_and(new)
                });
                if written {
                    want = want.or(Want::AnyWord);
                }
                expected.steps.push(want);
                continue;
            };
            expected.steps.push(want);
            for cell in [earlier, later].into_iter().flatten() {
                if self.memory.word(cell) != Some(word) {
                    self.memory.write(cell, None);
                }
            }
        }
        Some(expected)
    }
}
