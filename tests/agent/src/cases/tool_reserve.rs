// SPDX-License-Identifier: GPL-2.0
//! Reservations: planned in one boot, made by the printed parameters in the next one, with the kernel placed at random.

use std::fs;

use crate::case::{Case, Failure, Outcome};
use crate::device::Device;
use crate::region::Region;
use crate::{check, check_eq, module, reset, say, sysfs};

use super::tool_host::{done, need, refused};

pub const CASES: &[Case] = &[
    Case {
        name: "tool-reserve-boots-hole",
        shows: "a plan around a piece that another parameter has boots to just the planned regions",
        machine: "plan-hole",
        limit: 90,
        fresh: true,
        run: || boots("--total 5G", 2),
        ..Case::DEFAULT
    },
    Case {
        name: "tool-reserve-boots-two-nodes",
        shows: "all but 2 GiB of each of two nodes boots to just the planned regions, each on its node",
        machine: "plan-two-nodes",
        limit: 90,
        fresh: true,
        run: || boots("--all-but 2G", 2),
        ..Case::DEFAULT
    },
    Case {
        name: "tool-reserve-boots-four-nodes",
        shows: "sizes on 128 MiB on four odd nodes boot to just the planned regions, each on its node",
        machine: "plan-four-nodes",
        limit: 90,
        fresh: true,
        run: || boots("--node 0=1G --node 1=1.5G --node 2=3.25G --node 3=2G", 4),
        ..Case::DEFAULT
    },
    Case {
        name: "tool-reserve-boots-low-hole",
        shows: "all but 2.5 GiB of a host with little low memory boots to just the planned region",
        machine: "plan-low-hole",
        limit: 90,
        fresh: true,
        run: || boots("--all-but 2.5G", 1),
        ..Case::DEFAULT
    },
    Case {
        name: "tool-reserve-shows",
        shows: "reserve shows what is reserved on two nodes, plans the same again, and refuses what cannot be had",
        machine: "numa",
        run: shows,
        ..Case::DEFAULT
    },
];

/// Node, first byte, bytes.
type Planned = (u64, u64, u64);

/// What a plan says, from its JSON.
fn plan(request: &str) -> Outcome<(Vec<Planned>, String, bool)> {
    let json = done(&format!("reserve {request} --json"))?;
    let lines = json.lines().map(str::trim);
    let value = |line: &str, key: &str| {
        let value = line.strip_prefix(&format!("\"{key}\": "))?;
        Some(value.trim_end_matches(',').trim_matches('"').to_owned())
    };
    let mut ranges = Vec::new();
    let mut node = None;
    let mut start = None;
    for line in lines
        .clone()
        .skip_while(|line| !line.starts_with("\"ranges\""))
        .take_while(|line| !line.starts_with("\"parameters\""))
    {
        node = value(line, "node").or(node);
        start = value(line, "start").or(start);
        if let (Some(size), Some(node), Some(start)) = (value(line, "size"), &node, &start) {
            let all = [node, start, &size].map(|text| sysfs::number(text));
            let [Some(node), Some(start), Some(size)] = all else {
                return Err(Failure::Fail(format!("no numbers in: {json}")));
            };
            ranges.push((node, start, size));
        }
    }
    let find = |key: &str| lines.clone().find_map(|line| value(line, key));
    let parameters = find("parameters").unwrap_or_default();
    Ok((
        ranges,
        parameters,
        find("in_force") == Some("true".to_owned()),
    ))
}

/// The regions as the kernel shows them.
fn regions() -> Outcome<Vec<Planned>> {
    Region::first()?;
    let mut regions = Vec::new();
    for region in Region::all()? {
        let first = Device::existing(&format!("dax{}.0", region.id));
        // Without a NUMA topology there is no such attribute.
        let node = first.attribute("target_node");
        let node = if node.exists() {
            sysfs::read_number(node)?
        } else {
            0
        };
        regions.push((node, region.start, region.size));
    }
    Ok(regions)
}

/// Plans, boots with the printed parameters, and finds the regions as planned.
fn boots(request: &str, ranges: usize) -> Outcome {
    need()?;
    let line = fs::read_to_string("/proc/cmdline")?;
    check!(
        !line.contains("nokaslr"),
        "the kernel is not placed at random: {line}"
    );
    let (planned, parameters, in_force) = plan(request)?;
    check_eq!(planned.len(), ranges, "number of ranges in {planned:x?}");
    if reset::count() == 0 {
        check!(!in_force, "a plan is in force that nobody has made");
        check_eq!(Region::all()?.len(), 0, "regions before");
        say!("booting with {parameters}");
        return reset::boot_with(&parameters);
    }
    check!(
        line.contains(&parameters),
        "not booted with the plan: {line}"
    );
    // The tool sees the same memory as before, although the kernel has less, and knows its own reservation.
    check!(in_force, "the tool does not see that its plan is in force");
    check_eq!(regions()?, planned, "the regions");
    for entry in fs::read_to_string("/proc/iomem")?
        .lines()
        .filter(|line| line.contains("Kernel "))
    {
        say!("{}", entry.trim());
    }
    // Otherwise an error.
    module::load("kvm-amd")?;
    let check = done("check")?;
    check!(
        check.contains("ok      regions: as reserved: "),
        "check does not say that the regions are as reserved"
    );
    Ok(())
}

/// On a machine with 2 GiB reserved of node 0 and 4 of node 1.
fn shows() -> Outcome {
    need()?;
    let (reserved, ..) = plan("")?;
    check_eq!(reserved, regions()?, "what is reserved");
    let (planned, parameters, in_force) = plan("--node 0=2G --node 1=4G")?;
    check_eq!(
        parameters,
        "memmap=2G$4G memmap=2G%4G-2+0xefffffff memmap=4G$7G memmap=4G%7G-2+0xefffffff",
        "parameters"
    );
    // It would start at 7 GiB, where node 1 does; this machine's starts at 8.
    check!(
        !in_force && planned[1].1 == 7 << 30,
        "{planned:x?} is in force"
    );
    let text = done("reserve --total 6G")?;
    check!(
        text.ends_with(
            "memmap=3G$4G memmap=3G%4G-2+0xefffffff memmap=3G$7G memmap=3G%7G-2+0xefffffff\n"
        ),
        "parameters of a total: {text}"
    );
    for (words, texts) in [
        ("--node 2=1G", ["there is no node 2", "There are 0, 1"]),
        ("--node 0=4G", ["node 0 cannot give 4G", "at most 3G"]),
        ("--total 100M", ["multiples of 128M", "Use 128M"]),
        ("--total 64G", ["64G cannot be reserved", "at most 9G"]),
        (
            "--total 2G --apply",
            ["no boot loader is found", "by that boot loader's own means"],
        ),
        ("--apply", ["needs to be told what to reserve", "--all-but"]),
    ] {
        refused(&format!("reserve {words}"), &texts)?;
    }
    let removed = done("reserve --remove")?;
    check_eq!(
        removed.trim_end(),
        "nothing to do: no reservation of daxdmem's is configured; that of the running kernel ends with the next reboot, \
         unless others keep it",
        "what remove says"
    );
    Ok(())
}
