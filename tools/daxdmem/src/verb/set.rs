// SPDX-License-Identifier: GPL-2.0

//! `daxdmem set`: changes what was chosen for a device.

use super::{begin, bus, resolve, undo, warn, Named};
use crate::cli::SetArgs;
use crate::error::{Error, Result};
use crate::journal::{Operation, Set};
use crate::link::Links;
use crate::repair::set_rest;
use crate::terminal::done;

/// Runs it.
pub fn run(args: &SetArgs, links: &Links) -> Result<()> {
    let mut store = begin("set", links)?;
    let now = bus()?;
    let (device, name) = resolve(&args.target, store.state(), &now)?;
    if device.is_vacant() {
        return Err(Error::Vacant {
            device: device.name,
        });
    }
    // A policy that nobody would follow.
    if args.settings.scrub.is_some() && device.is_page_less() && device.scrub.is_none() {
        return Err(Error::OldDriver);
    }
    let settings = store.state().settings(name.as_ref(), &device.identity());
    let settings = settings.unwrap_or_default();
    let settings = settings.with(&args.settings, device.access)?;
    let entry = Set {
        device: device.identity(),
        name: name.clone(),
        settings,
    };
    store.update(|state| state.operation = Some(Operation::Set(entry.clone())))?;
    set_rest(&mut store, &entry).map_err(|error| undo(&mut store, links, error))?;

    let named = Named(&name, device);
    let access = settings.access.or(device.access);
    let access = access.map_or(String::new(), |access| format!(", {access}"));
    done(&format!("{named}: scrub {}{access}", settings.scrub));
    warn(&named, &settings);
    Ok(())
}
