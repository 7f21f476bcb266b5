// SPDX-License-Identifier: GPL-2.0

//! `daxdmem top`: the statistics again and again.

use std::io;
use std::path::Path;
use std::time::Instant;

use signal_hook::low_level;

use super::{bus, guests_by_links, is_root, look};
use crate::bus::Bus;
use crate::cli::TopArgs;
use crate::driver::Unowned;
use crate::error::{Error, Result};
use crate::link::Links;
use crate::report::stats::{top, Seen, Stats};
use crate::report::Report;
use crate::screen::{Screen, Wish};
use crate::store::{State, Store};
use crate::terminal::answer;

/// Runs it.
pub fn run(args: &TopArgs, links: &Links) -> Result<()> {
    // Ends what an earlier run left behind, and has its remarks printed, before there is a page to draw.
    let (state, now) = look(links)?;
    let mut stats = of(state, now, links);
    if args.once || !Screen::is_there() {
        return answer(&top::text(&stats, None));
    }
    let mut seen = Instant::now();
    let mut page = top::text(&stats, None);
    let mut screen = Screen::enter().map_err(terminal)?;
    loop {
        screen.show(&page).map_err(terminal)?;
        match screen.wait(args.interval()).map_err(terminal)? {
            Wish::Look => {}
            Wish::End => return Ok(()),
            Wish::EndBy(signal) => {
                drop(screen);
                return low_level::emulate_default_handler(signal).map_err(terminal);
            }
        }
        let state = match is_root() {
            true => Some(Store::peek(Path::new(Store::DIR))?),
            false => None,
        };
        let later = of(state, bus()?, links);
        page = top::text(&later, Some((&stats, seen.elapsed())));
        seen = Instant::now();
        stats = later;
    }
}

fn terminal(error: io::Error) -> Error {
    Error::kernel("cannot use the terminal")(error)
}

/// The statistics now.
fn of(state: Option<State>, now: Bus, links: &Links) -> Stats {
    let state = state.unwrap_or_else(|| guests_by_links(links, &now));
    let report = Report::new(now, &state, Unowned::read());
    Stats::new(&report, &Seen::of(&report))
}
