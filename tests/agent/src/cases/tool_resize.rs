// SPDX-License-Identifier: GPL-2.0
//! The tool's verbs that change a guest's name or its device's size, and those that only tell.

use std::path::Path;

use crate::case::{Case, Outcome};
use crate::command::Command;
use crate::device::{Device, DAX_DMEM};
use crate::mapping::Map;
use crate::pattern::{check_zeros, Pattern};
use crate::region::{Region, GIB, MIB};
use crate::{check, check_eq, scrub, sysfs};

use super::tool_host::{
    access, check_guest, check_no_stale_id, device_of, done, link, need, refused, tool, Host,
};
use super::tool_kills::{at_every_step, check_kept, STRANGER};

pub const CASES: &[Case] = &[
    Case {
        name: "tool-rename",
        shows: "rename changes name and link of a guest that runs, and nothing of its device",
        limit: 60,
        run: rename,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-resize",
        shows: "resize grows a device in place or by good pieces elsewhere, cuts it at its end, and hands it out clean",
        limit: 240,
        run: resize,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-resize-refused",
        shows: "a resize of a device in use, or without space for it, changes nothing and says why",
        limit: 120,
        run: resize_refused,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-show-stats",
        shows: "show tells who uses a device and its leaves, stats what is saved; everybody may look",
        limit: 60,
        run: show_stats,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-kill-rename",
        shows: "rename, killed anywhere: the guest has one name, the old or the new one",
        limit: 120,
        run: kill_rename,
        sampled: true,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-kill-resize",
        shows: "resize, killed anywhere: the guest has its old size or the new one, and is bound with its settings",
        limit: 300,
        run: kill_resize,
        sampled: true,
        ..Case::DEFAULT
    },
];

fn rename() -> Outcome {
    need()?;
    done(&format!(
        "create vm1 --size 64M --owner {STRANGER} --mode 0660 --scrub never"
    ))?;
    let device = check_guest("vm1", 64 * MIB)?;
    let before = (device.ranges()?, access(&device.path())?);
    let mapping = Map::new(64 * MIB).file(&device.open()?)?;
    mapping.write(0, 7);

    let told = tool("rename vm1 web.prod")?;
    check_eq!(told.code, Some(0), "exit code of rename");
    check!(
        told.stderr.contains("it is in use"),
        "rename says {}",
        told.stderr
    );
    check!(
        link("vm1").symlink_metadata().is_err(),
        "the old link is still there"
    );
    let renamed = check_guest("web.prod", 64 * MIB)?;
    check_eq!(renamed.name, device.name, "device of the guest");
    check_eq!(
        (renamed.ranges()?, access(&renamed.path())?),
        before,
        "ranges and owner"
    );
    check_eq!(mapping.read(0), 7, "what the guest has in its memory");
    check!(
        done("list --json")?.contains("\"guest\": \"web.prod\""),
        "list does not know the new name"
    );
    check!(
        tool("rename web.prod web.prod")?
            .stderr
            .contains("has that name already"),
        "same name"
    );

    done("create vm2 --size 64M")?;
    refused(
        "rename web.prod vm2",
        &["the name vm2 is taken", "daxdmem destroy vm2"],
    )?;
    refused(
        "rename vm1 vm3",
        &["no guest is called vm1", "There are: vm2, web.prod"],
    )?;
    std::fs::write("/dev/daxdmem/vm3", "somebody else's")?;
    refused("rename vm2 vm3", &["/dev/daxdmem/vm3 is in the way"])?;
    std::fs::remove_file("/dev/daxdmem/vm3")?;
    drop(mapping);
    // What was chosen goes with the name.
    done("unbind web.prod")?;
    done("bind web.prod")?;
    check_kept(&device, STRANGER)?;
    done("destroy web.prod")?;
    done("destroy vm2").map(drop)
}

/// Starts and lengths, from the region's start.
fn places(region: &Region, device: &Device) -> Outcome<Vec<(u64, u64)>> {
    let ranges = device.ranges()?.into_iter();
    Ok(ranges
        .map(|range| (range.start - region.start, range.length))
        .collect())
}

/// Fills a guest's memory, so that what is left of it would show.
fn fill(device: &Device, size: u64) -> Outcome {
    Pattern::new(7).fill(Map::new(size).file(&device.open()?)?.words(0, size), 0);
    Ok(())
}

fn zeros(device: &Device, size: u64) -> Outcome {
    check_zeros(Map::new(size).file(&device.open()?)?.words(0, size))
}

fn resize() -> Outcome {
    need()?;
    let region = Region::first()?;
    let before = Host::look()?.without_history();
    let size = 64 * MIB;
    let words = format!("create vm1 --size {size} --align 2M --owner {STRANGER} --mode 0660");
    done(&words)?;
    let device = check_guest("vm1", size)?;
    let start = places(&region, &device)?[0].0;
    fill(&device, size)?;

    // Right behind it there is space: the range gets longer.
    done("resize vm1 --size 96M")?;
    check_eq!(
        check_guest("vm1", 96 * MIB)?.name,
        device.name,
        "device of the guest"
    );
    check_eq!(
        places(&region, &device)?,
        [(start, 96 * MIB)],
        "ranges, grown in place"
    );
    check_eq!(
        access(&device.path())?,
        format!("{STRANGER} 660"),
        "owner and mode"
    );
    check_eq!(
        sysfs::read(device.attribute("dax_dmem/scrub_policy"))?,
        "release",
        "scrub policy"
    );
    zeros(&device, 96 * MIB)?;
    fill(&device, 96 * MIB)?;

    done("resize vm1 --size 32M")?;
    check_guest("vm1", 32 * MIB)?;
    check_eq!(
        places(&region, &device)?,
        [(start, 32 * MIB)],
        "ranges, cut"
    );
    zeros(&device, 32 * MIB)?;

    // Somebody has what is right behind it, so it goes on elsewhere.
    let filler = region.create(2 * MIB, &[(start + 32 * MIB, 2 * MIB)])?;
    done("resize vm1 --size 48M")?;
    check_guest("vm1", 48 * MIB)?;
    let ranges = places(&region, &device)?;
    check_eq!(ranges.len(), 2, "number of ranges beside a filler");
    check_eq!(ranges[0], (start, 32 * MIB), "the range that stays");
    check_eq!(ranges[1].1, 16 * MIB, "the range that is new");
    zeros(&device, 48 * MIB)?;
    // Cut in the middle of the second range, then of the first.
    done("resize vm1 --size 40M")?;
    check_eq!(
        places(&region, &device)?,
        [(start, 32 * MIB), (ranges[1].0, 8 * MIB)],
        "ranges, cut in the second one"
    );
    done("resize vm1 --size 16M")?;
    check_eq!(
        places(&region, &device)?,
        [(start, 16 * MIB)],
        "ranges, cut in the first one"
    );
    filler.destroy()?;

    // One that is not bound stays so, and others' settings too.
    done("unbind vm1")?;
    done("resize vm1 --size 64M --no-wait")?;
    check_eq!(
        device.driver(),
        None,
        "driver of a device that was not bound"
    );
    check_eq!(device.size()?, 64 * MIB, "its size");
    done("bind vm1 --scrub never")?;
    done("resize vm1 --size 32M")?;
    check_kept(&check_guest("vm1", 32 * MIB)?, STRANGER)?;
    check!(
        tool("resize vm1 --size 32M")?
            .stderr
            .contains("has that size already"),
        "a resize to the same size does something"
    );
    done("destroy vm1")?;

    // Aligned to 1 GiB, every GiB can be a leaf, wherever it is.
    done("create vm1 --size 1G")?;
    let device = check_guest("vm1", GIB)?;
    let filler = region.create(2 * MIB, &[(GIB, 2 * MIB)])?;
    let list = done("resize vm1 --size 3G")?;
    check!(list.contains("leaves: 3 of 1G"), "resize says {list}");
    check_eq!(
        super::tool_host::gib_leaves(&device.ranges()?),
        3,
        "1 GiB leaves"
    );
    filler.destroy()?;
    done("destroy vm1")?;
    scrub::settle()?;
    Host::look()?
        .without_history()
        .expect(&before, "in the end")?;
    check_no_stale_id(&region)
}

fn resize_refused() -> Outcome {
    need()?;
    let region = Region::first()?;
    done("create vm1 --size 1G")?;
    let device = check_guest("vm1", GIB)?;
    refused(
        "resize vm1 --size 1.5G",
        &[
            "size 1.5G is no multiple of 1G, the unit of vm1",
            "Use 1G or 2G",
        ],
    )?;
    refused("resize vm1 --size 0", &["is no multiple of 1G", "Use 1G"])?;
    refused("resize vm2 --size 2G", &["no guest is called vm2"])?;
    refused(
        "resize vm1 --size 20G",
        &[
            "no space for 19G with align 1G",
            "region 0 has 5G free",
            "Ask for 6G or less",
        ],
    )?;
    let user = device.open()?;
    let who = format!("1 open file, by pid {} (", std::process::id());
    refused(
        "resize vm1 --size 2G",
        &[
            "is in use: ",
            &who,
            "End that first, then repeat the command",
        ],
    )?;
    drop(user);

    // Enough in all, and no whole GiB of it.
    let fillers = (1..6)
        .map(|gib| region.create(2 * MIB, &[(gib * GIB + GIB / 2, 2 * MIB)]))
        .collect::<Outcome<Vec<_>>>()?;
    refused(
        "resize vm1 --size 2G",
        &["no space for 1G with align 1G", "0 of it at that alignment"],
    )?;
    fillers.into_iter().try_for_each(Device::destroy)?;
    done("destroy vm1").map(drop)
}

fn show_stats() -> Outcome {
    need()?;
    let region = Region::first()?;
    done("create vm1 --size 2G")?;
    done("create vm2 --size 64M")?;
    let device = check_guest("vm1", 2 * GIB)?;
    let user = device.open()?;
    let shown = done("show vm1")?;
    let pid = std::process::id();
    for text in [
        format!("vm1 ({})\n", device.name),
        "link       /dev/daxdmem/vm1\n".to_owned(),
        "size       2G\n".to_owned(),
        "mode       page-less (dax_dmem)\n".to_owned(),
        "state      scrubbed, ".to_owned(),
        "open       1\n".to_owned(),
        format!("    pid {pid} ("),
        "leaves     2 of 1G\n".to_owned(),
        format!(
            "{:#x}-{:#x}  2G at offset 0x0, leaves: 2 of 1G",
            region.start,
            region.start + 2 * GIB - 1
        ),
    ] {
        check!(shown.contains(&text), "show has no '{text}': {shown}");
    }
    let json = done(&format!("show {} --json", device.name))?;
    for text in [
        "\"guest\": \"vm1\"".to_owned(),
        format!("\"pid\": {pid}"),
        "\"1g\": 2".to_owned(),
        "\"openers\": 1".to_owned(),
    ] {
        check!(json.contains(&text), "show --json has no {text}: {json}");
    }
    refused(
        "show vm3",
        &["no guest is called vm3", "There are: vm1, vm2"],
    )?;
    refused("show dax9.9", &["there is no device dax9.9"])?;

    // The size of a struct page is the kernel's word, by another way than the tool's.
    let page = crate::page_struct::size()?;
    // The debug kernel has no type information; the tool takes the usual size then, and says so.
    let known = Path::new("/sys/kernel/btf/vmlinux").exists();
    let saved = 2 * GIB / 4096 * page;
    let json = done("stats --json")?;
    for text in [
        format!("\"struct_page\": {page}"),
        format!("\"struct_page_known\": {known}"),
        format!("\"saved\": {saved}"),
        format!("\"page_less\": {}", 2 * GIB + 64 * MIB),
        format!("\"reserved\": {}", region.size),
        format!("\"free\": {}", region.size - 2 * GIB - 64 * MIB),
    ] {
        check!(json.contains(&text), "stats --json has no {text}: {json}");
    }
    let text = done("stats")?;
    check!(
        text.contains("vm1 ")
            && text.contains("hugetlbfs 1G, HVO")
            && text.contains("SAVED: one struct page of"),
        "stats shows {text}"
    );
    for words in [
        "show vm1",
        "show vm1 --json",
        "stats",
        "stats --json",
        "mode vm1",
    ] {
        let line = format!("setpriv --reuid 65534 --regid 65534 --clear-groups daxdmem {words}");
        let shown = Command::line(&line).limit(60).run()?;
        let addresses = shown.lines().filter(|line| line.contains("0x"));
        check_eq!(
            addresses.count(),
            0,
            "lines with addresses in {words} for everybody"
        );
    }
    check_eq!(done("mode vm1")?, "page-less\n", "mode of vm1");
    drop(user);
    check_eq!(
        device.driver(),
        Some(DAX_DMEM.to_owned()),
        "driver after looking"
    );
    done("destroy vm1")?;
    done("destroy vm2").map(drop)
}

fn kill_rename() -> Outcome {
    need()?;
    done("create vm1 --size 64M")?;
    let device = check_guest("vm1", 64 * MIB)?;
    let user = device.open()?;
    let back = || match link("vm2").symlink_metadata().is_ok() {
        true => done("rename vm2 vm1").map(drop),
        false => Ok(()),
    };
    let steps = at_every_step("rename vm1 vm2", back, || {
        let renamed = link("vm2").symlink_metadata().is_ok();
        let (name, other) = if renamed {
            ("vm2", "vm1")
        } else {
            ("vm1", "vm2")
        };
        check_eq!(device_of(name)?.name, device.name, "device of {name}");
        check_guest(name, 64 * MIB)?;
        check!(
            link(other).symlink_metadata().is_err(),
            "both links are there"
        );
        let list = done("list --json")?;
        check!(
            list.contains(&format!("\"guest\": \"{name}\""))
                && !list.contains(&format!("\"{other}\"")),
            "list does not call it {name}: {list}"
        );
        Ok(if renamed { "new" } else { "old" })
    })?;
    check!(steps > 6, "{steps} steps: a change was not seen");
    drop(user);
    done("destroy vm2").map(drop)
}

fn kill_resize() -> Outcome {
    need()?;
    let region = Region::first()?;
    let (small, large) = (16 * MIB, 48 * MIB);
    done(&format!(
        "create vm1 --size {small} --align 2M --owner {STRANGER} --mode 0660 --scrub never"
    ))?;
    let device = check_guest("vm1", small)?;
    let start = places(&region, &device)?[0].0;
    // 8 MiB are free right behind it: it grows there, and elsewhere.
    let filler = region.create(2 * MIB, &[(start + small + 8 * MIB, 2 * MIB)])?;
    let look = || -> Outcome<u64> {
        let size = device.size()?;
        check_guest("vm1", size)?;
        check_kept(&device, STRANGER)?;
        let ranges = places(&region, &device)?;
        let expected = match size {
            size if size == small => vec![small],
            _ => vec![small + 8 * MIB, large - small - 8 * MIB],
        };
        let lengths: Vec<u64> = ranges.iter().map(|(_, length)| *length).collect();
        check_eq!(lengths, expected, "lengths of the ranges");
        check!(
            done("list --json")?.contains("\"guest\": \"vm1\""),
            "vm1 has lost its name"
        );
        Ok(size)
    };
    for (from, to) in [(small, large), (large, small)] {
        let back = || match device.size()? == from {
            true => Ok(()),
            false => done(&format!("resize vm1 --size {from}")).map(drop),
        };
        let steps = at_every_step(&format!("resize vm1 --size {to}"), back, || {
            Ok(if look()? == to { "new" } else { "old" })
        })?;
        check!(steps > 10, "{steps} steps: a change was not seen");
    }
    filler.destroy()?;
    done("destroy vm1")?;
    check_no_stale_id(&region)
}
