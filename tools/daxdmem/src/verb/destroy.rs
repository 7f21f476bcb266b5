// SPDX-License-Identifier: GPL-2.0

//! `daxdmem destroy`: unmakes a guest's device and gives its memory back to the region.

use super::{begin, bus, undo};
use crate::cli::DestroyArgs;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::journal::{Destroy, Operation};
use crate::link::Links;
use crate::repair::{destroy_rest, is_there, may_go, Ended};
use crate::size::Size;
use crate::terminal::{done, note};
use crate::wait;

/// Runs it.
pub fn run(args: &DestroyArgs, links: &Links) -> Result<()> {
    let mut store = begin("destroy", links)?;
    let guest = store.state().guest(&args.name)?.clone();
    let now = bus()?;
    let Some(device) = now.same(&guest.device).filter(|_| is_there(&now, &guest)) else {
        store.update(|state| drop(state.guests.remove(&args.name)))?;
        done(&format!(
            "{}: forgotten; {} is gone or somebody else's, and is left alone",
            args.name, guest.device.device
        ));
        return Ok(());
    };
    may_go(device, &args.name, args.force)?;

    let entry = Destroy {
        name: args.name.clone(),
        force: args.force,
    };
    store.update(|state| state.operation = Some(Operation::Destroy(entry.clone())))?;
    match destroy_rest(&mut store, links, &entry) {
        Ok(Ended::DestroyDone(_)) => {}
        // Somebody came in between: the first look is repeated for its message.
        Ok(Ended::DestroyUndone(..)) => {
            let now = bus()?;
            let device = now.same(&guest.device).ok_or(Error::UnknownDevice {
                device: guest.device.device,
            })?;
            may_go(device, &args.name, args.force)?;
            return Err(Error::Disturbed {
                device: device.name,
                what: "it was in use for a moment".to_owned(),
            });
        }
        Ok(ended) => note(&ended.to_string()),
        Err(error) => return Err(undo(&mut store, links, error)),
    }
    let size = guest
        .ranges
        .iter()
        .fold(0u64, |sum, range| sum.saturating_add(range.len));
    done(&format!(
        "{}: gone, {} are free again",
        args.name,
        Size(size)
    ));
    let held = Driver::quarantine().into_iter();
    for held in held.filter(|held| guest.ranges.iter().any(|range| range.overlaps(held.range))) {
        let (range, openers) = (held.range, held.openers);
        note(&format!("{range} stays in quarantine until {openers} open files are closed, and is not given out before"));
    }
    drop(store);
    if args.wait {
        return wait::for_memory(&args.name.to_string(), &guest.ranges);
    }
    if let Some(progress) = wait::under_way(&guest.ranges) {
        note(&format!(
            "{} of it are being scrubbed in the background, and can be given out meanwhile",
            Size(progress.total)
        ));
    }
    Ok(())
}
