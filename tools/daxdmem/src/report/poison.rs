// SPDX-License-Identifier: GPL-2.0

//! What `poison list` tells: the pages that failed, where they are, and what that costs.

use serde::Serialize;

use super::json::{Header, Piece};
use super::table::{or_none, Table};
use super::{DeviceLine, Report};
use crate::bus::Range;
use crate::driver::Driver;
use crate::name::DeviceName;
use crate::poison::record::{Record, Seen};
use crate::poison::{Pages, PAGE};
use crate::size::Size;

/// Everything to tell.
#[derive(Debug)]
pub struct Listing {
    driver: bool,
    lines: Vec<Line>,
    regions: Vec<Sum>,
}

/// Whose pages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    /// A device's.
    Device,
    /// Nobody's as long as somebody still uses it.
    Quarantine,
    /// Nobody's.
    Free,
    /// Not in any region.
    Outside,
}

/// Pages that follow on each other, in the same place and known alike.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    pages: Range,
    place: Place,
    region: Option<u32>,
    /// With the guest, and where in the device the first page is.
    device: Option<(DeviceName, Option<String>, u64)>,
    recorded: Option<Seen>,
    /// `None` where the driver is not loaded.
    in_driver: Option<bool>,
    this_boot: bool,
}

/// What poison costs a region.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Sum {
    id: u32,
    size: u64,
    pages: usize,
    pages_in_devices: usize,
    lost: Option<u64>,
}

impl Line {
    /// Whether the next page, as a line of its own, only makes this one longer.
    fn goes_on_as(&self, next: &Line) -> bool {
        let here = |line: &Line| Line {
            pages: self.pages,
            device: line
                .device
                .clone()
                .map(|(device, guest, _)| (device, guest, 0)),
            ..line.clone()
        };
        let offset = |line: &Line| line.device.as_ref().map(|(.., offset)| *offset);
        self.pages.start + self.pages.len == next.pages.start
            && here(self) == here(next)
            && offset(self).map(|offset| offset + self.pages.len) == offset(next)
    }
}

impl Listing {
    /// Of the pages that the report has; `recorded` and `driver` say who knows them, `boot` is the time since when.
    pub fn new(report: &Report, recorded: &Record, driver: Option<&Pages>, boot: &str) -> Listing {
        let pages = recorded.pages().with(driver.unwrap_or(&Pages::default()));
        let mut lines: Vec<Line> = Vec::new();
        for page in pages.iter() {
            let seen = recorded.seen(page);
            let line = Line {
                recorded: seen.cloned(),
                in_driver: driver.map(|known| known.contains(page)),
                this_boot: seen.is_none_or(|seen| seen.boot == boot),
                ..placed(report, page)
            };
            match lines.last_mut() {
                Some(last) if last.goes_on_as(&line) => last.pages.len += PAGE,
                _ => lines.push(line),
            }
        }
        let regions = report.regions.iter().map(|line| {
            let id = line.region.id;
            let count = |in_devices: bool| {
                let here = lines.iter().filter(|line| line.region == Some(id));
                let here = here.filter(|line| !in_devices || line.device.is_some());
                here.map(|line| line.pages.len / PAGE).sum::<u64>()
            };
            let number = |count| usize::try_from(count).unwrap_or(usize::MAX);
            Sum {
                id,
                size: line.region.size,
                pages: number(count(false)),
                pages_in_devices: number(count(true)),
                lost: line.lost,
            }
        });
        Listing {
            regions: regions.collect(),
            driver: report.driver,
            lines,
        }
    }

    /// Only what concerns these devices.
    pub fn of_devices(mut self, devices: &[DeviceName]) -> Listing {
        let of_these = |line: &Line| {
            line.device
                .as_ref()
                .is_some_and(|(name, ..)| devices.contains(name))
        };
        self.lines.retain(of_these);
        self.regions.clear();
        self
    }

    /// Only what concerns this region.
    pub fn of_region(mut self, region: u32) -> Listing {
        self.lines.retain(|line| line.region == Some(region));
        self.regions.retain(|sum| sum.id == region);
        self
    }

    /// As tables.
    pub fn text(&self) -> String {
        if self.lines.is_empty() {
            return "no page is known to have failed\n".to_owned();
        }
        let mut table = Table::new(&[
            "PAGES", "SIZE", "REGION", "GUEST", "DEVICE", "OFFSET", "FAILED", "KNOWN TO",
        ]);
        for line in &self.lines {
            let device = line.device.as_ref();
            table.row(&[
                line.pages.to_string(),
                Size(line.pages.len).to_string(),
                or_none(line.region),
                or_none(device.and_then(|(_, guest, _)| guest.as_ref())),
                match (line.place, device) {
                    (_, Some((name, ..))) => name.to_string(),
                    (Place::Quarantine, None) => "quarantine".to_owned(),
                    (Place::Free | Place::Device, None) => "free".to_owned(),
                    (Place::Outside, None) => "no region".to_owned(),
                },
                or_none(device.map(|(.., offset)| format!("{offset:#x}"))),
                if line.this_boot {
                    "this boot"
                } else {
                    "earlier"
                }
                .to_owned(),
                match (line.in_driver, line.recorded.is_some()) {
                    (Some(true), true) => "driver, record",
                    (Some(true), false) => "driver",
                    (Some(false) | None, _) => "record",
                }
                .to_owned(),
            ]);
        }
        let mut text = table.text();
        if !self.regions.is_empty() {
            let mut table = Table::new(&["REGION", "SIZE", "PAGES", "IN DEVICES", "LOST"]);
            for sum in &self.regions {
                table.row(&[
                    sum.id.to_string(),
                    Size(sum.size).to_string(),
                    sum.pages.to_string(),
                    sum.pages_in_devices.to_string(),
                    or_none(sum.lost.map(Size)),
                ]);
            }
            text.push('\n');
            text.push_str(&table.text());
        }
        text
    }

    /// As one JSON object.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&Document {
            daxdmem: Header::VERSION_1,
            driver: DriverEntry {
                name: Driver::NAME,
                loaded: self.driver,
            },
            pages: self.lines.iter().map(Entry::of).collect(),
            regions: &self.regions,
        })
    }
}

/// A page in its place; nothing is said of who knows it.
fn placed(report: &Report, page: u64) -> Line {
    let pages = Range {
        start: page,
        len: PAGE,
    };
    let within = |line: &DeviceLine| {
        let mut offset = 0;
        for range in line.device.ranges.iter().flatten() {
            if range.overlaps(pages) {
                return Some(offset + (page - range.start));
            }
            offset += range.len;
        }
        None
    };
    let mut devices = report.devices.iter();
    let found = devices.find_map(|line| Some((line, within(line)?)));
    let region = || {
        let holds = |line: &&super::RegionLine| {
            let whole = line.start.map(|start| Range {
                start,
                len: line.region.size,
            });
            whole.is_some_and(|whole| whole.overlaps(pages))
        };
        report.regions.iter().find(holds).map(|line| line.region.id)
    };
    let held = report
        .quarantine
        .iter()
        .any(|held| held.range.overlaps(pages));
    let (place, region, device) = match found {
        Some((line, offset)) => {
            let guest = line.guest.as_ref().map(ToString::to_string);
            let device = (line.device.name, guest, offset);
            (Place::Device, Some(line.device.region), Some(device))
        }
        None => match (held, region()) {
            (true, region) => (Place::Quarantine, region, None),
            (false, Some(region)) => (Place::Free, Some(region), None),
            (false, None) => (Place::Outside, None, None),
        },
    };
    Line {
        pages,
        place,
        region,
        device,
        recorded: None,
        in_driver: None,
        this_boot: false,
    }
}

#[derive(Serialize)]
struct Document<'a> {
    daxdmem: Header,
    driver: DriverEntry,
    pages: Vec<Entry>,
    regions: &'a [Sum],
}

#[derive(Serialize)]
struct DriverEntry {
    name: &'static str,
    loaded: bool,
}

#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    piece: Piece,
    place: Place,
    region: Option<u32>,
    device: Option<String>,
    guest: Option<String>,
    offset: Option<u64>,
    this_boot: bool,
    reported_at: Option<u64>,
    in_driver: Option<bool>,
}

impl Entry {
    fn of(line: &Line) -> Entry {
        let device = line.device.clone();
        let (device, guest, offset) = match device {
            Some((name, guest, offset)) => (Some(name.to_string()), guest, Some(offset)),
            None => (None, None, None),
        };
        Entry {
            piece: line.pages.into(),
            place: line.place,
            region: line.region,
            device,
            guest,
            offset,
            this_boot: line.this_boot,
            reported_at: line.recorded.as_ref().map(|seen| seen.at),
            in_driver: line.in_driver,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::tests::check_documented;
    use super::super::tests::report;
    use super::*;
    use serde_json::{json, Value};

    const GIB: u64 = 1 << 30;

    /// Beside those of the report: one next to the guest's, reported by another boot, and one in no region.
    fn listing(driver: bool) -> Listing {
        let page = |start| Range { start, len: PAGE };
        let seen = |at, boot: &str| Seen {
            at,
            boot: boot.to_owned(),
        };
        let mut recorded = Record::default();
        recorded.add(
            &Pages::of([page(5 * GIB + PAGE), page(64 * GIB)]),
            &seen(1, "old"),
        );
        recorded.add(
            &Pages::of([page(5 * GIB), page(6 * GIB), page(6 * GIB + PAGE)]),
            &seen(2, "new"),
        );
        let mut known = recorded.pages().without(&Pages::of([page(64 * GIB)]));
        known = known.with(&Pages::of([page(7 * GIB)]));
        Listing::new(&report(), &recorded, driver.then_some(&known), "new")
    }

    #[test]
    fn for_people() {
        let expected = "\
PAGES                      SIZE  REGION  GUEST  DEVICE      OFFSET      FAILED     KNOWN TO
0x140000000-0x140000fff    4K    0       vm1    dax0.0      0x40000000  this boot  driver, record
0x140001000-0x140001fff    4K    0       vm1    dax0.0      0x40001000  earlier    driver, record
0x180000000-0x180001fff    8K    0       -      free        -           this boot  driver, record
0x1c0000000-0x1c0000fff    4K    0       -      quarantine  -           this boot  driver
0x1000000000-0x1000000fff  4K    -       -      no region   -           earlier    record

REGION  SIZE  PAGES  IN DEVICES  LOST
0       8G    5      2           2M
1       2G    0      0           -
";
        assert_eq!(listing(true).text(), expected);
        let vm1 = listing(true)
            .of_devices(&["dax0.0".parse().unwrap()])
            .text();
        assert_eq!(vm1.lines().count(), 3, "{vm1}");
        let other = listing(true).of_region(1).text();
        assert_eq!(other, "no page is known to have failed\n");
        assert_eq!(listing(true).of_region(0).text().lines().count(), 8);
    }

    #[test]
    fn as_json() {
        let value: Value = serde_json::from_str(&listing(true).json().unwrap()).unwrap();
        assert_eq!(
            value["pages"][1],
            json!({
                "start": "0x140001000", "end": "0x140001fff", "size": 4096, "place": "device", "region": 0,
                "device": "dax0.0", "guest": "vm1", "offset": 0x4000_1000, "this_boot": false, "reported_at": 1,
                "in_driver": true,
            })
        );
        assert_eq!(value["pages"][3]["reported_at"], Value::Null);
        assert_eq!(value["pages"][4]["place"], "outside");
        assert_eq!(value["regions"][0]["pages_in_devices"], 2);
        check_documented(&value);
        let value: Value = serde_json::from_str(&listing(false).json().unwrap()).unwrap();
        assert_eq!(value["pages"][0]["in_driver"], Value::Null);
    }
}
