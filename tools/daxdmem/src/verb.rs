// SPDX-License-Identifier: GPL-2.0

//! The commands. Each file is one verb; what they have in common is here.

use std::fmt;
use std::path::Path;

use crate::bus::{Bus, Device};
use crate::change::read as bus;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::link::Links;
use crate::name::{PartName, Target};
use crate::repair::{self, guest_of};
use crate::scrub::Policy;
use crate::settings::Settings;
use crate::store::{Record, State, Store};
use crate::terminal::note;

pub mod apply;
pub mod bind;
pub mod check;
pub mod completion;
pub mod create;
pub mod destroy;
pub mod libvirt_setup;
pub mod libvirt_xml;
pub mod list;
pub mod qemu_args;
pub mod reserve;
pub mod save;
pub mod set;
pub mod unbind;

/// Whether the caller is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Begins a verb that changes the host: takes the lock and ends what an earlier run left behind.
fn begin(verb: &'static str, links: &Links) -> Result<Store> {
    if !is_root() {
        return Err(Error::NotRoot { verb });
    }
    let mut store = Store::lock(Path::new(Store::DIR), || {
        note("waiting for another daxdmem to end")
    })?;
    for line in repair::repair(&mut store, links)? {
        note(&line);
    }
    Ok(store)
}

/// Sees that a driver is there that scrubs.
fn need_driver() -> Result<()> {
    Driver::load().map_err(|said| Error::NoDriver { said })?;
    match Driver::scrubs() {
        true => Ok(()),
        false => Err(Error::OldDriver),
    }
}

/// Says what the operator may not have meant.
fn warn(target: &impl fmt::Display, settings: &Settings) {
    if settings.scrub == Policy::Never {
        note(&format!(
            "{target} is never scrubbed: it shows what others left in its memory, and others may see what it leaves"
        ));
    }
    if let Some(access) = settings.access.filter(|access| access.is_open_to_all()) {
        note(&format!(
            "every user of this host may open {target}: its mode is {}",
            access.mode
        ));
    }
}

/// Begins a verb that only looks: ends what an earlier run left behind, as far as the caller may. `None` where the
/// caller may not read the state.
fn look(links: &Links) -> Result<Option<State>> {
    let dir = Path::new(Store::DIR);
    if !is_root() {
        return Ok(None);
    }
    // A running daxdmem is not an interrupted one.
    let Some(mut store) = Store::try_lock(dir)? else {
        return Store::peek(dir).map(Some);
    };
    for line in repair::repair(&mut store, links)? {
        note(&line);
    }
    Ok(Some(store.state().clone()))
}

/// The devices that a command names, each with the name that its guest gives it if it has one.
fn resolve<'b>(
    target: &Target,
    state: &State,
    bus: &'b Bus,
) -> Result<Vec<(&'b Device, Option<PartName>)>> {
    match target {
        Target::Device(name) => {
            let device = bus
                .device(*name)
                .ok_or(Error::UnknownDevice { device: *name })?;
            Ok(vec![(device, guest_of(device, state, bus))])
        }
        Target::Guest(name) => {
            let found = |(part, guest): (PartName, Record)| {
                let device = bus
                    .same(&guest.device)
                    .filter(|_| repair::is_there(bus, &guest));
                match device {
                    Some(device) => Ok((device, Some(part))),
                    None => Err(Error::Gone {
                        name: part,
                        device: guest.device.device,
                    }),
                }
            };
            state.named(name)?.into_iter().map(found).collect()
        }
    }
}

/// `name (daxX.Y)`, or the device alone.
struct Named<'a>(&'a Option<PartName>, &'a Device);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "{name} ({})", self.1.name),
            None => self.1.name.fmt(f),
        }
    }
}
