// SPDX-License-Identifier: GPL-2.0
//! The layout: apply brings the host to it whatever happens on the way, and back to it after a reset.

use std::fs;
use std::path::Path;

use crate::case::{Case, Named, Outcome};
use crate::device::Range;
use crate::mapping::{Map, Mapping};
use crate::region::{Region, GIB, MIB};
use crate::sample::{self, Sample};
use crate::{check, check_eq, module, payload, say};

use super::tool_host::{
    access, check_guest, check_idle, device_of, done, link, need, refused, tool, Host,
};
use super::tool_tracer::killed_at;

pub const CASES: &[Case] = &[
    Case {
        name: "layout-apply",
        shows: "apply makes, changes, remakes and prunes guests as declared, and does nothing the second time",
        machine: "numa",
        limit: 120,
        run: apply,
        ..Case::DEFAULT
    },
    Case {
        name: "layout-in-use",
        shows: "apply touches no device that a process maps, says which, and does the rest; --dry-run does nothing",
        limit: 60,
        run: in_use,
        ..Case::DEFAULT
    },
    Case {
        name: "layout-refused",
        shows: "a layout that is wrong or cannot fit changes nothing at all",
        machine: "numa",
        limit: 60,
        run: refusals,
        ..Case::DEFAULT
    },
    Case {
        name: "layout-killed",
        shows: "apply killed at 50 random moments: a second run ends as declared, and a running guest never notices",
        limit: 900,
        run: killed,
        sampled: true,
        ..Case::DEFAULT
    },
    Case {
        name: "layout-put-back",
        shows: "a guest that cannot be made anew gets back what it had before apply unmade it",
        run: put_back,
        ..Case::DEFAULT
    },
];

pub(super) const LAYOUT: &str = "/etc/daxdmem/layout.toml";
pub(super) const PLACEMENT: &str = "/var/lib/daxdmem/placement.json";

/// Writes the layout: guests as (name, the rest of their table).
pub(super) fn declare(guests: &[(&str, &str)]) -> Outcome {
    let table = |(name, rest): &(&str, &str)| format!("[[guest]]\nname = \"{name}\"\n{rest}\n");
    let text: String = guests.iter().map(table).collect();
    write(LAYOUT, &text)
}

pub(super) fn write(path: &str, text: &str) -> Outcome {
    if let Some(dir) = Path::new(path).parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, text).named(path)
}

/// Ends the case with the VM as it was: no guest, no file.
pub(super) fn clean() -> Outcome {
    declare(&[])?;
    done("apply --prune")?;
    for path in [LAYOUT, PLACEMENT, "/etc/daxdmem/layout.toml.old"] {
        let _ = fs::remove_file(path);
    }
    Region::check_all_free()
}

/// The host with what was kept of places.
fn whole() -> Outcome<(Host, Option<String>)> {
    Ok((Host::look()?, fs::read_to_string(PLACEMENT).ok()))
}

pub(super) fn check_nothing_to_do() -> Outcome {
    let before = whole()?;
    let said = done("apply --prune")?;
    check!(
        said.ends_with("as declared\n") && said.lines().count() == 1,
        "apply says: {said}"
    );
    let after = whole()?;
    after.0.expect(&before.0, "after a second apply")?;
    check_eq!(after.1, before.1, "kept places after a second apply");
    Ok(())
}

pub(super) fn absent(name: &str) -> Outcome {
    check!(
        link(name).symlink_metadata().is_err(),
        "{name} is still there"
    );
    Ok(())
}

pub(super) fn ranges(name: &str) -> Outcome<Vec<Range>> {
    device_of(name)?.ranges()
}

fn apply() -> Outcome {
    need()?;
    declare(&[
        (
            "vm1",
            "size = \"64M\"\nnode = 0\nowner = \"4321:8765\"\nmode = \"0660\"",
        ),
        ("db1", "size = \"2G\"\nnode = [0, 1]\nscrub = \"never\""),
        (
            "vm2",
            "size = \"66M\"\nalign = \"4K\"\nnode = 1\nscrub = \"hand-out\"",
        ),
    ])?;
    let before = whole()?;
    let plan = done("apply --dry-run")?;
    check_eq!(
        plan.matches("\ncreate ").count(),
        4,
        "devices in the plan {plan}"
    );
    let json = done("apply --dry-run --json")?;
    for text in [
        "\"action\": \"create\"",
        "\"name\": \"db1:1\"",
        "\"size\": 69206016",
        "\"start\": \"0x",
    ] {
        check!(json.contains(text), "the plan has no {text}: {json}");
    }
    whole()?.0.expect(&before.0, "after dry runs")?;
    check!(!Path::new(PLACEMENT).exists(), "a dry run kept places");

    done("apply")?;
    let vm1 = check_guest("vm1", 64 * MIB)?;
    check_eq!(
        access(&vm1.path())?,
        "4321:8765 660",
        "owner and mode of vm1"
    );
    check_guest("db1:0", GIB)?;
    check_guest("db1:1", GIB)?;
    let vm2 = check_guest("vm2", 66 * MIB)?;
    let places = [
        ranges("vm1")?,
        ranges("db1:0")?,
        ranges("db1:1")?,
        ranges("vm2")?,
    ];
    // What the plan said is what was done.
    for start in places
        .iter()
        .flatten()
        .map(|range| format!("\"start\": \"{:#x}\"", range.start))
    {
        check!(json.contains(&start), "the plan had no {start}: {json}");
    }
    check_nothing_to_do()?;

    // One changed, one remade, one gone, one unbound, one by hand.
    done("unbind db1:1")?;
    done("create hand --size 2M")?;
    declare(&[
        ("vm1", "size = \"64M\"\nnode = 0\nscrub = \"never\""),
        ("db1", "size = \"2G\"\nnode = [0, 1]\nscrub = \"never\""),
        ("vm2", "size = \"128M\"\nnode = 1"),
    ])?;
    let plan = done("apply --dry-run")?;
    for text in [
        "change ",
        "  scrub release -> never\n",
        "  owner 4321:8765 0660 -> root:root 0600\n",
        "  driver of node 1 none -> dax_dmem\n",
        "recreate ",
        "  size 66M -> 128M\n",
        "unlisted ",
        "--prune destroys it",
    ] {
        check!(plan.contains(text), "the plan has no '{text}': {plan}");
    }
    done("apply")?;
    check_eq!(access(&vm1.path())?, "0:0 600", "owner and mode of vm1");
    check_eq!(ranges("vm1")?, places[0], "ranges of vm1");
    check_guest("db1:1", GIB)?;
    check_eq!(ranges("db1:1")?, places[2], "ranges of db1:1");
    check!(
        check_guest("vm2", 128 * MIB)?.ranges()? != places[3],
        "vm2 was not remade: {}",
        vm2.name
    );
    check_guest("hand", 2 * MIB)?;
    done("apply --prune")?;
    absent("hand")?;
    check_nothing_to_do()?;

    // A device that another program took is forgotten, and the guest made anew.
    let lost = device_of("vm2")?;
    lost.unbind()?;
    lost.destroy()?;
    done("apply")?;
    check_guest("vm2", 128 * MIB)?;
    check_nothing_to_do()?;
    clean()
}

fn in_use() -> Outcome {
    need()?;
    declare(&[
        ("vm1", "size = \"1G\"\nscrub = \"never\""),
        ("vm2", "size = \"512M\"\nscrub = \"never\""),
    ])?;
    done("apply")?;
    let device = check_guest("vm1", GIB)?;
    let mapping = map(&device.open()?)?;
    declare(&[
        ("vm1", "size = \"2G\"\nmode = \"0660\"\nscrub = \"never\""),
        ("vm2", "size = \"512M\"\nmode = \"0660\"\nscrub = \"never\""),
    ])?;
    let (before, places) = whole()?;
    let plan = done("apply --dry-run")?;
    for text in [
        "leave ",
        "size 1G -> 2G",
        "stays as it is: ",
        " is in use: 1 open file",
    ] {
        check!(plan.contains(text), "the plan has no '{text}': {plan}");
    }
    whole()?.0.expect(&before, "after a dry run")?;
    check_eq!(whole()?.1, places, "kept places after a dry run");
    let pid = format!("pid {}", std::process::id());
    check!(plan.contains(&pid), "the plan does not say '{pid}': {plan}");

    let ran = tool("apply")?;
    check_eq!(ran.code, Some(1), "exit code of apply");
    check!(
        ran.stderr.contains("1 of 2 guests are not as"),
        "apply says: {}",
        ran.stderr
    );
    check_eq!(check_guest("vm1", GIB)?.name, device.name, "device of vm1");
    check_eq!(access(&device.path())?, "0:0 600", "owner and mode of vm1");
    check_map(&mapping)?;
    let vm2 = check_guest("vm2", 512 * MIB)?;
    check_eq!(access(&vm2.path())?, "0:0 660", "owner and mode of vm2");
    // Nor is it pruned.
    declare(&[("vm2", "size = \"512M\"\nmode = \"0660\"\nscrub = \"never\"")])?;
    check_eq!(
        tool("apply --prune")?.code,
        Some(1),
        "exit code of apply --prune"
    );
    check_guest("vm1", GIB)?;
    check_map(&mapping)?;
    drop(mapping);
    done("apply --prune")?;
    absent("vm1")?;
    clean()
}

/// Maps a GiB with words that tell where they are.
fn map(file: &fs::File) -> Outcome<Mapping> {
    let mapping = Map::new(GIB).file(file)?;
    for offset in (0..GIB).step_by(MIB as usize) {
        mapping.write(offset, !offset);
    }
    Ok(mapping)
}

fn check_map(mapping: &Mapping) -> Outcome {
    for offset in (0..GIB).step_by(MIB as usize) {
        check_eq!(
            mapping.read(offset),
            !offset,
            "word of the running guest at {offset:#x}"
        );
    }
    Ok(())
}

fn refusals() -> Outcome {
    need()?;
    done("create vm1 --size 1G --node 0 --scrub never")?;
    // Node 0 has 2 GiB, node 1 has 4. The good guests come first, and one of them would have to be remade.
    let good = "[[guest]]\nname = \"vm1\"\nsize = \"512M\"\nnode = 0\n\n[[guest]]\nname = \"vm2\"\nsize = \"1G\"\n\n";
    for (rest, texts) in [
        (
            "size = \"4G\"\nnode = 0",
            [
                "layout.toml, line 11: big: no space for 4G",
                "region 0 has 512M free",
            ],
        ),
        (
            "size = \"8G\"\nnode = [0, 1]",
            ["big: no space for 4G", "region 0 has"],
        ),
        (
            "size = \"64G\"",
            ["big: no space for 64G", "; region 1 has 4G free"],
        ),
        (
            "size = \"1G\"\nnode = 5",
            ["big: no region lies on node 5", "node 1)"],
        ),
        (
            "size = \"1G\"\nregion = 9",
            ["big: there is no region 9", "There are: 0"],
        ),
        (
            "size = \"1G\"\nnoda = 0",
            [
                "TOML parse error at line 13, column 1",
                "unknown field `noda`",
            ],
        ),
        (
            "size = \"3M\"",
            ["line 11: big: size 3M is no multiple of 2M", "Use 2M or 4M"],
        ),
        (
            "size = \"1G\"\nowner = \"nobody-here\"",
            ["there is no user called nobody-here", "getent passwd"],
        ),
        (
            "size = 1",
            ["line 12, column 8", "expected a text in quotes"],
        ),
    ] {
        write(
            LAYOUT,
            &format!("{good}[[guest]]\nname = \"big\"\n{rest}\n"),
        )?;
        refused("apply", &texts)?;
        refused("apply --dry-run", &texts)?;
    }
    let _ = fs::remove_file(LAYOUT);
    refused(
        "apply",
        &[
            "there is no layout at /etc/daxdmem/layout.toml",
            "daxdmem save",
        ],
    )?;
    check!(!Path::new(PLACEMENT).exists(), "places were kept");
    check_guest("vm1", GIB)?;
    clean()
}

fn killed() -> Outcome {
    need()?;
    let running = ("run", "size = \"1G\"\nscrub = \"never\"");
    let first = [
        running,
        ("vm1", "size = \"1G\"\nscrub = \"never\""),
        ("vm2", "size = \"512M\"\nscrub = \"never\""),
        ("old", "size = \"512M\"\nscrub = \"never\""),
    ];
    let second = [
        running,
        ("vm1", "size = \"1.5G\"\nalign = \"2M\"\nscrub = \"never\""),
        (
            "vm2",
            "size = \"512M\"\nowner = \"4321:8765\"\nmode = \"0660\"\nscrub = \"hand-out\"",
        ),
        ("vm3", "size = \"256M\"\nscrub = \"never\"\nmode = \"0640\""),
    ];
    declare(&first)?;
    done("apply --prune")?;
    let guest = check_guest("run", GIB)?;
    let place = guest.ranges()?;
    let mapping = map(&guest.open()?)?;

    let mut steps = 0;
    let sample = Sample::new()?;
    let mut random: u64 = match sample.is_all() {
        true => 0x6461_7864_6d65_6d21,
        false => sample::random()?,
    };
    say!("seed {random:#x}");
    let mut points = Vec::new();
    for round in 0..=50_usize.div_ceil(sample.every) {
        declare(&first)?;
        done("apply --prune --no-wait")?;
        declare(&second)?;
        // The first round only counts.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let step = match round {
            0 => usize::MAX,
            _ => 1 + usize::try_from(random >> 33)? % steps,
        };
        let ran = killed_at(step, "daxdmem apply --prune --no-wait")?;
        if round == 0 {
            check_eq!(
                ran.code,
                Some(0),
                "exit code of apply, which said {}",
                ran.stderr
            );
            steps = ran.calls.len();
            check!(steps > 50, "apply has {steps} steps only");
        } else {
            check_eq!(ran.code, None, "exit code of apply killed at step {step}");
            points.push(step);
        }
        let at = format!(
            "killed at step {step}, {}",
            ran.calls.last().unwrap_or(&"none")
        );
        done("apply --prune --no-wait").named(&at)?;
        let check = || -> Outcome {
            check_guest("vm1", 3 * GIB / 2)?;
            let vm2 = check_guest("vm2", 512 * MIB)?;
            check_eq!(
                access(&vm2.path())?,
                "4321:8765 660",
                "owner and mode of vm2"
            );
            check_eq!(
                access(&check_guest("vm3", 256 * MIB)?.path())?,
                "0:0 640",
                "mode of vm3"
            );
            absent("old")?;
            check_eq!(
                check_guest("run", GIB)?.name,
                guest.name,
                "device of the running guest"
            );
            check_eq!(guest.ranges()?, place, "ranges of the running guest");
            check_map(&mapping)?;
            check_idle()?;
            check!(
                !Path::new("/dev/daxdmem/.new").exists(),
                "a link is half made"
            );
            check_nothing_to_do()
        };
        check().named(&at)?;
    }
    points.sort_unstable();
    say!("apply has {steps} steps; killed at {points:?}");
    drop(mapping);
    clean()
}

fn put_back() -> Outcome {
    need()?;
    let region = Region::first()?;
    declare(&[("vm1", "size = \"64M\"\nscrub = \"never\"")])?;
    done("apply")?;
    let before = ranges("vm1")?;
    // Somebody else's claim on what the larger device takes in addition: the driver cannot have it.
    let claim = format!("base={} size={} claim=1", region.start + 64 * MIB, 64 * MIB);
    module::insert_with(&payload::path("dmem_leaf_probe.ko"), &claim)?;
    declare(&[
        ("vm1", "size = \"128M\"\nscrub = \"never\""),
        ("vm2", "size = \"64M\"\nalign = \"4K\"\nscrub = \"never\""),
    ])?;
    let ran = tool("apply")?;
    check_eq!(ran.code, Some(1), "exit code of apply");
    for text in [
        "vm1 has again what it had, without its contents",
        "vm1 is never scrubbed",
        "1 of 2 guests are not as",
    ] {
        check!(ran.stderr.contains(text), "apply says: {}", ran.stderr);
    }
    module::unload("dmem_leaf_probe")?;
    check_guest("vm1", 64 * MIB)?;
    check_eq!(ranges("vm1")?, before, "ranges of vm1");
    check_guest("vm2", 64 * MIB)?;
    done("apply")?;
    check_guest("vm1", 128 * MIB)?;
    check_nothing_to_do()?;
    clean()
}
