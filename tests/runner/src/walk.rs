// SPDX-License-Identifier: GPL-2.0
//! A CPU's page table, walked from outside, for the agent's requests `tlb` (a part of the user's half) and `kernel`.
//!
//! The tables are read from physical memory with the monitor's `xp` while the VM stands still. `info tlb` would
//! print every leaf of that half: with KASAN's shadow, one zero page mapped over terabytes, it never ends. Here
//! each table is read once, however many entries lead to it.

use std::collections::HashSet;
use std::fmt::Write;
use std::ops::{Range, RangeInclusive};

use crate::lab::Result;
use crate::qmp::Qmp;

const ENTRIES: u64 = 512;
const PRESENT: u64 = 1 << 0;
/// The page-size bit: a leaf above the lowest level.
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// CR4.LA57: five levels.
const LA57: u64 = 1 << 12;
/// Letters of the flags as `info tlb` shows them (print_pte), with their bits.
const FLAGS: &[(char, u64)] = &[
    ('X', 1 << 63),
    ('G', 1 << 8),
    ('P', LARGE),
    ('D', 1 << 6),
    ('A', 1 << 5),
    ('C', 1 << 4),
    ('T', 1 << 3),
    ('U', 1 << 2),
    ('W', 1 << 1),
];

/// The reply: `cpl=`, `cr3=`, `r15=`, then the leaves at virtual addresses in `low..high` of the user's half: virtual
/// and physical address, flags, size. No leaves unless the CPU is in user mode: the agent asks again.
pub fn user_part(qmp: &mut Qmp, cpu: u32, low: u64, high: u64) -> Result<String> {
    qmp.execute("stop", serde_json::json!({}))?;
    let reply = user_part_stopped(qmp, cpu, low..high);
    qmp.execute("cont", serde_json::json!({}))?;
    reply
}

fn user_part_stopped(qmp: &mut Qmp, cpu: u32, window: Range<u64>) -> Result<String> {
    let registers = qmp.monitor("info registers", cpu)?;
    let mut reply = String::new();
    for (name, key) in [("cpl", "CPL="), ("cr3", "CR3="), ("r15", "R15=")] {
        let value = register(&registers, key)
            .ok_or_else(|| format!("'info registers' has no {key}:\n{registers}"))?;
        let _ = writeln!(reply, "{name}={value}");
    }
    if register(&registers, "CPL=") != Some("3") || window.is_empty() {
        return Ok(reply);
    }
    let mut walk = Walk {
        table: |address| table(qmp, cpu, address),
        window: window.start..=window.end - 1,
        wanted: 0..u64::MAX,
        seen: HashSet::new(),
        total: 0,
        leaves: String::new(),
    };
    let (root, levels) = root(&registers)?;
    walk.descend(root, levels, 0)?;
    Ok(reply + &walk.leaves)
}

/// Runs a command of the monitor while the CPU is in user mode with this value in R15. The reply says whether it was.
///
/// What the command does to that CPU (a machine check) hits the program before its next instruction.
pub fn strike(qmp: &mut Qmp, cpu: u32, r15: u64, command: &str) -> Result<String> {
    qmp.execute("stop", serde_json::json!({}))?;
    let reply = strike_stopped(qmp, cpu, r15, command);
    qmp.execute("cont", serde_json::json!({}))?;
    reply
}

fn strike_stopped(qmp: &mut Qmp, cpu: u32, r15: u64, command: &str) -> Result<String> {
    let registers = qmp.monitor("info registers", cpu)?;
    let found = register(&registers, "R15=").and_then(|text| u64::from_str_radix(text, 16).ok());
    if register(&registers, "CPL=") != Some("3") || found != Some(r15) {
        return Ok("missed".to_owned());
    }
    match qmp.monitor(command, cpu)?.trim() {
        "" => Ok("hit".to_owned()),
        refusal => Ok(refusal.to_owned()),
    }
}

/// The reply: `total=` with the bytes of all leaves in that half (shared tables counted once), then the leaves
/// that lead to physical addresses in `low..high`, as [`user_part`] shows them.
pub fn kernel_half(qmp: &mut Qmp, cpu: u32, low: u64, high: u64) -> Result<String> {
    qmp.execute("stop", serde_json::json!({}))?;
    let reply = walk_stopped(qmp, cpu, low..high);
    qmp.execute("cont", serde_json::json!({}))?;
    reply
}

fn walk_stopped(qmp: &mut Qmp, cpu: u32, wanted: Range<u64>) -> Result<String> {
    let registers = qmp.monitor("info registers", cpu)?;
    let (root, levels) = root(&registers)?;
    // The upper half's addresses have all bits set above those that are translated.
    let all_set = u64::MAX << (12 + 9 * levels);
    let mut walk = Walk {
        table: |address| table(qmp, cpu, address),
        window: u64::MAX << (11 + 9 * levels)..=u64::MAX,
        wanted,
        seen: HashSet::new(),
        total: 0,
        leaves: String::new(),
    };
    walk.descend(root, levels, all_set)?;
    Ok(format!("total={:x}\n{}", walk.total, walk.leaves))
}

/// The table at the root and the number of levels.
fn root(registers: &str) -> Result<(u64, u32)> {
    let value = |key: &str| {
        let text = register(registers, key).unwrap_or_default();
        u64::from_str_radix(text, 16)
            .map_err(|_| format!("'info registers' has no {key}:\n{registers}"))
    };
    let levels = if value("CR4=")? & LA57 != 0 { 5 } else { 4 };
    Ok((value("CR3=")? & ADDRESS, levels))
}

/// A register's text in the reply to `info registers`.
fn register<'a>(registers: &'a str, key: &str) -> Option<&'a str> {
    // Values may be padded: "CPL=3", "R15=0000…", "CR3=0000…".
    let rest = &registers[registers.find(key)? + key.len()..];
    rest.split_ascii_whitespace().next()
}

/// The entries of the table at a physical address.
fn table(qmp: &mut Qmp, cpu: u32, address: u64) -> Result<Vec<u64>> {
    let text = qmp.monitor(&format!("xp /{ENTRIES}gx {address:#x}"), cpu)?;
    // "0000000001234000: 0x0000000000000000 0x8000000001235063"
    let words = text
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("0x"));
    let entries: Option<Vec<u64>> = words
        .map(|word| u64::from_str_radix(word, 16).ok())
        .collect();
    match entries {
        Some(entries) if entries.len() as u64 == ENTRIES => Ok(entries),
        _ => Err(format!(
            "QEMU cannot show the table at {address:#x}: {text}"
        )),
    }
}

struct Walk<F> {
    table: F,
    /// Virtual addresses to look at.
    window: RangeInclusive<u64>,
    /// Physical addresses, leaves to which are shown.
    wanted: Range<u64>,
    /// Tables that were read, each with its level: a table may stand for several levels.
    seen: HashSet<(u64, u32)>,
    total: u64,
    leaves: String,
}

impl<F: FnMut(u64) -> Result<Vec<u64>>> Walk<F> {
    /// Looks at a table of this level (1: its entries are pages) for virtual addresses from `virt` on.
    fn descend(&mut self, address: u64, level: u32, virt: u64) -> Result<()> {
        if !self.seen.insert((address, level)) {
            return Ok(());
        }
        let size = 1 << (12 + 9 * (level - 1));
        let entries = (self.table)(address)?;
        for (index, entry) in (0..).zip(entries) {
            let virt = virt + index * size;
            let outside = virt > *self.window.end() || virt + (size - 1) < *self.window.start();
            if entry & PRESENT == 0 || outside {
                continue;
            }
            if level > 1 && entry & LARGE == 0 {
                self.descend(entry & ADDRESS, level - 1, virt)?;
                continue;
            }
            self.total += size;
            // Above the lowest level bit 12 is the PAT bit.
            let phys = entry & ADDRESS & !(size - 1);
            if phys < self.wanted.end && self.wanted.start < phys + size {
                self.show(virt, phys, entry, level)?;
            }
        }
        Ok(())
    }

    fn show(&mut self, virt: u64, phys: u64, entry: u64, level: u32) -> Result<()> {
        let size = match level {
            1 => "4K",
            2 => "2M",
            3 => "1G",
            _ => return Err(format!("the entry {entry:#x} is a leaf at level {level}")),
        };
        let letter = |(letter, bit): &(char, u64)| if entry & bit != 0 { *letter } else { '-' };
        let flags: String = FLAGS.iter().map(letter).collect();
        let _ = writeln!(self.leaves, "{virt:016x}: {phys:016x} {flags} {size}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table with these entries, by index, and no others.
    fn holding(places: &[(usize, u64)]) -> Vec<u64> {
        let mut entries = vec![0; ENTRIES as usize];
        for (index, entry) in places {
            entries[*index] = *entry;
        }
        entries
    }

    #[test]
    fn leaves_of_all_sizes_are_found_and_shared_tables_read_once() {
        // Physical addresses of the tables: 1000 (level 4), 2000 (3), 3000 (2), 4000 (1).
        let mut read = Vec::new();
        let table = |address| {
            read.push(address);
            let places: &[(usize, u64)] = match address {
                // The user half is not looked at.
                0x1000 => &[(0, 0x9001), (256, 0x2003), (511, 0x2003)],
                0x2000 => &[(1, 0x8000_0000_c000_01e3), (2, 0x3003)],
                0x3000 => &[(0, 0x1_0020_00e3), (3, 0x4003)],
                0x4000 => &[(5, 0x1_0000_5061), (6, 0x1_0000_6000)],
                other => panic!("read {other:#x}"),
            };
            Ok(holding(places))
        };
        let mut walk = Walk {
            table,
            window: 0xffff_8000_0000_0000..=u64::MAX,
            wanted: 0x1_0000_0000..0x1_0100_0000,
            seen: HashSet::new(),
            total: 0,
            leaves: String::new(),
        };
        walk.descend(0x1000, 4, u64::MAX << 48).unwrap();
        assert_eq!(
            walk.leaves,
            "ffff800080000000: 0000000100200000 --PDA---W 2M\n\
             ffff800080605000: 0000000100005000 ---DA---- 4K\n"
        );
        assert_eq!(walk.total, (1 << 30) + (2 << 20) + 4096);
        assert_eq!(read, [0x1000, 0x2000, 0x3000, 0x4000]);
    }

    #[test]
    fn the_window_bounds_what_is_read_and_shown() {
        let mut read = Vec::new();
        let table = |address| {
            read.push(address);
            let places: &[(usize, u64)] = match address {
                0x1000 => &[(0, 0x2007), (1, 0x9007), (256, 0x9003)],
                0x2000 => &[(0, 0x9007), (1, 0x4000_00e7), (2, 0x3007), (3, 0x9007)],
                0x3000 => &[(0, 0x8000_00e7), (1, 0x8020_00e7), (2, 0x8040_00e7)],
                other => panic!("read {other:#x}"),
            };
            Ok(holding(places))
        };
        let mut walk = Walk {
            table,
            window: 0x4000_0000..=0x803f_ffff,
            wanted: 0..u64::MAX,
            seen: HashSet::new(),
            total: 0,
            leaves: String::new(),
        };
        walk.descend(0x1000, 4, 0).unwrap();
        assert_eq!(
            walk.leaves,
            "0000000040000000: 0000000040000000 --PDA--UW 1G\n\
             0000000080000000: 0000000080000000 --PDA--UW 2M\n\
             0000000080200000: 0000000080200000 --PDA--UW 2M\n"
        );
        assert_eq!(read, [0x1000, 0x2000, 0x3000]);
    }

    #[test]
    fn registers_are_found() {
        let text =
            "R14=0000000000000000 R15=00000000deadbeef\r\nCR3=0000000002a10000 CR4=003506f0\r\n\
            RIP=00 RFL=00000246 [---Z-P-] CPL=3 II=0\r\n";
        assert_eq!(register(text, "R15="), Some("00000000deadbeef"));
        assert_eq!(register(text, "CPL="), Some("3"));
        assert_eq!(root(text), Ok((0x2a1_0000, 4)));
    }
}
