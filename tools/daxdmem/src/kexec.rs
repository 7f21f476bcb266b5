// SPDX-License-Identifier: GPL-2.0

//! Guests that outlive the host's kernel: their memory stays where it is while kexec brings up another one.
//!
//! `kexec-prepare` writes a [`record`] of what is to be kept and has the kernel load the next one, with a token on its
//! command line. The first `apply` after the kexec uses the record up: what it names is bound without a scrub, once, and
//! only if all of it still holds, the memory itself included ([`sample`]). Whatever does not is handed out as all memory
//! is of which nothing is known: scrubbed.
//!
//! The driver needs to know nothing of this. A device that is kept is bound with policy `never`, looked at, and given its
//! guest's policy; until then it is root's alone.

use std::collections::BTreeSet;
use std::path::Path;

use crate::access::Access;
use crate::bus::{Identity, Range};
use crate::change;
use crate::error::{Error, Result};
use crate::layout::plan::Step;
use crate::name::{GuestName, PartName};
use crate::scrub::Policy;
use crate::settings::Settings;
use crate::store::Store;
use crate::terminal::{done, note};

pub mod command_line;
pub mod error;
pub mod record;
pub mod sample;

use record::{Now, Record};
use sample::Sample;

/// Verbs that change no device, or look after the record themselves.
const HARMLESS: [&str; 3] = ["apply", "kexec-prepare", "save"];

/// What binds a device without a scrub: that its memory is this.
#[derive(Debug, Clone)]
pub struct Seal {
    /// The token of the record, from which it follows where to look.
    pub token: String,
    /// What has to be there.
    pub memory: Sample,
}

/// Forgets what was to be kept, as `verb` may change whose memory is whose.
pub fn revoke_for(verb: &str) -> Result<()> {
    match HARMLESS.contains(&verb) {
        true => Ok(()),
        false => revoke(),
    }
}

/// Forgets what was to be kept, as devices are changed.
pub fn revoke() -> Result<()> {
    let path = Path::new(Record::FILE);
    // Most of the time there is nothing to be removed.
    if path.exists() && Record::forget(path)? {
        note(
            "no guest is kept over a kexec any more, as devices are changed: `daxdmem kexec-prepare` prepares it anew",
        );
    }
    Ok(())
}

/// Takes the record of what is to be kept, which is gone then: whatever comes of it, it is used once.
///
/// `None` where there is none, or none that holds now.
pub fn take(layout: &Path) -> Option<Record> {
    let path = Path::new(Record::FILE);
    if !path.exists() {
        return None;
    }
    let now = Now::read(layout);
    let read = Record::read(path);
    if read.as_ref().is_ok_and(|record| record.boot == now.boot) {
        // It is for the next kernel.
        return None;
    }
    let used = |record: Record| {
        record.holds(&now)?;
        now.use_up(Path::new(Store::DIR), &record)?;
        Ok(record)
    };
    // Gone from the disk before anything is handed out.
    let taken = match Record::forget(path) {
        Ok(_) => read.and_then(used),
        Err(error) => {
            note(&error.to_string());
            return None;
        }
    };
    match taken {
        Ok(record) => Some(record),
        Err(refusal) => {
            note(&format!(
                "no guest is kept over the kexec, all memory is scrubbed: {refusal}"
            ));
            None
        }
    }
}

/// Seals the plans of the guests that are kept.
pub fn seal(steps: &mut [Step], record: &Record) {
    let mut missing: BTreeSet<&GuestName> = record.devices.keys().map(|part| &part.guest).collect();
    for step in steps.iter_mut().filter(|step| step.is_made()) {
        if !missing.remove(&step.name) {
            continue;
        }
        let kept = record.of_guest(&step.name, &step.plans);
        match kept {
            Ok(samples) => {
                for (plan, memory) in step.plans.iter_mut().zip(samples) {
                    plan.keep = Some(Seal {
                        token: record.token.clone(),
                        memory,
                    });
                }
            }
            Err(refusal) => note(&format!("{} is scrubbed, not kept: {refusal}", step.name)),
        }
    }
    for name in missing {
        note(&format!("{name} is not kept: it is not made now"));
    }
}

/// Binds a device whose memory is to be kept: as it is, if it is what the seal says, else as any other.
pub fn bind(
    device: &Identity,
    name: &PartName,
    seal: &Seal,
    ranges: &[Range],
    settings: &Settings,
) -> Result<()> {
    change::set_access(device, Access::ROOT)?;
    change::bind(device, Policy::Never)?;
    change::expect_ranges(device, ranges)?;
    let found = sample::of(device, ranges, name, &seal.token);
    let same = match &found {
        Ok(found) => *found == seal.memory,
        Err(error) => {
            note(&error.to_string());
            false
        }
    };
    if same {
        change::set_policy(device, settings.scrub)?;
        done(&format!(
            "{name}: its memory is kept as it was before the kexec"
        ));
    } else {
        note(&format!(
            "{name} is scrubbed, not kept: its memory is not what it was"
        ));
        change::unbind(device)?;
    }
    if let Some(access) = settings.access {
        change::set_access(device, access)?;
    }
    match same {
        true => Ok(()),
        false => change::bind(device, settings.scrub),
    }
}

/// An error of a file of this, by what was done with it.
fn failed(doing: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    Error::kernel(format!("cannot {doing} {}", path.display()))
}
