// SPDX-License-Identifier: GPL-2.0
//! What is in page-less memory: the same bytes through every mapping, leaf size and process, at the physical place sysfs names.

use crate::case::{Case, Failure, Outcome};
use crate::child::Child;
use crate::control::Control;
use crate::device::Device;
use crate::mapping::Map;
use crate::pattern::Pattern;
use crate::region::{GIB, KIB, MIB};
use crate::{check_eq, say};

use super::page_less;

pub const CASES: &[Case] = &[Case {
    name: "contents-two-ranges",
    shows: "a pattern written with large leaves is read back by another process with small ones, and lies where sysfs says",
    limit: 90,
    run: two_ranges,
    ..Case::DEFAULT
}];

fn two_ranges() -> Outcome {
    let parts = [(0, GIB), (2 * GIB + 512 * MIB, 512 * MIB)];
    let size = GIB + 512 * MIB;
    let device = page_less(2 * MIB, &parts)?;
    let pattern = Pattern::new(2);
    let mapping = Map::new(size).file(&device.open()?)?;
    pattern.fill(mapping.words(0, size), 0);
    say!("{}: {} MiB written", device.name, size / MIB);

    let reader = Child::start(|_| {
        // Not the parent's leaves: those are inherited by fork, this mapping is new.
        let mapping = Map::new(size)
            .protection(libc::PROT_READ)
            .file(&device.open()?)?;
        mapping.advise(0, size, libc::MADV_NOHUGEPAGE)?;
        pattern.verify(mapping.words(0, size), 0)
    })?;
    reader.finish()?;
    say!("{}: read back with 4 KiB leaves", device.name);

    let ends = [0, GIB - 4 * KIB, GIB - 8, GIB, GIB + 256 * MIB, size - 8];
    for offset in ends {
        check_eq!(
            physical_word(&device, offset)?,
            pattern.word(offset),
            "word behind offset {offset:#x}"
        );
    }
    Ok(())
}

/// The word at a device offset, read from the physical address by the QEMU monitor.
fn physical_word(device: &Device, offset: u64) -> Outcome<u64> {
    let phys = device.physical(offset)?;
    let reply = Control::inherited()?.request(&format!("hmp xp /1gx {phys:#x}"))?;
    let word = reply
        .trim()
        .rsplit_once("0x")
        .and_then(|(_, digits)| u64::from_str_radix(digits, 16).ok());
    word.ok_or_else(|| Failure::Fail(format!("the monitor answered '{}'", reply.trim())))
}
