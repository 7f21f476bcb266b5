// SPDX-License-Identifier: GPL-2.0
//! Page-table leaves as the QEMU monitor shows them: a view from outside the kernel under test.
//!
//! The runner walks the tables of the CPU in the VM's physical memory (tests/runner/src/walk.rs) and prints one line
//! per present leaf, in address order: virtual address, physical address, flags `XGPDACTUW` or `-` as `info tlb` has
//! them (QEMU 10, target/i386/monitor.c, print_pte; P is the page-size bit), and the size.

use std::fmt;

use crate::case::{Failure, Outcome};
use crate::device::Device;
use crate::region::{GIB, KIB, MIB};

/// One leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Virtual address.
    pub virt: u64,
    /// Physical address.
    pub phys: u64,
    /// Bytes: 4 KiB, 2 MiB or 1 GiB.
    pub size: u64,
    /// Writable.
    pub writable: bool,
    /// Cached write-back: neither PCD nor PWT. Linux's PAT has write-back for both values of the PAT bit then
    /// (arch/x86/mm/pat/memtype.c, pat_bp_init).
    pub write_back: bool,
    /// Accessed and dirty bits.
    pub accessed: bool,
    /// Dirty bit.
    pub dirty: bool,
}

/// The leaves of a window, by virtual address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaves(pub Vec<Leaf>);

/// How many leaves of each size; shown as `3×1G 1×2M 0×4K`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// 1 GiB leaves.
    pub puds: usize,
    /// 2 MiB leaves.
    pub pmds: usize,
    /// 4 KiB leaves.
    pub ptes: usize,
}

impl Census {
    /// So many leaves of 1 GiB, 2 MiB and 4 KiB.
    pub const fn new(puds: usize, pmds: usize, ptes: usize) -> Census {
        Census { puds, pmds, ptes }
    }
}

/// One look at a CPU.
pub struct View {
    /// Whether the CPU was in user mode.
    pub user_mode: bool,
    /// What was in R15.
    pub r15: u64,
    /// Bytes of all leaves of the kernel's half, where that was asked for.
    pub total: u64,
    /// The window's leaves.
    pub leaves: Leaves,
}

impl View {
    /// Parses the reply to a `tlb` or `kernel` request.
    pub fn parse(reply: &str) -> Outcome<View> {
        let mut view = View {
            user_mode: false,
            r15: 0,
            total: 0,
            leaves: Leaves::default(),
        };
        for line in reply.lines() {
            match line.split_once('=') {
                Some(("cpl", level)) => view.user_mode = level == "3",
                Some(("r15", value)) => view.r15 = u64::from_str_radix(value, 16).unwrap_or(0),
                Some(("total", value)) => view.total = u64::from_str_radix(value, 16).unwrap_or(0),
                Some(_) => {}
                None => view.leaves.0.push(Leaf::parse(line)?),
            }
        }
        Ok(view)
    }
}

impl Leaf {
    fn parse(line: &str) -> Outcome<Leaf> {
        let fields = || {
            let (virt, rest) = line.split_once(": ")?;
            let mut words = rest.split(' ');
            let phys = u64::from_str_radix(words.next()?, 16).ok()?;
            let flags = words.next()?;
            let size = match words.next()? {
                "4K" => 4 * KIB,
                "2M" => 2 * MIB,
                "1G" => GIB,
                _ => return None,
            };
            let has = |letter: char| flags.contains(letter);
            Some(Leaf {
                virt: u64::from_str_radix(virt, 16).ok()?,
                phys,
                size,
                writable: has('W'),
                write_back: !has('C') && !has('T'),
                accessed: has('A'),
                dirty: has('D'),
            })
        };
        fields().ok_or_else(|| Failure::Fail(format!("not a page-table line: '{line}'")))
    }
}

impl Leaves {
    /// How many of each size.
    pub fn census(&self) -> Census {
        let count = |size| self.0.iter().filter(|leaf| leaf.size == size).count();
        Census {
            puds: count(GIB),
            pmds: count(2 * MIB),
            ptes: count(4 * KIB),
        }
    }

    /// Bytes mapped.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|leaf| leaf.size).sum()
    }

    /// Fails unless every leaf is write-back.
    pub fn check_write_back(&self) -> Outcome {
        match self.0.iter().find(|leaf| !leaf.write_back) {
            None => Ok(()),
            Some(leaf) => Err(Failure::Fail(format!("not write-back: {leaf:x?}"))),
        }
    }

    /// Fails unless every leaf leads where sysfs says the device's byte lies; `address` is the virtual address
    /// of the device's byte `offset`.
    pub fn check_placement(&self, device: &Device, address: u64, offset: u64) -> Outcome {
        for leaf in &self.0 {
            let expected = device.physical(leaf.virt - address + offset)?;
            if leaf.phys != expected {
                return Err(Failure::Fail(format!(
                    "{}: sysfs says {expected:#x} for {leaf:x?}",
                    device.name
                )));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×1G {}×2M {}×4K", self.puds, self.pmds, self.ptes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_understood() {
        let reply = "cpl=3\ncr3=1\nr15=2a\n\
            00007f0040000000: 0000000180000000 X-PDA--UW 1G\n\
            00007f0080000000: 0000000240000000 X-P-AC-U- 2M\n";
        let view = View::parse(reply).unwrap();
        assert!(view.user_mode);
        assert_eq!(view.r15, 42);
        assert_eq!(
            view.leaves.census(),
            Census {
                puds: 1,
                pmds: 1,
                ptes: 0
            }
        );
        assert!(view.leaves.0[0].write_back && view.leaves.0[0].writable && view.leaves.0[0].dirty);
        assert!(
            !view.leaves.0[1].write_back && !view.leaves.0[1].writable && !view.leaves.0[1].dirty
        );
        assert!(view.leaves.check_write_back().is_err());
    }
}
