// SPDX-License-Identifier: GPL-2.0

//! `daxdmem stats`: how much memory guests have, who maps it, and what it saves.

use super::{guests_by_links, look};
use crate::cli::StatsArgs;
use crate::driver::Unowned;
use crate::error::{Error, Result};
use crate::file::replace;
use crate::link::Links;
use crate::report::stats::{json, prometheus, text, Seen, Stats};
use crate::report::Report;
use crate::terminal::answer;

/// Permissions of the file with figures: who collects them is not root.
const MODE: u32 = 0o644;

/// Runs it.
pub fn run(args: &StatsArgs, links: &Links) -> Result<()> {
    let (state, now) = look(links)?;
    let unowned = Unowned::read();
    let state = state.unwrap_or_else(|| guests_by_links(links, &now));
    let report = Report::new(now, &state, unowned);
    let stats = Stats::new(&report, &Seen::of(&report));
    if args.prometheus {
        let text = prometheus::text(&stats);
        return match &args.output {
            Some(path) => replace(path, text.as_bytes(), MODE)
                .map_err(Error::kernel(format!("cannot write {}", path.display()))),
            None => answer(&text),
        };
    }
    match args.json {
        false => answer(&text::text(&stats)),
        true => {
            let text =
                json(&stats).map_err(|error| Error::kernel("cannot write JSON")(error.into()))?;
            answer(&format!("{text}\n"))
        }
    }
}
