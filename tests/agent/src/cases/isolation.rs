// SPDX-License-Identifier: GPL-2.0
//! Nothing but a device's own users reaches its memory: no mapping of the kernel's, no other driver, no other user.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::Instant;

use crate::case::{errno, Case, Named, Outcome};
use crate::child::Child;
use crate::command::{Command, Ran};
use crate::control::Control;
use crate::device::DEVICE_DAX;
use crate::mapping::Map;
use crate::memory::{human, Meminfo};
use crate::pages::{Leaves, View};
use crate::pattern::Pattern;
use crate::region::{Region, GIB, KIB, MIB};
use crate::scrub::{self, Policy, Progress, STEP};
use crate::tracee::Memory;
use crate::{check, check_eq, fail, module, say, sysfs};

use super::leaves::no_kernel_mapping;
use super::scrub::tenant;

const PAGE: u64 = 4 * KIB;
/// nobody and nogroup.
const NOBODY: u32 = 65534;

pub const CASES: &[Case] = &[
    Case {
        name: "isolation-kernel-tables",
        shows: "the kernel maps nothing of bound, mapped and idle devices, though it does of a device that device_dax has",
        limit: 60,
        run: kernel_tables,
        ..Case::DEFAULT
    },
    Case {
        name: "isolation-scrub-step",
        shows: "while it scrubs, the kernel maps one step of each range, and nothing afterwards",
        limit: 60,
        run: scrub_step,
        ..Case::DEFAULT
    },
    Case {
        name: "isolation-claims",
        shows: "/dev/mem and another driver get nothing of a device that is bound, quarantined or being scrubbed",
        limit: 60,
        run: claims,
        ..Case::DEFAULT
    },
    Case {
        name: "isolation-other-user",
        shows: "nobody but root opens a device, until an operator names an owner",
        run: other_user,
        ..Case::DEFAULT
    },
    Case {
        name: "isolation-debugger",
        shows: "gdb reads and changes the first, the last and range-crossing bytes of a process's memory; another user's does not",
        limit: 90,
        run: debugger,
        ..Case::DEFAULT
    },
];

/// The kernel's own leaves that lead into the region, as the QEMU monitor finds them in a CPU's page table.
fn kernel_leaves(region: &Region) -> Outcome<Leaves> {
    let (low, high) = (region.start, region.start + region.size);
    let memory = Meminfo::read()?.bytes("MemTotal")?;
    // With page-table isolation a CPU in user mode has a table that lacks nearly all of the kernel.
    for _ in 0..60 {
        let reply = Control::inherited()?.request(&format!("kernel 0 {low:x} {high:x}"))?;
        let view = View::parse(&reply)?;
        if view.total >= memory {
            return Ok(view.leaves);
        }
    }
    fail!("CPU 0 never showed a table that maps all of the kernel's own memory")
}

fn check_unmapped(region: &Region, when: &str) -> Outcome {
    let leaves = kernel_leaves(region)?;
    check!(leaves.0.is_empty(), "{when} the kernel maps {leaves:x?}");
    Ok(())
}

fn kernel_tables() -> Outcome {
    scrub::settle()?;
    module::load(DEVICE_DAX)?;
    let region = Region::first()?;
    // Each policy, each size of leaf, and one that is bound and not open.
    let devices = [
        tenant(Policy::Release, &[(0, GIB)])?,
        tenant(
            Policy::Never,
            &[(GIB + STEP, 256 * MIB), (2 * GIB, 64 * MIB)],
        )?,
        tenant(Policy::HandOut, &[(3 * GIB, GIB)])?,
        tenant(Policy::Release, &[(4 * GIB, 64 * MIB)])?,
    ];
    devices
        .iter()
        .try_for_each(|device| Progress::finish(device).map(drop))?;
    let mut children = Vec::new();
    for (index, device) in devices.iter().take(3).enumerate() {
        let mut child = Child::start(|link| {
            let length = device.size()?;
            let mapping = Map::new(length).file(&device.open()?)?;
            if index == 2 {
                mapping.advise(0, 64 * MIB, libc::MADV_NOHUGEPAGE)?;
            }
            mapping.write(0, 1);
            mapping.touch(STEP);
            link.send(&mapping.address().to_string())?;
            link.receive().map(drop)
        })?;
        let address: u64 = child.link().receive()?.parse()?;
        // A debugger was there, too.
        let memory = Memory::open(child.pid())?;
        check_eq!(
            memory.read(address, 8)?,
            1u64.to_le_bytes(),
            "word seen by a debugger"
        );
        children.push(child);
    }
    devices.iter().try_for_each(no_kernel_mapping)?;
    check_unmapped(&region, "with devices bound, mapped and idle")?;

    // Whether one would be seen.
    let other = region.create(STEP, &[(5 * GIB, 256 * MIB)])?;
    other.bind(DEVICE_DAX)?;
    let leaves = kernel_leaves(&region)?;
    say!("device_dax with {}: {}", human(256 * MIB), leaves.census());
    let start = other.physical(0)?;
    let inside = |phys: u64| (start..start + 256 * MIB).contains(&phys);
    check!(
        leaves.0.iter().all(|leaf| inside(leaf.phys)),
        "elsewhere: {leaves:x?}"
    );
    check_eq!(
        leaves.bytes(),
        256 * MIB,
        "bytes the kernel maps of device_dax's memory"
    );
    other.destroy()?;
    check_unmapped(&region, "after device_dax")
}

fn scrub_step() -> Outcome {
    scrub::settle()?;
    let region = Region::first()?;
    let parts = [(0, 256 * MIB), (3 * GIB, 256 * MIB)];
    let device = tenant(Policy::Never, &parts)?;
    device.open()?;
    device.unbind()?;
    Policy::HandOut.bind(&device)?;
    let mut seen = Vec::new();
    while seen.len() < 8 && scrub::state(&device)? == "scrubbing" {
        let leaves = kernel_leaves(&region)?;
        for (offset, length) in parts {
            let range = region.start + offset..region.start + offset + length;
            let inside = leaves.0.iter().filter(|leaf| range.contains(&leaf.phys));
            let bytes: u64 = inside.map(|leaf| leaf.size).sum();
            check!(
                bytes <= STEP,
                "{} of a range are mapped: {leaves:x?}",
                human(bytes)
            );
        }
        seen.push(leaves.bytes());
    }
    say!("bytes mapped at each look: {seen:?}");
    check!(
        seen.iter().any(|bytes| *bytes > 0),
        "no look saw a step of the scrub"
    );
    Progress::finish(&device)?;
    check_unmapped(&region, "after the scrub")?;
    no_kernel_mapping(&device)
}

fn claims() -> Outcome {
    scrub::settle()?;
    let region = Region::first()?;
    let pattern = Pattern::new(31);
    let parts = [(0, GIB)];
    let owner = |when: &str| -> Outcome<Option<String>> {
        let text = sysfs::read("/proc/iomem")?;
        let first = format!("{:x}-", region.start);
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(&first));
        let name = line
            .and_then(|line| line.split_once(" : "))
            .map(|(_, name)| name.to_owned());
        say!("{when}: {name:?} has the range in /proc/iomem");
        Ok(name)
    };

    // What belongs to nobody is to be had by anybody: this is how it looks when it works.
    let device = tenant(Policy::Never, &parts)?;
    Map::new(GIB)
        .file(&device.open()?)?
        .write(0, pattern.word(0));
    device.destroy()?;
    check_eq!(owner("unbound")?, None, "owner of the unbound range");
    check_eq!(
        dev_mem_word(region.start),
        Ok(pattern.word(0)),
        "word in /dev/mem"
    );
    check!(
        taken_by_ramoops(&region)?,
        "ramoops did not take the unbound range"
    );

    // The same where dax_dmem has it.
    let refused = |when: &str| -> Outcome {
        let claimed = owner(when)?.is_some_and(|name| name.contains("dax"));
        check!(claimed, "{when}: /proc/iomem shows no claim");
        check_eq!(
            dev_mem_word(region.start),
            Err(libc::EPERM),
            "/dev/mem read, {when}"
        );
        let file = File::options().read(true).write(true).open("/dev/mem")?;
        let written = errno(file.write_at(&[1; 8], region.start));
        check_eq!(
            written,
            Some(libc::EPERM),
            "errno of writing /dev/mem, {when}"
        );
        let map = Map::new(PAGE).offset(region.start);
        let mapped = errno(map.protection(libc::PROT_READ).file(&file));
        check_eq!(
            mapped,
            Some(libc::EPERM),
            "errno of mapping /dev/mem, {when}"
        );
        check!(!taken_by_ramoops(&region)?, "{when} ramoops took the range");
        Ok(())
    };
    let device = tenant(Policy::Release, &parts)?;
    refused("bound")?;
    let mapping = Map::new(GIB).file(&device.open()?)?;
    pattern.fill(mapping.words(0, GIB), 0);
    refused("bound and mapped")?;
    device.unbind()?;
    refused("quarantined")?;
    drop(mapping);

    // Now the scrub has it: too short a time for all that was tried before.
    device.destroy()?;
    let other = region.create(STEP, &parts)?;
    let read = dev_mem_word(region.start);
    let bound = errno(other.try_bind(DEVICE_DAX));
    let name = owner("being scrubbed")?;
    check!(
        !scrub::released()?.is_empty(),
        "the scrub was over too soon: nothing was shown"
    );
    check_eq!(
        read,
        Err(libc::EPERM),
        "/dev/mem while the range is being scrubbed"
    );
    check!(
        bound.is_some(),
        "device_dax took a range that is being scrubbed"
    );
    check!(
        name.is_some(),
        "nobody has the range while it is being scrubbed"
    );
    scrub::settle()?;
    check_eq!(
        owner("scrubbed")?,
        None,
        "owner of the range after the scrub"
    );
    Ok(())
}

/// The word at a physical address, or the errno of reading it from /dev/mem.
fn dev_mem_word(address: u64) -> Result<u64, i32> {
    let mut word = [0; 8];
    let read = File::open("/dev/mem").and_then(|file| file.read_exact_at(&mut word, address));
    match read {
        Ok(()) => Ok(u64::from_le_bytes(word)),
        Err(error) => Err(error.raw_os_error().unwrap_or(0)),
    }
}

/// Has ramoops, a driver that takes any physical range it is told and writes there, take the start of the region;
/// whether it got it.
fn taken_by_ramoops(region: &Region) -> Outcome<bool> {
    let words = format!(
        "modprobe ramoops mem_address={:#x} mem_size={STEP}",
        region.start
    );
    Command::line(&words).run()?;
    let text = sysfs::read("/proc/iomem")?;
    let taken = text.lines().any(|line| line.contains("ramoops"));
    module::unload("ramoops").named("unloading ramoops")?;
    if taken {
        // It wrote there behind the driver's back, which may know the range as clean.
        let witness = tenant(Policy::Never, &[(0, STEP)])?;
        witness.open()?;
        witness.destroy()?;
    }
    Ok(taken)
}

fn other_user() -> Outcome {
    let device = tenant(Policy::Never, &[(0, GIB)])?;
    let node = std::fs::metadata(device.path())?;
    check_eq!(node.permissions().mode() & 0o777, 0o600, "mode of the node");
    check_eq!((node.uid(), node.gid()), (0, 0), "owner of the node");
    let path = device.path();
    let open = || as_nobody(|| Ok(errno(File::open(&path))));
    check_eq!(open()?, Some(libc::EACCES), "errno of another user's open");
    std::os::unix::fs::chown(device.path(), Some(NOBODY), None)?;
    check_eq!(
        open()?,
        None,
        "errno of open by the owner an operator named"
    );
    // The next device of that name is somebody else's.
    let name = device.name.clone();
    device.destroy()?;
    let next = tenant(Policy::Never, &[(0, GIB)])?;
    check_eq!(next.name, name, "name of the next device");
    check_eq!(
        open()?,
        Some(libc::EACCES),
        "errno of the former owner's open"
    );
    Ok(())
}

/// What the closure gives in a process of the user nobody.
fn as_nobody(body: impl FnOnce() -> Outcome<Option<i32>>) -> Outcome<Option<i32>> {
    let mut child = Child::start(|link| {
        become_nobody()?;
        let result = body()?;
        link.send(&result.unwrap_or(0).to_string())
    })?;
    let result: i32 = child.link().receive()?.parse()?;
    child.finish()?;
    Ok(Some(result).filter(|result| *result != 0))
}

/// Makes this process one of the user nobody, which others of that user may trace.
fn become_nobody() -> Outcome {
    // SAFETY: plain system calls on this process, which has one thread.
    let results = unsafe {
        [
            libc::setgroups(0, std::ptr::null()),
            libc::setgid(NOBODY),
            libc::setuid(NOBODY),
            // A change of user forbids that at first.
            libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0),
        ]
    };
    check_eq!(results, [0; 4], "results of becoming the user nobody");
    Ok(())
}

fn debugger() -> Outcome {
    let parts = [(0, 64 * MIB), (GIB, 64 * MIB)];
    let size = 128 * MIB;
    let device = tenant(Policy::Never, &parts)?;
    let truth = Map::new(size).file(&device.open()?)?;
    let file = device.open()?;
    let mut child = Child::start(|link| {
        let mapping = Map::new(size).file(&file)?;
        link.send(&mapping.address().to_string())?;
        link.receive()?;
        // What the debugger wrote is what the process reads.
        for (index, offset) in (1..).zip([0, 64 * MIB, size - 8]) {
            check_eq!(
                mapping.read(offset),
                index,
                "word at {offset:#x} in the process"
            );
        }
        link.send("seen")?;
        link.receive().map(drop)
    })?;
    let address: u64 = child.link().receive()?.parse()?;
    let pattern = Pattern::new(32);
    // The word across the ranges' border begins 4 bytes before it.
    let spots = [0, 64 * MIB - 4, size - 8];
    for offset in [0, 64 * MIB - 8, 64 * MIB, size - 8] {
        truth.write(offset, pattern.word(offset));
    }
    let across = (pattern.word(64 * MIB - 8) >> 32) | (pattern.word(64 * MIB) << 32);
    let expected = [pattern.word(0), across, pattern.word(size - 8)];

    let mut script = Vec::new();
    for (offset, word) in spots.iter().zip(expected) {
        script.push(format!(
            "output/x *(unsigned long *){:#x}",
            address + offset
        ));
        script.push("echo \\n".to_owned());
        say!("gdb is to read {word:#x} at {offset:#x}");
    }
    for (index, offset) in (1..).zip([0, 64 * MIB, size - 8]) {
        script.push(format!(
            "set var *(unsigned long *){:#x} = {index}",
            address + offset
        ));
    }
    let begin = Instant::now();
    let ran = gdb(&[], child.pid(), &script)?;
    say!("gdb took {:.1} s", begin.elapsed().as_secs_f64());
    let is_word = |line: &&str| line.starts_with("0x") && !line.contains(' ');
    let read: Vec<&str> = ran.stdout.lines().filter(is_word).collect();
    let expected = expected.map(|word| format!("{word:#x}"));
    check_eq!(
        read,
        expected,
        "words gdb read; it said: {} {}",
        ran.stdout,
        ran.stderr
    );
    child.link().send("look")?;
    check_eq!(child.link().receive()?, "seen", "what the process said");
    for (index, offset) in (1..).zip([0, 64 * MIB, size - 8]) {
        check_eq!(
            truth.read(offset),
            index,
            "word at {offset:#x} that gdb wrote"
        );
    }

    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let ran = gdb(&nobody, child.pid(), &script)?;
    check!(
        ran.stderr.contains("Operation not permitted")
            && !ran.stdout.lines().any(|line| is_word(&line)),
        "another user's gdb said: {} {}",
        ran.stdout,
        ran.stderr
    );
    let pid = child.pid();
    let opened = as_nobody(|| Ok(errno(Memory::try_open(pid))))?;
    check_eq!(
        opened,
        Some(libc::EACCES),
        "errno of another user's open of the process's memory"
    );
    Ok(())
}

/// Runs gdb on a process with these commands, by way of another program.
fn gdb(by: &[&str], pid: libc::pid_t, script: &[String]) -> Outcome<Ran> {
    let mut words = by.to_vec();
    words.extend(["gdb", "-nx", "-batch"]);
    let mut command = Command::new(words[0]).limit(60);
    for word in &words[1..] {
        command = command.arg(*word);
    }
    let begin = format!("attach {pid}");
    for line in [begin].iter().chain(script) {
        command = command.arg("-ex").arg(line);
    }
    command.try_run()
}
