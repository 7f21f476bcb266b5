// SPDX-License-Identifier: GPL-2.0

//! KVM, VFIO and QEMU.

use std::fs;

use super::{major_minor, version, Finding, Scene};

/// The oldest QEMU that takes a device as memory the way `daxdmem qemu-args` says.
const QEMU: (u32, u32) = (7, 2);

pub fn findings(scene: &Scene) -> Vec<Finding> {
    let mut findings = vec![kvm(scene)];
    findings.extend(nested(scene));
    findings.push(vfio(scene));
    findings.push(qemu(version("qemu-system-x86_64", &["--version"])));
    findings
}

fn kvm(scene: &Scene) -> Finding {
    const CHECK: &str = "kvm";
    if scene.has("dev/kvm") {
        return Finding::ok(CHECK, "/dev/kvm is there");
    }
    let cpus = scene.text("proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| {
        cpus.lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split(' ').any(|word| word == flag))
    };
    let missing = Finding::error(CHECK, "there is no /dev/kvm");
    let module = match (has("vmx"), has("svm")) {
        (true, _) => "kvm_intel",
        (_, true) => "kvm_amd",
        _ => {
            return missing
                .means("the processor has no virtualisation, or the firmware keeps it off")
                .advises("Turn on VT-x or SVM in the firmware's set-up")
        }
    };
    missing
        .means(format!(
            "the processor could do it, but {module} is not loaded"
        ))
        .advises(format!(
            "`modprobe {module}`; `dmesg | grep kvm` says why it is not"
        ))
}

/// A guest's own guests.
fn nested(scene: &Scene) -> Option<Finding> {
    const CHECK: &str = "nested";
    let nested = ["kvm_intel", "kvm_amd"]
        .iter()
        .any(|module| scene.switch(module, "nested") == Some(true));
    match scene.switch("kvm", "allow_unsafe_mappings")? {
        true => Some(Finding::ok(
            CHECK,
            "kvm.allow_unsafe_mappings is on: guests may run guests",
        )),
        false if nested => Some(
            Finding::info(CHECK, "kvm.allow_unsafe_mappings is off")
                .means("guests on page-less memory cannot run guests of their own; one that tries stops")
                .advises(
                    "Where they have to: `options kvm allow_unsafe_mappings=1` in /etc/modprobe.d, and load kvm anew \
                     when no guest runs. Else give them no vmx or svm, or set kvm_intel.nested=0 or kvm_amd.nested=0",
                ),
        ),
        false => None,
    }
}

fn vfio(scene: &Scene) -> Finding {
    const CHECK: &str = "vfio";
    let groups = fs::read_dir(scene.path("sys/kernel/iommu_groups"));
    let groups = groups.map(Iterator::count).unwrap_or(0);
    match (groups, scene.has("sys/module/vfio_iommu_type1")) {
        (0, _) => Finding::info(CHECK, "the host's IOMMU is off")
            .means("no device of the host can be passed to a guest")
            .advises("Where one has to be: `intel_iommu=on` on Intel hosts, and VT-d or AMD-Vi in the firmware's set-up"),
        (_, false) => Finding::ok(CHECK, "the IOMMU is on; vfio_iommu_type1 is not loaded, libvirt does that"),
        (_, true) => Finding::ok(CHECK, "the IOMMU is on, and vfio_iommu_type1 is loaded"),
    }
}

fn qemu(found: Option<String>) -> Finding {
    const CHECK: &str = "qemu";
    let Some(found) = found else {
        return Finding::warning(CHECK, "there is no qemu-system-x86_64")
            .means("nothing here runs guests")
            .advises("`apt install qemu-system-x86`");
    };
    match major_minor(&found) {
        Some(version) if version >= QEMU => Finding::ok(CHECK, found),
        _ => Finding::warning(CHECK, format!("{found}, older than {}.{}", QEMU.0, QEMU.1))
            .means("it was not tried with page-less memory"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn versions_of_qemu() {
        let level = |text: &str| qemu(Some(text.to_owned())).level;
        assert_eq!(
            level("QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)"),
            Level::Ok
        );
        assert_eq!(level("QEMU emulator version 5.2.0"), Level::Warning);
        assert_eq!(qemu(None).level, Level::Warning);
    }
}
