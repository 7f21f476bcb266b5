// SPDX-License-Identifier: GPL-2.0
//! The demo: two guests boot on memory without struct page, and every figure shown was just measured.

use std::time::{Duration, Instant};

use crate::case::{Case, Failure, Outcome};
use crate::child::{Child, Link};
use crate::command::Command;
use crate::device::{Device, DAX_DMEM};
use crate::kvm::{self, KvmPages};
use crate::mapping::Map;
use crate::memory::{human, Meminfo};
use crate::pages::{Census, Leaves};
use crate::region::{Region, GIB, KIB, MIB};
use crate::spinner::Spinner;
use crate::vmm::{Guest, Report};
use crate::{check, check_eq, module, page_struct, payload, say, sysfs};

pub const CASES: &[Case] = &[Case {
    name: "demo",
    shows: "two guests on page-less memory, with a report for people",
    machine: "nested",
    limit: 200,
    hidden: true,
    run: demo,
    ..Case::DEFAULT
}];

const NAMES: [&str; 2] = ["vm1", "vm2"];
const GUEST: u64 = 2 * GIB;
const PAGE: u64 = 4 * KIB;
/// Under emulation on a busy machine; the runner's own limit ends a hang.
const GUEST_LIMIT: Duration = Duration::from_secs(180);

/// Progress lines with the time since the first.
struct Progress {
    begin: Instant,
}

impl Progress {
    fn line(&self, text: &str) {
        say!("{:6.1} s  {text}", self.begin.elapsed().as_secs_f64());
    }
}

/// What was measured along the way.
struct Figures {
    region: u64,
    page_struct: u64,
    before: Meminfo,
    bound: Meminfo,
    mapped: Meminfo,
    leaves: Census,
    kvm: KvmPages,
    guests: Vec<Report>,
}

fn demo() -> Outcome {
    let progress = Progress {
        begin: Instant::now(),
    };
    payload::need_module()?;
    payload::need_tool()?;
    let region = Region::first()?;
    let release = sysfs::read("/proc/sys/kernel/osrelease")?;
    progress.line(&format!(
        "host: Linux {release} as Debian built it, {} reserved at boot",
        human(region.size)
    ));
    check!(module::loaded(DAX_DMEM), "{DAX_DMEM} is not loaded");
    kvm::load()?;
    progress.line("host: driver dax_dmem and KVM are loaded");

    // Started before anything is measured, so that only what it maps is counted, not what it is.
    let mut mapper = Child::start(map_when_told)?;
    let before = Meminfo::settled()?;
    let devices = NAMES
        .iter()
        .map(|name| create(&progress, name))
        .collect::<Outcome<Vec<Device>>>()?;
    let bound = Meminfo::settled()?;
    let paths: Vec<String> = devices.iter().map(|device| device.name.clone()).collect();
    mapper.link().send(&paths.join(" "))?;
    mapper.link().receive()?;
    let mapped = Meminfo::settled()?;
    mapper.kill()?;
    progress.line("a process mapped both devices and touched every GiB");
    let mut leaves = Leaves::default();
    for device in &devices {
        leaves.0.extend(look(device)?.0);
    }
    progress.line(&format!(
        "page table of such a process, seen from outside the VM: {}",
        leaves.census()
    ));

    let (kvm, guests) = run_guests(&progress)?;
    for name in NAMES {
        run(&progress, &format!("daxdmem destroy {name}"))?;
    }
    let page_struct = page_struct::size()?;
    let leaves = leaves.census();
    let figures = Figures {
        region: region.size,
        page_struct,
        before,
        bound,
        mapped,
        leaves,
        kvm,
        guests,
    };
    figures.print()?;
    figures.check()
}

fn run(progress: &Progress, line: &str) -> Outcome<String> {
    let output = Command::line(line).limit(60).run()?;
    progress.line(&format!("# {line}"));
    Ok(output)
}

fn create(progress: &Progress, name: &str) -> Outcome<Device> {
    run(
        progress,
        &format!("daxdmem create {name} --size {}G --align 1G", GUEST / GIB),
    )?;
    let link = format!("/dev/daxdmem/{name}");
    let target =
        sysfs::link_name(&link).ok_or_else(|| Failure::Fail(format!("{link} leads nowhere")))?;
    Ok(Device::existing(&target))
}

/// A helper process: maps the devices it is told and keeps them until it is killed.
fn map_when_told(link: &mut Link) -> Outcome {
    let names = link.receive()?;
    let mut mappings = Vec::new();
    for name in names.split(' ') {
        let device = Device::existing(name);
        let mapping = Map::new(device.size()?).file(&device.open()?)?;
        mapping.touch(GIB);
        mappings.push(mapping);
    }
    link.send("mapped")?;
    link.receive().map(drop)
}

/// The leaves of a process that maps the whole device.
fn look(device: &Device) -> Outcome<Leaves> {
    let size = device.size()?;
    let spinner = Spinner::start(|| {
        let mapping = Map::new(size).file(&device.open()?)?;
        mapping.touch(GIB);
        Ok(mapping)
    })?;
    let leaves = spinner.leaves()?;
    leaves.check_write_back()?;
    leaves.check_placement(device, spinner.address(), 0)?;
    check_eq!(leaves.bytes(), size, "bytes mapped of {}", device.name);
    Ok(leaves)
}

/// Boots both guests side by side; KVM's leaves while both run, and what each says.
fn run_guests(progress: &Progress) -> Outcome<(KvmPages, Vec<Report>)> {
    check_eq!(
        KvmPages::read()?,
        KvmPages::default(),
        "KVM's leaves before the guests"
    );
    let mut guests = NAMES
        .iter()
        .map(|name| start(progress, name))
        .collect::<Outcome<Vec<Guest>>>()?;
    let mut reports = Vec::new();
    progress.line("both guests boot, side by side");
    for (guest, name) in guests.iter_mut().zip(NAMES) {
        guest.wait_for("guest: up", GUEST_LIMIT)?;
        progress.line(&format!(
            "{name}: the kernel is up and runs init, which fills all free memory"
        ));
    }
    for (guest, name) in guests.iter_mut().zip(NAMES) {
        let report = guest.report(GUEST_LIMIT)?;
        progress.line(&format!(
            "{name}: sees {}, and its memory holds what was written",
            mib(report.memory)
        ));
        reports.push(report);
    }
    let kvm = KvmPages::read()?;
    for guest in &mut guests {
        guest.power_off()?;
    }
    for (guest, name) in guests.iter_mut().zip(NAMES) {
        check_eq!(
            guest.wait_end(GUEST_LIMIT)?,
            0,
            "exit code of {name}'s QEMU"
        );
    }
    progress.line("both guests powered off");
    Ok((kvm, reports))
}

fn start(progress: &Progress, name: &str) -> Outcome<Guest> {
    let line = format!("daxdmem qemu-args {name}");
    let words: Vec<String> = run(progress, &line)?
        .split_ascii_whitespace()
        .map(str::to_owned)
        .collect();
    progress.line(&format!(
        "# qemu-system-x86_64 -accel kvm -m {}M {} …",
        GUEST / MIB,
        words.join(" ")
    ));
    Guest::start(name, GUEST, &words, true)
}

impl Figures {
    fn print(&self) -> Outcome {
        let available = |meminfo: &Meminfo| meminfo.bytes("MemAvailable");
        let (before, bound, mapped) = (
            available(&self.before)?,
            available(&self.bound)?,
            available(&self.mapped)?,
        );
        let row = |name: &str, value: String| say!("  {name:46} {value}");
        say!("");
        say!("Memory");
        row("reserved for guests at boot", human(self.region));
        row(
            "struct page for that would have cost",
            human(self.region / PAGE * self.page_struct),
        );
        row(
            "  (bytes for each 4 KiB, as this kernel says)",
            self.page_struct.to_string(),
        );
        row(
            "left to the host (MemTotal)",
            human(self.before.bytes("MemTotal")?),
        );
        row("MemAvailable before the devices were made", human(before));
        row("  both devices made and bound", taken(before, bound));
        row("  and wholly mapped by a process", taken(before, mapped));
        say!("Leaves");
        row(
            "page table of the host process",
            format!("{}, write-back", self.leaves),
        );
        let KvmPages {
            small,
            medium,
            large,
        } = self.kvm;
        row(
            "KVM's tables, both guests running",
            format!("{large}×1G {medium}×2M {small}×4K"),
        );
        say!("  (small ones in the first GiB only: a PC has holes for its BIOS and its VGA there)");
        say!("Guests");
        for (report, name) in self.guests.iter().zip(NAMES) {
            let tried = format!(
                "sees {}, wrote and read back {}",
                mib(report.memory),
                mib(report.pattern)
            );
            row(name, tried);
        }
        say!("");
        Ok(())
    }

    /// The demo fails where the report would not be worth showing.
    fn check(&self) -> Outcome {
        let devices = NAMES.len();
        let wanted = Census {
            puds: devices * (GUEST / GIB) as usize,
            pmds: 0,
            ptes: 0,
        };
        check_eq!(self.leaves, wanted, "leaves of the host process");
        check!(
            self.kvm.large >= devices as u64,
            "KVM uses {} leaves of 1 GiB for {devices} guests",
            self.kvm.large
        );
        for report in &self.guests {
            check!(
                report.memory > GUEST - 200 * MIB,
                "a guest sees {} only",
                human(report.memory)
            );
            check!(
                report.pattern > report.memory - 200 * MIB,
                "a guest tried {} only",
                human(report.pattern)
            );
        }
        let cost = self
            .before
            .bytes("MemAvailable")?
            .saturating_sub(self.mapped.bytes("MemAvailable")?);
        check!(
            cost <= MIB,
            "both devices cost {} of the host's memory",
            human(cost)
        );
        Ok(())
    }
}

/// The change of MemAvailable, as measured.
fn taken(before: u64, after: u64) -> String {
    if after > before {
        return format!("{} more", human(after - before));
    }
    format!("{} less", human(before - after))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes / MIB)
}
