// SPDX-License-Identifier: GPL-2.0

//! libvirt: whether the QEMUs that it starts may open the devices.

use std::fs;

use super::{list, version, Finding, Scene};
use crate::link::Links;
use crate::name::PartName;

const CONFIGURATION: &str = "etc/libvirt/qemu.conf";
const PROFILE: &str = "etc/apparmor.d/abstractions/libvirt-qemu";
/// Where rules of one's own are: what `daxdmem libvirt-setup` writes, and an administrator's.
const RULES: [&str; 2] = [
    "etc/apparmor.d/abstractions/libvirt-qemu.d/daxdmem",
    "etc/apparmor.d/local/abstractions/libvirt-qemu",
];

/// What to do about both.
const SET_UP: &str = "`daxdmem libvirt-setup` shows and makes the settings";

pub fn findings(scene: &Scene) -> Vec<Finding> {
    let there = ["usr/sbin/libvirtd", "usr/sbin/virtqemud", CONFIGURATION];
    if !there.iter().any(|path| scene.has(path)) {
        return vec![Finding::info("libvirt", "is not installed")];
    }
    let daemon = ["libvirtd", "virtqemud"]
        .iter()
        .find_map(|daemon| version(daemon, &["--version"]));
    let mut findings = vec![Finding::ok(
        "libvirt",
        daemon.unwrap_or_else(|| "is installed".to_owned()),
    )];
    findings.push(device_acl(scene));
    findings.extend(apparmor(scene));
    findings
}

/// libvirt's cgroups let a QEMU open the devices on its list only.
fn device_acl(scene: &Scene) -> Finding {
    const CHECK: &str = "libvirt-devices";
    let Ok(text) = fs::read_to_string(scene.path(CONFIGURATION)) else {
        return Finding::info(CHECK, format!("/{CONFIGURATION} is seen by root only"));
    };
    let listed = acl(&text);
    let guests = scene.state.iter().flat_map(|state| &state.guests);
    // libvirt follows links: by its name a device is listed whatever its number.
    let missing: Vec<String> = guests
        .map(|(name, guest)| [link(name), format!("/dev/{}", guest.device.device)])
        .filter(|paths| !paths.iter().any(|path| listed.contains(path)))
        .map(|[link, _]| link)
        .collect();
    match (
        missing.is_empty(),
        listed.iter().any(|path| path.starts_with("/dev/dax")),
    ) {
        (true, true) => Finding::ok(CHECK, "cgroup_device_acl has the guests' devices"),
        (true, false) => Finding::info(CHECK, "cgroup_device_acl has no guest's device"),
        (false, _) => {
            Finding::warning(CHECK, format!("cgroup_device_acl lacks {}", list(&missing)))
                .means("libvirt's guests cannot open them")
                .advises(SET_UP)
        }
    }
}

/// A guest's link, as text.
fn link(name: &PartName) -> String {
    Links::default().path(name).display().to_string()
}

/// The entries of `cgroup_device_acl = [ "…", … ]`.
fn acl(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let text = lines.collect::<Vec<_>>().join("\n");
    let Some((_, after)) = text.split_once("cgroup_device_acl") else {
        return Vec::new();
    };
    let inside = after
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    let inside = inside.map(|(inside, _)| inside).unwrap_or_default();
    inside
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

fn apparmor(scene: &Scene) -> Option<Finding> {
    const CHECK: &str = "libvirt-apparmor";
    if scene.switch("apparmor", "enabled") != Some(true) || !scene.has(PROFILE) {
        return None;
    }
    let rules: String = RULES.iter().filter_map(|path| scene.text(path)).collect();
    let rule = |wanted: &dyn Fn(&str) -> bool| {
        rules
            .lines()
            .map(str::trim)
            .any(|line| !line.starts_with('#') && wanted(line))
    };
    let node = rule(&|line| line.starts_with("/dev/dax") && line.contains("rw"));
    let size = rule(&|line| {
        line.starts_with("/sys/devices/") && line.contains("dax") && line.contains("size")
    });
    Some(match node && size {
        true => Finding::ok(CHECK, "lets QEMU open the devices"),
        false => Finding::warning(
            CHECK,
            "the profile of libvirt's QEMU has no rules for the devices",
        )
        .means("AppArmor keeps libvirt's guests from opening them")
        .advises(SET_UP),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_devices() {
        let text = "#cgroup_device_acl = [ \"/dev/x\" ]\nuser = \"root\"\ncgroup_device_acl = [\n  \"/dev/null\", \"/dev/full\",\n  # \"/dev/dax0.9\"\n  \"/dev/dax0.1\"\n]\n";
        assert_eq!(acl(text), ["/dev/null", "/dev/full", "/dev/dax0.1"]);
        assert!(acl("user = \"root\"").is_empty());
    }
}
