// SPDX-License-Identifier: GPL-2.0
//! Holes of the stock kernel that take a driver to show: PAT, zapping beside faults, device_dax and the dax bus.
//! See [`super::holes`].

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::case::{errno, Case, Outcome};
use crate::child::{Child, End};
use crate::cmdline::patient;
use crate::device::{driver_attribute, DAX_DMEM, DEVICE_DAX};
use crate::kernel_log::{complaints, KernelLog};
use crate::mapping::Map;
use crate::pages::Census;
use crate::poison::{self, Cleaned};
use crate::region::{Region, GIB};
use crate::spinner::Spinner;
use crate::{check_eq, machine_check, module, payload, say, sysfs};

use super::holes::{patched, space, Attempt, CRASH, HUGE, PAGE};
use super::page_less;

/// Maps memory as the kernel offers it to drivers.
const PROBE: &str = "dmem_leaf_probe";
/// Warns when it is to change a kernel mapping that does not exist.
const WITHIN: &str = "__cpa_process_fault";

pub const CASES: &[Case] = &[
    Case {
        name: "hole-pat-untracked",
        shows: "vmf_insert_pfn_pmd() maps reserved memory uncached; pfnmap_track(), which the patch exports, mends it",
        run: pat_untracked,
        ..Case::DEFAULT
    },
    Case {
        name: "hole-zap-leaf",
        shows: "a 1 GiB leaf that comes in while a driver drops leaves: 'bad pud' on the stock kernel, dropped with the patch",
        run: zap_leaf,
        limit: 60,
        expects_log: &["bad pud"],
        ..Case::DEFAULT
    },
    Case {
        name: "hole-poison-unmapped",
        shows: "a machine check in page-less memory: WARNING for want of a kernel mapping on the stock kernel, none with the patch",
        machine: "intel",
        run: poison_unmapped,
        limit: 30,
        expects_log: &["WARNING: arch/x86/mm/pat/set_memory.c", "Call Trace"],
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

/// Loads tests/modules/dmem_leaf_probe.c.
fn insert_probe(start: u64, size: u64, track: u32) -> std::io::Result<()> {
    let parameters = format!("base={start} size={size} track={track}");
    module::insert_with(&payload::path(&format!("{PROBE}.ko")), &parameters)
}

fn open_probe() -> std::io::Result<File> {
    let path = format!("/dev/{PROBE}");
    File::options().read(true).write(true).open(path)
}

fn pat_untracked() -> Outcome {
    let start = Region::first()?.start;
    // How many of the leaves are write-back.
    let write_back = || -> Outcome<usize> {
        let spinner = Spinner::start(|| {
            let mapping = Map::new(8 * HUGE).file(&open_probe()?)?;
            mapping.touch(HUGE);
            Ok(mapping)
        })?;
        let leaves = spinner.leaves()?;
        check_eq!(leaves.census(), Census::new(0, 8, 0), "leaves");
        check_eq!(leaves.0[0].phys, start, "where the first one leads");
        Ok(leaves.0.iter().filter(|leaf| leaf.write_back).count())
    };
    insert_probe(start, 8 * HUGE, 0)?;
    check_eq!(write_back()?, 0, "write-back leaves of untracked memory");
    module::unload(PROBE)?;
    if !patched() {
        check_eq!(
            errno(insert_probe(start, 8 * HUGE, 1)),
            Some(libc::ENOENT),
            "errno of asking for pfnmap_track"
        );
        return Ok(());
    }
    insert_probe(start, 8 * HUGE, 1)?;
    check_eq!(write_back()?, 8, "write-back leaves of tracked memory");
    Ok(module::unload(PROBE)?)
}

fn zap_leaf() -> Outcome {
    /// How often leaves are dropped at most: with the patch, and without, where one call in a thousand is a hit.
    const ZAPS: (u32, u32) = (5_000, 50_000);
    /// How many leaves a mapping has room for: a fault hits the one that is being looked at the sooner.
    const LEAVES: u64 = 512;
    insert_probe(Region::first()?.start, GIB, 0)?;
    let mut file = open_probe()?;
    let mut readers = Vec::new();
    for _ in 0..2 {
        readers.push(Child::start(|_| {
            let place = space(LEAVES * GIB)? as usize;
            let mapping = Map::new(LEAVES * GIB).at(place).file(&file)?;
            let mut random: u64 = 1;
            loop {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                mapping.read((random >> 33) % LEAVES * GIB);
            }
        })?);
    }
    let mut log = KernelLog::open()?;
    log.read_new();
    let bad = |line: &String| line.contains("bad pud");
    let mut first = None;
    let zaps = if patched() { ZAPS.0 } else { ZAPS.1 };
    for zap in 1..=zaps {
        file.write_all(b"z")?;
        if log.read_new().iter().any(bad) {
            first = Some(zap);
            break;
        }
    }
    say!("leaves dropped beside faults: first 'bad pud' by number {first:?}");
    for mut reader in readers {
        check_eq!(
            reader.kill()?,
            End::Signal(libc::SIGKILL),
            "how the reader ended"
        );
    }
    drop(file);
    module::unload(PROBE)?;
    check_eq!(
        first.is_none(),
        patched(),
        "whether no leaf was taken for a bad table"
    );
    Ok(())
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
    let reopened = File::options().read(true).write(true).open(path);
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

fn poison_unmapped() -> Outcome {
    let device = page_less(HUGE, &[(0, HUGE)])?;
    let _cleaned = Cleaned;
    let at = device.physical(3 * PAGE)?;
    let mut log = KernelLog::open()?;
    log.read_new();
    machine_check::patrol(at)?;
    poison::wait_known(&[at])?;
    // What the kernel does next is the last thing that it does.
    let deadline = Instant::now() + patient(Duration::from_secs(3));
    let mut lines = Vec::new();
    while Instant::now() < deadline && !lines.iter().any(|line: &String| line.contains(WITHIN)) {
        std::thread::sleep(Duration::from_millis(20));
        lines.extend(log.read_new());
    }
    let warned = lines.iter().any(|line| line.contains(WITHIN));
    check_eq!(warned, !patched(), "a warning in {WITHIN}");
    if patched() {
        check_eq!(complaints(&lines, &[]), Vec::<&str>::new(), "complaints");
    }
    Ok(())
}
