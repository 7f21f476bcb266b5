// SPDX-License-Identifier: GPL-2.0
//! What a page fault costs, counted in instructions.

use std::time::Instant;

use crate::budget::Budgets;
use crate::case::{Case, Outcome};
use crate::device::Device;
use crate::mapping::Map;
use crate::region::{GIB, KIB, MIB};
use crate::tracing::Tracing;
use crate::{check, say};

use super::page_less;

pub const CASES: &[Case] = &[Case {
    name: "cost-fault",
    shows: "a fault takes no more instructions than its budget, with counters, and with tracepoints that are off",
    machine: "icount",
    limit: 120,
    run: cost,
    ..Case::DEFAULT
}];

const HUGE: u64 = 2 * MIB;
const SIZE: u64 = 4 * GIB;
const SMALL: u64 = 16 * HUGE;
/// Sweeps over the device, of which the cheapest counts: the others met a timer.
const SWEEPS: usize = 20;

/// Instructions of a fault, user side included, by leaf size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    giant: u64,
    huge: u64,
    /// Fills a page table.
    small: u64,
}

impl Cost {
    fn measure(device: &Device) -> Outcome<Cost> {
        let file = device.open()?;
        // Where no leaf of 1 GiB fits.
        let apart = 64 * GIB + HUGE;
        let huge = Map::new(GIB - HUGE).at(apart as usize);
        let mapping = |map: Map| map.file(&file);
        Ok(Cost {
            giant: cheapest(SIZE, GIB, || Ok(mapping(Map::new(SIZE))?))?,
            huge: cheapest(GIB - HUGE, HUGE, || Ok(mapping(huge)?))?,
            // No more than a sweep without a timer has time for.
            small: cheapest(SMALL, HUGE, || {
                let mapping = mapping(Map::new(SMALL))?;
                mapping.advise(0, SMALL, libc::MADV_NOHUGEPAGE)?;
                Ok(mapping)
            })?,
        })
    }
}

/// The cheapest sweep's instructions for each fault.
fn cheapest(
    size: u64,
    step: u64,
    map: impl Fn() -> Outcome<crate::mapping::Mapping>,
) -> Outcome<u64> {
    let mut best = u64::MAX;
    for _ in 0..SWEEPS {
        let mapping = map()?;
        let begin = Instant::now();
        mapping.touch(step);
        // One instruction takes one nanosecond.
        best = best.min(begin.elapsed().as_nanos() as u64 / (size / step));
    }
    Ok(best)
}

fn cost() -> Outcome {
    let device = page_less(4 * KIB, &[(0, SIZE)])?;
    let off = Cost::measure(&device)?;
    let tracing = Tracing::start("dax_dmem_fault")?;
    let on = Cost::measure(&device)?;
    drop(tracing);
    let again = Cost::measure(&device)?;
    say!("a fault takes {off:?} instructions");
    say!("while it is traced it takes {on:?}, afterwards {again:?}");
    let mut budgets = Budgets::default();
    budgets.spend("fault, 1 GiB leaf", off.giant)?;
    budgets.spend("fault, 2 MiB leaf", off.huge)?;
    budgets.spend("fault, 4 KiB leaves of 2 MiB", off.small)?;
    budgets.kept()?;
    check!(
        again.giant.abs_diff(off.giant) <= 2 && again.huge.abs_diff(off.huge) <= 2,
        "a fault that was traced takes {again:?} afterwards, {off:?} before"
    );
    check!(
        on.giant > off.giant + 50 && on.huge > off.huge + 50,
        "a fault that is traced takes {on:?} instructions only: is the measurement right?"
    );
    Ok(())
}
