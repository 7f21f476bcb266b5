// SPDX-License-Identifier: GPL-2.0
//! Static devices: a persistent-memory namespace in devdax mode, made by ndctl.

use std::time::Duration;

use crate::case::{Case, Failure, Outcome};
use crate::command::Command;
use crate::device::{Device, DAX_DMEM};
use crate::kvm::{self, KvmPages};
use crate::mapping::Map;
use crate::memory::human;
use crate::pages::Census;
use crate::region::{GIB, MIB};
use crate::vmm::{self, Guest};
use crate::{check, check_eq, module, payload, say};

use super::leaves::proven;

pub const CASES: &[Case] = &[Case {
    name: "pmem-namespace",
    shows: "a namespace in devdax mode binds, is mapped with 1 GiB leaves, and a guest boots on it",
    machine: "pmem",
    limit: 90,
    run: namespace,
    ..Case::DEFAULT
}];

/// Makes a namespace in devdax mode of the machine's persistent memory; its device.
pub(super) fn make_namespace() -> Outcome<Device> {
    // There is no udev to load what the namespace's devices ask for.
    ["nd_e820", "nd_pmem", "dax_pmem"]
        .into_iter()
        .try_for_each(module::load)?;
    let made = Command::line("ndctl create-namespace -f -e namespace0.0 -m devdax -M mem -a 1G")
        .limit(30)
        .run()?;
    // ndctl answers in JSON; the device is the only `"chardev":"daxX.Y"` in it.
    let name = made.split('"').skip_while(|word| *word != "chardev").nth(2);
    let name = name.ok_or_else(|| Failure::Fail(format!("ndctl named no device: {made}")))?;
    Ok(Device::existing(name))
}

fn namespace() -> Outcome {
    payload::need_module()?;
    let device = make_namespace()?;
    let name = &device.name;
    if device.driver().is_some() {
        device.unbind()?;
    }
    device.bind(DAX_DMEM)?;
    let size = device.size()?;
    say!("{name}: {}", human(size));
    check_eq!(size, 2 * GIB, "size of {name}");

    let leaves = proven(&device, 0, |file| {
        let mapping = Map::new(2 * GIB).file(file)?;
        mapping.write(0, 1);
        mapping.write(GIB, 1);
        Ok(mapping)
    })?;
    check_eq!(leaves.census(), Census::new(2, 0, 0), "leaves of {name}");

    kvm::load()?;
    let mut guest = Guest::start("pmem", size, &vmm::device(&device, "1G")?, true)?;
    let report = guest.report(Duration::from_secs(300))?;
    say!(
        "guest: {} in MemTotal, pattern over {}",
        human(report.memory),
        human(report.pattern)
    );
    check!(
        report.memory > size - 200 * MIB,
        "the guest sees {}",
        human(report.memory)
    );
    let pages = KvmPages::read()?;
    check!(pages.large > 0, "KVM has no 1 GiB leaf: {pages:?}");
    guest.power_off()?;
    check_eq!(
        guest.wait_end(Duration::from_secs(10))?,
        0,
        "QEMU's exit code"
    );
    Ok(())
}
