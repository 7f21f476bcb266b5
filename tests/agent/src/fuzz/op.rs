// SPDX-License-Identifier: GPL-2.0
//! Operations, what they are expected to show, and what they showed.
//!
//! An operation is concrete: it names processes, files, devices and pages by number, and means something
//! whatever came before it. So any part of a list of operations is a list of operations, and a failing list can
//! be shortened by leaving some out.

use std::fmt;

use crate::scrub::Policy;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Pages of a 2 MiB block.
pub const BLOCK: u64 = 512;
/// Pages of 1 GiB.
pub const GIANT: u64 = BLOCK * 512;

/// First byte of the arena, the part of every process's address space that the operations use. Nothing else ever
/// lies there, and it begins on a 1 GiB boundary.
pub const ARENA: u64 = 0x2000_0000_0000;
/// Pages of the arena in which small mappings are made, densely.
pub const DENSE: u64 = 48 * BLOCK;
/// First page of the part for mappings that can have 1 GiB leaves.
pub const WIDE: u64 = GIANT;
/// Pages of the arena.
pub const ARENA_PAGES: u64 = 5 * GIANT;

/// Processes: 0 is the one that begins, the others are forked.
pub const PROCESSES: usize = 4;
/// Descriptors of a process.
pub const FILES: usize = 6;
/// Devices there may be at a time.
pub const DEVICES: usize = 4;
/// Bytes of a page that are written and checked: the first and the last word.
pub const SLOTS: [u64; 2] = [0, PAGE - 8];

/// A word that is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// Page of the arena.
    pub page: u64,
    /// Index into [`SLOTS`].
    pub slot: usize,
    /// What is written; `None`: the word is read.
    pub write: Option<u64>,
}

/// How a mapping comes to its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// MAP_FIXED: over whatever is there.
    Fixed,
    /// MAP_FIXED_NOREPLACE: only where nothing is.
    Free,
    /// Where the kernel likes, and moved to its address by mremap.
    Chosen,
    /// MAP_FIXED, but MAP_PRIVATE.
    Private,
}

/// PROT_… of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prot {
    /// PROT_READ.
    pub read: bool,
    /// PROT_WRITE.
    pub write: bool,
}

impl Prot {
    /// As mmap wants it.
    pub fn bits(self) -> i32 {
        let bit = |set, bit| if set { bit } else { libc::PROT_NONE };
        bit(self.read, libc::PROT_READ) | bit(self.write, libc::PROT_WRITE)
    }

    /// Whether the processor may read: x86 has no memory that can be written only.
    pub fn can_read(self) -> bool {
        self.read || self.write
    }
}

/// mlock and its kin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// mlock.
    Now,
    /// mlock2 with MLOCK_ONFAULT.
    OnFault,
    /// munlock.
    Undo,
}

/// Things to look at that must not change anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// /proc/self/maps, compared with the model.
    Maps,
    /// /proc/self/smaps, whose flags are compared with the model.
    Smaps,
    /// /proc/self/pagemap of a range.
    Pagemap,
    /// mincore of a range.
    Mincore,
    /// /proc/self/numa_maps.
    NumaMaps,
}

/// Calls that hit known holes of the stock kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hole {
    /// mbind with MPOL_MF_STRICT.
    Strict,
    /// mbind with MPOL_MF_STRICT and MPOL_MF_MOVE.
    StrictMove,
}

/// A range of the arena, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First page.
    pub at: u64,
    /// Number of pages.
    pub pages: u64,
}

impl Span {
    /// First page behind it.
    pub fn end(self) -> u64 {
        self.at + self.pages
    }

    /// Address of its first byte.
    pub fn address(self) -> u64 {
        address(self.at)
    }

    /// Length in bytes.
    pub fn bytes(self) -> u64 {
        self.pages * PAGE
    }

    /// Whether the two share a page.
    pub fn overlaps(self, other: Span) -> bool {
        self.at < other.end() && other.at < self.end()
    }
}

/// Address of a page of the arena.
pub fn address(page: u64) -> u64 {
    ARENA + page * PAGE
}

/// An operation. `who` is the process that does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Makes a device, unbound; parts are (first 2 MiB block of the window, blocks).
    Create {
        device: usize,
        align: u64,
        parts: Vec<(u64, u64)>,
    },
    /// Binds it.
    Bind { device: usize, policy: Policy },
    /// Unbinds it, whoever uses it.
    Unbind { device: usize },
    /// Removes an unbound device.
    Destroy { device: usize },
    /// Writes a different word into each slot of the device's hot blocks.
    Stamp { device: usize, version: u64 },
    /// Reads all slots of the hot blocks.
    Sweep { device: usize },

    /// Opens a device.
    Open {
        who: usize,
        file: usize,
        device: usize,
        writable: bool,
        nonblock: bool,
    },
    /// Closes a descriptor.
    Close { who: usize, file: usize },

    /// mmap.
    Map {
        who: usize,
        file: usize,
        span: Span,
        offset: u64,
        prot: Prot,
        place: Place,
    },
    /// munmap.
    Unmap { who: usize, span: Span },
    /// mprotect.
    Protect { who: usize, span: Span, prot: Prot },
    /// mremap.
    Remap {
        who: usize,
        span: Span,
        pages: u64,
        to: Option<u64>,
        may_move: bool,
        dont_unmap: bool,
    },
    /// madvise.
    Advise { who: usize, span: Span, advice: i32 },
    /// mlock, mlock2, munlock.
    Lock { who: usize, span: Span, lock: Lock },
    /// msync.
    Sync { who: usize, span: Span, wait: bool },

    /// Reads and writes, one after the other.
    Touch { who: usize, touches: Vec<Touch> },
    /// Reads and writes of several threads at once.
    Threads {
        who: usize,
        threads: Vec<Vec<Touch>>,
    },
    /// Threads that touch while an operation of the same process is under way. They write only what is there.
    Race { op: Box<Op>, touches: Vec<Touch> },

    /// fork of `who`; the child becomes process `child`.
    Fork { who: usize, child: usize },
    /// exit.
    Exit { who: usize },

    /// Process 0 reads another's memory, or its own: (byte of the arena, bytes).
    Peek { who: usize, at: u64, bytes: u64 },
    /// Process 0 writes another's memory, or its own.
    Poke {
        who: usize,
        at: u64,
        bytes: u64,
        seed: u64,
    },
    /// A word by PTRACE_PEEKDATA, or PTRACE_POKEDATA if there is something to write.
    Trace { who: usize, touch: Touch },

    /// Looks.
    Look { who: usize, span: Span, look: Look },
    /// Calls the stock kernel cannot stand.
    Hole { who: usize, span: Span, hole: Hole },
}

/// What one step of an operation showed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It worked and has no value.
    Done,
    /// The word that was read.
    Word(u64),
    /// A count, a length, an address.
    Number(u64),
    /// A signal and its code.
    Fault(i32, i32),
    /// An error number.
    Errno(i32),
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Seen::Done => write!(f, "success"),
            Seen::Word(word) => write!(f, "the word {word:#x}"),
            Seen::Number(number) => write!(f, "the number {number:#x}"),
            Seen::Fault(libc::SIGBUS, code) => write!(f, "SIGBUS with code {code}"),
            Seen::Fault(libc::SIGSEGV, code) => write!(f, "SIGSEGV with code {code}"),
            Seen::Fault(signal, code) => write!(f, "signal {signal} with code {code}"),
            Seen::Errno(errno) => write!(f, "{}", std::io::Error::from_raw_os_error(errno)),
        }
    }
}

/// What one step is expected to show.
#[derive(Clone, PartialEq, Eq)]
pub enum Want {
    /// Exactly this.
    Is(Seen),
    /// A word, whatever is in it.
    AnyWord,
    /// A number, whatever it is.
    AnyNumber,
    /// One of several.
    Either(Vec<Want>),
}

impl fmt::Debug for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Want::Is(seen) => write!(f, "{seen:?}"),
            Want::AnyWord => write!(f, "any word"),
            Want::AnyNumber => write!(f, "any number"),
            Want::Either(wants) => write!(f, "one of {wants:?}"),
        }
    }
}

impl Want {
    /// Success.
    pub const DONE: Want = Want::Is(Seen::Done);

    /// One of these error numbers.
    pub fn refused(errnos: &[i32]) -> Want {
        Want::Either(
            errnos
                .iter()
                .map(|errno| Want::Is(Seen::Errno(*errno)))
                .collect(),
        )
    }

    /// Success or an error number.
    pub fn result(result: Result<(), i32>) -> Want {
        match result {
            Ok(()) => Want::DONE,
            Err(errno) => Want::Is(Seen::Errno(errno)),
        }
    }

    /// This or that.
    pub fn or(self, other: Want) -> Want {
        if self == other {
            self
        } else {
            Want::Either(vec![self, other])
        }
    }

    /// Whether that is what was seen.
    pub fn allows(&self, seen: Seen) -> bool {
        match self {
            Want::Is(wanted) => *wanted == seen,
            Want::AnyWord => matches!(seen, Seen::Word(_)),
            Want::AnyNumber => matches!(seen, Seen::Number(_)),
            Want::Either(wants) => wants.iter().any(|want| want.allows(seen)),
        }
    }
}

/// A VMA as /proc shows it: first page, first page behind, offset in pages, [`FLAG_READ`] and the others.
pub type Shown = [u64; 4];
/// Readable.
pub const FLAG_READ: u64 = 1;
/// Writable.
pub const FLAG_WRITE: u64 = 2;
/// MADV_DONTFORK.
pub const FLAG_DONTFORK: u64 = 4;
/// MADV_NOHUGEPAGE.
pub const FLAG_NOHUGEPAGE: u64 = 8;
/// MADV_HUGEPAGE.
pub const FLAG_HUGEPAGE: u64 = 16;

/// What an operation is expected to show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// Step by step.
    pub steps: Vec<Want>,
    /// The VMAs in the arena, of an operation that lists them.
    pub shown: Option<Vec<Shown>>,
}

/// What an operation showed: for each step what was seen, several times perhaps; and the VMAs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// (Step, what it showed).
    pub steps: Vec<(usize, Seen)>,
    /// VMAs in the arena.
    pub shown: Vec<Shown>,
}

impl Observed {
    /// An operation of one step.
    pub fn one(seen: Seen) -> Self {
        Observed {
            steps: vec![(0, seen)],
            shown: Vec::new(),
        }
    }

    /// Adds the next step.
    pub fn push(&mut self, seen: Seen) {
        let step = self.steps.last().map_or(0, |(step, _)| step + 1);
        self.steps.push((step, seen));
    }
}

impl Expected {
    /// An operation of one step.
    pub fn one(want: Want) -> Self {
        Expected {
            steps: vec![want],
            shown: None,
        }
    }

    /// The first difference, in words.
    pub fn difference(&self, observed: &Observed) -> Option<String> {
        for (step, seen) in &observed.steps {
            match self.steps.get(*step) {
                Some(want) if want.allows(*seen) => {}
                Some(want) => {
                    return Some(format!("step {step} showed {seen:?}, expected {want:?}"))
                }
                None => {
                    return Some(format!(
                        "step {step} showed {seen:?}, expected no such step"
                    ))
                }
            }
        }
        let mut shown = vec![false; self.steps.len()];
        for (step, _) in &observed.steps {
            shown[*step] = true;
        }
        if let Some(step) = shown.iter().position(|shown| !shown) {
            return Some(format!("step {step} showed nothing"));
        }
        let wanted = self.shown.as_ref()?;
        let index = (0..wanted.len().max(observed.shown.len()))
            .find(|index| wanted.get(*index) != observed.shown.get(*index))?;
        Some(format!(
            "VMA {index} of the arena (first page, end, offset, flags) is {:x?}, expected {:x?}",
            observed.shown.get(index),
            wanted.get(index)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found_in_every_part() {
        let expected = Expected {
            steps: vec![
                Want::DONE,
                Want::Is(Seen::Word(1)).or(Want::Is(Seen::Errno(5))),
            ],
            shown: Some(vec![[0, 1, 0, FLAG_READ]]),
        };
        let mut observed = Observed {
            steps: vec![(0, Seen::Done), (1, Seen::Word(1)), (1, Seen::Errno(5))],
            shown: vec![[0, 1, 0, FLAG_READ]],
        };
        assert_eq!(expected.difference(&observed), None);
        observed.shown.push([4, 5, 0, 0]);
        assert!(expected.difference(&observed).unwrap().contains("VMA 1"));
        observed.steps.truncate(1);
        assert!(expected
            .difference(&observed)
            .unwrap()
            .contains("step 1 showed nothing"));
        observed.steps.push((1, Seen::Word(2)));
        assert!(expected.difference(&observed).is_some());
    }
}
