// SPDX-License-Identifier: GPL-2.0
//! A CPU's page table as QEMU sees it, for the agent's `tlb` request.
//!
//! `info tlb` of QEMU 10 (target/i386/monitor.c, tlb_info_la48) prints one line per present leaf, in address
//! order. A 1 GiB leaf and a 2 MiB leaf both show P and no size. They are told apart while the VM stands still:
//! the former needs both addresses aligned to 1 GiB, no other leaf in that GiB, and an address 2 MiB into it
//! that translates (`gva2gpa`), which would be a line of its own if it were a 2 MiB leaf.

use std::fmt::Write;

use crate::lab::Result;
use crate::qmp::Qmp;

const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

/// The reply: `cpl=`, `cr3=`, `r15=`, then the leaves in `low..high`, each with its size behind QEMU's flags.
pub fn look(qmp: &mut Qmp, cpu: u32, low: u64, high: u64) -> Result<String> {
    qmp.execute("stop", serde_json::json!({}))?;
    let reply = look_stopped(qmp, cpu, low, high);
    qmp.execute("cont", serde_json::json!({}))?;
    reply
}

fn look_stopped(qmp: &mut Qmp, cpu: u32, low: u64, high: u64) -> Result<String> {
    let registers = qmp.monitor("info registers", cpu)?;
    let mut reply = String::new();
    for (name, key) in [("cpl", "CPL="), ("cr3", "CR3="), ("r15", "R15=")] {
        let value = register(&registers, key)
            .ok_or_else(|| format!("'info registers' has no {key}:\n{registers}"))?;
        let _ = writeln!(reply, "{name}={value}");
    }
    if register(&registers, "CPL=") != Some("3") {
        // Not in user mode: the agent asks again, and the table need not be printed for nothing.
        return Ok(reply);
    }
    let table = qmp.monitor("info tlb", cpu)?;
    let leaves = leaves(&table, low, high);
    for (index, leaf) in leaves.iter().enumerate() {
        let next = leaves.get(index + 1).map(|leaf| leaf.virt);
        let size = if !leaf.large {
            "4K"
        } else if leaf.may_be_gigabyte(next) && translates(qmp, cpu, leaf.virt + MIB2)? {
            "1G"
        } else {
            "2M"
        };
        let _ = writeln!(reply, "{} {size}", leaf.line);
    }
    Ok(reply)
}

pub fn register<'a>(registers: &'a str, key: &str) -> Option<&'a str> {
    // Values may be padded: "CPL=3", "R15=0000…", "CR3=0000…".
    let rest = &registers[registers.find(key)? + key.len()..];
    rest.split_ascii_whitespace().next()
}

fn translates(qmp: &mut Qmp, cpu: u32, virt: u64) -> Result<bool> {
    let answer = qmp.monitor(&format!("gva2gpa {virt:#x}"), cpu)?;
    match answer.trim() {
        "Unmapped" => Ok(false),
        found if found.starts_with("gpa: ") => Ok(true),
        other => Err(format!("QEMU answered gva2gpa with '{other}'")),
    }
}

struct Leaf<'a> {
    line: &'a str,
    virt: u64,
    phys: u64,
    large: bool,
}

impl Leaf<'_> {
    fn may_be_gigabyte(&self, next: Option<u64>) -> bool {
        self.virt % GIB == 0
            && self.phys % GIB == 0
            && next.is_none_or(|next| next >= self.virt + GIB)
    }
}

fn leaves(table: &str, low: u64, high: u64) -> Vec<Leaf<'_>> {
    let parse = |line| {
        let line: &str = str::trim_end(line);
        let (virt, rest) = line.split_once(": ")?;
        let (phys, flags) = rest.split_once(' ')?;
        let virt = u64::from_str_radix(virt, 16).ok()?;
        let phys = u64::from_str_radix(phys, 16).ok()?;
        (low..high).contains(&virt).then(|| Leaf {
            line,
            virt,
            phys,
            large: flags.contains('P'),
        })
    };
    table.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "00007f0040000000: 0000000180000000 X-PDA--UW\r\n\
        00007f0040200000: 0000000180200000 X-PDA--UW\r\n\
        00007f0080000000: 0000000240000000 X-PDA--UW\r\n\
        00007f00c0001000: 0000000280001000 X--DA--UW\r\n";

    #[test]
    fn only_a_lone_leaf_may_be_a_gigabyte() {
        let leaves = leaves(TABLE, 0x7f00_4000_0000, 0x7f01_0000_0000);
        let next = |index: usize| leaves.get(index + 1).map(|leaf| leaf.virt);
        let may: Vec<bool> = leaves
            .iter()
            .enumerate()
            .map(|(i, leaf)| leaf.large && leaf.may_be_gigabyte(next(i)))
            .collect();
        assert_eq!(may, [false, false, true, false]);
    }

    #[test]
    fn the_window_bounds_what_is_shown() {
        assert_eq!(leaves(TABLE, 0x7f00_4020_0000, 0x7f00_8000_0000).len(), 1);
    }

    #[test]
    fn registers_are_found() {
        let text = "R14=0000000000000000 R15=00000000deadbeef\r\nRIP=00 RFL=00000246 [---Z-P-] CPL=3 II=0\r\n";
        assert_eq!(register(text, "R15="), Some("00000000deadbeef"));
        assert_eq!(register(text, "CPL="), Some("3"));
    }
}
