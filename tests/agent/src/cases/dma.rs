// SPDX-License-Identifier: GPL-2.0
//! Devices of the machine that read and write page-less memory by themselves, in the hands of a process (VFIO).

use std::time::Duration;

use crate::case::{Case, Outcome};
use crate::child::{Child, End};
use crate::device::{quarantine, wait_for_quarantine, Device, DAX_DMEM, DEVICE_DAX};
use crate::mapping::{Map, Mapping};
use crate::pattern::Pattern;
use crate::poison::PAGE;
use crate::region::{Region, GIB, MIB};
use crate::scrub::{self, Policy};
use crate::tracing::Tracing;
use crate::vfio::Edu;
use crate::{check, check_eq, payload, say, sysfs};

use super::lifecycle::refused_as_busy;
use super::page_less;

pub const CASES: &[Case] = &[
    Case {
        name: "vfio-dma",
        shows: "a PCI device reads and writes page-less memory by VFIO; nothing is pinned, and 1 GiB is one leaf of the IOMMU",
        machine: "vfio",
        limit: 60,
        run: dma,
        ..Case::DEFAULT
    },
    Case {
        name: "vfio-outlives-user",
        shows: "memory that a PCI device may still write to, though no process has it open, goes to nobody before that is over",
        machine: "vfio",
        limit: 60,
        run: outlives_user,
        ..Case::DEFAULT
    },
];

/// Where the device finds page-less memory.
const IOVA: u64 = GIB;
/// And memory of the process itself.
const OWN: u64 = IOVA + GIB;

/// What the kernel has pinned for devices, and the page tables of the IOMMU: pages.
pub(super) fn pins() -> Outcome<(u64, u64)> {
    // Each CPU has counters of its own.
    sysfs::write("/proc/sys/vm/stat_refresh", "1")?;
    let counter = |name: &str| sysfs::number_in("/proc/vmstat", name);
    Ok((counter("nr_foll_pin_acquired")?, counter("nr_iommu_pages")?))
}

/// Two pages of the process's own, the first full of a pattern.
fn own_pages(pattern: Pattern) -> Outcome<Mapping> {
    let own = Map::new(2 * PAGE).anonymous()?;
    own.touch(PAGE);
    pattern.fill(own.words(0, PAGE), 0);
    Ok(own)
}

fn dma() -> Outcome {
    let device = page_less(GIB, &[(0, GIB)])?;
    let mapping = Map::new(GIB).file(&device.open()?)?;
    mapping.touch(GIB);
    let edu = Edu::open()?;
    let (pinned, tables) = pins()?;
    let tracing = Tracing::start("dax_dmem_map")?.with("iommu/map")?;
    edu.map(IOVA, mapping.address(), GIB)?;
    let traced = tracing.lines()?;
    drop(tracing);
    let mut pieces = traced.iter().filter(|line| line.starts_with("map: "));
    let first = pieces.next().map_or("none", String::as_str);
    say!("{first}");
    check!(
        first.ends_with(&format!("size={GIB}")) || first.ends_with(&format!("size={GIB:#x}")),
        "the IOMMU gets it as {first}"
    );
    check_eq!(pieces.next(), None, "a second piece");
    let (pinned, tables) = (pins()?.0 - pinned, pins()?.1 - tables);
    say!("1 GiB of page-less memory: {pinned} pages pinned, {tables} of IOMMU page tables");
    check_eq!(pinned, 0, "pages pinned");
    // The upper levels of the table, and no page of 512 smaller leaves.
    check!(
        tables <= 3,
        "the IOMMU's tables have grown by {tables} pages"
    );

    // The control: memory with pages is pinned, and needs tables.
    let before = pins()?;
    let own = own_pages(Pattern::new(1))?;
    edu.map(OWN, own.address(), 2 * PAGE)?;
    let after = pins()?;
    check!(
        after.0 > before.0 && after.1 > before.1,
        "memory with pages changes {before:?} to {after:?}: is the measurement right?"
    );

    // To the first page, over the middle, to the last bytes; and back.
    let pattern = Pattern::new(1);
    for at in [0, 512 * MIB - PAGE / 2, GIB - PAGE] {
        let neighbours = [at.checked_sub(8), Some(at + PAGE).filter(|at| *at < GIB)];
        for at in neighbours.into_iter().flatten() {
            mapping.write(at, !at);
        }
        edu.copy(OWN, IOVA + at, PAGE)?;
        pattern.verify(mapping.words(at, PAGE), 0)?;
        for at in neighbours.into_iter().flatten() {
            check_eq!(mapping.read(at), !at, "the word at {at:#x}, beside it");
        }
        let reply = Pattern::new(2 + at);
        reply.fill(mapping.words(at, PAGE), 0);
        edu.copy(IOVA + at, OWN + PAGE, PAGE)?;
        reply.verify(own.words(PAGE, PAGE), 0)?;
    }
    edu.unmap(IOVA, GIB)
}

/// Has the device map, and then has nothing of it but the container.
pub(super) fn give_away(device: &Device) -> Outcome<Edu> {
    let edu = Edu::open()?;
    let file = device.open()?;
    let mapping = Map::new(64 * MIB).file(&file)?;
    edu.map(IOVA, mapping.address(), 64 * MIB)?;
    Ok(edu)
}

fn outlives_user() -> Outcome {
    const AT: u64 = 33 * MIB;
    payload::need_module()?;
    let region = Region::first()?;
    let device = region.create(2 * MIB, &[(0, 64 * MIB)])?;
    Policy::Release.bind(&device)?;
    let mut user = Child::start(|link| {
        let edu = give_away(&device)?;
        link.send("closed")?;
        link.receive()?;
        let secret = Pattern::new(3);
        let own = own_pages(secret)?;
        edu.map(OWN, own.address(), 2 * PAGE)?;
        edu.copy(OWN, IOVA + AT, PAGE)?;
        edu.copy(IOVA + AT, OWN + PAGE, PAGE)?;
        secret.verify(own.words(PAGE, PAGE), 0)?;
        // Whoever has the container is not this process any more.
        let mut heir = Child::start(|link| {
            link.send("there")?;
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        })?;
        // It would end if it found nobody to tell.
        heir.link().receive()?;
        link.send(&heir.pid().to_string())?;
        std::mem::forget(heir);
        Ok(())
    })?;
    user.link().receive()?;
    check_eq!(quarantine()?, Vec::<String>::new(), "while it is bound");
    device.unbind()?;
    let held = format!(
        "{:#x}-{:#x} {} 0",
        region.start,
        region.start + 64 * MIB - 1,
        device.name
    );
    check_eq!(quarantine()?, [held.clone()], "behind the unbind");
    refused_as_busy(device.try_bind(DAX_DMEM), "binding it again")?;
    let other = device.try_bind(DEVICE_DAX).is_ok();
    check!(!other, "device_dax has what a device may still write to");
    user.link().send("write")?;
    let heir: i32 = user.link().receive()?.parse()?;
    // Its line to this process stays open: the heir has the other end, too.
    check_eq!(user.wait()?, End::Exit(0), "end of the user");
    std::thread::sleep(Duration::from_secs(3));
    check_eq!(
        quarantine()?,
        [held],
        "with the user gone, the container there"
    );
    refused_as_busy(device.try_bind(DAX_DMEM), "binding it then")?;
    // SAFETY: a process of this case.
    check_eq!(unsafe { libc::kill(heir, libc::SIGKILL) }, 0, "kill");
    wait_for_quarantine(&[])?;
    scrub::settle()?;
    device.bind(DAX_DMEM)?;
    let mapping = Map::new(64 * MIB).file(&device.open()?)?;
    for at in (AT..AT + PAGE).step_by(8) {
        check_eq!(mapping.read(at), 0, "word at {at:#x} of the next tenant");
    }
    Ok(())
}
