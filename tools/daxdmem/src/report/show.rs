// SPDX-License-Identifier: GPL-2.0

//! What `show` tells: everything about one device, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;

use super::json::{DeviceEntry, Header, Piece};
use super::table::{or_none, state, NONE};
use super::DeviceLine;
use crate::bus::{ranges_text, Leaves, Region};
use crate::driver::Quarantine;
use crate::mode::Mode;
use crate::poison::Pages;
use crate::size::Size;

/// A device, and what else there is to tell.
#[derive(Debug)]
pub struct Portrait {
    /// As `list` has it.
    pub line: DeviceLine,
    /// Its region.
    pub region: Option<Region>,
    /// The guest's link, if it leads to the device.
    pub link: Option<PathBuf>,
    /// Programs that use it, by process id, as far as the caller may see.
    pub users: BTreeMap<u32, String>,
    /// What of it was unbound from another device and is still in use there.
    pub quarantine: Vec<Quarantine>,
}

/// All of them, for people.
pub fn text(portraits: &[Portrait]) -> String {
    let texts: Vec<String> = portraits.iter().map(one).collect();
    texts.join("\n")
}

fn one(portrait: &Portrait) -> String {
    let Portrait { line, region, .. } = portrait;
    let device = &line.device;
    let mut text = match &line.guest {
        Some(guest) => format!("{guest} ({})\n", device.name),
        None => format!("{}\n", device.name),
    };
    let mut entry = |head: &str, value: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {head:<11}{value}");
    };
    entry("path", &line.path().display().to_string());
    let link = portrait.link.as_ref().map(|link| link.display());
    entry("link", &or_none(link));
    entry("size", &Size(device.size).to_string());
    entry("align", &Size(device.align).to_string());
    let region = region.as_ref();
    let path = region.map_or(String::new(), |region| {
        format!(" ({})", region.path.display())
    });
    entry("region", &format!("{}{path}", device.region));
    entry("node", &or_none(device.node));
    let driver = device.driver.as_deref().unwrap_or("no driver");
    entry("mode", &format!("{} ({driver})", Mode::of(device)));
    entry("owner", &or_none(device.access));
    entry("scrub", &or_none(line.policy));
    let scrub = device.scrub.map(|scrub| {
        let (done, total) = (Size(scrub.progress.done), Size(scrub.progress.total));
        format!("{}, {done} of {total}", state(scrub))
    });
    entry("state", scrub.as_deref().unwrap_or(NONE));
    entry("open", &or_none(device.openers));
    let failed = |poison: &Pages| match poison.is_empty() {
        true => NONE.to_owned(),
        false => format!("{poison} of 4K: {}", ranges_text(&poison.ranges())),
    };
    entry(
        "poison",
        &line.poison.as_ref().map_or(NONE.to_owned(), failed),
    );
    let users = portrait.users.iter();
    let users: Vec<String> = users
        .map(|(pid, name)| format!("pid {pid} ({name})"))
        .collect();
    match users.is_empty() {
        true => entry("users", NONE),
        false => text.push_str("  users\n"),
    }
    for user in users {
        let _ = writeln!(text, "    {user}");
    }
    let ranges = device.ranges.as_deref();
    let leaves = ranges.map(Leaves::of_all);
    let _ = writeln!(text, "  {:<11}{}", "leaves", or_none(leaves));
    let _ = writeln!(text, "  ranges");
    let mut offset = 0u64;
    for (range, leaves) in ranges
        .into_iter()
        .flat_map(|all| all.iter().zip(Leaves::of_each(all)))
    {
        let size = Size(range.len);
        let _ = writeln!(
            text,
            "    {range}  {size} at offset {offset:#x}, leaves: {leaves}"
        );
        offset = offset.saturating_add(range.len);
    }
    if ranges.is_none() {
        text.push_str("    shown to root only\n");
    }
    for held in &portrait.quarantine {
        let _ = writeln!(
            text,
            "  quarantine {}, unbound from {}: {}",
            held.range,
            held.device,
            held.users()
        );
    }
    text
}

#[derive(Serialize)]
struct Document {
    daxdmem: Header,
    devices: Vec<PortraitEntry>,
}

#[derive(Serialize)]
struct PortraitEntry {
    #[serde(flatten)]
    device: DeviceEntry,
    link: Option<String>,
    region_path: Option<String>,
    leaves: Option<LeavesEntry>,
    range_leaves: Option<Vec<LeavesEntry>>,
    users: Vec<UserEntry>,
    quarantine: Vec<HeldEntry>,
}

#[derive(Serialize)]
struct LeavesEntry {
    #[serde(rename = "1g")]
    gib: u64,
    #[serde(rename = "2m")]
    two_mib: u64,
    #[serde(rename = "4k")]
    four_kib: u64,
}

#[derive(Serialize)]
struct UserEntry {
    pid: u32,
    program: String,
}

#[derive(Serialize)]
struct HeldEntry {
    #[serde(flatten)]
    piece: Piece,
    device: String,
    openers: u64,
}

impl From<Leaves> for LeavesEntry {
    fn from(leaves: Leaves) -> Self {
        LeavesEntry {
            gib: leaves.gib,
            two_mib: leaves.two_mib,
            four_kib: leaves.four_kib,
        }
    }
}

/// All of them, as one JSON object.
pub fn json(portraits: &[Portrait]) -> serde_json::Result<String> {
    let entry = |portrait: &Portrait| {
        let ranges = portrait.line.device.ranges.as_deref();
        let each = |ranges| Leaves::of_each(ranges).into_iter().map(LeavesEntry::from);
        let user = |(pid, program): (&u32, &String)| UserEntry {
            pid: *pid,
            program: program.clone(),
        };
        let held = |held: &Quarantine| HeldEntry {
            piece: held.range.into(),
            device: held.device.clone(),
            openers: held.openers,
        };
        let region = portrait.region.as_ref();
        PortraitEntry {
            device: DeviceEntry::of(&portrait.line),
            link: portrait
                .link
                .as_ref()
                .map(|link| link.display().to_string()),
            region_path: region.map(|region| region.path.display().to_string()),
            leaves: ranges.map(|ranges| Leaves::of_all(ranges).into()),
            range_leaves: ranges.map(|ranges| each(ranges).collect()),
            users: portrait.users.iter().map(user).collect(),
            quarantine: portrait.quarantine.iter().map(held).collect(),
        }
    };
    serde_json::to_string_pretty(&Document {
        daxdmem: Header::VERSION_1,
        devices: portraits.iter().map(entry).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::json::tests::check_documented;
    use super::super::tests::report;
    use super::*;
    use crate::bus::Range;
    use serde_json::Value;

    fn portraits() -> Vec<Portrait> {
        let report = report();
        let region = report.regions[0].region.clone();
        let portrait = |line| Portrait {
            line,
            region: Some(region.clone()),
            link: None,
            users: BTreeMap::new(),
            quarantine: Vec::new(),
        };
        let mut portraits: Vec<Portrait> = report.devices.into_iter().map(portrait).collect();
        portraits[0].link = Some(PathBuf::from("/dev/daxdmem/vm1"));
        portraits[0].users.insert(7, "qemu".to_owned());
        portraits[0].quarantine.push(Quarantine {
            range: Range {
                start: 4 << 30,
                len: 1 << 30,
            },
            device: "dax0.2".to_owned(),
            openers: 3,
        });
        portraits
    }

    #[test]
    fn for_people() {
        let portraits = portraits();
        let expected = "\
vm1 (dax0.0)
  path       /dev/dax0.0
  link       /dev/daxdmem/vm1
  size       2G
  align      1G
  region     0 (/sys/devices/platform/hmem.0)
  node       0
  mode       page-less (dax_dmem)
  owner      root:54321 0660
  scrub      hand-out
  state      scrubbing 25%, 512M of 2G
  open       1
  poison     1 page of 4K: 0x140000000-0x140000fff
  users
    pid 7 (qemu)
  leaves     2 of 1G
  ranges
    0x100000000-0x17fffffff  2G at offset 0x0, leaves: 2 of 1G
  quarantine 0x100000000-0x13fffffff, unbound from dax0.2: 3 open files
";
        assert_eq!(text(&portraits[..1]), expected);
        let other = text(&portraits[2..]);
        assert!(other.starts_with("dax1.0\n  path"), "{other}");
        assert!(other.contains("  users      -\n"), "{other}");
        assert!(
            other.contains("  leaves     -\n  ranges\n    shown to root only\n"),
            "{other}"
        );
        assert_eq!(text(&portraits).matches("\n\n").count(), 2);
    }

    #[test]
    fn as_json() {
        let text = json(&portraits()).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let device = &value["devices"][0];
        assert_eq!(device["guest"], "vm1");
        assert_eq!(device["link"], "/dev/daxdmem/vm1");
        assert_eq!(
            device["leaves"],
            serde_json::json!({ "1g": 2, "2m": 0, "4k": 0 })
        );
        assert_eq!(device["range_leaves"][0]["1g"], 2);
        assert_eq!(device["users"][0]["program"], "qemu");
        assert_eq!(device["quarantine"][0]["start"], "0x100000000");
        assert_eq!(value["devices"][2]["leaves"], Value::Null);
        check_documented(&value);
    }
}
