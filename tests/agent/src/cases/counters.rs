// SPDX-License-Identifier: GPL-2.0
//! What the driver counts of a device, against what is known to be so.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::case::{Case, Outcome};
use crate::child::Child;
use crate::cmdline::patient;
use crate::counters::{faults, leaves, mappings, state};
use crate::device::{driver_attribute, Device, DAX_DMEM};
use crate::mapping::{Map, Mapping};
use crate::pages::Census;
use crate::poison::{self, Cleaned, PAGE};
use crate::probe;
use crate::region::{Region, GIB, KIB, MIB};
use crate::scrub::{Policy, Progress};
use crate::{check, check_eq, payload, sysfs};

use super::page_less;

pub const CASES: &[Case] = &[
    Case {
        name: "counters-exact",
        shows: "state, mappings and leaves are those there are, through fork, split, move, mprotect, munmap, exit and poison; faults add up",
        limit: 60,
        run: exact,
        ..Case::DEFAULT
    },
    Case {
        name: "counters-race",
        shows: "leaves can be counted while other processes map, split, move and unmap, and are right in the end",
        limit: 60,
        run: race,
        ..Case::DEFAULT
    },
    Case {
        name: "counters-scrub",
        shows: "the bytes that scrubs overwrite are counted, poison left out",
        limit: 40,
        run: scrubbed,
        ..Case::DEFAULT
    },
];

const HUGE: u64 = 2 * MIB;
const SIZE: u64 = 2 * GIB;

/// Fails unless the device has so many mappings, and these leaves.
fn check_has(device: &Device, when: &str, of: u64, census: Census) -> Outcome {
    check_eq!(mappings(device)?, of, "mappings {when}");
    check_eq!(leaves(device)?, census, "leaves {when}");
    Ok(())
}

fn exact() -> Outcome {
    let _cleaned = Cleaned;
    let device = page_less(4 * KIB, &[(0, SIZE)])?;
    let none = Census::new(0, 0, 0);
    check_eq!(state(&device)?, "idle", "state after bind");
    check_has(&device, "after bind", 0, none)?;
    let file = device.open()?;
    check_eq!(state(&device)?, "open", "state with a file");

    let mapping = Map::new(SIZE).file(&file)?;
    check_eq!(state(&device)?, "mapped", "state with a mapping");
    check_has(&device, "before a touch", 1, none)?;
    mapping.touch(GIB);
    check_has(&device, "after a touch", 1, Census::new(2, 0, 0))?;
    check_eq!(faults(&device, "1g", "mapped")?, 2, "faults of 1 GiB");

    in_a_child(&device, &mapping)?;
    check_has(&device, "after the child", 1, Census::new(2, 0, 0))?;

    // A hole of one page, in the second GiB: the leaf goes, the VMA becomes two.
    mapping.unmap(GIB + 64 * MIB, PAGE)?;
    check_has(&device, "after a split", 2, Census::new(1, 0, 0))?;
    let smaller = faults(&device, "1g", "smaller")?;
    mapping.read(GIB);
    mapping.read(GIB + 64 * MIB + PAGE);
    // What is left of its 2 MiB is filled.
    check_has(&device, "beside the hole", 2, Census::new(1, 1, 511))?;
    check!(
        faults(&device, "1g", "smaller")? > smaller && faults(&device, "4k", "mapped")? == 1,
        "faults beside the hole are not counted"
    );
    // At the borders of leaves: they stay.
    mapping.protect(GIB, HUGE, libc::PROT_READ)?;
    check_has(&device, "after mprotect", 4, Census::new(1, 1, 511))?;
    drop(mapping);
    check_has(&device, "after munmap", 0, none)?;

    moved(&device, &file)?;
    failed(&device, &file)?;
    drop(file);
    check_eq!(state(&device)?, "idle", "state in the end");
    check_eq!(
        faults(&device, "2m", "sigbus")?,
        0,
        "SIGBUS that nobody got"
    );
    let mode = |name: &str| -> Outcome<u32> {
        let path = device.attribute(&format!("dax_dmem/{name}"));
        Ok(std::fs::metadata(path)?.permissions().mode() & 0o777)
    };
    check_eq!(mode("leaves")?, 0o400, "mode of leaves");
    check_eq!(mode("faults")?, 0o444, "mode of faults");
    Ok(())
}

/// Another process that has the mapping by fork is counted beside this one, and no more when it is gone.
fn in_a_child(device: &Device, mapping: &Mapping) -> Outcome {
    let mut child = Child::start(|link| {
        mapping.touch(GIB);
        link.send("touched")?;
        link.receive().map(drop)
    })?;
    child.link().receive()?;
    check_has(device, "with a child", 2, Census::new(4, 0, 0))?;
    child.kill()?;
    Ok(())
}

/// mremap to a place that is not congruent: nothing is mapped until it is touched.
fn moved(device: &Device, file: &std::fs::File) -> Outcome {
    let mapping = Map::new(GIB).file(file)?;
    mapping.touch(GIB);
    check_has(device, "before a move", 1, Census::new(1, 0, 0))?;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let mapping = mapping.remap(GIB, flags, (96 * GIB + HUGE) as usize)?;
    check_has(device, "after a move", 1, Census::new(0, 0, 0))?;
    mapping.touch(GIB / 2);
    check_has(device, "after a touch there", 1, Census::new(0, 2, 0))?;
    drop(mapping);
    Ok(())
}

/// A page that failed takes its leaf with it, and a touch of it is counted.
fn failed(device: &Device, file: &std::fs::File) -> Outcome {
    let mapping = Map::new(GIB).file(file)?;
    mapping.touch(GIB);
    poison::add(device.physical(HUGE)?)?;
    check_has(device, "after an error", 1, Census::new(0, 0, 0))?;
    check!(
        probe::read(mapping.address() + HUGE as usize).is_err(),
        "poison can be read"
    );
    check_eq!(faults(device, "4k", "poisoned")?, 1, "touches of poison");
    // Around it.
    mapping.read(HUGE + PAGE);
    check_has(device, "around it", 1, Census::new(0, 0, 511))
}

fn race() -> Outcome {
    let device = page_less(4 * KIB, &[(0, SIZE)])?;
    let end = Instant::now() + patient(Duration::from_secs(3));
    let worker = |seed: u64| {
        let device = &device;
        Child::start(move |_| {
            let file = device.open()?;
            for round in seed.. {
                if Instant::now() > end {
                    break;
                }
                disturb(&file, round)?;
            }
            Ok(())
        })
    };
    let workers = (0..3).map(worker).collect::<Outcome<Vec<_>>>()?;
    let mut seen = 0;
    while Instant::now() < end {
        leaves(&device)?;
        seen += 1;
    }
    workers.into_iter().try_for_each(Child::finish)?;
    check!(seen > 10, "counted {seen} times only");
    check_has(&device, "in the end", 0, Census::new(0, 0, 0))
}

/// Maps, cuts, moves and unmaps.
fn disturb(file: &std::fs::File, round: u64) -> Outcome {
    let mapping = Map::new(SIZE).file(file)?;
    if round % 2 == 0 {
        mapping.advise(GIB, GIB, libc::MADV_NOHUGEPAGE)?;
    }
    mapping.touch(GIB / 4);
    mapping.unmap(GIB / 2 + (round % 7) * PAGE, PAGE)?;
    mapping.read(0);
    if round % 3 == 0 {
        let mapping = Map::new(GIB).file(file)?;
        mapping.touch(GIB / 8);
        let target = (128 * GIB + (round % 5) * HUGE) as usize;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        mapping.remap(GIB, flags, target)?.touch(GIB / 8);
    }
    if round % 4 == 0 {
        Child::start(|_| {
            mapping.touch(GIB);
            Ok(())
        })?
        .finish()?;
    }
    Ok(())
}

fn scrubbed() -> Outcome {
    payload::need_module()?;
    let _cleaned = Cleaned;
    let counted = || sysfs::read_number(driver_attribute(DAX_DMEM, "scrubbed"));
    let device = Region::first()?.create(HUGE, &[(0, 64 * MIB)])?;
    Policy::HandOut.bind(&device)?;
    Progress::finish(&device)?;
    device.open()?;
    poison::add(device.physical(PAGE)?)?;
    device.unbind()?;
    // It was opened, so all of it is dirty.
    let before = counted()?;
    Policy::HandOut.bind(&device)?;
    Progress::finish(&device)?;
    check_eq!(counted()? - before, 64 * MIB - PAGE, "bytes overwritten");
    Ok(())
}
