// SPDX-License-Identifier: GPL-2.0
//! The tool's sessions that need a machine of their own, played to the letter: tools/daxdmem/tests/sessions/README.md
//! tells about their files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dmem_sessions::{differences, play, read, Ended, Look, Shell, Stage};

use crate::case::{Case, Failure, Outcome};
use crate::cmdline::patient;
use crate::{check, payload, say, sysfs};

use super::tool_host::{need, walk, Host};

pub const CASES: &[Case] = &[
    Case {
        name: "tool-sessions",
        shows: "what the tool says and does when something is wrong, to the letter; where it says so, nothing has changed",
        limit: 360,
        // What other cases leave, kmem loaded for one, would show.
        fresh: true,
        run: || play_all("std"),
        ..Case::DEFAULT
    },
    Case {
        name: "tool-sessions-nodes",
        shows: "the same for guests on several nodes",
        machine: "numa",
        limit: 60,
        fresh: true,
        run: || play_all("numa"),
        ..Case::DEFAULT
    },
    Case {
        name: "tool-sessions-no-region",
        shows: "the same on a host without reserved memory",
        machine: "small",
        limit: 60,
        run: || play_all("small"),
        ..Case::DEFAULT
    },
];

/// Where sessions are played; each has it for itself.
const DIRECTORY: &str = "/tmp/session";

/// What the tool writes, beside what [`Host`] knows, or could write.
const FILES: &[&str] = &[
    DIRECTORY,
    "/boot",
    "/etc/apparmor.d/abstractions",
    "/etc/daxdmem",
    "/etc/default",
    "/etc/kernel",
    "/etc/libvirt",
    "/var/lib/daxdmem",
];

/// Settings of the host that it changes for a moment.
const SETTINGS: &[&str] = &[
    "/sys/bus/dax/drivers_autoprobe",
    "/sys/devices/system/memory/auto_online_blocks",
];

/// The VM.
struct Vm(Shell);

impl Vm {
    fn new() -> Outcome<Vm> {
        let _ = fs::remove_dir_all(DIRECTORY);
        fs::create_dir_all(DIRECTORY)?;
        Ok(Vm(Shell {
            directory: PathBuf::from(DIRECTORY),
            path: std::env::var("PATH").unwrap_or_default(),
            output: payload::path("output"),
            limit: patient(Duration::from_secs(60)),
            helpers: fs::read_to_string(payload::path("helpers.sh"))?,
        }))
    }
}

impl Stage for Vm {
    type Error = Failure;

    fn run(&mut self, command: &str) -> Outcome<Ended> {
        Ok(self.0.run(command)?)
    }

    fn look(&mut self) -> Outcome<Look> {
        look(Host::look()?)
    }
}

/// A host, and what else the tool could change.
fn look(host: Host) -> Outcome<Look> {
    let mut found = host.into_entries();
    for path in FILES {
        walk(Path::new(path), &mut found);
    }
    for path in SETTINGS {
        found.insert((*path).to_owned(), sysfs::read(path).unwrap_or_default());
    }
    for block in fs::read_dir("/sys/devices/system/memory")?.flatten() {
        let state = block.path().join("state");
        if let Ok(text) = sysfs::read(&state) {
            found.insert(state.display().to_string(), text);
        }
    }
    Ok(found)
}

/// Plays all sessions of a place, in the order of their names.
fn play_all(place: &str) -> Outcome {
    need()?;
    let mut wrong = Vec::new();
    for session in read(Path::new(payload::DIRECTORY), Some(place)).map_err(Failure::Fail)? {
        let mut vm = Vm::new()?;
        let before = look(Host::look()?.without_history())?;
        let played = play(&session, &mut vm)?;
        let mut faults = played.faults;
        Vm::new()?;
        let after = look(Host::look()?.without_history())?;
        let left = differences(&before, &after);
        faults.extend(left.into_iter().map(|what| format!("in the end {what}")));
        let name = &session.name;
        say!(
            "{name}: {} steps, {} faults",
            session.steps.len(),
            faults.len()
        );
        if faults.is_empty() {
            continue;
        }
        faults.iter().for_each(|fault| say!("{name}: {fault}"));
        // For tests/sessions/accept.
        played
            .now
            .text()
            .lines()
            .for_each(|line| say!("@{name}|{line}"));
        wrong.push(name.clone());
    }
    let _ = fs::remove_dir_all(DIRECTORY);
    check!(
        wrong.is_empty(),
        "not as the files say: {}",
        wrong.join(", ")
    );
    Ok(())
}
