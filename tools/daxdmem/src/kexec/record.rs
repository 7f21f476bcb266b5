// SPDX-License-Identifier: GPL-2.0

//! What is to be kept over a kexec, written down on a disk. It is used once, in the boot for which it was written.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::command_line;
use super::error::Refusal;
use super::failed;
use super::sample::{hex, Sample};
use crate::error::Result;
use crate::file;
use crate::layout::placement::Place;
use crate::making::Plan;
use crate::name::{GuestName, PartName};
use crate::sysfs;

/// Version of the file's form.
const VERSION: u32 = 1;

/// Which record was used in this boot.
const USED: &str = "kexec-used";

/// What is to be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What the next kernel finds on its command line.
    pub token: String,
    /// The boot in which it was written.
    pub boot: String,
    /// Checksum of the layout.
    pub layout: String,
    /// The devices to keep.
    pub devices: BTreeMap<PartName, Kept>,
}

/// A device to keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Where it is.
    pub place: Place,
    /// What is in its memory.
    pub memory: Sample,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    version: u32,
    /// Of the record.
    checksum: String,
    record: Record,
}

impl Record {
    /// Where it is.
    pub const FILE: &'static str = "/var/lib/daxdmem/kexec.json";

    /// Reads it.
    pub fn read(path: &Path) -> Result<Record, Refusal> {
        let unreadable = |why: String| Refusal::Form {
            path: path.to_owned(),
            why,
        };
        let text = fs::read(path).map_err(|error| unreadable(error.to_string()))?;
        let form: Form =
            serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        if form.version != VERSION {
            return Err(unreadable(format!("it has version {}", form.version)));
        }
        match form.record.checksum() == form.checksum {
            true => Ok(form.record),
            false => Err(Refusal::Checksum {
                path: path.to_owned(),
            }),
        }
    }

    /// Writes it.
    pub fn write(&self, path: &Path) -> Result<()> {
        let form = Form {
            version: VERSION,
            checksum: self.checksum(),
            record: self.clone(),
        };
        let steps = || {
            let mut text = serde_json::to_vec_pretty(&form)?;
            text.push(b'\n');
            // It holds physical addresses, which are root's alone.
            file::replace(path, &text, 0o600)
        };
        steps().map_err(failed("write", path))
    }

    /// Removes it from the disk; whether it was there.
    pub fn forget(path: &Path) -> Result<bool> {
        match fs::remove_file(path) {
            Ok(()) => file::sync_parent(path)
                .map(|()| true)
                .map_err(failed("remove", path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("remove", path)(error)),
        }
    }

    fn checksum(&self) -> String {
        // A value of these types always has a text.
        checksum(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// Whether it is for this boot and this layout.
    pub fn holds(&self, now: &Now) -> Result<(), Refusal> {
        if !now.tokens.contains(&self.token) {
            return Err(Refusal::OtherKernel);
        }
        if now.layout != self.layout {
            return Err(Refusal::Layout);
        }
        Ok(())
    }

    /// What is in the memory of a guest's devices, if all of them are where they were.
    pub fn of_guest(&self, guest: &GuestName, plans: &[Plan]) -> Result<Vec<Sample>, Refusal> {
        let parts = plans
            .iter()
            .map(|plan| (&plan.part.name, plan.place()))
            .collect::<Vec<_>>();
        self.at(guest, &parts)
    }

    fn at(
        &self,
        guest: &GuestName,
        parts: &[(&PartName, Option<Place>)],
    ) -> Result<Vec<Sample>, Refusal> {
        let kept = self.devices.keys().filter(|part| part.guest == *guest);
        if kept.count() != parts.len() {
            return Err(Refusal::Devices);
        }
        let sample = |(name, place): &(&PartName, Option<Place>)| {
            let kept = self.devices.get(*name).filter(|_| name.guest == *guest);
            let kept = kept.ok_or(Refusal::Devices)?;
            match place {
                Some(place) if *place == kept.place => Ok(kept.memory.clone()),
                _ => Err(Refusal::Place),
            }
        };
        parts.iter().map(sample).collect()
    }
}

/// The boot, and what is found in it.
#[derive(Debug)]
pub struct Now {
    /// The kernel's name for this boot.
    pub boot: String,
    /// What was given to this kernel.
    pub tokens: Vec<String>,
    /// Checksum of the layout.
    pub layout: String,
}

impl Now {
    /// Looks.
    pub fn read(layout: &Path) -> Now {
        Now {
            boot: boot(),
            tokens: command_line::tokens(&command_line::running()),
            layout: checksum(&fs::read(layout).unwrap_or_default()),
        }
    }

    /// Makes sure that the record is not used again in this boot, should its file come back.
    pub fn use_up(&self, dir: &Path, record: &Record) -> Result<(), Refusal> {
        let path = dir.join(USED);
        if sysfs::text(&path).is_some_and(|used| used == record.token) {
            return Err(Refusal::Used);
        }
        let written = file::replace(&path, record.token.as_bytes(), 0o600);
        written.map_err(|why| Refusal::Mark { path, why })
    }
}

/// The kernel's name for this boot.
fn boot() -> String {
    sysfs::text(Path::new("/proc/sys/kernel/random/boot_id")).unwrap_or_default()
}

/// Checksum of a text.
fn checksum(text: &[u8]) -> String {
    hex(&Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Range;

    fn place(start: u64, len: u64) -> Place {
        Place {
            size: len,
            align: 2 << 20,
            region: Range {
                start: 4 << 30,
                len: 4 << 30,
            },
            ranges: vec![Range { start, len }],
        }
    }

    fn record() -> Record {
        let kept = |start| Kept {
            place: place(start, 1 << 30),
            memory: Sample("00".to_owned()),
        };
        let devices = [("vm1", 4 << 30), ("db1:0", 5 << 30), ("db1:1", 6 << 30)];
        Record {
            token: "token".to_owned(),
            boot: "before".to_owned(),
            layout: checksum(b"layout"),
            devices: devices
                .map(|(name, start)| (name.parse().unwrap(), kept(start)))
                .into(),
        }
    }

    fn now() -> Now {
        Now {
            boot: "after".to_owned(),
            tokens: vec!["token".to_owned()],
            layout: checksum(b"layout"),
        }
    }

    fn said<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn it_is_read_as_written_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kexec.json");
        record().write(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), record());
        let text = fs::read_to_string(&path).unwrap();
        let start = (4u64 << 30).to_string();
        // Every single place of what it says counts.
        for (of, by) in [
            (start.as_str(), "0"),
            ("\"token\"", "\"tokem\""),
            ("\"before\"", "\"\""),
            ("vm1", "vm2"),
            ("\"00\"", "\"01\""),
        ] {
            let at = text.rfind(of).unwrap();
            let tampered = format!("{}{by}{}", &text[..at], &text[at + of.len()..]);
            fs::write(&path, tampered).unwrap();
            assert!(
                said(Record::read(&path)).contains("its checksum is wrong"),
                "{of}"
            );
        }
        fs::write(&path, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
        assert!(said(Record::read(&path)).contains("version 2"));
        fs::write(&path, "{").unwrap();
        assert!(said(Record::read(&path)).contains("cannot be read"));
        assert!(Record::forget(&path).unwrap());
        assert!(!Record::forget(&path).unwrap());
        assert!(said(Record::read(&path)).contains("cannot be read"));
    }

    #[test]
    fn it_holds_in_the_boot_that_it_is_for() {
        assert!(record().holds(&now()).is_ok());
        let mut other = now();
        other.tokens = vec!["another".to_owned()];
        assert!(said(record().holds(&other)).contains("was not loaded"));
        let mut other = now();
        other.layout = checksum(b"");
        assert!(said(record().holds(&other)).contains("layout"));
    }

    #[test]
    fn it_is_used_once() {
        let dir = tempfile::tempdir().unwrap();
        now().use_up(dir.path(), &record()).unwrap();
        assert!(said(now().use_up(dir.path(), &record())).contains("already"));
        let missing = dir.path().join("missing");
        assert!(said(now().use_up(&missing, &record())).contains("cannot be marked"));
    }

    #[test]
    fn a_guest_is_kept_as_it_was_or_not_at_all() {
        let record = record();
        let at = |guest: &str, parts: &[(&str, Option<Place>)]| {
            let names: Vec<PartName> = parts
                .iter()
                .map(|(name, _)| name.parse().unwrap())
                .collect();
            let parts: Vec<_> = names
                .iter()
                .zip(parts)
                .map(|(name, (_, place))| (name, place.clone()))
                .collect();
            record.at(&guest.parse().unwrap(), &parts)
        };
        let here = |start: u64| Some(place(start, 1 << 30));
        assert_eq!(at("vm1", &[("vm1", here(4 << 30))]).unwrap().len(), 1);
        let both = [("db1:0", here(5 << 30)), ("db1:1", here(6 << 30))];
        assert_eq!(at("db1", &both).unwrap().len(), 2);
        // Another range, another size, another region, another alignment, no place at all.
        let mut others = vec![here(5 << 30), Some(place(4 << 30, 2 << 30)), None];
        let mut region = place(4 << 30, 1 << 30);
        region.region.len -= 2 << 20;
        let mut align = place(4 << 30, 1 << 30);
        align.align = 4096;
        others.extend([Some(region), Some(align)]);
        for other in others {
            let said = said(at("vm1", &[("vm1", other)]));
            assert!(said.contains("where it was"), "{said}");
        }
        // Half of a guest, another guest's, a guest that is not in it.
        for (guest, parts) in [
            ("db1", &both[..1]),
            ("vm1", &[]),
            ("vm1", &both[..1]),
            ("vm2", &both[..1]),
        ] {
            assert!(
                said(at(guest, parts)).contains("the same devices"),
                "{guest}"
            );
        }
    }
}
