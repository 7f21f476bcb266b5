// SPDX-License-Identifier: GPL-2.0

//! The host's memory as its firmware describes it: which addresses are RAM, and on which NUMA node.
//!
//! /sys/firmware/memmap holds the table as the kernel got it; it is copied before `memmap=` is looked at
//! (arch/x86/kernel/e820.c, `e820__memory_setup`), so what is reserved already still shows as RAM. The kernel's own list
//! of nodes does not: reserved memory is missing there. Hence ACPI's table SRAT.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::bus::Range;
use crate::sysfs;

/// How the kernel calls RAM in the firmware's table.
const RAM: &str = "System RAM";
/// How it calls EFI specific-purpose memory.
const SPECIFIC_PURPOSE: &str = "Soft Reserved";

/// All memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// The firmware's table.
    pub memory: Vec<Memory>,
    /// Which addresses belong to which node, in ascending order. None: all is node 0.
    pub nodes: Vec<Area>,
}

/// An entry of the firmware's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// First byte.
    #[serde(with = "Hex")]
    pub start: u64,
    /// Last byte.
    #[serde(with = "Hex")]
    pub end: u64,
    /// What it is, in the kernel's words.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Addresses of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Area {
    /// The node.
    pub node: u32,
    /// First byte.
    #[serde(with = "Hex")]
    pub start: u64,
    /// Last byte.
    #[serde(with = "Hex")]
    pub end: u64,
}

/// Addresses as `0x` and hexadecimal digits.
struct Hex;

impl Hex {
    fn serialize<S: Serializer>(address: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{address:#x}"))
    }

    fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .ok_or_else(|| {
                serde::de::Error::custom(format!(
                    "'{text}' is no address: 0x and hexadecimal digits"
                ))
            })
    }
}

impl Topology {
    /// Reads it; `root` is where the host's file system starts.
    pub fn read(root: &Path) -> io::Result<Topology> {
        let memory = Topology::without_nodes(root)?.memory;
        let path = root.join("sys/firmware/acpi/tables/SRAT");
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let nodes = match fs::read(&path) {
            Ok(table) => {
                let why = || io::Error::new(io::ErrorKind::InvalidData, "the table is cut short");
                areas(&table).ok_or_else(why).map_err(named)?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(named(error)),
        };
        Ok(Topology { memory, nodes })
    }

    /// Reads what everybody may read: all but which memory is on which node.
    pub fn without_nodes(root: &Path) -> io::Result<Topology> {
        Ok(Topology {
            memory: firmware_map(&root.join("sys/firmware/memmap"))?,
            nodes: Vec::new(),
        })
    }

    /// Nodes that have memory, in ascending order.
    pub fn nodes(&self) -> Vec<u32> {
        let mut nodes: Vec<u32> = self.areas().map(|(node, _)| node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.retain(|node| !self.ram(*node).is_empty());
        nodes
    }

    /// A node's RAM: pieces in ascending order, apart from each other.
    pub fn ram(&self, node: u32) -> Vec<Range> {
        self.of_kind(node, |kind| kind == RAM)
    }

    /// EFI specific-purpose memory of a node.
    pub fn specific_purpose(&self, node: u32) -> Vec<Range> {
        self.of_kind(node, |kind| kind == SPECIFIC_PURPOSE)
    }

    fn of_kind(&self, node: u32, wanted: impl Fn(&str) -> bool) -> Vec<Range> {
        let (yes, no): (Vec<&Memory>, Vec<&Memory>) =
            self.memory.iter().partition(|memory| wanted(&memory.kind));
        let range = |memory: &&Memory| between(memory.start, memory.end);
        let found = join(yes.iter().filter_map(range).collect());
        // Where entries overlap, the kernel takes it for the other thing.
        let found = without(&found, &no.iter().filter_map(range).collect::<Vec<_>>());
        let areas = self.areas().filter(|(of, _)| *of == node);
        join(areas.flat_map(|(_, area)| within(&found, area)).collect())
    }

    fn areas(&self) -> impl Iterator<Item = (u32, Range)> + '_ {
        let everything = self.nodes.is_empty().then_some((
            0,
            Range {
                start: 0,
                len: u64::MAX,
            },
        ));
        let areas = self
            .nodes
            .iter()
            .filter_map(|area| Some((area.node, between(area.start, area.end)?)));
        everything.into_iter().chain(areas)
    }
}

fn between(start: u64, last: u64) -> Option<Range> {
    let len = last.checked_sub(start)?.checked_add(1)?;
    Some(Range { start, len })
}

/// Sum of their lengths.
pub fn total(ranges: &[Range]) -> u64 {
    ranges
        .iter()
        .fold(0, |sum, range| sum.saturating_add(range.len))
}

/// What of the ranges lies in `area`.
pub fn within(ranges: &[Range], area: Range) -> Vec<Range> {
    let inside =
        |range: &Range| between(range.start.max(area.start), range.last().min(area.last()));
    ranges.iter().filter_map(inside).collect()
}

/// The ranges in ascending order, those that touch made one.
fn join(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(before) if range.start <= before.start.saturating_add(before.len) => {
                let last = before.last().max(range.last());
                before.len = last - before.start + 1;
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// What of the ranges none of the others covers.
pub fn without(ranges: &[Range], others: &[Range]) -> Vec<Range> {
    let mut left = ranges.to_vec();
    for other in others {
        left = left
            .into_iter()
            .flat_map(|range| {
                let below = other
                    .start
                    .checked_sub(1)
                    .and_then(|last| between(range.start, range.last().min(last)));
                let above = other
                    .last()
                    .checked_add(1)
                    .and_then(|start| between(range.start.max(start), range.last()));
                [below, above].into_iter().flatten()
            })
            .collect();
    }
    left
}

fn firmware_map(dir: &Path) -> io::Result<Vec<Memory>> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
    let mut memory = Vec::new();
    for entry in fs::read_dir(dir).map_err(named)? {
        let path = entry.map_err(named)?.path();
        let entry = || {
            Some(Memory {
                start: sysfs::address(&path.join("start"))?,
                end: sysfs::address(&path.join("end"))?,
                kind: sysfs::text(&path.join("type"))?,
            })
        };
        let cannot = || io::Error::other(format!("cannot read {}", path.display()));
        memory.push(entry().ok_or_else(cannot)?);
    }
    memory.sort_by_key(|memory| memory.start);
    Ok(memory)
}

/// Length of SRAT's header, and of the entries that are looked at.
const HEADER: usize = 48;

/// The nodes' addresses by the table SRAT; `None` where it is malformed.
///
/// The kernel numbers nodes by the order in which it meets proximity domains: those of CPUs first, then those of memory
/// (drivers/acpi/numa/srat.c, `acpi_numa_init`).
fn areas(table: &[u8]) -> Option<Vec<Area>> {
    let mut entries = Vec::new();
    // Older tables have one byte of a domain, and junk above it.
    let mask = if *table.get(8)? >= 2 { u64::MAX } else { 0xff };
    let mut rest = table.get(HEADER..)?;
    while let [kind, len, ..] = rest {
        let entry = rest
            .get(..usize::from(*len))
            .filter(|entry| entry.len() >= 2)?;
        entries.push((*kind, entry));
        rest = rest.get(usize::from(*len)..)?;
    }
    let mut domains: Vec<u32> = Vec::new();
    let mut node_of = |domain: u32| {
        let known = domains.iter().position(|known| *known == domain);
        let index = known.unwrap_or_else(|| {
            domains.push(domain);
            domains.len() - 1
        });
        u32::try_from(index).ok()
    };
    for (kind, entry) in &entries {
        let enabled_domain = match kind {
            0 if number(entry, 4, 4)? & 1 != 0 => {
                // The domain's upper bytes came later, and lie apart.
                Some(number(entry, 2, 1)? | (number(entry, 9, 3)? << 8))
            }
            2 if number(entry, 12, 4)? & 1 != 0 => Some(number(entry, 4, 4)?),
            5 if number(entry, 24, 4)? & 1 != 0 => Some(number(entry, 4, 4)?),
            _ => None,
        };
        if let Some(domain) = enabled_domain {
            node_of(u32::try_from(domain & mask).ok()?)?;
        }
    }
    let mut areas = Vec::new();
    for (_, entry) in entries.iter().filter(|(kind, _)| *kind == 1) {
        let (start, len, flags) = (
            number(entry, 8, 8)?,
            number(entry, 16, 8)?,
            number(entry, 28, 4)?,
        );
        // Bit 0: in use; bit 2: not volatile.
        if flags & 1 == 0 || flags & 4 != 0 || len == 0 {
            continue;
        }
        areas.push(Area {
            node: node_of(u32::try_from(number(entry, 2, 4)? & mask).ok()?)?,
            start,
            end: start.checked_add(len - 1)?,
        });
    }
    areas.sort_by_key(|area| area.start);
    Some(areas)
}

fn number(entry: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let bytes = entry.get(at..at.checked_add(bytes)?)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| (sum << 8) | u64::from(*byte)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> Range {
        Range { start, len }
    }

    fn cpu(domain: u32) -> Vec<u8> {
        let mut entry = vec![0u8; 16];
        entry[1] = 16;
        entry[2] = domain.to_le_bytes()[0];
        entry[4] = 1;
        entry[9..12].copy_from_slice(&domain.to_le_bytes()[1..]);
        entry
    }

    fn memory(domain: u32, start: u64, len: u64, flags: u32) -> Vec<u8> {
        let mut entry = vec![0u8; 40];
        (entry[0], entry[1]) = (1, 40);
        entry[2..6].copy_from_slice(&domain.to_le_bytes());
        entry[8..16].copy_from_slice(&start.to_le_bytes());
        entry[16..24].copy_from_slice(&len.to_le_bytes());
        entry[28..32].copy_from_slice(&flags.to_le_bytes());
        entry
    }

    fn table(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut table = vec![0u8; HEADER];
        table[8] = 3;
        entries.iter().for_each(|entry| table.extend(entry));
        table
    }

    #[test]
    fn nodes_are_numbered_as_the_kernel_meets_them() {
        let table = table(&[
            memory(7, 0x3000, 0x1000, 1),
            cpu(0x201),
            memory(0x201, 0, 0x1000, 1),
            memory(7, 0x1000, 0x1000, 3),
            memory(9, 0x5000, 0x1000, 0),
            memory(9, 0x6000, 0x1000, 5),
        ]);
        let area = |node, start, end| Area { node, start, end };
        assert_eq!(
            areas(&table),
            Some(vec![
                area(0, 0, 0xfff),
                area(1, 0x1000, 0x1fff),
                area(1, 0x3000, 0x3fff)
            ])
        );
        assert_eq!(areas(&table[..table.len() - 1]), None);
        assert_eq!(areas(&table[..HEADER]), Some(vec![]));
        assert_eq!(areas(&[0; 20]), None);
    }

    #[test]
    fn ram_of_a_node() {
        let entry = |start, end, kind: &str| Memory {
            start,
            end,
            kind: kind.to_owned(),
        };
        let topology = Topology {
            memory: vec![
                entry(0, 0xfff, RAM),
                entry(0x1000, 0x1fff, RAM),
                entry(0x3000, 0x8fff, RAM),
                entry(0x4000, 0x4fff, "Reserved"),
                entry(0x9000, 0x9fff, SPECIFIC_PURPOSE),
            ],
            nodes: Vec::new(),
        };
        let all = [
            range(0, 0x2000),
            range(0x3000, 0x1000),
            range(0x5000, 0x4000),
        ];
        assert_eq!(topology.ram(0), all);
        assert_eq!(topology.specific_purpose(0), [range(0x9000, 0x1000)]);
        assert_eq!(topology.nodes(), [0]);
        let area = |node, start, end| Area { node, start, end };
        let split = Topology {
            nodes: vec![
                area(1, 0, 0x17ff),
                area(0, 0x1800, 0x5fff),
                area(1, 0x6000, u64::MAX),
                area(2, 0x20000, 0x2ffff),
            ],
            ..topology
        };
        assert_eq!(split.ram(1), [range(0, 0x1800), range(0x6000, 0x3000)]);
        assert_eq!(split.nodes(), [0, 1]);
        let text = serde_json::to_string(&split).unwrap();
        assert_eq!(serde_json::from_str::<Topology>(&text).unwrap(), split);
    }
}
