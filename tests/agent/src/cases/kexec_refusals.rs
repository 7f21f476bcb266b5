// SPDX-License-Identifier: GPL-2.0
//! What is not kept over a kexec, because it is not what it was: it is scrubbed.

use std::fs;
use std::path::Path;

use crate::case::{Case, Outcome};
use crate::command::Command;
use crate::disk;
use crate::mapping::Map;
use crate::pattern::Pattern;
use crate::region::MIB;
use crate::{check, check_eq, reset, say, scrub};

use super::kexec::{check_zero, prepare, RECORD};
use super::tool_host::{device_of, done, need, tool};
use super::tool_layout::{declare, write, LAYOUT, PLACEMENT};

pub const CASES: &[Case] = &[Case {
    name: "kexec-refusals",
    shows: "memory is kept over a kexec once, and only as it was: anything else than prepared, or a plain reset, and it is scrubbed",
    machine: "kexec",
    limit: 240,
    fresh: true,
    hidden: true,
    run: refusals,
    ..Case::DEFAULT
}];

const SIZE: u64 = 64 * MIB;

/// The record as it was, for using it again.
const COPY: &str = "/mnt/disk/kexec.json";

/// Guests with the seeds of what is in their memory.
const GUESTS: [(&str, u64); 3] = [("kept", 1), ("moved", 2), ("changed", 3)];

fn fill(name: &str, seed: u64) -> Outcome {
    let mapping = Map::new(SIZE).file(&device_of(name)?.open()?)?;
    Pattern::new(seed).fill(mapping.words(0, SIZE), 0);
    Ok(())
}

fn verify(name: &str, seed: u64) -> Outcome {
    let mapping = Map::new(SIZE).file(&device_of(name)?.open()?)?;
    Pattern::new(seed).verify(mapping.words(0, SIZE), 0)
}

fn refusals() -> Outcome {
    need()?;
    disk::attach()?;
    match reset::count() {
        0 => before(),
        1 => after_kexec(),
        _ => after_reset(),
    }
}

fn before() -> Outcome {
    let guests = GUESTS.map(|(name, _)| (name, "size = \"64M\"\nalign = \"2M\""));
    declare(&guests)?;
    done("apply")?;
    for (name, seed) in GUESTS {
        fill(name, seed)?;
    }
    // A change to any device gives up what was prepared.
    prepare("kept")?;
    check!(Path::new(RECORD).exists(), "there is no record");
    let said = tool("set kept --mode 0640")?;
    check!(
        said.stderr
            .contains("no guest is kept over a kexec any more")
            && !Path::new(RECORD).exists(),
        "set said: {}",
        said.stderr
    );
    done("set kept --mode 0600")?;

    prepare("kept moved changed")?;
    fs::copy(RECORD, COPY)?;
    // Somebody writes to it all the same; somebody changes where a guest is to go.
    fill("changed", 4)?;
    let placement = fs::read_to_string(PLACEMENT)?;
    let moved = device_of("moved")?.physical(0)?;
    let elsewhere = moved + 1024 * MIB;
    let text = placement.replace(
        &format!("\"start\": {moved},"),
        &format!("\"start\": {elsewhere},"),
    );
    check!(text != placement, "{PLACEMENT} has no {moved}: {placement}");
    write(PLACEMENT, &text)?;
    reset::kexec()
}

fn after_kexec() -> Outcome {
    let said = tool("apply")?;
    check_eq!(said.code, Some(0), "exit code of apply");
    for text in [
        "moved is scrubbed, not kept: it is not where it was",
        "changed is scrubbed, not kept: its memory is not what it was",
    ] {
        check!(said.stderr.contains(text), "apply does not say '{text}'");
    }
    check!(
        said.stdout.contains("kept: its memory is kept"),
        "apply says: {}",
        said.stdout
    );
    verify("kept", 1)?;
    check_eq!(
        scrub::state(&device_of("kept")?)?,
        "unscrubbed",
        "state of what is kept"
    );
    check_zero("moved")?;
    check_zero("changed")?;
    check!(!Path::new(RECORD).exists(), "the record is still there");

    // The same record again, in some ways.
    let record = fs::read_to_string(COPY)?;
    let layout = fs::read_to_string(LAYOUT)?;
    let tampered = record.replace("\"layout\": \"", "\"layout\": \"0");
    check!(tampered != record, "the record: {record}");
    let other_layout = format!("{layout}\n# changed\n");
    for (record, layout, why) in [
        (&record, &layout, "the record was used in this boot already"),
        (&tampered, &layout, "its checksum is wrong"),
        (
            &record,
            &other_layout,
            "the layout is not the one that was declared then",
        ),
    ] {
        leave_dirty()?;
        write(LAYOUT, layout)?;
        write(RECORD, record)?;
        apply_scrubs(why)?;
        say!("scrubbed: {why}");
    }

    // For the next kernel, which never comes.
    write(LAYOUT, &layout)?;
    for (name, seed) in GUESTS {
        fill(name, seed)?;
    }
    prepare("kept moved changed")?;
    done("apply")?;
    check!(
        Path::new(RECORD).exists(),
        "an apply that did nothing has used the record up"
    );
    Command::line("sync").limit(60).run()?;
    reset::vm()
}

/// Unmakes all guests, with what they have in their memory still in it.
fn leave_dirty() -> Outcome {
    for (name, seed) in GUESTS {
        fill(name, seed)?;
        done(&format!("set {name} --scrub never"))?;
        done(&format!("destroy {name}"))?;
    }
    Ok(())
}

fn after_reset() -> Outcome {
    apply_scrubs("this kernel was not loaded by the kexec-prepare that wrote the record")
}

/// An apply keeps no guest, and says why.
fn apply_scrubs(why: &str) -> Outcome {
    let said = tool("apply")?;
    check!(
        said.stderr.contains(why),
        "apply does not say '{why}' but {}",
        said.stderr
    );
    GUESTS.iter().try_for_each(|(name, _)| check_zero(name))?;
    check!(!Path::new(RECORD).exists(), "the record is still there");
    Ok(())
}
