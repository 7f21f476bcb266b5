// SPDX-License-Identifier: GPL-2.0

//! The kernel, and the driver built for it.

use std::fs;

use super::{list, major_minor, version, Finding, Level, Scene};
use crate::driver::Driver;
use crate::reserve::boot::kernels;

/// The oldest kernel that the driver is written for.
const OLDEST: (u32, u32) = (7, 2);

/// Options without which it does not work, and what each is for.
const OPTIONS: [(&str, &str); 6] = [
    ("CONFIG_RUST", "the driver is written in Rust"),
    ("CONFIG_DEV_DAX", "the bus that carries the devices"),
    ("CONFIG_DEV_DAX_HMEM", "makes regions of reserved memory"),
    (
        "CONFIG_TRANSPARENT_HUGEPAGE",
        "page-table leaves of 2 MiB and 1 GiB",
    ),
    (
        "CONFIG_FIRMWARE_MEMMAP",
        "tells which memory can be reserved",
    ),
    ("CONFIG_KVM", "runs the guests"),
];

/// The file that the guard's module is.
const GUARD: &str = "dax_dmem_guard";
/// The first kernel that needs no guard.
const MBIND_FIXED: (u32, u32) = (7, 3);

pub fn findings(scene: &Scene) -> Vec<Finding> {
    let mut findings = vec![architecture(scene), release(scene), options(scene)];
    findings.extend(driver(scene));
    findings.extend(other_kernels(scene));
    findings.push(guard(scene));
    findings
}

fn architecture(scene: &Scene) -> Finding {
    let name = scene
        .text("proc/sys/kernel/arch")
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    match name.as_str() {
        "x86_64" => Finding::ok("architecture", "x86_64"),
        _ => Finding::error("architecture", name)
            .means("the driver is for x86_64 only")
            .advises("Use an x86_64 host"),
    }
}

fn release(scene: &Scene) -> Finding {
    let release = scene.release();
    let oldest = format!("{}.{}", OLDEST.0, OLDEST.1);
    match major_minor(&release) {
        Some(version) if version >= OLDEST => Finding::ok("kernel", release),
        _ => Finding::error("kernel", format!("{release}, older than {oldest}"))
            .means(format!("the driver needs Linux {oldest} or later"))
            .advises("Install the kernel of trixie-backports: `apt install -t trixie-backports linux-image-amd64`"),
    }
}

fn options(scene: &Scene) -> Finding {
    let release = scene.release();
    let places = [
        format!("boot/config-{release}"),
        format!("lib/modules/{release}/config"),
        format!("lib/modules/{release}/build/.config"),
    ];
    let Some(config) = places.iter().find_map(|path| scene.text(path)) else {
        return Finding::info(
            "kernel-options",
            format!("there is no /boot/config-{release} to look them up in"),
        );
    };
    let on = |option: &str| {
        config
            .lines()
            .any(|line| line == format!("{option}=y") || line == format!("{option}=m"))
    };
    let missing: Vec<String> = OPTIONS
        .iter()
        .filter(|(option, _)| !on(option))
        .map(|(option, purpose)| format!("{option} ({purpose})"))
        .collect();
    match missing.is_empty() {
        true => Finding::ok("kernel-options", "all that are needed"),
        false => Finding::error("kernel-options", format!("not set: {}", list(&missing)))
            .means("the driver cannot be built for this kernel, or does not work with it")
            .advises("Use Debian's kernel, or build one with these options"),
    }
}

fn driver(scene: &Scene) -> Option<Finding> {
    const CHECK: &str = "driver";
    let release = scene.release();
    let install = format!(
        "Install daxdmem-dkms, or build it: `make module` and `make install`; `dkms status` says what went wrong for {release}"
    );
    if scene.has(&format!("sys/module/{}", Driver::NAME)) {
        return Some(
            match scene.has("sys/bus/dax/drivers/dax_dmem/scrub_policy") {
                true => Finding::ok(CHECK, "dax_dmem is loaded"),
                false => Finding::error(CHECK, "the dax_dmem that is loaded does not scrub")
                    .means("it is older than this daxdmem")
                    .advises(install),
            },
        );
    }
    if !knows(scene, &release, Driver::NAME) {
        if is_elsewhere(scene) {
            return Some(Finding::ok(
                CHECK,
                "dax_dmem is there; daxdmem loads it when it is needed",
            ));
        }
        return Some(
            Finding::error(CHECK, format!("there is no module dax_dmem for {release}"))
                .means("no device can be made page-less")
                .advises(install),
        );
    }
    let magic =
        version("modinfo", &["-k", &release, "-F", "vermagic", Driver::NAME]).unwrap_or_default();
    match magic.split(' ').next() {
        Some(built) if !built.is_empty() && built != release => Some(
            Finding::error(
                CHECK,
                format!("dax_dmem was built for {built}, the kernel is {release}"),
            )
            .means("the kernel does not load it")
            .advises(install),
        ),
        _ => Some(Finding::ok(
            CHECK,
            "dax_dmem is there; daxdmem loads it when it is needed",
        )),
    }
}

/// Whether modprobe is told to get the driver from elsewhere.
fn is_elsewhere(scene: &Scene) -> bool {
    let line = format!("install {} ", Driver::NAME);
    let lines = scene.modprobe_lines();
    lines.iter().any(|found| found.starts_with(&line))
}

/// Whether the driver is there for a kernel.
pub fn has_driver(scene: &Scene, release: &str) -> bool {
    knows(scene, release, Driver::NAME) || is_elsewhere(scene)
}

/// Whether the kernel's list of modules has it.
fn knows(scene: &Scene, release: &str, module: &str) -> bool {
    let file = |line: &str| {
        let path = line.split(':').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        name.split('.').next().unwrap_or_default().replace('-', "_") == module
    };
    let text = fs::read_to_string(scene.path(&format!("lib/modules/{release}/modules.dep")));
    text.unwrap_or_default().lines().any(file)
}

/// Kernels that a reboot may bring up without the driver.
fn other_kernels(scene: &Scene) -> Option<Finding> {
    let running = scene.release();
    let without: Vec<String> = kernels(&scene.root)
        .into_iter()
        .filter(|release| *release != running && !knows(scene, release, Driver::NAME))
        .collect();
    if without.is_empty() {
        return None;
    }
    Some(
        Finding::warning(
            "other-kernels",
            format!("no module dax_dmem for {}", list(&without)),
        )
        .means("booted with such a kernel, this host has no page-less guests")
        .advises(
            "Install that kernel's headers and source, and see `dkms status`; or remove the kernel",
        ),
    )
}

/// See Documentation/kernel-holes.md.
fn guard(scene: &Scene) -> Finding {
    const CHECK: &str = "guard";
    let release = scene.release();
    if major_minor(&release).is_some_and(|version| version >= MBIND_FIXED) {
        let found = format!("{GUARD} is not needed: mbind() of {release} knows page-less memory");
        return Finding::ok(CHECK, found);
    }
    if scene.has(&format!("sys/module/{GUARD}")) {
        return Finding::ok(CHECK, format!("{GUARD} is loaded"));
    }
    let others: Vec<String> = scene
        .bus
        .devices
        .iter()
        .filter(|device| device.is_page_less())
        .filter(|device| {
            device
                .access
                .is_some_and(|access| access != crate::access::Access::ROOT)
        })
        .map(|device| device.name.to_string())
        .collect();
    let found = format!("{GUARD} is not loaded");
    let meaning =
        "a bug of the kernel lets whoever may open a page-less device crash the host by mbind()";
    match others.is_empty() {
        true => Finding::info(CHECK, found).means(format!("{meaning}: root only, for now")),
        false => Finding::new(
            CHECK,
            Level::Warning,
            format!(
                "{found}, and {} may be opened by others than root",
                list(&others)
            ),
        )
        .means(meaning)
        .advises(format!(
            "`modprobe {GUARD}`, and have it loaded at boot: see Documentation/kernel-holes.md"
        )),
    }
}
