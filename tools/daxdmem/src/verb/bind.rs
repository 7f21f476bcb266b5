// SPDX-License-Identifier: GPL-2.0

//! `daxdmem bind`: makes existing devices page-less.

use super::{begin_giving, find, need_driver, warn, warn_of_poison, Named};
use crate::bus::Device;
use crate::change;
use crate::cli::{BindArgs, SettingsArgs};
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::journal::{Bind, Operation};
use crate::link::Links;
use crate::name::PartName;
use crate::repair::finish;
use crate::settings::Settings;
use crate::store::Store;
use crate::terminal::{done, note};
use crate::wait;

/// Runs it.
pub fn run(args: &BindArgs, links: &Links) -> Result<()> {
    let mut store = begin_giving("bind", links)?;
    let found = find(&args.target, store.state())?;
    for (device, _) in &found {
        match device.is_page_less() {
            true if args.settings.is_any() => {
                return Err(Error::Bound {
                    target: args.target.clone(),
                })
            }
            true => {}
            false => check(device)?,
        }
    }
    let mut bound: Vec<Bound<'_>> = Vec::new();
    for (device, name) in &found {
        let before = store.state().settings(name.as_ref(), &device.identity());
        match bind(&mut store, links, &args.settings, device, name) {
            Ok(false) => {}
            Ok(true) => bound.push((device, name, before)),
            Err(error) => return Err(take_back(&mut store, error, &bound)),
        }
    }
    drop(store);
    if !args.wait.no_wait {
        for (device, name) in &found {
            wait::for_device(&Named(name, device).to_string(), &device.identity())?;
        }
    }
    Ok(())
}

/// Binds a device as was chosen for it. Returns whether there was something to do.
pub fn bind(
    store: &mut Store,
    links: &Links,
    chosen: &SettingsArgs,
    device: &Device,
    name: &Option<PartName>,
) -> Result<bool> {
    let named = Named(name, device).to_string();
    let identity = device.identity();
    if device.is_page_less() {
        note(&format!("{named} is page-less already"));
        return Ok(false);
    }
    let before = store.state().settings(name.as_ref(), &identity);
    let settings = before.unwrap_or_default();
    let settings = settings.with(chosen, device.access)?;
    need_driver(store)?;
    let entry = Bind {
        device: identity,
        name: name.clone(),
        settings,
        before: device.access,
    };
    store.begin(Operation::Bind(entry))?;
    let bound = make(device, &settings).and_then(|()| {
        store.update(|state| {
            if before.is_some() || chosen.is_any() {
                state.keep(name.as_ref(), device, settings);
            }
            state.operation = None;
        })
    });
    bound.or_else(|error| finish(store, links, error))?;
    done(&format!("{named}: page-less"));
    warn(&named, &settings);
    warn_of_poison(&named, device.ranges.as_deref().unwrap_or_default());
    Ok(true)
}

/// A device that was bound, and what had been chosen for it.
type Bound<'a> = (&'a Device, &'a Option<PartName>, Option<Settings>);

/// Unbinds those of a guest's devices that were bound before another one could not be.
fn take_back(store: &mut Store, error: Error, bound: &[Bound<'_>]) -> Error {
    let undone = bound.iter().try_for_each(|(device, name, before)| {
        change::unbind(&device.identity())?;
        if let Some(access) = device.access {
            change::set_access(&device.identity(), access)?;
        }
        store.update(|state| match before {
            Some(before) => state.keep(name.as_ref(), device, *before),
            None => drop(state.devices.remove(&device.name)),
        })
    });
    match undone {
        Ok(()) => {
            for (device, ..) in bound {
                note(&format!("{}: unbound again", device.name));
            }
            error
        }
        Err(undo) => Error::LeftBehind {
            error: Box::new(error),
            what: undo.to_string(),
        },
    }
}

fn make(device: &Device, settings: &Settings) -> Result<()> {
    let identity = device.identity();
    if let Some(access) = settings.access {
        change::set_access(&identity, access)?;
    }
    change::bind(&identity, settings.scrub)
}

fn check(device: &Device) -> Result<()> {
    if device.is_vacant() {
        return Err(Error::Vacant {
            device: device.name,
        });
    }
    match device.driver.as_deref() {
        Some("kmem") => {
            return Err(Error::SystemRam {
                device: device.name,
            })
        }
        Some("device_dax") => {
            return Err(Error::OtherDriver {
                device: device.name,
                driver: "device_dax".to_owned(),
            })
        }
        Some(driver) => {
            return Err(Error::ForeignDriver {
                device: device.name,
                driver: driver.to_owned(),
            })
        }
        None => {}
    }
    let ranges = device.ranges.as_deref().unwrap_or_default();
    match Driver::quarantine_of(ranges).next() {
        Some(held) => Err(Error::Quarantined {
            device: device.name,
            held,
        }),
        None => Ok(()),
    }
}
