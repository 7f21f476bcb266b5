// SPDX-License-Identifier: GPL-2.0
//! The model: what every operation has to show, and what is true afterwards.
//!
//! Pure: it runs before the operation does, and on the host as well. Nothing in it is copied from the driver; it
//! follows from the documentation and from what the kernel does to any memory without struct page.

use super::memory::{Cell, Memory};
use crate::scrub::Policy;

use super::op::{
    self, Expected, Look, Op, Place, Prot, Seen, Span, Touch, Want, BLOCK, DEVICES, FILES, GIANT,
    PROCESSES, SLOTS,
};
use super::space::{Flags, Remap, Space, Vma};

mod bindings;
#[cfg(test)]
mod tests;
mod threads;
mod tracer;

pub use tracer::{poked, words_in};

const BUS_ADRERR: i32 = 2;
const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;

/// A device that exists.
#[derive(Debug, Clone)]
pub struct Device {
    /// (First block of the window, blocks), in order of device offset.
    pub parts: Vec<(u64, u64)>,
    /// Index of the live binding.
    pub binding: Option<usize>,
}

/// One binding of a device, from bind until nobody can reach the memory any more.
#[derive(Debug, Clone)]
pub struct Binding {
    /// The device's ranges at that time.
    pub parts: Vec<(u64, u64)>,
    /// What is done at its end.
    policy: Policy,
    /// Opened at least once, so that it was scrubbed to the end before.
    opened: bool,
    /// Not unbound yet.
    pub live: bool,
    /// Unbound, and the last user is gone.
    over: bool,
}

/// An open file description.
#[derive(Debug, Clone, Copy)]
pub struct File {
    /// Index of the binding it was opened on.
    pub binding: usize,
    /// Opened for writing.
    pub writable: bool,
}

/// A process.
#[derive(Debug, Clone, Default)]
pub struct Process {
    /// Open files by descriptor.
    pub files: [Option<usize>; FILES],
    /// VMAs.
    pub space: Space,
}

/// The model of everything.
#[derive(Debug, Clone)]
pub struct Model {
    /// Calls that the stock kernel cannot stand are made, too.
    pub holes: bool,
    /// By number.
    pub processes: [Option<Process>; PROCESSES],
    /// By number.
    pub devices: [Option<Device>; DEVICES],
    /// All bindings there ever were.
    pub bindings: Vec<Binding>,
    /// All files that were ever opened.
    pub files: Vec<File>,
    /// The bytes.
    pub memory: Memory,
}

/// Where a device offset lies: physical page counted from the window's start.
pub fn physical(parts: &[(u64, u64)], offset: u64) -> Option<u64> {
    let mut first = 0;
    for (block, blocks) in parts {
        let pages = blocks * BLOCK;
        if offset < first + pages {
            return Some(block * BLOCK + (offset - first));
        }
        first += pages;
    }
    None
}

/// Pages of a device.
pub fn pages(parts: &[(u64, u64)]) -> u64 {
    parts.iter().map(|(_, blocks)| blocks * BLOCK).sum()
}

/// The blocks of a device, by device offset, whose words are written and checked: all of a small one, a few of a
/// large one, as the host has to have what is touched.
pub fn hot_blocks(parts: &[(u64, u64)]) -> Vec<u64> {
    let blocks = pages(parts) / BLOCK;
    if blocks <= 64 {
        return (0..blocks).collect();
    }
    let half = blocks / 2;
    vec![0, 1, half - 1, half, half + 1, blocks - 2, blocks - 1]
}

fn share_blocks(a: &[(u64, u64)], b: &[(u64, u64)]) -> bool {
    a.iter()
        .any(|(x, n)| b.iter().any(|(y, m)| x < &(y + m) && y < &(x + n)))
}

/// What an access finds.
enum Access {
    Word(Cell),
    Fault(i32, i32),
}

impl Model {
    /// One process, no device, nothing known of the memory.
    pub fn new(holes: bool) -> Self {
        let mut processes = [const { None }; PROCESSES];
        processes[0] = Some(Process::default());
        Model {
            holes,
            processes,
            devices: [const { None }; DEVICES],
            bindings: Vec::new(),
            files: Vec::new(),
            memory: Memory::default(),
        }
    }

    /// A process that is there.
    pub fn process(&self, who: usize) -> Option<&Process> {
        self.processes.get(who)?.as_ref()
    }

    fn space(&mut self, who: usize) -> Option<&mut Space> {
        Some(&mut self.processes.get_mut(who)?.as_mut()?.space)
    }

    /// The device's binding, if it is bound.
    pub fn bound(&self, device: usize) -> Option<&Binding> {
        let device = self.devices.get(device)?.as_ref()?;
        self.bindings.get(device.binding?)
    }

    /// The binding behind a file.
    pub fn binding_of(&self, file: usize) -> Option<&Binding> {
        self.bindings.get(self.files.get(file)?.binding)
    }

    fn access(&self, who: usize, page: u64, write: bool) -> Option<Access> {
        let Some(vma) = self.process(who)?.space.find(page) else {
            return Some(Access::Fault(libc::SIGSEGV, SEGV_MAPERR));
        };
        let allowed = if write {
            vma.prot.write
        } else {
            vma.prot.can_read()
        };
        if !allowed {
            return Some(Access::Fault(libc::SIGSEGV, SEGV_ACCERR));
        }
        let binding = self.binding_of(vma.file)?;
        if !binding.live {
            return Some(Access::Fault(libc::SIGBUS, BUS_ADRERR));
        }
        let page = physical(&binding.parts, vma.offset_of(page))?;
        Some(Access::Word(Cell { page, slot: 0 }))
    }

    /// The physical word a touch would reach.
    pub fn cell(&self, who: usize, touch: Touch) -> Option<Cell> {
        match self.access(who, touch.page, touch.write.is_some())? {
            Access::Word(cell) => Some(Cell {
                slot: touch.slot,
                ..cell
            }),
            Access::Fault(..) => None,
        }
    }

    fn known(&self, cell: Cell) -> Want {
        match self.memory.word(cell) {
            Some(word) => Want::Is(Seen::Word(word)),
            None => Want::AnyWord,
        }
    }

    /// What a touch shows now; nothing changes.
    fn glance(&self, who: usize, touch: Touch) -> Want {
        match self.access(who, touch.page, touch.write.is_some()) {
            Some(Access::Fault(signal, code)) => Want::Is(Seen::Fault(signal, code)),
            Some(Access::Word(_)) if touch.write.is_some() => Want::DONE,
            Some(Access::Word(cell)) => self.known(Cell {
                slot: touch.slot,
                ..cell
            }),
            None => Want::AnyWord,
        }
    }

    fn touch(&mut self, who: usize, touch: Touch) -> Want {
        let want = self.glance(who, touch);
        if let (Some(cell), Some(word)) = (self.cell(who, touch), touch.write) {
            self.memory.write(cell, Some(word));
        }
        want
    }

    /// Whether the operation means something now. One that does not is left out.
    pub fn applies(&self, op: &Op) -> bool {
        let is_file = |who: usize, file: usize| {
            let process = self.process(who);
            process.is_some_and(|process| matches!(process.files.get(file), Some(Some(_))))
        };
        match op {
            Op::Create { device, parts, .. } => {
                let taken = |other: &Option<Device>| {
                    other
                        .as_ref()
                        .is_some_and(|other| share_blocks(&other.parts, parts))
                };
                matches!(self.devices.get(*device), Some(None)) && !self.devices.iter().any(taken)
            }
            Op::Bind { device, .. } | Op::Destroy { device } => {
                let device = self.devices.get(*device).and_then(Option::as_ref);
                device.is_some_and(|device| device.binding.is_none())
            }
            Op::Unbind { device } | Op::Stamp { device, .. } | Op::Sweep { device } => {
                self.bound(*device).is_some()
            }
            Op::Open {
                who, file, device, ..
            } => {
                let free = self
                    .process(*who)
                    .is_some_and(|process| matches!(process.files.get(*file), Some(None)));
                free && matches!(self.devices.get(*device), Some(Some(_)))
            }
            Op::Close { who, file } | Op::Map { who, file, .. } => is_file(*who, *file),
            Op::Race { op, .. } => {
                matches!(
                    **op,
                    Op::Map { who: 0, .. }
                        | Op::Unmap { who: 0, .. }
                        | Op::Protect { who: 0, .. }
                        | Op::Remap { who: 0, .. }
                        | Op::Advise { who: 0, .. }
                        | Op::Unbind { .. }
                ) && self.applies(op)
            }
            Op::Fork { who, child } => {
                self.process(*who).is_some() && matches!(self.processes.get(*child), Some(None))
            }
            Op::Exit { who } => *who != 0 && self.process(*who).is_some(),
            Op::Trace { who, .. } => *who != 0 && self.process(*who).is_some(),
            Op::Hole { who, .. } => self.holes && self.process(*who).is_some(),
            Op::Unmap { who, .. }
            | Op::Protect { who, .. }
            | Op::Remap { who, .. }
            | Op::Advise { who, .. }
            | Op::Lock { who, .. }
            | Op::Sync { who, .. }
            | Op::Touch { who, .. }
            | Op::Threads { who, .. }
            | Op::Peek { who, .. }
            | Op::Poke { who, .. }
            | Op::Look { who, .. } => self.process(*who).is_some(),
        }
    }

    /// What the operation, which applies, has to show; the model is that of the time after it.
    pub fn apply(&mut self, op: &Op) -> Expected {
        let expected = self.try_apply(op).unwrap_or_default();
        self.end_bindings();
        expected
    }

    fn try_apply(&mut self, op: &Op) -> Option<Expected> {
        match *op {
            Op::Create {
                device, ref parts, ..
            } => {
                *self.devices.get_mut(device)? = Some(Device {
                    parts: parts.clone(),
                    binding: None,
                });
                Some(Expected::one(Want::DONE))
            }
            Op::Bind { device, policy } => self.bind(device, policy),
            Op::Unbind { device } => {
                let binding = self.devices.get_mut(device)?.as_mut()?.binding.take()?;
                self.unbind(binding)
            }
            Op::Destroy { device } => {
                *self.devices.get_mut(device)? = None;
                Some(Expected::one(Want::DONE))
            }
            Op::Stamp { device, version } => {
                let binding = self.opened(device)?;
                let parts = self.bindings.get(binding)?.parts.clone();
                for block in hot_blocks(&parts) {
                    let page = physical(&parts, block * BLOCK)?;
                    self.memory.stamp(page / BLOCK, version);
                }
                Some(Expected::one(Want::DONE))
            }
            Op::Sweep { device } => self.sweep(device),
            Op::Open {
                who,
                file,
                device,
                writable,
                ..
            } => self.open(who, file, device, writable),
            Op::Close { who, file } => {
                *self.processes.get_mut(who)?.as_mut()?.files.get_mut(file)? = None;
                Some(Expected::one(Want::DONE))
            }
            Op::Map {
                who,
                file,
                span,
                offset,
                prot,
                place,
            } => self.map(who, file, span, offset, prot, place),
            Op::Unmap { who, span } => {
                self.space(who)?.unmap(span);
                Some(Expected::one(Want::DONE))
            }
            Op::Protect { who, span, prot } => {
                let result = self.space(who)?.protect(span, prot);
                Some(Expected::one(Want::result(result)))
            }
            Op::Remap {
                who,
                span,
                pages,
                to,
                may_move,
                dont_unmap,
            } => {
                let call = Remap {
                    span,
                    pages,
                    to,
                    may_move,
                    dont_unmap,
                };
                let result = self.space(who)?.remap(call);
                Some(Expected::one(Want::result(result)))
            }
            Op::Advise { who, span, advice } => {
                let result = self.space(who)?.advise(span, advice);
                Some(Expected::one(match result {
                    Ok(()) => Want::DONE,
                    Err(errnos) => Want::refused(errnos),
                }))
            }
            Op::Lock { who, span, .. } => {
                let result = self.space(who)?.lock(span);
                Some(Expected::one(Want::result(result)))
            }
            Op::Sync { who, span, wait } => {
                let result = self.space(who)?.sync(span, wait);
                Some(Expected::one(Want::result(result)))
            }
            Op::Touch { who, ref touches } => Some(Expected {
                steps: touches
                    .iter()
                    .map(|touch| self.touch(who, *touch))
                    .collect(),
                shown: None,
            }),
            Op::Threads { who, ref threads } => Some(self.threads(who, threads)),
            Op::Race {
                ref op,
                ref touches,
            } => self.race(op, touches),
            Op::Fork { who, child } => {
                let parent = self.process(who)?;
                let process = Process {
                    files: parent.files,
                    space: parent.space.forked(),
                };
                *self.processes.get_mut(child)? = Some(process);
                Some(Expected::one(Want::DONE))
            }
            Op::Exit { who } => {
                *self.processes.get_mut(who)? = None;
                Some(Expected::one(Want::DONE))
            }
            Op::Peek { who, at, bytes } => Some(self.peek(who, at, bytes)),
            Op::Poke {
                who,
                at,
                bytes,
                seed,
            } => Some(self.poke(who, at, bytes, seed)),
            Op::Trace { who, touch } => Some(Expected::one(self.trace(who, touch))),
            Op::Look { who, look, .. } => {
                let space = &self.process(who)?.space;
                let shown = match look {
                    Look::Maps => Some(space.shown(op::FLAG_READ | op::FLAG_WRITE)),
                    Look::Smaps => Some(space.shown(u64::MAX)),
                    Look::Pagemap | Look::Mincore | Look::NumaMaps => None,
                };
                let steps = Vec::new();
                Some(Expected { steps, shown })
            }
            // The default policy, which all memory has: nothing to change, nothing to misplace or move.
            Op::Hole { .. } => Some(Expected::one(
                Want::DONE.or(Want::refused(&[libc::EIO, libc::EFAULT])),
            )),
        }
    }

    fn sweep(&mut self, device: usize) -> Option<Expected> {
        let binding = self.opened(device)?;
        let parts = &self.bindings.get(binding)?.parts;
        let mut steps = Vec::new();
        for block in hot_blocks(parts) {
            let first = physical(parts, block * BLOCK)?;
            for page in first..first + BLOCK {
                for slot in 0..SLOTS.len() {
                    steps.push(self.known(Cell { page, slot }));
                }
            }
        }
        Some(Expected { steps, shown: None })
    }

    fn open(&mut self, who: usize, file: usize, device: usize, writable: bool) -> Option<Expected> {
        let Some(binding) = self.opened(device) else {
            return Some(Expected::one(Want::Is(Seen::Errno(libc::ENXIO))));
        };
        self.files.push(File { binding, writable });
        let number = self.files.len() - 1;
        *self.processes.get_mut(who)?.as_mut()?.files.get_mut(file)? = Some(number);
        Some(Expected::one(Want::DONE))
    }

    /// What the mmap call gives: the first check that does not pass, in the kernel's order.
    fn map_result(
        &self,
        space: &Space,
        file: File,
        (span, offset): (Span, u64),
        prot: Prot,
        place: Place,
    ) -> Result<(), i32> {
        let binding = self.bindings.get(file.binding).ok_or(libc::EBADF)?;
        if place == Place::Free && space.is_used(span) {
            return Err(libc::EEXIST);
        }
        if place != Place::Private && prot.write && !file.writable {
            return Err(libc::EACCES);
        }
        if !binding.live {
            return Err(libc::ENXIO);
        }
        if place == Place::Private || offset + span.pages > pages(&binding.parts) {
            return Err(libc::EINVAL);
        }
        Ok(())
    }

    fn map(
        &mut self,
        who: usize,
        file: usize,
        span: Span,
        offset: u64,
        prot: Prot,
        place: Place,
    ) -> Option<Expected> {
        let process = self.process(who)?;
        let number = (*process.files.get(file)?)?;
        let open = *self.files.get(number)?;
        let result = self.map_result(&process.space, open, (span, offset), prot, place);
        let fixed = matches!(place, Place::Fixed | Place::Private);
        // The driver is asked when the old mapping is gone already.
        let clears = match result {
            Ok(()) => true,
            Err(errno) => fixed && errno != libc::EACCES,
        };
        let space = self.space(who)?;
        if clears {
            space.unmap(span);
        }
        if let Err(errno) = result {
            return Some(Expected::one(Want::Is(Seen::Errno(errno))));
        }
        space.insert(Vma {
            start: span.at,
            end: span.end(),
            file: number,
            may_write: open.writable,
            offset,
            prot,
            flags: Flags::default(),
        });
        let mut steps = vec![Want::DONE];
        if place == Place::Chosen {
            let parts = &self.bindings.get(open.binding)?.parts;
            steps.push(chosen_address(parts, span, offset));
            for page in [span.at, span.end() - 1] {
                let read = Touch {
                    page,
                    slot: 0,
                    write: None,
                };
                steps.push(self.glance(who, read));
            }
            steps.push(Want::DONE);
        }
        Some(Expected { steps, shown: None })
    }
}

/// What the address of a mapping that the kernel places is congruent to, in pages modulo 2 MiB.
fn chosen_address(parts: &[(u64, u64)], span: Span, offset: u64) -> Want {
    let [(block, _)] = parts else {
        // Ranges compete; tests of the pure logic know the winner.
        return Want::AnyNumber;
    };
    // A whole 2 MiB block of the device lies inside.
    let aligned = offset.next_multiple_of(BLOCK) + BLOCK <= offset + span.pages;
    if aligned {
        Want::Is(Seen::Number((block * BLOCK + offset) % BLOCK))
    } else {
        Want::AnyNumber
    }
}

/// Whether a device of these parts can have 1 GiB leaves.
pub fn is_giant(parts: &[(u64, u64)]) -> bool {
    pages(parts) >= GIANT
}
