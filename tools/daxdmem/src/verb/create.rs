// SPDX-License-Identifier: GPL-2.0

//! `daxdmem create`: makes page-less devices for a guest: one, or one on each of several nodes.

use super::{begin, bus, need_driver, warn};
use crate::bus::Leaves;
use crate::cli::CreateArgs;
use crate::error::{Error, Result};
use crate::link::Links;
use crate::making::{candidates, make_all, Made, Planner};
use crate::nodes::{spread, NodesError, Part};
use crate::settings::Settings;
use crate::terminal::done;
use crate::wait;

/// Runs it.
pub fn run(args: &CreateArgs, links: &Links) -> Result<()> {
    let mut store = begin("create", links)?;
    let parts = spread(&args.name, args.size, args.align, &args.node)?;
    if args.region.is_some() && parts.len() > 1 {
        return Err(NodesError::Region.into());
    }
    for part in &parts {
        part.align.check(part.size)?;
        links.check(&part.name)?;
    }
    let name = args.name.clone().into();
    let taken = store.state().parts(&name).next();
    if let Some((_, guest)) = taken {
        return Err(Error::NameTaken {
            name: args.name.clone(),
            device: guest.device.device,
        });
    }
    let settings = Settings::NEW.with(&args.settings, None)?;
    let now = bus()?;
    let mut regions = Vec::new();
    for part in &parts {
        regions.extend(candidates(&now, part.node, args.region)?);
    }
    let mut planner = Planner::new(&mut store, links, &now, &regions, &[])?;
    let plans = parts
        .iter()
        .map(|part| planner.plan(part, args.region, settings))
        .collect::<Result<Vec<_>>>()?;
    need_driver()?;

    let made = make_all(&mut store, links, plans)?;
    drop(store);
    for made in &made {
        report(made, links);
    }
    warn(&args.name, &settings);
    if !args.wait.no_wait {
        for made in &made {
            wait::for_device(&made.plan.part.name.to_string(), &made.device)?;
        }
    }
    Ok(())
}

/// Says what was made.
pub fn report(made: &Made, links: &Links) {
    let Part { name, size, .. } = &made.plan.part;
    let ranges = made.plan.layout.ranges.as_slice();
    let pieces = match ranges {
        [range] => format!("at {range}"),
        ranges => format!("in {} ranges", ranges.len()),
    };
    let leaves = Leaves::of_all(ranges);
    done(&format!(
        "{name}: {size} {pieces}, on {}; leaves: {leaves}; {}",
        made.device.device,
        links.path(name).display()
    ));
}
