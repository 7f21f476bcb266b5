// SPDX-License-Identifier: GPL-2.0

//! Settings of the whole host that are changed for a moment and put back, and modules that are loaded.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sysfs;

/// A setting of the host: where it is, and what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knob {
    /// The attribute.
    pub path: PathBuf,
    /// Its text before.
    pub value: String,
}

/// Whether a driver that is loaded looks for devices at once. kmem and device_dax take every device that suits them and
/// that nobody has bound: those that an operator has unbound too.
const AUTOPROBE: &str = "/sys/bus/dax/drivers_autoprobe";

/// What becomes of memory blocks that are added. Debian's default puts them where the kernel keeps its own data, which
/// never comes back.
const AUTO_ONLINE: &str = "/sys/devices/system/memory/auto_online_blocks";

/// The settings that [`prepare`] changes, as they are.
pub fn knobs() -> Vec<Knob> {
    let knob = |path: &str| {
        let path = PathBuf::from(path);
        let value = sysfs::text(&path)?;
        Some(Knob { path, value })
    };
    [AUTOPROBE, AUTO_ONLINE]
        .into_iter()
        .filter_map(knob)
        .collect()
}

/// Has drivers leave devices alone until they are told, and memory that is added go where it can be taken back from.
/// Undone by [`put_back`].
pub fn prepare() -> Result<()> {
    for (path, value) in [(AUTOPROBE, "0"), (AUTO_ONLINE, "online_movable")] {
        turn(Path::new(path), value)?;
    }
    Ok(())
}

/// Puts settings back to what they were.
pub fn put_back(knobs: &[Knob]) -> Result<()> {
    knobs
        .iter()
        .try_for_each(|knob| turn(&knob.path, &knob.value))
}

fn turn(path: &Path, value: &str) -> Result<()> {
    match sysfs::write(path, value) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::kernel(format!(
            "cannot write {value} to {}",
            path.display()
        ))(error)),
        _ => Ok(()),
    }
}

/// Loads a module, by its name: what is blacklisted is kept from loading by itself only. Returns what modprobe had to
/// say where it failed.
pub fn load(module: &str) -> Result<(), String> {
    let run = Command::new("modprobe")
        .arg(module)
        .stdin(Stdio::null())
        .output();
    match run {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            match said.is_empty() {
                true => Err(format!("modprobe {module}: {}", output.status)),
                false => Err(said),
            }
        }
        Err(error) => Err(format!("cannot run modprobe: {error}")),
    }
}
