// SPDX-License-Identifier: GPL-2.0

//! What `stats` tells: how much memory guests have, and what the kernel would need for the same bytes in other ways.
//!
//! The formulas are in Documentation/daxdmem-json.md. They are the kernel's: mm/hugetlb_vmemmap.c keeps one page of
//! struct pages for each huge page, mm/sparse-vmemmap.c two for each compound page of device_dax.

use std::fmt::Write;

use dmem_plan::Leaf;
use serde::Serialize;

use super::json::Header;
use super::table::{or_none, Table, NONE};
use super::{DeviceLine, Report};
use crate::bus::total;
use crate::mode::Mode;
use crate::size::Size;

const PAGE: u64 = Leaf::Pte.size();
const MIB2: u64 = Leaf::Pmd.size();
const GIB: u64 = Leaf::Pud.size();

/// What it is where the kernel does not say: on all kernels of 64 bits as distributions build them.
const USUAL_PAGE: u64 = 64;

/// Everything to tell.
#[derive(Debug, Serialize)]
pub struct Stats {
    daxdmem: Header,
    struct_page: u64,
    struct_page_known: bool,
    guests: Vec<Guest>,
    total: Total,
    metadata: Vec<Metadata>,
}

/// A guest's device.
#[derive(Debug, Serialize)]
struct Guest {
    guest: String,
    device: String,
    size: u64,
    node: Option<u32>,
    mode: String,
    openers: Option<u64>,
    saved: u64,
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

/// A way to give guests the bytes that are page-less now, and what it takes of the kernel's own memory.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Metadata {
    way: &'static str,
    bytes: u64,
}

/// Struct pages for so many bytes, one for each 4 KiB.
fn struct_pages(bytes: u64, struct_page: u64) -> u64 {
    (bytes / PAGE).saturating_mul(struct_page)
}

/// The same where of each huge page's struct pages only so many pages are kept, and the page tables that this takes:
/// one for each 2 MiB of struct pages.
fn optimised(bytes: u64, struct_page: u64, huge: u64, kept: u64) -> u64 {
    let all = struct_pages(bytes, struct_page);
    let kept = bytes.div_ceil(huge).saturating_mul(kept * PAGE);
    kept.saturating_add(all.div_ceil(MIB2).saturating_mul(PAGE))
        .min(all)
}

fn metadata(bytes: u64, struct_page: u64) -> Vec<Metadata> {
    let way = |way, bytes| Metadata { way, bytes };
    let optimised = |huge, kept| optimised(bytes, struct_page, huge, kept);
    vec![
        way("page-less", 0),
        way("hugetlbfs", struct_pages(bytes, struct_page)),
        way("hugetlbfs-hvo-2m", optimised(MIB2, 1)),
        way("hugetlbfs-hvo-1g", optimised(GIB, 1)),
        way("device-dax-4k", struct_pages(bytes, struct_page)),
        way("device-dax-2m", optimised(MIB2, 2)),
        way("device-dax-1g", optimised(GIB, 2)),
    ]
}

impl Stats {
    /// Of the report; `struct_page` is the size of a struct page, if it is known.
    pub fn new(report: &Report, struct_page: Option<u64>) -> Stats {
        let page = struct_page.unwrap_or(USUAL_PAGE);
        let saved = |line: &DeviceLine| match Mode::of(&line.device) {
            Mode::PageLess => struct_pages(line.device.size, page),
            _ => 0,
        };
        let guest = |line: &DeviceLine| {
            let device = &line.device;
            Some(Guest {
                guest: line.guest.as_ref()?.to_string(),
                device: device.name.to_string(),
                size: device.size,
                node: device.node,
                mode: Mode::of(device).to_string(),
                openers: device.openers,
                saved: saved(line),
            })
        };
        let mut total = Total {
            quarantined: total(report.quarantine.iter().map(|held| &held.range)),
            ..Total::default()
        };
        for region in &report.regions {
            total.reserved += region.region.size;
            let free = region
                .free
                .as_deref()
                .map(|free| crate::bus::total(free.iter()));
            total.free += free.unwrap_or(region.region.available);
            total.lost += region.lost.unwrap_or(0);
            if let Some(clean) = region.clean {
                *total.free_clean.get_or_insert(0) += clean;
            }
        }
        for line in &report.devices {
            let size = line.device.size;
            match Mode::of(&line.device) {
                Mode::PageLess => total.page_less += size,
                Mode::Devdax => total.devdax += size,
                Mode::SystemRam => total.system_ram += size,
                Mode::Unbound | Mode::Other(_) => total.unbound += size,
            }
            total.openers += line.device.openers.unwrap_or(0);
            total.saved += saved(line);
        }
        Stats {
            daxdmem: Header::VERSION_1,
            struct_page: page,
            struct_page_known: struct_page.is_some(),
            guests: report.devices.iter().filter_map(guest).collect(),
            metadata: metadata(total.page_less, page),
            total,
        }
    }
}

/// As one JSON object.
pub fn json(stats: &Stats) -> serde_json::Result<String> {
    serde_json::to_string_pretty(stats)
}

/// As tables.
pub fn text(stats: &Stats) -> String {
    let mut guests = Table::new(&["GUEST", "DEVICE", "SIZE", "NODE", "MODE", "OPEN", "SAVED"]);
    for guest in &stats.guests {
        guests.row(&[
            guest.guest.clone(),
            guest.device.clone(),
            Size(guest.size).to_string(),
            or_none(guest.node),
            guest.mode.clone(),
            or_none(guest.openers),
            Size(guest.saved).to_string(),
        ]);
    }
    let total = &stats.total;
    let mut bytes = Table::new(&[
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
    bytes.row(&[
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
    let mut ways = Table::new(&["STRUCT PAGES FOR WHAT IS PAGE-LESS", "WOULD TAKE"]);
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
        ways.row(&[format!("{kind}{rest}"), Size(way.bytes).to_string()]);
    }
    let mut text = String::new();
    let known = match stats.struct_page_known {
        true => "",
        false => " (the usual size: this kernel does not say)",
    };
    // Writing to a String does not fail.
    let _ = write!(
        text,
        "{}\n{}\n{}\nSAVED: one struct page of {} bytes{known} for each 4K, as hugetlbfs without HVO has them; {NONE} is unknown\n",
        guests.text(),
        bytes.text(),
        ways.text(),
        stats.struct_page,
    );
    text
}

#[cfg(test)]
mod tests {
    use super::super::json::tests::check_documented;
    use super::super::tests::report;
    use super::*;

    #[test]
    fn what_the_kernel_needs() {
        let tib = 1 << 40;
        let of = |way: &str, bytes| {
            let all = metadata(bytes, 64).into_iter();
            all.filter(|entry| entry.way == way)
                .map(|entry| entry.bytes)
                .sum::<u64>()
        };
        let tables = 32 << 20;
        assert_eq!(of("hugetlbfs", tib), 16 << 30);
        assert_eq!(of("hugetlbfs-hvo-2m", tib), (2 << 30) + tables);
        assert_eq!(of("hugetlbfs-hvo-1g", tib), (4 << 20) + tables);
        assert_eq!(of("device-dax-2m", tib), (4 << 30) + tables);
        assert_eq!(of("device-dax-1g", tib), (8 << 20) + tables);
        assert_eq!(of("page-less", tib), 0);
        // 64 GiB with align 2M were measured to take 265,852 KiB.
        let difference = 265_852u64.abs_diff(of("device-dax-2m", 64 << 30) >> 10);
        assert!(difference * 100 < 265_852, "{difference} KiB");
    }

    #[test]
    fn for_people() {
        let text = text(&Stats::new(&report(), Some(64)));
        let expected = "\
GUEST  DEVICE  SIZE  NODE  MODE       OPEN  SAVED
vm1    dax0.0  2G    0     page-less  1     32M

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
        assert!(super::text(&Stats::new(&report(), None)).contains("(the usual size:"));
    }

    #[test]
    fn as_json() {
        let text = json(&Stats::new(&report(), Some(64))).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["guests"][0]["saved"], 32 << 20);
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
        check_documented(&value);
    }
}
