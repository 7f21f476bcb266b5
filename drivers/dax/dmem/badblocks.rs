// SPDX-License-Identifier: GPL-2.0

//! Poison in the form in which the kernel lists bad blocks (`block/badblocks.c`): a line a run of
//! pages, `FIRST COUNT`, in sectors of 512 bytes from the start of what is listed.
//!
//! Called by sysfs. Takes `LEDGER`.

use kernel::fmt;
use kernel::prelude::*;

use crate::device::Device;
use crate::ffi::globals::LEDGER;
use crate::plan::{Extent, PAGE_SIZE};

/// Bytes in a sector.
const SECTOR: u64 = 512;

/// The pages that are poisoned of
pub(crate) enum BadBlocks<'a> {
    /// a device: sectors of what its users map, whichever ranges it has;
    Device(&'a Device),
    /// a region: sectors of its memory, whoever has it.
    Region(Extent),
}

impl fmt::Display for BadBlocks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region(extent) => list(f, core::iter::once((0, *extent))),
            Self::Device(device) => {
                let map = device.map();
                let ranges = map.ranges().iter();
                list(f, ranges.map(|range| (range.pgoff.raw(), range.extent())))
            }
        }
    }
}

/// Lists pieces of memory, each with the number of the page that it begins with, ascending.
fn list(f: &mut fmt::Formatter<'_>, pieces: impl Iterator<Item = (u64, Extent)>) -> fmt::Result {
    let ledger = LEDGER.lock();
    let mut runs = Runs { f, last: None };
    for (page, piece) in pieces {
        for bad in ledger.within(&piece) {
            let into = bad.start.bytes_above(piece.start).unwrap_or(0);
            runs.add(
                page * (PAGE_SIZE / SECTOR) + into / SECTOR,
                bad.len / SECTOR,
            )?;
        }
    }
    runs.end()
}

/// Writes runs of sectors; those that touch, as at the border of two ranges, as one.
struct Runs<'f, 'a> {
    f: &'f mut fmt::Formatter<'a>,
    last: Option<(u64, u64)>,
}

impl Runs<'_, '_> {
    fn add(&mut self, first: u64, count: u64) -> fmt::Result {
        match &mut self.last {
            Some((start, known)) if *start + *known == first => {
                *known += count;
                Ok(())
            }
            last => match last.replace((first, count)) {
                Some(run) => write_run(self.f, run),
                None => Ok(()),
            },
        }
    }

    fn end(self) -> fmt::Result {
        match self.last {
            Some(run) => write_run(self.f, run),
            None => Ok(()),
        }
    }
}

fn write_run(f: &mut fmt::Formatter<'_>, (first, count): (u64, u64)) -> fmt::Result {
    f.write_fmt(fmt!("{} {}\n", first, count))
}
