// SPDX-License-Identifier: GPL-2.0

//! The report as tables, for people.

use std::fmt::Write;

use super::{DeviceLine, RegionLine, Report};
use crate::bus::Range;
use crate::mode::Mode;
use crate::scrub::{Scrub, Stage};
use crate::size::Size;

/// The report, with physical ranges if `verbose`.
pub fn text(report: &Report, verbose: bool) -> String {
    let mut text = regions(report);
    text.push('\n');
    text.push_str(&devices(report, verbose));
    if !report.quarantine.is_empty() {
        text.push('\n');
        let mut table = Table::new(&["QUARANTINE", "SIZE", "FROM", "OPEN"]);
        for held in &report.quarantine {
            table.row(&[
                held.range.to_string(),
                Size(held.range.len).to_string(),
                held.device.clone(),
                held.openers.to_string(),
            ]);
        }
        text.push_str(&table.text());
    }
    let running = report.scrubbing.as_deref().unwrap_or_default();
    if !running.is_empty() {
        text.push('\n');
        let mut table = Table::new(&["SCRUBBING", "SIZE", "FROM", "DONE"]);
        for scrub in running {
            table.row(&[
                scrub.range.to_string(),
                Size(scrub.range.len).to_string(),
                scrub.device.clone(),
                format!("{}%", scrub.progress.percent()),
            ]);
        }
        text.push_str(&table.text());
    }
    if !report.lost.is_empty() {
        text.push('\n');
        let mut table = Table::new(&["LOST GUEST", "HAD"]);
        for (name, device) in &report.lost {
            table.row(&[name.to_string(), device.to_string()]);
        }
        text.push_str(&table.text());
    }
    text
}

/// What stands for nothing.
pub const NONE: &str = "-";

/// The value's text, or a dash.
pub fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

fn regions(report: &Report) -> String {
    let mut table = Table::new(&[
        "REGION", "NODE", "SIZE", "FREE", "LARGEST", "CLEAN", "LOST", "KIND",
    ]);
    for RegionLine {
        region,
        free,
        lost,
        clean,
        ..
    } in &report.regions
    {
        let pieces = free
            .as_deref()
            .map(|free| free.iter().map(|range| range.len));
        table.row(&[
            region.id.to_string(),
            or_none(region.node),
            Size(region.size).to_string(),
            if region.dynamic {
                or_none(
                    pieces
                        .clone()
                        .map(|pieces| Size(pieces.sum()))
                        .or(Some(Size(region.available))),
                )
            } else {
                NONE.to_owned()
            },
            or_none(pieces.map(|pieces| Size(pieces.max().unwrap_or(0)))),
            or_none(clean.map(Size)),
            or_none(lost.map(Size)),
            if region.dynamic { "dynamic" } else { "static" }.to_owned(),
        ]);
    }
    table.text()
}

fn devices(report: &Report, verbose: bool) -> String {
    let mut table = Table::new(&[
        "DEVICE", "GUEST", "SIZE", "NODE", "ALIGN", "MODE", "OPEN", "LEAF", "SCRUB", "STATE",
        "OWNER",
    ]);
    for DeviceLine {
        device,
        guest,
        leaf,
        policy,
        ..
    } in &report.devices
    {
        table.row(&[
            device.name.to_string(),
            or_none(guest.as_ref()),
            Size(device.size).to_string(),
            or_none(device.node),
            Size(device.align).to_string(),
            Mode::of(device).to_string(),
            or_none(device.openers),
            or_none(leaf.map(Size)),
            or_none(policy.as_ref()),
            or_none(device.scrub.map(state)),
            or_none(device.access),
        ]);
        if verbose {
            let mut offset = 0u64;
            for Range { start, len } in device.ranges.iter().flatten() {
                let last = Range {
                    start: *start,
                    len: *len,
                }
                .last();
                table.note(format!(
                    "  {start:#x}-{last:#x}  {} at offset {offset:#x}",
                    Size(*len)
                ));
                offset = offset.saturating_add(*len);
            }
            if device.ranges.is_none() {
                table.note("  its ranges are shown to root only".to_owned());
            }
        }
    }
    table.text()
}

/// How far a scrub is.
pub fn state(scrub: Scrub) -> String {
    match scrub.stage {
        Stage::Scrubbing => format!("{} {}%", scrub.stage, scrub.progress.percent()),
        stage => stage.to_string(),
    }
}

/// Columns as wide as their widest cell, two spaces apart.
pub struct Table {
    widths: Vec<usize>,
    lines: Vec<Line>,
}

enum Line {
    Cells(Vec<String>),
    Note(String),
}

impl Table {
    /// With these heads.
    pub fn new(head: &[&str]) -> Self {
        let mut table = Table {
            widths: vec![0; head.len()],
            lines: Vec::new(),
        };
        table.row(&head.iter().map(ToString::to_string).collect::<Vec<_>>());
        table
    }

    /// Adds a row.
    pub fn row(&mut self, cells: &[String]) {
        for (width, cell) in self.widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.len());
        }
        self.lines.push(Line::Cells(cells.to_vec()));
    }

    /// Adds a line that is no row.
    pub fn note(&mut self, text: String) {
        self.lines.push(Line::Note(text));
    }

    /// All lines.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            let line = match line {
                Line::Note(note) => note.clone(),
                Line::Cells(cells) => {
                    let mut line = String::new();
                    for (cell, width) in cells.iter().zip(&self.widths) {
                        // Writing to a String does not fail.
                        let _ = write!(line, "{cell:width$}  ");
                    }
                    line
                }
            };
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn tables() {
        let expected = "\
REGION  NODE  SIZE  FREE   LARGEST  CLEAN  LOST  KIND
0       0     8G    5118M  4G       1022M  2M    dynamic
1       -     2G    -      -        -      -     static

DEVICE  GUEST  SIZE  NODE  ALIGN  MODE       OPEN  LEAF  SCRUB     STATE          OWNER
dax0.0  vm1    2G    0     1G     page-less  1     1G    hand-out  scrubbing 25%  root:54321 0660
dax0.1  -      0     0     2M     unbound    -     -     -         -              root:root 0600
dax1.0  -      2G    -     1G     devdax     -     -     -         -              -

QUARANTINE               SIZE  FROM    OPEN
0x1c0000000-0x1ffffffff  1G    dax0.2  3

SCRUBBING                SIZE  FROM    DONE
0x200000000-0x23fffffff  1G    dax0.3  0%

LOST GUEST  HAD
vm2         dax0.0
";
        assert_eq!(text(&report(), false), expected);
        let verbose = text(&report(), true);
        assert!(
            verbose.contains("\n  0x100000000-0x17fffffff  2G at offset 0x0\ndax0.1"),
            "{verbose}"
        );
        assert!(
            verbose.contains("\n  its ranges are shown to root only\n"),
            "{verbose}"
        );
    }
}
