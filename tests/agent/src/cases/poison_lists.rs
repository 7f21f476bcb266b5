// SPDX-License-Identifier: GPL-2.0
//! Memory errors: the lists of bad blocks of devices and regions.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::case::{errno, Case, Failure, Named, Outcome};
use crate::child::Child;
use crate::device::{Device, DAX_DMEM};
use crate::module;
use crate::payload::need_module;
use crate::poison::{self, Cleaned, PAGE};
use crate::region::{Region, GIB, MIB};
use crate::{check, check_eq, sysfs};

use super::page_less;

/// The unit of the lists.
const SECTOR: u64 = 512;

/// A page of a range, at no border.
const INSIDE: u64 = 300 * MIB + 7 * PAGE;

pub const CASES: &[Case] = &[
    Case {
        name: "poison-badblocks",
        shows: "bad blocks of a device of two ranges and of its region: exact after errors, unbind, bind, destroy, clear",
        limit: 60,
        run: exact,
        ..Case::DEFAULT
    },
    Case {
        name: "poison-badblocks-long",
        shows: "lists of bad blocks that are longer than a page are whole, however they are read",
        limit: 60,
        run: long,
        ..Case::DEFAULT
    },
    Case {
        name: "poison-badblocks-region",
        shows: "each region has its list, with devices or without; it goes and comes with the region and with the driver",
        machine: "two-regions",
        limit: 90,
        fresh: true,
        run: regions,
        ..Case::DEFAULT
    },
];

fn list_of(region: &Region) -> PathBuf {
    region.attribute("../dax_dmem/badblocks")
}

fn list_of_device(device: &Device) -> PathBuf {
    device.attribute("dax_dmem/badblocks")
}

/// Fails unless the list has these runs: offset of the first byte, pages.
fn check_list(path: &Path, runs: &[(u64, u64)], when: &str) -> Outcome {
    let line =
        |(offset, pages): &(u64, u64)| format!("{} {}\n", offset / SECTOR, pages * PAGE / SECTOR);
    let expected: String = runs.iter().map(line).collect();
    let found = fs::read_to_string(path).named(path.display())?;
    check!(
        found == expected,
        "{} {when}: '{found}', expected '{expected}'",
        path.display()
    );
    Ok(())
}

fn exact() -> Outcome {
    let region = Region::first()?;
    // The device begins with what lies higher.
    let device = page_less(GIB, &[(3 * GIB, GIB), (0, GIB)])?;
    let _cleaned = Cleaned;
    let (of_device, of_region) = (list_of_device(&device), list_of(&region));
    check_list(&of_device, &[], "before any error")?;
    check_list(&of_region, &[], "before any error")?;
    for offset in [
        2 * GIB - PAGE,
        INSIDE + PAGE,
        GIB,
        INSIDE,
        0,
        GIB - PAGE,
        GIB,
    ] {
        poison::add(device.physical(offset)?)?;
    }
    // Beside the device, right behind its last page, and anywhere.
    for offset in [GIB, 2 * GIB + PAGE] {
        poison::add(region.start + offset)?;
    }
    // The last page of its first range and the first of its second follow on each other in the device only.
    let in_device = [(0, 1), (INSIDE, 2), (GIB - PAGE, 2), (2 * GIB - PAGE, 1)];
    let in_region = [
        (0, 1),
        (GIB - PAGE, 2),
        (2 * GIB + PAGE, 1),
        (3 * GIB, 1),
        (3 * GIB + INSIDE, 2),
        (4 * GIB - PAGE, 1),
    ];
    check_list(&of_device, &in_device, "after errors")?;
    check_list(&of_region, &in_region, "after errors")?;

    device.unbind()?;
    check!(!of_device.exists(), "an unbound device has a list");
    check_list(&of_region, &in_region, "after unbind")?;
    device.bind(DAX_DMEM)?;
    check_list(&of_device, &in_device, "after bind")?;
    check_list(&of_region, &in_region, "after bind")?;
    device.destroy()?;
    check_list(&of_region, &in_region, "after destroy")?;

    // Other borders: some pages are inside, some beside.
    let device = page_less(2 * MIB, &[(2 * GIB, GIB + 2 * MIB)])?;
    let of_device = list_of_device(&device);
    check_list(&of_device, &[(PAGE, 1), (GIB, 1)], "of another device")?;
    poison::clear(region.start + 2 * GIB + PAGE)?;
    poison::clear(region.start + 3 * GIB + INSIDE)?;
    check_list(&of_device, &[(GIB, 1)], "after clear")?;
    let left = [
        (0, 1),
        (GIB - PAGE, 2),
        (3 * GIB, 1),
        (3 * GIB + INSIDE + PAGE, 1),
        (4 * GIB - PAGE, 1),
    ];
    check_list(&of_region, &left, "after clear")?;
    let written = sysfs::try_write(&of_region, "0 8");
    check_eq!(
        errno(written),
        Some(libc::EACCES),
        "errno of writing a list"
    );
    device.destroy()
}

/// The text of a file, read in pieces of that many bytes.
fn read_in_pieces(path: &Path, size: usize) -> Outcome<String> {
    let mut file = fs::File::open(path).named(path.display())?;
    let (mut text, mut piece) = (Vec::new(), vec![0; size]);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            len => text.extend_from_slice(&piece[..len]),
        }
    }
    String::from_utf8(text).map_err(|error| Failure::Fail(error.to_string()))
}

fn long() -> Outcome {
    const RUNS: u64 = 2_000;
    let region = Region::first()?;
    let device = page_less(GIB, &[(3 * GIB, GIB), (0, GIB)])?;
    let _cleaned = Cleaned;
    // Runs of one and of two pages, in both ranges.
    let runs: Vec<(u64, u64)> = (0..RUNS)
        .map(|index| (index * (2 * GIB / RUNS / PAGE) * PAGE, 1 + index % 2))
        .collect();
    for (offset, pages) in &runs {
        for page in 0..*pages {
            poison::add(device.physical(offset + page * PAGE)?)?;
        }
    }
    let at = |(offset, pages): &(u64, u64)| ((offset + 3 * GIB) % (4 * GIB), *pages);
    let mut in_region: Vec<(u64, u64)> = runs.iter().map(at).collect();
    in_region.sort_unstable();
    for (path, runs) in [
        (list_of_device(&device), &runs),
        (list_of(&region), &in_region),
    ] {
        check_list(&path, runs, "of many errors")?;
        let whole = fs::read_to_string(&path)?;
        check!(whole.len() > 4 * 4096, "{} bytes only", whole.len());
        for size in [100, 4096, 65_536] {
            check_eq!(
                read_in_pieces(&path, size)? == whole,
                true,
                "the same text in pieces of {size}"
            );
        }
    }
    Ok(())
}

/// The directory of a region's device, and its name on the platform bus.
fn home_of(region: &Region) -> Outcome<(PathBuf, String)> {
    let home = region.attribute("..").canonicalize()?;
    let name = home
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let name = name.ok_or_else(|| Failure::Fail(format!("no name in {}", home.display())))?;
    Ok((home, name))
}

fn regions() -> Outcome {
    need_module()?;
    let all = Region::all()?;
    let [first, second] = all.as_slice() else {
        return Err(Failure::Fail(format!("regions: {all:?}")));
    };
    for region in &all {
        check_list(&list_of(region), &[], "before any error")?;
    }
    // A region of which no device was ever bound.
    poison::add(second.start + INSIDE)?;
    check_list(&list_of(first), &[], "after an error elsewhere")?;
    check_list(&list_of(second), &[(INSIDE, 1)], "after an error")?;

    // The region goes, with a device that is bound, while its list is being read; twenty times.
    let (home, name) = home_of(second)?;
    let mut reader = Child::start(|link| {
        link.send("reading")?;
        loop {
            let _ = fs::read_to_string(home.join("dax_dmem/badblocks"));
        }
    })?;
    reader.link().receive()?;
    for round in 0..20 {
        let device = second.create(2 * MIB, &[(0, GIB)])?;
        device.bind(DAX_DMEM)?;
        check_list(&list_of_device(&device), &[(INSIDE, 1)], "in between")?;
        sysfs::write("/sys/bus/platform/drivers/hmem/unbind", &name)?;
        // It went with its region.
        std::mem::forget(device);
        check!(
            !home.join("dax_dmem").exists(),
            "round {round}: a list without a region"
        );
        check_list(&list_of(first), &[], "after another region went")?;
        sysfs::write("/sys/bus/platform/drivers/hmem/bind", &name)?;
        check_list(&list_of(second), &[(INSIDE, 1)], "with its region again")?;
    }

    // The driver goes, likewise.
    for round in 0..5 {
        module::unload(DAX_DMEM)?;
        for region in &all {
            check!(
                !region.attribute("../dax_dmem").exists(),
                "round {round}: a list without a driver"
            );
        }
        need_module()?;
        check_list(&list_of(second), &[], "of a driver that knows nothing")?;
        poison::add(second.start + INSIDE)?;
        check_list(&list_of(second), &[(INSIDE, 1)], "after an error")?;
    }
    reader.kill()?;
    poison::clear(second.start + INSIDE)?;
    Region::check_all_free()
}
