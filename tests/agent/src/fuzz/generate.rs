// SPDX-License-Identifier: GPL-2.0
//! The generator: from a seed to a list of operations.
//!
//! It runs the model along, only to aim: at edges of mappings, at addresses where large leaves are possible, at
//! words that something is known of. Nothing observed flows back, so a seed gives the same list everywhere.

use super::model::{hot_blocks, is_giant, pages, physical, Model};
use crate::scrub::Policy;

use super::op::{
    Hole, Lock, Look, Op, Place, Prot, Span, Touch, ARENA_PAGES, BLOCK, DENSE, DEVICES, FILES,
    GIANT, PAGE, PROCESSES, SLOTS,
};
use super::random::Random;
use super::space::Vma;

mod places;
mod threads;

/// Blocks of the window from which small devices are cut.
const SMALL_BLOCKS: u64 = 64;
/// First block of the window's part for devices with 1 GiB leaves.
const GIANT_BLOCK: u64 = 512;
/// Blocks of the window: a GiB for small devices, one for a large one.
pub const WINDOW_BLOCKS: u64 = 1024;
/// More VMAs than this in a process, and it rather unmaps.
const MANY_VMAS: usize = 40;

/// The list of operations of a seed.
pub fn operations(seed: u64, count: usize, holes: bool) -> Vec<Op> {
    let mut generator = Generator {
        random: Random::new(seed),
        model: Model::new(holes),
        version: 0,
    };
    (0..count).map(|_| generator.next()).collect()
}

struct Generator {
    random: Random,
    model: Model,
    /// Counts what is written, so that no two words are equal.
    version: u64,
}

impl Generator {
    fn next(&mut self) -> Op {
        for _ in 0..20 {
            let op = self.propose();
            if let Some(op) = op.filter(|op| self.model.applies(op)) {
                self.model.apply(&op);
                return op;
            }
        }
        // There is always something that applies.
        Op::Touch {
            who: 0,
            touches: Vec::new(),
        }
    }

    fn propose(&mut self) -> Option<Op> {
        let live = self.model.processes.iter().flatten().count() as u64;
        let bound = (0..DEVICES).filter(|device| self.model.bound(*device).is_some());
        let starved = if bound.count() == 0 { 400 } else { 0 };
        let who = self.process();
        let files = self.files(who).len() as u64;
        let mapped = self.vmas(who).len();
        let some = |weight| if mapped == 0 { 0 } else { weight };
        let crowded = mapped > MANY_VMAS;
        let weights = [
            9 + starved,                       // 0 devices
            if files == 0 { 250 } else { 14 }, // 1 open
            if files > 3 { 20 } else { 6 },    // 2 close
            if files == 0 {
                0
            } else if crowded {
                30
            } else {
                130
            }, // 3 map
            some(if crowded { 200 } else { 60 }), // 4 unmap
            some(70),                          // 5 protect
            some(90),                          // 6 remap
            some(80),                          // 7 advise
            some(25),                          // 8 lock
            some(10),                          // 9 sync
            some(260),                         // 10 touch
            some(9),                           // 11 threads
            some(10),                          // 12 race
            if live < PROCESSES as u64 { 8 } else { 0 }, // 13 fork
            (live - 1) * 3,                    // 14 exit
            some(30),                          // 15 peek
            some(30),                          // 16 poke
            some(if live > 1 { 8 } else { 0 }), // 17 ptrace
            some(8),                           // 18 look
            some(if self.model.holes { 30 } else { 0 }), // 19 holes
        ];
        match self.random.weighted(&weights) {
            0 => self.device_op(),
            1 => self.open(who),
            2 => self.close(who),
            3 => self.map(who),
            4 => Some(self.unmap(who)),
            5 => Some(Op::Protect {
                who,
                span: self.span(who),
                prot: self.prot(),
            }),
            6 => self.remap(who),
            7 => Some(Op::Advise {
                who,
                span: self.span(who),
                advice: self.advice(),
            }),
            8 => Some(Op::Lock {
                who,
                span: self.span(who),
                lock: *self.random.pick(&[Lock::Now, Lock::OnFault, Lock::Undo])?,
            }),
            9 => Some(Op::Sync {
                who,
                span: self.span(who),
                wait: self.random.chance(50),
            }),
            10 => {
                let count = self.random.between(1, 5);
                let touches = (0..count).map(|_| self.touch(who)).collect();
                Some(Op::Touch { who, touches })
            }
            11 => self.threads(),
            12 => self.race(),
            13 => {
                let free = |child: &usize| self.model.process(*child).is_none();
                let child = (0..PROCESSES).find(free)?;
                Some(Op::Fork { who, child })
            }
            14 => Some(Op::Exit {
                who: self.random.between(1, PROCESSES as u64 - 1) as usize,
            }),
            15 => {
                let (at, bytes) = self.bytes(who);
                Some(Op::Peek { who, at, bytes })
            }
            16 => {
                let (at, bytes) = self.bytes(who);
                let seed = self.word();
                Some(Op::Poke {
                    who,
                    at,
                    bytes,
                    seed,
                })
            }
            17 => Some(Op::Trace {
                who,
                touch: self.touch(who),
            }),
            18 => Some(Op::Look {
                who,
                span: self.span(who),
                look: match self.random.weighted(&[60, 20, 7, 7, 6]) {
                    0 => Look::Maps,
                    1 => Look::Smaps,
                    2 => Look::Pagemap,
                    3 => Look::Mincore,
                    _ => Look::NumaMaps,
                },
            }),
            _ => Some(Op::Hole {
                who,
                span: self.span(who),
                hole: *self.random.pick(&[Hole::Strict, Hole::StrictMove])?,
            }),
        }
    }

    fn word(&mut self) -> u64 {
        self.version += 1;
        super::random::mix((self.version << 8) | 1)
    }

    fn process(&mut self) -> usize {
        if self.random.chance(65) {
            return 0;
        }
        let live: Vec<usize> = (0..PROCESSES)
            .filter(|who| self.model.process(*who).is_some())
            .collect();
        self.random.pick(&live).copied().unwrap_or(0)
    }

    fn files(&self, who: usize) -> Vec<usize> {
        let files = self.model.process(who).map(|process| process.files);
        let open = |file: &usize| files.is_some_and(|files| files[*file].is_some());
        (0..FILES).filter(open).collect()
    }

    fn vmas(&self, who: usize) -> &[Vma] {
        self.model
            .process(who)
            .map_or(&[], |process| process.space.vmas())
    }

    // ---- devices ----

    fn device_op(&mut self) -> Option<Op> {
        let device = self.random.below(DEVICES as u64) as usize;
        let Some(existing) = self.model.devices[device].as_ref() else {
            return Some(self.create(device));
        };
        let giant = is_giant(&existing.parts);
        if existing.binding.is_none() {
            return Some(match self.random.chance(75) {
                true => Op::Bind {
                    device,
                    policy: self.policy(giant),
                },
                false => Op::Destroy { device },
            });
        }
        Some(match self.random.weighted(&[45, 30, 25]) {
            0 => Op::Stamp {
                device,
                version: self.word(),
            },
            1 => Op::Sweep { device },
            _ => Op::Unbind { device },
        })
    }

    /// Zeroing a large device takes too long to do it often: never.
    fn policy(&mut self, giant: bool) -> Policy {
        if giant {
            return Policy::Never;
        }
        match self.random.weighted(&[50, 25, 25]) {
            0 => Policy::Release,
            1 => Policy::HandOut,
            _ => Policy::Never,
        }
    }

    fn create(&mut self, device: usize) -> Op {
        if self.random.chance(30) {
            let halves = self.random.chance(25);
            let (align, parts) = match halves {
                false => (GIANT * PAGE, vec![(GIANT_BLOCK, 512)]),
                // The bytes of an aligned GiB, but in the wrong order.
                true => (
                    BLOCK * PAGE,
                    vec![(GIANT_BLOCK + 256, 256), (GIANT_BLOCK, 256)],
                ),
            };
            return Op::Create {
                device,
                align,
                parts,
            };
        }
        let part = |random: &mut Random| {
            let blocks = random.between(1, 8);
            (random.below(SMALL_BLOCKS - blocks + 1), blocks)
        };
        let mut parts = vec![part(&mut self.random)];
        if self.random.chance(40) {
            let other = part(&mut self.random);
            let (first, blocks) = parts[0];
            if other.0 >= first + blocks || first >= other.0 + other.1 {
                parts.push(other);
            }
        }
        let align = match self.random.chance(50) {
            true => PAGE,
            false => BLOCK * PAGE,
        };
        Op::Create {
            device,
            align,
            parts,
        }
    }

    fn open(&mut self, who: usize) -> Option<Op> {
        let there = |device: &usize| self.model.devices[*device].is_some();
        let mut devices: Vec<usize> = (0..DEVICES).filter(there).collect();
        if self.random.chance(90) {
            devices.retain(|device| self.model.bound(*device).is_some());
        }
        let device = *self.random.pick(&devices)?;
        let used = self.files(who);
        let file = (0..FILES).find(|file| !used.contains(file))?;
        Some(Op::Open {
            who,
            file,
            device,
            writable: self.random.chance(80),
            nonblock: self.random.chance(20),
        })
    }

    /// Whether the device behind a file was unbound.
    fn is_dead(&self, number: usize) -> bool {
        let binding = self.model.binding_of(number);
        binding.is_some_and(|binding| !binding.live)
    }

    /// Files that lead nowhere go first: they hold memory back, and nothing happens in their mappings.
    fn close(&mut self, who: usize) -> Option<Op> {
        let mut files = self.files(who);
        let process = self.model.process(who)?;
        let dead = |file: &usize| process.files[*file].is_some_and(|file| self.is_dead(file));
        let gone: Vec<usize> = files.iter().filter(|file| dead(file)).copied().collect();
        if !gone.is_empty() && self.random.chance(80) {
            files = gone;
        }
        let file = *self.random.pick(&files)?;
        Some(Op::Close { who, file })
    }

    fn unmap(&mut self, who: usize) -> Op {
        let dead = |vma: &&Vma| self.is_dead(vma.file);
        let gone: Vec<Span> = self.vmas(who).iter().filter(dead).map(Vma::span).collect();
        let span = match self.random.pick(&gone) {
            Some(span) if self.random.chance(50) => *span,
            _ => self.span(who),
        };
        Op::Unmap { who, span }
    }

    // ---- places ----

    fn prot(&mut self) -> Prot {
        let (read, write) = match self.random.weighted(&[60, 25, 5, 10]) {
            0 => (true, true),
            1 => (true, false),
            2 => (false, true),
            _ => (false, false),
        };
        Prot { read, write }
    }

    fn map(&mut self, who: usize) -> Option<Op> {
        let file = *self.random.pick(&self.files(who))?;
        let number = self.model.process(who)?.files[file]?;
        let open = *self.model.files.get(number)?;
        let parts = self.model.binding_of(number)?.parts.clone();
        if self.is_dead(number) && self.random.chance(85) {
            return None;
        }
        let size = pages(&parts);
        let giant = is_giant(&parts);
        let (mut offset, mut length) = (0, size);
        if giant {
            match self.random.weighted(&[40, 30, 30]) {
                0 => {}
                // Everything but a bit at one or both ends.
                1 => {
                    offset = self.random.between(0, 2 * BLOCK);
                    length = size - offset - self.random.between(0, 2 * BLOCK);
                }
                _ => {
                    let block = *self.random.pick(&hot_blocks(&parts))?;
                    offset = block * BLOCK + self.random.below(BLOCK);
                    length = self.length((size - offset).min(6 * BLOCK));
                }
            }
        } else {
            if self.random.chance(60) {
                offset = self.random.below(size);
            }
            if self.random.chance(75) {
                length = self.length(size - offset);
            }
        }
        if self.random.chance(4) {
            // Beyond the end.
            offset = size - length + self.random.between(1, 4);
        }
        let wide = length > DENSE / 2;
        let first = physical(&parts, offset.min(size - 1))?;
        let at = self.place(wide, length, first);
        let writable = open.writable || self.random.chance(5);
        let mut prot = self.prot();
        prot.write &= writable;
        Some(Op::Map {
            who,
            file,
            span: Span { at, pages: length },
            offset,
            prot,
            place: match self.random.weighted(&[74, 10, 14, 2]) {
                0 => Place::Fixed,
                1 => Place::Free,
                2 => Place::Chosen,
                _ => Place::Private,
            },
        })
    }

    fn remap(&mut self, who: usize) -> Option<Op> {
        let mut span = self.span(who);
        let vma = self.model.process(who)?.space.find(span.at).copied();
        if let Some(vma) = vma.filter(|_| self.random.chance(85)) {
            span.pages = span.pages.min(vma.end - span.at);
        }
        let pages = match self.random.weighted(&[75, 15, 8, 2]) {
            0 => span.pages,
            1 => self.random.between(1, span.pages),
            2 => span.pages + self.random.between(1, BLOCK),
            _ => 0,
        };
        let mut to = None;
        if self.random.chance(85) && pages > 0 {
            let physical = vma.and_then(|vma| {
                let parts = &self.model.binding_of(vma.file)?.parts;
                physical(parts, vma.offset_of(span.at))
            });
            let wide = pages > DENSE / 2;
            to = Some(self.place(wide, pages, physical.unwrap_or(0)));
        }
        Some(Op::Remap {
            who,
            span,
            pages,
            to,
            may_move: self.random.chance(97),
            dont_unmap: self.random.chance(3),
        })
    }

    fn advice(&mut self) -> i32 {
        // Every number with a meaning, and one without.
        let any = [
            0, 1, 2, 3, 4, 8, 9, 11, 12, 13, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 100, 101, 102,
            103, 77,
        ];
        match self.random.weighted(&[35, 25, 4, 36]) {
            0 => libc::MADV_NOHUGEPAGE,
            1 => libc::MADV_HUGEPAGE,
            2 => libc::MADV_DONTFORK,
            _ => self.random.pick(&any).copied().unwrap_or(0),
        }
    }

    // ---- accesses ----

    fn touch(&mut self, who: usize) -> Touch {
        Touch {
            page: self.page(who),
            slot: self.random.below(SLOTS.len() as u64) as usize,
            write: self.random.chance(45).then(|| self.word()),
        }
    }

    /// A run of bytes for a tracer: within a page, across a boundary, over several.
    fn bytes(&mut self, who: usize) -> (u64, u64) {
        let page = self.page(who);
        let byte = page * PAGE;
        let (at, bytes) = match self.random.weighted(&[25, 40, 20, 15]) {
            0 => (byte + 8 * self.random.below(512), 8),
            1 => (byte + PAGE - 8, 16),
            2 => (byte, PAGE * self.random.between(1, 3)),
            _ => (byte + PAGE - 8, PAGE + 16),
        };
        (at, bytes.min(ARENA_PAGES * PAGE - at))
    }
}

/// Whether a device's blocks lie in the window.
#[cfg(test)]
fn lies_in_window(device: &super::model::Device) -> bool {
    let inside = |(block, blocks): &(u64, u64)| block + blocks <= WINDOW_BLOCKS;
    device.parts.iter().all(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_list_and_every_kind_of_operation() {
        let ops = operations(7, 8000, true);
        assert_eq!(ops, operations(7, 8000, true));
        assert_ne!(ops, operations(8, 8000, true));
        let mut kinds: Vec<String> = ops
            .iter()
            .map(|op| {
                format!("{op:?}")
                    .split([' ', '{'])
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        kinds.sort();
        kinds.dedup();
        assert_eq!(kinds.len(), 25, "{kinds:?}");
    }

    #[test]
    fn what_is_generated_stays_in_arena_and_window_and_often_succeeds() {
        let mut model = Model::new(true);
        let (mut worked, mut calls) = (0, 0);
        for op in operations(3, 6000, true) {
            assert!(model.applies(&op), "{op:?}");
            if let Op::Map { span, .. } | Op::Unmap { span, .. } = &op {
                assert!(span.pages > 0 && span.end() <= ARENA_PAGES, "{op:?}");
            }
            if let Op::Race { touches, .. } = &op {
                assert!(!touches.is_empty());
            }
            let expected = model.apply(&op);
            assert!(model.devices.iter().flatten().all(lies_in_window));
            if let Op::Map { .. } | Op::Remap { .. } | Op::Protect { .. } = op {
                calls += 1;
                worked += u32::from(expected.steps[0] == super::super::op::Want::DONE);
            }
        }
        assert!(worked * 10 > calls * 6, "{worked} of {calls} succeed");
    }
}
