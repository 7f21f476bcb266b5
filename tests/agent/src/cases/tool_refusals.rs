// SPDX-License-Identifier: GPL-2.0
//! What the tool refuses where that takes more than its sessions can set up (see tool_sessions.rs): the message says
//! what to do, the exit code is not zero, and nothing has changed.

use crate::case::{Case, Outcome};
use crate::child::Child;
use crate::command::Command;
use crate::device::{driver_attribute, Device, DAX_DMEM, DEVICE_DAX};
use crate::mapping::Map;
use crate::memory::movable;
use crate::region::{Region, GIB, MIB};
use crate::{check, check_eq, module, probe, say, sysfs};

use super::tool_host::{check_guest, done, link, need, refused, tool, Host, STATE};

pub const CASES: &[Case] = &[
    Case {
        name: "tool-refusals",
        shows: "where no whole GiB is free the tool says what fits",
        run: refusals,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-not-root",
        shows: "who is not root may look, and learns no physical address",
        run: not_root,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-in-use",
        shows: "a device in use is taken away with --force only; its memory is not given out again before the last user ends",
        limit: 60,
        run: in_use,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-others-devices",
        shows: "memory that others' devices have, and memory lent to the host, is left alone; the tool says how to get it",
        limit: 60,
        run: others_devices,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-disturbed",
        shows: "while device_dax takes every device it can, creates succeed or are undone, and nothing is lost",
        limit: 60,
        run: disturbed,
        ..Case::DEFAULT
    },
];

fn refusals() -> Outcome {
    need()?;
    let region = Region::first()?;
    // The region is full of pieces without a whole GiB.
    let fillers = (0..6)
        .map(|gib| region.create(2 * MIB, &[(gib * GIB + GIB / 2, 2 * MIB)]))
        .collect::<Outcome<Vec<_>>>()?;
    refused(
        "create vm2 --size 1G",
        &["0 of it at that alignment", "With --align 2M it fits"],
    )?;
    fillers.into_iter().try_for_each(Device::destroy)
}

fn not_root() -> Outcome {
    need()?;
    done("create vm1 --size 1G")?;
    let as_nobody = |words: &str| {
        Command::line(&format!(
            "setpriv --reuid 65534 --regid 65534 --clear-groups daxdmem {words}"
        ))
    };
    let list = as_nobody("list --json").run()?;
    check!(
        list.contains("\"guest\": \"vm1\"") && list.contains("\"size\": 1073741824"),
        "list --json shows {list}"
    );
    check!(
        !list.contains("0x"),
        "an address is shown to everybody: {list}"
    );
    let list = as_nobody("list -v").try_run()?;
    check!(
        list.stdout.contains("vm1") && !list.stdout.contains("0x"),
        "list -v shows {}",
        list.stdout
    );
    check!(
        list.stderr.contains("shown to root only"),
        "list -v says {}",
        list.stderr
    );
    let arguments = as_nobody("qemu-args vm1").run()?;
    check_eq!(
        arguments,
        done("qemu-args vm1")?,
        "what qemu-args prints for everybody"
    );
    // The state holds addresses; and a lock can be taken on what can be read.
    for file in [STATE, "/run/daxdmem/lock"] {
        let line = format!("setpriv --reuid 65534 --regid 65534 --clear-groups cat {file}");
        let ran = Command::line(&line).try_run()?;
        check!(
            ran.code != Some(0) && ran.stderr.contains("denied"),
            "everybody may read {file}"
        );
    }
    done("destroy vm1").map(drop)
}

fn in_use() -> Outcome {
    need()?;
    let region = Region::first()?;
    done("create vm1 --size 2G")?;
    let device = check_guest("vm1", 2 * GIB)?;
    let held = device.ranges()?;
    let mut user = Child::start(|link| {
        let mapping = Map::new(2 * GIB).file(&device.open()?)?;
        mapping.write(GIB, 7);
        link.send("mapped")?;
        link.receive()?;
        let fault = probe::read(mapping.address()).map_err(|fault| fault.signal);
        check_eq!(fault, Err(libc::SIGBUS), "access after --force");
        link.send("dead")?;
        link.receive()?;
        Ok(())
    })?;
    user.link().receive()?;
    // The file is closed, only the mapping is left.
    let who = format!("1 open file, by pid {} (", user.pid());
    for words in [
        "destroy vm1",
        "unbind vm1",
        &format!("unbind {}", device.name),
    ] {
        refused(words, &["is in use: ", &who, "--force"])?;
    }

    let told = tool("destroy vm1 --force")?;
    check_eq!(told.code, Some(0), "exit code of destroy --force");
    check!(
        told.stderr
            .contains("stays in quarantine until 1 open files"),
        "destroy --force says {}",
        told.stderr
    );
    user.link().send("look")?;
    user.link().receive()?;
    check!(
        done("list")?.contains("QUARANTINE"),
        "list does not show the quarantine"
    );
    check_eq!(region.available()?, region.size, "bytes that no device has");

    // 4 GiB of 6 are to be had, not the first two.
    refused(
        "create vm2 --size 6G",
        &[
            "region 0 has 4G free",
            "and 2G in quarantine",
            "Ask for 4G or less",
        ],
    )?;
    done("create vm2 --size 4G")?;
    for range in check_guest("vm2", 4 * GIB)?.ranges()? {
        for old in &held {
            check!(
                range.start >= old.start + old.length || old.start >= range.start + range.length,
                "{range:x?} was given out while {old:x?} is in quarantine"
            );
        }
    }
    let on_held = region.create(2 * MIB, &[(held[0].start - region.start, 64 * MIB)])?;
    refused(
        &format!("bind {}", on_held.name),
        &[
            "cannot be bound",
            "was unbound from",
            "in quarantine until 1 open files",
        ],
    )?;
    on_held.destroy()?;

    user.link().send("end")?;
    user.finish()?;
    wait_for_end_of_quarantine()?;
    done("create vm1 --size 2G")?;
    check_eq!(
        check_guest("vm1", 2 * GIB)?.ranges()?,
        held,
        "ranges after the quarantine"
    );

    // Unbound by force, it stays the guest's, and can be neither bound nor destroyed before its user ends.
    let user = check_guest("vm1", 2 * GIB)?.open()?;
    let told = tool("unbind vm1 --force")?;
    check_eq!(told.code, Some(0), "exit code of unbind --force");
    check!(
        told.stderr.contains("is in quarantine until 1 open files"),
        "unbind --force says {}",
        told.stderr
    );
    refused(
        "bind vm1",
        &["cannot be bound", "in quarantine until 1 open files"],
    )?;
    refused("destroy vm1", &["vm1 is in use: 1 open file"])?;
    drop(user);
    wait_for_end_of_quarantine()?;
    done("bind vm1")?;
    check_guest("vm1", 2 * GIB)?;
    done("destroy vm1")?;
    done("destroy vm2").map(drop)
}

/// Files are closed a little after their process has ended.
fn wait_for_end_of_quarantine() -> Outcome {
    let quarantine = driver_attribute(DAX_DMEM, "quarantine");
    for _ in 0..200 {
        if sysfs::read(&quarantine)?.is_empty() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    check_eq!(sysfs::read(&quarantine)?, "", "the quarantine in the end");
    Ok(())
}

/// As on a host where dax_hmem was loaded without region_idle, and where memory was lent to the host.
fn others_devices() -> Outcome {
    need()?;
    module::load("kmem")?;
    let region = Region::first()?;
    let first = Device::existing(&format!("dax{}.0", region.id));
    sysfs::write(first.attribute("size"), &region.size.to_string())?;
    refused(
        "create vm1 --size 1G",
        &[
            "region 0 has 0 free",
            "Devices without a guest have memory too: dax0.0 (6G)",
            "daxctl destroy-device dax0.0",
        ],
    )?;
    // What the message says works.
    Command::line(&format!("daxctl disable-device {}", first.name)).try_run()?;
    Command::line(&format!("daxctl destroy-device {}", first.name)).try_run()?;
    check_eq!(first.size()?, 0, "size of device 0 after it was given back");
    done("create vm1 --size 1G")?;
    check_guest("vm1", GIB)?;

    let lent = region.create(2 * MIB, &[(2 * GIB, GIB)])?;
    movable(|| lent.bind("kmem"))?;
    let texts = ["is system RAM", "daxdmem mode"];
    refused(&format!("bind {}", lent.name), &texts)?;
    refused(&format!("unbind {}", lent.name), &texts)?;
    refused(&format!("unbind {} --force", lent.name), &texts)?;
    refused(
        &format!("qemu-args {}", lent.name),
        &["is not page-less now (system-ram)"],
    )?;
    check!(
        done("list")?.contains("system-ram"),
        "list does not show it"
    );
    Command::line(&format!("daxctl offline-memory {}", lent.name))
        .limit(30)
        .try_run()?;
    let back = format!("daxctl reconfigure-device -f -m devdax {}", lent.name);
    Command::line(&back).limit(30).run()?;
    done(&format!("unbind {}", lent.name))?;
    done(&format!("bind {}", lent.name))?;
    done(&format!("unbind {}", lent.name))?;
    lent.destroy()?;
    done("destroy vm1").map(drop)
}

/// device_dax takes any device that is unbound as soon as some device is handed to it, as daxctl does.
fn disturbed() -> Outcome {
    need()?;
    let before = Host::look()?.without_history();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&stop);
    let other = std::thread::spawn(move || {
        while !seen.load(std::sync::atomic::Ordering::Relaxed) {
            // No device has this name; all unbound ones are looked at.
            let _ = sysfs::try_write(driver_attribute(DEVICE_DAX, "new_id"), "dax99.0");
            let _ = sysfs::try_write(driver_attribute(DEVICE_DAX, "remove_id"), "dax99.0");
        }
    });
    let mut codes = Vec::new();
    for round in 0..12 {
        let ran = tool(&format!("create vm{round} --size 64M"))?;
        match ran.code {
            Some(0) => drop(check_guest(&format!("vm{round}"), 64 * MIB)?),
            Some(1) => check!(ran.stderr.contains("device_dax"), "it says {}", ran.stderr),
            Some(3) => {
                let text = "The next daxdmem command tries again";
                check!(ran.stderr.contains(text), "it says {}", ran.stderr);
            }
            code => crate::fail!("exit code {code:?}; it says {}", ran.stderr),
        }
        codes.push(ran.code);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    check!(other.join().is_ok(), "the other program's thread panicked");
    say!("exit codes: {codes:?}");
    done("list")?;
    for round in 0..12 {
        if link(&format!("vm{round}")).symlink_metadata().is_ok() {
            done(&format!("destroy vm{round}"))?;
        }
    }
    Host::look()?
        .without_history()
        .expect(&before, "when all is quiet again")
}
