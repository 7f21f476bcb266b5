// SPDX-License-Identifier: GPL-2.0
//! Memory errors in second-level guests: what QEMU, KVM and the guest's Linux make of them.

use std::time::Duration;

use crate::case::{Case, Failure, Outcome};
use crate::child::{Child, Link};
use crate::device::{Device, DAX_DMEM};
use crate::kvm::{self, Ran, Tiny};
use crate::mapping::Map;
use crate::poison::{self, Cleaned, PAGE};
use crate::region::{Region, GIB, MIB};
use crate::spinner::describe;
use crate::vmm::{self, Guest, Model};
use crate::witness::failed_at;
use crate::{check, check_eq, module, probe, say};

use super::page_less;

/// A processor of AMD's kind that can go on after an error, and after a second one.
const TOLD: Model = Model {
    cpu: "qemu64,+succor,+overflow-recov",
    parameters: " dmem.commands=1",
    on_reboot: "reset",
    ..Model::PLAIN
};
/// One that cannot. QEMU ends where the guest would be reset.
const FRAIL: Model = Model {
    cpu: "qemu64",
    on_reboot: "shutdown",
    ..TOLD
};
const BOOT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);

pub const CASES: &[Case] = &[
    Case {
        name: "kvm-meets-poison",
        shows: "a guest's touch of a failed page is the VMM's SIGBUS, not an error of KVM, and the touch does not happen",
        machine: "nested",
        limit: 60,
        run: kvm_meets_poison,
        ..Case::DEFAULT
    },
    Case {
        name: "guest-memory-errors",
        shows: "a guest loses the program that touches a failed page, however it hears of it, and goes on; others notice nothing",
        machine: "nested",
        limit: 180,
        run: guest_memory_errors,
        ..Case::DEFAULT
    },
];

fn boot(device: &Device, model: Model) -> Outcome<Guest> {
    let memory = vmm::device(device, "1G")?;
    Guest::boot(&device.name, GIB, &memory, model)
}

/// A program's page in the guest: its physical address.
fn page(guest: &mut Guest, device: &Device) -> Outcome<u64> {
    let said = guest.ask("page")?;
    let at = said
        .strip_prefix("page 0x")
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| Failure::Fail(format!("the guest said '{said}'")))?;
    device.physical(at)
}

fn guest_memory_errors() -> Outcome {
    kvm::load()?;
    let region = Region::first()?;
    let device = page_less(GIB, &[(0, GIB)])?;
    let beside = region.create(GIB, &[(GIB, GIB)])?;
    beside.bind(DAX_DMEM)?;
    let _cleaned = Cleaned;
    let mut guest = boot(&device, TOLD)?;
    let mut other = boot(&beside, FRAIL)?;
    guest.wait_for("guest: ready", BOOT)?;
    other.wait_for("guest: ready", BOOT)?;
    told_in_advance(&mut guest, &device)?;
    met_by_kvm(&mut guest, &device)?;
    check_eq!(guest.ask("check")?, "checked", "the guest at the end");
    check_eq!(other.ask("check")?, "checked", "the other guest");
    check!(
        !other.has_said("MCE"),
        "the other guest was told: {}",
        other.transcript()
    );
    reset(&mut guest)?;
    cannot_go_on(&mut other, &beside)
}

/// What the guest's program is told at the first byte of its page.
fn lost() -> String {
    format!("told {}", describe(&failed_at(0)))
}

/// QEMU asks for early signals. The guest finds the error in the bank, which it looks at now and then, before anybody
/// touches the page.
fn told_in_advance(guest: &mut Guest, device: &Device) -> Outcome {
    // Before the error: a change of the interval empties the banks of old processors.
    check_eq!(guest.ask("look")?, "looks", "the guest's banks");
    let at = page(guest, device)?;
    poison::offline(at)?;
    guest.wait_for("BUS_MCEERR_AO injected", SOON)?;
    guest.wait_for("recovery action", SOON)?;
    check_eq!(guest.ask("read")?, lost(), "a page that it was told of");
    check!(
        !guest.has_said("BUS_MCEERR_AR"),
        "it has touched the page: {}",
        guest.transcript()
    );
    Ok(())
}

/// Nobody is told: KVM meets the page, and the guest gets the error where it touches it.
fn met_by_kvm(guest: &mut Guest, device: &Device) -> Outcome {
    for touch in ["read", "write"] {
        let at = page(guest, device)?;
        poison::add(at)?;
        check_eq!(guest.ask(touch)?, lost(), "{touch} of a page");
        check!(
            guest.has_said("BUS_MCEERR_AR injected"),
            "QEMU has injected nothing: {}",
            guest.transcript()
        );
    }
    Ok(())
}

/// QEMU cannot give the guest other memory in the place of what failed.
fn reset(guest: &mut Guest) -> Outcome {
    guest.tell("reboot")?;
    guest.wait_for("Could not remap RAM", SOON)?;
    check_eq!(guest.wait_end(SOON)?, 1, "QEMU's exit code");
    Ok(())
}

/// Linux takes no chances on a processor of AMD's that does not say it contains errors.
fn cannot_go_on(guest: &mut Guest, device: &Device) -> Outcome {
    let at = page(guest, device)?;
    poison::add(at)?;
    guest.tell("read")?;
    guest.wait_for("Uncorrected error without MCA Recovery", SOON)?;
    guest.wait_for("Kernel panic", SOON)?;
    check_eq!(guest.wait_end(SOON)?, 0, "QEMU's exit code");
    Ok(())
}

/// Where the program of the little guest has its memory, in bytes into the device: at no border of a leaf.
const WINDOW: u64 = 300 * MIB;
/// The page that fails, in the window.
const LOST: u64 = 0x5000;
const VALUE: u64 = 0x55aa;
const ROUNDS: u32 = 200;

/// A guest of three instructions, in a process of its own: touches the lost page again and again.
fn touch_as_guest(device: &Device, write: bool, link: &mut Link) -> Outcome {
    let mapping = Map::new(GIB).file(&device.open()?)?;
    let lost = WINDOW + LOST;
    for at in [lost - 8, lost, lost + PAGE] {
        mapping.write(at, VALUE);
    }
    let address = mapping.address() + lost as usize;
    let mut guest = Tiny::new(mapping.address() + WINDOW as usize, LOST as u16, write)?;
    guest.set_ax(VALUE as u16);
    check_eq!(guest.run()?, Ran::ToItsEnd { ax: VALUE as u16 }, "before");
    link.send("ready")?;
    link.receive()?;
    for round in 0..ROUNDS {
        check_eq!(
            guest.run()?,
            Ran::Signalled(failed_at(address)),
            "touch {round}"
        );
    }
    check_eq!(probe::read(address), Err(failed_at(address)), "the process");
    check_eq!(mapping.read(lost - 8), VALUE, "the word before the page");
    check_eq!(mapping.read(lost + PAGE), VALUE, "the word behind the page");
    link.send("told")?;
    link.receive()?;
    mapping.write(lost, !VALUE);
    let ax = if write { VALUE } else { !VALUE } as u16;
    check_eq!(guest.run()?, Ran::ToItsEnd { ax }, "after the test");
    check_eq!(mapping.read(lost) as u16, ax, "what is in memory");
    Ok(())
}

fn kvm_meets_poison() -> Outcome {
    kvm::load()?;
    let region = Region::first()?;
    let device = page_less(GIB, &[(0, GIB)])?;
    let beside = region.create(GIB, &[(GIB, GIB)])?;
    beside.bind(DAX_DMEM)?;
    let cleaned = Cleaned;
    let devices = [(&device, false), (&beside, true)];
    let mut guests = devices
        .iter()
        .map(|(device, write)| Child::start(|link| touch_as_guest(device, *write, link)))
        .collect::<Outcome<Vec<Child>>>()?;
    let mut lost = Vec::new();
    for ((device, _), guest) in devices.iter().zip(&mut guests) {
        guest.link().receive()?;
        let at = device.physical(WINDOW + LOST)?;
        poison::add(at)?;
        lost.push(at);
    }
    let fixed = kvm::faults_fixed()?;
    for guest in &mut guests {
        guest.link().send("go")?;
    }
    for guest in &mut guests {
        guest.link().receive()?;
    }
    let fixed = kvm::faults_fixed()? - fixed;
    say!("{fixed} leaves entered for {ROUNDS} touches by each guest");
    check!(
        fixed < u64::from(ROUNDS) / 10,
        "KVM lets guests see the page that stands in: {fixed} times"
    );
    for at in lost {
        poison::clear(at)?;
    }
    for mut guest in guests {
        guest.link().send("go")?;
        guest.finish()?;
    }
    drop(cleaned);
    device.destroy()?;
    beside.destroy()?;
    // What was mapped for a moment is nowhere any more.
    module::unload(DAX_DMEM)?;
    module::load(DAX_DMEM)
}
