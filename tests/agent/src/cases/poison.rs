// SPDX-License-Identifier: GPL-2.0
//! Memory errors: a page of 4 KiB is lost, its users are told, and nobody gets it again.

use crate::case::{errno, Case, Outcome};
use crate::child::Child;
use crate::mapping::{Map, Mapping};
use crate::pages::Census;
use crate::pattern::{check_zeros, Pattern};
use crate::poison::{self, Cleaned, PAGE};
use crate::probe;
use crate::region::{Region, GIB, MIB};
use crate::scrub::{self, Policy};
use crate::spinner::Spinner;
use crate::tracee::Memory;
use crate::witness::{failed_at, near_and_far, touch_one_lost, user, View, LSB};
use crate::{check, check_eq, say};

use super::page_less;

const HUGE: u64 = 2 * MIB;
/// Two ranges that lie apart: the device's bytes go on at its offset of 1 GiB.
const PARTS: [(u64, u64); 2] = [(0, GIB), (3 * GIB, GIB)];
const SIZE: u64 = 2 * GIB;
/// A page of a 1 GiB leaf, at no border.
const INSIDE: u64 = 300 * MIB + 7 * PAGE;

pub const CASES: &[Case] = &[
    Case {
        name: "poison-leaves",
        shows: "one 4 KiB hole in a 1 GiB leaf: largest leaves around it, all other bytes intact, SIGBUS at each touch",
        limit: 60,
        run: leaves,
        ..Case::DEFAULT
    },
    Case {
        name: "poison-signals",
        shows: "SIGBUS with address and size to whoever maps the page, at every leaf size and place, and to nobody else",
        limit: 120,
        run: signals,
        ..Case::DEFAULT
    },
    Case {
        name: "poison-access",
        shows: "ptrace reads up to the poisoned page and behind it, and gets EIO in it",
        run: access,
        ..Case::DEFAULT
    },
    Case {
        name: "poison-stays",
        shows: "poison outlives its device, whatever is bound over it, and is left alone by the scrub",
        limit: 60,
        run: stays,
        ..Case::DEFAULT
    },
    Case {
        name: "poison-everywhere",
        shows: "errors in free memory, in quarantine and in a range that is being scrubbed are kept in mind",
        limit: 60,
        run: everywhere,
        ..Case::DEFAULT
    },
    Case {
        name: "poison-clear",
        shows: "a page that stands the test is zero and in use again; what is not poisoned cannot be cleared",
        run: cleared,
        ..Case::DEFAULT
    },
    Case {
        name: "poison-flood",
        shows: "10,000 errors, a third of them twice, leave the list exact and every other page reachable",
        limit: 120,
        run: flood,
        ..Case::DEFAULT
    },
];

/// Touches every page of the mapping but one; fails where that one does not fail.
fn touch_around(mapping: &Mapping, lost: u64) -> Outcome {
    let block = lost / HUGE * HUGE;
    for offset in (0..mapping.len() as u64).step_by(HUGE as usize) {
        if offset != block {
            mapping.read(offset);
        }
    }
    for offset in (block..block + HUGE).step_by(PAGE as usize) {
        let address = mapping.address() + offset as usize;
        let expected = if offset == lost {
            Err(failed_at(address))
        } else {
            Ok(0)
        };
        let found = probe::read(address).map(|_| 0);
        check_eq!(found, expected, "a touch at {offset:#x}");
    }
    Ok(())
}

fn leaves() -> Outcome {
    let device = page_less(GIB, &PARTS)?;
    let _cleaned = Cleaned;
    let physical = device.physical(INSIDE)?;
    let spinner = Spinner::start(|| {
        let mapping = Map::new(SIZE).file(&device.open()?)?;
        mapping.touch(GIB);
        for offset in [0, INSIDE - 8, INSIDE + PAGE, GIB - 8, GIB, SIZE - 8] {
            mapping.write(offset, offset + 1);
        }
        poison::add(physical)?;
        for _ in 0..2 {
            touch_around(&mapping, INSIDE)?;
        }
        for offset in [0, INSIDE - 8, INSIDE + PAGE, GIB - 8, GIB, SIZE - 8] {
            check_eq!(mapping.read(offset), offset + 1, "the word at {offset:#x}");
        }
        let bad = probe::write(mapping.address() + INSIDE as usize, 1);
        check_eq!(
            bad,
            Err(failed_at(mapping.address() + INSIDE as usize)),
            "a write"
        );
        Ok(mapping)
    })?;
    let found = spinner.leaves()?;
    found.check_write_back()?;
    found.check_placement(&device, spinner.address(), 0)?;
    check_eq!(found.census(), Census::new(1, 511, 511), "leaves");
    check_eq!(found.bytes(), SIZE - PAGE, "bytes that are mapped");
    check_eq!(poison::known_pages()?, [physical], "what the driver knows");
    Ok(())
}

fn signals() -> Outcome {
    let device = page_less(GIB, &PARTS)?;
    let _cleaned = Cleaned;
    let whole = View {
        offset: 0,
        length: SIZE,
        small: false,
    };
    // Not a multiple of 1 GiB on either side: 2 MiB leaves at most.
    let middle = View {
        offset: 512 * MIB,
        length: GIB,
        small: false,
    };
    let small = View {
        offset: 0,
        length: SIZE,
        small: true,
    };
    // The page that fails, who maps what.
    let trials = [
        (0, whole),
        (GIB - PAGE, whole),
        (GIB, whole),
        (SIZE - PAGE, whole),
        (700 * MIB + 3 * PAGE, middle),
        (1300 * MIB, middle),
        (PAGE, small),
        (GIB + 5 * PAGE, small),
    ];
    for (lost, view) in trials {
        let physical = device.physical(lost)?;
        let ((mut near, base), mut far) = near_and_far(&device, view, lost)?;
        poison::offline(physical)?;
        near.link().send("go")?;
        far.link().send("go")?;
        let address = view.address_of(base, lost).unwrap_or(0);
        let expected = format!("{} {address:#x} {LSB}", libc::BUS_MCEERR_AO);
        check_eq!(
            near.link().receive()?,
            expected,
            "signal for the page at {lost:#x}"
        );
        check_eq!(
            far.link().receive()?,
            "nothing",
            "signal to who maps another part"
        );
        near.finish()?;
        far.finish()?;
        check_eq!(poison::known_pages()?, [physical], "what the driver knows");
        poison::clear(physical)?;
    }
    // Parent and child share the mapping, and the fate.
    let lost = 100 * MIB;
    let mut parent = user(&device, whole, true)?;
    let base: usize = parent.link().receive()?.parse().unwrap_or(0);
    check_eq!(parent.link().receive()?, "both", "the child");
    poison::offline(device.physical(lost)?)?;
    parent.link().send("go")?;
    let expected = format!("{} {:#x} {LSB}", libc::BUS_MCEERR_AO, base + lost as usize);
    check_eq!(parent.link().receive()?, expected, "signal to the parent");
    check_eq!(parent.link().receive()?, expected, "signal to the child");
    parent.finish()
}

fn access() -> Outcome {
    let device = page_less(GIB, &PARTS)?;
    let _cleaned = Cleaned;
    let mut child = Child::start(|link| {
        let mapping = Map::new(SIZE).file(&device.open()?)?;
        Pattern::new(3).fill(mapping.words(INSIDE - PAGE, 3 * PAGE), 0);
        link.send(&mapping.address().to_string())?;
        link.receive().map(drop)
    })?;
    let base: u64 = child.link().receive()?.parse().unwrap_or(0);
    poison::add(device.physical(INSIDE)?)?;
    let memory = Memory::open(child.pid())?;
    let (page, size) = (PAGE as usize, 2 * PAGE as usize);
    check_eq!(
        memory.read(base + INSIDE - PAGE, page)?.len(),
        page,
        "bytes before"
    );
    check_eq!(
        memory.read(base + INSIDE + PAGE, page)?.len(),
        page,
        "bytes behind"
    );
    check_eq!(
        errno(memory.read(base + INSIDE, page)),
        Some(libc::EIO),
        "errno of reading it"
    );
    check_eq!(
        memory.read(base + INSIDE - PAGE, size)?.len(),
        page,
        "bytes across"
    );
    check_eq!(
        errno(memory.write(base + INSIDE, &[1; 8])),
        Some(libc::EIO),
        "errno of writing it"
    );
    child.kill()?;
    Ok(())
}

fn stays() -> Outcome {
    let region = Region::first()?;
    let device = page_less(GIB, &[(0, GIB)])?;
    let _cleaned = Cleaned;
    let physical = device.physical(INSIDE)?;
    let mapping = Map::new(GIB).file(&device.open()?)?;
    for offset in (0..GIB).step_by(HUGE as usize) {
        mapping.write(offset, !0);
    }
    for offset in [INSIDE - 8, INSIDE, INSIDE + PAGE] {
        mapping.write(offset, !0);
    }
    drop(mapping);
    poison::add(physical)?;
    device.destroy()?;
    check_eq!(poison::known_pages()?, [physical], "known without a device");
    // Other borders, other leaves, scrubbed before it can be opened.
    let device = region.create(HUGE, &[(256 * MIB, 512 * MIB)])?;
    Policy::Release.bind(&device)?;
    scrub::Progress::finish(&device)?;
    let inside = INSIDE - 256 * MIB;
    let mapping = Map::new(512 * MIB).file(&device.open()?)?;
    touch_around(&mapping, inside)?;
    check_zeros(mapping.words(0, inside))?;
    check_zeros(mapping.words(inside + PAGE, 512 * MIB - inside - PAGE))?;
    drop(mapping);
    // The scrub has not touched it: its word is still there when it comes back without the test's zeros.
    check_eq!(poison::known_pages()?, [physical], "known after a scrub");
    let mut control = crate::control::Control::inherited()?;
    let seen = control.request(&format!("hmp xp /1gx {physical:#x}"))?;
    say!("{}", seen.trim());
    check!(
        seen.contains("0xffffffffffffffff"),
        "the scrub has touched it: {seen}"
    );
    device.destroy()
}

fn everywhere() -> Outcome {
    let region = Region::first()?;
    let device = page_less(HUGE, &[(0, 64 * MIB)])?;
    let _cleaned = Cleaned;
    let mut expected = vec![region.start + 5 * PAGE, region.start + GIB + PAGE];
    // Free memory.
    poison::add(region.start + GIB + PAGE)?;
    // Quarantine.
    let file = device.open()?;
    let mapping = Map::new(64 * MIB).file(&file)?;
    mapping.touch(HUGE);
    device.unbind()?;
    poison::add(region.start + 5 * PAGE)?;
    check_eq!(poison::known_pages()?, expected, "known");
    drop((mapping, file));
    device.destroy()?;
    // While it is being scrubbed, every part of it.
    let device = region.create(HUGE, &[(2 * GIB, 2 * GIB)])?;
    Policy::HandOut.bind(&device)?;
    for index in 0..64 {
        let page = region.start + 2 * GIB + index * 32 * MIB + 9 * PAGE;
        poison::add(page)?;
        expected.push(page);
    }
    scrub::Progress::finish(&device)?;
    check_eq!(scrub::state(&device)?, "scrubbed", "state");
    check_eq!(poison::known_pages()?, expected, "known at the end");
    let mapping = Map::new(2 * GIB).file(&device.open()?)?;
    touch_one_lost(&mapping, 9 * PAGE)?;
    drop(mapping);
    device.destroy()
}

fn cleared() -> Outcome {
    let device = page_less(GIB, &[(0, GIB)])?;
    let _cleaned = Cleaned;
    let physical = device.physical(INSIDE)?;
    let mapping = Map::new(GIB).file(&device.open()?)?;
    mapping.write(INSIDE, 7);
    check_eq!(
        errno(poison::clear(physical)),
        Some(libc::ENOENT),
        "errno for a good page"
    );
    check_eq!(
        errno(poison::add(physical + 8)),
        Some(libc::EINVAL),
        "errno for no page"
    );
    // Memory of the kernel.
    check_eq!(
        errno(poison::add(1 << 20)),
        Some(libc::EBUSY),
        "errno for memory with pages"
    );
    poison::add(physical)?;
    touch_one_lost(&mapping, INSIDE)?;
    poison::clear(physical)?;
    check_eq!(poison::known()?.len(), 0, "extents known");
    check_eq!(mapping.read(INSIDE), 0, "its word");
    mapping.write(INSIDE, 8);
    check_eq!(mapping.read(INSIDE), 8, "its word, written");
    Ok(())
}

fn flood() -> Outcome {
    const ERRORS: u64 = 10_000;
    let device = page_less(GIB, &PARTS)?;
    let _cleaned = Cleaned;
    let mapping = Map::new(SIZE).file(&device.open()?)?;
    mapping.touch(HUGE);
    // Spread over the device by a stride that meets no page twice; every third is reported again.
    let total = SIZE / PAGE;
    let offset = |index: u64| index * 104_729 % total * PAGE;
    let starts = [device.physical(0)?, device.physical(GIB)?];
    let physical = |offset: u64| starts[(offset / GIB) as usize] + offset % GIB;
    for index in 0..ERRORS {
        let at = physical(offset(index));
        poison::add(at)?;
        if index % 3 == 0 {
            poison::add(at)?;
        }
    }
    let mut expected: Vec<u64> = (0..ERRORS).map(|index| physical(offset(index))).collect();
    expected.sort_unstable();
    check_eq!(
        poison::known_pages()? == expected,
        true,
        "the list is exact"
    );
    let mut touched = 0;
    for offset in (0..SIZE).step_by(PAGE as usize) {
        let lost = expected.binary_search(&physical(offset)).is_ok();
        touched += u64::from(lost);
        // The kernel has a line of its own for each of these.
        if lost && touched % 16 != 0 {
            continue;
        }
        let address = mapping.address() + offset as usize;
        let found = probe::read(address).map(|_| 0);
        let wanted = if lost { Err(failed_at(address)) } else { Ok(0) };
        check_eq!(found, wanted, "a touch at {offset:#x}");
    }
    check_eq!(touched, ERRORS, "pages lost");
    Ok(())
}
