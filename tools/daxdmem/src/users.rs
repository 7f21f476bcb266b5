// SPDX-License-Identifier: GPL-2.0

//! Who uses a device: programs that have it open or mapped, found in /proc, and devices of the machine.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirEntry, Metadata};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use crate::access;
use crate::bus::Device;
use crate::driver::Driver;
use crate::sysfs;

/// At most so many programs are named in a message.
const SHOWN: usize = 8;

/// The users of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Users {
    /// Number of open files, where the driver counts them.
    openers: Option<u64>,
    /// Whether a device of the machine may still write to it, though no program has it open.
    by_dma: bool,
    /// Names of the programs by process id.
    programs: BTreeMap<u32, String>,
}

/// How often it is looked whether DMA is over, a tenth of a second apart: what a process had goes a little later than
/// the process.
const LOOKS: u32 = 10;

impl Users {
    /// The device's users; `None` when it has none.
    ///
    /// The driver's count decides where there is one: it includes mappings whose file is closed, and what is in
    /// quarantine. /proc only says who they are. Without dax_dmem, /proc is all there is.
    pub fn of(device: &Device) -> Option<Users> {
        let counted = device.openers.or_else(|| {
            let ranges = device.ranges.as_deref().unwrap_or_default();
            Driver::quarantine_of(ranges).map(|held| held.openers).max()
        });
        if device.driver.as_deref() == Some("kmem") {
            return None;
        }
        if counted == Some(0) {
            return is_reached_by_dma(&device.path).then(|| Users {
                openers: counted,
                by_dma: true,
                programs: BTreeMap::new(),
            });
        }
        let users = Users {
            openers: counted,
            by_dma: false,
            programs: programs(device),
        };
        (counted.is_some() || !users.programs.is_empty()).then_some(users)
    }
}

impl Users {
    /// Names of the programs by process id, as far as /proc shows them.
    pub fn programs(&self) -> &BTreeMap<u32, String> {
        &self.programs
    }
}

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.by_dma {
            return write!(
                f,
                "by a device of the machine, which may still write to it (VFIO; that ends with the processes that have its container)"
            );
        }
        if let Some(openers) = self.openers {
            write!(
                f,
                "{openers} open file{}, ",
                if openers == 1 { "" } else { "s" }
            )?;
        }
        if self.programs.is_empty() {
            return write!(f, "by a program that /proc does not show");
        }
        let shown = self
            .programs
            .iter()
            .take(SHOWN)
            .map(|(pid, name)| format!("pid {pid} ({name})"));
        write!(f, "by {}", shown.collect::<Vec<_>>().join(", "))?;
        match self.programs.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Whether a device of the machine may write to it, and goes on so.
fn is_reached_by_dma(device: &Path) -> bool {
    (0..LOOKS).all(|look| {
        if look > 0 {
            sleep(Duration::from_millis(100));
        }
        Driver::is_reached_by_dma(device)
    })
}

/// The programs that have the device open or mapped.
fn programs(device: &Device) -> BTreeMap<u32, String> {
    let Some(number) = access::number(&device.path) else {
        return BTreeMap::new();
    };
    let is_device = |found: &Metadata| access::is_node(found, &number);
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| Some((process.file_name().to_str()?.parse().ok()?, process)))
        .filter(|(_, process)| uses(process, &is_device))
        .map(|(pid, process)| {
            (
                pid,
                sysfs::text(&process.path().join("comm")).unwrap_or_default(),
            )
        })
        .collect()
}

/// Whether one of the process's open files or mappings is the one. `map_files` holds a link for each mapping of a file.
fn uses(process: &DirEntry, is_device: &impl Fn(&Metadata) -> bool) -> bool {
    let any_in = |dir: &Path| {
        let links = fs::read_dir(dir).into_iter().flatten().flatten();
        // Follows the link: the file itself, whatever its name in this or another container.
        links
            .filter_map(|link| fs::metadata(link.path()).ok())
            .any(|found| is_device(&found))
    };
    any_in(&process.path().join("fd")) || any_in(&process.path().join("map_files"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(openers: Option<u64>, pids: std::ops::Range<u32>) -> String {
        Users {
            openers,
            by_dma: false,
            programs: pids.map(|pid| (pid, format!("prog{pid}"))).collect(),
        }
        .to_string()
    }

    #[test]
    fn users_by_name() {
        assert_eq!(users(Some(1), 7..8), "1 open file, by pid 7 (prog7)");
        assert_eq!(
            users(Some(2), 0..0),
            "2 open files, by a program that /proc does not show"
        );
        assert_eq!(users(None, 7..9), "by pid 7 (prog7), pid 8 (prog8)");
        assert!(users(None, 1..20).ends_with("pid 8 (prog8) and 11 more"));
    }
}
