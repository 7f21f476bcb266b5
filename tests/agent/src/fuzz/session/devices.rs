// SPDX-License-Identifier: GPL-2.0
//! Devices: making and binding them, and what all of one holds.

use super::{FileLock, Made, Session};
use crate::case::{Named, Outcome};
use crate::device::DAX_DMEM;
use crate::fuzz::memory::{stamp, Cell};
use crate::fuzz::model::{hot_blocks, physical};
use crate::fuzz::op::{Observed, Seen, BLOCK, PAGE, SLOTS};
use crate::mapping::{Map, Mapping};
use crate::scrub::Policy;

impl Session<'_> {
    pub(super) fn create(
        &mut self,
        slot: usize,
        align: u64,
        parts: &[(u64, u64)],
    ) -> Outcome<Observed> {
        let _lock = FileLock::take(&self.window.lock)?;
        let bytes = |(block, blocks): &(u64, u64)| {
            let size = BLOCK * PAGE;
            (self.window.offset + block * size, blocks * size)
        };
        let places: Vec<(u64, u64)> = parts.iter().map(bytes).collect();
        let device = self.window.region.create(align, &places)?;
        let parts = parts.to_vec();
        self.devices[slot] = Some(Made { device, parts });
        Ok(Observed::one(Seen::Done))
    }

    pub(super) fn bind(&self, device: usize, policy: Policy) -> Outcome<Observed> {
        let _lock = FileLock::take(&self.window.lock)?;
        let device = &self.device(device)?.device;
        policy.choose(device)?;
        Ok(Observed::one(match device.attach(DAX_DMEM) {
            Ok(()) => Seen::Done,
            Err(error) => Seen::Errno(error.raw_os_error().unwrap_or(0)),
        }))
    }

    /// The device mapped for a moment, outside the arena.
    fn glimpse(&self, device: usize) -> Outcome<(Mapping, &[(u64, u64)])> {
        let Made { device, parts } = self.device(device)?;
        let length = parts.iter().map(|(_, blocks)| blocks * BLOCK * PAGE).sum();
        let mapping = Map::new(length).file(&device.open()?);
        Ok((mapping.named(&device.name)?, parts))
    }

    pub(super) fn stamp(&self, device: usize, version: u64) -> Outcome<Observed> {
        let (mapping, parts) = self.glimpse(device)?;
        for (offset, cell) in cells(parts) {
            mapping.write(offset, stamp(version, cell));
        }
        Ok(Observed::one(Seen::Done))
    }

    pub(super) fn sweep(&self, device: usize) -> Outcome<Observed> {
        let (mapping, parts) = self.glimpse(device)?;
        let mut observed = Observed::default();
        for (offset, _) in cells(parts) {
            observed.push(Seen::Word(mapping.read(offset)));
        }
        Ok(observed)
    }
}

/// The checked words of a device's hot blocks: byte offset in the device, and which word of the window it is.
fn cells(parts: &[(u64, u64)]) -> impl Iterator<Item = (u64, Cell)> + '_ {
    hot_blocks(parts)
        .into_iter()
        .flat_map(|block| block * BLOCK..(block + 1) * BLOCK)
        .flat_map(move |page| {
            let there = physical(parts, page).unwrap_or_default();
            let cell = move |slot: usize| {
                let offset = page * PAGE + SLOTS[slot];
                (offset, Cell { page: there, slot })
            };
            (0..SLOTS.len()).map(cell)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_follow_the_device_and_name_the_window() {
        let parts = [(10, 1), (4, 2)];
        let all: Vec<_> = cells(&parts).collect();
        assert_eq!(all.len() as u64, 3 * BLOCK * 2);
        assert_eq!(
            all[1],
            (
                PAGE - 8,
                Cell {
                    page: 10 * BLOCK,
                    slot: 1
                }
            )
        );
        assert_eq!(
            all[BLOCK as usize * 2],
            (
                BLOCK * PAGE,
                Cell {
                    page: 4 * BLOCK,
                    slot: 0
                }
            )
        );
    }
}
