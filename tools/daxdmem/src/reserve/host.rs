// SPDX-License-Identifier: GPL-2.0

//! The host that memory is to be reserved on: its memory, what it was booted with, and what its boot configuration says.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::boot;
use super::error::ReserveError;
use super::parameter::{self, Memmap, Settings};
use super::plan::{Circumstances, Taken};
use super::topology::Topology;
use crate::bus::Range;

/// What was read of a host.
#[derive(Debug)]
pub struct Host {
    /// Its memory.
    pub topology: Topology,
    /// The running kernel's command line.
    pub line: String,
    /// Whether it has an Intel processor.
    pub intel: bool,
    /// `memmap=` settings that the boot configuration has elsewhere than where daxdmem keeps its own.
    pub elsewhere: Vec<(PathBuf, Settings)>,
}

impl Host {
    /// Reads it; `root` is where its file system starts.
    pub fn read(root: &Path) -> Result<Host, ReserveError> {
        let line = fs::read_to_string(root.join("proc/cmdline")).unwrap_or_default();
        let topology = Topology::read(root).map_err(|error| ReserveError::Unreadable {
            advice: match error.kind() {
                io::ErrorKind::PermissionDenied => "This takes root: run it with sudo",
                io::ErrorKind::NotFound => {
                    "It takes a kernel with CONFIG_FIRMWARE_MEMMAP, and /sys"
                }
                _ => "The firmware's tables are not as expected: see `dmesg`",
            },
            why: error.to_string(),
        })?;
        let cpus = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
        let topology = match parameter::has_word(&line, "numa=off") {
            true => Topology {
                nodes: Vec::new(),
                ..topology
            },
            false => topology,
        };
        Ok(Host {
            topology,
            line: line.trim_end().to_owned(),
            intel: cpus.contains("GenuineIntel"),
            elsewhere: boot::elsewhere(root),
        })
    }

    /// Ranges that daxdmem, or somebody in its way, has reserved on the running kernel's command line.
    pub fn reserved(&self) -> Vec<Range> {
        Settings::of(&self.line).pairs
    }

    /// What bears on a plan for the next boot.
    ///
    /// The pairs on the running command line are the reservation that the plan takes the place of. All else stays.
    pub fn circumstances(&self) -> Result<Circumstances, ReserveError> {
        let mut others = Settings::of(&self.line).others;
        for (_, settings) in &self.elsewhere {
            others.extend(settings.pairs.iter().copied().map(Memmap::Reserved));
            others.extend(settings.others.iter().cloned());
        }
        let mut distinct: Vec<Memmap> = Vec::new();
        for other in others {
            if !distinct.contains(&other) {
                distinct.push(other);
            }
        }
        let words = parameter::words(&self.line);
        let limits = words
            .iter()
            .filter(|word| word.starts_with("mem=") && **word != "mem=nopentium");
        let whole: Vec<String> = distinct
            .iter()
            .filter(|memmap| matches!(memmap, Memmap::Whole(_)))
            .map(Memmap::to_string)
            .chain(limits.map(|word| (*word).to_owned()))
            .collect();
        if !whole.is_empty() {
            return Err(ReserveError::Whole {
                what: whole.join(" "),
            });
        }
        let taken = distinct.iter().filter_map(|memmap| match memmap {
            Memmap::Reserved(range) | Memmap::Region(range) | Memmap::Range { range, .. } => {
                Some(Taken {
                    range: *range,
                    by: memmap.to_string(),
                })
            }
            Memmap::Whole(_) => None,
        });
        Ok(Circumstances {
            taken: taken
                .chain(words.iter().filter_map(|word| crash_kernel(word)))
                .collect(),
            avoided: distinct.iter().filter(|memmap| memmap.is_avoided()).count(),
            fixed_kernel: parameter::has_word(&self.line, "nokaslr"),
            intel: self.intel,
        })
    }
}

/// `crashkernel=SIZE@START`: without a place of its own it goes where there is room.
fn crash_kernel(word: &str) -> Option<Taken> {
    let value = word.strip_prefix("crashkernel=")?;
    let (size, start) = value.split_once('@')?;
    let range = parameter::range(size, start)?;
    Some(Taken {
        range,
        by: word.to_owned(),
    })
}
