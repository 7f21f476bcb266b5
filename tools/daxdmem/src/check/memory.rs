// SPDX-License-Identifier: GPL-2.0

//! The reservation, and what became of it: regions, as planned, and the kernel's own memory nowhere in them.

use super::{list, Finding, Scene};
use crate::bus::{ranges_text, Range, Region};
use crate::reserve::boot::{self, Loader};
use crate::reserve::parameter::{self, Memmap, Settings};
use crate::reserve::plan::SECTION;
use crate::reserve::topology::Topology;
use crate::size::Size;
use crate::space::extent_of;

pub fn findings(scene: &Scene) -> Vec<Finding> {
    let settings = Settings::of(&scene.command_line());
    let mut findings = reservation(&settings);
    findings.extend(configured(scene, &settings));
    findings.extend(regions(scene, &settings.pairs));
    findings.push(system_ram(scene));
    findings.push(region_idle(scene));
    findings.push(kmem(scene));
    findings.push(memory_type(scene));
    findings
}

/// What the running kernel was told.
fn reservation(settings: &Settings) -> Vec<Finding> {
    const CHECK: &str = "reservation";
    let on_line = |half: &Memmap| format!("`{half}` is on the kernel's command line");
    let broken = settings.others.iter().find_map(|half| match half {
        Memmap::Region(_) => Some(
            Finding::error(CHECK, format!("{} without what keeps the kernel out of it", on_line(half))).means(
                "the kernel places itself there at random, which cuts the region short, or it is no region at all",
            ),
        ),
        Memmap::Whole(_) => Some(Finding::error(CHECK, on_line(half)).means(
            "it limits all memory of the host, or is not understood: most likely `$` was not escaped for the boot loader",
        )),
        _ => None,
    });
    if let Some(finding) = broken {
        return vec![
            finding.advises("Have daxdmem write it: `daxdmem reserve … --apply`, then reboot")
        ];
    }
    let pairs = settings.pairs.as_slice();
    let mut findings = Vec::new();
    for half in &settings.others {
        // Small pieces are kept from use where RAM is bad.
        let looks_like_ours =
            |range: &Range| range.start % SECTION == 0 && range.len % SECTION == 0;
        if matches!(half, Memmap::Reserved(range) if looks_like_ours(range)) {
            findings.push(
                Finding::warning(
                    CHECK,
                    format!("{} without what makes it a region", on_line(half)),
                )
                .means("that memory is neither the host's nor the guests'")
                .advises(
                    "If nobody wants it so: `daxdmem reserve … --apply` writes both parameters",
                ),
            );
        }
    }
    if !pairs.is_empty() {
        let size = Size(pairs.iter().map(|range| range.len).sum());
        findings.push(Finding::ok(
            CHECK,
            format!("{size}: {}", ranges_text(pairs)),
        ));
    }
    if findings.is_empty() {
        findings.push(
            Finding::warning(CHECK, "no memory is reserved")
                .means("there is no memory for guests, unless the firmware sets some aside")
                .advises("See what there is and plan it: `daxdmem reserve`, `daxdmem reserve --all-but 8G`"),
        );
    }
    findings
}

/// What the boot loader is told, where that is not what the running kernel was told.
fn configured(scene: &Scene, running: &Settings) -> Option<Finding> {
    const CHECK: &str = "boot-configuration";
    let repeat = "Repeat `daxdmem reserve … --apply`, or `daxdmem reserve --remove`";
    for loader in Loader::all(&scene.root) {
        let pairs = loader.configured(&scene.root)?;
        let parameters = pairs
            .iter()
            .copied()
            .map(parameter::pair)
            .collect::<Vec<_>>()
            .join(" ");
        let parameters = (!pairs.is_empty()).then_some(parameters);
        let taken_up = loader.has(&scene.root, parameters.as_deref());
        let elsewhere = boot::elsewhere(&scene.root)
            .iter()
            .any(|(_, settings)| !settings.pairs.is_empty());
        if taken_up == Some(false) && !elsewhere {
            return Some(
                Finding::warning(CHECK, format!("{} does not boot what its configuration says", loader.name()))
                    .means("daxdmem was interrupted, or the file was changed by hand: the next boot is not as configured")
                    .advises(repeat),
            );
        }
        let sorted = |ranges: &[Range]| {
            let mut ranges = ranges.to_vec();
            ranges.sort_by_key(|range| range.start);
            ranges
        };
        if !elsewhere && sorted(&pairs) != sorted(&running.pairs) {
            return Some(
                Finding::warning(
                    CHECK,
                    format!("from the next boot on: {}", ranges_text(&pairs)),
                )
                .means("the running kernel was booted with another reservation")
                .advises("Reboot when it suits"),
            );
        }
        if !pairs.is_empty() {
            return Some(Finding::ok(
                CHECK,
                format!("{} passes this reservation", loader.name()),
            ));
        }
    }
    None
}

/// A region's range, where it can be seen.
fn extent(scene: &Scene, region: &Region) -> Option<Range> {
    extent_of(region, &scene.bus, scene.state.as_ref()?)
}

fn regions(scene: &Scene, pairs: &[Range]) -> Vec<Finding> {
    const CHECK: &str = "regions";
    let regions: Vec<&Region> = scene
        .bus
        .regions
        .iter()
        .filter(|region| region.dynamic)
        .collect();
    if regions.is_empty() {
        if pairs.is_empty() {
            return vec![Finding::warning(CHECK, "there is none").means("no guest can be made")];
        }
        let finding = Finding::error(CHECK, "memory is reserved, and there is no region");
        return vec![match scene.has("sys/module/dax_hmem") {
            false => finding
                .means("dax_hmem makes regions of it, and is not loaded")
                .advises("`modprobe dax_hmem region_idle=1`"),
            true => finding
                .means("dax_hmem found nothing: the parameters did not arrive whole")
                .advises("`dmesg | grep -i -e e820 -e hmem` shows what the kernel made of them"),
        }];
    }
    let mut found = Vec::new();
    let mut findings = Vec::new();
    for pair in pairs {
        let same = |region: &&&Region| match extent(scene, region) {
            Some(range) => range == *pair,
            None => region.size == pair.len && !found.contains(&region.id),
        };
        if let Some(region) = regions.iter().find(same) {
            found.push(region.id);
            continue;
        }
        let part = regions
            .iter()
            .find(|region| extent(scene, region).is_some_and(|range| range.overlaps(*pair)));
        let finding = Finding::error(
            CHECK,
            match part {
                Some(part) => format!(
                    "of the reserved {pair} ({}) only {} is a region",
                    Size(pair.len),
                    Size(part.size)
                ),
                None => format!("the reserved {pair} ({}) is no region", Size(pair.len)),
            },
        );
        findings.push(
            finding
                .means("the kernel placed itself there, or something else has a part of it")
                .advises("Plan it anew: `daxdmem reserve`; `dmesg | grep -i -e e820 -e hmem` shows what is in the way"),
        );
    }
    let others: Vec<String> = regions
        .iter()
        .filter(|region| !found.contains(&region.id))
        .map(|region| format!("region {} ({})", region.id, Size(region.size)))
        .collect();
    if findings.is_empty() {
        let texts: Vec<String> = found
            .iter()
            .filter_map(|id| scene.bus.region(*id))
            .map(|region| match region.node {
                Some(node) => format!(
                    "region {} on node {node} ({})",
                    region.id,
                    Size(region.size)
                ),
                None => format!("region {} ({})", region.id, Size(region.size)),
            })
            .collect();
        if !texts.is_empty() {
            findings.push(Finding::ok(CHECK, format!("as reserved: {}", list(&texts))));
        }
        if !others.is_empty() {
            findings.push(Finding::info(
                CHECK,
                format!("not by a reservation: {}", list(&others)),
            ));
        }
    }
    findings
}

/// Memory of a region that the kernel has for itself.
fn system_ram(scene: &Scene) -> Finding {
    const CHECK: &str = "system-ram";
    let lent: Vec<_> = scene
        .bus
        .devices
        .iter()
        .filter(|device| device.driver.as_deref() == Some("kmem"))
        .collect();
    let Some(first) = lent.first() else {
        return Finding::ok(CHECK, "nothing of a region is the kernel's own memory");
    };
    let names: Vec<String> = lent
        .iter()
        .map(|device| format!("{} ({})", device.name, Size(device.size)))
        .collect();
    Finding::error(CHECK, format!("the kernel has {} as its own memory", list(&names)))
        .means("no guest can have it: the driver kmem took it, at boot or by `daxctl reconfigure-device -m system-ram`")
        .advises(format!(
            "`daxctl offline-memory {0} && daxctl reconfigure-device -f -m devdax {0}`; where the kernel does not let go, \
             reboot with kmem kept away",
            first.name
        ))
}

fn region_idle(scene: &Scene) -> Finding {
    const CHECK: &str = "region-idle";
    let line = scene.command_line();
    let words = parameter::words(&line);
    let told = words
        .iter()
        .any(|word| matches!(*word, "dax_hmem.region_idle=1" | "dax_hmem.region_idle=Y"));
    let options = scene.modprobe_lines();
    let kept = told
        || options
            .iter()
            .any(|line| line.starts_with("options dax_hmem ") && line.contains("region_idle=1"));
    let advice = "Put `options dax_hmem region_idle=1` into /etc/modprobe.d/daxdmem.conf (the package daxdmem does)";
    match (scene.switch("dax_hmem", "region_idle"), kept) {
        (Some(true), true) => Finding::ok(CHECK, "regions are left to daxdmem"),
        (Some(true), false) => Finding::warning(CHECK, "on now, but not configured for the next boot")
            .means("then the kernel makes one device of each region, for the first driver that wants it")
            .advises(advice),
        (Some(false), _) => Finding::error(CHECK, "off")
            .means("the kernel makes one device of each region, for the first driver that wants it: kmem, which keeps it")
            .advises(format!("{advice}, then reboot")),
        (None, true) => Finding::ok(CHECK, "configured; dax_hmem is not loaded"),
        (None, false) => Finding::warning(CHECK, "not configured; dax_hmem is not loaded")
            .means("when it is loaded the kernel makes one device of each region, for the first driver that wants it")
            .advises(advice),
    }
}

fn kmem(scene: &Scene) -> Finding {
    const CHECK: &str = "kmem";
    let line = scene.command_line();
    let words = parameter::words(&line);
    let listed = words
        .iter()
        .filter_map(|word| word.strip_prefix("modprobe.blacklist="))
        .any(|list| list.split(',').any(|module| module == "kmem"));
    let options = scene.modprobe_lines();
    if listed || options.iter().any(|line| line == "blacklist kmem") {
        return Finding::ok(CHECK, "is not loaded by itself");
    }
    Finding::warning(CHECK, "may be loaded by itself")
        .means("it turns regions into the kernel's own memory, for good until the next reboot")
        .advises(
            "Put `blacklist kmem` into /etc/modprobe.d/daxdmem.conf (the package daxdmem does)",
        )
}

/// KVM looks into the firmware's table to see whether memory without pages may be cached.
fn memory_type(scene: &Scene) -> Finding {
    const CHECK: &str = "memory-type";
    let intel = scene
        .text("proc/cpuinfo")
        .unwrap_or_default()
        .contains("GenuineIntel");
    let Ok(topology) = Topology::without_nodes(&scene.root) else {
        return Finding::info(CHECK, "the firmware's table of memory cannot be read");
    };
    let special = topology.specific_purpose(0);
    let size = Size(special.iter().map(|range| range.len).sum());
    match (special.is_empty(), intel) {
        (true, _) => Finding::ok(CHECK, "all reserved memory is plain RAM for the firmware"),
        (false, false) => Finding::info(CHECK, format!("{size} is EFI specific-purpose memory"))
            .means("a region without any reservation, as good as another"),
        (false, true) => Finding::warning(CHECK, format!("{size} is EFI specific-purpose memory: {}", ranges_text(&special)))
            .means("KVM maps it uncached on Intel hosts: guests there are very slow")
            .advises("Boot with `efi=nosoftreserve` and reserve it by `daxdmem reserve`, or make no guests there"),
    }
}
