// SPDX-License-Identifier: GPL-2.0
//! Holes of the stock kernel outside of its page-table walkers: PAT, device_dax and the dax bus. See [`super::holes`].

use std::os::fd::AsRawFd;

use crate::case::{errno, Case, Outcome};
use crate::device::{driver_attribute, DAX_DMEM, DEVICE_DAX};
use crate::mapping::Map;
use crate::pages::Census;
use crate::region::{Region, GIB};
use crate::spinner::Spinner;
use crate::{check_eq, module, payload, sysfs};

use super::holes::{patched, Attempt, CRASH, HUGE, PAGE};
use super::page_less;

pub const CASES: &[Case] = &[
    Case {
        name: "hole-pat-untracked",
        shows: "vmf_insert_pfn_pmd() maps reserved memory uncached; pfnmap_track(), which the patch exports, mends it",
        run: pat_untracked,
        ..Case::DEFAULT
    },
    Case {
        name: "hole-device-dax-pgmap",
        shows: "a failed bind of device_dax spoils the next one on the stock kernel, and does not with the patch",
        run: device_dax_pgmap,
        ..Case::DEFAULT
    },
    Case {
        name: "hole-device-dax-reopen",
        shows: "mmap of a device_dax file reopened after unbind: Oops on the stock kernel, ENXIO with the patch",
        run: device_dax_reopen,
        ..CRASH
    },
    Case {
        name: "hole-mapping-while-bound",
        shows: "sysfs adds ranges to a bound device on the stock kernel, and answers EBUSY with the patch",
        run: mapping_while_bound,
        ..Case::DEFAULT
    },
];

fn pat_untracked() -> Outcome {
    let region = Region::first()?;
    let insert = |track: u32| {
        let parameters = format!("base={} size={} track={track}", region.start, 8 * HUGE);
        module::insert_with(&payload::path("dmem_pat_probe.ko"), &parameters)
    };
    // How many of the leaves are write-back.
    let write_back = || -> Outcome<usize> {
        let spinner = Spinner::start(|| {
            let file = std::fs::File::options()
                .read(true)
                .write(true)
                .open("/dev/dmem_pat_probe")?;
            let mapping = Map::new(8 * HUGE).file(&file)?;
            mapping.touch(HUGE);
            Ok(mapping)
        })?;
        let leaves = spinner.leaves()?;
        check_eq!(leaves.census(), Census::new(0, 8, 0), "leaves");
        check_eq!(leaves.0[0].phys, region.start, "where the first one leads");
        Ok(leaves.0.iter().filter(|leaf| leaf.write_back).count())
    };
    insert(0)?;
    check_eq!(write_back()?, 0, "write-back leaves of untracked memory");
    module::unload("dmem_pat_probe")?;
    if !patched() {
        check_eq!(
            errno(insert(1)),
            Some(libc::ENOENT),
            "errno of asking for pfnmap_track"
        );
        return Ok(());
    }
    insert(1)?;
    check_eq!(write_back()?, 8, "write-back leaves of tracked memory");
    Ok(module::unload("dmem_pat_probe")?)
}

fn device_dax_pgmap() -> Outcome {
    let device = page_less(GIB, &[(0, GIB)])?;
    // Quarantined ranges are claimed, which makes every other bind fail.
    let file = device.open()?;
    device.unbind()?;
    // `new_id` probes, and reports nothing.
    sysfs::try_write(driver_attribute(DEVICE_DAX, "new_id"), &device.name)?;
    let again = errno(sysfs::try_write(
        driver_attribute(DEVICE_DAX, "bind"),
        &device.name,
    ));
    sysfs::write(driver_attribute(DEVICE_DAX, "remove_id"), &device.name)?;
    drop(file);
    // On the stock kernel this clears the dangling pointer, which destroying the device would free.
    device.bind(DAX_DMEM)?;
    let demanded = if patched() { libc::EBUSY } else { libc::EINVAL };
    check_eq!(again, Some(demanded), "errno of the second bind");
    Ok(())
}

fn device_dax_reopen() -> Outcome {
    let device = Region::first()?.create(HUGE, &[(0, GIB)])?;
    device.bind(DEVICE_DAX)?;
    let file = device.open()?;
    device.unbind()?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let reopened = std::fs::File::options().read(true).write(true).open(path);
    if patched() {
        check_eq!(
            errno(reopened),
            Some(libc::ENXIO),
            "errno of opening it again"
        );
        return Ok(());
    }
    let reopened = reopened?;
    let attempt = Attempt::make(Some(reopened.as_raw_fd()), || {
        errno(Map::new(HUGE).file(&reopened)).unwrap_or(0)
    })?;
    // The dead process is inside the dax core's SRCU section.
    std::mem::forget((device, file));
    attempt.check_oops_in("__check_vma")
}

fn mapping_while_bound() -> Outcome {
    let region = Region::first()?;
    let device = region.create(HUGE, &[(0, GIB)])?;
    device.bind(DEVICE_DAX)?;
    let add = |start: u64, length: u64| {
        let start = region.start + start;
        let text = format!("{:x}-{:x}", start, start + length - 1);
        errno(sysfs::try_write(device.attribute("mapping"), &text))
    };
    let bound = add(GIB, GIB);
    device.unbind()?;
    let misaligned = add(2 * GIB, HUGE + PAGE);
    let demanded = if patched() {
        (Some(libc::EBUSY), Some(libc::EINVAL), GIB)
    } else {
        (None, None, 2 * GIB)
    };
    check_eq!(
        (bound, misaligned, device.size()?),
        demanded,
        "errno with a driver, errno of a misaligned length, bytes of the device"
    );
    Ok(())
}
