// SPDX-License-Identifier: GPL-2.0
//! What page-less memory costs the kernel, on hosts larger than the machine that plays them.

use crate::case::{Case, Outcome};
use crate::device::{Device, DAX_DMEM, DEVICE_DAX};
use crate::mapping::Map;
use crate::memory::{human, Meminfo};
use crate::region::{Region, GIB, KIB, MIB};
use crate::{check, check_eq, module, payload, say};

pub const CASES: &[Case] = &[
    Case {
        name: "cost-64g",
        shows: "binding and fully mapping 64 GiB costs at most 64 KiB of kernel memory; device_dax is measured beside it",
        machine: "big64",
        limit: 90,
        run: cost_64g,
        ..Case::DEFAULT
    },
    Case {
        name: "memtotal-384g",
        shows: "a host of 384 GiB keeps every reserved GiB out of MemTotal, and one device can have all of them",
        machine: "big384",
        limit: 60,
        run: memtotal_384g,
        ..Case::DEFAULT
    },
];

fn cost_64g() -> Outcome {
    payload::need_module()?;
    module::load(DEVICE_DAX)?;
    let region = Region::first()?;
    check_eq!(region.size, 64 * GIB, "size of the region");
    let device = region.create(GIB, &[(0, 64 * GIB)])?;
    // Once each beforehand, so that what a driver needs once for all devices is not counted.
    for driver in [DAX_DMEM, DEVICE_DAX] {
        measure(&device, driver)?;
    }
    let ours = measure(&device, DAX_DMEM)?;
    let peer = measure(&device, DEVICE_DAX)?;
    say!(
        "64 GiB bound and mapped: dax_dmem {}, device_dax {}",
        human(ours),
        human(peer)
    );
    check!(ours <= 64 * KIB, "dax_dmem costs {}", human(ours));
    check!(
        peer > 10 * ours.max(KIB),
        "device_dax costs {} only: is the measurement right?",
        human(peer)
    );
    Ok(())
}

/// Kernel memory that binding the device and mapping every GiB of it takes.
fn measure(device: &Device, driver: &str) -> Outcome<u64> {
    let before = Meminfo::settled()?.bytes("MemAvailable")?;
    device.bind(driver)?;
    let mapping = Map::new(64 * GIB).file(&device.open()?)?;
    mapping.touch(GIB);
    let after = Meminfo::settled()?.bytes("MemAvailable")?;
    drop(mapping);
    device.unbind()?;
    Ok(before.saturating_sub(after))
}

fn memtotal_384g() -> Outcome {
    payload::need_module()?;
    let region = Region::first()?;
    check_eq!(region.size, 376 * GIB, "size of the region");
    let total = Meminfo::read()?.bytes("MemTotal")?;
    let installed = 384 * GIB;
    let kept = 100.0 * (total + region.size) as f64 / installed as f64;
    say!(
        "MemTotal {} beside {} page-less: {kept:.2} % of installed memory",
        human(total),
        human(region.size)
    );
    check!(
        total < installed - region.size,
        "MemTotal {} contains reserved memory",
        human(total)
    );
    // What is missing of the other 8 GiB is the kernel itself and its struct pages, for these 8 GiB only.
    check!(
        total > 8 * GIB - 512 * MIB,
        "MemTotal is {} only",
        human(total)
    );
    let device = region.create(GIB, &[(0, region.size)])?;
    device.bind(DAX_DMEM)?;
    let mapping = Map::new(region.size).file(&device.open()?)?;
    let last = region.size - 8;
    mapping.write(last, 384);
    check_eq!(mapping.read(last), 384, "last word of the device");
    Ok(())
}
