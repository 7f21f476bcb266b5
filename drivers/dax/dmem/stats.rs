// SPDX-License-Identifier: GPL-2.0

//! What a device counts while it is bound: page faults by leaf and result, and mappings.
//!
//! The counters stand alone: no lock goes with them, and nothing is decided by them.

use kernel::fmt;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};

use crate::device::{Cleanness, Device};
use crate::fault::Answer;
use crate::plan::Leaf;

/// The counters of a device.
pub(crate) struct Stats {
    giant: Faults,
    huge: Faults,
    small: Faults,
    /// VMAs of all processes.
    mappings: Atomic<u64>,
}

/// Faults that asked for a leaf of one size, by what became of them.
struct Faults {
    mapped: Atomic<u64>,
    smaller: Atomic<u64>,
    sigbus: Atomic<u64>,
    poisoned: Atomic<u64>,
}

impl Faults {
    const fn none() -> Self {
        Self {
            mapped: Atomic::new(0),
            smaller: Atomic::new(0),
            sigbus: Atomic::new(0),
            poisoned: Atomic::new(0),
        }
    }
}

impl Stats {
    /// Of a device that nobody has used yet.
    pub(crate) const fn none() -> Self {
        Self {
            giant: Faults::none(),
            huge: Faults::none(),
            small: Faults::none(),
            mappings: Atomic::new(0),
        }
    }

    /// Counts a fault.
    #[inline]
    pub(crate) fn count_fault(&self, leaf: Leaf, answer: &Answer) {
        let faults = match leaf {
            Leaf::Pud => &self.giant,
            Leaf::Pmd => &self.huge,
            Leaf::Pte => &self.small,
        };
        let counter = match answer {
            Answer::Done => &faults.mapped,
            Answer::TrySmaller => &faults.smaller,
            Answer::Sigbus => &faults.sigbus,
            Answer::Poisoned => &faults.poisoned,
        };
        counter.add(1, Relaxed);
    }

    /// Counts one more VMA.
    pub(crate) fn add_mapping(&self) {
        self.mappings.add(1, Relaxed);
    }

    /// Counts one VMA less.
    pub(crate) fn drop_mapping(&self) {
        self.mappings.fetch_sub(1, Relaxed);
    }

    /// Number of VMAs.
    pub(crate) fn mappings(&self) -> u64 {
        self.mappings.load(Relaxed)
    }
}

/// A line for each leaf size: `SIZE mapped N smaller N sigbus N poisoned N`.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for leaf in Leaf::LARGEST_FIRST {
            let (size, faults) = match leaf {
                Leaf::Pud => ("1g", &self.giant),
                Leaf::Pmd => ("2m", &self.huge),
                Leaf::Pte => ("4k", &self.small),
            };
            f.write_fmt(fmt!(
                "{} mapped {} smaller {} sigbus {} poisoned {}\n",
                size,
                faults.mapped.load(Relaxed),
                faults.smaller.load(Relaxed),
                faults.sigbus.load(Relaxed),
                faults.poisoned.load(Relaxed),
            ))?;
        }
        Ok(())
    }
}

/// One word for what a bound device is doing.
pub(crate) fn state(device: &Device) -> &'static str {
    match device.cleanness() {
        Cleanness::Scrubbing | Cleanness::Failed => device.cleanness().name(),
        _ if device.stats().mappings() > 0 => "mapped",
        _ if device.openers() > 0 => "open",
        _ => "idle",
    }
}
