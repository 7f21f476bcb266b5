// SPDX-License-Identifier: GPL-2.0
//! Operations of several threads at once.

use super::Generator;
use crate::fuzz::model::Model;
use crate::fuzz::op::{Op, Touch, ARENA_PAGES, BLOCK, DEVICES, SLOTS};

impl Generator {
    pub(super) fn threads(&mut self) -> Option<Op> {
        let threads = self.random.between(2, 3);
        let mut lists: Vec<Vec<Touch>> = Vec::new();
        // All around one page, so that the same tables and leaves are needed at once.
        let near = self.page(0);
        for _ in 0..threads {
            let touches = (0..6).map(|_| {
                let page = match self.random.chance(70) {
                    true => (near + self.random.below(6)).saturating_sub(3),
                    false => self.page(0),
                };
                Touch {
                    page,
                    ..self.touch(0)
                }
            });
            lists.push(touches.collect());
        }
        // A word that one thread writes is touched by no other one, lest anything may be seen.
        let cells = |list: &[Touch], model: &Model| -> Vec<_> {
            let cell = |touch: &Touch| model.cell(0, *touch);
            list.iter().filter_map(cell).collect()
        };
        for index in 0..lists.len() {
            let others: Vec<_> = (0..lists.len())
                .filter(|other| *other != index)
                .flat_map(|other| cells(&lists[other], &self.model))
                .collect();
            let model = &self.model;
            for touch in &mut lists[index] {
                if model
                    .cell(0, *touch)
                    .is_some_and(|cell| others.contains(&cell))
                {
                    touch.write = None;
                }
            }
        }
        Some(Op::Threads {
            who: 0,
            threads: lists,
        })
    }

    pub(super) fn race(&mut self) -> Option<Op> {
        let op = match self.random.weighted(&[20, 20, 20, 25, 12, 3]) {
            0 => self.map(0)?,
            1 => Op::Unmap {
                who: 0,
                span: self.span(0),
            },
            2 => Op::Protect {
                who: 0,
                span: self.span(0),
                prot: self.prot(),
            },
            3 => self.remap(0)?,
            4 => Op::Advise {
                who: 0,
                span: self.span(0),
                advice: self.advice(),
            },
            _ => Op::Unbind {
                device: self.random.below(DEVICES as u64) as usize,
            },
        };
        let around = match &op {
            Op::Unmap { span, .. }
            | Op::Protect { span, .. }
            | Op::Remap { span, .. }
            | Op::Map { span, .. }
            | Op::Advise { span, .. } => Some(*span),
            _ => None,
        };
        let mut touches = Vec::new();
        for _ in 0..8 {
            let page = match (around, self.random.below(4)) {
                (Some(span), 0) => span.at,
                (Some(span), 1) => span.end() - 1,
                (Some(span), 2) => span.at + self.random.below(span.pages.min(BLOCK)),
                _ => self.page(0),
            };
            touches.push(Touch {
                page: page.min(ARENA_PAGES - 1),
                slot: self.random.below(SLOTS.len() as u64) as usize,
                write: None,
            });
        }
        self.rewrite(&op, &mut touches)?;
        Some(Op::Race {
            op: Box::new(op),
            touches,
        })
    }

    /// Makes some touches write what is there already, where that is the same word before and after.
    fn rewrite(&mut self, op: &Op, touches: &mut [Touch]) -> Option<()> {
        if !self.model.applies(op) {
            return None;
        }
        let write = |touch: &Touch| Touch {
            write: Some(0),
            ..*touch
        };
        let before: Vec<_> = touches
            .iter()
            .map(|touch| self.model.cell(0, write(touch)))
            .collect();
        let mut later = self.model.clone();
        later.apply(op);
        for (touch, before) in touches.iter_mut().zip(before) {
            let after = later.cell(0, write(touch));
            let same = before == after || before.is_none() || after.is_none();
            let word = before
                .or(after)
                .and_then(|cell| self.model.memory.word(cell));
            if same && word.is_some() && self.random.chance(50) {
                touch.write = word;
            }
        }
        Some(())
    }
}
