// SPDX-License-Identifier: GPL-2.0

//! `daxdmem stats`: how much memory guests have, and what it saves.

use super::{guests_by_links, look};
use crate::cli::StatsArgs;
use crate::driver::Unowned;
use crate::error::{Error, Result};
use crate::link::Links;
use crate::report::stats::{json, text, Stats};
use crate::report::Report;
use crate::struct_page;
use crate::terminal::answer;

/// Runs it.
pub fn run(args: &StatsArgs, links: &Links) -> Result<()> {
    let (state, now) = look(links)?;
    let unowned = Unowned::read();
    let state = state.unwrap_or_else(|| guests_by_links(links, &now));
    let report = Report::new(now, &state, unowned);
    let stats = Stats::new(&report, struct_page::size());
    match args.json {
        false => answer(&text(&stats)),
        true => {
            let text =
                json(&stats).map_err(|error| Error::kernel("cannot write JSON")(error.into()))?;
            answer(&format!("{text}\n"))
        }
    }
}
