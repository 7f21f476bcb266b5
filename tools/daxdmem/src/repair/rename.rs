// SPDX-License-Identifier: GPL-2.0

//! Ends a change of name: what is begun is carried through.

use super::{is_there, Ended};
use crate::change;
use crate::error::Result;
use crate::journal::Rename;
use crate::link::Links;
use crate::name::PartName;
use crate::store::{Record, Store};

/// Does what is left to do of it. At every moment a link leads to each device.
pub fn rest(store: &mut Store, links: &Links, rename: &Rename) -> Result<Ended> {
    let old = PartName::from(rename.from.clone());
    let parts = store.state().parts(&old);
    let parts: Vec<(PartName, Record)> = parts
        .map(|(part, guest)| (part.clone(), guest.clone()))
        .collect();
    let bus = change::read_parts(&parts)?;
    let new = |part: &PartName| PartName {
        guest: rename.to.clone(),
        node: part.node,
    };
    for (part, guest) in &parts {
        if is_there(&bus, guest) {
            links.set(&new(part), guest.device.device)?;
        }
    }
    for (part, _) in &parts {
        links.remove(part)?;
    }
    store.complete(|state| {
        for (part, guest) in parts {
            state.guests.remove(&part);
            state.guests.insert(new(&part), guest);
        }
        state.operation = None;
    })?;
    Ok(Ended::Renamed(rename.from.clone(), rename.to.clone()))
}
