// SPDX-License-Identifier: GPL-2.0

//! `daxdmem unbind`: takes a device away from its driver. Its memory and its name stay.
//!
//! Needs no journal: a device's name leaves the driver's list first, and unbinding it is one step.

use super::{begin, find, Named};
use crate::bus::Device;
use crate::change;
use crate::cli::UnbindArgs;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::link::Links;
use crate::repair::may_go;
use crate::size::Size;
use crate::terminal::{done, note};
use crate::wait;

/// Runs it.
pub fn run(args: &UnbindArgs, links: &Links) -> Result<()> {
    let store = begin("unbind", links)?;
    let found = find(&args.target, store.state())?;
    for (device, name) in found.iter().filter(|(device, _)| device.driver.is_some()) {
        may_go(device, &Named(name, device), args.force)?;
    }
    let mut last: Option<Named<'_>> = None;
    for (device, name) in &found {
        let named = Named(name, device);
        unbind(device, &named).map_err(|error| match &last {
            None => error,
            Some(last) => Error::LeftBehind {
                error: Box::new(error),
                what: format!("{last} is unbound already, {named} stays"),
            },
        })?;
        last = Some(named);
    }
    Ok(())
}

fn unbind(device: &Device, named: &Named<'_>) -> Result<()> {
    if device.driver.is_none() {
        note(&format!("{named} is not bound"));
        return Ok(());
    }
    change::unbind(&device.identity())?;
    done(&format!("{named}: unbound"));
    let ranges = device.ranges.as_deref().unwrap_or_default();
    for held in Driver::quarantine_of(ranges) {
        note(&format!("{} is in quarantine {}", held.range, held.end()));
    }
    if let Some(progress) = wait::under_way(ranges) {
        note(&format!(
            "its contents go: {} are being scrubbed in the background",
            Size(progress.total)
        ));
    }
    Ok(())
}
