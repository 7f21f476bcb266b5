// SPDX-License-Identifier: GPL-2.0
//! A guest that outlives its host's kernel: a real QEMU, a real kexec.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::case::{Case, Failure, Outcome};
use crate::disk::{self, DISK};
use crate::mapping::Map;
use crate::monitor::{self, Monitor};
use crate::region::MIB;
use crate::vmm::{Guest, Model};
use crate::{check, check_eq, kvm, reset, say, scrub, sysfs};

use super::tool_host::{check_guest, device_of, done, need};
use super::tool_layout::{declare, ranges};

pub const CASES: &[Case] = &[Case {
    name: "kexec-guest",
    shows: "a guest goes on after a kexec of the host, its program running and its memory as it was; then the memory is scrubbed for others",
    machine: "kexec",
    limit: 300,
    fresh: true,
    hidden: true,
    run: guest,
    ..Case::DEFAULT
}];

/// The tool's record of what is to be kept.
pub const RECORD: &str = "/var/lib/daxdmem/kexec.json";

const SIZE: u64 = 512 * MIB;

const MONITOR: &str = "/run/monitor";

/// Where the guest's state is saved, what else is to be known of it, and all of it with its memory.
const STATE: &str = "file:/mnt/disk/vm1.state";
const NOTE: &str = "/mnt/disk/note";
const WHOLE: &str = "file:/mnt/disk/vm1.whole";

/// Has another kernel be loaded that keeps these guests' memory.
pub fn prepare(guests: &str) -> Outcome<String> {
    let (kernel, initramfs) = (disk::kernel()?, disk::initramfs()?);
    done(&format!(
        "kexec-prepare {guests} --kernel {kernel} --initrd {initramfs}"
    ))
}

/// A QEMU on the guest's device, by what the tool says.
fn start(waits: bool) -> Outcome<(Guest, Monitor)> {
    let said = done("qemu-args vm1")?;
    let mut arguments: Vec<String> = said.split_ascii_whitespace().map(str::to_owned).collect();
    arguments.extend(monitor::arguments(MONITOR));
    if waits {
        arguments.extend(["-incoming", "defer"].map(str::to_owned));
    }
    let model = Model {
        parameters: " dmem.hold=1",
        ..Model::PLAIN
    };
    let _ = fs::remove_file(MONITOR);
    let guest = Guest::boot("vm1", SIZE, &arguments, model)?;
    Ok((guest, Monitor::open(MONITOR)?))
}

/// Has the migration leave memory where it is.
fn leave_memory(monitor: &mut Monitor) -> Outcome {
    monitor.tell("migrate_set_parameter mode cpr-reboot")?;
    monitor.tell("migrate_set_capability x-ignore-shared on")
}

/// Saves the guest to a file and ends its QEMU; the seconds it took.
fn save((mut guest, mut monitor): (Guest, Monitor), to: &str) -> Outcome<f64> {
    let begin = Instant::now();
    monitor.tell(&format!("migrate -d {to}"))?;
    monitor.migrated(Duration::from_secs(120))?;
    let seconds = begin.elapsed().as_secs_f64();
    let status = monitor.ask("info status")?;
    check!(status.contains("postmigrate"), "the saved guest: {status}");
    monitor.quit()?;
    check_eq!(
        guest.wait_end(Duration::from_secs(30))?,
        0,
        "QEMU's exit code"
    );
    Ok(seconds)
}

/// Has a waiting QEMU take the guest from a file and go on with it.
fn restore(monitor: &mut Monitor, from: &str) -> Outcome {
    monitor.tell(&format!("migrate_incoming {from}"))?;
    monitor.migrated(Duration::from_secs(120))?;
    if monitor.ask("info status")?.contains("paused") {
        monitor.tell("cont")?;
    }
    let status = monitor.ask("info status")?;
    check!(status.ends_with("running"), "the guest: {status}");
    Ok(())
}

fn since_1970() -> Outcome<f64> {
    Ok(SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_secs_f64())
}

fn megabytes(file: &str) -> Outcome<u64> {
    let path = file.trim_start_matches("file:");
    Ok(fs::metadata(path)?.len() / MIB)
}

fn guest() -> Outcome {
    need()?;
    disk::attach()?;
    kvm::load()?;
    match reset::count() {
        0 => before(),
        _ => after(),
    }
}

fn before() -> Outcome {
    declare(&[(
        "vm1",
        &format!("size = \"{}M\"\nalign = \"2M\"", SIZE / MIB),
    )])?;
    done("apply")?;
    let (mut guest, mut monitor) = start(false)?;
    guest.report(Duration::from_secs(300))?;
    let rounds = guest.rounds()?;
    leave_memory(&mut monitor)?;
    let stopped = since_1970()?;
    let saved = save((guest, monitor), STATE)?;
    let begin = Instant::now();
    let said = prepare("vm1")?;
    check!(
        said.contains("kept over the next kexec"),
        "the tool says: {said}"
    );
    say!(
        "saved in {saved:.2} s to {} MiB, prepared in {:.2} s",
        megabytes(STATE)?,
        begin.elapsed().as_secs_f64()
    );
    check!(megabytes(STATE)? < 64, "the guest's memory was saved too");
    let ranges = ranges("vm1")?;
    fs::write(NOTE, format!("{rounds} {stopped} {ranges:?}"))?;
    reset::kexec()
}

fn after() -> Outcome {
    let note = fs::read_to_string(NOTE)?;
    let words: Vec<&str> = note.splitn(3, ' ').collect();
    let [rounds, stopped, place] = words[..] else {
        return Err(Failure::Fail(format!("the note is {note}")));
    };
    let (rounds, stopped): (u64, f64) = (rounds.parse()?, stopped.parse()?);
    let said = done("apply --boot")?;
    check!(
        said.contains("vm1: its memory is kept"),
        "apply says: {said}"
    );
    check!(!Path::new(RECORD).exists(), "the record is still there");
    let device = check_guest("vm1", SIZE)?;
    check_eq!(format!("{:?}", ranges("vm1")?), place, "where vm1 is");
    check_eq!(scrub::state(&device)?, "unscrubbed", "state of vm1's scrub");
    let policy = sysfs::read(device.attribute("dax_dmem/scrub_policy"))?;
    check_eq!(policy, "release", "policy of vm1");

    let (mut guest, mut monitor) = start(true)?;
    leave_memory(&mut monitor)?;
    restore(&mut monitor, STATE)?;
    let pause = since_1970()? - stopped;
    let now = guest.rounds()?;
    check!(
        now > rounds,
        "its program had made {rounds} rounds, and now {now}"
    );
    say!("the guest stood still for {pause:.1} s; rounds: {rounds} before, {now} after");

    // What it takes with memory in a file, without any reboot.
    monitor.tell("migrate_set_parameter mode normal")?;
    monitor.tell("migrate_set_capability x-ignore-shared off")?;
    let stop = Instant::now();
    monitor.tell("stop")?;
    let saved = save((guest, monitor), WHOLE)?;
    let (mut guest, mut monitor) = start(true)?;
    let begin = Instant::now();
    restore(&mut monitor, WHOLE)?;
    say!(
        "with its memory in a file of {} MiB: saved in {saved:.2} s, restored in {:.2} s, stood still for {:.1} s",
        megabytes(WHOLE)?,
        begin.elapsed().as_secs_f64(),
        stop.elapsed().as_secs_f64()
    );
    guest.power_off()?;
    check_eq!(
        guest.wait_end(Duration::from_secs(30))?,
        0,
        "QEMU's exit code"
    );
    drop(monitor);

    // What was kept is nobody else's to see.
    done("destroy vm1 --wait")?;
    done(&format!("create vm2 --size {}M --align 2M", SIZE / MIB))?;
    check_zero("vm2")?;
    check_eq!(format!("{:?}", ranges("vm2")?), place, "where vm2 is");
    check!(Path::new(DISK).exists(), "no disk");
    Ok(())
}

/// Fails unless all of a guest's memory is zero.
pub fn check_zero(name: &str) -> Outcome {
    let device = device_of(name)?;
    let size = device.size()?;
    let mapping = Map::new(size).file(&device.open()?)?;
    let wrong = (0..size / 8)
        .map(|word| 8 * word)
        .find(|at| mapping.read(*at) != 0);
    check_eq!(wrong, None, "first word of {name} that is not zero");
    Ok(())
}
