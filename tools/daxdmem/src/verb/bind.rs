// SPDX-License-Identifier: GPL-2.0

//! `daxdmem bind`: makes an existing device page-less.

use super::{begin, bus, resolve, undo, Named};
use crate::bus::Device;
use crate::change;
use crate::cli::BindArgs;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::journal::{Bind, Operation};
use crate::link::Links;
use crate::terminal::{done, note};

/// Runs it.
pub fn run(args: &BindArgs, links: &Links) -> Result<()> {
    let mut store = begin("bind", links)?;
    let now = bus()?;
    let (device, name) = resolve(&args.target, store.state(), &now)?;
    if device.is_page_less() {
        note(&format!("{} is page-less already", Named(&name, device)));
        return Ok(());
    }
    check(device)?;
    Driver::load().map_err(|said| Error::NoDriver { said })?;

    let identity = device.identity();
    store.update(|state| {
        state.operation = Some(Operation::Bind(Bind {
            device: identity.clone(),
        }))
    })?;
    change::bind(&identity).map_err(|error| undo(&mut store, links, error))?;
    store.update(|state| state.operation = None)?;
    done(&format!("{}: page-less", Named(&name, device)));
    Ok(())
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
