// SPDX-License-Identifier: GPL-2.0
//! The tool and poison: it shows and edits the pages, keeps them over a reboot, and places devices around them.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::case::{Case, Failure, Outcome};
use crate::device::Device;
use crate::poison::{self, PAGE};
use crate::region::{Region, GIB, MIB};
use crate::{check, check_eq, reset, say};

use super::tool_host::{check_guest, device_of, done, need, refused, tool};
use super::tool_kills::at_every_step;
use super::tool_layout::{declare, ranges, write, LAYOUT, PLACEMENT};
use super::tool_layout_reset::{keep_texts, kept_texts};

pub const CASES: &[Case] = &[
    Case {
        name: "tool-poison-verbs",
        shows: "poison list, add and clear say and do what they should, and refuse what they cannot do safely",
        limit: 60,
        run: verbs,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-poison-kill",
        shows: "poison add and clear, killed anywhere: after the next command driver and record have the same pages",
        limit: 120,
        run: kills,
        sampled: true,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-poison-layout",
        shows: "apply places a guest around poison and says so; at boot one that has no place does not keep others away",
        limit: 60,
        run: layout,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-poison-reboot",
        shows: "100 random pages of a 16 GiB device: after destroy and reboot a full region has none, all sums are exact",
        machine: "big64",
        limit: 120,
        fresh: true,
        run: reboot,
        ..Case::DEFAULT
    },
];

const RECORD: &str = "/var/lib/daxdmem/poison.json";

/// Bytes that a page costs a region.
const BLOCK: u64 = 2 * MIB;

/// Ends the case with no page out of use, and no record.
fn clean() -> Outcome {
    for extent in poison::known()? {
        for page in extent.step_by(PAGE as usize) {
            poison::clear(page)?;
        }
    }
    for path in [RECORD, LAYOUT, PLACEMENT] {
        let _ = fs::remove_file(path);
    }
    Region::check_all_free()
}

/// The pages that the driver knows.
fn known() -> Outcome<Vec<u64>> {
    let extents = poison::known()?.into_iter();
    Ok(extents
        .flat_map(|extent| extent.step_by(PAGE as usize))
        .collect())
}

/// The number behind `"name": ` in a text of JSON.
fn number(text: &str, name: &str) -> Outcome<u64> {
    let head = format!("\"{name}\": ");
    let rest = text.split_once(&head).map(|(_, rest)| rest);
    let digits = rest.map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    let number = digits.flatten().and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| Failure::Fail(format!("no number {name} in {text}")))
}

/// What `stats` says of all regions: bytes free and bytes lost. Fails unless its parts are all there is.
fn free_and_lost() -> Outcome<(u64, u64)> {
    let text = done("stats --json")?;
    let (_, total) = text
        .split_once("\"total\"")
        .ok_or_else(|| Failure::Fail(format!("no total in {text}")))?;
    let mut sum = 0;
    for part in [
        "page_less",
        "devdax",
        "system_ram",
        "unbound",
        "free",
        "quarantined",
        "lost",
    ] {
        sum += number(total, part)?;
    }
    check_eq!(sum, number(total, "reserved")?, "sum of all parts");
    Ok((number(total, "free")?, number(total, "lost")?))
}

/// Fails if a device has one of the pages; bytes that devices have.
fn check_in_no_device(pages: &[u64]) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir("/sys/bus/dax/devices")? {
        let device = Device::existing(&entry?.file_name().to_string_lossy());
        for range in device.ranges()? {
            let inside = pages
                .iter()
                .find(|page| (range.start..range.start + range.length).contains(page));
            check!(
                inside.is_none(),
                "{} has {:#x}",
                device.name,
                inside.unwrap_or(&0)
            );
            bytes += range.length;
        }
    }
    Ok(bytes)
}

/// Fails unless the output of the command has all of these.
fn says(words: &str, texts: &[&str]) -> Outcome {
    let ran = tool(words)?;
    check_eq!(ran.code, Some(0), "exit code of 'daxdmem {words}'");
    let said = format!("{}{}", ran.stdout, ran.stderr);
    for text in texts {
        check!(said.contains(text), "'{words}' does not say '{text}'");
    }
    Ok(())
}

fn verbs() -> Outcome {
    need()?;
    let region = Region::first()?;
    says("poison list", &["no page is known to have failed\n"])?;
    done("create vm1 --size 1G --scrub never")?;
    let device = check_guest("vm1", GIB)?;
    let (bad, worse) = (device.physical(3 * PAGE)?, device.physical(5 * PAGE)?);
    let free = region.start + region.size - PAGE;
    let border = format!("region {}: {:#x}-", region.id, region.start);
    for (words, texts) in [
        (
            "poison add 0x100000".to_owned(),
            ["0x100000 is not in the memory of a region", &border],
        ),
        (
            format!("poison add {:#x}", free + 8),
            [
                "is not where a page of 4K starts",
                &format!("Use {free:#x}"),
            ],
        ),
        (
            "poison add vm1:1G".to_owned(),
            [
                "vm1 ends at 1G: there is nothing at offset 0x40000000",
                "daxdmem show vm1",
            ],
        ),
        (
            "poison add vm9:0x0".to_owned(),
            ["no guest is called vm9", "There are: vm1"],
        ),
        // The second one is what is wrong: the first is not done either.
        (
            format!("poison add {free:#x} 0x100000"),
            ["0x100000 is not in", "There are: "],
        ),
        (
            format!("poison clear {free:#x}"),
            ["is not known as poisoned", "poison list"],
        ),
        (
            "poison list --region 7".to_owned(),
            ["there is no region 7", "There are: 0"],
        ),
    ] {
        refused(&words, &texts)?;
    }
    for words in [
        "poison",
        "poison add",
        "poison add vm1",
        "poison clear 0x1000-0x0",
    ] {
        check_eq!(tool(words)?.code, Some(2), "exit code of 'daxdmem {words}'");
    }

    let name = format!("vm1 ({})", device.name);
    says(
        "poison add vm1:0x3000",
        &[&format!(
            "{bad:#x}: out of use; of {name} at offset 0x3000\n"
        )],
    )?;
    check_eq!(known()?, [bad], "pages that the driver knows");
    let again = format!("poison add {bad:#x}");
    refused(&again, &["is known as poisoned already", "poison list"])?;
    let file = device.open()?;
    refused("poison add vm1:0x5000", &[&name, " is in use: 1 open file"])?;
    done("poison add vm1:0x5000 --force")?;
    let clear = format!("poison clear {bad:#x}");
    refused(&clear, &[&name, "which is in use", "without an error"])?;
    drop(file);
    // An error is noticed by whatever command comes next.
    poison::add(free)?;
    says(
        "list",
        &["1 page of 4K reported uncorrectable errors: recorded"],
    )?;
    let record = fs::read_to_string(RECORD)?;
    for page in [bad, worse, free] {
        let line = format!("\"{page:#x}-{:#x}\"", page + PAGE - 1);
        check!(
            record.contains(&line),
            "{line} is not in the record: {record}"
        );
    }
    let row = format!("{bad:#x}-{:#x}", bad + PAGE - 1);
    let device_row = format!("vm1    {}  0x3000  this boot  driver, record", device.name);
    says("poison list", &[&row, &device_row])?;
    let of_vm1 = done("poison list vm1")?;
    check_eq!(of_vm1.lines().count(), 3, "lines of {of_vm1}");
    let json = done("poison list --json")?;
    for (text, count) in [
        ("\"place\": \"device\"", 2),
        ("\"guest\": \"vm1\"", 2),
        ("\"place\": \"free\"", 1),
        ("\"offset\": 12288", 1),
        ("\"in_driver\": true", 3),
        ("\"this_boot\": true", 3),
        ("\"pages_in_devices\": 2", 1),
        ("\"lost\": 2097152", 1),
    ] {
        check_eq!(json.matches(text).count(), count, "'{text}' in {json}");
    }
    says("show vm1", &[&format!("poison     2 pages of 4K: {row}, ")])?;
    let found = tool("check")?.stdout;
    let text = "poison: 3 pages of 4K failed, 3 since boot, in vm1; 2M of free memory are lost";
    check!(found.contains(text), "check does not say '{text}': {found}");
    check_eq!(
        free_and_lost()?,
        (5 * GIB - BLOCK, BLOCK),
        "bytes free and lost"
    );

    // It keeps what it has, and gives it to nobody who does not know.
    for mode in ["system-ram", "devdax"] {
        let words = format!("mode vm1 {mode}");
        refused(
            &words,
            &[
                "has 2 pages of 4K that failed, and stays",
                "daxdmem destroy",
            ],
        )?;
    }
    done("unbind vm1")?;
    says("bind vm1", &["has 2 pages of 4K that failed", "SIGBUS"])?;
    says(
        "destroy vm1",
        &[
            "1022M are free again",
            "2M of it stay out of use: 2 pages of 4K failed",
        ],
    )?;
    check_eq!(
        free_and_lost()?,
        (6 * GIB - 2 * BLOCK, 2 * BLOCK),
        "bytes free and lost"
    );
    // Growing goes around it as well: behind the next device is a bad page, too.
    done("create vm1 --size 1G --scrub never")?;
    check_in_no_device(&[bad, worse, free])?;
    let next = check_guest("vm1", GIB)?.physical(GIB - PAGE)? + PAGE;
    done(&format!("poison add {next:#x}"))?;
    done("resize vm1 --size 2G")?;
    check_in_no_device(&[bad, worse, free, next])?;
    check_guest("vm1", 2 * GIB)?;

    // A record that cannot be used: nobody gets memory, everything else works.
    let record = fs::read_to_string(RECORD)?;
    write(RECORD, "{")?;
    for words in [
        "create vm2 --size 2M",
        "resize vm1 --size 3G",
        "poison add 0x1000",
        "bind vm1",
    ] {
        refused(
            words,
            &[
                "poison.json cannot be used: EOF",
                "nobody is given memory until you decide",
            ],
        )?;
    }
    says("list", &["poison.json cannot be used"])?;
    says(
        "destroy vm1",
        &["are free again", "poison.json cannot be used"],
    )?;
    write(RECORD, &record)?;

    done(&format!(
        "poison clear {bad:#x} {worse:#x} {free:#x}-{:#x} {next:#x}",
        free + PAGE - 1
    ))?;
    check_eq!(known()?, [], "pages that the driver knows");
    let record = fs::read_to_string(RECORD)?;
    check!(!record.contains("0x"), "the record still has {record}");
    says("poison list", &["no page is known to have failed\n"])?;
    check_eq!(free_and_lost()?, (6 * GIB, 0), "bytes free and lost");
    // One that the record has and the driver does not, as after a reboot; one that is in no region now stays.
    let outside = "0x7ffffff000-0x7fffffffff";
    write(
        RECORD,
        &format!(
            "{{\"version\": 1, \"reports\": [{{\"at\": 1, \"boot\": \"x\", \"pages\": \
             [\"{free:#x}-{:#x}\", \"{outside}\"]}}]}}",
            free + PAGE - 1
        ),
    )?;
    says(
        "poison list",
        &[
            "dax_dmem was told of 1 page of 4K that failed before",
            outside,
            "no region",
        ],
    )?;
    check_eq!(known()?, [free], "pages that the driver knows");
    refused(
        "poison clear 0x7ffffff000",
        &["is in no region now", "cannot be tested"],
    )?;
    done(&format!("poison clear {free:#x}"))?;
    check!(
        fs::read_to_string(RECORD)?.contains(outside),
        "the record lost {outside}"
    );
    clean()
}

/// Which pages are out of use, in a word; fails unless driver and record agree.
fn agreed(pages: &[u64]) -> Outcome<&'static str> {
    let known = known()?;
    let record = fs::read_to_string(RECORD).unwrap_or_default();
    for page in pages {
        let line = format!("\"{page:#x}-{:#x}\"", page + PAGE - 1);
        check_eq!(
            record.contains(&line),
            known.contains(page),
            "whether the record has {page:#x}, in {record}"
        );
    }
    match known.len() {
        0 => Ok("none"),
        count if count == pages.len() => Ok("all"),
        _ => Ok("some"),
    }
}

fn kills() -> Outcome {
    need()?;
    let region = Region::first()?;
    let pages = [region.start + PAGE, region.start + GIB];
    let words = pages.map(|page| format!("{page:#x}")).join(" ");
    let forget = || {
        pages.iter().for_each(|page| drop(poison::clear(*page)));
        let _ = fs::remove_file(RECORD);
        Ok(())
    };
    at_every_step(&format!("poison add {words}"), forget, || agreed(&pages))?;
    check_eq!(agreed(&pages)?, "all", "pages out of use");
    let remember = || {
        for page in pages {
            poison::add(page)?;
        }
        done("poison sync").map(drop)
    };
    at_every_step(&format!("poison clear {words}"), remember, || {
        agreed(&pages)
    })?;
    check_eq!(agreed(&pages)?, "none", "pages out of use");
    // As after a reboot: what is recorded, the driver does not know.
    let unknown = || {
        remember()?;
        pages.iter().for_each(|page| drop(poison::clear(*page)));
        Ok(())
    };
    at_every_step("poison sync", unknown, || agreed(&pages))?;
    check_eq!(agreed(&pages)?, "all", "pages out of use");
    clean()
}

fn layout() -> Outcome {
    need()?;
    let guests = [
        ("vm1", "size = \"1G\"\nscrub = \"never\""),
        ("vm2", "size = \"1G\"\nscrub = \"never\""),
    ];
    declare(&guests)?;
    done("apply")?;
    let (first, second) = (ranges("vm1")?, ranges("vm2")?);
    done("destroy vm1")?;
    done("destroy vm2")?;
    let bad = first[0].start + 512 * MIB;
    done(&format!("poison add {bad:#x}"))?;
    says(
        "apply",
        &["  vm1 had a place of which 1 page of 4K failed\n"],
    )?;
    check_in_no_device(&[bad])?;
    check!(ranges("vm1")? != first, "vm1 is where it was");
    check_eq!(ranges("vm2")?, second, "place of vm2");
    says("apply", &["2 guests are as declared\n"])?;
    let moved = ranges("vm1")?;
    // One that fails under the guest changes nothing before the guest goes.
    let under = moved[0].start + 4 * PAGE;
    done(&format!("poison add {under:#x}"))?;
    says("apply", &["2 guests are as declared\n"])?;
    check_eq!(ranges("vm1")?, moved, "place of vm1");
    declare(&[])?;
    done("apply --prune")?;
    done(&format!("poison clear {bad:#x} {under:#x}"))?;

    // The whole region, and then a page less.
    declare(&[
        ("vm1", "size = \"1G\"\nscrub = \"never\""),
        ("vm2", "size = \"5G\"\nscrub = \"never\""),
    ])?;
    done("apply")?;
    let (bad, rest) = (ranges("vm1")?[0].start + GIB - PAGE, ranges("vm2")?);
    done("destroy vm1")?;
    done("destroy vm2")?;
    done(&format!("poison add {bad:#x}"))?;
    refused(
        "apply",
        &[
            "line 2: vm1: no space for 1G with align 1G",
            "and 2M lost to poison",
        ],
    )?;
    for _ in 0..2 {
        let ran = tool("apply --boot")?;
        check_eq!(ran.code, Some(1), "exit code of apply --boot");
        check!(
            ran.stdout.contains("stays as it is: no space for 1G"),
            "apply --boot says {}",
            ran.stdout
        );
        check!(
            ran.stderr.contains("1 of 2 guests are not as"),
            "apply --boot says {}",
            ran.stderr
        );
        check_guest("vm2", 5 * GIB)?;
        check_eq!(ranges("vm2")?, rest, "place of vm2");
        check!(device_of("vm1").is_err(), "there is a vm1");
        check_in_no_device(&[bad])?;
        done("destroy vm2")?;
    }
    clean()
}

/// Pages of the device at random places, as many as that.
fn random_pages(device: &Device, count: usize) -> Outcome<Vec<u64>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = u64::try_from(now.as_nanos() & u128::from(u64::MAX))? | 1;
    say!("seed {seed:#x}");
    let (mut random, size) = (seed, device.size()?);
    let mut pages = std::collections::BTreeSet::new();
    while pages.len() < count {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        pages.insert(device.physical(random % size / PAGE * PAGE)?);
    }
    Ok(pages.into_iter().collect())
}

fn reboot() -> Outcome {
    need()?;
    let region = Region::first()?;
    match reset::count() {
        0 => {
            done("create big --size 16G --scrub never")?;
            let device = check_guest("big", 16 * GIB)?;
            let pages = random_pages(&device, 100)?;
            for page in &pages {
                poison::add(*page)?;
            }
            // What udev has done whenever the driver tells of an error.
            done("poison sync")?;
            check_eq!(known()?, pages, "pages that the driver knows");
            done("destroy big")?;
            let pages: Vec<String> = pages.iter().map(u64::to_string).collect();
            keep_texts(&region, &[fs::read_to_string(RECORD)?, pages.join(" ")])?;
            reset::vm()
        }
        1 => {
            let texts = kept_texts(&region)?;
            let [record, pages] = texts.as_slice() else {
                return Err(Failure::Fail(format!("this was kept: {texts:?}")));
            };
            let pages = pages.split(' ').map(str::parse);
            let pages = pages.collect::<Result<Vec<u64>, _>>()?;
            write(RECORD, record)?;
            check_eq!(known()?, [], "pages that the driver knows after a reset");
            // Whole GiB first, then every piece that is left.
            done("create vm1 --size 16G --scrub never")?;
            check_eq!(
                known()?,
                pages,
                "pages that the driver knows when there is a guest"
            );
            done("create vm2 --size 8G --align 2M --scrub never")?;
            let (free, _) = free_and_lost()?;
            done(&format!(
                "create rest --size {free} --align 2M --scrub never"
            ))?;
            let has = check_in_no_device(&pages)?;
            let mut blocks: Vec<u64> = pages.iter().map(|page| page / BLOCK).collect();
            blocks.dedup();
            let lost = BLOCK * blocks.len() as u64;
            check_eq!(free_and_lost()?, (0, lost), "bytes free and lost");
            check_eq!(has + lost, region.size, "bytes of devices, and lost");
            let text = format!("{}M lost to poison", lost / MIB);
            refused("create more --size 2M", &["0 free, and ", &text])?;
            let listed = done("poison list --json")?;
            check_eq!(
                listed.matches("\"place\": \"free\"").count() > 0,
                true,
                "free pages"
            );
            check_eq!(
                listed.matches("\"this_boot\": true").count(),
                0,
                "pages of this boot"
            );
            check_eq!(number(&listed, "pages_in_devices")?, 0, "pages in devices");
            check_eq!(
                number(&listed, "lost")?,
                lost,
                "bytes that the list says are lost"
            );
            for name in ["vm1", "vm2", "rest"] {
                done(&format!("destroy {name}"))?;
            }
            done(&format!(
                "poison clear {}",
                pages
                    .iter()
                    .map(|page| format!("{page:#x}"))
                    .collect::<Vec<_>>()
                    .join(" ")
            ))?;
            check_eq!(
                free_and_lost()?,
                (region.size, 0),
                "bytes free and lost at the end"
            );
            clean()
        }
        count => Err(Failure::Fail(format!("{count} resets"))),
    }
}
