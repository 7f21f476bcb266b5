// SPDX-License-Identifier: GPL-2.0

//! Ends operations that were interrupted, by a kill or by an error: what [`crate::journal`] holds.
//!
//! Every step here looks at the host first, so it may itself be interrupted anywhere and be run again. A device in use
//! is not taken away from its users without having been told to; then the operation is ended the other way.

mod create;
mod destroy;
mod mode;
mod rename;
mod resize;

use std::fmt;

use crate::bus::{Bus, Device, Identity, Range};
use crate::change;
use crate::driver::{Driver, Quarantine};
use crate::error::{Error, Result};
use crate::journal::{Bind, CreateAll, Destroy, DestroyAll, Group, Operation, Set, Survey};
use crate::land::Land;
use crate::link::Links;
use crate::mode::Mode;
use crate::name::{DeviceName, GuestName, PartName};
use crate::scrub::Policy;
use crate::settings::Settings;
use crate::store::{Record, State, Store};
use crate::terminal::note;
use crate::users::Users;

pub use create::record;
pub use destroy::rest as destroy_rest;
pub use mode::end as end_mode;
pub use rename::rest as rename_rest;

/// How an interrupted operation ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// A survey's device is gone again.
    SurveyUndone,
    /// A guest is not there, as before.
    CreateUndone(PartName),
    /// A guest is there: somebody uses its device already.
    CreateDone(PartName, DeviceName),
    /// A guest is gone.
    DestroyDone(PartName),
    /// A guest is there, as before: somebody uses its device.
    DestroyUndone(PartName, String),
    /// A device is bound, or not.
    Bind(DeviceName, bool),
    /// What was chosen for a device holds, or the device is gone.
    Set(DeviceName, bool),
    /// A device of a guest that is not whole stays: somebody uses it.
    Stays(PartName, String),
    /// A guest has its new name.
    Renamed(GuestName, GuestName),
    /// A guest has its new size, or as before.
    Resized(PartName, bool),
    /// A guest has its new size or as before, and its device is not bound.
    ResizeLeft(PartName, String),
    /// A device is used as it was to be, or as before.
    Mode(DeviceName, bool),
    /// A device is used as neither.
    ModeLeft(DeviceName, String),
    /// Another program has changed the device: it stays as it is, without a name.
    LeftAlone(PartName, DeviceName, String),
}

impl Ended {
    /// Whether something is neither as it was nor as it was to be.
    pub fn leaves_something(&self) -> bool {
        matches!(
            self,
            Ended::CreateDone(..)
                | Ended::LeftAlone(..)
                | Ended::ModeLeft(..)
                | Ended::ResizeLeft(..)
                | Ended::Stays(..)
        )
    }

    /// Whether it is as it was to be, of what is not simply undone.
    fn is_done(&self) -> bool {
        matches!(
            self,
            Ended::DestroyDone(..)
                | Ended::Bind(_, true)
                | Ended::Set(_, true)
                | Ended::Renamed(..)
                | Ended::Resized(_, true)
                | Ended::Mode(_, true)
        )
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::SurveyUndone => write!(f, "a look at a region was interrupted: undone"),
            Ended::CreateUndone(name) => {
                write!(f, "create {name} was interrupted: undone, create it again")
            }
            Ended::CreateDone(name, device) => {
                write!(
                    f,
                    "create {name} was interrupted, and {device} is in use already: completed"
                )
            }
            Ended::DestroyDone(name) => write!(f, "destroy {name} was interrupted: completed"),
            Ended::DestroyUndone(name, why) => {
                write!(f, "destroy {name} was interrupted: undone, since {why}")
            }
            Ended::Bind(device, true) => write!(f, "bind {device} was interrupted: it is bound"),
            Ended::Bind(device, false) => {
                write!(f, "bind {device} was interrupted: it is not bound")
            }
            Ended::Set(device, true) => write!(f, "set {device} was interrupted: completed"),
            Ended::Set(device, false) => {
                write!(f, "set {device} was interrupted, and {device} is gone")
            }
            Ended::Stays(name, why) => {
                write!(
                    f,
                    "{name} stays, without the guest's other devices, since {why}"
                )
            }
            Ended::Renamed(from, to) => write!(f, "rename {from} {to} was interrupted: completed"),
            Ended::Resized(name, true) => write!(f, "resize {name} was interrupted: completed"),
            Ended::Resized(name, false) => write!(f, "resize {name} was interrupted: undone"),
            Ended::ResizeLeft(name, what) => write!(f, "resize {name} was interrupted: {what}"),
            Ended::Mode(device, true) => write!(f, "mode {device} was interrupted: completed"),
            Ended::Mode(device, false) => write!(f, "mode {device} was interrupted: undone"),
            Ended::ModeLeft(device, what) => write!(f, "mode {device} was interrupted: {what}"),
            Ended::LeftAlone(name, device, why) => {
                write!(f, "an operation on {name} was interrupted, then {why}: {device} stays as it is, without a name")
            }
        }
    }
}

/// Ends the interrupted operation, if there is one, and puts links and nodes right. Returns what there is to tell, and
/// the bus.
pub fn repair(store: &mut Store, links: &Links) -> Result<(Vec<String>, Bus)> {
    let mut told = end_interrupted(store, links)?;
    let mut bus = change::read()?;
    let right = put_right(store, links, &bus)?;
    if !right.is_empty() {
        bus = change::read()?;
    }
    told.extend(right);
    Ok((told, bus))
}

/// As [`repair`], but links and nodes are looked at one by one only where it shows at a glance that something is amiss: a
/// link is missing, or a device is not the one it was. Returns who has what, too.
pub fn repair_at_a_glance(store: &mut Store, links: &Links) -> Result<(Vec<String>, Land)> {
    let mut told = end_interrupted(store, links)?;
    let land = change::survey(store.state())?;
    let guests = &store.state().guests;
    if land.guests() != guests.len() || links.count() < guests.len() {
        told.extend(put_right(store, links, &change::read()?)?);
    }
    Ok((told, land))
}

/// Ends the interrupted operation, if there is one.
fn end_interrupted(store: &mut Store, links: &Links) -> Result<Vec<String>> {
    links.tidy();
    let State {
        operation, group, ..
    } = store.state();
    let running = group.as_ref().map(ToString::to_string);
    let running = running.or_else(|| operation.as_ref().map(ToString::to_string));
    let ended = end_all(store, links).map_err(|error| Error::Unrepaired {
        operation: running.unwrap_or_default(),
        error: Box::new(error),
    })?;
    Ok(ended.iter().map(ToString::to_string).collect())
}

/// Puts links and nodes right.
fn put_right(store: &mut Store, links: &Links, bus: &Bus) -> Result<Vec<String>> {
    let mut told = Vec::new();
    for (name, guest) in &store.state().guests {
        let device = guest.device.device;
        if is_there(bus, guest) {
            if links.set(name, device)? {
                told.push(format!(
                    "the link {} was missing or wrong: put right",
                    links.path(name).display()
                ));
            }
        } else if links.remove(name)? {
            told.push(format!(
                "{device} is not {name}'s any more: the link {} is removed",
                links.path(name).display()
            ));
        }
    }
    // What was chosen for a device holds for no other one.
    store.update(|state| state.devices.retain(|_, record| is_there(bus, record)))?;
    let state = store.state();
    for record in state.guests.values().chain(state.devices.values()) {
        told.extend(put_node_right(bus, record)?);
    }
    Ok(told)
}

/// Gives a device's node back the owner and mode that were chosen, and tells if it had others.
fn put_node_right(bus: &Bus, record: &Record) -> Result<Option<String>> {
    let found = recorded(bus, record).and_then(|device| device.access);
    let (Some(chosen), Some(found)) = (record.settings.access, found) else {
        return Ok(None);
    };
    if chosen == found || !change::set_access(&record.device, chosen)? {
        return Ok(None);
    }
    let device = record.device.device;
    Ok(Some(format!(
        "/dev/{device} was {found}: made {chosen} again; `daxdmem set {device} --owner` changes that for good"
    )))
}

/// Has a device used as `mode` says. Where that fails, and some of its memory is in quarantine, it stays unbound: what
/// is. Nothing can be done before that ends, and everything else has to go on.
fn attach_unless_held(
    identity: &Identity,
    mode: &Mode,
    policy: Policy,
    ranges: &[Range],
) -> Result<Option<Quarantine>> {
    match change::attach(identity, mode, policy) {
        Ok(()) => Ok(None),
        Err(error) => match Driver::quarantine_of(ranges).next() {
            None => Err(error),
            held => Ok(held),
        },
    }
}

/// The device that was recorded, if it is still the one.
pub fn recorded<'b>(bus: &'b Bus, record: &Record) -> Option<&'b Device> {
    bus.same(&record.device)
        .filter(|device| record.is(&record.device, device.ranges.as_deref()))
}

/// Whether a device is still the one that was recorded.
pub fn is_there(bus: &Bus, record: &Record) -> bool {
    recorded(bus, record).is_some()
}

/// Ends what is running, operation and group: undoes it or completes it.
pub fn end_all(store: &mut Store, links: &Links) -> Result<Vec<Ended>> {
    let mut ended = Vec::new();
    if let Some(operation) = store.state().operation.clone() {
        ended.push(end(store, links, &operation)?);
    }
    let Some(group) = store.state().group.clone() else {
        return Ok(ended);
    };
    match group {
        Group::Create(create) => {
            // Of the guest it is told as a whole, unless something of it stays.
            ended.retain(|ended| !matches!(ended, Ended::CreateUndone(_) | Ended::DestroyDone(_)));
            ended.extend(undo_create_all(store, links, &create)?);
        }
        Group::Destroy(destroy) => ended.extend(destroy_all_rest(store, links, &destroy)?),
        Group::Set(sets) => {
            for set in &sets.sets {
                ended.push(set_rest(store, set)?);
            }
        }
    }
    store.update(|state| state.group = None)?;
    Ok(ended)
}

/// Unmakes the devices of a guest that did not get all of them, but for those that somebody uses already.
fn undo_create_all(store: &mut Store, links: &Links, create: &CreateAll) -> Result<Vec<Ended>> {
    let rest = DestroyAll {
        guest: create.guest.clone(),
        force: false,
    };
    let ended = destroy_all_rest(store, links, &rest)?;
    let left = ended.into_iter().filter_map(|ended| match ended {
        Ended::DestroyDone(_) => None,
        Ended::DestroyUndone(name, why) => Some(Ended::Stays(name, why)),
        other => Some(other),
    });
    let mut ended: Vec<Ended> = left.collect();
    if ended.is_empty() {
        ended.push(Ended::CreateUndone(create.guest.clone().into()));
    }
    Ok(ended)
}

/// Does what is left to do of destroying a guest's devices.
fn destroy_all_rest(store: &mut Store, links: &Links, destroy: &DestroyAll) -> Result<Vec<Ended>> {
    let guest = destroy.guest.clone().into();
    let parts: Vec<PartName> = store
        .state()
        .parts(&guest)
        .map(|(part, _)| part.clone())
        .collect();
    let mut ended = Vec::new();
    for name in parts {
        let entry = Destroy {
            name,
            force: destroy.force,
        };
        store.begin(Operation::Destroy(entry.clone()))?;
        ended.push(destroy_rest(store, links, &entry)?);
    }
    Ok(ended)
}

/// The name that a guest gives this device, if it is still the one that was made for it.
pub fn guest_of(device: &Device, state: &State, bus: &Bus) -> Option<PartName> {
    let name = state.guest_of(device.name)?;
    state
        .guests
        .get(name)
        .filter(|guest| guest.device == device.identity() && is_there(bus, guest))?;
    Some(name.clone())
}

/// As [`undo`]. Where that has brought it to its end, what failed at first is a remark.
pub fn finish(store: &mut Store, links: &Links, error: Error) -> Result<()> {
    match end_all(store, links) {
        Ok(ended) if !ended.is_empty() && ended.iter().all(Ended::is_done) => {
            note(&format!("{error}\nTried once more, that went well"));
            Ok(())
        }
        ended => Err(undone(error, ended)),
    }
}

/// Ends what failed with `error` in the way that something interrupted is ended.
pub fn undo(store: &mut Store, links: &Links, error: Error) -> Error {
    let ended = end_all(store, links);
    undone(error, ended)
}

fn undone(error: Error, ended: Result<Vec<Ended>>) -> Error {
    match ended {
        Ok(ended) => {
            let left = ended.iter().find(|ended| ended.leaves_something());
            match left.map(ToString::to_string) {
                None => error,
                Some(what) => Error::LeftBehind {
                    error: Box::new(error),
                    what,
                },
            }
        }
        Err(undo) => Error::Unfinished {
            error: Box::new(error),
            undo: Box::new(undo),
        },
    }
}

/// Ends this operation: undoes it or completes it.
pub fn end(store: &mut Store, links: &Links, operation: &Operation) -> Result<Ended> {
    let ended = match operation {
        Operation::Survey(survey) => {
            undo_survey(survey)?;
            Ended::SurveyUndone
        }
        Operation::Create(create) => return create::undo(store, links, create),
        Operation::Destroy(destroy) => return destroy_rest(store, links, destroy),
        Operation::Bind(bind) => return end_bind(store, bind),
        Operation::Set(set) => return set_rest(store, set),
        Operation::Rename(rename) => return rename_rest(store, links, rename),
        Operation::Resize(resize) => return resize::end(store, resize),
        Operation::Mode(mode) => return end_mode(store, mode),
    };
    store.end()?;
    Ok(ended)
}

/// A device that is bound stays so, and what was chosen holds. One that is not gets its node back.
fn end_bind(store: &mut Store, bind: &Bind) -> Result<Ended> {
    let device = Device::again(&bind.device);
    let device = device.as_ref();
    change::forget_id(&bind.device)?;
    change::settle_policy(&bind.device)?;
    let bound = device.filter(|device| device.is_page_less());
    let access = match bound {
        Some(_) => bind.settings.access,
        None => device.and(bind.before),
    };
    if let Some(access) = access {
        change::set_access(&bind.device, access)?;
    }
    store.update(|state| {
        if let Some(device) = bound {
            let scrub = device.scrub.map(|scrub| scrub.policy);
            let settings = Settings {
                scrub: scrub.unwrap_or(bind.settings.scrub),
                ..bind.settings
            };
            state.keep(bind.name.as_ref(), device, settings);
        }
        state.operation = None;
    })?;
    Ok(Ended::Bind(bind.device.device, bound.is_some()))
}

/// Does what is left to do of changing what was chosen for a device.
pub fn set_rest(store: &mut Store, set: &Set) -> Result<Ended> {
    let device = Device::again(&set.device);
    let device = device.as_ref();
    if device.is_some() {
        change::set_policy(&set.device, set.settings.scrub)?;
        if let Some(access) = set.settings.access {
            change::set_access(&set.device, access)?;
        }
    }
    store.update(|state| {
        if let Some(device) = device {
            state.keep(set.name.as_ref(), device, set.settings);
        }
        state.operation = None;
    })?;
    Ok(Ended::Set(set.device.device, device.is_some()))
}

/// Deletes the device that a survey has added.
fn undo_survey(survey: &Survey) -> Result<()> {
    match change::newcomer(&survey.region, survey.newest)? {
        Some(device) => change::delete(&device.identity()),
        None => Ok(()),
    }
}

/// Takes a device from its driver, its memory from it, and deletes it; one that stays gets the given alignment, and is
/// root's again.
fn put_back(identity: &Identity, stays: Option<u64>) -> Result<()> {
    change::release(identity)?;
    let Some(align) = stays else {
        return change::delete(identity);
    };
    change::reset_access(identity)?;
    change::set_align(identity, align)
}

/// Whether the device may be taken away from whoever has it.
pub fn may_go(device: &Device, name: &impl fmt::Display, force: bool) -> Result<()> {
    match device.driver.as_deref() {
        Some("kmem") => {
            return Err(Error::SystemRam {
                device: device.name,
            })
        }
        Some(driver) if !device.is_page_less() && driver != "device_dax" => {
            return Err(Error::ForeignDriver {
                device: device.name,
                driver: driver.to_owned(),
            })
        }
        _ => {}
    }
    match Users::of(device) {
        Some(users) if !force => Err(Error::InUse {
            target: name.to_string(),
            users,
        }),
        _ => Ok(()),
    }
}
