// SPDX-License-Identifier: GPL-2.0
//! Second-level guests on page-less memory.

use std::time::Duration;

use crate::case::{errno, Case, Outcome};
use crate::device::{driver_attribute, Device, DAX_DMEM};
use crate::kvm::{self, KvmPages};
use crate::memory::human;
use crate::region::{Region, GIB, MIB};
use crate::vmm::{self, Guest};
use crate::{check, check_eq, say, sysfs};

use super::page_less;

pub const CASES: &[Case] = &[
    Case {
        name: "guest-on-device",
        shows: "a guest of 2 GiB boots on a device, KVM maps it with 1 GiB leaves, and all of its memory works",
        machine: "nested",
        limit: 90,
        run: guest_on_device,
        ..Case::DEFAULT
    },
    Case {
        name: "guest-loses-device",
        shows: "unbinding under a running guest ends that guest, not the host; its memory is quarantined until QEMU is gone",
        machine: "nested",
        limit: 90,
        run: guest_loses_device,
        ..Case::DEFAULT
    },
];

fn boot(device: &Device) -> Outcome<Guest> {
    kvm::load()?;
    let mut guest = Guest::start(&device.name, 2 * GIB, &vmm::device(device, "1G")?, true)?;
    let report = guest.report(Duration::from_secs(300))?;
    say!(
        "guest on {}: {} in MemTotal, pattern over {}",
        device.name,
        human(report.memory),
        human(report.pattern)
    );
    check!(
        report.memory > 2 * GIB - 200 * MIB,
        "the guest sees {}",
        human(report.memory)
    );
    check!(
        report.pattern > report.memory - 200 * MIB,
        "the pattern covered {} only",
        human(report.pattern)
    );
    let pages = KvmPages::read()?;
    say!("KVM: {pages:?}");
    check!(pages.large > 0, "KVM has no 1 GiB leaf: {pages:?}");
    Ok(guest)
}

fn guest_on_device() -> Outcome {
    let device = page_less(GIB, &[(0, 2 * GIB)])?;
    let mut guest = boot(&device)?;
    guest.power_off()?;
    check_eq!(
        guest.wait_end(Duration::from_secs(20))?,
        0,
        "QEMU's exit code"
    );
    check_eq!(
        sysfs::read_number(device.attribute("dax_dmem/openers"))?,
        0,
        "openers after the guest"
    );
    Ok(())
}

fn guest_loses_device() -> Outcome {
    let region = Region::first()?;
    let device = page_less(GIB, &[(0, 2 * GIB)])?;
    let beside = region.create(GIB, &[(2 * GIB, 2 * GIB)])?;
    beside.bind(DAX_DMEM)?;
    let mut guest = boot(&device)?;
    device.unbind()?;
    let held = sysfs::read(driver_attribute(DAX_DMEM, "quarantine"))?;
    check!(
        held.contains(&device.name),
        "quarantine is '{held}' while QEMU has the device"
    );
    let busy = errno(device.try_bind(DAX_DMEM));
    check_eq!(busy, Some(libc::EBUSY), "errno of binding under QEMU");
    let end = guest.wait_end(Duration::from_secs(20))?;
    check_eq!(end, -libc::SIGBUS, "end of QEMU");
    drop(guest);
    device.bind(DAX_DMEM)?;
    // The host is well: the next guest runs.
    let mut next = boot(&beside)?;
    next.power_off()?;
    check_eq!(
        next.wait_end(Duration::from_secs(20))?,
        0,
        "exit code of the next QEMU"
    );
    Ok(())
}
