// SPDX-License-Identifier: GPL-2.0

//! `daxdmem set`: changes what was chosen for devices.

use super::{begin, find, warn, Named};
use crate::bus::Device;
use crate::cli::SetArgs;
use crate::error::{Error, Result};
use crate::journal::{Group, Operation, Set, SetAll};
use crate::link::Links;
use crate::name::PartName;
use crate::repair::{finish, set_rest};
use crate::settings::Settings;
use crate::store::Store;
use crate::terminal::done;

/// Runs it.
pub fn run(args: &SetArgs, links: &Links) -> Result<()> {
    let mut store = begin("set", links)?;
    let mut changes = Vec::new();
    for (device, name) in find(&args.target, store.state())? {
        let settings = store.state().settings(name.as_ref(), &device.identity());
        let settings = settings.unwrap_or_default();
        let settings = settings.with(&args.settings, device.access)?;
        // A policy that nobody would follow.
        if args.settings.scrub.is_some() && device.is_page_less() && device.scrub.is_none() {
            return Err(Error::OldDriver);
        }
        changes.push((device, name, settings));
    }
    set_all(&mut store, links, &changes)
}

/// Changes what was chosen for devices, of one guest where there are several.
pub fn set_all(
    store: &mut Store,
    links: &Links,
    changes: &[(Device, Option<PartName>, Settings)],
) -> Result<()> {
    if let Some((device, ..)) = changes.iter().find(|(device, ..)| device.is_vacant()) {
        return Err(Error::Vacant {
            device: device.name,
        });
    }
    let set = |(device, name, settings): &(Device, Option<PartName>, Settings)| Set {
        device: device.identity(),
        name: name.clone(),
        settings: *settings,
    };
    let sets: Vec<Set> = changes.iter().map(set).collect();
    if let [(_, Some(name), _), _, ..] = changes {
        let group = Group::Set(SetAll {
            guest: name.guest.clone(),
            sets: sets.clone(),
        });
        store.update(|state| state.group = Some(group))?;
    }
    for entry in sets {
        store.begin(Operation::Set(entry.clone()))?;
        let set = set_rest(store, &entry).map(drop);
        set.or_else(|error| finish(store, links, error))?;
    }
    store.update(|state| state.group = None)?;
    for (device, name, settings) in changes {
        let named = Named(name, device);
        let access = settings.access.or(device.access);
        let access = access.map_or(String::new(), |access| format!(", {access}"));
        done(&format!("{named}: scrub {}{access}", settings.scrub));
        warn(&named, settings);
    }
    Ok(())
}
