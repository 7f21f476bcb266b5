// SPDX-License-Identifier: GPL-2.0
//! Which leaves map page-less memory, and how they are cached: seen by the QEMU monitor, not by the driver.

use crate::case::{Case, Outcome};
use crate::device::Device;
use crate::mapping::{Map, Mapping};
use crate::pages::{Census, Leaves};
use crate::region::{GIB, KIB, MIB};
use crate::spinner::Spinner;
use crate::{check, check_eq, fail, say, sysfs};

use super::page_less;

const PAGE: u64 = 4 * KIB;
const HUGE: u64 = 2 * MIB;

pub const CASES: &[Case] = &[
    Case {
        name: "leaves-align-4k",
        shows: "a device of align 4K is mapped with 1 GiB leaves, write-back, where sysfs says it is",
        run: || largest_at(PAGE),
        ..Case::DEFAULT
    },
    Case {
        name: "leaves-align-2m",
        shows: "a device of align 2M is mapped with 1 GiB leaves, write-back, where sysfs says it is",
        run: || largest_at(HUGE),
        ..Case::DEFAULT
    },
    Case {
        name: "leaves-align-1g",
        shows: "a device of align 1G is mapped with 1 GiB leaves, write-back, where sysfs says it is",
        run: || largest_at(GIB),
        ..Case::DEFAULT
    },
    Case {
        name: "leaves-two-ranges",
        shows: "each range of a device has the largest leaves its addresses allow",
        run: two_ranges,
        ..Case::DEFAULT
    },
    Case {
        name: "leaves-small-range",
        shows: "a range too small for a 1 GiB leaf, off its boundaries, has 2 MiB leaves",
        run: small_range,
        ..Case::DEFAULT
    },
    Case {
        name: "leaves-no-hugepage",
        shows: "MADV_NOHUGEPAGE gives 4 KiB leaves, 2 MiB of them at one touch, and large leaves beside them",
        run: no_hugepage,
        ..Case::DEFAULT
    },
    Case {
        name: "leaves-unaligned-start",
        shows: "a mapping that starts at offset 0xc0000 has large leaves behind its first 2 MiB and 1 GiB boundaries",
        run: unaligned_start,
        ..Case::DEFAULT
    },
    Case {
        name: "leaves-read-only",
        shows: "leaves of a read-only mapping are not writable, and become so by mprotect and a write",
        run: read_only,
        ..Case::DEFAULT
    },
    Case {
        name: "leaves-thp-never",
        shows: "1 GiB leaves do not depend on the setting for transparent huge pages",
        machine: "thp-never",
        run: || {
            let setting = sysfs::read("/sys/kernel/mm/transparent_hugepage/enabled")?;
            check!(setting.contains("[never]"), "transparent huge pages are '{setting}'");
            largest_at(HUGE)
        },
        ..Case::DEFAULT
    },
];

/// A device of 2 GiB at a 1 GiB boundary, touched once in each 4 KiB of the first 4 MiB and in each GiB.
fn largest_at(align: u64) -> Outcome {
    let device = page_less(align, &[(0, 2 * GIB)])?;
    let leaves = proven(&device, 0, |file| {
        let mapping = Map::new(2 * GIB).file(file)?;
        (0..4 * MIB / PAGE).for_each(|page| mapping.write(page * PAGE, page));
        mapping.write(GIB, 1);
        Ok(mapping)
    })?;
    check_eq!(
        leaves.census(),
        Census::new(2, 0, 0),
        "leaves at align {align:#x}"
    );
    check!(
        leaves
            .0
            .iter()
            .all(|leaf| leaf.writable && leaf.dirty && leaf.accessed),
        "not writable: {leaves:x?}"
    );
    Ok(())
}

fn two_ranges() -> Outcome {
    // The second range is congruent with its offset: 1 GiB leaves on both sides of the gap.
    let device = page_less(GIB, &[(0, GIB), (3 * GIB, GIB)])?;
    let leaves = proven(&device, 0, |file| touched(Map::new(2 * GIB), file, GIB))?;
    check_eq!(
        leaves.census(),
        Census::new(2, 0, 0),
        "leaves of two congruent ranges"
    );
    drop(device);

    // The second range is 2 MiB off: its leaves can be 2 MiB only while the first range has its 1 GiB leaf. The range
    // with more 1 GiB leaves decides where the mapping starts.
    let device = page_less(HUGE, &[(0, GIB + HUGE), (3 * GIB, 2 * GIB)])?;
    let leaves = proven(&device, 0, |file| {
        touched(Map::new(3 * GIB + HUGE), file, HUGE)
    })?;
    check_eq!(
        leaves.census(),
        Census::new(2, 513, 0),
        "leaves of two ranges that differ"
    );
    check_eq!(leaves.bytes(), 3 * GIB + HUGE, "bytes mapped");
    Ok(())
}

fn small_range() -> Outcome {
    let device = page_less(HUGE, &[(512 * MIB, GIB)])?;
    let leaves = proven(&device, 0, |file| touched(Map::new(GIB), file, HUGE))?;
    check_eq!(
        leaves.census(),
        Census::new(0, 512, 0),
        "leaves across a 1 GiB boundary"
    );
    Ok(())
}

fn no_hugepage() -> Outcome {
    let device = page_less(GIB, &[(0, 2 * GIB)])?;
    let leaves = proven(&device, 0, |file| {
        let mapping = Map::new(8 * MIB).file(file)?;
        mapping.advise(0, 8 * MIB, libc::MADV_NOHUGEPAGE)?;
        mapping.touch(HUGE);
        Ok(mapping)
    })?;
    check_eq!(
        leaves.census(),
        Census::new(0, 0, 2048),
        "leaves after four touches"
    );

    let leaves = proven(&device, 0, |file| {
        let mapping = Map::new(2 * GIB).file(file)?;
        mapping.advise(4 * MIB, HUGE, libc::MADV_NOHUGEPAGE)?;
        mapping.touch(HUGE);
        Ok(mapping)
    })?;
    check_eq!(
        leaves.census(),
        Census::new(1, 511, 512),
        "leaves beside a part without huge ones"
    );

    // A page alone: the 2 MiB around it cannot be one leaf, but one touch in each part still fills that part.
    let leaves = proven(&device, 0, |file| {
        let mapping = Map::new(2 * MIB).file(file)?;
        mapping.advise(16 * PAGE, PAGE, libc::MADV_NOHUGEPAGE)?;
        for at in [0, 16 * PAGE, 17 * PAGE] {
            mapping.read(at);
        }
        Ok(mapping)
    })?;
    check_eq!(
        leaves.census(),
        Census::new(0, 0, 512),
        "leaves around a single page"
    );
    Ok(())
}

fn unaligned_start() -> Outcome {
    const START: u64 = 0xc0000;
    let device = page_less(GIB, &[(0, 3 * GIB)])?;
    let length = 2 * GIB + 4 * MIB;
    let leaves = proven(&device, START, |file| {
        touched(Map::new(length).offset(START), file, PAGE)
    })?;
    check_eq!(leaves.bytes(), length, "bytes mapped");
    // 4 KiB leaves up to 2 MiB, 2 MiB leaves up to 1 GiB, one 1 GiB leaf, then the same downwards.
    let tail = START + 4 * MIB;
    let expected = Census {
        puds: 1,
        pmds: 511 + (tail / HUGE) as usize,
        ptes: ((HUGE - START) / PAGE + tail % HUGE / PAGE) as usize,
    };
    check_eq!(leaves.census(), expected, "leaves from offset {START:#x}");
    Ok(())
}

fn read_only() -> Outcome {
    let device = page_less(GIB, &[(0, GIB)])?;
    for (no_hugepage, step) in [(false, GIB), (true, HUGE)] {
        let length = if no_hugepage { 4 * MIB } else { GIB };
        let map = move |file: &std::fs::File| -> Outcome<Mapping> {
            let mapping = Map::new(length).protection(libc::PROT_READ).file(file)?;
            if no_hugepage {
                mapping.advise(0, length, libc::MADV_NOHUGEPAGE)?;
            }
            mapping.touch(step);
            Ok(mapping)
        };
        let leaves = proven(&device, 0, map)?;
        check!(
            leaves.0.iter().all(|leaf| !leaf.writable && !leaf.dirty),
            "writable: {leaves:x?}"
        );
        let census = leaves.census();

        let leaves = proven(&device, 0, |file| {
            let mapping = map(file)?;
            mapping.protect(0, length, libc::PROT_READ | libc::PROT_WRITE)?;
            (0..length / step).for_each(|index| mapping.write(index * step, index));
            Ok(mapping)
        })?;
        check_eq!(leaves.census(), census, "leaves after mprotect");
        check!(
            leaves.0.iter().any(|leaf| leaf.writable && leaf.dirty),
            "not writable after a write: {leaves:x?}"
        );
    }
    Ok(())
}

fn touched(map: Map, file: &std::fs::File, step: u64) -> Outcome<Mapping> {
    let mapping = map.file(file)?;
    mapping.touch(step);
    Ok(mapping)
}

/// The leaves of a process that makes this mapping of the device from `offset` on.
///
/// Fails unless each is write-back and leads where sysfs says the device is, and the kernel has no mapping of its own.
pub(super) fn proven(
    device: &Device,
    offset: u64,
    map: impl FnOnce(&std::fs::File) -> Outcome<Mapping>,
) -> Outcome<Leaves> {
    let spinner = Spinner::start(|| map(&device.open()?))?;
    let leaves = spinner.leaves()?;
    say!("{}: {}", device.name, leaves.census());
    leaves.check_write_back()?;
    leaves.check_placement(device, spinner.address(), offset)?;
    no_kernel_mapping(device)?;
    Ok(leaves)
}

/// Fails if the kernel maps any of the device's memory for itself (`ioremap`, `memremap`, `vmap` of pages).
pub(super) fn no_kernel_mapping(device: &Device) -> Outcome {
    match kernel_mappings(device)?.first() {
        None => Ok(()),
        Some(line) => fail!("{} has a kernel mapping: {line}", device.name),
    }
}

/// The lines of /proc/vmallocinfo that show such mappings.
pub(super) fn kernel_mappings(device: &Device) -> Outcome<Vec<String>> {
    let ranges = device.ranges()?;
    let info = sysfs::read("/proc/vmallocinfo")?;
    let leads_there = |line: &&str| {
        let word = |key: &str| {
            line.split_ascii_whitespace()
                .find_map(|word| word.strip_prefix(key))
        };
        // ADDRESS-ADDRESS SIZE CALLER …
        let size = line.split_ascii_whitespace().nth(1);
        let size = size.and_then(sysfs::number).unwrap_or(0);
        word("phys=").and_then(sysfs::number).is_some_and(|phys| {
            ranges
                .iter()
                .any(|range| phys < range.start + range.length && range.start < phys + size)
        })
    };
    let found = info.lines().filter(leads_there);
    Ok(found.map(str::to_owned).collect())
}
