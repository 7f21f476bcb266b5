// SPDX-License-Identifier: GPL-2.0

//! Where guests were placed, kept over a reboot: so that an unchanged guest gets the same memory again, whatever
//! becomes of the others.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::LayoutError;
use crate::bus::Range;
use crate::error::{Error, Result};
use crate::file;
use crate::name::PartName;
use crate::nodes::Part;

/// Version of the file's form.
const VERSION: u32 = 1;

/// The places of devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    version: u32,
    /// By name.
    pub devices: BTreeMap<PartName, Place>,
}

/// The place of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Bytes in it.
    pub size: u64,
    /// Its alignment in bytes.
    pub align: u64,
    /// The whole region that it is in.
    pub region: Range,
    /// Its ranges in order of offset.
    pub ranges: Vec<Range>,
}

impl Default for Placement {
    fn default() -> Self {
        Placement {
            version: VERSION,
            devices: BTreeMap::new(),
        }
    }
}

impl Placement {
    /// Where it is kept.
    pub const FILE: &'static str = "/var/lib/daxdmem/placement.json";

    /// Reads it; empty where there is none.
    pub fn read(path: &Path) -> Result<Placement> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Placement::default())
            }
            Err(error) => return Err(failed("read", path)(error)),
        };
        let bad = |why: String| LayoutError::Placement {
            path: path.to_owned(),
            why,
        };
        let placement: Placement =
            serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if placement.version != VERSION {
            let why = format!(
                "it has version {}, this daxdmem reads and writes version {VERSION}",
                placement.version
            );
            return Err(bad(why).into());
        }
        Ok(placement)
    }

    /// Writes it, unless the file says so already. `known` is what was read.
    pub fn write(&self, known: &Placement, path: &Path) -> Result<()> {
        if self == known && path.exists() {
            return Ok(());
        }
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(failed("create", dir))?;
        }
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|error| failed("write", path)(error.into()))?;
        text.push(b'\n');
        // It holds physical addresses, which are root's alone.
        file::replace(path, &text, 0o600).map_err(failed("write", path))
    }

    /// The place that was kept for a device, if it is still one for that size and alignment.
    pub fn of(&self, part: &Part) -> Option<&Place> {
        let place = self.devices.get(&part.name)?;
        (place.size == part.size.0 && place.align == part.align.bytes()).then_some(place)
    }
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    Error::kernel(format!("cannot {doing} {}", PathBuf::from(path).display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daxdmem/placement.json");
        assert_eq!(Placement::read(&path).unwrap(), Placement::default());
        let range = Range {
            start: 4 << 30,
            len: 1 << 30,
        };
        let place = Place {
            size: 1 << 30,
            align: 2 << 20,
            region: range,
            ranges: vec![range],
        };
        let mut placement = Placement::default();
        placement
            .devices
            .insert("db1:0".parse().unwrap(), place.clone());
        placement.write(&Placement::default(), &path).unwrap();
        assert_eq!(Placement::read(&path).unwrap(), placement);

        let mut part = Part {
            name: "db1:0".parse().unwrap(),
            size: "1G".parse().unwrap(),
            align: "2M".parse().unwrap(),
            node: Some(0),
        };
        assert_eq!(placement.of(&part), Some(&place));
        part.align = "1G".parse().unwrap();
        assert_eq!(placement.of(&part), None);
        for (text, why) in [
            ("{", "EOF while parsing"),
            ("{\"version\": 2, \"devices\": {}}", "it has version 2"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Placement::read(&path).unwrap_err().to_string();
            assert!(
                error.contains(why) && error.contains("Move it away"),
                "{error}"
            );
        }
    }
}
