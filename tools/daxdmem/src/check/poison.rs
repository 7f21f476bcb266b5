// SPDX-License-Identifier: GPL-2.0

//! Memory that failed: how much, whose, whether it is recorded, and whether the driver knows.

use super::{list, Finding, Level, Scene};
use crate::bus::{Device, Range};
use crate::driver::range;
use crate::poison::record::{boot_id, Record};
use crate::poison::Pages;
use crate::size::Size;
use crate::space::{extent_of, Space};

const CHECK: &str = "poison";

pub fn findings(scene: &Scene) -> Vec<Finding> {
    let Some(state) = scene.state.as_ref().filter(|_| scene.is_root) else {
        return vec![Finding::info(CHECK, "seen by root only")];
    };
    let listed = scene.text("sys/bus/dax/drivers/dax_dmem/poison");
    let driver = listed.map(|text| Pages::of(text.lines().filter_map(range)));
    let record = match Record::read(&scene.path(Record::FILE.trim_start_matches('/'))) {
        Ok(record) => record,
        Err(error) => {
            let text = error.to_string();
            let (found, meaning) = text.split_once('\n').unwrap_or((&text, ""));
            return vec![Finding::error(CHECK, found).means(meaning)];
        }
    };
    let recorded = record.pages();
    let known = recorded.with(driver.as_ref().unwrap_or(&recorded));
    if known.is_empty() {
        return vec![Finding::ok(CHECK, "no page has failed")];
    }
    let mut lost = 0;
    let mut inside: Vec<Range> = Vec::new();
    for region in &scene.bus.regions {
        inside.extend(extent_of(region, &scene.bus, state));
        let held = &scene.unowned.quarantine;
        let space = Space::of_region(region, &scene.bus, state, held, &known);
        lost += space.map_or(0, |space| space.lost);
    }
    let here = known.within(&inside);
    let has = |device: &&Device| {
        let ranges = device.ranges.as_deref().unwrap_or_default();
        !known.within(ranges).is_empty()
    };
    let hit = scene.bus.devices.iter().filter(has);
    let named = |device: &Device| match state.guest_of(device.name) {
        Some(guest) => guest.to_string(),
        None => device.name.to_string(),
    };
    let hit: Vec<String> = hit.map(named).collect();
    let boot = boot_id(&scene.root);
    let is_new = |page: &u64| record.seen(*page).is_none_or(|seen| seen.boot == boot);
    let new: Pages = here.iter().filter(is_new).collect();

    let mut findings = Vec::new();
    let level = if new.is_empty() {
        Level::Info
    } else {
        Level::Warning
    };
    let devices = match hit.is_empty() {
        true => String::new(),
        false => format!(", in {}", list(&hit)),
    };
    let outside = match known.without(&here) {
        none if none.is_empty() => String::new(),
        outside => format!("; in no region, and only recorded: {outside}"),
    };
    findings.push(
        Finding::new(
            CHECK,
            level,
            format!(
                "{here} of 4K failed, {} since boot{devices}; {} of free memory are lost{outside}",
                new.len(),
                Size(lost)
            ),
        )
        .means("who maps such a page gets SIGBUS when it is touched; no new device gets it")
        .advises(
            "`daxdmem poison list` shows where; Documentation/memory-errors.md says what to do",
        ),
    );
    let unrecorded = known.without(&recorded);
    if !unrecorded.is_empty() {
        findings.push(
            Finding::warning(
                CHECK,
                format!("not recorded: {unrecorded} of 4K that failed"),
            )
            .means("a reboot forgets them, and then guests get them")
            .advises(format!(
                "`daxdmem poison list` records them; see that {} can be written",
                Record::FILE
            )),
        );
    }
    // What is lent to the host is the host's to keep out of use.
    let lent = |device: &&Device| device.driver.as_deref() == Some("kmem");
    let lent = scene.bus.devices.iter().filter(lent);
    let lent: Vec<Range> = lent
        .flat_map(|device| device.ranges.clone().unwrap_or_default())
        .collect();
    let unknown = driver.map(|driver| here.without(&driver).without(&here.within(&lent)));
    if let Some(unknown) = unknown.filter(|pages| !pages.is_empty()) {
        findings.push(
            Finding::warning(
                CHECK,
                format!("unknown to dax_dmem: {unknown} of 4K that failed"),
            )
            .means("a device that has them lets its guest touch them")
            .advises("`daxdmem poison list` tells it"),
        );
    }
    let blocks = here.within(&lent);
    if !blocks.is_empty() {
        findings.push(
            Finding::warning(CHECK, format!("lent to the host: {blocks} of 4K that failed"))
                .means("the host's kernel uses them as any memory")
                .advises("Take the device back (`daxdmem mode NAME page-less`), destroy it and create it: it is placed around them"),
        );
    }
    findings
}
