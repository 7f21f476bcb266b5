// SPDX-License-Identifier: GPL-2.0
//! The programs and devices that guests on page-less memory are attached to: disks, networks, VFIO. See
//! Documentation/consumers.md. They take long, and run by name: `make test-attach`.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use crate::case::{Case, Outcome};
use crate::command::Command;
use crate::daemon::Daemon;
use crate::device::Device;
use crate::kvm;
use crate::pattern::Pattern;
use crate::payload::GuestModules;
use crate::pci::{Function, NVME};
use crate::region::{GIB, MIB};
use crate::storage::{verify, Cache, RamDisk};
use crate::tracing::Tracing;
use crate::vmm::{self, Guest, Model};
use crate::{check, check_eq, fail, guest_io, module, say, sysfs};

use super::dma::pins;
use super::page_less;

pub const CASES: &[Case] = &[
    Case {
        name: "vfio-guest",
        shows: "a guest on page-less memory has a PCI disk of its own (VFIO): contents right, no memory pinned, large pieces for the IOMMU",
        machine: "attach",
        limit: 180,
        hidden: true,
        run: vfio_guest,
        ..Case::DEFAULT
    },
    Case {
        name: "guest-disks",
        shows: "buffered disks, O_DIRECT behind qemu-storage-daemon's NBD and buffered vhost-user-blk work; O_DIRECT into guest memory is an I/O error, and no more",
        machine: "attach",
        limit: 240,
        hidden: true,
        run: guest_disks,
        ..Case::DEFAULT
    },
    Case {
        name: "vhost-net",
        shows: "1 GiB goes through vhost-net with its contents right, half of it each way",
        machine: "attach",
        limit: 400,
        hidden: true,
        run: vhost_net,
        ..Case::DEFAULT
    },
];

/// A guest that waits for commands. Its kernel does not complain of each I/O error on the console that answers come by.
pub(super) const ATTACHED: Model = Model {
    parameters: " dmem.commands=1 loglevel=1",
    modules: GuestModules::Devices,
    ..Model::PLAIN
};
const BOOT: Duration = Duration::from_secs(150);

/// Splits at blanks.
pub(super) fn words(line: &str) -> impl Iterator<Item = String> + '_ {
    line.split_ascii_whitespace().map(str::to_owned)
}

/// Boots such a guest, and waits until it listens.
pub(super) fn boot(name: &str, bytes: u64, arguments: &[String], model: Model) -> Outcome<Guest> {
    kvm::load()?;
    let mut guest = Guest::boot(name, bytes, arguments, model)?;
    guest.wait_for("guest: ready", BOOT)?;
    Ok(guest)
}

/// Milliseconds that a command took in the guest, which has to be done without an error.
pub(super) fn done(guest: &mut Guest, command: &str) -> Outcome<u64> {
    let answer = guest.ask_within(command, Duration::from_secs(240))?;
    match answer.strip_prefix("done ").map(str::parse) {
        Some(Ok(took)) => Ok(took),
        _ => fail!("{command}: {answer}"),
    }
}

/// Ends it: all of its memory has to be right, and QEMU has to live until then.
pub(super) fn finish(mut guest: Guest) -> Outcome {
    check_eq!(guest.ask("check")?, "checked", "the guest's memory");
    guest.tell("off")?;
    check_eq!(
        guest.wait_end(Duration::from_secs(60))?,
        0,
        "QEMU's exit code"
    );
    Ok(())
}

/// A disk that works: what the guest writes and reads is what the disk holds. Says what it takes.
pub(super) fn try_disk(guest: &mut Guest, name: &str, what: &str, seed: u64) -> Outcome {
    try_file(guest, &format!("disk {name}"), what, seed)
}

/// The same for whatever the guest can write to and read from.
pub(super) fn try_file(guest: &mut Guest, file: &str, what: &str, seed: u64) -> Outcome {
    let written = done(guest, &format!("{file} write {seed} 16"))?;
    let read = done(guest, &format!("{file} read {seed} 16"))?;
    say!("{what}: 16 MiB written in {written} ms, read in {read} ms");
    Ok(())
}

/// What [`try_disk`] leaves on a disk.
pub(super) const LENGTH: u64 = 16 * MIB;

/// A disk that cannot work: each way an I/O error is all that comes of it.
pub(super) fn refused_disk(guest: &mut Guest, name: &str, what: &str) -> Outcome {
    refused_file(guest, &format!("disk {name}"), what, libc::EIO)
}

/// The same for whatever the guest could write to and read from.
pub(super) fn refused_file(guest: &mut Guest, file: &str, what: &str, error: i32) -> Outcome {
    ["write", "read"]
        .into_iter()
        .try_for_each(|action| refused_action(guest, &format!("{file} {action}"), what, error))
}

/// The same for one way.
pub(super) fn refused_action(guest: &mut Guest, action: &str, what: &str, error: i32) -> Outcome {
    let answer = guest.ask(&format!("{action} 1 1"))?;
    check!(
        answer.starts_with("failed: ") && answer.ends_with(&format!("(os error {error})")),
        "{what}: {action} says {answer}"
    );
    Ok(())
}

fn vfio_guest() -> Outcome {
    let device = page_less(GIB, &[(0, GIB)])?;
    let disk = Function::of_class(NVME)?;
    for name in ["vfio-pci", "vfio_iommu_type1"] {
        module::load(name)?;
    }
    disk.bind("vfio-pci")?;
    let mut arguments = vmm::device(&device, "1G")?;
    arguments.extend(words(&format!(
        "-device vfio-pci,host={},rombar=0",
        disk.address()
    )));
    let (pinned, tables) = pins()?;
    let tracing = Tracing::start("dax_dmem_map")?.with("iommu/map")?;
    let mut guest = boot("vfio", GIB, &arguments, ATTACHED)?;
    let mapped = tracing.lines()?;
    drop(tracing);
    let largest = mapped.iter().filter_map(|line| map_size(line)).max();
    let (pinned, tables) = (pins()?.0 - pinned, pins()?.1 - tables);
    let locked = sysfs::number_in(format!("/proc/{}/status", guest.pid()), "VmLck")?;
    say!("{pinned} pages pinned, {locked} KiB locked, {tables} pages of IOMMU tables, largest piece {largest:?}");
    // QEMU's own: firmware and the like. The guest's memory would be 262,144.
    check!(pinned < 4096, "{pinned} pages are pinned");
    check!(locked < 16 * 1024, "{locked} KiB count as locked");
    check!(tables < 256, "the IOMMU's tables have {tables} pages");
    // All from 1 MiB up in one piece.
    check!(
        largest >= Some(GIB - 2 * MIB),
        "the largest piece for the IOMMU is {largest:?}"
    );
    try_disk(&mut guest, "nvme0n1", "VFIO, NVMe", 5)?;
    finish(guest)?;
    // The host sees the same.
    module::load("nvme")?;
    disk.bind("nvme")?;
    let path = "/dev/nvme0n1";
    for _ in 0..100 {
        if std::path::Path::new(path).exists() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    verify(path, Pattern::new(5), LENGTH)
}

/// `size` of a line `map: IOMMU: iova=… paddr=… size=…`.
fn map_size(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("map: ")?;
    sysfs::number(rest.split_once("size=")?.1.trim())
}

fn qemu_disk(disk: RamDisk, cache: Cache, more: &str) -> Vec<String> {
    let node = format!("ram{}", disk.0);
    let block = disk.block_device(&node, cache, more);
    words(&format!(
        "-blockdev {block} -device virtio-blk-pci,drive={node}"
    ))
    .collect()
}

fn guest_disks() -> Outcome {
    let device = page_less(GIB, &[(0, GIB)])?;
    RamDisk::load()?;
    let [nbd, buffered, direct] = ["/run/nbd", "/run/buffered", "/run/direct"];
    let daemon = Daemon::start(
        "qemu-storage-daemon",
        &format!(
            "--blockdev {} --blockdev {} --blockdev {} \
             --nbd-server addr.type=unix,addr.path={nbd} --export type=nbd,id=e4,node-name=n4,name=disk,writable=on \
             --export type=vhost-user-blk,id=e5,node-name=n5,addr.type=unix,addr.path={buffered},writable=on \
             --export type=vhost-user-blk,id=e6,node-name=n6,addr.type=unix,addr.path={direct},writable=on",
            RamDisk(4).block_device("n4", Cache::None, ""),
            RamDisk(5).block_device("n5", Cache::Writeback, ""),
            RamDisk(6).block_device("n6", Cache::None, ""),
        ),
        &[nbd, buffered, direct],
    )?;
    let mut arguments = vmm::device(&device, "1G")?;
    arguments.extend(qemu_disk(RamDisk(0), Cache::Writeback, ""));
    for (disk, aio) in [(1, "threads"), (2, "native"), (3, "io_uring")] {
        arguments.extend(qemu_disk(
            RamDisk(disk),
            Cache::None,
            &format!(",aio={aio}"),
        ));
    }
    arguments.extend(words(&format!(
        "-blockdev driver=nbd,node-name=nbd,server.type=unix,server.path={nbd},export=disk \
         -device virtio-blk-pci,drive=nbd \
         -chardev socket,id=buffered,path={buffered} -device vhost-user-blk-pci,chardev=buffered \
         -chardev socket,id=direct,path={direct} -device vhost-user-blk-pci,chardev=direct"
    )));
    let mut guest = boot("disks", GIB, &arguments, ATTACHED)?;
    maps(&device, daemon.pid())?;
    // In the order of the arguments.
    try_disk(&mut guest, "vda", "cache=writeback", 10)?;
    for (disk, aio) in [("vdb", "threads"), ("vdc", "native"), ("vdd", "io_uring")] {
        refused_disk(&mut guest, disk, &format!("cache=none, aio={aio}"))?;
    }
    try_disk(&mut guest, "vde", "O_DIRECT behind NBD", 14)?;
    try_disk(&mut guest, "vdf", "vhost-user-blk, buffered", 15)?;
    refused_disk(&mut guest, "vdg", "vhost-user-blk, O_DIRECT")?;
    // Whatever was refused has done no harm to the others.
    try_disk(&mut guest, "vda", "cache=writeback, again", 10)?;
    finish(guest)?;
    drop(daemon);
    for (disk, seed) in [(0, 10), (4, 14), (5, 15)] {
        // What the page cache of the host has still got.
        std::fs::File::open(RamDisk(disk).path())?.sync_all()?;
        RamDisk(disk).holds(Pattern::new(seed), LENGTH)?;
    }
    Ok(())
}

/// Whether the process, or a child of it, has the device mapped, by the descriptor that QEMU has passed it.
pub(super) fn maps(device: &Device, pid: u32) -> Outcome {
    let path = device.path().display().to_string();
    let children = sysfs::read(format!("/proc/{pid}/task/{pid}/children"))?;
    let own = pid.to_string();
    for process in children.split_ascii_whitespace().chain([&own[..]]) {
        let maps = sysfs::read(format!("/proc/{process}/maps"))?;
        if maps.lines().any(|line| line.ends_with(&path)) {
            return Ok(());
        }
    }
    fail!("process {pid} does not map {path}, nor does a child of it")
}

fn vhost_net() -> Outcome {
    let device = page_less(GIB, &[(0, GIB)])?;
    module::load("vhost_net")?;
    for line in [
        "ip tuntap add dmem0 mode tap",
        &format!("ip addr add {}/24 dev dmem0", guest_io::HOST.0),
        "ip link set dmem0 up",
    ] {
        Command::line(line).run()?;
    }
    let mut arguments = vmm::device(&device, "1G")?;
    arguments.extend(words(
        "-netdev tap,id=net,ifname=dmem0,script=no,downscript=no,vhost=on \
         -device virtio-net-pci,netdev=net,romfile=",
    ));
    let listener = TcpListener::bind(guest_io::HOST)?;
    let mut guest = boot("net", GIB, &arguments, ATTACHED)?;
    let vhost = Command::line("ps -eL -o comm").run()?;
    check!(
        vhost.lines().any(|name| name.starts_with("vhost-")),
        "there is no thread of vhost-net"
    );
    transfer(&mut guest, listener)?;
    finish(guest)?;
    Command::line("ip link del dmem0").run().map(drop)
}

/// Sends 512 MiB from the guest to the host and back as many others, by TCP, and looks at each byte.
pub(super) fn transfer(guest: &mut Guest, listener: TcpListener) -> Outcome {
    const HALF: u64 = 512;
    let host = thread::spawn(move || -> Outcome {
        guest_io::receive(listener.accept()?.0, Pattern::new(21), HALF * MIB)?;
        guest_io::send(listener.accept()?.0, Pattern::new(22), HALF * MIB)
    });
    let sent = done(guest, &format!("net send 21 {HALF}"))?;
    let received = done(guest, &format!("net receive 22 {HALF}"))?;
    say!("{HALF} MiB sent in {sent} ms, received in {received} ms");
    match host.join() {
        Ok(outcome) => outcome,
        Err(_) => fail!("the host's end panicked"),
    }
}
