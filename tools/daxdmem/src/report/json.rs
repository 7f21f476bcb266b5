// SPDX-License-Identifier: GPL-2.0

//! The report as JSON, for programs. Its form is described in Documentation/daxdmem-json.md and versioned: members may
//! be added to a version, nothing is removed from it or changes its meaning.

use serde::{Serialize, Serializer};

use super::{DeviceLine, RegionLine, Report};
use crate::access::Access;
use crate::bus::Range;
use crate::driver::Scrubbing;
use crate::link::Links;
use crate::mode::Mode;
use crate::poison::Pages;
use crate::scrub::Scrub;

/// Version of the form.
const VERSION: u32 = 1;

/// The report as one JSON object.
pub fn text(report: &Report) -> serde_json::Result<String> {
    serde_json::to_string_pretty(&Document::of(report))
}

#[derive(Serialize)]
struct Document {
    daxdmem: Header,
    driver: DriverEntry,
    regions: Vec<RegionEntry>,
    devices: Vec<DeviceEntry>,
    quarantine: Vec<QuarantineEntry>,
    scrubbing: Option<Vec<ScrubbingEntry>>,
    lost: Vec<LostEntry>,
}

/// Begins every document.
#[derive(Debug, Serialize)]
pub struct Header {
    version: u32,
}

impl Header {
    /// Of the documents that are written now.
    pub const VERSION_1: Header = Header { version: VERSION };
}

#[derive(Serialize)]
struct DriverEntry {
    name: &'static str,
    loaded: bool,
}

#[derive(Serialize)]
struct RegionEntry {
    id: u32,
    path: String,
    kind: &'static str,
    node: Option<u32>,
    size: u64,
    available: u64,
    start: Option<Address>,
    free: Option<Vec<Piece>>,
    lost: Option<u64>,
    free_clean: Option<u64>,
    free_scrubbing: Option<u64>,
}

/// A device.
#[derive(Serialize)]
pub struct DeviceEntry {
    device: String,
    path: String,
    guest: Option<String>,
    link: Option<String>,
    region: u32,
    node: Option<u32>,
    size: u64,
    align: u64,
    mode: String,
    driver: Option<String>,
    openers: Option<u64>,
    largest_leaf: Option<u64>,
    poisoned: Option<usize>,
    scrub_policy: Option<String>,
    scrub: Option<ScrubEntry>,
    access: Option<AccessEntry>,
    ranges: Option<Vec<RangeEntry>>,
}

#[derive(Serialize)]
struct ScrubEntry {
    state: String,
    done: u64,
    total: u64,
}

#[derive(Serialize)]
struct AccessEntry {
    user: String,
    uid: u32,
    group: String,
    gid: u32,
    mode: String,
}

/// A range of a device.
#[derive(Serialize)]
pub struct RangeEntry {
    offset: u64,
    #[serde(flatten)]
    piece: Piece,
}

#[derive(Serialize)]
struct QuarantineEntry {
    #[serde(flatten)]
    piece: Piece,
    device: String,
    openers: u64,
}

#[derive(Serialize)]
struct ScrubbingEntry {
    #[serde(flatten)]
    piece: Piece,
    device: String,
    done: u64,
    total: u64,
}

#[derive(Serialize)]
struct LostEntry {
    guest: String,
    device: String,
}

/// Part of physical memory, both ends inclusive.
#[derive(Serialize)]
pub struct Piece {
    start: Address,
    end: Address,
    size: u64,
}

/// An address. As a string: many JSON readers hold numbers in 53 bits, and people read addresses in hexadecimal.
pub struct Address(pub u64);

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl From<Range> for Piece {
    fn from(range: Range) -> Self {
        Piece {
            start: Address(range.start),
            end: Address(range.last()),
            size: range.len,
        }
    }
}

impl Document {
    fn of(report: &Report) -> Self {
        Document {
            daxdmem: Header::VERSION_1,
            driver: DriverEntry {
                name: crate::driver::Driver::NAME,
                loaded: report.driver,
            },
            regions: report.regions.iter().map(RegionEntry::of).collect(),
            devices: report.devices.iter().map(DeviceEntry::of).collect(),
            quarantine: report
                .quarantine
                .iter()
                .map(|held| QuarantineEntry {
                    piece: held.range.into(),
                    device: held.device.clone(),
                    openers: held.openers,
                })
                .collect(),
            scrubbing: report
                .scrubbing
                .as_ref()
                .map(|all| all.iter().map(ScrubbingEntry::of).collect()),
            lost: report
                .lost
                .iter()
                .map(|(name, device)| LostEntry {
                    guest: name.to_string(),
                    device: device.to_string(),
                })
                .collect(),
        }
    }
}

impl RegionEntry {
    fn of(line: &RegionLine) -> Self {
        RegionEntry {
            id: line.region.id,
            path: line.region.path.display().to_string(),
            kind: if line.region.dynamic {
                "dynamic"
            } else {
                "static"
            },
            node: line.region.node,
            size: line.region.size,
            available: line.region.available,
            start: line.start.map(Address),
            free: line
                .free
                .as_ref()
                .map(|free| free.iter().copied().map(Piece::from).collect()),
            lost: line.lost,
            free_clean: line.clean,
            free_scrubbing: line.scrubbing,
        }
    }
}

impl ScrubbingEntry {
    fn of(scrub: &Scrubbing) -> Self {
        ScrubbingEntry {
            piece: scrub.range.into(),
            device: scrub.device.clone(),
            done: scrub.progress.done,
            total: scrub.progress.total,
        }
    }
}

impl ScrubEntry {
    fn of(scrub: Scrub) -> Self {
        ScrubEntry {
            state: scrub.stage.to_string(),
            done: scrub.progress.done,
            total: scrub.progress.total,
        }
    }
}

impl AccessEntry {
    fn of(access: Access) -> Self {
        AccessEntry {
            user: access.user(),
            uid: access.uid,
            group: access.group(),
            gid: access.gid,
            mode: access.mode.to_string(),
        }
    }
}

/// The ranges of a device, in order of offset.
pub fn ranges(all: &[Range]) -> Vec<RangeEntry> {
    let entry = |offset: &mut u64, range: &Range| {
        let entry = RangeEntry {
            offset: *offset,
            piece: (*range).into(),
        };
        *offset = offset.saturating_add(range.len);
        Some(entry)
    };
    all.iter().scan(0, entry).collect()
}

impl DeviceEntry {
    /// Of the device.
    pub fn of(line: &DeviceLine) -> Self {
        let device = &line.device;
        DeviceEntry {
            device: device.name.to_string(),
            path: line.path().display().to_string(),
            guest: line.guest.as_ref().map(|name| name.guest.to_string()),
            link: line.guest.as_ref().map(|name| {
                let path = Links::default().path(name);
                path.display().to_string()
            }),
            region: device.region,
            node: device.node,
            size: device.size,
            align: device.align,
            mode: Mode::of(device).to_string(),
            driver: device.driver.clone(),
            openers: device.openers,
            largest_leaf: line.leaf,
            scrub_policy: line.policy.map(|policy| policy.to_string()),
            poisoned: line.poison.as_ref().map(Pages::len),
            scrub: device.scrub.map(ScrubEntry::of),
            access: device.access.map(AccessEntry::of),
            ranges: device.ranges.as_deref().map(ranges),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::tests::report;
    use super::*;
    use serde_json::{json, Value};

    #[test]
    fn the_documented_form() {
        let value: Value = serde_json::from_str(&text(&report()).unwrap()).unwrap();
        let expected = json!({
            "daxdmem": { "version": 1 },
            "driver": { "name": "dax_dmem", "loaded": true },
            "regions": [
                {
                    "id": 0, "path": "/sys/devices/platform/hmem.0", "kind": "dynamic", "node": 0,
                    "size": 8589934592u64, "available": 6442450944u64, "start": "0x100000000",
                    "free": [
                        { "start": "0x180200000", "end": "0x1bfffffff", "size": 1071644672 },
                        { "start": "0x200000000", "end": "0x2ffffffff", "size": 4294967296u64 },
                    ],
                    "lost": 2097152, "free_clean": 1071644672, "free_scrubbing": 1073741824,
                },
                {
                    "id": 1, "path": "/sys/devices/ndbus0", "kind": "static", "node": null,
                    "size": 2147483648u64, "available": 0, "start": null, "free": null, "lost": null,
                    "free_clean": null, "free_scrubbing": null,
                },
            ],
            "devices": [
                {
                    "device": "dax0.0", "path": "/dev/dax0.0", "guest": "vm1", "link": "/dev/daxdmem/vm1", "region": 0, "node": 0,
                    "size": 2147483648u64, "align": 1073741824, "mode": "page-less", "driver": "dax_dmem",
                    "openers": 1, "largest_leaf": 1073741824, "poisoned": 1, "scrub_policy": "hand-out",
                    "scrub": { "state": "scrubbing", "done": 536870912, "total": 2147483648u64 },
                    "access": { "user": "root", "uid": 0, "group": "54321", "gid": 54321, "mode": "0660" },
                    "ranges": [{ "offset": 0, "start": "0x100000000", "end": "0x17fffffff", "size": 2147483648u64 }],
                },
                {
                    "device": "dax0.1", "path": "/dev/dax0.1", "guest": null, "link": null, "region": 0, "node": 0,
                    "size": 0, "align": 2097152, "mode": "unbound", "driver": null,
                    "openers": null, "largest_leaf": null, "poisoned": 0, "scrub_policy": null, "scrub": null,
                    "access": { "user": "root", "uid": 0, "group": "root", "gid": 0, "mode": "0600" }, "ranges": [],
                },
                {
                    "device": "dax1.0", "path": "/dev/dax1.0", "guest": null, "link": null, "region": 1, "node": null,
                    "size": 2147483648u64, "align": 1073741824, "mode": "devdax", "driver": "device_dax",
                    "openers": null, "largest_leaf": null, "poisoned": null, "scrub_policy": null, "scrub": null,
                    "access": null, "ranges": null,
                },
            ],
            "quarantine": [
                { "start": "0x1c0000000", "end": "0x1ffffffff", "size": 1073741824, "device": "dax0.2", "openers": 3 },
            ],
            "scrubbing": [
                {
                    "start": "0x200000000", "end": "0x23fffffff", "size": 1073741824, "device": "dax0.3",
                    "done": 4194304, "total": 1073741824,
                },
            ],
            "lost": [{ "guest": "vm2", "device": "dax0.0" }],
        });
        assert_eq!(value, expected);
    }

    /// Fails unless the manual names every member of the document.
    pub fn check_documented(document: &Value) {
        let manual = include_str!("../../../../Documentation/daxdmem-json.md");
        fn check(manual: &str, value: &Value) {
            match value {
                Value::Object(members) => members.iter().for_each(|(name, value)| {
                    assert!(
                        manual.contains(&format!("`{name}`")),
                        "{name} is not in Documentation/daxdmem-json.md"
                    );
                    check(manual, value);
                }),
                Value::Array(values) => values.iter().for_each(|value| check(manual, value)),
                _ => {}
            }
        }
        check(manual, document);
        assert!(
            manual.contains(&format!("version {VERSION}")),
            "the version is not in the manual"
        );
    }

    #[test]
    fn every_member_is_documented() {
        check_documented(&serde_json::from_str(&text(&report()).unwrap()).unwrap());
    }
}
