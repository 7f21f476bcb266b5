// SPDX-License-Identifier: GPL-2.0
//! Memory errors as the processor reports them: real machine checks, on a processor that can go on after them.

use std::cell::RefCell;

use crate::case::{Case, Outcome};
use crate::child::Child;
use crate::device::{Device, DAX_DMEM};
use crate::machine_check::{self, Restart};
use crate::mapping::{Map, Mapping};
use crate::pages::Census;
use crate::poison::{self, Cleaned, PAGE};
use crate::probe;
use crate::region::{Region, GIB, MIB};
use crate::scrub::{self, Policy};
use crate::spinner::{describe, spin, Spinner};
use crate::tracing::Tracing;
use crate::witness::{
    block_sigbus, failed_at, near_and_far, tell, user, want_early_signals, View, LSB,
};
use crate::{check, check_eq, say};

use super::page_less;

const HUGE: u64 = 2 * MIB;
/// Two ranges that lie apart: the device's bytes go on at its offset of 1 GiB.
const PARTS: [(u64, u64); 2] = [(0, GIB), (2 * GIB, GIB)];
const SIZE: u64 = 2 * GIB;
const WHOLE: View = View {
    offset: 0,
    length: SIZE,
    small: false,
};
/// Not a multiple of 1 GiB on either side: 2 MiB leaves at most.
const MIDDLE: View = View {
    offset: 512 * MIB,
    length: GIB,
    small: false,
};
const SMALL: View = View {
    offset: 0,
    length: SIZE,
    small: true,
};

/// The kernel wants to unmap from its own map what is not there: `hole-poison-unmapped`.
const HOLE: &[&str] = &["WARNING: arch/x86/mm/pat/set_memory.c", "Call Trace"];

pub const CASES: &[Case] = &[
    Case {
        name: "machine-check-load",
        shows: "a load that meets an error, at each leaf size and place: SIGBUS with the address, and nobody else's",
        machine: "intel",
        limit: 120,
        expects_log: HOLE,
        run: load,
        ..Case::DEFAULT
    },
    Case {
        name: "machine-check-patrol",
        shows: "errors that nobody has met yet, in mapped, free, quarantined memory and in a scrub, are told to who asks for it",
        machine: "intel",
        limit: 60,
        expects_log: HOLE,
        run: patrol,
        ..Case::DEFAULT
    },
];

fn map(device: &Device, view: View) -> Outcome<Mapping> {
    let mapping = Map::new(view.length)
        .offset(view.offset)
        .file(&device.open()?)?;
    if view.small {
        mapping.advise(0, view.length, libc::MADV_NOHUGEPAGE)?;
    }
    Ok(mapping)
}

/// Touches the page at this offset of the mapping, which has failed at this physical address, and its neighbours.
fn touch_again(mapping: &Mapping, lost: u64, physical: u64) -> Outcome {
    // The kernel may tell a process before it tells the driver. No real page could be read meanwhile.
    poison::wait_known(&[physical])?;
    for at in [
        lost.wrapping_sub(PAGE),
        lost + 8,
        lost,
        lost + PAGE - 8,
        lost + PAGE,
    ] {
        if at >= mapping.len() as u64 {
            continue;
        }
        let address = mapping.address() + at as usize;
        let expected = if at / PAGE == lost / PAGE {
            Err(failed_at(address))
        } else {
            Ok(0)
        };
        check_eq!(
            probe::read(address).map(|_| 0),
            expected,
            "a touch at {at:#x}, the page at {lost:#x} lost"
        );
    }
    Ok(())
}

/// What a process is told in advance.
fn early(address: usize) -> String {
    format!("{} {address:#x} {LSB}", libc::BUS_MCEERR_AO)
}

fn load() -> Outcome {
    let device = page_less(GIB, &PARTS)?;
    let _cleaned = Cleaned;
    use Restart::{Possible, Unknown};
    let trials = [
        (300 * MIB + 7 * PAGE, WHOLE, GIB, Possible),
        (0, WHOLE, GIB, Unknown),
        (GIB - PAGE, WHOLE, GIB, Possible),
        (GIB, WHOLE, GIB, Possible),
        (SIZE - PAGE, WHOLE, GIB, Unknown),
        (700 * MIB + 3 * PAGE, MIDDLE, HUGE, Possible),
        (1300 * MIB, MIDDLE, HUGE, Unknown),
        (PAGE, SMALL, PAGE, Possible),
        (GIB + 5 * PAGE, SMALL, PAGE, Possible),
    ];
    for (lost, view, leaf, restart) in trials {
        say!("page at {lost:#x}, leaf of {leaf:#x}, restart {restart:?}");
        let physical = device.physical(lost)?;
        let into = lost - view.offset;
        let ((mut near, near_base), mut far) = near_and_far(&device, view, lost)?;
        let mut reader = Spinner::reading(
            || {
                let mapping = map(&device, view)?;
                mapping.read(into);
                Ok(mapping)
            },
            // Not the first word of the page: what is told is the page.
            into + 64,
            |mapping, _| touch_again(mapping, into, physical),
        )?;
        let address = reader.address() + into;
        let block = address / leaf * leaf;
        let found = reader.leaves_between(block, block + 1)?;
        check_eq!(found.bytes(), leaf, "bytes of the leaf over the page");
        machine_check::load(physical, restart)?;
        check_eq!(
            reader.child().link().receive()?,
            describe(&failed_at(address as usize)),
            "what the reader of {lost:#x} is told"
        );
        near.link().send("go")?;
        far.link().send("go")?;
        let expected = early(view.address_of(near_base, lost).unwrap_or(0));
        check_eq!(near.link().receive()?, expected, "signal to who maps it");
        check_eq!(
            far.link().receive()?,
            "nothing",
            "signal to who maps another part"
        );
        near.finish()?;
        far.finish()?;
        reader.finish()?;
        poison::wait_known(&[physical])?;
        poison::clear(physical)?;
    }
    parent_and_child(&device)?;
    hole_in_a_leaf(&device)
}

/// The parent meets the error; the child, which shares the mapping, asks for early signals.
fn parent_and_child(device: &Device) -> Outcome {
    let lost = 100 * MIB;
    let physical = device.physical(lost)?;
    let shared = RefCell::new(None);
    let mut reader = Spinner::reading(
        || {
            let mapping = map(device, WHOLE)?;
            let mut child = Child::start(|link| {
                block_sigbus(true);
                want_early_signals()?;
                link.send("there")?;
                tell(link)?;
                block_sigbus(false);
                touch_again(&mapping, lost, physical)
            })?;
            child.link().receive()?;
            shared.replace(Some(child));
            Ok(mapping)
        },
        lost,
        |mapping, link| {
            if let Some(mut child) = shared.take() {
                child.link().send("go")?;
                link.send(&child.link().receive()?)?;
                child.finish()?;
            }
            touch_again(mapping, lost, physical)
        },
    )?;
    let address = reader.address() as usize + lost as usize;
    machine_check::load(physical, Restart::Possible)?;
    let told = reader.child().link().receive()?;
    check_eq!(
        told,
        describe(&failed_at(address)),
        "what the parent is told"
    );
    let told = reader.child().link().receive()?;
    check_eq!(told, early(address), "signal to the child");
    reader.finish()?;
    poison::wait_known(&[physical])?;
    Ok(poison::clear(physical)?)
}

/// One page of a 1 GiB leaf, seen from outside afterwards.
fn hole_in_a_leaf(device: &Device) -> Outcome {
    let lost = 300 * MIB;
    let physical = device.physical(lost)?;
    let mut reader = Spinner::reading(
        || map(device, WHOLE),
        lost,
        |mapping, link| {
            for at in (0..SIZE).step_by(HUGE as usize).filter(|at| *at != lost) {
                mapping.read(at);
            }
            touch_again(mapping, lost, physical)?;
            link.send("touched")?;
            spin()
        },
    )?;
    machine_check::load(physical, Restart::Possible)?;
    reader.child().link().receive()?;
    check_eq!(reader.child().link().receive()?, "touched", "the reader");
    let found = reader.leaves()?;
    check_eq!(found.census(), Census::new(1, 511, 511), "leaves");
    check_eq!(found.bytes(), SIZE - PAGE, "bytes that are mapped");
    poison::wait_known(&[physical])
}

fn patrol() -> Outcome {
    let region = Region::first()?;
    let device = page_less(GIB, &[(0, GIB)])?;
    let _cleaned = Cleaned;
    let lost = 700 * MIB;
    let whole = View {
        offset: 0,
        length: GIB,
        small: false,
    };
    let part = View {
        offset: 0,
        length: 512 * MIB,
        small: false,
    };
    let mut near = user(&device, whole, false)?;
    let mut far = user(&device, part, false)?;
    let physical = device.physical(lost)?;
    let mut late = Child::start(|link| {
        let mapping = map(&device, whole)?;
        mapping.touch(HUGE);
        link.send("there")?;
        link.receive()?;
        touch_again(&mapping, lost, physical)
    })?;
    let base: usize = near.link().receive()?.parse().unwrap_or(0);
    far.link().receive()?;
    late.link().receive()?;
    let mut expected = vec![physical];
    let tracing = Tracing::start("dax_dmem_poison")?.with("signal/signal_generate")?;
    machine_check::patrol(physical)?;
    poison::wait_known(&expected)?;
    near.link().send("go")?;
    check_eq!(
        near.link().receive()?,
        early(base + lost as usize),
        "signal to who asks for it"
    );
    near.finish()?;
    // By then the page was out of use: the driver had it from the decoder of machine checks, before the kernel dealt with it.
    let traced = tracing.lines()?;
    let told = format!("signal_generate: sig={} ", libc::SIGBUS);
    let nth = |text: &str| traced.iter().position(|line| line.starts_with(text));
    let (known, told) = (nth("dax_dmem_poison: "), nth(&told));
    check!(
        known.is_some() && known < told,
        "in the wrong order: {traced:#?}"
    );
    drop(tracing);
    // It has heard of nothing, and does when it touches the page.
    late.link().send("go")?;
    late.finish()?;

    // Free memory.
    expected.push(region.start + 2 * GIB + PAGE);
    machine_check::patrol(region.start + 2 * GIB + PAGE)?;
    poison::wait_known(&expected)?;
    // Quarantine.
    let other = region.create(HUGE, &[(GIB, 64 * MIB)])?;
    other.bind(DAX_DMEM)?;
    let file = other.open()?;
    let mapping = Map::new(64 * MIB).file(&file)?;
    mapping.touch(HUGE);
    other.unbind()?;
    expected.insert(1, region.start + GIB + 5 * PAGE);
    machine_check::patrol(region.start + GIB + 5 * PAGE)?;
    poison::wait_known(&expected)?;
    drop((mapping, file));
    other.destroy()?;
    // All that went by whoever maps something else.
    far.link().send("go")?;
    check_eq!(
        far.link().receive()?,
        "nothing",
        "signal to who maps another part"
    );
    far.finish()?;
    // In a scrub.
    let other = region.create(HUGE, &[(GIB, GIB)])?;
    Policy::HandOut.bind(&other)?;
    let page = region.start + 2 * GIB - HUGE + 9 * PAGE;
    machine_check::patrol(page)?;
    let state = scrub::state(&other)?;
    say!("state behind the error: {state}");
    expected.insert(2, page);
    poison::wait_known(&expected)?;
    scrub::Progress::finish(&other)?;
    check_eq!(scrub::state(&other)?, "scrubbed", "state at the end");
    other.destroy()?;
    check_eq!(poison::known_pages()?, expected, "known at the end");
    device.destroy()
}
