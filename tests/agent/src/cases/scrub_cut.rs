// SPDX-License-Identifier: GPL-2.0
//! Scrubs that were cut short: what is left behind is scrubbed before anybody gets it.

use std::process::{self, Stdio};
use std::time::Instant;

use crate::case::{Case, Named, Outcome};
use crate::cmdline::patient;
use crate::command::Command;
use crate::memory::human;
use crate::pattern::Pattern;
use crate::region::{Region, GIB, MIB};
use crate::scrub::{self, Policy, Progress, STEP};
use crate::{check, check_eq, payload, reset, say};

use super::scrub::{check_clean, fill, littered, mapped, tenant, SOON};
use super::tool_host::{device_of, link};

pub const CASES: &[Case] = &[
    Case {
        name: "scrub-reset",
        shows: "memory whose scrub was cut short by a reset of the host still holds bytes, and is scrubbed before anyone gets it",
        limit: 120,
        run: after_reset,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-tool-killed",
        shows: "create killed while it waits for the scrub: whoever gets the memory then sees zeros",
        limit: 60,
        run: tool_killed,
        ..Case::DEFAULT
    },
];

fn after_reset() -> Outcome {
    const SIZE: u64 = 2 * GIB;
    let parts = [(0, SIZE)];
    let pattern = Pattern::new(14);
    if reset::count() == 0 {
        let device = tenant(Policy::Release, &parts)?;
        fill(&device, pattern)?;
        device.destroy()?;
        let first = || -> Outcome<Progress> {
            let under_way = scrub::released()?;
            check_eq!(under_way.len(), 1, "ranges being scrubbed");
            Ok(under_way[0].progress)
        };
        while first()?.done == 0 {}
        reset::vm();
    }
    // One who does not want to be scrubbed for sees that it was cut short.
    let device = tenant(Policy::Never, &parts)?;
    check_eq!(
        scrub::clean()?,
        [],
        "what is known to be clean after a reset"
    );
    check_eq!(scrub::state(&device)?, "unscrubbed", "state after a reset");
    let mapping = mapped(&device)?;
    let steps = (0..SIZE / STEP).map(|index| index * STEP);
    let zeroed = steps.filter(|at| mapping.read(*at) == 0).count() as u64 * STEP;
    say!(
        "{} of {} were zeroed before the reset",
        human(zeroed),
        human(SIZE)
    );
    check!(zeroed > 0, "nothing was zeroed before the reset");
    check!(
        zeroed < SIZE,
        "all was zeroed before the reset: nothing was shown"
    );
    let last = SIZE - STEP;
    pattern
        .verify(mapping.words(last, STEP), last)
        .named("the end of the memory, after a reset")?;
    drop(mapping);
    device.destroy()?;

    let device = tenant(Policy::Release, &parts)?;
    check_clean(&device)?;
    check_eq!(
        Progress::of(&device)?.total,
        SIZE,
        "bytes scrubbed after a reset"
    );
    Ok(())
}

fn tool_killed() -> Outcome {
    const SIZE: u64 = 2 * GIB;
    payload::need_tool()?;
    scrub::settle()?;
    let region = Region::first()?;
    littered(&[(0, region.size)], Pattern::new(15))?;
    let mut tool = process::Command::new("daxdmem")
        .args(["create", "vm1", "--size", "2G"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .named("daxdmem")?;
    let deadline = Instant::now() + patient(SOON);
    while link("vm1").symlink_metadata().is_err() {
        check!(Instant::now() < deadline, "create made no link");
    }
    let device = device_of("vm1")?;
    Progress::midway(&device)?;
    check!(
        tool.try_wait()?.is_none(),
        "create did not wait for the scrub"
    );
    tool.kill()?;
    tool.wait()?;
    check_eq!(scrub::state(&device)?, "scrubbing", "state after the kill");

    // Whatever the next run makes of it: vm1's memory goes to somebody, and all that is left to somebody else.
    let told = Command::line("daxdmem list").limit(60).try_run()?;
    say!("list after the kill: {}", told.stderr.trim_end());
    if link("vm1").symlink_metadata().is_err() {
        create("vm1", SIZE)?;
    }
    check_clean(&device_of("vm1")?)?;
    create("vm2", region.available()?)?;
    check_clean(&device_of("vm2")?)?;
    for name in ["vm1", "vm2"] {
        Command::line(&format!("daxdmem destroy {name}"))
            .limit(60)
            .run()?;
    }
    scrub::settle()
}

fn create(name: &str, size: u64) -> Outcome {
    let line = format!("daxdmem create {name} --size {}M", size / MIB);
    Command::line(&line).limit(120).run().map(drop)
}
