// SPDX-License-Identifier: GPL-2.0
//! Debuggers and dumps of a guest's QEMU.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use crate::case::{Case, Failure, Outcome};
use crate::command::Command;
use crate::core_file::CoreFile;
use crate::mapping::{Map, Mapping};
use crate::memory::human;
use crate::monitor::{self, Monitor};
use crate::region::MIB;
use crate::vmm::{self, Guest, Model};
use crate::{check, check_eq, kvm, say, sysfs};

use super::page_less;

pub const CASES: &[Case] = &[Case {
    name: "guest-dumps",
    shows: "dump-guest-memory has all of a guest, QEMU's core dump none of it, gdb and the monitor read its memory",
    machine: "nested",
    limit: 240,
    hidden: true,
    run: dumps,
    ..Case::DEFAULT
}];

const SIZE: u64 = 256 * MIB;
const MONITOR: &str = "/run/monitor-dump";
const DUMP: &str = "/run/dump.elf";
const CORE: &str = "/run/core";

fn dumps() -> Outcome {
    let device = page_less(2 * MIB, &[(0, SIZE)])?;
    kvm::load()?;
    // QEMU's default leaves guest memory to core dumps; the driver is who keeps it out.
    let mut arguments = vmm::device(&device, "2M")?;
    for argument in &mut arguments {
        *argument = argument.replace(",dump=off", "");
    }
    let core = core_of_guest("page-less", &arguments, |guest, monitor| {
        let memory = Map::new(SIZE).file(&device.open()?)?;
        read_by_debuggers(&device.name, &memory, guest, monitor)?;
        dump_guest(&memory, monitor)
    })?;
    check!(core < SIZE / 2, "the core dump has {}", human(core));
    let arguments: Vec<String> = vmm::ram(SIZE);
    let other = core_of_guest("ordinary", &arguments, |_, _| Ok(()))?;
    check!(
        other > SIZE / 2,
        "beside it, that of a guest on ordinary memory has {}",
        human(other)
    );
    Ok(())
}

/// Boots a guest, has it looked at while it stands still, and ends its QEMU with a core dump; the bytes of that on disk.
fn core_of_guest(
    name: &str,
    memory: &[String],
    look: impl FnOnce(&Guest, &mut Monitor) -> Outcome,
) -> Outcome<u64> {
    sysfs::write("/proc/sys/kernel/core_pattern", CORE)?;
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a plain system call with a valid structure.
    let limited = unsafe { libc::setrlimit(libc::RLIMIT_CORE, &unlimited) };
    check_eq!(limited, 0, "setrlimit");
    let mut arguments = memory.to_vec();
    arguments.extend(monitor::arguments(MONITOR));
    let _ = fs::remove_file(MONITOR);
    let model = Model {
        parameters: " dmem.hold=1",
        ..Model::PLAIN
    };
    let mut guest = Guest::boot(name, SIZE, &arguments, model)?;
    let mut monitor = Monitor::open(MONITOR)?;
    guest.report(Duration::from_secs(300))?;
    monitor.tell("stop")?;
    look(&guest, &mut monitor)?;
    // SAFETY: a plain system call on a child of this process.
    unsafe { libc::kill(guest.pid() as libc::pid_t, libc::SIGABRT) };
    let end = guest.wait_end(Duration::from_secs(120))?;
    check_eq!(end, -libc::SIGABRT, "end of QEMU");
    let core = fs::metadata(CORE)?;
    let bytes = core.blocks() * 512;
    say!(
        "core dump of a guest of {} on {name} memory: {}, {} of it on disk",
        human(SIZE),
        human(core.len()),
        human(bytes)
    );
    fs::remove_file(CORE)?;
    sysfs::write("/proc/sys/kernel/core_pattern", "core")?;
    Ok(bytes)
}

/// A word of the guest by QEMU's monitor, and by gdb at QEMU's own mapping.
fn read_by_debuggers(
    device: &str,
    memory: &Mapping,
    guest: &Guest,
    monitor: &mut Monitor,
) -> Outcome {
    let at = (64 * MIB..SIZE)
        .step_by(8)
        .find(|at| memory.read(*at) != 0)
        .ok_or_else(|| Failure::Fail("the guest's memory is empty".into()))?;
    let word = format!("{:#018x}", memory.read(at));
    let said = monitor.ask(&format!("xp /1gx {at:#x}"))?;
    check!(
        said.ends_with(&word),
        "the monitor reads '{said}' at {at:#x}, there is {word}"
    );
    let pid = guest.pid();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps.lines().find(|line| line.ends_with(device));
    let start = line.and_then(|line| u64::from_str_radix(line.split('-').next()?, 16).ok());
    let start = start.ok_or_else(|| Failure::Fail(format!("QEMU does not map it: {maps}")))?;
    let said = Command::line(&format!("gdb -nx -batch -p {pid} -ex"))
        .arg(format!("x/1gx {:#x}", start + at))
        .limit(120)
        .run()?;
    check!(
        said.contains(&word),
        "gdb reads {said} at {at:#x}, there is {word}"
    );
    Ok(())
}

/// Fails unless dump-guest-memory has all of the guest's memory as it is.
fn dump_guest(memory: &Mapping, monitor: &mut Monitor) -> Outcome {
    monitor.tell(&format!("dump-guest-memory {DUMP}"))?;
    let dump = CoreFile::open(DUMP)?;
    let mut bytes = vec![0; MIB as usize];
    // What lies between 640 KiB and 1 MiB is the adapters'.
    for start in (MIB..SIZE).step_by(MIB as usize) {
        dump.read(start, &mut bytes)?;
        let wrong = bytes
            .chunks_exact(8)
            .zip((start..).step_by(8))
            .find(|(word, at)| **word != memory.read(*at).to_le_bytes());
        check!(wrong.is_none(), "the dump differs: {wrong:x?}");
    }
    say!(
        "dump-guest-memory: {}, all of it right",
        human(dump.size()?)
    );
    fs::remove_file(DUMP)?;
    Ok(())
}
