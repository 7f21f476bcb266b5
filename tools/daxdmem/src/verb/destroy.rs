// SPDX-License-Identifier: GPL-2.0

//! `daxdmem destroy`: unmakes a guest's devices and gives their memory back to the region.

use super::begin;
use crate::bus::{total, Device};
use crate::change;
use crate::cli::DestroyArgs;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::journal::{Destroy, DestroyAll, Group, Operation};
use crate::link::Links;
use crate::name::PartName;
use crate::poison;
use crate::repair::{destroy_rest, finish, may_go, recorded, Ended};
use crate::size::Size;
use crate::store::{Record, Store};
use crate::terminal::{done, note};
use crate::wait;

/// Runs it.
pub fn run(args: &DestroyArgs, links: &Links) -> Result<()> {
    let mut store = begin("destroy", links)?;
    let parts = store.state().named(&args.name)?;
    destroy_all(&mut store, links, &args.name, args.force)?;
    drop(store);
    for (name, guest) in &parts {
        if args.wait {
            wait::for_memory(&name.to_string(), &guest.ranges)?;
        } else if let Some(progress) = wait::under_way(&guest.ranges) {
            note(&format!(
                "{} of it are being scrubbed in the background, and can be given out meanwhile",
                Size(progress.total)
            ));
        }
    }
    Ok(())
}

/// Destroys the devices that the name stands for; none if one of them may not go.
pub fn destroy_all(store: &mut Store, links: &Links, name: &PartName, force: bool) -> Result<()> {
    let parts = store.state().named(name)?;
    let now = change::read_parts(&parts)?;
    for (name, guest) in &parts {
        if let Some(device) = recorded(&now, guest) {
            may_go(device, name, force)?;
        }
    }
    if name.node.is_none() && parts.len() > 1 {
        let group = Group::Destroy(DestroyAll {
            guest: name.guest.clone(),
            force,
        });
        store.update(|state| state.group = Some(group))?;
    }
    let mut gone: Vec<&PartName> = Vec::new();
    for (name, guest) in &parts {
        let result = destroy(store, links, name, guest, force);
        match (result, gone.as_slice()) {
            (Ok(()), _) => gone.push(name),
            // The next command goes on with it.
            (Err(error @ Error::Unfinished { .. }), _) | (Err(error), []) => {
                give_up(store)?;
                return Err(error);
            }
            (Err(error), [.., last]) => {
                let what = format!("{last} is gone already, {name} stays");
                give_up(store)?;
                return Err(Error::LeftBehind {
                    error: Box::new(error),
                    what,
                });
            }
        }
    }
    store.update(|state| state.group = None)
}

/// Leaves the devices that are left as they are, unless the next command goes on with one of them.
fn give_up(store: &mut Store) -> Result<()> {
    store.update(|state| {
        if state.operation.is_none() {
            state.group = None;
        }
    })
}

fn destroy(
    store: &mut Store,
    links: &Links,
    name: &PartName,
    guest: &Record,
    force: bool,
) -> Result<()> {
    // With one of the guest's other devices, which took two tries.
    if !store.state().guests.contains_key(name) {
        tell(name, guest);
        return Ok(());
    }
    let now = change::read_these(&[guest.device.device])?;
    if recorded(&now, guest).is_none() {
        links.remove(name)?;
        store.update(|state| drop(state.guests.remove(name)))?;
        done(&format!(
            "{name}: forgotten; {} is gone or somebody else's, and is left alone",
            guest.device.device
        ));
        return Ok(());
    }
    let entry = Destroy {
        name: name.clone(),
        force,
    };
    store.begin(Operation::Destroy(entry.clone()))?;
    match destroy_rest(store, links, &entry) {
        Ok(Ended::DestroyDone(_)) => {}
        // Somebody came in between: the first look is repeated for its message.
        Ok(Ended::DestroyUndone(..)) => {
            let device = Device::again(&guest.device).ok_or(Error::UnknownDevice {
                device: guest.device.device,
            })?;
            may_go(&device, name, force)?;
            return Err(Error::Disturbed {
                device: device.name,
                what: "it was in use for a moment".to_owned(),
            });
        }
        Ok(ended) => note(&ended.to_string()),
        Err(error) => finish(store, links, error)?,
    }
    tell(name, guest);
    Ok(())
}

/// Says that it is gone, and what is to be known about its memory.
fn tell(name: &PartName, guest: &Record) {
    let size = total(guest.ranges.iter());
    let poison = poison::visible().unwrap_or_default().within(&guest.ranges);
    let lost = poison.cost(&guest.ranges);
    done(&format!(
        "{name}: gone, {} are free again",
        Size(size - lost)
    ));
    if lost > 0 {
        note(&format!(
            "{} of it stay out of use: {poison} of 4K failed",
            Size(lost)
        ));
    }
    for held in Driver::quarantine_of(&guest.ranges) {
        note(&format!(
            "{} stays in quarantine {}, and is not given out before",
            held.range,
            held.end()
        ));
    }
}
