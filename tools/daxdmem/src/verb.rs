// SPDX-License-Identifier: GPL-2.0

//! The commands. Each file is one verb; what they have in common is here.

use std::fmt;
use std::path::Path;

use crate::bus::{Bus, Device, Range};
use crate::change::{self, read as bus};
use crate::driver::Driver;
use crate::error::{Error, Result, VerbError};
use crate::kexec;
use crate::land::Land;
use crate::layout;
use crate::link::Links;
use crate::name::{GuestName, PartName, Target};
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
pub mod kexec_prepare;
pub mod libvirt_setup;
pub mod libvirt_xml;
pub mod list;
pub mod mode;
pub mod poison;
pub mod qemu_args;
pub mod rename;
pub mod reserve;
pub mod resize;
pub mod save;
pub mod set;
pub mod show;
pub mod stats;
pub mod top;
pub mod unbind;

/// Whether the caller is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Begins a verb that changes the host: takes the lock and ends what an earlier run left behind.
fn begin(verb: &'static str, links: &Links) -> Result<Store> {
    let (store, _) = start(verb, links)?;
    tell_of_poison(store.state());
    Ok(store)
}

/// Begins a verb that may give memory to somebody: as [`begin`], and an error where it is not known which is bad.
fn begin_giving(verb: &'static str, links: &Links) -> Result<Store> {
    begin_on_land(verb, links).map(|(store, _)| store)
}

/// As [`begin_giving`], for verbs that look for a place for a device.
fn begin_on_land(verb: &'static str, links: &Links) -> Result<(Store, Land)> {
    let (store, land) = start(verb, links)?;
    share_poison(store.state())?;
    Ok((store, land))
}

fn start(verb: &'static str, links: &Links) -> Result<(Store, Land)> {
    if !is_root() {
        return Err(Error::NotRoot { verb });
    }
    let mut store = Store::lock(Path::new(Store::DIR), || {
        note("waiting for another daxdmem to end")
    })?;
    let (told, land) = repair::repair_at_a_glance(&mut store, links)?;
    for line in told {
        note(&line);
    }
    kexec::revoke_for(verb)?;
    Ok((store, land))
}

/// Brings the driver and the record of poison together, and says what came of it.
fn share_poison(state: &State) -> Result<()> {
    crate::poison::sync(state)?
        .iter()
        .for_each(|line| note(line));
    Ok(())
}

/// As [`share_poison`]; what stands in the way is no reason not to go on.
fn tell_of_poison(state: &State) {
    if let Err(error) = share_poison(state) {
        note(&error.to_string());
    }
}

/// Sees that a driver is there that scrubs, and that it knows which memory is bad.
fn need_driver(store: &Store) -> Result<()> {
    let loaded = Driver::is_loaded();
    Driver::load().map_err(|said| Error::NoDriver { said })?;
    if !Driver::scrubs() {
        return Err(Error::OldDriver);
    }
    match loaded {
        true => Ok(()),
        false => share_poison(store.state()),
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
fn look(links: &Links) -> Result<(Option<State>, Bus)> {
    let dir = Path::new(Store::DIR);
    if !is_root() {
        return Ok((None, bus()?));
    }
    // A running daxdmem is not an interrupted one.
    let Some(mut store) = Store::try_lock(dir)? else {
        return Ok((Some(Store::peek(dir)?), bus()?));
    };
    let (told, now) = repair::repair(&mut store, links)?;
    for line in told {
        note(&line);
    }
    tell_of_poison(store.state());
    Ok((Some(store.state().clone()), now))
}

/// The guests as the links show them, for who may not read the state.
fn guests_by_links(links: &Links, bus: &Bus) -> State {
    let named = links.names().into_iter();
    let guest = |device: &Device| Record {
        device: device.identity(),
        ranges: device.ranges.clone().unwrap_or_default(),
        settings: Settings::default(),
    };
    let guests = named.filter_map(|(device, name)| Some((name, guest(bus.device(device)?))));
    State::of_guests(guests.collect())
}

/// Says so where there is poison in a device that is put to use.
fn warn_of_poison(named: &str, ranges: &[Range]) {
    let pages = crate::poison::visible().unwrap_or_default().within(ranges);
    if !pages.is_empty() {
        note(&format!(
            "{named} has {pages} of 4K that failed: who touches them gets SIGBUS. Destroyed and created, it is placed \
             around them"
        ));
    }
}

/// Sees that nobody uses a device, and that it is with a driver that gives it away at once.
fn idle(device: &Device, named: &str) -> Result<()> {
    match repair::may_go(device, &named, false) {
        Err(Error::InUse { target, users }) => Err(VerbError::Busy { target, users }.into()),
        result => result,
    }
}

/// As [`resolve`], of which nothing else is read.
fn find(target: &Target, state: &State) -> Result<Vec<(Device, Option<PartName>)>> {
    let now = match target {
        Target::Device(name) => change::read_these(&[*name])?,
        Target::Guest(name) => change::read_parts(&state.named(name)?)?,
    };
    let found = resolve(target, state, &now)?.into_iter();
    Ok(found.map(|(device, name)| (device.clone(), name)).collect())
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
            let found = |(part, guest): (PartName, Record)| match repair::recorded(bus, &guest) {
                Some(device) => Ok((device, Some(part))),
                None => Err(Error::Gone {
                    name: part,
                    device: guest.device.device,
                }),
            };
            state.named(name)?.into_iter().map(found).collect()
        }
    }
}

/// Says so where the layout declares a guest that was changed otherwise: the next apply brings back what is declared.
fn remind_of_layout(name: &GuestName) {
    let declared = layout::file::read(Path::new(layout::FILE)).unwrap_or_default();
    if declared.iter().any(|wanted| wanted.name == *name) {
        note(&format!(
            "{} still declares {name} as it was: change it there, or `daxdmem save` writes what there is now",
            layout::FILE
        ));
    }
}

/// Of the devices that a command names the one; an error where there are several.
fn one<D>(target: &Target, mut found: Vec<(D, Option<PartName>)>) -> Result<(D, Option<PartName>)> {
    match (found.pop(), found.is_empty()) {
        (Some(last), true) => Ok(last),
        (last, _) => {
            let names = found.iter().chain(&last);
            let names = names.filter_map(|(_, name)| Some(name.as_ref()?.to_string()));
            Err(Error::from(VerbError::Several {
                target: target.clone(),
                parts: names.collect::<Vec<_>>().join(", "),
            }))
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
