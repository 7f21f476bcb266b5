// SPDX-License-Identifier: GPL-2.0
//! Migration of second-level guests from and to page-less memory.

use std::time::{Duration, Instant};

use crate::case::{Case, Outcome};
use crate::command::Command;
use crate::device::{Device, DAX_DMEM};
use crate::monitor::{self, Monitor};
use crate::payload::need_module;
use crate::region::{Region, MIB};
use crate::vmm::{self, Guest, Model};
use crate::{check, check_eq, kvm, module, mount, say, sysfs};

pub const CASES: &[Case] = &[
    Case {
        name: "migrate-under-load",
        shows: "a guest that writes goes from hugetlbfs to page-less memory, to other such memory, and back, all contents right; post-copy fails before it begins, and the guest goes on",
        machine: "nested",
        limit: 240,
        hidden: true,
        run: under_load,
        ..Case::DEFAULT
    },
    Case {
        name: "migrate-rdma",
        shows: "QEMU's migration by RDMA works between ordinary memory; from and to page-less memory it fails, and the guest goes on",
        machine: "nested",
        limit: 300,
        hidden: true,
        run: rdma,
        ..Case::DEFAULT
    },
    Case {
        name: "migrate-refusals",
        shows: "post-copy to page-less memory and a background snapshot of it are refused when they are asked for, with the reason",
        machine: "nested",
        limit: 60,
        run: refusals,
        ..Case::DEFAULT
    },
];

/// Memory of the guest that migrates.
const SIZE: u64 = 384 * MIB;

const HUGETLBFS: &str = "/run/huge";
const PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Where one QEMU sends a guest to another.
const CHANNEL: &str = "unix:/run/migration";
/// The same by RDMA: an address of this host's.
const RDMA: &str = "rdma:10.9.0.2:4444";

/// QEMU's arguments for memory of hugetlbfs.
fn hugetlbfs() -> Vec<String> {
    let object =
        format!("memory-backend-file,id=ram,mem-path={HUGETLBFS},size={SIZE},share=on,prealloc=on");
    ["-object", &object, "-machine", "memory-backend=ram"]
        .map(str::to_owned)
        .into()
}

/// A QEMU that a guest runs in, or waits to come to.
struct Place {
    name: &'static str,
    guest: Guest,
    monitor: Monitor,
}

impl Place {
    /// Starts one, where a guest is to come by that channel or, with none, boots.
    fn new(name: &'static str, memory: &[String], from: Option<&str>) -> Outcome<Place> {
        let path = format!("/run/monitor-{name}");
        let mut arguments = memory.to_vec();
        arguments.extend(monitor::arguments(&path));
        if let Some(channel) = from {
            arguments.extend(["-incoming", channel].map(str::to_owned));
        }
        let model = Model {
            parameters: " dmem.hold=1 dmem.write=1",
            ..Model::PLAIN
        };
        Ok(Place {
            name,
            guest: Guest::boot(name, SIZE, &arguments, model)?,
            monitor: Monitor::open(&path)?,
        })
    }

    /// Sends the guest, while it runs, to another QEMU on that memory; where it is then.
    fn send(self, name: &'static str, memory: &[String]) -> Outcome<Place> {
        self.send_by(CHANNEL, name, memory)
    }

    fn send_by(mut self, channel: &str, name: &'static str, memory: &[String]) -> Outcome<Place> {
        let before = self.guest.rounds()?;
        let mut to = Place::new(name, memory, Some(channel))?;
        // The guest writes about as quickly as memory is copied here: it may stand still for some seconds at the end.
        self.monitor
            .tell("migrate_set_parameter downtime-limit 10000")?;
        self.monitor
            .tell("migrate_set_parameter max-bandwidth 4G")?;
        let begin = Instant::now();
        self.monitor.tell(&format!("migrate -d {channel}"))?;
        let info = self.monitor.migrated(Duration::from_secs(120))?;
        let figures = info.lines().map(str::trim).filter(|line| {
            [
                "total time",
                "downtime:",
                "transferred ram",
                "dirty sync",
                "Total Time",
                "Downtime",
                "Transferred",
            ]
            .iter()
            .any(|key| line.starts_with(key))
        });
        say!(
            "{} -> {name} in {:.1} s: {}",
            self.name,
            begin.elapsed().as_secs_f64(),
            figures.collect::<Vec<_>>().join(", ")
        );
        let last = sent(&mut self)?;
        self.monitor.quit()?;
        check_eq!(
            self.guest.wait_end(Duration::from_secs(20))?,
            0,
            "end of the QEMU on {}",
            self.name
        );
        let after = to.guest.rounds()?;
        say!("rounds: {before} before, {after} after; {last}");
        check!(
            after > before,
            "the guest has made {after} rounds on {name}, {before} before"
        );
        Ok(to)
    }
}

impl Place {
    /// Tries to send the guest by post-copy to page-less memory, as root, whom QEMU does not refuse that at once.
    fn fail_to_send_by_post_copy(&mut self, memory: &[String]) -> Outcome {
        let mut to = Place::new("post-copy", memory, Some(CHANNEL))?;
        let set = "migrate_set_capability postcopy-ram on";
        self.monitor.tell(set)?;
        let said = to.monitor.ask(set)?;
        say!("post-copy, asked of QEMU as root: '{said}'");
        self.fail_to_send(CHANNEL, to).map(drop)
    }

    /// Tries to send the guest where it cannot go: it goes on here. What its console and both QEMUs say.
    fn fail_to_send(&mut self, channel: &str, mut to: Place) -> Outcome<String> {
        let before = self.guest.rounds()?;
        self.monitor.tell(&format!("migrate -d {channel}"))?;
        let failed = self.monitor.migrated(Duration::from_secs(60));
        let said = [self.guest.transcript(), to.guest.transcript()].join("\n");
        say!("{} -> {}: {failed:?}; {said}", self.name, to.name);
        check!(failed.is_err(), "a migration to {} came to an end", to.name);
        check_eq!(
            to.guest.wait_end(Duration::from_secs(20))?,
            1,
            "end of the QEMU it was to go to"
        );
        let status = self.monitor.ask("info status")?;
        check!(
            status.ends_with("running"),
            "the guest that was to go: {status}"
        );
        let after = self.guest.rounds()?;
        check!(
            after > before,
            "the guest that was to go has stopped after {before} rounds"
        );
        Ok(said)
    }
}

/// What the QEMU that a guest has left says of it.
fn sent(place: &mut Place) -> Outcome<String> {
    let status = place.monitor.ask("info status")?;
    check!(
        status.contains("postmigrate"),
        "the QEMU on {} says: {status}",
        place.name
    );
    Ok(status)
}

fn under_load() -> Outcome {
    need_module()?;
    kvm::load()?;
    sysfs::write(PAGES, &(SIZE / (2 * MIB)).to_string())?;
    mount::mount("huge", HUGETLBFS, "hugetlbfs", 0, "pagesize=2M")?;
    let region = Region::first()?;
    let page_less = |offset| -> Outcome<Device> {
        let device = region.create(2 * MIB, &[(offset, SIZE)])?;
        device.bind(DAX_DMEM)?;
        Ok(device)
    };
    let (one, other) = (page_less(0)?, page_less(SIZE)?);
    let (on_one, on_other) = (vmm::device(&one, "2M")?, vmm::device(&other, "2M")?);

    let mut place = Place::new("hugetlbfs", &hugetlbfs(), None)?;
    place.guest.report(Duration::from_secs(300))?;
    let place = place.send("one-device", &on_one)?;
    let place = place.send("other-device", &on_other)?;
    let place = place.send("one-device-again", &on_one)?;
    let mut place = place.send("hugetlbfs-again", &hugetlbfs())?;
    place.fail_to_send_by_post_copy(&on_one)?;
    place.guest.power_off()?;
    check_eq!(
        place.guest.wait_end(Duration::from_secs(20))?,
        0,
        "QEMU's exit code"
    );
    drop(place);
    sysfs::write(PAGES, "0")?;
    mount::unmount(HUGETLBFS)?;
    Ok(())
}

fn rdma() -> Outcome {
    need_module()?;
    kvm::load()?;
    // A network of its own, and on it the kernel's RDMA device that needs no hardware (RoCE in software).
    for name in ["dummy", "rdma_rxe", "rdma_ucm"] {
        module::load(name)?;
    }
    for line in [
        "ip link set lo up",
        "ip link add dmem0 type dummy",
        "ip addr add 10.9.0.2/24 dev dmem0",
        "ip link set dmem0 up",
        "rdma link add dmem0 type rxe netdev dmem0",
    ] {
        Command::line(line).run()?;
    }
    let region = Region::first()?;
    let device = region.create(2 * MIB, &[(0, SIZE)])?;
    device.bind(DAX_DMEM)?;
    let page_less = vmm::device(&device, "2M")?;
    let ordinary = vmm::ram(SIZE);

    let mut place = Place::new("first", &ordinary, None)?;
    place.guest.report(Duration::from_secs(300))?;
    let mut place = place.send_by(RDMA, "second", &ordinary)?;
    let to = Place::new("page-less", &page_less, Some(RDMA))?;
    let said = place.fail_to_send(RDMA, to)?;
    // Memory that no key can be had for could not be registered.
    check!(said.contains("cannot get rkey"), "QEMU says: {said}");
    place.guest.power_off()?;
    drop(place);

    let mut place = Place::new("page-less", &page_less, None)?;
    place.guest.report(Duration::from_secs(300))?;
    let to = Place::new("third", &ordinary, Some(RDMA))?;
    let said = place.fail_to_send(RDMA, to)?;
    check!(said.contains("cannot get lkey"), "QEMU says: {said}");
    place.guest.power_off()?;
    drop(place);
    Command::line("rdma link delete dmem0").run()?;
    Command::line("ip link del dmem0").run().map(drop)
}

fn refusals() -> Outcome {
    need_module()?;
    kvm::load()?;
    let region = Region::first()?;
    let device = region.create(2 * MIB, &[(0, SIZE)])?;
    device.bind(DAX_DMEM)?;
    let memory = vmm::device(&device, "2M")?;

    // As everybody but root, libvirt's QEMU for one.
    let mut as_user = memory.clone();
    as_user.extend(["-run-with", "user=65534:65534"].map(str::to_owned));
    let mut to = Place::new("user", &as_user, Some(CHANNEL))?;
    let said = to.monitor.ask("migrate_set_capability postcopy-ram on")?;
    say!("post-copy to page-less memory: {said}");
    check!(
        said.contains("Postcopy is not supported") && said.contains("Userfaultfd not available"),
        "post-copy to page-less memory: '{said}'"
    );
    let on = to.monitor.ask("info migrate_capabilities")?;
    check!(on.contains("postcopy-ram: off"), "after the refusal: {on}");
    to.monitor.quit()?;
    check_eq!(
        to.guest.wait_end(Duration::from_secs(20))?,
        0,
        "QEMU's exit code"
    );

    let mut from = Place::new("from", &memory, None)?;
    let said = from
        .monitor
        .ask("migrate_set_capability background-snapshot on")?;
    say!("background snapshot of page-less memory: {said}");
    check!(
        said.contains("Background-snapshot is not"),
        "a background snapshot of page-less memory: '{said}'"
    );
    from.monitor.quit()?;
    from.guest.wait_end(Duration::from_secs(20))?;
    Ok(())
}
