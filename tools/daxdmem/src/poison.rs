// SPDX-License-Identifier: GPL-2.0

//! Poison: pages that reported an uncorrectable error, and that no device is made of any more.
//!
//! The driver knows them while it is loaded, [`Record`] keeps them over a reboot. Each command that may brings the two
//! together, by [`sync`]: what the driver knows is written down, what is written down the driver is told. The driver is
//! asked first wherever a page comes in, and last where it goes, so that an interrupted command leaves a page poisoned
//! rather than in use.

pub mod error;
pub mod record;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;

use dmem_plan::{Leaf, PAGE_SIZE};

use crate::bus::{total, Range};
use crate::change;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::space::extent_of;
use crate::store::State;
use crate::verb::is_root;

use error::PoisonError;
use record::{Record, Seen};

/// Bytes that an error costs a device.
pub const PAGE: u64 = PAGE_SIZE;

/// Bytes that an error costs a region: the kernel cuts devices in these.
const BLOCK: u64 = Leaf::Pmd.size();

/// What the driver answers when the host has the memory for itself.
const EBUSY: i32 = 16;

/// Pages, by their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pages(BTreeSet<u64>);

impl Pages {
    /// Every page that one of the ranges has a byte of.
    pub fn of(ranges: impl IntoIterator<Item = Range>) -> Pages {
        let of_range = |range: Range| (range.start / PAGE..=range.last() / PAGE).map(|n| n * PAGE);
        Pages(ranges.into_iter().flat_map(of_range).collect())
    }

    /// Number of pages.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the page at this address is among them.
    pub fn contains(&self, page: u64) -> bool {
        self.0.contains(&page)
    }

    /// Ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().copied()
    }

    /// Those that have a byte in one of the ranges.
    pub fn within(&self, ranges: &[Range]) -> Pages {
        let inside = |range: &Range| {
            let first = range.start / PAGE * PAGE;
            let some = (range.len > 0).then(|| self.0.range(first..=range.last()));
            some.into_iter().flatten().copied()
        };
        Pages(ranges.iter().flat_map(inside).collect())
    }

    /// All of both.
    pub fn with(&self, others: &Pages) -> Pages {
        Pages(self.0.union(&others.0).copied().collect())
    }

    /// Those that are not among the others.
    pub fn without(&self, others: &Pages) -> Pages {
        Pages(self.0.difference(&others.0).copied().collect())
    }

    /// As ranges, ascending and apart.
    pub fn ranges(&self) -> Vec<Range> {
        merged(self.iter(), PAGE)
    }

    /// Bytes that nobody gets of these ranges, when nobody has them.
    pub fn cost(&self, ranges: &[Range]) -> u64 {
        let lost = total(self.within(ranges).blocks().iter());
        lost.min(total(ranges.iter()))
    }

    /// What they cost a region, as ranges.
    pub fn blocks(&self) -> Vec<Range> {
        let blocks: BTreeSet<u64> = self.iter().map(|page| page / BLOCK * BLOCK).collect();
        merged(blocks.into_iter(), BLOCK)
    }
}

impl FromIterator<u64> for Pages {
    fn from_iter<I: IntoIterator<Item = u64>>(pages: I) -> Pages {
        Pages(pages.into_iter().collect())
    }
}

impl fmt::Display for Pages {
    /// How many there are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.len() {
            1 => f.write_str("1 page"),
            count => write!(f, "{count} pages"),
        }
    }
}

/// Units that follow on each other as one range each.
fn merged(units: impl Iterator<Item = u64>, size: u64) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for start in units {
        match ranges.last_mut() {
            Some(last) if last.start + last.len == start => last.len += size,
            _ => ranges.push(Range { start, len: size }),
        }
    }
    ranges
}

/// What the driver knows; `None` where it is not loaded.
fn driver() -> Option<Pages> {
    Driver::poison().map(Pages::of)
}

/// Every page that the driver knows or the record has. Who gives memory away asks here.
pub fn known() -> Result<Pages> {
    let recorded = Record::read(Path::new(Record::FILE))?.pages();
    Ok(recorded.with(&driver().unwrap_or_default()))
}

/// What can be shown: as [`known`], without the record where it cannot be used; `None` where the caller may not know.
pub fn visible() -> Option<Pages> {
    match is_root() {
        false => None,
        true => Some(known().ok().or_else(driver).unwrap_or_default()),
    }
}

/// Brings driver and record together; what there is to tell. The caller has the lock.
///
/// # Errors
///
/// The record cannot be used: nobody may be given memory.
pub fn sync(state: &State) -> Result<Vec<String>> {
    let mut record = Record::read(Path::new(Record::FILE))?;
    let Some(known) = driver() else {
        return Ok(Vec::new());
    };
    let mut told = Vec::new();
    match note_down(&mut record, &known) {
        Ok(new) if new.is_empty() => {}
        Ok(new) => told.push(format!(
            "{new} of 4K reported uncorrectable errors: recorded, `daxdmem poison list` shows them"
        )),
        // It is kept out of use all the same.
        Err(error) => told.push(error.to_string()),
    }
    let fed = feed(&record.pages().without(&known), state)?;
    if !fed.is_empty() {
        told.push(format!(
            "dax_dmem was told of {fed} of 4K that failed before"
        ));
    }
    Ok(told)
}

/// Records what the driver knows and the record does not. The caller has the lock.
pub fn save() -> Result<()> {
    let mut record = Record::read(Path::new(Record::FILE))?;
    note_down(&mut record, &driver().unwrap_or_default())?;
    Ok(())
}

/// Adds pages to the record; those that it did not have.
fn note_down(record: &mut Record, known: &Pages) -> Result<Pages, PoisonError> {
    let new = known.without(&record.pages());
    if !new.is_empty() {
        let path = Path::new(Record::FILE);
        record.add(&new, &Seen::now());
        record
            .write(path)
            .map_err(|source| PoisonError::NotWritten {
                pages: new.clone(),
                path: path.to_owned(),
                source,
            })?;
    }
    Ok(new)
}

/// Tells the driver of those pages that are in a region now; those it did not refuse.
fn feed(missing: &Pages, state: &State) -> Result<Pages> {
    if missing.is_empty() {
        return Ok(Pages::default());
    }
    let bus = change::read()?;
    let regions: Option<Vec<Range>> = bus
        .regions
        .iter()
        .map(|region| extent_of(region, &bus, state))
        .collect();
    // A region that does not tell where it is may be anywhere.
    let inside = match regions {
        Some(regions) => missing.within(&regions),
        None => missing.clone(),
    };
    let mut told = BTreeSet::new();
    for page in inside.iter() {
        match Driver::add_poison(page) {
            Ok(()) => drop(told.insert(page)),
            // Lent to the host: it is told again when it is back.
            Err(error) if error.raw_os_error() == Some(EBUSY) => {}
            Err(error) => return Err(untold(page)(error)),
        }
    }
    let told = Pages(told);
    let left = told.without(&driver().unwrap_or_default());
    let first = left.iter().next();
    match first {
        Some(page) => Err(untold(page)(io::Error::other("it does not list it"))),
        None => Ok(told),
    }
}

fn untold(page: u64) -> impl FnOnce(io::Error) -> Error {
    Error::kernel(format!("cannot tell dax_dmem that {page:#x} is poisoned"))
}

/// Tells the driver of an error.
pub fn add(page: u64) -> Result<()> {
    match Driver::add_poison(page) {
        Err(error) if error.raw_os_error() == Some(EBUSY) => {
            Err(PoisonError::HostMemory { page }.into())
        }
        result => result.map_err(untold(page)),
    }
}

/// Takes pages out of the record.
pub fn forget(pages: &Pages) -> Result<()> {
    let path = Path::new(Record::FILE);
    let mut record = Record::read(path)?;
    record.remove(pages);
    record.write(path).map_err(|source| {
        let (pages, path) = (pages.clone(), path.to_owned());
        PoisonError::NotForgotten {
            pages,
            path,
            source,
        }
        .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> Range {
        Range { start, len }
    }

    #[test]
    fn pages_and_what_they_cost() {
        let pages = Pages::of([
            range(4 * BLOCK, PAGE),
            range(5 * BLOCK - PAGE, 2 * PAGE),
            range(9 * BLOCK + 7, 1),
        ]);
        assert_eq!((pages.len(), pages.to_string().as_str()), (4, "4 pages"));
        assert_eq!(
            pages.ranges(),
            [
                range(4 * BLOCK, PAGE),
                range(5 * BLOCK - PAGE, 2 * PAGE),
                range(9 * BLOCK, PAGE)
            ]
        );
        assert_eq!(
            pages.blocks(),
            [range(4 * BLOCK, 2 * BLOCK), range(9 * BLOCK, BLOCK)]
        );
        let inside = pages.within(&[range(5 * BLOCK, BLOCK), range(9 * BLOCK, PAGE), range(0, 0)]);
        assert_eq!(inside.iter().collect::<Vec<_>>(), [5 * BLOCK, 9 * BLOCK]);
        assert_eq!(pages.without(&inside).with(&inside), pages);
        assert_eq!(pages.cost(&[range(3 * BLOCK, 3 * BLOCK)]), 2 * BLOCK);
        // No more than there is, of a device that is cut finer.
        assert_eq!(pages.cost(&[range(9 * BLOCK, 8 * PAGE)]), 8 * PAGE);
        assert!(!pages.without(&inside).contains(5 * BLOCK));
        assert_eq!(Pages::of([range(0, 1)]).to_string(), "1 page");
        assert!(Pages::default().blocks().is_empty() && Pages::default().is_empty());
    }
}
