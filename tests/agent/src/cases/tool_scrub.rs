// SPDX-License-Identifier: GPL-2.0
//! What the tool makes of scrubbing: choices reach the driver, hold across calls, and are shown.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::case::{errno, Case, Outcome};
use crate::command::{Command, Ran};
use crate::device::{driver_attribute, Device, DAX_DMEM};
use crate::mapping::Map;
use crate::pattern::Pattern;
use crate::region::{Region, GIB, MIB};
use crate::{check, check_eq, fail, say, scrub, sysfs};

use super::tool_host::{
    check_guest, check_idle, done, need, pending, refused, refused_by, tool, Host,
};

pub const CASES: &[Case] = &[
    Case {
        name: "tool-scrub-policy",
        shows: "the scrub policy that was chosen reaches the driver, is shown, and holds for later binds until it is changed",
        limit: 60,
        run: policies,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-scrub-contents",
        shows: "the next guest finds zeros with the policies release and hand-out, and the last guest's bytes with never",
        limit: 60,
        run: contents,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-scrub-progress",
        shows: "create waits for the scrub and tells how far it is; list shows it meanwhile; destroy can wait for its own",
        limit: 180,
        run: progress,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-scrub-interrupted",
        shows: "who ends the wait by a signal is told that the scrub goes on, and it does; the wait holds no lock",
        limit: 240,
        run: interrupted,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-old-driver",
        shows: "a driver that does not scrub is refused before anything is changed",
        run: old_driver,
        ..Case::DEFAULT
    },
];

/// The driver's word for what is done with the device's memory when it is taken back.
fn policy(device: &Device) -> Outcome<String> {
    sysfs::read(device.attribute("dax_dmem/scrub_policy"))
}

/// Whether the guest's device has this policy, by the driver and by the tool.
fn check_policy(name: &str, size: u64, wanted: &str) -> Outcome<Device> {
    let device = check_guest(name, size)?;
    check_eq!(policy(&device)?, wanted, "scrub policy of {name}");
    let told = sysfs::read(driver_attribute(DAX_DMEM, "scrub_policy"))?;
    check_eq!(
        pending(&told),
        "",
        "what the driver is told for later binds"
    );
    let json = done("list --json")?;
    let member = format!("\"scrub_policy\": \"{wanted}\"");
    check!(json.contains(&member), "list --json shows {json}");
    let list = done("list")?;
    let line = list.lines().find(|line| line.contains(name));
    check!(
        line.is_some_and(|line| line.contains(wanted)),
        "list shows {list}"
    );
    Ok(device)
}

fn policies() -> Outcome {
    need()?;
    let size = 64 * MIB;
    let before = Host::look()?.without_history();
    done("create vm1 --size 64M")?;
    check_policy("vm1", size, "release")?;
    done("destroy vm1")?;
    for chosen in ["hand-out", "never", "release"] {
        let ran = tool(&format!("create vm1 --size 64M --scrub {chosen}"))?;
        check_eq!(ran.code, Some(0), "exit code of create");
        let warned = ran.stderr.contains("vm1 is never scrubbed");
        check_eq!(
            warned,
            chosen == "never",
            "whether create warns: {}",
            ran.stderr
        );
        check_policy("vm1", size, chosen)?;
        // Kept for a bind that says nothing, whoever unbound it.
        done("unbind vm1")?;
        let json = done("list --json")?;
        let member = format!("\"scrub_policy\": \"{chosen}\"");
        check!(json.contains(&member), "unbound, list --json shows {json}");
        done("bind vm1")?;
        let device = check_policy("vm1", size, chosen)?;
        sysfs::write(driver_attribute(DAX_DMEM, "unbind"), &device.name)?;
        done("bind vm1")?;
        check_policy("vm1", size, chosen)?;
        done("destroy vm1")?;
    }
    // A new guest begins anew.
    done("create vm1 --size 64M")?;
    check_policy("vm1", size, "release")?;
    for chosen in ["never", "hand-out"] {
        done(&format!("set vm1 --scrub {chosen}"))?;
        check_policy("vm1", size, chosen)?;
        done("unbind vm1")?;
        done("bind vm1")?;
        check_policy("vm1", size, chosen)?;
    }
    refused(
        "bind vm1 --scrub never",
        &["vm1 is page-less already", "daxdmem set vm1"],
    )?;
    // Unbound, it holds from the next bind on.
    done("unbind vm1")?;
    done("set vm1 --scrub release")?;
    done("bind vm1")?;
    check_policy("vm1", size, "release")?;
    done("unbind vm1")?;
    done("bind vm1 --scrub hand-out")?;
    check_policy("vm1", size, "hand-out")?;
    done("destroy vm1")?;

    // A device that is no guest's keeps its own, and takes it along.
    let by_hand = Region::first()?.create(2 * MIB, &[(GIB, size)])?;
    done(&format!("bind {} --scrub never", by_hand.name))?;
    done(&format!("unbind {}", by_hand.name))?;
    done(&format!("bind {}", by_hand.name))?;
    check_eq!(
        policy(&by_hand)?,
        "never",
        "policy of a device made by hand"
    );
    let name = by_hand.name.clone();
    by_hand.destroy()?;
    let namesake = Region::first()?.create(2 * MIB, &[(GIB, size)])?;
    check_eq!(namesake.name, name, "name of the next device");
    done(&format!("bind {name}"))?;
    check_eq!(policy(&namesake)?, "release", "policy of the next device");
    namesake.destroy()?;
    Host::look()?
        .without_history()
        .expect(&before, "in the end")
}

fn contents() -> Outcome {
    need()?;
    let size = 64 * MIB;
    let pattern = Pattern::new(3);
    for chosen in ["release", "hand-out", "never"] {
        done(&format!("create vm1 --size 64M --scrub {chosen}"))?;
        let device = check_guest("vm1", size)?;
        let ranges = device.ranges()?;
        let mapping = Map::new(size).file(&device.open()?)?;
        pattern.fill(mapping.words(0, size), 0);
        drop(mapping);
        done("destroy vm1")?;

        done(&format!("create vm2 --size 64M --scrub {chosen}"))?;
        let device = check_guest("vm2", size)?;
        check_eq!(device.ranges()?, ranges, "ranges of the next guest");
        let mapping = Map::new(size).file(&device.open()?)?;
        if chosen == "never" {
            // So the pattern would have been seen above.
            pattern.verify(mapping.words(0, size), 0)?;
        } else {
            let word = |index: &u64| mapping.read(index * 8) != 0;
            let found = (0..size / 8).find(word);
            check_eq!(found, None, "first word of {chosen} that is not zero");
        }
        drop(mapping);
        done("destroy vm2")?;
    }
    Ok(())
}

/// Makes all memory of the region dirty: somebody had it.
fn soil(region: &Region) -> Outcome {
    let whole = region.create(2 * MIB, &[(0, region.size)])?;
    // Unscrubbed: the cases' own way to bind.
    whole.bind(DAX_DMEM)?;
    drop(whole.open()?);
    whole.destroy()
}

fn progress() -> Outcome {
    need()?;
    let region = Region::first()?;
    // Enough to take longer than the tool is looked at meanwhile, even where the VM's memory has been written to before.
    let size = 5 * GIB;
    soil(&region)?;

    let began = Instant::now();
    done("create vm1 --size 5G --no-wait")?;
    let device = check_guest("vm1", size)?;
    check_eq!(
        sysfs::read(device.attribute("dax_dmem/scrub_state"))?,
        "scrubbing",
        "state after create --no-wait"
    );
    let opened = fs::File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(device.path());
    check_eq!(
        errno(opened),
        Some(libc::EAGAIN),
        "errno of open, O_NONBLOCK"
    );
    let (list, json) = (done("list")?, done("list --json")?);
    let text = "\"state\": \"scrubbing\"";
    check!(json.contains(text), "list --json shows {json}");
    check!(
        json.contains(&format!("\"total\": {size}")),
        "list --json shows {json}"
    );
    let line = list.lines().find(|line| line.contains("vm1"));
    check!(
        line.is_some_and(|line| line.contains(" scrubbing ") && line.contains("%  root:root 0600")),
        "list shows {list}"
    );
    // Waits until it can be opened.
    drop(device.open()?);
    say!("{size} bytes were scrubbed in {:?}", began.elapsed());
    check!(
        done("list")?.contains(" scrubbed "),
        "list does not show the end"
    );

    // Waiting on the way out and on the way in.
    let began = Instant::now();
    let ran = tool("destroy vm1 --wait")?;
    check_lines(&ran, "5.00 GiB", began.elapsed())?;
    let json = done("list --json")?;
    check!(
        json.contains(&format!("\"free_clean\": {size}")) && json.contains("\"scrubbing\": []"),
        "after destroy --wait list --json shows {json}"
    );
    let began = Instant::now();
    let ran = tool("create vm1 --size 5G")?;
    check_eq!(ran.stderr, "", "what create says of clean memory");
    let clean = began.elapsed();
    done("destroy vm1")?;
    soil(&region)?;
    let began = Instant::now();
    let ran = tool("create vm1 --size 5G")?;
    check_lines(&ran, "5.00 GiB", began.elapsed())?;
    let device = check_guest("vm1", size)?;
    check_eq!(
        sysfs::read(device.attribute("dax_dmem/scrub_state"))?,
        "scrubbed",
        "state after create"
    );
    let dirty = began.elapsed();
    say!("create took {clean:?} of memory that was clean, {dirty:?} of memory that was not");

    // In the background, and taken over by the next guest.
    drop(device.open()?);
    let ran = tool("destroy vm1")?;
    check!(
        ran.stderr.contains("are being scrubbed in the background"),
        "destroy says {}",
        ran.stderr
    );
    let list = done("list")?;
    check!(
        list.contains("SCRUBBING") && list.contains(&device.name),
        "list shows {list}"
    );
    let json = done("list --json")?;
    check!(
        !json.contains("\"free_scrubbing\": 0") && json.contains("\"free_scrubbing\": "),
        "list --json shows {json}"
    );
    done("create vm1 --size 5G")?;
    drop(check_guest("vm1", size)?.open()?);

    // On a terminal it is a bar, which is gone at the end.
    let ran = Command::line("daxdmem destroy vm1 --wait")
        .on_terminal()
        .limit(120)
        .try_run()?;
    let bars = ran.stderr.matches("vm1: scrubbing [").count();
    check!(
        bars > 1 && ran.stderr.contains(" % of 5.00 GiB") && ran.stderr.contains("\x1b[2K"),
        "destroy says on a terminal: {:?}",
        ran.stderr
    );
    let last = ran.stderr.trim_end().rsplit(['\r', '\n']).next();
    check!(
        last.is_some_and(|line| line.contains("vm1: scrubbed, 5.00 GiB in ")),
        "the last line on a terminal is {last:?}"
    );
    Ok(())
}

/// Whether a command that took so long told of a scrub from begin to end, in lines.
fn check_lines(ran: &Ran, size: &str, took: Duration) -> Outcome {
    check_eq!(ran.code, Some(0), "exit code; it said {}", ran.stderr);
    let lines: Vec<&str> = ran.stderr.lines().collect();
    let of_size = format!(" of {size} (");
    let under_way = |line: &&&str| line.contains("vm1: scrubbing, ") && line.contains(&of_size);
    let count = lines.iter().filter(under_way).count();
    // One at once, and the next after a second.
    let least = if took < Duration::from_secs(3) { 1 } else { 2 };
    check!(
        count >= least,
        "{count} lines in {took:?} tell how far it is: {}",
        ran.stderr
    );
    check!(
        lines
            .last()
            .is_some_and(|line| line.contains(&format!("vm1: scrubbed, {size} in "))),
        "the last line is not about the end: {}",
        ran.stderr
    );
    check!(
        !ran.stderr.contains('\r'),
        "a bar was drawn: {}",
        ran.stderr
    );
    Ok(())
}

/// Starts the tool, and hands it back when it says on its standard error that it waits for a scrub.
fn waiting(words: &str) -> Outcome<Child> {
    let mut child = std::process::Command::new("daxdmem")
        .args(words.split(' '))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut said = Vec::new();
    let mut byte = [0];
    while !said.ends_with(b"%)\n") {
        match child.stderr.as_mut().map(|pipe| pipe.read(&mut byte)) {
            Some(Ok(1)) => said.push(byte[0]),
            _ => fail!(
                "'{words}' does not wait: {}",
                String::from_utf8_lossy(&said)
            ),
        }
    }
    Ok(child)
}

/// Ends a waiting tool by that signal; what it says then.
fn end_by(mut child: Child, signal: i32) -> Outcome<String> {
    Command::line("sh -c")
        .arg(format!("kill -{signal} {}", child.id()))
        .run()?;
    let mut said = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        pipe.read_to_string(&mut said)?;
    }
    check_eq!(
        child.wait()?.signal(),
        Some(signal),
        "signal that ended it; it said {said}"
    );
    Ok(said)
}

fn interrupted() -> Outcome {
    need()?;
    let region = Region::first()?;
    // Enough to take longer than what is done meanwhile, even where the VM's memory has been written to before.
    let size = 5 * GIB;
    let create = "create vm1 --size 5G";
    for (words, signal) in [(create, libc::SIGINT), ("bind vm1", libc::SIGTERM)] {
        if words == "bind vm1" {
            drop(check_guest("vm1", size)?.open()?);
            done("set vm1 --scrub hand-out")?;
            done("unbind vm1")?;
        } else {
            soil(&region)?;
        }
        let child = waiting(words)?;
        // Nobody has to wait for who waits.
        Command::line("flock --nonblock /run/daxdmem/lock true").run()?;
        let said = end_by(child, signal)?;
        check!(
            said.contains("vm1") && said.contains("it is bound, and whoever opens it waits"),
            "it says {said}"
        );
        let device = check_guest("vm1", size)?;
        let state = device.attribute("dax_dmem/scrub_state");
        let now = sysfs::read(&state)?;
        check!(
            ["scrubbing", "scrubbed"].contains(&now.as_str()),
            "state after the signal: {now}"
        );
        check_idle()?;
        // Who asks again waits for the same scrub.
        let ran = tool("bind vm1")?;
        check!(
            ran.stderr.contains("is page-less already"),
            "bind says {}",
            ran.stderr
        );
        check_eq!(
            sysfs::read(&state)?,
            "scrubbed",
            "state after the second wait"
        );
    }
    // The same on the way out.
    drop(check_guest("vm1", size)?.open()?);
    done("set vm1 --scrub release")?;
    let said = end_by(waiting("destroy vm1 --wait")?, libc::SIGINT)?;
    check!(
        said.contains("its memory is free, and is scrubbed in the background"),
        "it says {said}"
    );
    scrub::settle()?;

    // Somebody takes the device away: the wait ends, and says so.
    soil(&region)?;
    let mut child = waiting(create)?;
    let device = check_guest("vm1", size)?;
    sysfs::write(driver_attribute(DAX_DMEM, "unbind"), &device.name)?;
    let mut said = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        pipe.read_to_string(&mut said)?;
    }
    check_eq!(child.wait()?.code(), Some(3), "exit code; it said {said}");
    check!(
        said.contains("was taken away from dax_dmem while it was being scrubbed"),
        "it says {said}"
    );
    done("destroy vm1")?;
    // Nobody behind this finds the memory taken.
    scrub::settle()
}

/// The directory of a driver with nothing in it that has to do with scrubbing, in place of the real one.
fn old_driver() -> Outcome {
    need()?;
    done("create vm1 --size 64M")?;
    done("unbind vm1")?;
    fs::create_dir_all("/tmp/old")?;
    for attribute in ["new_id", "remove_id", "bind", "unbind", "quarantine"] {
        fs::write(format!("/tmp/old/{attribute}"), "")?;
    }
    let hide = format!("mount --bind /tmp/old /sys/bus/dax/drivers/{DAX_DMEM}");
    for words in [
        "create vm2 --size 64M",
        "bind vm1",
        "bind vm1 --scrub never",
    ] {
        let command =
            Command::line("unshare --mount sh -c").arg(format!("{hide} && exec daxdmem {words}"));
        let texts = [
            "older than this daxdmem, and does not scrub",
            "rmmod dax_dmem",
        ];
        refused_by(&command, words, 1, &texts)?;
        check_eq!(
            fs::read_to_string("/tmp/old/new_id")?,
            "",
            "what it was told"
        );
    }
    fs::remove_dir_all("/tmp/old")?;
    done("destroy vm1").map(drop)
}
