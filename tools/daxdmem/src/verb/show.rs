// SPDX-License-Identifier: GPL-2.0

//! `daxdmem show`: everything about one device.

use super::{guests_by_links, is_root, look, resolve};
use crate::cli::ShowArgs;
use crate::driver::{Quarantine, Unowned};
use crate::error::{Error, Result};
use crate::link::Links;
use crate::name::DeviceName;
use crate::report::show::{json, text, Portrait};
use crate::report::{DeviceLine, Report};
use crate::terminal::{answer, note};
use crate::users::Users;

/// Runs it.
pub fn run(args: &ShowArgs, links: &Links) -> Result<()> {
    let (state, now) = look(links)?;
    let unowned = Unowned::read();
    let state = state.unwrap_or_else(|| guests_by_links(links, &now));
    let found = resolve(&args.target, &state, &now)?;
    let wanted: Vec<DeviceName> = found.iter().map(|(device, _)| device.name).collect();
    let report = Report::new(now, &state, unowned);
    let regions = report.regions;
    let portrait = |line: DeviceLine| {
        let users = Users::of(&line.device).map(|users| users.programs().clone());
        let link = line.guest.as_ref().map(|name| links.path(name));
        let ranges = line.device.ranges.as_deref().unwrap_or_default();
        let held = |held: &&Quarantine| ranges.iter().any(|range| range.overlaps(held.range));
        let mut regions = regions.iter().map(|line| &line.region);
        Portrait {
            region: regions
                .find(|region| region.id == line.device.region)
                .cloned(),
            link: link.filter(|link| link.exists()),
            users: users.unwrap_or_default(),
            quarantine: report.quarantine.iter().filter(held).cloned().collect(),
            line,
        }
    };
    let lines = report.devices.into_iter();
    let portraits: Vec<Portrait> = lines
        .filter(|line| wanted.contains(&line.device.name))
        .map(portrait)
        .collect();
    if args.json {
        let text =
            json(&portraits).map_err(|error| Error::kernel("cannot write JSON")(error.into()))?;
        return answer(&format!("{text}\n"));
    }
    answer(&text(&portraits))?;
    if !is_root() {
        note("physical addresses, and programs of other users, are shown to root only");
    }
    Ok(())
}
