// SPDX-License-Identifier: GPL-2.0

//! Ends a change of mode: a device that is where it was or where it was to go stays there; one in between goes back, but
//! for memory that the host has given back already, which goes on.

use super::{attach_unless_held, Ended};
use crate::bus::Device;
use crate::change;
use crate::error::Result;
use crate::host;
use crate::journal::ChangeMode;
use crate::lend::{block_size, Blocks};
use crate::mode::Mode;
use crate::store::Store;
use crate::users::Users;

/// Undoes or completes it.
pub fn end(store: &mut Store, change: &ChangeMode) -> Result<Ended> {
    host::put_back(&change.host)?;
    change::forget_ids(&change.device)?;
    change::settle_policy(&change.device)?;
    let ended = settle(change)?;
    store.end()?;
    Ok(ended)
}

fn settle(change: &ChangeMode) -> Result<Ended> {
    let name = change.device.device;
    let left = |why: String| Ok(Ended::ModeLeft(name, why));
    let Some(device) = Device::again(&change.device) else {
        return left("the device is gone".to_owned());
    };
    let ranges = device.ranges.as_deref().unwrap_or_default();
    let blocks = block_size().map(|size| Blocks::of(ranges, size));
    let now = Mode::of(&device);
    if now == change.to || now == change.from {
        // What was offline comes back, what was added is put to use.
        if let Some(blocks) = blocks.filter(|_| now == Mode::SystemRam) {
            blocks.online()?;
        }
        return Ok(Ended::Mode(name, now == change.to));
    }
    match (now, Users::of(&device)) {
        (Mode::Unbound, _) | (Mode::Devdax, None) => {}
        (Mode::Devdax, Some(users)) => return left(format!("then it came into use ({users})")),
        (now, _) => return left(format!("then another program made it {now}")),
    }
    if blocks.is_some_and(|blocks| blocks.are_there()) {
        return left("the host keeps memory of it until it is rebooted".to_owned());
    }
    let wanted = match change.from {
        Mode::SystemRam => &change.to,
        _ => &change.from,
    };
    match attach_unless_held(&change.device, wanted, change.settings.scrub, ranges)? {
        None => Ok(Ended::Mode(name, *wanted == change.to)),
        Some(held) => left(held.unbound()),
    }
}
