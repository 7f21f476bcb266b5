// SPDX-License-Identifier: GPL-2.0
//! What a second-level guest has from KVM beside memory, and a guest of its own.
//!
//! | command | what it does |
//! |---|---|
//! | `clock` | says which clock the kernel uses |
//! | `stolen SECONDS` | computes for so long; says how many ticks of 10 ms the host has stolen meanwhile |
//! | `late-pages` | reads the memory of an ivshmem device, a word of each 256 KiB; says how many pages it was told of that had come late (asynchronous page faults), and the sum of the words |
//! | `hypervisor` | runs a guest of two instructions; says how that ended |

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::case::{Failure, Named, Outcome};
use crate::child::Child;
use crate::kvm::Tiny;
use crate::mapping::Map;
use crate::region::KIB;
use crate::{guest_io, mount, pci, sysfs};

/// Distance of the words that `late-pages` reads.
pub const STEP: u64 = 256 * KIB;
/// Vendor and device number of ivshmem.
const IVSHMEM: (u64, u64) = (0x1af4, 0x1110);
/// What the guest's own guest reads.
pub const WORD: u64 = 0x1234;

/// Whether a command is for this file.
pub fn knows(command: &str) -> bool {
    ["clock", "late-pages", "hypervisor"].contains(&command) || command.starts_with("stolen ")
}

/// Executes it.
pub fn obey(command: &str) -> Outcome<String> {
    if !Path::new("/sys/devices").exists() {
        mount::mount("sys", "/sys", "sysfs", 0, "")?;
    }
    match command.split_once(' ') {
        Some((_, seconds)) => stolen_in(Duration::from_secs(seconds.parse()?)),
        None if command == "clock" => {
            let clocks = "/sys/devices/system/clocksource/clocksource0";
            let clock = sysfs::read(Path::new(clocks).join("current_clocksource"))?;
            Ok(format!("clock {clock}"))
        }
        None if command == "hypervisor" => hypervisor(),
        None => late_pages(),
    }
}

fn stolen_in(time: Duration) -> Outcome<String> {
    let stolen = || -> Outcome<u64> {
        // cpu USER NICE SYSTEM IDLE IOWAIT IRQ SOFTIRQ STEAL …
        let stat = sysfs::read("/proc/stat")?;
        let ticks = stat.split_ascii_whitespace().nth(8);
        let ticks = ticks.and_then(|ticks| ticks.parse().ok());
        ticks.ok_or(Failure::Fail(stat))
    };
    let (before, begin) = (stolen()?, Instant::now());
    while begin.elapsed() < time {
        std::hint::spin_loop();
    }
    Ok(format!("stolen {}", stolen()? - before))
}

fn late_pages() -> Outcome<String> {
    let directory = pci::find(IVSHMEM)?;
    sysfs::write(directory.join("enable"), "1")?;
    let memory = File::open(directory.join("resource2")).named("resource2")?;
    let length = memory.metadata()?.len();
    let memory = Map::new(length)
        .protection(libc::PROT_READ)
        .file(&memory)
        .named("the device's memory")?;
    let before = callbacks()?;
    // Downwards: what the host reads ahead is what has been read already.
    let sum = (0..length / STEP)
        .rev()
        .fold(0u64, |sum, word| sum.wrapping_add(memory.read(word * STEP)));
    Ok(format!("late {} sum {sum:#x}", callbacks()? - before))
}

/// Interrupts by which KVM says that a page has come (`sysvec_kvm_asyncpf_interrupt` of arch/x86/kernel/kvm.c); without
/// the feature the kernel has no line for them.
fn callbacks() -> Outcome<u64> {
    let interrupts = sysfs::read("/proc/interrupts")?;
    let line = interrupts
        .lines()
        .find_map(|line| line.trim().strip_prefix("HYP:"));
    let count = line.map_or(Some(0), |line| {
        line.split_ascii_whitespace().next()?.parse().ok()
    });
    count.ok_or(Failure::Fail("HYP in /proc/interrupts".into()))
}

fn hypervisor() -> Outcome<String> {
    guest_io::load_modules()?;
    let mut child = Child::start(|link| {
        let memory = Map::new(64 * KIB).anonymous()?;
        memory.write(0, WORD);
        let ran = Tiny::new(memory.address(), 0, false)?.run()?;
        link.send(&format!("{ran:?}"))
    })?;
    let said = child.link().receive()?;
    child.finish()?;
    Ok(said)
}
