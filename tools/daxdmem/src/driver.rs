// SPDX-License-Identifier: GPL-2.0

//! The driver dax_dmem, as sysfs shows it: binding, openers, and memory that no device has.
//!
//! A device is bound by its name in `new_id`, which attaches at once. The kernel keeps the name, and would bind any
//! later device of that name along with the next one written there; so it is taken out again as soon as the device is
//! bound, and before a new device gets memory.
//!
//! How a device is to be scrubbed is told by name as well, before it is bound; the bind uses that up. What is left of
//! a bind that did not happen would hold for a later device of that name: see [`Driver::settle_policy`].

use std::io;
use std::path::{Path, PathBuf};

use crate::bus::Range;
use crate::host;
use crate::name::DeviceName;
use crate::poison::{self, Pages};
use crate::scrub::{Policy, Progress};
use crate::sysfs;

/// The driver.
pub struct Driver;

/// A range that is unbound and still in use. Nobody else may have it until its last user is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// The range.
    pub range: Range,
    /// The device it was unbound from.
    pub device: String,
    /// Files still open.
    pub openers: u64,
}

/// A range that no device has any more and that is being scrubbed. Binding a device over it takes the scrub over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scrubbing {
    /// The range.
    pub range: Range,
    /// The device it was unbound from.
    pub device: String,
    /// How far it has come.
    pub progress: Progress,
}

/// What the driver knows of memory that no device has.
#[derive(Debug, Clone, Default)]
pub struct Unowned {
    /// Ranges that are unbound and still in use; none while the driver is not loaded, for it cannot go while there are
    /// any.
    pub quarantine: Vec<Quarantine>,
    /// Ranges that are being scrubbed; `None` where the caller may not know, or the driver is not loaded or does not
    /// scrub.
    pub scrubbing: Option<Vec<Scrubbing>>,
    /// Ranges known to be zero; `None` as above.
    pub clean: Option<Vec<Range>>,
    /// Pages that failed, whoever has them: what the driver knows, and what is recorded. `None` where the caller may not
    /// know.
    pub poison: Option<Pages>,
}

impl Unowned {
    /// Reads it.
    pub fn read() -> Unowned {
        let clean = Driver::lines("clean");
        Unowned {
            quarantine: Driver::quarantine(),
            scrubbing: Driver::scrubbing(),
            clean: clean.map(|text| text.lines().filter_map(range).collect()),
            poison: poison::visible(),
        }
    }
}

impl Driver {
    /// Its name, and its module's.
    pub const NAME: &'static str = "dax_dmem";

    /// An attribute of it in sysfs.
    pub fn attribute(name: &str) -> PathBuf {
        attribute_of(Self::NAME, name)
    }

    /// Whether it is there to bind devices.
    pub fn is_loaded() -> bool {
        Self::attribute("new_id").exists()
    }

    /// Loads the module; returns what modprobe had to say when the driver is not there afterwards.
    pub fn load() -> Result<(), String> {
        if Self::is_loaded() {
            return Ok(());
        }
        match host::load(Self::NAME) {
            _ if Self::is_loaded() => Ok(()),
            Err(said) => Err(said),
            Ok(()) => Err(format!("modprobe {}: it has no effect", Self::NAME)),
        }
    }

    /// Has the driver take the device. Says nothing about success: look at the device's driver.
    pub fn add_id(device: DeviceName) -> io::Result<()> {
        sysfs::write(&Self::attribute("new_id"), &device.to_string())
    }

    /// Takes the name out of the driver's list. Does nothing when it is not there.
    pub fn remove_id(device: DeviceName) -> io::Result<()> {
        sysfs::write(&Self::attribute("remove_id"), &device.to_string())
    }

    /// Takes the device away from whatever driver has it.
    pub fn unbind(device: DeviceName, driver: &str) -> io::Result<()> {
        sysfs::write(&attribute_of(driver, "unbind"), &device.to_string())
    }

    /// Binds the device to a driver that it suits.
    pub fn bind(device: DeviceName, driver: &str) -> io::Result<()> {
        sysfs::write(&attribute_of(driver, "bind"), &device.to_string())
    }

    /// As [`Driver::add_id`], for another driver.
    pub fn add_id_of(device: DeviceName, driver: &str) -> io::Result<()> {
        sysfs::write(&attribute_of(driver, "new_id"), &device.to_string())
    }

    /// As [`Driver::remove_id`], for another driver.
    pub fn remove_id_of(device: DeviceName, driver: &str) -> io::Result<()> {
        sysfs::write(&attribute_of(driver, "remove_id"), &device.to_string())
    }

    /// Whether a driver is there to bind devices.
    pub fn is_there(driver: &str) -> bool {
        attribute_of(driver, "bind").exists()
    }

    /// Number of open files of a device, given its directory; `None` while the driver is not bound.
    pub fn openers(device: &Path) -> Option<u64> {
        sysfs::number(&device.join(Self::NAME).join("openers"))
    }

    /// Whether a device of the machine may still write to a bound device's memory (VFIO), given its directory. Drivers
    /// that cannot tell say no.
    pub fn is_reached_by_dma(device: &Path) -> bool {
        sysfs::number(&device.join(Self::NAME).join("dma")).is_some_and(|reached: u64| reached != 0)
    }

    /// What of these ranges is in quarantine.
    pub fn quarantine_of(ranges: &[Range]) -> impl Iterator<Item = Quarantine> + use<'_> {
        Self::quarantine()
            .into_iter()
            .filter(|held| ranges.iter().any(|range| range.overlaps(held.range)))
    }

    /// See [`Unowned::quarantine`].
    pub fn quarantine() -> Vec<Quarantine> {
        let text = Self::lines("quarantine").unwrap_or_default();
        text.lines().filter_map(Quarantine::parse).collect()
    }

    /// See [`Unowned::scrubbing`].
    pub fn scrubbing() -> Option<Vec<Scrubbing>> {
        let text = Self::lines("scrubbing")?;
        Some(text.lines().filter_map(Scrubbing::parse).collect())
    }

    fn lines(attribute: &str) -> Option<String> {
        sysfs::text(&Self::attribute(attribute))
    }

    /// Whether the driver that is loaded scrubs: older ones do not.
    pub fn scrubs() -> bool {
        Self::attribute("scrub_policy").exists()
    }

    /// Tells how the device is to be scrubbed, from its next bind on.
    ///
    /// `release` is what the driver does untold, and is told only in place of something else: so nothing is left of a
    /// bind that does not come to pass.
    pub fn set_policy(device: DeviceName, policy: Policy) -> io::Result<()> {
        if policy == Policy::Release {
            return Self::settle_policy(device);
        }
        Self::tell_policy(device, policy)
    }

    /// Takes back what [`Driver::set_policy`] has told, where no bind has used it up.
    pub fn settle_policy(device: DeviceName) -> io::Result<()> {
        match Self::told_policy(device) {
            None | Some(Policy::Release) => Ok(()),
            Some(_) => Self::tell_policy(device, Policy::Release),
        }
    }

    fn tell_policy(device: DeviceName, policy: Policy) -> io::Result<()> {
        sysfs::write(
            &Self::attribute("scrub_policy"),
            &format!("{device} {policy}"),
        )
    }

    /// The pages that reported an uncorrectable error, as ranges; `None` where the driver is not there, or the list not
    /// the caller's to read.
    pub fn poison() -> Option<Vec<Range>> {
        let path = Self::attribute("poison");
        let mut last = sysfs::text(&path)?;
        // The kernel gives it in pieces, between which it may grow.
        loop {
            let text = sysfs::text(&path)?;
            if text == last {
                return text.lines().map(range).collect();
            }
            last = text;
        }
    }

    /// Tells of an uncorrectable error in the page at this address.
    pub fn add_poison(page: u64) -> io::Result<()> {
        sysfs::write(&Self::attribute("poison"), &format!("add {page:#x}"))
    }

    /// Has the page at this address tested and taken back into use.
    pub fn clear_poison(page: u64) -> io::Result<()> {
        sysfs::write(&Self::attribute("poison"), &format!("clear {page:#x}"))
    }

    /// What was told for the next bind of the device.
    fn told_policy(device: DeviceName) -> Option<Policy> {
        policy_of(device, &Self::lines("scrub_policy")?)
    }

    /// Changes what is done when a device that is bound is taken back, given its directory.
    pub fn change_policy(device: &Path, policy: Policy) -> io::Result<()> {
        sysfs::write(
            &device.join(Self::NAME).join("scrub_policy"),
            &policy.to_string(),
        )
    }
}

/// An attribute of a driver on the dax bus.
fn attribute_of(driver: &str, name: &str) -> PathBuf {
    Path::new("/sys/bus/dax/drivers").join(driver).join(name)
}

/// The device's policy in lines of `daxX.Y POLICY`.
fn policy_of(device: DeviceName, text: &str) -> Option<Policy> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let mine = |(name, _): &(&str, &str)| name.parse() == Ok(device);
    lines
        .filter(mine)
        .find_map(|(_, policy)| Policy::parse(policy))
}

/// `0xSTART-0xEND`, the end inclusive.
pub fn range(text: &str) -> Option<Range> {
    let (start, last) = text.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let (start, last) = (hex(start)?, hex(last)?);
    Some(Range {
        start,
        len: last.checked_sub(start)?.checked_add(1)?,
    })
}

impl Quarantine {
    /// Who reaches it.
    pub fn users(&self) -> String {
        match self.openers {
            0 => "a device of the machine may still write to it (VFIO)".to_owned(),
            files => format!("{files} open files"),
        }
    }

    /// What it waits for: "until …".
    pub fn end(&self) -> String {
        match self.openers {
            0 => "until no device of the machine can write to it any more (VFIO)".to_owned(),
            files => format!("until {files} open files are closed"),
        }
    }

    /// What becomes of a device that cannot be bound because of it.
    pub fn unbound(&self) -> String {
        format!(
            "it is unbound, and stays so: {} is in quarantine {}; bind it then",
            self.range,
            self.end()
        )
    }

    /// `0xSTART-0xEND daxX.Y OPENERS`, the end inclusive.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        Some(Quarantine {
            range: range(words.next()?)?,
            device: words.next()?.to_owned(),
            openers: words.next()?.parse().ok()?,
        })
    }
}

impl Scrubbing {
    /// `0xSTART-0xEND daxX.Y DONE TOTAL`, the end inclusive.
    fn parse(line: &str) -> Option<Self> {
        let (place, progress) = line.split_once(' ')?;
        let (device, progress) = progress.split_once(' ')?;
        Some(Scrubbing {
            range: range(place)?,
            device: device.to_owned(),
            progress: Progress::parse(progress)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_quarantine() {
        assert_eq!(
            Quarantine::parse("0x100000000-0x13fffffff dax0.1 3"),
            Some(Quarantine {
                range: Range {
                    start: 4 << 30,
                    len: 1 << 30
                },
                device: "dax0.1".to_owned(),
                openers: 3
            })
        );
        for line in [
            "",
            "0x100000000 dax0.1 3",
            "100-200 dax0.1 3",
            "0x2-0x1 dax0.1 3",
            "0x1-0x2 dax0.1",
            "0x1-0x2 dax0.1 x",
        ] {
            assert_eq!(Quarantine::parse(line), None, "{line}");
        }
    }

    #[test]
    fn lines_of_scrubs_under_way() {
        assert_eq!(
            Scrubbing::parse("0x100000000-0x13fffffff dax0.1 2097152 1073741824"),
            Some(Scrubbing {
                range: Range {
                    start: 4 << 30,
                    len: 1 << 30
                },
                device: "dax0.1".to_owned(),
                progress: Progress {
                    done: 2 << 20,
                    total: 1 << 30
                },
            })
        );
        for line in [
            "",
            "...",
            "0x1-0x2 dax0.1 1",
            "0x1-0x2 dax0.1 1 x",
            "0x1 dax0.1 1 2",
        ] {
            assert_eq!(Scrubbing::parse(line), None, "{line}");
        }
    }

    #[test]
    fn policies_that_were_told() {
        let text = "dax0.1 never\ndax0.10 hand-out\n...\n";
        let policy = |device: &str| policy_of(device.parse().unwrap(), text);
        assert_eq!(policy("dax0.1"), Some(Policy::Never));
        assert_eq!(policy("dax0.10"), Some(Policy::HandOut));
        assert_eq!(policy("dax0.0"), None);
    }
}
