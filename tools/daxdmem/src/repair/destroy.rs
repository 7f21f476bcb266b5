// SPDX-License-Identifier: GPL-2.0

//! Ends the destruction of a guest's device.

use super::{may_go, put_back, Ended};
use crate::bus::Device;
use crate::change;
use crate::error::Result;
use crate::journal::Destroy;
use crate::link::Links;
use crate::store::Store;

/// Does what is left to do of destroying a guest's device. Undoes it instead when the device is in use, or in some
/// other way not to be had.
pub fn rest(store: &mut Store, links: &Links, destroy: &Destroy) -> Result<Ended> {
    let Some(guest) = store.state().guests.get(&destroy.name).cloned() else {
        store.end()?;
        return Ok(Ended::DestroyDone(destroy.name.clone()));
    };
    links.remove(&destroy.name)?;
    let mut ended = Ended::DestroyDone(destroy.name.clone());
    if let Some(device) = &Device::again(&guest.device) {
        // Once begun there are none; a device in another state than those two is not the one that was to go.
        let ours = device
            .ranges
            .as_ref()
            .is_some_and(|ranges| ranges.is_empty() || *ranges == guest.ranges);
        if !ours {
            let why = "another program changed its ranges".to_owned();
            ended = Ended::LeftAlone(destroy.name.clone(), device.name, why);
        } else if let Err(error) = may_go(device, &destroy.name, destroy.force) {
            links.set(&destroy.name, device.name)?;
            store.end()?;
            return Ok(Ended::DestroyUndone(
                destroy.name.clone(),
                error.to_string(),
            ));
        } else {
            change::forget_id(&guest.device)?;
            put_back(&guest.device, kept_align(device))?;
        }
    }
    store.complete(|state| {
        state.guests.remove(&destroy.name);
        state.operation = None;
    })?;
    Ok(ended)
}

/// Device 0 of a region is never deleted: it gets back the alignment that the region gives new devices.
fn kept_align(device: &Device) -> Option<u64> {
    let region = device.path.parent()?.join("dax_region/align");
    device
        .name
        .is_first()
        .then(|| crate::sysfs::number(&region).unwrap_or(device.align))
}
