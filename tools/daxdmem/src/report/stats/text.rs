// SPDX-License-Identifier: GPL-2.0

//! The statistics as tables, for people.

use super::{Area, Device, FreeBy, Node, Process, Stats, Total};
use crate::counters::Leaves;
use crate::report::table::{or_none, Table, NONE};
use crate::size::Size;

/// All of it.
pub fn text(stats: &Stats) -> String {
    let known = match stats.struct_page_known {
        true => "",
        false => " (the usual size: this kernel does not say)",
    };
    let mut parts = vec![guests(stats.devices())];
    if !stats.processes.is_empty() {
        parts.push(processes(&stats.processes));
    }
    parts.push(regions(&stats.regions));
    if stats.nodes.len() > 1 {
        parts.push(nodes(&stats.nodes));
    }
    parts.push(total(&stats.total));
    parts.push(ways(stats));
    parts.push(format!(
        "SAVED: one struct page of {} bytes{known} for each 4K, as hugetlbfs without HVO has them; {NONE} is unknown\n",
        stats.struct_page
    ));
    parts.join("\n")
}

/// Devices of guests, and others that are page-less.
fn guests<'d>(devices: impl Iterator<Item = &'d Device>) -> String {
    let mut table = Table::new(&[
        "GUEST", "DEVICE", "SIZE", "NODE", "MODE", "STATE", "OPEN", "MAPS", "FAULTS", "LEAVES",
        "SAVED",
    ]);
    for device in devices {
        table.row(&[
            or_none(device.guest.as_ref()),
            device.device.clone(),
            Size(device.size).to_string(),
            or_none(device.node),
            device.mode.clone(),
            or_none(device.state.as_ref()),
            or_none(device.openers),
            or_none(device.mappings),
            or_none(device.faults_mapped()),
            or_none(device.leaves.as_ref().map(leaves)),
            Size(device.saved).to_string(),
        ]);
    }
    table.text()
}

/// `2x1G+3x2M`, and dots where there are more.
pub(super) fn leaves(leaves: &Leaves) -> String {
    let sizes = leaves.sizes();
    let there = sizes.iter().filter(|(_, number)| *number > 0);
    let mut texts: Vec<String> = there
        .map(|(size, number)| format!("{number}x{}", size.to_uppercase()))
        .collect();
    if !leaves.complete {
        texts.push("...".to_owned());
    }
    match texts.is_empty() {
        true => "0".to_owned(),
        false => texts.join("+"),
    }
}

/// Who maps how much of what.
pub(super) fn processes(processes: &[Process]) -> String {
    let mut table = Table::new(&["PID", "PROGRAM", "GUEST", "DEVICE", "NODE", "MAPPED"]);
    for process in processes {
        table.row(&[
            process.pid.to_string(),
            process.program.clone(),
            or_none(process.guest.as_ref()),
            process.device.clone(),
            or_none(process.node),
            Size(process.mapped).to_string(),
        ]);
    }
    table.text()
}

/// Bytes of one leaf size.
fn free_by(free: Option<FreeBy>, index: usize) -> String {
    let sizes = free.map(FreeBy::sizes);
    or_none(sizes.and_then(|sizes| sizes.get(index).map(|(_, bytes)| Size(*bytes))))
}

fn regions(areas: &[Area]) -> String {
    let mut table = Table::new(&[
        "REGION",
        "NODE",
        "SIZE",
        "FREE",
        "BY-1G",
        "BY-2M",
        "CLEAN",
        "QUARANTINE",
        "LOST",
        "POISONED",
    ]);
    for area in areas {
        table.row(&[
            area.id.to_string(),
            or_none(area.node),
            Size(area.size).to_string(),
            Size(area.free).to_string(),
            free_by(area.free_by_leaf, 0),
            free_by(area.free_by_leaf, 1),
            or_none(area.free_clean.map(Size)),
            or_none(area.quarantined.map(Size)),
            or_none(area.lost.map(Size)),
            or_none(area.poisoned),
        ]);
    }
    table.text()
}

fn nodes(nodes: &[Node]) -> String {
    let mut table = Table::new(&[
        "NODE",
        "RESERVED",
        "PAGE-LESS",
        "FREE",
        "BY-1G",
        "BY-2M",
        "QUARANTINE",
        "LOST",
        "SAVED",
    ]);
    for node in nodes {
        table.row(&[
            or_none(node.node),
            Size(node.reserved).to_string(),
            Size(node.page_less).to_string(),
            Size(node.free).to_string(),
            free_by(node.free_by_leaf, 0),
            free_by(node.free_by_leaf, 1),
            Size(node.quarantined).to_string(),
            Size(node.lost).to_string(),
            Size(node.saved).to_string(),
        ]);
    }
    table.text()
}

/// Sums over everything.
pub(super) fn total(total: &Total) -> String {
    let mut table = Table::new(&[
        "RESERVED",
        "PAGE-LESS",
        "DEVDAX",
        "SYSTEM-RAM",
        "UNBOUND",
        "FREE",
        "CLEAN",
        "QUARANTINE",
        "LOST",
        "OPEN",
        "SAVED",
    ]);
    table.row(&[
        Size(total.reserved).to_string(),
        Size(total.page_less).to_string(),
        Size(total.devdax).to_string(),
        Size(total.system_ram).to_string(),
        Size(total.unbound).to_string(),
        Size(total.free).to_string(),
        or_none(total.free_clean.map(Size)),
        Size(total.quarantined).to_string(),
        Size(total.lost).to_string(),
        total.openers.to_string(),
        Size(total.saved).to_string(),
    ]);
    table.text()
}

fn ways(stats: &Stats) -> String {
    let mut table = Table::new(&["STRUCT PAGES FOR WHAT IS PAGE-LESS", "WOULD TAKE"]);
    for way in &stats.metadata {
        let (kind, rest) = match way.way.split_once("-hvo-") {
            Some((kind, huge)) => (kind.to_owned(), format!(" {}, HVO", huge.to_uppercase())),
            None => match way.way.strip_prefix("device-dax-") {
                Some(align) => (
                    "device_dax".to_owned(),
                    format!(" align {}", align.to_uppercase()),
                ),
                None => (way.way.to_owned(), String::new()),
            },
        };
        table.row(&[format!("{kind}{rest}"), Size(way.bytes).to_string()]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{seen, stats};
    use super::super::Seen;
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn for_people() {
        let text = text(&stats());
        let expected = "\
GUEST  DEVICE  SIZE  NODE  MODE       STATE   OPEN  MAPS  FAULTS  LEAVES     SAVED
vm1    dax0.0  2G    0     page-less  mapped  1     2     5       2x1G+3x2M  32M

PID  PROGRAM          GUEST  DEVICE  NODE  MAPPED
42   qemu-system-x86  vm1    dax0.0  0     2G

REGION  NODE  SIZE  FREE   BY-1G  BY-2M  CLEAN  QUARANTINE  LOST  POISONED
0       0     8G    5118M  4G     1022M  1022M  1G          2M    4
1       -     2G    0      -      -      -      -           -     -

NODE  RESERVED  PAGE-LESS  FREE   BY-1G  BY-2M  QUARANTINE  LOST  SAVED
-     2G        0          0      -      -      0           0     0
0     8G        2G         5118M  4G     1022M  1G          2M    32M

RESERVED  PAGE-LESS  DEVDAX  SYSTEM-RAM  UNBOUND  FREE   CLEAN  QUARANTINE  LOST  OPEN  SAVED
10G       2G         2G      0           0        5118M  1022M  1G          2M    1     32M

STRUCT PAGES FOR WHAT IS PAGE-LESS  WOULD TAKE
page-less                           0
hugetlbfs                           32M
hugetlbfs 2M, HVO                   4160K
hugetlbfs 1G, HVO                   72K
device_dax align 4K                 32M
device_dax align 2M                 8256K
device_dax align 1G                 80K

SAVED: one struct page of 64 bytes for each 4K, as hugetlbfs without HVO has them; - is unknown
";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_not_known() {
        let text = text(&Stats::new(&report(), &Seen::default()));
        assert!(text.contains("(the usual size:"), "{text}");
        assert!(!text.contains("PROGRAM"), "{text}");
        assert!(
            text.contains(
                "vm1    dax0.0  2G    0     page-less  -      1     -     -       -       32M"
            ),
            "{text}"
        );
        let mut seen = seen();
        for counters in seen.counters.values_mut() {
            counters.leaves = Some(Leaves {
                giant: 0,
                huge: 0,
                small: 7,
                complete: false,
            });
        }
        assert!(super::text(&Stats::new(&report(), &seen)).contains(" 7x4K+... "));
    }
}
