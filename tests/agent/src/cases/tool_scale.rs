// SPDX-License-Identifier: GPL-2.0
//! What the tool costs where a region has many guests, counted in instructions.

use std::fs;
use std::io;
use std::process::Command;
use std::time::Instant;

use crate::case::{Case, Failure, Named, Outcome};
use crate::region::{Region, GIB};
use crate::{check, check_eq, say, sysfs};

use super::tool_host::{check_guest, done, need, Host};

pub const CASES: &[Case] = &[
    Case {
        name: "tool-500-guests",
        shows: "with 500 guests a create costs at most 1.5 times as much as with 50, any change of one guest 1.6 times, and list grows linearly",
        machine: "icount200",
        limit: 400,
        fresh: true,
        run: many_guests,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-moved-memory",
        shows: "create finds a place though another program moved memory from guest to guest behind the tool's back",
        limit: 60,
        run: moved_memory,
        ..Case::DEFAULT
    },
];

/// Guests of all sizes, 397 MiB on average.
const SIZES: [&str; 5] = ["64M", "1G", "256M", "128M", "512M"];

/// What changes the 50th guest, in an order in which each can be done.
const CHANGES: [&str; 6] = [
    "unbind vm50",
    "bind vm50",
    "set vm50 --mode 0600",
    "rename vm50 other",
    "destroy other",
    "create vm50 --size 64M --scrub never",
];

/// Numbers of guests at which lists are measured.
const COUNTED: [usize; 3] = [55, 250, 500];

const LAYOUT: &str = "/run/scale.toml";

/// What one command has cost.
#[derive(Clone, Copy)]
pub(super) struct Cost {
    /// Instructions of the program, and of the kernel on its behalf.
    pub own: u64,
    /// Instructions of all programs and kernel threads meanwhile.
    all: u64,
    /// Nanoseconds until it was over, also those in which nobody had anything to do.
    time: u64,
}

/// Runs the tool and counts.
pub(super) fn cost(words: &str) -> Outcome<Cost> {
    let begin = Instant::now();
    let (own, all) = (children()?, all_tasks()?);
    let ran = Command::new("daxdmem")
        .args(words.split_ascii_whitespace())
        .output()?;
    let cost = Cost {
        own: children()? - own,
        all: all_tasks()? - all,
        time: begin.elapsed().as_nanos() as u64,
    };
    check_eq!(
        ran.status.code(),
        Some(0),
        "exit code of 'daxdmem {words}', which said {}",
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(cost)
}

/// Time that ended children were on the CPU, in ns: an instruction takes one.
fn children() -> Outcome<u64> {
    // SAFETY: all-zero is a valid value of these plain numbers, and the call fills them in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        match libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) {
            0 => usage,
            _ => return Err(io::Error::last_os_error().into()),
        }
    };
    let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    Ok(ns(usage.ru_utime) + ns(usage.ru_stime))
}

/// Time that the CPU had a task to run, in ns.
fn all_tasks() -> Outcome<u64> {
    let text = sysfs::read("/proc/schedstat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("cpu0 "));
    let ran = line.and_then(|line| line.split_ascii_whitespace().nth(6)?.parse().ok());
    ran.ok_or_else(|| Failure::Fail(format!("/proc/schedstat is {text}")))
}

/// The middle one of the costs, each by itself.
fn median(costs: &[Cost]) -> Cost {
    let middle = |of: fn(&Cost) -> u64| {
        let mut values: Vec<u64> = costs.iter().map(of).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    Cost {
        own: middle(|cost| cost.own),
        all: middle(|cost| cost.all),
        time: middle(|cost| cost.time),
    }
}

fn size(guest: usize) -> &'static str {
    SIZES[guest % SIZES.len()]
}

/// Has so many guests made by one `apply`, which is quicker.
fn apply(guests: usize) -> Outcome {
    let guest = |guest| {
        let size = size(guest);
        format!("[[guest]]\nname = \"vm{guest}\"\nsize = \"{size}\"\nscrub = \"never\"\n")
    };
    let layout: String = (1..=guests).map(guest).collect();
    fs::write(LAYOUT, layout).named(LAYOUT)?;
    let cost = cost(&format!("apply {LAYOUT}"))?;
    say!("apply up to {guests} guests: {}", million(cost.own));
    Ok(())
}

/// Creates the ten guests around the given one; the median of the costs.
fn create_around(middle: usize) -> Outcome<Cost> {
    let create = |guest: usize| {
        let size = size(guest);
        cost(&format!("create vm{guest} --size {size} --scrub never"))
    };
    let costs = (middle - 4..=middle + 5)
        .map(create)
        .collect::<Outcome<Vec<_>>>()?;
    let cost = median(&costs);
    say!(
        "create of guest {middle}: {}, with all that it has others do {}, over after {:.1} ms at one each ns",
        million(cost.own),
        million(cost.all),
        cost.time as f64 / 1e6
    );
    Ok(cost)
}

/// The cheapest of three of each of the changes.
fn changes() -> Outcome<[u64; CHANGES.len()]> {
    let mut best = [u64::MAX; CHANGES.len()];
    for _ in 0..3 {
        for (words, best) in CHANGES.iter().zip(&mut best) {
            *best = cost(words)?.own.min(*best);
        }
    }
    Ok(best)
}

fn million(instructions: u64) -> String {
    format!("{:.1} million instructions", instructions as f64 / 1e6)
}

fn many_guests() -> Outcome {
    need()?;
    let region = Region::first()?;
    check_eq!(region.size, 200 * GIB, "size of the region");
    // What happens once only, as the first rescan of a bus, is behind us.
    apply(45)?;
    let early = create_around(50)?;
    let early_changes = changes()?;
    let mut lists: Vec<[Cost; 2]> = Vec::new();
    for guests in COUNTED {
        if guests > 55 {
            apply(if guests == 500 { 490 } else { guests })?;
        }
        if guests == 500 {
            let late = create_around(495)?;
            for (what, early, late) in [
                ("create", early.own, late.own),
                (
                    "create, with all that it has others do,",
                    early.all,
                    late.all,
                ),
            ] {
                let ratio = late as f64 / early as f64;
                say!("{what} of the 500th guest costs {ratio:.2} times that of the 50th");
                check!(
                    5 * late <= 8 * early,
                    "{what} costs {ratio:.2} times as much"
                );
            }
            for ((words, early), late) in CHANGES.iter().zip(early_changes).zip(changes()?) {
                let ratio = late as f64 / early as f64;
                say!(
                    "{words}: {} with 55 guests, {ratio:.2} times that with 500",
                    million(early)
                );
                check!(
                    5 * late <= 8 * early,
                    "{words} costs {ratio:.2} times as much"
                );
            }
            // People take a tenth of a second for at once, and processors do more than an instruction a nanosecond.
            check!(
                late.own < 100_000_000,
                "a create takes {} instructions",
                late.own
            );
        }
        let costs = [cost("list")?, cost("list --json")?];
        say!(
            "list of {guests} guests: {}, --json {}",
            million(costs[0].own),
            million(costs[1].own)
        );
        lists.push(costs);
    }
    // If a guest more always costs the same, it costs as much from the second count to the third as from the first to
    // the second. Were each guest compared with each, it would be 2.5 times as much.
    let grown = |form: usize, from: usize| {
        let more = lists[from + 1][form].own - lists[from][form].own;
        more / (COUNTED[from + 1] - COUNTED[from]) as u64
    };
    for (form, what) in ["list", "list --json"].iter().enumerate() {
        let (early, late) = (grown(form, 0), grown(form, 1));
        say!("{what}: a guest more costs {early} instructions at first, {late} later");
        check!(
            late <= early / 4 * 5,
            "{what}: a guest more costs {late} instructions instead of {early}"
        );
    }
    Ok(())
}

fn moved_memory() -> Outcome {
    need()?;
    let region = Region::first()?;
    let before = Host::look()?.without_history();
    done("create vm1 --size 2G")?;
    done("create vm2 --size 1G")?;
    let (one, two) = (check_guest("vm1", 2 * GIB)?, check_guest("vm2", GIB)?);
    let (held, end) = (one.ranges()?[0], two.ranges()?[0]);
    check_eq!(end.start, held.start + 2 * GIB, "where vm2 is");
    one.unbind()?;
    two.unbind()?;
    // No byte more or less is free.
    sysfs::write(one.attribute("size"), &GIB.to_string())?;
    let next = end.start + GIB;
    let text = format!("{next:x}-{:x}", next + GIB - 1);
    sysfs::write(two.attribute("mapping"), &text)?;
    done("create vm3 --size 1G")?;
    check_guest("vm3", GIB)?;
    for name in ["vm3", "vm2", "vm1"] {
        done(&format!("destroy {name}"))?;
    }
    // What it was not told to change it has left alone.
    for device in [&one, &two] {
        sysfs::write(device.attribute("size"), "0")?;
    }
    sysfs::write(region.attribute("delete"), &two.name)?;
    let align = sysfs::read_number(region.attribute("align"))?;
    sysfs::write(one.attribute("align"), &align.to_string())?;
    Host::look()?
        .without_history()
        .expect(&before, "in the end")
}
