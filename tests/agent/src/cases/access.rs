// SPDX-License-Identifier: GPL-2.0
//! A process's page-less memory as debuggers see it: /proc/PID/mem and ptrace, through the driver's `->access`.

use std::time::{Duration, Instant};

use crate::case::{errno, Case, Named, Outcome};
use crate::child::Child;
use crate::device::Device;
use crate::mapping::{Map, Mapping};
use crate::pages::Census;
use crate::pattern::Pattern;
use crate::region::{GIB, KIB, MIB};
use crate::scrub::{self, Policy, Progress};
use crate::spinner::Spinner;
use crate::tracee::{Memory, Tracee};
use crate::{check, check_eq, say};

use super::scrub::tenant;

const PAGE: u64 = 4 * KIB;
const HUGE: u64 = 2 * MIB;
/// Two ranges that lie apart: the device's bytes go on at its offset of 1 GiB.
const PARTS: [(u64, u64); 2] = [(0, GIB), (3 * GIB, GIB)];
const SIZE: u64 = 2 * GIB;

pub const CASES: &[Case] = &[
    Case {
        name: "access-every-leaf",
        shows: "/proc/PID/mem reads and writes the right bytes at ends, across ranges and pages, whatever leaves map them",
        run: every_leaf,
        ..Case::DEFAULT
    },
    Case {
        name: "access-without-leaves",
        shows: "memory that its process never touched can be read and written, and stays unmapped",
        run: without_leaves,
        ..Case::DEFAULT
    },
    Case {
        name: "access-past-end",
        shows: "an access across the end of a mapping is cut short there, one behind it fails",
        run: past_end,
        ..Case::DEFAULT
    },
    Case {
        name: "access-ptrace",
        shows: "PTRACE_PEEKDATA and PTRACE_POKEDATA reach the first, the last and unaligned words",
        run: ptrace,
        ..Case::DEFAULT
    },
    Case {
        name: "access-protection",
        shows: "what its process could map readable is readable, only what is mapped writable can be written",
        run: protection,
        ..Case::DEFAULT
    },
    Case {
        name: "access-after-unbind",
        shows: "when the device is gone, so is access to its memory",
        run: after_unbind,
        ..Case::DEFAULT
    },
    Case {
        name: "access-beside-scrub",
        shows: "access does not wait for the scrub of another device",
        limit: 60,
        run: beside_scrub,
        ..Case::DEFAULT
    },
];

/// A process that maps the device at an address with nothing behind it, and then waits.
struct Target {
    child: Child,
    address: u64,
}

impl Target {
    fn start(map: impl FnOnce(&mut Vec<Mapping>) -> Outcome) -> Outcome<Target> {
        let mut child = Child::start(|link| {
            let mut mappings = Vec::new();
            map(&mut mappings)?;
            link.send(&mappings[0].address().to_string())?;
            // Until it is killed.
            link.receive().map(drop)
        })?;
        let address = child.link().receive()?;
        let address = address.parse().named(&address)?;
        Ok(Target { child, address })
    }

    fn memory(&self) -> Outcome<Memory> {
        Memory::open(self.child.pid())
    }
}

/// An address congruent to `remainder` modulo 1 GiB with `length` bytes free there, and a GiB behind.
fn free_place(length: u64, remainder: u64) -> Outcome<usize> {
    let space = Map::new(length + 3 * GIB)
        .protection(libc::PROT_NONE)
        .anonymous()?;
    Ok((space.address() as u64).next_multiple_of(GIB) as usize + remainder as usize)
}

/// Offsets and lengths in the device: ends, both sides of and across the ranges' border, pages, single bytes.
const SPOTS: [(u64, usize); 9] = [
    (0, 8),
    (1, 1),
    (PAGE - 3, 7),
    (HUGE - 5, 3 * 4096),
    (GIB - 8, 8),
    (GIB - 3, 8),
    (GIB - PAGE - 1, 3 * 4096),
    (GIB, 1),
    (SIZE - 5, 5),
];

/// The bytes of a device that a process sees, and those the device has.
fn check_spots(memory: &Memory, address: u64, truth: &Mapping, what: &str) -> Outcome {
    for (round, (offset, length)) in (1..).zip(SPOTS) {
        let what = format!("{length} bytes at {offset:#x} ({what})");
        // More than the bytes themselves, to see what is written beside them.
        let begin = offset.saturating_sub(16) / 8 * 8;
        let end = (offset + length as u64 + 16).next_multiple_of(8).min(SIZE);
        Pattern::new(round).fill(truth.words(begin, end - begin), begin);
        let mut expected = bytes_of(truth, begin, end);
        let inside = (offset - begin) as usize..(offset - begin) as usize + length;
        let read = memory.read(address + offset, length).named(&what)?;
        check!(read == expected[inside.clone()], "read other bytes: {what}");

        let new: Vec<u8> = (0..length).map(|index| (index * 7 + 1) as u8).collect();
        let written = memory.write(address + offset, &new).named(&what)?;
        check_eq!(written, length, "bytes written of {what}");
        expected[inside].copy_from_slice(&new);
        check!(
            bytes_of(truth, begin, end) == expected,
            "wrote other bytes: {what}"
        );
    }
    Ok(())
}

/// The bytes between two offsets, multiples of 8.
fn bytes_of(mapping: &Mapping, begin: u64, end: u64) -> Vec<u8> {
    let words = (begin..end).step_by(8).map(|at| mapping.read(at));
    words.flat_map(u64::to_le_bytes).collect()
}

fn every_leaf() -> Outcome {
    let device = tenant(Policy::Never, &PARTS)?;
    let truth = Map::new(SIZE).file(&device.open()?)?;
    for (what, remainder, advice) in [
        ("1 GiB leaves", 0, None),
        ("2 MiB leaves", HUGE, None),
        ("4 KiB leaves", 0, Some(libc::MADV_NOHUGEPAGE)),
    ] {
        let place = free_place(SIZE, remainder)?;
        let target = Target::start(|mappings| {
            let mapping = Map::new(SIZE).at(place).file(&device.open()?)?;
            if let Some(advice) = advice {
                mapping.advise(0, SIZE, advice)?;
            }
            for (offset, _) in SPOTS {
                mapping.read(offset / 8 * 8);
            }
            mappings.push(mapping);
            Ok(())
        })?;
        check_spots(&target.memory()?, target.address, &truth, what)?;
    }
    Ok(())
}

fn without_leaves() -> Outcome {
    let device = tenant(Policy::Never, &PARTS)?;
    let truth = Map::new(SIZE).file(&device.open()?)?;
    let spinner = Spinner::start(|| Ok(Map::new(SIZE).file(&device.open()?)?))?;
    let memory = Memory::open(spinner.pid())?;
    check_spots(&memory, spinner.address(), &truth, "never touched")?;
    check_eq!(
        spinner.leaves()?.census(),
        Census::new(0, 0, 0),
        "leaves after access"
    );
    Ok(())
}

fn past_end() -> Outcome {
    let device = tenant(Policy::Never, &PARTS)?;
    let pattern = Pattern::new(21);
    let truth = Map::new(SIZE).file(&device.open()?)?;
    // Ends at the device's end, and in the middle of a leaf.
    for end in [SIZE, GIB + 5 * PAGE] {
        let place = free_place(SIZE, 0)?;
        let target = Target::start(|mappings| {
            mappings.push(Map::new(end).at(place).file(&device.open()?)?);
            Ok(())
        })?;
        let memory = target.memory()?;
        let begin = end - 2 * PAGE;
        pattern.fill(truth.words(begin, 2 * PAGE), begin);
        for (offset, length, expected) in [
            (end - 5, 16, 5),
            (end - PAGE - 3, 4 * 4096, 4099),
            (end - 1, 2, 1),
        ] {
            let what = format!("{length} bytes at {offset:#x} of {end:#x}");
            let read = memory.read(target.address + offset, length).named(&what)?;
            check_eq!(read.len(), expected, "bytes read of {what}");
            let all = bytes_of(&truth, begin, end);
            check!(all.ends_with(&read), "read other bytes: {what}");
            let mut new = read;
            new.resize(length, 0);
            new.iter_mut().for_each(|byte| *byte ^= 0x5a);
            let written = memory.write(target.address + offset, &new).named(&what)?;
            check_eq!(written, expected, "bytes written of {what}");
            let all = bytes_of(&truth, begin, end);
            check!(all.ends_with(&new[..expected]), "wrote other bytes: {what}");
        }
        for offset in [end, end + 3 * PAGE] {
            let read = errno(memory.read(target.address + offset, 8));
            check_eq!(
                read,
                Some(libc::EIO),
                "errno of reading at {offset:#x} of {end:#x}"
            );
            let written = errno(memory.write(target.address + offset, b"behind"));
            check_eq!(
                written,
                Some(libc::EIO),
                "errno of writing at {offset:#x} of {end:#x}"
            );
        }
    }
    Ok(())
}

fn ptrace() -> Outcome {
    let device = tenant(Policy::Never, &PARTS)?;
    let truth = Map::new(SIZE).file(&device.open()?)?;
    let place = free_place(SIZE, 0)?;
    let target = Target::start(|mappings| {
        mappings.push(Map::new(SIZE).at(place).file(&device.open()?)?);
        Ok(())
    })?;
    let tracee = Tracee::attach(target.child.pid())?;
    for (round, offset) in (1..).zip([0, 3, PAGE - 4, GIB - 8, GIB - 4, GIB, SIZE - 8]) {
        let begin = offset / 8 * 8;
        let end = (offset + 16).min(SIZE) / 8 * 8;
        Pattern::new(round).fill(truth.words(begin, end - begin), begin);
        let mut expected = bytes_of(&truth, begin, end);
        let at = (offset - begin) as usize;
        let word = tracee
            .peek(target.address + offset)
            .named(format_args!("peek at {offset:#x}"))?;
        check_eq!(
            word.to_le_bytes(),
            expected[at..at + 8],
            "the word at {offset:#x}"
        );
        let new = 0x0102_0304_0506_0708 + round;
        tracee
            .poke(target.address + offset, new)
            .named(format_args!("poke at {offset:#x}"))?;
        expected[at..at + 8].copy_from_slice(&new.to_le_bytes());
        check_eq!(
            bytes_of(&truth, begin, end),
            expected,
            "bytes after poke at {offset:#x}"
        );
    }
    let across = target.address + SIZE - 4;
    check_eq!(
        errno(tracee.peek(across)),
        Some(libc::EIO),
        "errno of peek across the end"
    );
    check_eq!(
        errno(tracee.poke(across, 1)),
        Some(libc::EIO),
        "errno of poke across the end"
    );
    Ok(())
}

fn protection() -> Outcome {
    let device = tenant(Policy::Never, &[(0, GIB)])?;
    let truth = Map::new(GIB).file(&device.open()?)?;
    let pattern = Pattern::new(22);
    pattern.fill(truth.words(0, 8 * MIB), 0);
    let read_only = std::fs::File::open(device.path())?;
    // Four mappings: writable, read only, without any access, and read only for good.
    let target = Target::start(|mappings| {
        let file = device.open()?;
        let place = free_place(8 * MIB, 0)?;
        for (index, (file, protection)) in [
            (&file, libc::PROT_READ | libc::PROT_WRITE),
            (&file, libc::PROT_READ),
            (&file, libc::PROT_NONE),
            (&read_only, libc::PROT_READ),
        ]
        .into_iter()
        .enumerate()
        {
            let offset = index as u64 * HUGE;
            let map = Map::new(HUGE).offset(offset).protection(protection);
            mappings.push(map.at(place + offset as usize).file(file)?);
        }
        Ok(())
    })?;
    let memory = target.memory()?;
    for index in 0..4 {
        let offset = index * HUGE + 64;
        let found = memory
            .read(target.address + offset, 8)
            .named(format_args!("reading mapping {index}"))?;
        check_eq!(
            found,
            pattern.word(offset).to_le_bytes(),
            "bytes of mapping {index}"
        );
        let result = memory.write(target.address + offset, &1u64.to_le_bytes());
        if index == 0 {
            check_eq!(result.named("writing")?, 8, "bytes written");
            check_eq!(truth.read(offset), 1, "what was written");
        } else {
            check_eq!(
                errno(result),
                Some(libc::EIO),
                "errno of writing mapping {index}"
            );
            check_eq!(
                truth.read(offset),
                pattern.word(offset),
                "word of mapping {index}"
            );
        }
    }
    // From the writable one into the next.
    let written = memory
        .write(target.address + HUGE - 8, &[0xff; 32])
        .named("writing across the border")?;
    check_eq!(written, 8, "bytes written across the border");
    check_eq!(
        truth.read(HUGE),
        pattern.word(HUGE),
        "word behind the border"
    );
    Ok(())
}

fn after_unbind() -> Outcome {
    let device = tenant(Policy::Never, &[(0, GIB)])?;
    let place = free_place(GIB, 0)?;
    let mut target = Target::start(|mappings| {
        let mapping = Map::new(GIB).at(place).file(&device.open()?)?;
        mapping.write(0, 23);
        mappings.push(mapping);
        Ok(())
    })?;
    let memory = target.memory()?;
    let word = memory.read(target.address, 8)?;
    check_eq!(word, 23u64.to_le_bytes(), "word before unbind");
    device.unbind()?;
    for offset in [0, 512 * MIB, GIB - 8] {
        let read = errno(memory.read(target.address + offset, 8));
        check_eq!(
            read,
            Some(libc::EIO),
            "errno of reading at {offset:#x} after unbind"
        );
        let written = errno(memory.write(target.address + offset, &[1; 8]));
        check_eq!(
            written,
            Some(libc::EIO),
            "errno of writing at {offset:#x} after unbind"
        );
    }
    target.child.kill()?;
    // The memory itself is as it was.
    let next = again(device)?;
    check_eq!(
        Map::new(GIB).file(&next.open()?)?.read(0),
        23,
        "word after unbind"
    );
    Ok(())
}

/// The device once more, as it was left.
fn again(device: Device) -> Outcome<Device> {
    device.destroy()?;
    scrub::settle()?;
    tenant(Policy::Never, &[(0, GIB)])
}

fn beside_scrub() -> Outcome {
    let device = tenant(Policy::Never, &[(0, GIB)])?;
    let target = Target::start(|mappings| {
        mappings.push(Map::new(GIB).file(&device.open()?)?);
        Ok(())
    })?;
    let memory = target.memory()?;
    let others = [(GIB, 3 * GIB)];
    let other = tenant(Policy::Never, &others)?;
    other.open()?;
    other.destroy()?;
    let other = tenant(Policy::HandOut, &others)?;
    Progress::midway(&other)?;
    let mut slowest = Duration::ZERO;
    let mut rounds = 0;
    while rounds < 200 && scrub::state(&other)? == "scrubbing" {
        let begin = Instant::now();
        let address = target.address + rounds * 5 * MIB;
        memory.write(address, &rounds.to_le_bytes())?;
        check_eq!(
            memory.read(address, 8)?,
            rounds.to_le_bytes(),
            "word of round {rounds}"
        );
        slowest = slowest.max(begin.elapsed());
        rounds += 1;
    }
    say!(
        "{rounds} times while the other was scrubbed, {} ms at most",
        slowest.as_millis()
    );
    check!(
        rounds > 10,
        "the scrub was over after {rounds} accesses: nothing was shown"
    );
    Ok(())
}
