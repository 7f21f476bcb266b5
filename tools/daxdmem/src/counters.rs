// SPDX-License-Identifier: GPL-2.0

//! What the driver counts of a page-less device since it was bound, see Documentation/abi.md.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::bus::Device;
use crate::driver::Driver;
use crate::sysfs;

/// Sizes of a leaf, in the driver's words.
pub const LEAVES: [&str; 3] = ["1g", "2m", "4k"];

/// What a device counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// One word for what it is doing.
    pub state: String,
    /// VMAs of all processes.
    pub mappings: u64,
    /// Page faults.
    pub faults: Vec<Faults>,
    /// Page-table entries that map it; `None` where the caller may not count them.
    pub leaves: Option<Leaves>,
}

/// Page faults that asked for leaves of one size, by what became of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// One of [`LEAVES`].
    pub leaf: String,
    /// It is there.
    pub mapped: u64,
    /// It does not fit there; the kernel asked for a smaller one next.
    pub smaller: u64,
    /// There is no memory.
    pub sigbus: u64,
    /// The memory has failed.
    pub poisoned: u64,
}

/// Page-table entries of each size, in all processes together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leaves {
    #[serde(rename = "1g")]
    pub giant: u64,
    #[serde(rename = "2m")]
    pub huge: u64,
    #[serde(rename = "4k")]
    pub small: u64,
    /// Whether these are all: the driver stops where counting takes long.
    pub complete: bool,
}

impl Counters {
    /// Of a device; `None` unless it is page-less, and the driver is one that counts.
    pub fn of(device: &Device) -> Option<Counters> {
        let directory = directory(&device.path);
        let text = |name: &str| sysfs::text(&directory.join(name));
        Some(Counters {
            state: text("state")?,
            mappings: text("mappings")?.parse().ok()?,
            faults: text("faults")?.lines().filter_map(Faults::parse).collect(),
            leaves: text("leaves").and_then(|text| Leaves::parse(&text)),
        })
    }
}

fn directory(device: &Path) -> PathBuf {
    device.join(Driver::NAME)
}

impl Faults {
    /// `SIZE mapped N smaller N sigbus N poisoned N`; what a later driver adds is passed over.
    fn parse(line: &str) -> Option<Faults> {
        let mut words = line.split_ascii_whitespace();
        let leaf = words.next()?.to_owned();
        let rest: Vec<&str> = words.collect();
        let of = |result: &str| {
            let found = rest
                .chunks_exact(2)
                .find(|pair| pair.first() == Some(&result))?;
            found.get(1)?.parse().ok()
        };
        Some(Faults {
            leaf,
            mapped: of("mapped")?,
            smaller: of("smaller")?,
            sigbus: of("sigbus")?,
            poisoned: of("poisoned")?,
        })
    }

    /// Numbers by result.
    pub fn results(&self) -> [(&'static str, u64); 4] {
        [
            ("mapped", self.mapped),
            ("smaller", self.smaller),
            ("sigbus", self.sigbus),
            ("poisoned", self.poisoned),
        ]
    }
}

impl Leaves {
    /// A line `SIZE N` for each size, and `...` where there may be more.
    fn parse(text: &str) -> Option<Leaves> {
        let of = |size: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(leaf, _)| *leaf == size)?.1.parse().ok()
        };
        Some(Leaves {
            giant: of("1g")?,
            huge: of("2m")?,
            small: of("4k")?,
            complete: !text.lines().any(|line| line == "..."),
        })
    }

    /// Numbers by size.
    pub fn sizes(&self) -> [(&'static str, u64); 3] {
        let [giant, huge, small] = LEAVES;
        [(giant, self.giant), (huge, self.huge), (small, self.small)]
    }
}

/// Bytes that the driver has overwritten with zeros since it was loaded; `None` where it is not, or does not say.
pub fn scrubbed() -> Option<u64> {
    sysfs::number(&Driver::attribute("scrubbed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_driver() {
        let faults = Faults::parse("1g mapped 2 smaller 3 sigbus 0 poisoned 1 later 9").unwrap();
        assert_eq!(faults.leaf, "1g");
        assert_eq!(faults.results().map(|(_, number)| number), [2, 3, 0, 1]);
        for line in [
            "",
            "1g",
            "1g mapped 2",
            "1g mapped x smaller 0 sigbus 0 poisoned 0",
        ] {
            assert_eq!(Faults::parse(line), None, "{line}");
        }
        let leaves = Leaves::parse("1g 2\n2m 0\n4k 512\n").unwrap();
        assert_eq!(leaves.sizes().map(|(_, number)| number), [2, 0, 512]);
        assert!(leaves.complete);
        assert!(!Leaves::parse("1g 2\n2m 0\n4k 512\n...").unwrap().complete);
        assert_eq!(Leaves::parse("1g 2\n2m 0\n"), None);
    }

    #[test]
    fn a_device_counts() {
        let directory = tempfile::tempdir().unwrap();
        let device = Device {
            path: directory.path().to_owned(),
            ..crate::report::tests::device()
        };
        assert_eq!(Counters::of(&device), None);
        let attributes = directory.path().join("dax_dmem");
        std::fs::create_dir(&attributes).unwrap();
        for (name, text) in [
            ("state", "mapped\n"),
            ("mappings", "2\n"),
            (
                "faults",
                "1g mapped 2 smaller 0 sigbus 0 poisoned 0\n2m mapped 5 smaller 1 sigbus 0 poisoned 0\n",
            ),
        ] {
            std::fs::write(attributes.join(name), text).unwrap();
        }
        let counters = Counters::of(&device).unwrap();
        assert_eq!((counters.mappings, counters.faults.len()), (2, 2));
        assert_eq!(counters.leaves, None);
    }
}
