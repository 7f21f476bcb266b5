// SPDX-License-Identifier: GPL-2.0

//! The plan, for people and for programs.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::plan::{Action, Step};
use crate::bus::ranges_text;
use crate::report::json::{ranges, Header, RangeEntry};
use crate::report::table::{or_none, Table};

impl Action {
    fn word(self) -> &'static str {
        match self {
            Action::Keep => "keep",
            Action::Create => "create",
            Action::Change => "change",
            Action::Recreate => "recreate",
            Action::Leave => "leave",
            Action::Unlisted => "unlisted",
            Action::Destroy => "destroy",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// As a table, and a line about what stays as it is.
pub fn text(steps: &[Step]) -> String {
    let kept = steps
        .iter()
        .filter(|step| step.action == Action::Keep)
        .count();
    let mut text = String::new();
    if kept < steps.len() {
        let mut table = Table::new(&["PLAN", "GUEST", "SIZE", "ALIGN", "NODE", "PLACE"]);
        for step in steps.iter().filter(|step| step.action != Action::Keep) {
            rows(&mut table, step);
        }
        text.push_str(&table.text());
    }
    let plural = if kept == 1 { " is" } else { "s are" };
    match kept {
        0 if steps.is_empty() => text.push_str("no guest is declared, and none is there\n"),
        0 => {}
        _ => text.push_str(&format!("{kept} guest{plural} as declared\n")),
    }
    text
}

fn rows(table: &mut Table, step: &Step) {
    for (part, place) in &step.parts {
        table.row(&[
            step.action.to_string(),
            part.name.to_string(),
            part.size.to_string(),
            part.align.to_string(),
            or_none(part.node),
            or_none(place.as_ref().map(|place| ranges_text(&place.ranges))),
        ]);
    }
    // Nothing of it is there.
    if step.parts.is_empty() {
        table.row(&[step.action.to_string(), step.name.to_string()]);
    }
    for difference in &step.differences {
        table.note(format!("  {difference}"));
    }
    if let Some(reason) = &step.reason {
        table.note(format!("  stays as it is: {reason}"));
    } else if step.action == Action::Unlisted {
        table.note("  stays as it is; --prune destroys it".to_owned());
    }
}

#[derive(Serialize)]
struct Document {
    daxdmem: Header,
    layout: String,
    guests: Vec<GuestEntry>,
}

#[derive(Serialize)]
struct GuestEntry {
    guest: String,
    action: &'static str,
    differences: Vec<String>,
    reason: Option<String>,
    devices: Vec<DeviceEntry>,
}

#[derive(Serialize)]
struct DeviceEntry {
    name: String,
    size: u64,
    align: u64,
    node: Option<u32>,
    ranges: Option<Vec<RangeEntry>>,
}

/// As one JSON object.
pub fn json(path: &Path, steps: &[Step]) -> serde_json::Result<String> {
    let guest = |step: &Step| GuestEntry {
        guest: step.name.to_string(),
        action: step.action.word(),
        differences: step.differences.clone(),
        reason: step.reason.clone(),
        devices: step
            .parts
            .iter()
            .map(|(part, place)| DeviceEntry {
                name: part.name.to_string(),
                size: part.size.0,
                align: part.align.bytes(),
                node: part.node,
                ranges: place.as_ref().map(|place| ranges(&place.ranges)),
            })
            .collect(),
    };
    serde_json::to_string_pretty(&Document {
        daxdmem: Header::VERSION_1,
        layout: path.display().to_string(),
        guests: steps.iter().map(guest).collect(),
    })
}
