// SPDX-License-Identifier: GPL-2.0
//! Scrubbing as the driver's attributes show it: policies, progress, and what is known to be clean.

use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::case::{Failure, Named, Outcome};
use crate::device::{driver_attribute, Device, DAX_DMEM};
use crate::region::Region;
use crate::{check, sysfs};

/// The driver scrubs in steps of this many bytes, each of them under a mapping that exists for the step.
pub const STEP: u64 = 2 << 20;
/// Scrubbing all of a large region under emulation; the runner's own limit ends a hang.
const LIMIT: Duration = Duration::from_secs(300);

/// When a device's memory is zeroed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// When its last user is gone, and at bind what is not known to be clean.
    Release,
    /// At bind, what is not known to be clean.
    HandOut,
    /// Not at all.
    Never,
}

impl Policy {
    /// All of them.
    pub const ALL: [Policy; 3] = [Policy::Release, Policy::HandOut, Policy::Never];

    /// The policy for the next bind of a device.
    pub fn choose(self, device: &Device) -> Outcome {
        sysfs::write(
            driver_attribute(DAX_DMEM, "scrub_policy"),
            &format!("{} {self}", device.name),
        )
    }

    /// Binds a device with this policy.
    pub fn bind(self, device: &Device) -> Outcome {
        self.choose(device)?;
        device
            .attach(DAX_DMEM)
            .named(format_args!("binding {} ({self})", device.name))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Policy::Release => "release",
            Policy::HandOut => "hand-out",
            Policy::Never => "never",
        })
    }
}

/// How far a scrub is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Zeroed.
    pub done: u64,
    /// To be zeroed, altogether.
    pub total: u64,
}

impl Progress {
    /// A bound device's.
    pub fn of(device: &Device) -> Outcome<Progress> {
        let text = sysfs::read(device.attribute("dax_dmem/scrub_progress"))?;
        let progress = text.split_once(' ').and_then(|(done, total)| {
            Some(Progress {
                done: done.parse().ok()?,
                total: total.parse().ok()?,
            })
        });
        let progress = progress
            .ok_or_else(|| Failure::Fail(format!("{}: scrub_progress is '{text}'", device.name)))?;
        check!(
            progress.done <= progress.total,
            "{}: more done than there is: {progress:?}",
            device.name
        );
        Ok(progress)
    }

    /// Waits until a device is being scrubbed and some of it, but not all, is done.
    pub fn midway(device: &Device) -> Outcome<Progress> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            let progress = Progress::of(device)?;
            check_unfinished(progress, &device.name)?;
            if progress.done > 0 {
                return Ok(progress);
            }
        }
        Err(Failure::Fail(format!(
            "{}: scrubbing never began",
            device.name
        )))
    }

    /// Waits for the end of a bound device's scrub.
    pub fn finish(device: &Device) -> Outcome<Progress> {
        let deadline = Instant::now() + LIMIT;
        while state(device)? == "scrubbing" {
            check!(
                Instant::now() < deadline,
                "{}: still scrubbing: {:?}",
                device.name,
                Progress::of(device)?
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Progress::of(device)
    }
}

fn check_unfinished(progress: Progress, name: &str) -> Outcome {
    check!(
        progress.done < progress.total,
        "{name}: {progress:?} is no scrub under way: too small for this host?"
    );
    Ok(())
}

/// `scrubbing`, `scrubbed`, `unscrubbed` or `failed`, of a bound device.
pub fn state(device: &Device) -> Outcome<String> {
    sysfs::read(device.attribute("dax_dmem/scrub_state"))
}

/// A range of a released device that is being scrubbed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// Physical addresses.
    pub range: Range<u64>,
    /// The device it belonged to.
    pub device: String,
    /// How far it is.
    pub progress: Progress,
}

/// The scrubs of released devices.
pub fn released() -> Outcome<Vec<Released>> {
    let text = sysfs::read(driver_attribute(DAX_DMEM, "scrubbing"))?;
    let parse = |line: &str| {
        let mut words = line.split(' ');
        let range = extent(words.next()?)?;
        let device = words.next()?.to_owned();
        let progress = Progress {
            done: words.next()?.parse().ok()?,
            total: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(Released {
            range,
            device,
            progress,
        })
    };
    lines(&text, "scrubbing", parse)
}

/// Waits until no released device is being scrubbed.
pub fn settle() -> Outcome {
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = released()?;
        if left.is_empty() {
            return Ok(());
        }
        check!(Instant::now() < deadline, "still scrubbing: {left:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The extents without an owner that are known to be zero, by address.
pub fn clean() -> Outcome<Vec<Range<u64>>> {
    let text = sysfs::read(driver_attribute(DAX_DMEM, "clean"))?;
    let extents = lines(&text, "clean", extent)?;
    let ordered = extents.windows(2).all(|pair| pair[0].end <= pair[1].start);
    check!(ordered, "clean overlaps or is not in order: {extents:x?}");
    Ok(extents)
}

/// How many bytes of the region, `length` from `offset` on, are known to be zero.
pub fn clean_in(region: &Region, offset: u64, length: u64) -> Outcome<u64> {
    let (start, end) = (region.start + offset, region.start + offset + length);
    let inside = |extent: &Range<u64>| extent.end.min(end).saturating_sub(extent.start.max(start));
    Ok(clean()?.iter().map(inside).sum())
}

/// `0xSTART-0xEND`, END inclusive, as the driver writes it.
pub fn extent(text: &str) -> Option<Range<u64>> {
    let (start, last) = text.split_once('-')?;
    let (start, last) = (sysfs::number(start)?, sysfs::number(last)?);
    (start <= last).then_some(start..last + 1)
}

fn lines<T>(text: &str, attribute: &str, parse: impl Fn(&str) -> Option<T>) -> Outcome<Vec<T>> {
    let bad = |line: &str| Failure::Fail(format!("{attribute} has the line '{line}'"));
    text.lines()
        .map(|line| parse(line).ok_or_else(|| bad(line)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_have_inclusive_ends() {
        assert_eq!(
            extent("0x100000000-0x1001fffff"),
            Some(0x1_0000_0000..0x1_0020_0000)
        );
        assert_eq!(extent("0x2-0x1"), None);
        assert_eq!(extent("0x2"), None);
    }
}
