// SPDX-License-Identifier: GPL-2.0

//! Scrubbing: overwriting memory with zeros between two owners. The driver does it; here is what it is told, and what
//! it tells.

use std::fmt;
use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::driver::Driver;
use crate::sysfs;

/// When a device's memory is scrubbed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// When it is taken back, in the background: the next owner need not wait. And before it is handed out, where it is
    /// not known to be zero, as after a reboot
    #[default]
    Release,
    /// Only before it is handed out, where it is not known to be zero: the next owner waits
    HandOut,
    /// DANGEROUS: never. The guest sees what others left in the memory, and may leave its own to others
    Never,
}

impl Policy {
    /// The driver's word for it.
    fn word(self) -> &'static str {
        match self {
            Policy::Release => "release",
            Policy::HandOut => "hand-out",
            Policy::Never => "never",
        }
    }

    /// The policy of the driver's word.
    pub fn parse(word: &str) -> Option<Policy> {
        Policy::value_variants()
            .iter()
            .copied()
            .find(|policy| policy.word() == word)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// How far the scrub at the last bind of a device has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Under way: nobody can open the device yet.
    Scrubbing,
    /// Over, or nothing was to do.
    Scrubbed,
    /// Left out, as the policy wants.
    Unscrubbed,
    /// Given up: nobody can open the device.
    Failed,
}

impl Stage {
    const ALL: [Stage; 4] = [
        Stage::Scrubbing,
        Stage::Scrubbed,
        Stage::Unscrubbed,
        Stage::Failed,
    ];

    fn word(self) -> &'static str {
        match self {
            Stage::Scrubbing => "scrubbing",
            Stage::Scrubbed => "scrubbed",
            Stage::Unscrubbed => "unscrubbed",
            Stage::Failed => "failed",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// So many bytes of so many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are zero.
    pub done: u64,
    /// Bytes that were not known to be zero.
    pub total: u64,
}

impl Progress {
    /// `DONE TOTAL`.
    pub fn parse(text: &str) -> Option<Progress> {
        let (done, total) = text.trim().split_once(' ')?;
        Some(Progress {
            done: done.parse().ok()?,
            total: total.parse().ok()?,
        })
    }

    /// Whole per cents, 100 only at the end.
    pub fn percent(self) -> u64 {
        match self.total {
            0 => 100,
            total => {
                let percent = u128::from(self.done.min(total)) * 100 / u128::from(total);
                u64::try_from(percent).unwrap_or(100)
            }
        }
    }
}

/// What the driver tells of a device that is bound to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrub {
    /// What is done when it is taken back.
    pub policy: Policy,
    /// How far the scrub at its bind has come.
    pub stage: Stage,
    /// The same in bytes.
    pub progress: Progress,
}

impl Scrub {
    /// Of the device with that directory in sysfs; `None` while the driver is not bound, or is one that does not scrub.
    pub fn of(device: &Path) -> Option<Scrub> {
        let text = |name| sysfs::text(&device.join(Driver::NAME).join(name));
        let stage = text("scrub_state")?;
        Some(Scrub {
            policy: Policy::parse(&text("scrub_policy")?)?,
            stage: Stage::ALL.into_iter().find(|s| s.word() == stage)?,
            progress: Progress::parse(&text("scrub_progress")?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn words_are_the_same_everywhere() {
        for policy in Policy::value_variants() {
            let value = policy.to_possible_value().unwrap();
            assert_eq!(value.get_name(), policy.to_string());
            assert_eq!(
                serde_json::to_value(policy).unwrap(),
                serde_json::json!(policy.to_string())
            );
            assert_eq!(Policy::parse(&policy.to_string()), Some(*policy));
        }
        assert_eq!(Policy::parse("Never"), None);
    }

    #[test]
    fn per_cents() {
        let percent = |done, total| Progress { done, total }.percent();
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(0, 8), 0);
        assert_eq!(percent((1 << 40) - 1, 1 << 40), 99);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
        assert_eq!(percent(9, 8), 100);
    }

    #[test]
    fn what_the_driver_tells() {
        let device = tempfile::tempdir().unwrap();
        let attributes = device.path().join("dax_dmem");
        assert_eq!(Scrub::of(device.path()), None);
        fs::create_dir(&attributes).unwrap();
        // An older driver: bound, and nothing of this.
        fs::write(attributes.join("openers"), "0\n").unwrap();
        assert_eq!(Scrub::of(device.path()), None);
        for (name, text) in [
            ("scrub_policy", "hand-out\n"),
            ("scrub_state", "scrubbing\n"),
            ("scrub_progress", "2097152 1073741824\n"),
        ] {
            fs::write(attributes.join(name), text).unwrap();
        }
        let scrub = Scrub {
            policy: Policy::HandOut,
            stage: Stage::Scrubbing,
            progress: Progress {
                done: 2 << 20,
                total: 1 << 30,
            },
        };
        assert_eq!(Scrub::of(device.path()), Some(scrub));
        fs::write(attributes.join("scrub_state"), "sleeping\n").unwrap();
        assert_eq!(Scrub::of(device.path()), None);
    }
}
