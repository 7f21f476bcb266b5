// SPDX-License-Identifier: GPL-2.0

//! `daxdmem bind`: makes an existing device page-less.

use super::{begin, bus, need_driver, resolve, undo, warn, Named};
use crate::bus::Device;
use crate::change;
use crate::cli::BindArgs;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::journal::{Bind, Operation};
use crate::link::Links;
use crate::settings::Settings;
use crate::terminal::{done, note};
use crate::wait;

/// Runs it.
pub fn run(args: &BindArgs, links: &Links) -> Result<()> {
    let mut store = begin("bind", links)?;
    let now = bus()?;
    let (device, name) = resolve(&args.target, store.state(), &now)?;
    let named = Named(&name, device).to_string();
    let identity = device.identity();
    if device.is_page_less() {
        if args.settings.is_any() {
            return Err(Error::Bound {
                target: args.target.clone(),
            });
        }
        note(&format!("{named} is page-less already"));
    } else {
        check(device)?;
        let before = store.state().settings(name.as_ref(), &identity);
        let settings = before.unwrap_or_default();
        let settings = settings.with(&args.settings, device.access)?;
        need_driver()?;
        let entry = Bind {
            device: identity.clone(),
            name: name.clone(),
            settings,
            before: device.access,
        };
        store.update(|state| state.operation = Some(Operation::Bind(entry)))?;
        let bound = make(device, &settings).and_then(|()| {
            store.update(|state| {
                if before.is_some() || args.settings.is_any() {
                    state.keep(name.as_ref(), device, settings);
                }
                state.operation = None;
            })
        });
        bound.map_err(|error| undo(&mut store, links, error))?;
        done(&format!("{named}: page-less"));
        warn(&named, &settings);
    }
    drop(store);
    match args.wait.no_wait {
        true => Ok(()),
        false => wait::for_device(&named, &identity),
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
    let held = Driver::quarantine()
        .into_iter()
        .find(|held| ranges.iter().any(|range| range.overlaps(held.range)));
    match held {
        Some(held) => Err(Error::Quarantined {
            device: device.name,
            range: held.range,
            by: held.device,
            openers: held.openers,
        }),
        None => Ok(()),
    }
}
