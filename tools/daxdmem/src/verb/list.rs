// SPDX-License-Identifier: GPL-2.0

//! `daxdmem list`: shows regions and devices.

use super::{is_root, look};
use crate::cli::ListArgs;
use crate::driver::Unowned;
use crate::error::{Error, Result};
use crate::link::Links;
use crate::report::{json, table, Report};
use crate::store::State;
use crate::terminal::{answer, note};

/// Runs it.
pub fn run(args: &ListArgs, links: &Links) -> Result<()> {
    let (state, now) = look(links)?;
    let unowned = Unowned::read();
    let report = match &state {
        Some(state) => Report::new(now, state, unowned),
        None => Report::with_names(now, &State::default(), links.names(), unowned),
    };
    if args.json {
        let text = json::text(&report)
            .map_err(|error| Error::kernel("cannot write JSON")(error.into()))?;
        return answer(&format!("{text}\n"));
    }
    if report.regions.is_empty() {
        note(&Error::NoRegion.to_string());
        return Ok(());
    }
    answer(&table::text(&report, args.verbose))?;
    if !is_root() {
        note("physical addresses, and what follows from them, are shown to root only");
    }
    Ok(())
}
