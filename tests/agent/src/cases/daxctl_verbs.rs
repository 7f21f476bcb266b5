// SPDX-License-Identifier: GPL-2.0
//! Every verb of daxctl and ndctl against page-less memory that is in use: it stays as it is, or is out of reach with
//! SIGBUS, and then nobody else gets it before its user has gone. Documentation/daxctl.md has the table.

use std::path::Path;

use crate::case::{errno, Case, Outcome};
use crate::command::{Command, Ran};
use crate::device::{quarantine, wait_for_quarantine, Device, DAX_DMEM};
use crate::mapping::{Map, Mapping};
use crate::memory::Meminfo;
use crate::region::{Region, GIB, MIB};
use crate::{check, check_eq, module, probe, say};

use super::page_less;
use super::pmem::make_namespace;
use super::tool_host::{done, need};

pub const CASES: &[Case] = &[
    Case {
        name: "daxctl-in-use",
        shows: "no verb of daxctl loses the memory of a device in use without a refusal or SIGBUS",
        limit: 120,
        run: in_use,
        ..Case::DEFAULT
    },
    Case {
        name: "ndctl-in-use",
        shows: "a namespace is bound by the tool; no verb of ndctl loses its memory without a refusal or SIGBUS",
        machine: "pmem",
        limit: 120,
        run: namespace,
        ..Case::DEFAULT
    },
];

/// How a verb ends.
#[derive(Clone, Copy, PartialEq)]
enum Ends {
    /// It says that it did what it was to do.
    Well,
    /// It refuses.
    Refused,
    /// It is about something else, or says one thing or the other by version.
    Somehow,
}

use Ends::{Refused, Somehow, Well};

/// Where the device stands in a command.
const PLACE: &str = "DEVICE";

/// Verbs of daxctl that leave a bound device as it is, mapped or idle.
const HARMLESS: &[(&str, Ends)] = &[
    ("list -RDi -d DEVICE", Well),
    ("destroy-device DEVICE", Refused),
    ("enable-device DEVICE", Somehow),
    ("reconfigure-device -m devdax DEVICE", Somehow),
    ("reconfigure-device -f -m devdax DEVICE", Somehow),
    // Where the kernel onlines memory by itself, as Debian's does.
    ("reconfigure-device -m system-ram DEVICE", Refused),
    ("reconfigure-device -m famfs DEVICE", Refused),
    ("reconfigure-device -s 64M DEVICE", Refused),
    ("reconfigure-device -a 1G DEVICE", Refused),
    ("online-memory DEVICE", Refused),
    ("offline-memory DEVICE", Refused),
    ("split-acpi", Somehow),
    ("migrate-device-model", Somehow),
    ("version", Well),
    ("help", Somehow),
];

/// Those that take it away.
const TAKING: &[(&str, Ends)] = &[
    ("disable-device DEVICE", Well),
    ("destroy-device -f DEVICE", Well),
    ("reconfigure-device -f -m system-ram DEVICE", Refused),
];

fn run(program: &str, verb: &str, ends: Ends, device: &str) -> Outcome<Ran> {
    let line = format!("{program} {}", verb.replace(PLACE, device));
    let ran = Command::line(&line).limit(60).try_run()?;
    let said = format!("{} {}", ran.stdout.trim(), ran.stderr.trim()).replace('\n', " ");
    say!("{line}: {:?} {said}", ran.code);
    let well = ran.code == Some(0);
    match ends {
        Well => check!(well, "'{line}' did not succeed"),
        Refused => check!(!well, "'{line}' was not refused"),
        Somehow => (),
    }
    Ok(ran)
}

const SIZE: u64 = 128 * MIB;
/// Where the word is that has to stay.
const AT: u64 = MIB;

/// A user of all of a device, whose words are these.
fn user(device: &Device, word: u64) -> Outcome<Mapping> {
    let mapping = Map::new(device.size()?).file(&device.open()?)?;
    mapping.write(AT, word);
    Ok(mapping)
}

fn check_kept(device: &Device, size: u64, after: &str) -> Outcome {
    let driver = device.driver();
    check_eq!(driver.as_deref(), Some(DAX_DMEM), "driver after '{after}'");
    check_eq!(device.size()?, size, "size after '{after}'");
    Ok(())
}

/// Fails unless the user gets SIGBUS, and the range is quarantined.
fn check_taken(mapping: &Mapping, device: &str, after: &str) -> Outcome {
    let fault = probe::read(mapping.address() + AT as usize).map_err(|fault| fault.signal);
    check_eq!(fault, Err(libc::SIGBUS), "access after '{after}'");
    let held = quarantine()?;
    check!(
        held.iter().any(|line| line.contains(device)),
        "after '{after}' the quarantine is {held:?}"
    );
    Ok(())
}

fn in_use() -> Outcome {
    // Kept from loading by itself; where it is there, memory can be lent.
    module::load("kmem")?;
    let region = Region::first()?;
    let device = page_less(2 * MIB, &[(0, SIZE)])?;
    let mapping = user(&device, 55)?;
    for (verb, ends) in HARMLESS {
        run("daxctl", verb, *ends, &device.name)?;
        check_kept(&device, SIZE, verb)?;
        check_eq!(mapping.read(AT), 55, "memory after '{verb}'");
    }
    made_elsewhere(&region, &device)?;
    check_eq!(mapping.read(AT), 55, "memory after create-device");
    drop(mapping);
    // Bound and idle.
    for (verb, ends) in HARMLESS {
        run("daxctl", verb, *ends, &device.name)?;
        check_kept(&device, SIZE, verb)?;
    }
    check_eq!(
        Map::new(SIZE).file(&device.open()?)?.read(AT),
        55,
        "memory after all of these"
    );
    device.destroy()?;
    // What migrate-device-model leaves behind.
    let _ = std::fs::remove_file("/etc/modprobe.d/daxctl.conf");
    TAKING
        .iter()
        .try_for_each(|(verb, ends)| taken(&region, verb, *ends))
}

/// Another device is made of other memory.
fn made_elsewhere(region: &Region, device: &Device) -> Outcome {
    let verb = format!("create-device -r {} -s 64M", region.id);
    let made = run("daxctl", &verb, Well, "")?.stdout;
    let name = made.split('"').skip_while(|word| *word != "chardev").nth(2);
    let other = Device::existing(name.unwrap_or_default());
    let (mine, its) = (device.ranges()?, other.ranges()?);
    let apart = mine.iter().all(|one| {
        its.iter()
            .all(|two| one.start + one.length <= two.start || two.start + two.length <= one.start)
    });
    check!(
        apart && !its.is_empty(),
        "create-device gave {its:?}, and {mine:?} is in use"
    );
    run("daxctl", "destroy-device -f DEVICE", Well, &other.name).map(drop)
}

/// The verb takes a device from its user; nobody has the memory before the user has let go of it.
fn taken(region: &Region, verb: &str, ends: Ends) -> Outcome {
    let device = page_less(2 * MIB, &[(0, SIZE)])?;
    let total = Meminfo::read()?.bytes("MemTotal")?;
    let mapping = user(&device, 56)?;
    run("daxctl", verb, ends, &device.name)?;
    check_taken(&mapping, &device.name, verb)?;
    check!(device.driver().is_none(), "{} is bound", device.name);
    check_eq!(
        Meminfo::read()?.bytes("MemTotal")?,
        total,
        "MemTotal after '{verb}'"
    );
    // Whatever device has its range now: the same, or one that is made there.
    let heir = match device.size() {
        Ok(SIZE) => None,
        _ => Some(region.create(2 * MIB, &[(0, SIZE)])?),
    };
    let there = heir.as_ref().unwrap_or(&device);
    // Not device_dax, which a failed bind leaves with a pointer to freed memory: Documentation/kernel-holes.md, H7.
    for driver in [DAX_DMEM, "kmem"] {
        let bound = errno(there.try_bind(driver));
        check_eq!(
            bound,
            Some(libc::EBUSY),
            "errno of binding {} to {driver} after '{verb}'",
            there.name
        );
    }
    drop(mapping);
    wait_for_quarantine(&[])?;
    there.bind(DAX_DMEM)?;
    let word = Map::new(SIZE).file(&there.open()?)?.read(AT);
    check_eq!(word, 56, "memory after '{verb}'");
    Ok(())
}

/// Verbs of ndctl that leave a bound namespace as it is.
const NAMESPACE_HARMLESS: &[(&str, Ends)] = &[
    ("list -NRDu", Well),
    ("enable-namespace namespace0.0", Somehow),
    ("check-namespace namespace0.0", Refused),
    ("destroy-namespace namespace0.0", Refused),
    ("create-namespace -e namespace0.0 -m fsdax", Refused),
    ("write-infoblock namespace0.0", Refused),
    ("clear-errors namespace0.0", Somehow),
    ("enable-region region0", Somehow),
];

/// Programs and verbs that take it away.
const NAMESPACE_TAKING: &[(&str, &str, Ends)] = &[
    // Unbinds it, and then cannot change its size.
    ("daxctl", "destroy-device -f DEVICE", Refused),
    ("ndctl", "disable-namespace namespace0.0", Well),
    ("ndctl", "destroy-namespace -f namespace0.0", Somehow),
    (
        "ndctl",
        "create-namespace -f -e namespace0.0 -m fsdax",
        Refused,
    ),
    ("ndctl", "disable-region region0", Well),
];

fn namespace() -> Outcome {
    need()?;
    let device = bare_namespace()?;
    done(&format!("bind {} --scrub never", device.name))?;
    let arguments = done(&format!("qemu-args {}", device.name))?;
    let path = format!("mem-path=/dev/{}", device.name);
    check!(arguments.contains(&path), "qemu-args: {arguments}");
    let size = device.size()?;
    check_eq!(size, 2 * GIB, "size of the namespace");
    let mapping = user(&device, 55)?;
    for (verb, ends) in NAMESPACE_HARMLESS {
        run("ndctl", verb, *ends, "")?;
        check_kept(&device, size, verb)?;
        check_eq!(mapping.read(AT), 55, "memory after '{verb}'");
    }
    for verb in ["reconfigure-device -s 64M DEVICE", "destroy-device DEVICE"] {
        run("daxctl", verb, Refused, &device.name)?;
        check_kept(&device, size, verb)?;
        check_eq!(mapping.read(AT), 55, "memory after '{verb}'");
    }
    drop(mapping);
    done(&format!("unbind {}", device.name))?;
    NAMESPACE_TAKING
        .iter()
        .try_for_each(|(program, verb, ends)| taken_namespace(program, verb, *ends))
}

/// A namespace in devdax mode, its device unbound.
fn bare_namespace() -> Outcome<Device> {
    let device = make_namespace()?;
    if device.driver().is_some() {
        device.unbind()?;
    }
    Ok(device)
}

fn taken_namespace(program: &str, verb: &str, ends: Ends) -> Outcome {
    let device = bare_namespace()?;
    device.bind(DAX_DMEM)?;
    let mapping = user(&device, 56)?;
    run(program, verb, ends, &device.name)?;
    check_taken(&mapping, &device.name, verb)?;
    // As persistent memory of another kind it would be somebody else's.
    for verb in [
        "enable-region region0",
        "enable-namespace namespace0.0",
        "create-namespace -f -e namespace0.0 -m fsdax",
    ] {
        run("ndctl", verb, Somehow, "")?;
        let disk = Path::new("/dev/pmem0").exists();
        check!(!disk, "after '{verb}' the memory in use is a disk");
        let driver = Device::existing(&device.name).driver();
        check_eq!(driver, None, "driver after '{verb}'");
    }
    drop(mapping);
    wait_for_quarantine(&[])?;
    for verb in ["enable-region region0", "destroy-namespace -f namespace0.0"] {
        run("ndctl", verb, Somehow, "")?;
    }
    Ok(())
}
