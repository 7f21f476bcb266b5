// SPDX-License-Identifier: GPL-2.0

//! `daxdmem create`: makes page-less devices for a guest: one, or one on each of several nodes.

use super::{begin_on_land, bus, need_driver, warn};
use crate::bus::Leaves;
use crate::cli::CreateArgs;
use crate::error::{Error, Result};
use crate::land::Land;
use crate::link::Links;
use crate::making::{candidates, make_all, Made, Plan, Planner};
use crate::nodes::{spread, NodesError, Part};
use crate::settings::Settings;
use crate::store::Store;
use crate::terminal::done;
use crate::wait;

/// Runs it.
pub fn run(args: &CreateArgs, links: &Links) -> Result<()> {
    let (mut store, land) = begin_on_land("create", links)?;
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
    let plan = |store: &mut Store, land: &Land| -> Result<Vec<Plan>> {
        let mut regions = Vec::new();
        for part in &parts {
            regions.extend(candidates(land, part.node, args.region)?);
        }
        let mut planner = Planner::new(store, links, land, &regions, &[])?;
        let plan = |part| planner.plan(part, args.region, settings);
        parts.iter().map(plan).collect()
    };
    let plans = plan(&mut store, &land)?;
    need_driver(&store)?;

    let made = match make_all(&mut store, links, plans) {
        Err(error) if store.is_idle() && !error.leaves_something() => {
            // The kernel has something against it. Should another program have changed what a guest has, only asking all
            // devices tells.
            let asked = Land::of(&bus()?, store.state());
            if asked.guests() == land.guests() {
                return Err(error);
            }
            let plans = plan(&mut store, &asked)?;
            make_all(&mut store, links, plans)?
        }
        made => made?,
    };
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
