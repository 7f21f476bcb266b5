// SPDX-License-Identifier: GPL-2.0
//! What KVM shares with a guest on page-less memory beside that memory, and guests of the guest's own.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use crate::case::{Case, Failure, Outcome};
use crate::command::Command;
use crate::guest_kvm::{STEP, WORD};
use crate::monitor::{self, Monitor};
use crate::payload::{need_tool, GuestModules};
use crate::region::{GIB, MIB};
use crate::vmm::{self, Guest, Model};
use crate::{check, check_eq, cmdline, disk, kvm, module, say, sysfs};

use super::attach::boot;
use super::leaves::kernel_mappings;
use super::page_less;

pub const CASES: &[Case] = &[
    Case {
        name: "guest-paravirtual",
        shows: "kvmclock, steal time and asynchronous page faults work for a guest on a device",
        machine: "kexec",
        limit: 240,
        hidden: true,
        run: paravirtual,
        ..Case::DEFAULT
    },
    Case {
        name: "guest-hypervisor",
        shows: "a guest on a device runs a guest of its own with kvm.allow_unsafe_mappings; without, that stops it and nothing else",
        machine: "nested",
        limit: 240,
        hidden: true,
        run: hypervisor,
        ..Case::DEFAULT
    },
];

const SIZE: u64 = 256 * MIB;

fn paravirtual() -> Outcome {
    // Memory that is not there at once: a file on a disk, of which nothing is in the page cache.
    const FILE: &str = "/mnt/disk/late";
    const LATE: u64 = 32 * MIB;
    disk::attach()?;
    let words = LATE / STEP;
    let mut bytes = vec![1u8; LATE as usize];
    for word in 0..words {
        let at = (word * STEP) as usize;
        bytes[at..at + 8].copy_from_slice(&(word + 1).to_le_bytes());
    }
    fs::write(FILE, bytes)?;

    let device = page_less(2 * MIB, &[(0, SIZE)])?;
    let mut arguments = vmm::device(&device, "2M")?;
    let late = format!("memory-backend-file,id=late,mem-path={FILE},size={LATE},share=on");
    arguments.extend(["-object", &late, "-device", "ivshmem-plain,memdev=late"].map(str::to_owned));
    let model = Model {
        cpu: "qemu64,+svm,+kvm-asyncpf,+kvm-asyncpf-int,+kvm-steal-time",
        parameters: " dmem.commands=1",
        ..Model::PLAIN
    };
    let mut guest = boot("paravirtual", SIZE, &arguments, model)?;
    check_eq!(guest.ask("clock")?, "clock kvm-clock", "the guest's clock");
    let mapped = kernel_mappings(&device)?;
    say!("KVM maps for itself: {mapped:?}");
    check_eq!(mapped.len(), 1, "the kernel's mappings: {mapped:?}");

    let stolen = |guest: &mut Guest| -> Outcome<u64> {
        let said = guest.ask("stolen 3")?;
        let ticks = said.strip_prefix("stolen ");
        let ticks = ticks.and_then(|ticks| ticks.parse().ok());
        ticks.ok_or(Failure::Fail(said))
    };
    let alone = stolen(&mut guest)?;
    // More to do than there are processors.
    let mut busy = Vec::new();
    for _ in 0..6 {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "while :; do :; done"]);
        busy.push(command.stdout(Stdio::null()).spawn()?);
    }
    let beside = stolen(&mut guest);
    for mut program in busy {
        program.kill()?;
        program.wait()?;
    }
    let beside = beside?;
    say!("of 300 ticks {alone} were stolen while nobody else ran, {beside} beside 6 busy programs on 2 processors");
    check!(
        beside > 50 && beside > 2 * alone,
        "steal time: {alone} ticks alone, {beside} beside busy programs"
    );

    // SAFETY: a plain system call.
    unsafe { libc::sync() };
    sysfs::write("/proc/sys/vm/drop_caches", "3")?;
    let said = guest.ask("late-pages")?;
    say!("of {words} pages of a file: {said}");
    let sum = format!("sum {:#x}", words * (words + 1) / 2);
    check!(said.ends_with(&sum), "the guest read {said}, not {sum}");
    let late = said.split(' ').nth(1).and_then(|late| late.parse().ok());
    check!(
        late.is_some_and(|late: u64| late > 0),
        "no page came late: {said}"
    );
    guest.tell("off")?;
    check_eq!(
        guest.wait_end(Duration::from_secs(60))?,
        0,
        "QEMU's exit code"
    );
    let mapped = kernel_mappings(&device)?;
    check!(mapped.is_empty(), "without the guest: {mapped:?}");
    Ok(())
}

const MONITOR: &str = "/run/monitor-hypervisor";

/// Loads KVM anew, with this value of the parameter.
fn load_kvm(allowed: bool) -> Outcome {
    for name in ["kvm_amd", "kvm"] {
        if module::loaded(name) {
            module::unload(name)?;
        }
    }
    let value = u8::from(allowed);
    Command::line(&format!("modprobe kvm allow_unsafe_mappings={value}"))
        .limit(120)
        .run()?;
    kvm::load()
}

fn hypervisor() -> Outcome {
    need_tool()?;
    let device = page_less(2 * MIB, &[(GIB, SIZE)])?;
    let mut arguments = vmm::device(&device, "2M")?;
    arguments.extend(monitor::arguments(MONITOR));
    let model = Model {
        cpu: "qemu64,+svm,+npt",
        parameters: " dmem.commands=1",
        modules: GuestModules::Hypervisor,
        ..Model::PLAIN
    };
    for (allowed, finding) in [
        (false, "kvm.allow_unsafe_mappings is off"),
        (true, "kvm.allow_unsafe_mappings is on"),
    ] {
        load_kvm(allowed)?;
        let said = Command::line("daxdmem check --json").limit(60).try_run()?;
        check!(said.stdout.contains(finding), "check: {}", said.stdout);
        let _ = fs::remove_file(MONITOR);
        let mut guest = boot("hypervisor", SIZE, &arguments, model)?;
        let mut monitor = Monitor::open(MONITOR)?;
        if allowed {
            let said = guest.ask("hypervisor")?;
            say!("with it: {said}");
            check_eq!(
                said,
                format!("ToItsEnd {{ ax: {WORD} }}"),
                "end of the guest's guest"
            );
            guest.tell("off")?;
            let end = guest.wait_end(Duration::from_secs(60))?;
            check_eq!(end, 0, "QEMU's exit code");
        } else {
            guest.tell("hypervisor")?;
            let how = stopped(&mut guest, &mut monitor)?;
            say!("without it: {how}");
        }
    }
    load_kvm(false)
}

/// How the guest ended: KVM of 7.3 gives up on it, that of 7.2 has its own KVM fail.
fn stopped(guest: &mut Guest, monitor: &mut Monitor) -> Outcome<String> {
    for _ in 0..cmdline::patient(Duration::from_secs(60)).as_secs() {
        let status = monitor.ask("info status")?;
        if status.contains("internal-error") {
            return Ok(status);
        }
        if guest.has_said("kernel BUG at arch/x86/kvm") {
            return Ok("kernel BUG in the guest's KVM".to_owned());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Err(Failure::Fail(format!(
        "it still runs: {}",
        guest.transcript()
    )))
}
