// SPDX-License-Identifier: GPL-2.0

//! Where the devices of a layout go that are to be made.

use std::collections::BTreeMap;
use std::path::Path;

use super::placement::Placement;
use super::plan::{Action, Present, Step};
use super::{LayoutError, Wanted};
use crate::bus::{Bus, Device, Identity};
use crate::error::{Error, Result};
use crate::land::Land;
use crate::link::Links;
use crate::making::{candidates, Planner};
use crate::name::GuestName;
use crate::poison;
use crate::store::Store;

/// Finds places for what is to be made: those that were kept, then, in the order of the file, what is left.
///
/// At `boot` a guest whose place was spoiled by poison, and for which there is no other, does not keep the others from
/// being made.
pub fn place(
    steps: &mut [Step],
    wanted: &[Wanted],
    kept: &Placement,
    (store, links, bus): (&mut Store, &Links, &Bus),
    path: &Path,
    boot: bool,
) -> Result<()> {
    let by_name: BTreeMap<&GuestName, &Wanted> =
        wanted.iter().map(|guest| (&guest.name, guest)).collect();
    let failed = |guest: &Wanted| {
        let (path, line, name) = (path.to_owned(), guest.line, guest.name.clone());
        move |error| LayoutError::Guest {
            path,
            line,
            name,
            why: Box::new(error),
        }
    };
    let mut regions = Vec::new();
    let mut going: Vec<Identity> = Vec::new();
    let land = Land::of(bus, store.state());
    for step in &*steps {
        if matches!(step.action, Action::Recreate | Action::Destroy) {
            let present = Present::of(&step.name, store.state(), bus);
            going.extend(present.there().map(Device::identity));
        }
        let Some(guest) = by_name.get(&step.name).filter(|_| step.is_made()) else {
            continue;
        };
        for part in &guest.parts {
            links.check(&part.name).map_err(failed(guest))?;
            regions.extend(candidates(&land, part.node, guest.region).map_err(failed(guest))?);
        }
    }
    let mut planner = Planner::new(store, links, &land, &regions, &going)?;
    let poison = poison::known()?;
    for only_kept in [true, false] {
        for step in steps.iter_mut().filter(|step| step.is_made()) {
            let Some(guest) = by_name.get(&step.name) else {
                continue;
            };
            let mut given_up = None;
            for (part, place) in step.parts.iter_mut().filter(|(_, place)| place.is_none()) {
                let kept = kept.of(part);
                let found = match (only_kept, kept) {
                    (true, Some(place)) => {
                        planner.plan_at(part, guest.region, guest.settings, place)
                    }
                    (true, None) => Ok(None),
                    (false, _) => planner.plan(part, guest.region, guest.settings).map(Some),
                };
                let spoiled = kept.map(|kept| poison.within(&kept.ranges));
                let spoiled = spoiled.filter(|pages| !only_kept && !pages.is_empty());
                if let Some(pages) = &spoiled {
                    let text = format!("{} had a place of which {pages} of 4K failed", part.name);
                    step.differences.push(text);
                }
                match found {
                    Err(error @ Error::NoSpace { .. }) if boot && spoiled.is_some() => {
                        given_up = Some(error.to_string().replace('\n', "; "));
                        // Kept, so that it is the same at the next boot.
                        *place = kept.cloned();
                    }
                    found => {
                        if let Some(plan) = found.map_err(failed(guest))? {
                            *place = plan.place();
                            step.plans.push(plan);
                        }
                    }
                }
            }
            if given_up.is_some() {
                step.action = Action::Leave;
                step.reason = given_up;
            }
        }
    }
    Ok(())
}
