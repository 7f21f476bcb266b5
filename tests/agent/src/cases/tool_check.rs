// SPDX-License-Identifier: GPL-2.0
//! `daxdmem check` on hosts that are well, and on one that lost memory to the kernel.

use crate::case::{Case, Outcome};
use crate::command::Command;
use crate::memory::movable;
use crate::region::{Region, GIB, MIB};
use crate::{check, check_eq, module, sysfs};

use super::holes::{knows_special, release};
use super::tool_host::{done, need, tool, Host};

pub const CASES: &[Case] = &[
    Case {
        name: "tool-check-one-region",
        shows: "check finds nothing amiss on a host that is well, names its region, and changes nothing",
        run: || healthy("region 0 on node 0 (6G)", "6G: 0x100000000-0x27fffffff"),
        ..Case::DEFAULT
    },
    Case {
        name: "tool-check-two-regions",
        shows: "the same with two regions",
        machine: "two-regions",
        run: || healthy("region 0 on node 0 (3G), region 1 on node 0 (4G)", "7G: "),
        ..Case::DEFAULT
    },
    Case {
        name: "tool-check-two-nodes",
        shows: "the same on two nodes",
        machine: "numa",
        run: || healthy("region 0 on node 0 (2G), region 1 on node 1 (4G)", "6G: "),
        ..Case::DEFAULT
    },
    Case {
        name: "tool-check-system-ram",
        shows: "memory of a region that the kernel has as its own is an error, until it is given back",
        limit: 40,
        run: system_ram,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-check-state",
        shows: "check reports changed permissions, the quarantine, and region_idle that is off",
        limit: 40,
        run: state,
        ..Case::DEFAULT
    },
];

/// Lines of a finding: `LEVEL   CHECK: …`.
fn finding(text: &str, check: &str) -> Option<String> {
    let name = format!("{check}: ");
    let line = text
        .lines()
        .find(|line| line.get(8..).is_some_and(|rest| rest.starts_with(&name)))?;
    Some(line.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
}

fn expect(text: &str, check: &str, wanted: &str) -> Outcome {
    let found = finding(text, check);
    check!(
        found
            .as_deref()
            .is_some_and(|found| found.starts_with(wanted)),
        "finding {check} is {found:?}, not {wanted}"
    );
    Ok(())
}

fn healthy(regions: &str, reserved: &str) -> Outcome {
    need()?;
    module::load("kvm-amd")?;
    let before = Host::look()?;
    let text = done("check")?;
    let levels: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("warning") || line.starts_with("error"))
        .collect();
    check_eq!(levels, Vec::<&str>::new(), "warnings and errors");
    for (check, wanted) in [
        ("architecture", "ok architecture: x86_64"),
        ("kernel", "ok kernel: 7."),
        ("driver", "ok driver: dax_dmem is loaded"),
        (
            "system-ram",
            "ok system-ram: nothing of a region is the kernel's own memory",
        ),
        ("region-idle", "ok region-idle: regions are left to daxdmem"),
        ("kmem", "ok kmem: is not loaded by itself"),
        ("memory-type", "ok memory-type: "),
        ("guests", "ok guests: none yet"),
        ("permissions", "ok permissions: "),
        ("kvm", "ok kvm: /dev/kvm is there"),
        ("qemu", "ok qemu: QEMU emulator version "),
        ("libvirt", "info libvirt: is not installed"),
    ] {
        expect(&text, check, wanted)?;
    }
    expect(
        &text,
        "regions",
        &format!("ok regions: as reserved: {regions}"),
    )?;
    expect(&text, "reservation", &format!("ok reservation: {reserved}"))?;
    let json = done("check --json")?;
    check!(
        json.contains("\"errors\": 0,") && json.contains("\"warnings\": 0,"),
        "JSON counts others: {json}"
    );
    let quiet = done("check --quiet")?;
    check_eq!(quiet.trim(), "all is well", "what --quiet says");
    // Everybody may look, and is told what root would see.
    let others = Command::new("setpriv")
        .arg("--reuid=65534")
        .arg("--regid=65534")
        .arg("--clear-groups")
        .arg("daxdmem")
        .arg("check")
        .run()?;
    expect(&others, "root", "info root: ")?;
    check!(
        !others.lines().any(|line| line.starts_with("error")),
        "errors for others than root: {others}"
    );
    Host::look()?.expect(&before, "after check")
}

fn system_ram() -> Outcome {
    need()?;
    module::load("kvm-amd")?;
    module::load("kmem")?;
    let device = Region::first()?.create(2 * MIB, &[(0, GIB)])?;
    movable(|| device.bind("kmem"))?;
    let ran = tool("check --quiet")?;
    check_eq!(ran.code, Some(1), "exit code with an error");
    let wanted = format!(
        "error system-ram: the kernel has {} (1G) as its own memory",
        device.name
    );
    expect(&ran.stdout, "system-ram", &wanted)?;
    check!(
        ran.stdout.contains("\n1 error, 0 warnings\n"),
        "the sum is another: {}",
        ran.stdout
    );
    // What the finding advises works.
    for words in ["offline-memory", "reconfigure-device -f -m devdax"] {
        Command::line(&format!("daxctl {words} {}", device.name))
            .limit(60)
            .run()?;
    }
    done("check")?;
    if device.driver().is_some() {
        device.unbind()?;
    }
    device.destroy()
}

fn state() -> Outcome {
    need()?;
    module::load("kvm-amd")?;
    let idle = "/sys/module/dax_hmem/parameters/region_idle";
    sysfs::write(idle, "N")?;
    let ran = tool("check --quiet")?;
    sysfs::write(idle, "Y")?;
    check_eq!(ran.code, Some(1), "exit code while region_idle is off");
    expect(&ran.stdout, "region-idle", "error region-idle: off")?;

    done("create vm1 --size 1G --owner 65534:65534 --mode 0660")?;
    let device = super::tool_host::device_of("vm1")?;
    let text = done("check")?;
    expect(&text, "guests", "ok guests: 1, whose device is there")?;
    expect(&text, "permissions", "ok permissions: ")?;
    let guard = match knows_special(&release()) {
        true => "ok guard: dax_dmem_guard is not needed",
        false => "warning guard: ",
    };
    expect(&text, "guard", guard)?;
    Command::new("chmod")
        .arg("0600")
        .arg(device.path().display().to_string())
        .run()?;
    let text = done("check")?;
    expect(&text, "permissions", "warning permissions: vm1 has ")?;
    done("set vm1 --mode 0660")?;
    expect(&done("check")?, "permissions", "ok permissions: ")?;

    let file = device.open()?;
    done("unbind vm1 --force")?;
    expect(&done("check")?, "quarantine", "warning quarantine: 0x")?;
    drop(file);
    done("destroy vm1").map(drop)
}
