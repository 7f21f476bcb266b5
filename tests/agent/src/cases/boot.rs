// SPDX-License-Identifier: GPL-2.0
//! The machines themselves: what the driver is tried on is there.

use crate::case::{Case, Outcome};
use crate::memory::{human, Meminfo};
use crate::region::{Region, GIB};
use crate::{check, check_eq, module, say};

pub const CASES: &[Case] = &[Case {
    name: "boot",
    shows: "the reserved memory is a dax region and not part of MemTotal",
    run: boot,
    ..Case::DEFAULT
}];

fn boot() -> Outcome {
    let region = Region::first()?;
    check_eq!(
        (region.start, region.size),
        (4 * GIB, 6 * GIB),
        "start and size of region {}",
        region.id
    );
    check_eq!(
        region.available()?,
        region.size,
        "available bytes of region {}",
        region.id
    );
    let total = Meminfo::read()?.bytes("MemTotal")?;
    say!("MemTotal {}", human(total));
    check!(
        (3 * GIB..4 * GIB).contains(&total),
        "MemTotal is {total}, expected most of the 4 GiB outside the region"
    );
    check!(
        !module::loaded("kmem"),
        "kmem is loaded and would online the region as system RAM"
    );
    Ok(())
}
