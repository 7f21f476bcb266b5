// SPDX-License-Identifier: GPL-2.0

//! What memory blocks that do not go offline are used for, as far as the kernel tells: the kind of each page by
//! /proc/kpageflags, and the programs that have it mapped by /proc/PID/pagemap.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::size::Size;
use crate::sysfs;

const PAGE: u64 = dmem_plan::PAGE_SIZE;
/// Entries that are read at once.
const CHUNK: usize = 1 << 16;
/// Longest search for programs: one that has reserved much address space takes long to look through.
const SEARCH: Duration = Duration::from_secs(10);
/// At most so many programs are named.
const SHOWN: usize = 5;

/// What pages can be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    HugePages,
    Kernel,
    Program,
    Shared,
    Files,
}

impl Kind {
    /// By the page's bits (include/uapi/linux/kernel-page-flags.h); `None` for a free one.
    fn of(flags: u64) -> Option<Kind> {
        let has = |bit: u32| flags & (1 << bit) != 0;
        let (lru, slab, buddy, mmap, anon, backed) = (5, 7, 10, 11, 12, 14);
        let (huge, nopage, offline, table) = (17, 20, 23, 26);
        match () {
            () if has(buddy) || has(nopage) || has(offline) => None,
            () if has(huge) => Some(Kind::HugePages),
            () if has(slab) || has(table) => Some(Kind::Kernel),
            () if has(anon) => Some(Kind::Program),
            () if (has(lru) || has(mmap)) && has(backed) => Some(Kind::Shared),
            () if has(lru) || has(mmap) => Some(Kind::Files),
            // In a list of free pages of one CPU, or the kernel's: nothing tells them apart.
            () => Some(Kind::Kernel),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::HugePages => "hugetlb pages",
            Kind::Kernel => "the kernel's own",
            Kind::Program => "programs' memory",
            Kind::Shared => "tmpfs or shared memory",
            Kind::Files => "cached files",
        })
    }
}

/// What there is in blocks.
#[derive(Debug, Default)]
pub struct Holders {
    /// Pages of each kind by block.
    kinds: BTreeMap<u64, BTreeMap<Kind, u64>>,
    /// Pages by program.
    programs: BTreeMap<(u32, String), u64>,
    /// Not all programs were looked at.
    cut_short: bool,
}

impl Holders {
    /// Of the blocks of these numbers, each of so many bytes.
    pub fn of(blocks: &BTreeSet<u64>, size: u64) -> Holders {
        let mut holders = Holders::default();
        let pages = size / PAGE;
        if let Ok(flags) = File::open("/proc/kpageflags") {
            for block in blocks {
                let kinds = holders.kinds.entry(*block).or_default();
                each(&flags, block * pages, pages, |_, flags| {
                    if let Some(kind) = Kind::of(flags) {
                        *kinds.entry(kind).or_default() += 1;
                    }
                });
            }
        }
        let end = Instant::now() + SEARCH;
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        for process in processes {
            let Some(pid) = process
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let Some(count) = mapped(&process.path(), blocks, pages, end) else {
                holders.cut_short = true;
                break;
            };
            if count > 0 {
                let name = sysfs::text(&process.path().join("comm")).unwrap_or_default();
                holders.programs.insert((pid, name), count);
            }
        }
        holders
    }

    /// What one block is used for.
    pub fn block(&self, number: u64) -> String {
        let kinds = self.kinds.get(&number);
        let mut kinds: Vec<(Kind, u64)> = kinds
            .into_iter()
            .flatten()
            .map(|(kind, count)| (*kind, *count))
            .collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let texts: Vec<String> = kinds
            .iter()
            .map(|(kind, count)| format!("{} {kind}", Size(count * PAGE)))
            .collect();
        match texts.is_empty() {
            true => "what it holds is not known".to_owned(),
            false => format!("it holds {}", texts.join(", ")),
        }
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut programs: Vec<_> = self.programs.iter().collect();
        programs.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let texts: Vec<String> = programs
            .iter()
            .take(SHOWN)
            .map(|((pid, name), count)| format!("pid {pid} ({name}, {})", Size(*count * PAGE)))
            .collect();
        match texts.is_empty() {
            true => write!(f, "No program has memory of these blocks mapped")?,
            false => write!(f, "Programs that have memory of them: {}", texts.join(", "))?,
        }
        match self.cut_short {
            true => write!(f, " (not all programs were looked at)"),
            false => Ok(()),
        }
    }
}

/// Pages of these blocks that a process has mapped; `None` when the time is over before all is looked at.
fn mapped(process: &Path, blocks: &BTreeSet<u64>, pages: u64, end: Instant) -> Option<u64> {
    let (Ok(map), Ok(areas)) = (
        File::open(process.join("pagemap")),
        fs::read_to_string(process.join("maps")),
    ) else {
        return Some(0);
    };
    let mut count = 0;
    for area in areas.lines() {
        let Some((start, last)) = area_of(area) else {
            continue;
        };
        let mut at = start / PAGE;
        while at < last / PAGE {
            if Instant::now() >= end {
                return None;
            }
            let length = (last / PAGE - at).min(u64::try_from(CHUNK).unwrap_or(1));
            each(&map, at, length, |_, entry| {
                // Bit 63: present. Bits 0 to 54: the page frame.
                let frame = entry & ((1 << 55) - 1);
                if entry >> 63 == 1 && blocks.contains(&(frame / pages)) {
                    count += 1;
                }
            });
            at += length;
        }
    }
    Some(count)
}

/// Start and end of a line of /proc/PID/maps.
fn area_of(line: &str) -> Option<(u64, u64)> {
    let (start, rest) = line.split_once('-')?;
    let (end, _) = rest.split_once(' ')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some((hex(start)?, hex(end)?))
}

/// Calls with index and value of `count` entries of 8 bytes, from the one of number `first` on, as far as there are any.
fn each(file: &File, first: u64, count: u64, mut call: impl FnMut(u64, u64)) {
    let mut at = first;
    let mut buffer = vec![0u8; CHUNK * 8];
    while at < first + count {
        let wanted = usize::try_from((first + count - at) * 8).unwrap_or(usize::MAX);
        let Some(part) = buffer.get_mut(..wanted.min(CHUNK * 8)) else {
            return;
        };
        let Ok(length @ 8..) = file.read_at(part, at * 8) else {
            return;
        };
        for entry in part.get(..length).unwrap_or_default().chunks_exact(8) {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(entry);
            call(at, u64::from_ne_bytes(bytes));
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_pages() {
        let kind = |bits: &[u32]| Kind::of(bits.iter().fold(0, |flags, bit| flags | (1 << bit)));
        assert_eq!(kind(&[10]), None);
        assert_eq!(kind(&[20]), None);
        assert_eq!(kind(&[]), Some(Kind::Kernel));
        assert_eq!(kind(&[7]), Some(Kind::Kernel));
        assert_eq!(kind(&[5, 11, 12, 14]), Some(Kind::Program));
        assert_eq!(kind(&[3, 5, 14]), Some(Kind::Shared));
        assert_eq!(kind(&[3, 5, 11]), Some(Kind::Files));
        assert_eq!(kind(&[15, 17]), Some(Kind::HugePages));
    }

    #[test]
    fn areas_of_processes() {
        let line = "7f0000000000-7f0000200000 rw-p 00000000 00:00 0          [heap]";
        assert_eq!(area_of(line), Some((0x7f00_0000_0000, 0x7f00_0020_0000)));
        assert_eq!(area_of("nonsense"), None);
    }

    #[test]
    fn what_is_told() {
        let mut holders = Holders::default();
        assert_eq!(holders.block(3), "what it holds is not known");
        assert_eq!(
            holders.to_string(),
            "No program has memory of these blocks mapped"
        );
        holders
            .kinds
            .insert(3, BTreeMap::from([(Kind::Kernel, 1), (Kind::Files, 512)]));
        holders.programs.insert((7, "small".to_owned()), 1);
        holders.programs.insert((9, "large".to_owned()), 256);
        holders.cut_short = true;
        assert_eq!(
            holders.block(3),
            "it holds 2M cached files, 4K the kernel's own"
        );
        assert_eq!(
            holders.to_string(),
            "Programs that have memory of them: pid 9 (large, 1M), pid 7 (small, 4K) (not all programs were looked at)"
        );
    }
}
