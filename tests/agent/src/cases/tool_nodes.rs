// SPDX-License-Identifier: GPL-2.0
//! Guests that span NUMA nodes: a device on each, known by one name.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::case::{Case, Failure, Outcome};
use crate::mapping::Map;
use crate::region::{Region, GIB};
use crate::{check, check_eq, say, sysfs};

use super::tool_host::{access, check_guest, done, link, need, refused, Host};
use super::tool_kills::at_every_step;

pub const CASES: &[Case] = &[
    Case {
        name: "tool-nodes",
        shows: "a guest of two nodes has a device on each, and its name stands for both in every verb",
        machine: "numa",
        limit: 60,
        run: nodes,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-nodes-refused",
        shows: "a guest of two nodes is made wholly or not at all, and none of its devices goes while one is in use",
        machine: "numa",
        limit: 60,
        run: refusals,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-nodes-qemu",
        shows: "QEMU takes both devices with the arguments that qemu-args prints, as two nodes",
        machine: "numa",
        limit: 60,
        run: qemu,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-nodes-killed",
        shows: "create, set and destroy of a guest of two nodes, killed anywhere, end wholly done or wholly undone",
        machine: "numa",
        limit: 400,
        run: killed,
        sampled: true,
        ..Case::DEFAULT
    },
];

/// The guest's devices have these sizes, on nodes 0 and 1.
fn check_both(name: &str, sizes: [u64; 2]) -> Outcome {
    for (node, size) in (0..).zip(sizes) {
        let device = check_guest(&format!("{name}:{node}"), size)?;
        let found = sysfs::read_number(device.attribute("target_node"))?;
        check_eq!(found, node, "node of {name}:{node}");
    }
    Ok(())
}

fn absent(name: &str) -> bool {
    ["", ":0", ":1"]
        .iter()
        .all(|end| link(&format!("{name}{end}")).symlink_metadata().is_err())
}

fn nodes() -> Outcome {
    need()?;
    let before = Host::look()?.without_history();
    done("create db1 --size 2G --node 0,1 --scrub never")?;
    check_both("db1", [GIB, GIB])?;
    check!(
        link("db1").symlink_metadata().is_err(),
        "there is a link for both"
    );
    let json = done("list --json")?;
    for node in [0, 1] {
        let text = format!("\"guest\": \"db1\",\n      \"link\": \"/dev/daxdmem/db1:{node}\"");
        check!(json.contains(&text), "list --json has no {text}: {json}");
    }
    check!(
        done("list")?.contains("  db1:1  "),
        "list does not show db1:1"
    );
    refused("create db1 --size 1G", &["the name db1 is taken"])?;

    done("set db1 --scrub hand-out --owner 4321:8765 --mode 0660")?;
    let node = |part: &str| -> Outcome<String> { access(&check_guest(part, GIB)?.path()) };
    check_eq!(node("db1:0")?, "4321:8765 660", "node of db1:0");
    check_eq!(node("db1:1")?, "4321:8765 660", "node of db1:1");
    done("set db1:1 --mode 0600")?;
    check_eq!(node("db1:0")?, "4321:8765 660", "node of db1:0");
    check_eq!(node("db1:1")?, "4321:8765 600", "node of db1:1");

    let (first, second) = (check_guest("db1:0", GIB)?, check_guest("db1:1", GIB)?);
    done("unbind db1")?;
    check_eq!(
        (first.driver(), second.driver()),
        (None, None),
        "drivers after unbind"
    );
    done("bind db1:1")?;
    check_eq!(first.driver(), None, "driver of db1:0");
    done("bind db1")?;
    check_both("db1", [GIB, GIB])?;
    done("destroy db1")?;
    Host::look()?
        .without_history()
        .expect(&before, "after create and destroy")?;

    // Sizes of their own, and the memory of each node is that node's.
    done("create db1 --node 1=3G --node 0=1G --scrub never")?;
    check_both("db1", [GIB, 3 * GIB])?;
    done("create vm1 --size 1G --node 0 --scrub never")?;
    check_guest("vm1", GIB)?;
    done("destroy db1:0")?;
    check_guest("db1:1", 3 * GIB)?;
    done("destroy db1")?;
    done("destroy vm1")?;
    Host::look()?
        .without_history()
        .expect(&before, "after the guests are gone")
}

fn refusals() -> Outcome {
    need()?;
    let before = Host::look()?.without_history();
    // Node 0 has 2 GiB, node 1 has 4.
    for (words, texts) in [
        (
            "create db1 --size 6G --node 0,1",
            ["no space for 3G", "region 0 has 2G free"],
        ),
        (
            "create db1 --node 0=1G,1=5G",
            ["no space for 5G", "region 1 has 4G free"],
        ),
        (
            "create db1 --size 2G --node 0,7",
            ["no region lies on node 7", "node 1)"],
        ),
        (
            "create db1 --size 2G --node 0,1 --region 0",
            ["a region lies on one node", "name one node"],
        ),
        (
            "create db1 --size 3G --align 1G --node 0,1",
            ["cannot be split evenly over 2 nodes", "Use 2G or 4G"],
        ),
        (
            "create db1 --size 2G --node 0,0",
            ["node 0 is named twice", "Name each node once"],
        ),
    ] {
        refused(words, &texts)?;
    }
    // Somebody's file stands where the link of the second device has to be.
    done("create vm1 --size 2M")?;
    std::fs::write(link("db1:1"), "mine")?;
    refused(
        "create db1 --size 2G --node 0,1",
        &["/dev/daxdmem/db1:1 is in the way"],
    )?;
    std::fs::remove_file(link("db1:1"))?;
    done("destroy vm1")?;

    done("create db1 --size 2G --node 0,1 --scrub never")?;
    let user = check_guest("db1:1", GIB)?.open()?;
    let mapping = Map::new(GIB).file(&user)?;
    mapping.write(8, 42);
    for verb in ["destroy", "unbind"] {
        refused(
            &format!("{verb} db1"),
            &["db1:1", " is in use: 1 open file"],
        )?;
    }
    check_both("db1", [GIB, GIB])?;
    check_eq!(mapping.read(8), 42, "the user's word");
    drop((mapping, user));
    done("destroy db1")?;
    Host::look()?
        .without_history()
        .expect(&before, "after all was refused")
}

fn qemu() -> Outcome {
    need()?;
    done("create db1 --size 2G --node 0,1 --scrub never")?;
    let arguments = done("qemu-args db1")?;
    say!("{}", arguments.trim_end());
    let mut qemu = Command::new("qemu-system-x86_64")
        .args("-accel tcg -nodefaults -display none -S -monitor stdio".split(' '))
        .args(arguments.trim_end().split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = qemu.stdin.take() {
        input.write_all(b"info memdev\ninfo numa\nquit\n")?;
    }
    let ended = qemu.wait_with_output()?;
    let monitor = String::from_utf8_lossy(&ended.stdout);
    for text in [
        "2 nodes",
        "node 0 size: 1024 MB",
        "node 1 size: 1024 MB",
        "share: true",
    ] {
        check!(
            monitor.contains(text),
            "the monitor does not say '{text}': {monitor}"
        );
    }
    done("destroy db1").map(drop)
}

fn killed() -> Outcome {
    need()?;
    let without = Host::look()?.without_history();
    // The size of node 1's share tells whether a device is the one of a later try.
    let whole_or_gone = || -> Outcome<&'static str> {
        if absent("db1") {
            let json = done("list --json")?;
            check!(
                !json.contains("db1"),
                "the name is there, the links are not: {json}"
            );
            Host::look()?
                .without_history()
                .expect(&without, "without the guest")?;
            return Ok("gone");
        }
        check_both("db1", [GIB, 2 * GIB])?;
        Ok("there")
    };
    let words = "create db1 --node 0=1G,1=2G --scrub never";
    let steps = at_every_step(
        words,
        || Ok(()),
        || {
            let end = whole_or_gone()?;
            if end == "gone" {
                done(words)?;
                check_both("db1", [GIB, 2 * GIB])?;
            }
            done("destroy db1")?;
            Ok(end)
        },
    )?;
    check!(steps > 20, "{steps} steps only for two devices");

    let make = || -> Outcome {
        if absent("db1") {
            done(words)?;
        }
        Ok(())
    };
    let mut gone = false;
    at_every_step("destroy db1", make, || {
        let end = whole_or_gone()?;
        check!(
            !gone || end == "gone",
            "the guest is there again after a later step"
        );
        gone = end == "gone";
        Ok(end)
    })?;

    make()?;
    let paths = [
        check_guest("db1:0", GIB)?.path(),
        check_guest("db1:1", 2 * GIB)?.path(),
    ];
    let of = |path: &Path| access(path);
    let restore = || done("set db1 --owner 0:0 --mode 600").map(drop);
    at_every_step("set db1 --owner 4321:8765 --mode 0660", restore, || match [
        of(&paths[0])?,
        of(&paths[1])?,
    ]
    .map(|text| text == "0:0 600")
    {
        [true, true] => Ok("old"),
        [false, false] => Ok("new"),
        mixed => Err(Failure::Fail(format!(
            "one of them only is as before: {mixed:?}"
        ))),
    })?;
    done("destroy db1")?;
    Region::check_all_free()
}
