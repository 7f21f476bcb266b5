// SPDX-License-Identifier: GPL-2.0

//! What `stats` tells: how much memory guests have, who maps it, how it is spread over nodes and regions, and what the
//! kernel would need for the same bytes in other ways.

use std::collections::BTreeMap;

use serde::Serialize;

use super::json::Header;
use super::{common, DeviceLine, RegionLine, Report};
use crate::bus::{total, Leaves, Range};
use crate::counters::{self, Counters, Faults};
use crate::mappers::{self, Mapper};
use crate::mode::Mode;
use crate::name::DeviceName;
use crate::struct_page;

mod metadata;
pub mod prometheus;
pub mod text;
pub mod top;

use metadata::{metadata, struct_pages, Metadata};

/// What it is where the kernel does not say: on all kernels of 64 bits as distributions build them.
const USUAL_PAGE: u64 = 64;

/// What is counted and found beside the report.
#[derive(Debug, Default)]
pub struct Seen {
    /// Size of a struct page, if it is known.
    pub struct_page: Option<u64>,
    /// What page-less devices count.
    pub counters: BTreeMap<DeviceName, Counters>,
    /// Who maps them.
    pub mappers: Vec<Mapper>,
    /// Bytes that were scrubbed since the driver was loaded.
    pub scrubbed: Option<u64>,
}

impl Seen {
    /// Looks at all of it.
    pub fn of(report: &Report) -> Seen {
        let devices = report.devices.iter().map(|line| &line.device);
        let page_less = devices.filter(|device| device.is_page_less());
        let counted = page_less.clone();
        Seen {
            struct_page: struct_page::size(),
            counters: counted
                .filter_map(|device| Some((device.name, Counters::of(device)?)))
                .collect(),
            mappers: mappers::of(page_less),
            scrubbed: counters::scrubbed(),
        }
    }
}

/// Everything to tell.
#[derive(Debug, Serialize)]
pub struct Stats {
    daxdmem: Header,
    struct_page: u64,
    struct_page_known: bool,
    guests: Vec<Device>,
    others: Vec<Device>,
    processes: Vec<Process>,
    nodes: Vec<Node>,
    regions: Vec<Area>,
    total: Total,
    scrubbed: Option<u64>,
    metadata: Vec<Metadata>,
}

/// A device that is a guest's or page-less.
#[derive(Debug, Serialize)]
struct Device {
    guest: Option<String>,
    device: String,
    size: u64,
    node: Option<u32>,
    mode: String,
    openers: Option<u64>,
    state: Option<String>,
    mappings: Option<u64>,
    leaves: Option<counters::Leaves>,
    faults: Option<Vec<Faults>>,
    poisoned: Option<usize>,
    saved: u64,
}

/// A process that maps a device.
#[derive(Debug, Clone, Serialize)]
struct Process {
    pid: u32,
    program: String,
    guest: Option<String>,
    device: String,
    node: Option<u32>,
    mapped: u64,
}

/// Bytes of free memory, by the largest leaf that can map them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct FreeBy {
    #[serde(rename = "1g")]
    giant: u64,
    #[serde(rename = "2m")]
    huge: u64,
    #[serde(rename = "4k")]
    small: u64,
}

impl FreeBy {
    fn of(pieces: &[Range]) -> FreeBy {
        pieces.iter().fold(FreeBy::default(), |sum, piece| {
            let leaves = Leaves::in_memory(*piece);
            FreeBy {
                giant: sum.giant + (leaves.gib << 30),
                huge: sum.huge + (leaves.two_mib << 21),
                small: sum.small + (leaves.four_kib << 12),
            }
        })
    }

    fn with(self, other: FreeBy) -> FreeBy {
        FreeBy {
            giant: self.giant + other.giant,
            huge: self.huge + other.huge,
            small: self.small + other.small,
        }
    }

    /// Bytes by the leaf's size.
    fn sizes(self) -> [(&'static str, u64); 3] {
        let [giant, huge, small] = counters::LEAVES;
        [(giant, self.giant), (huge, self.huge), (small, self.small)]
    }
}

/// Bytes of the regions of a NUMA node.
#[derive(Debug, Default, Serialize)]
struct Node {
    node: Option<u32>,
    reserved: u64,
    page_less: u64,
    free: u64,
    free_by_leaf: Option<FreeBy>,
    quarantined: u64,
    lost: u64,
    saved: u64,
}

/// Bytes of a region.
#[derive(Debug, Serialize)]
struct Area {
    id: u32,
    node: Option<u32>,
    size: u64,
    free: u64,
    free_by_leaf: Option<FreeBy>,
    free_clean: Option<u64>,
    quarantined: Option<u64>,
    lost: Option<u64>,
    poisoned: Option<usize>,
}

/// Bytes of all regions.
#[derive(Debug, Default, Serialize)]
struct Total {
    reserved: u64,
    page_less: u64,
    devdax: u64,
    system_ram: u64,
    unbound: u64,
    free: u64,
    quarantined: u64,
    lost: u64,
    free_clean: Option<u64>,
    openers: u64,
    saved: u64,
}

impl Total {
    fn of(report: &Report, areas: &[Area], page: u64) -> Total {
        let mut sum = Total {
            quarantined: total(report.quarantine.iter().map(|held| &held.range)),
            ..Total::default()
        };
        for area in areas {
            sum.reserved += area.size;
            sum.free += area.free;
            sum.lost += area.lost.unwrap_or(0);
            if let Some(clean) = area.free_clean {
                *sum.free_clean.get_or_insert(0) += clean;
            }
        }
        for line in &report.devices {
            let size = line.device.size;
            match Mode::of(&line.device) {
                Mode::PageLess => sum.page_less += size,
                Mode::Devdax => sum.devdax += size,
                Mode::SystemRam => sum.system_ram += size,
                Mode::Unbound | Mode::Other(_) => sum.unbound += size,
            }
            sum.openers += line.device.openers.unwrap_or(0);
            sum.saved += saved(line, page);
        }
        sum
    }
}

/// Bytes of struct pages that a device does not need.
fn saved(line: &DeviceLine, page: u64) -> u64 {
    match line.device.is_page_less() {
        true => struct_pages(line.device.size, page),
        false => 0,
    }
}

impl Device {
    fn of(line: &DeviceLine, seen: &Seen, page: u64) -> Device {
        let device = &line.device;
        let counters = seen.counters.get(&device.name);
        Device {
            guest: line.guest.as_ref().map(ToString::to_string),
            device: device.name.to_string(),
            size: device.size,
            node: device.node,
            mode: Mode::of(device).to_string(),
            openers: device.openers,
            state: counters.map(|counters| counters.state.clone()),
            mappings: counters.map(|counters| counters.mappings),
            leaves: counters.and_then(|counters| counters.leaves.clone()),
            faults: counters.map(|counters| counters.faults.clone()),
            poisoned: line.poison.as_ref().map(crate::poison::Pages::len),
            saved: saved(line, page),
        }
    }

    /// Page faults that brought a leaf.
    fn faults_mapped(&self) -> Option<u64> {
        let faults = self.faults.as_ref()?.iter();
        Some(faults.fold(0, |sum, faults| sum.saturating_add(faults.mapped)))
    }
}

impl Process {
    fn of(mapper: &Mapper, report: &Report) -> Process {
        let mut lines = report.devices.iter();
        let line = lines.find(|line| line.device.name == mapper.device);
        Process {
            pid: mapper.pid,
            program: mapper.program.clone(),
            guest: line.and_then(|line| Some(line.guest.as_ref()?.to_string())),
            device: mapper.device.to_string(),
            node: line.and_then(|line| line.device.node),
            mapped: mapper.bytes,
        }
    }
}

impl Area {
    fn of(line: &RegionLine, report: &Report) -> Area {
        let region = &line.region;
        let free = line.free.as_deref();
        let held: Vec<Range> = report.quarantine.iter().map(|held| held.range).collect();
        let whole = line.start.map(|start| Range {
            start,
            len: region.size,
        });
        Area {
            id: region.id,
            node: region.node,
            size: region.size,
            free: free.map_or(region.available, |free| total(free.iter())),
            free_by_leaf: free.map(FreeBy::of),
            free_clean: line.clean,
            quarantined: whole.map(|whole| common(&[whole], &held)),
            lost: line.lost,
            poisoned: line.poison.as_ref().map(crate::poison::Pages::len),
        }
    }
}

impl Node {
    fn all(areas: &[Area], report: &Report, page: u64) -> Vec<Node> {
        let mut nodes: BTreeMap<Option<u32>, Node> = BTreeMap::new();
        for area in areas {
            let node = nodes.entry(area.node).or_default();
            node.node = area.node;
            node.reserved += area.size;
            node.free += area.free;
            if let Some(free) = area.free_by_leaf {
                node.free_by_leaf = Some(node.free_by_leaf.unwrap_or_default().with(free));
            }
            node.quarantined += area.quarantined.unwrap_or(0);
            node.lost += area.lost.unwrap_or(0);
        }
        for line in &report.devices {
            if let (true, Some(node)) =
                (line.device.is_page_less(), nodes.get_mut(&line.device.node))
            {
                node.page_less += line.device.size;
                node.saved += saved(line, page);
            }
        }
        nodes.into_values().collect()
    }
}

impl Stats {
    /// Of the report, and what was seen beside it.
    pub fn new(report: &Report, seen: &Seen) -> Stats {
        let page = seen.struct_page.unwrap_or(USUAL_PAGE);
        let of = |line: &DeviceLine| Device::of(line, seen, page);
        let devices = report.devices.iter();
        let others = devices.filter(|line| line.guest.is_none() && line.device.is_page_less());
        let guests = report.devices.iter().filter(|line| line.guest.is_some());
        let regions: Vec<Area> = report
            .regions
            .iter()
            .map(|line| Area::of(line, report))
            .collect();
        let total = Total::of(report, &regions, page);
        Stats {
            daxdmem: Header::VERSION_1,
            struct_page: page,
            struct_page_known: seen.struct_page.is_some(),
            guests: guests.map(of).collect(),
            others: others.map(of).collect(),
            processes: seen
                .mappers
                .iter()
                .map(|mapper| Process::of(mapper, report))
                .collect(),
            nodes: Node::all(&regions, report, page),
            scrubbed: seen.scrubbed,
            metadata: metadata(total.page_less, page),
            regions,
            total,
        }
    }

    /// The guests' devices, then others that are page-less.
    fn devices(&self) -> impl Iterator<Item = &Device> {
        self.guests.iter().chain(&self.others)
    }
}

/// As one JSON object.
pub fn json(stats: &Stats) -> serde_json::Result<String> {
    serde_json::to_string_pretty(stats)
}

#[cfg(test)]
mod tests {
    use super::super::json::tests::check_documented;
    use super::super::tests::report;
    use super::*;

    /// What is seen beside [`report`].
    pub fn seen() -> Seen {
        let faults = |leaf: &str, mapped| Faults {
            leaf: leaf.to_owned(),
            mapped,
            smaller: 1,
            sigbus: 0,
            poisoned: 0,
        };
        let counters = Counters {
            state: "mapped".to_owned(),
            mappings: 2,
            faults: vec![faults("1g", 2), faults("2m", 3), faults("4k", 0)],
            leaves: Some(counters::Leaves {
                giant: 2,
                huge: 3,
                small: 0,
                complete: true,
            }),
        };
        let device: DeviceName = "dax0.0".parse().unwrap();
        Seen {
            struct_page: Some(64),
            counters: BTreeMap::from([(device, counters)]),
            mappers: vec![Mapper {
                pid: 42,
                program: "qemu-system-x86".to_owned(),
                device,
                bytes: 2 << 30,
            }],
            scrubbed: Some(3 << 30),
        }
    }

    pub fn stats() -> Stats {
        Stats::new(&report(), &seen())
    }

    #[test]
    fn free_memory_by_leaf() {
        let gib = 1 << 30;
        let free = |start, len| FreeBy::of(&[Range { start, len }]).sizes();
        assert_eq!(
            free(4 * gib, 2 * gib),
            [("1g", 2 * gib), ("2m", 0), ("4k", 0)]
        );
        let (half, mib) = (gib / 2, 1 << 20);
        assert_eq!(
            free(4 * gib + half, gib),
            [("1g", 0), ("2m", gib), ("4k", 0)]
        );
        assert_eq!(
            free(4 * gib - mib, gib + 4 * mib),
            [("1g", gib), ("2m", 2 * mib), ("4k", 2 * mib)]
        );
    }

    #[test]
    fn as_json() {
        let text = json(&stats()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["guests"][0]["saved"], 32 << 20);
        assert_eq!(value["guests"][0]["leaves"]["1g"], 2);
        assert_eq!(value["total"]["page_less"], 2u64 << 30);
        let parts = [
            "page_less",
            "devdax",
            "system_ram",
            "unbound",
            "free",
            "quarantined",
            "lost",
        ];
        let parts = parts.map(|part| value["total"][part].as_u64().unwrap());
        assert_eq!(value["total"]["reserved"], parts.iter().sum::<u64>());
        assert_eq!(value["metadata"][1]["way"], "hugetlbfs");
        assert_eq!(value["processes"][0]["mapped"], 2u64 << 30);
        assert_eq!(value["processes"][0]["guest"], "vm1");
        let node = &value["nodes"][1];
        assert_eq!(
            (&node["node"], &node["saved"]),
            (&0.into(), &(32 << 20).into())
        );
        assert_eq!(node["quarantined"], 1u64 << 30);
        let region = &value["regions"][0];
        assert_eq!(region["free_by_leaf"]["1g"], 4u64 << 30);
        assert_eq!(region["free_by_leaf"]["2m"], (1u64 << 30) - (2 << 20));
        assert_eq!(region["poisoned"], 4);
        check_documented(&value);
    }
}
