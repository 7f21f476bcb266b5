// SPDX-License-Identifier: GPL-2.0
//! daxctl beside the driver: what its verbs do to page-less devices, used and unused.

use crate::case::{Case, Outcome};
use crate::command::{Command, Ran};
use crate::device::{Device, DAX_DMEM, DEVICE_DAX};
use crate::mapping::Map;
use crate::memory::{movable, Meminfo};
use crate::region::{GIB, MIB};
use crate::{check, check_eq, module, probe, say};

use super::page_less;

pub const CASES: &[Case] = &[
    Case {
        name: "daxctl-disable-enable",
        shows: "daxctl lists, disables and enables a page-less device, and will not destroy it unasked",
        run: disable_enable,
        ..Case::DEFAULT
    },
    Case {
        name: "daxctl-system-ram",
        shows: "memory lent to the host by daxctl comes back page-less, and is not lent while somebody maps it",
        limit: 60,
        run: system_ram,
        ..Case::DEFAULT
    },
];

/// Runs a verb on a device.
pub(super) fn daxctl(verb: &str, device: &Device) -> Outcome<Ran> {
    let ran = Command::line(&format!("daxctl {verb} {}", device.name))
        .limit(30)
        .try_run()?;
    say!(
        "daxctl {verb} {}: {:?} {}",
        device.name,
        ran.code,
        ran.stderr.trim()
    );
    Ok(ran)
}

fn disable_enable() -> Outcome {
    let device = page_less(GIB, &[(0, GIB)])?;
    let listed = daxctl("list -d", &device)?.stdout;
    check!(
        listed.contains(&device.name) && listed.contains("\"mode\":\"devdax\""),
        "daxctl lists {listed}"
    );
    check!(!listed.contains("disabled"), "daxctl lists {listed}");

    let refused = daxctl("destroy-device", &device)?;
    check!(
        refused.code != Some(0),
        "daxctl destroyed a bound device without being forced"
    );
    check_eq!(device.size()?, GIB, "size after the refusal");

    let mapping = Map::new(GIB).file(&device.open()?)?;
    mapping.write(5 * MIB, 55);
    check_eq!(
        daxctl("disable-device", &device)?.code,
        Some(0),
        "exit code of disable-device"
    );
    check_eq!(device.driver(), None, "driver after disable-device");
    let fault = probe::read(mapping.address() + 5 * MIB as usize).map_err(|fault| fault.signal);
    check_eq!(fault, Err(libc::SIGBUS), "access after disable-device");
    drop(mapping);

    // daxctl knows device_dax only.
    daxctl("enable-device", &device)?;
    if device.driver().is_none() {
        device.bind(DEVICE_DAX)?;
    }
    say!("driver after enable-device: {:?}", device.driver());
    device.unbind()?;
    device.bind(DAX_DMEM)?;
    check_eq!(
        Map::new(GIB).file(&device.open()?)?.read(5 * MIB),
        55,
        "contents after disable and enable"
    );
    Ok(())
}

fn system_ram() -> Outcome {
    // Kept from loading by itself, as on a configured host; by name it can be had.
    module::load("kmem")?;
    let device = page_less(2 * MIB, &[(0, GIB)])?;
    let total = Meminfo::read()?.bytes("MemTotal")?;
    let mapping = Map::new(GIB).file(&device.open()?)?;
    mapping.write(0, 1);

    // Forced away from under a user: the memory is quarantined, so it does not become the host's.
    daxctl("reconfigure-device -f -m system-ram", &device)?;
    check!(
        device.driver().as_deref() != Some("kmem"),
        "memory that is mapped became system RAM"
    );
    check_eq!(Meminfo::read()?.bytes("MemTotal")?, total, "MemTotal");
    let fault = probe::read(mapping.address()).map_err(|fault| fault.signal);
    check_eq!(fault, Err(libc::SIGBUS), "access after reconfigure-device");
    drop(mapping);

    let lent = movable(|| daxctl("reconfigure-device -f -m system-ram", &device))?;
    check_eq!(
        lent.code,
        Some(0),
        "exit code of lending memory nobody uses"
    );
    check_eq!(
        device.driver(),
        Some("kmem".to_owned()),
        "driver of lent memory"
    );
    check!(
        Meminfo::read()?.bytes("MemTotal")? >= total + GIB,
        "MemTotal did not grow by the lent GiB"
    );

    daxctl("offline-memory", &device)?;
    let back = daxctl("reconfigure-device -f -m devdax", &device)?;
    check_eq!(back.code, Some(0), "exit code of taking memory back");
    check_eq!(
        Meminfo::read()?.bytes("MemTotal")?,
        total,
        "MemTotal after taking memory back"
    );
    if device.driver().is_some() {
        device.unbind()?;
    }
    device.bind(DAX_DMEM)?;
    let mapping = Map::new(GIB).file(&device.open()?)?;
    mapping.write(GIB - 8, 2);
    check_eq!(
        mapping.read(GIB - 8),
        2,
        "last word after the memory came back"
    );
    Ok(())
}
