// SPDX-License-Identifier: GPL-2.0

//! Findings on hosts that are directories here.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::access::Access;
use crate::bus::{Device, Range, Region};
use crate::driver::Quarantine;
use crate::scrub::{Policy, Progress, Scrub, Stage};
use crate::settings::Settings;
use crate::store::Record;

const GIB: u64 = 1 << 30;
const PAIR: &str = "memmap=4G$4G memmap=4G%4G-2+0xefffffff";

struct Host {
    root: tempfile::TempDir,
    scene: Scene,
}

impl Host {
    /// One on which nothing is amiss.
    fn healthy() -> Host {
        let root = tempfile::tempdir().unwrap();
        let region = Region {
            id: 0,
            path: PathBuf::from("/sys/devices/platform/hmem.0"),
            dynamic: true,
            node: Some(0),
            size: 4 * GIB,
            available: 4 * GIB,
            start: Some(4 * GIB),
        };
        let bus = Bus {
            regions: vec![region],
            devices: Vec::new(),
        };
        let host = Host {
            scene: Scene {
                root: root.path().to_owned(),
                is_root: true,
                bus,
                state: Some(State::default()),
                unowned: Unowned::default(),
            },
            root,
        };
        let release = "7.2.12+deb13-amd64";
        let options = "CONFIG_RUST=y\nCONFIG_DEV_DAX=m\nCONFIG_DEV_DAX_HMEM=m\nCONFIG_TRANSPARENT_HUGEPAGE=y\n\
                       CONFIG_FIRMWARE_MEMMAP=y\nCONFIG_KVM=m\n";
        for (path, text) in [
            ("proc/sys/kernel/arch", "x86_64\n"),
            ("proc/sys/kernel/osrelease", &format!("{release}\n")),
            ("proc/cmdline", &format!("quiet {PAIR}\n")),
            (
                "proc/cpuinfo",
                "vendor_id\t: AuthenticAMD\nflags\t\t: fpu svm\n",
            ),
            (&format!("boot/config-{release}"), options),
            ("sys/module/dax_dmem/refcnt", "0\n"),
            ("sys/module/dax_dmem_guard/refcnt", "0\n"),
            ("sys/bus/dax/drivers/dax_dmem/scrub_policy", ""),
            ("sys/module/dax_hmem/parameters/region_idle", "Y\n"),
            (
                "usr/lib/modprobe.d/daxdmem.conf",
                "options dax_hmem region_idle=1\nblacklist kmem\n",
            ),
            ("sys/firmware/memmap/0/start", "0x0\n"),
            ("sys/firmware/memmap/0/end", "0x2ffffffff\n"),
            ("sys/firmware/memmap/0/type", "System RAM\n"),
            ("sys/kernel/iommu_groups/0/type", "DMA\n"),
            ("dev/kvm", ""),
        ] {
            host.write(path, text);
        }
        host
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.root.path().join(path);
        fs::remove_dir_all(&path)
            .or_else(|_| fs::remove_file(&path))
            .unwrap();
    }

    /// A guest with 1 GiB on device 0.
    fn guest(&mut self) -> &mut Device {
        let access = Access {
            uid: 0,
            gid: 0,
            mode: "0600".parse().unwrap(),
        };
        let ranges = vec![Range {
            start: 4 * GIB,
            len: GIB,
        }];
        let device = Device {
            name: "dax0.0".parse().unwrap(),
            region: 0,
            path: PathBuf::from("/sys/devices/platform/hmem.0/dax0.0"),
            inode: 1,
            node: Some(0),
            size: GIB,
            align: GIB,
            driver: Some("dax_dmem".to_owned()),
            openers: Some(0),
            ranges: Some(ranges.clone()),
            scrub: None,
            access: Some(access),
        };
        let record = Record {
            device: device.identity(),
            ranges,
            settings: Settings {
                access: Some(access),
                ..Settings::default()
            },
        };
        let state = self.scene.state.as_mut().unwrap();
        state.guests.insert("vm1".parse().unwrap(), record);
        self.scene.bus.devices.push(device);
        self.scene.bus.devices.last_mut().unwrap()
    }

    /// The finding of that name.
    fn finding(&self, check: &str) -> Finding {
        let found = findings(&self.scene);
        let found: Vec<_> = found
            .into_iter()
            .filter(|finding| finding.check == check)
            .collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    }

    /// Fails unless the finding is that bad and says that.
    fn expect(&self, check: &str, level: Level, text: &str) {
        let finding = self.finding(check);
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(finding.found.contains(text), "{finding:?}");
        if level >= Level::Warning {
            assert!(finding.meaning.is_some(), "{finding:?}");
        }
    }
}

#[test]
fn a_healthy_host() {
    let mut host = Host::healthy();
    host.guest();
    // What depends on the programs of the machine that runs this is left out.
    let bad: Vec<Finding> = findings(&host.scene)
        .into_iter()
        .filter(|finding| finding.level >= Level::Warning && finding.check != "qemu")
        .collect();
    assert_eq!(bad, []);
    host.expect("regions", Level::Ok, "as reserved: region 0 on node 0 (4G)");
    host.expect("guests", Level::Ok, "1, whose device is there");
    host.expect("libvirt", Level::Info, "is not installed");
}

#[test]
fn the_kernel_and_its_driver() {
    let host = Host::healthy();
    host.write("proc/sys/kernel/arch", "aarch64\n");
    host.expect("architecture", Level::Error, "aarch64");
    host.write(
        "boot/config-7.2.12+deb13-amd64",
        "CONFIG_DEV_DAX=m\n# CONFIG_RUST is not set\n",
    );
    host.expect(
        "kernel-options",
        Level::Error,
        "CONFIG_RUST (the driver is written in Rust)",
    );
    host.remove("boot/config-7.2.12+deb13-amd64");
    host.expect("kernel-options", Level::Info, "there is no /boot/config-");
    host.remove("sys/bus/dax/drivers/dax_dmem/scrub_policy");
    host.expect("driver", Level::Error, "does not scrub");
    host.remove("sys/module/dax_dmem");
    host.expect(
        "driver",
        Level::Error,
        "there is no module dax_dmem for 7.2.12+deb13-amd64",
    );
    host.write(
        "lib/modules/7.2.12+deb13-amd64/modules.dep",
        "updates/dkms/dax-dmem.ko.xz: kernel/dax.ko\n",
    );
    host.expect("driver", Level::Ok, "dax_dmem is there");
    host.write("boot/vmlinuz-7.3.1", "");
    host.write(
        "lib/modules/7.3.1/modules.dep",
        "kernel/dax_dmem_guard.ko:\n",
    );
    host.expect(
        "other-kernels",
        Level::Warning,
        "no module dax_dmem for 7.3.1",
    );
    host.write("proc/sys/kernel/osrelease", "6.12.48+deb13-amd64\n");
    host.expect(
        "kernel",
        Level::Error,
        "6.12.48+deb13-amd64, older than 7.2",
    );
}

#[test]
fn the_guard_matters_when_others_may_open_devices() {
    let mut host = Host::healthy();
    host.remove("sys/module/dax_dmem_guard");
    host.expect("guard", Level::Info, "is not loaded");
    host.guest().access.as_mut().unwrap().uid = 64055;
    host.expect(
        "guard",
        Level::Warning,
        "dax0.0 may be opened by others than root",
    );
    host.write("proc/sys/kernel/osrelease", "7.3.4+deb13-amd64\n");
    host.expect("guard", Level::Ok, "is not needed");
}

#[test]
fn reservations_that_did_not_arrive_whole() {
    let host = Host::healthy();
    for (line, level, text) in [
        // GRUB's shell took `$4` for its own.
        (
            "memmap=4GG memmap=4G%4G-2+0xefffffff",
            Level::Error,
            "`memmap=4GG` is on",
        ),
        (
            "memmap=4G%4G-2+0xefffffff",
            Level::Error,
            "without what keeps the kernel out of it",
        ),
        (
            "memmap=4G$4G",
            Level::Warning,
            "without what makes it a region",
        ),
        // Bad RAM, kept from use.
        (
            "memmap=4K$0x12345000",
            Level::Warning,
            "no memory is reserved",
        ),
        (
            "memmap=4K$0x12345000 memmap=4G$4G memmap=4G%4G-2+0xefffffff",
            Level::Ok,
            "4G: 0x100000000",
        ),
    ] {
        host.write("proc/cmdline", line);
        host.expect("reservation", level, text);
    }
    host.write("proc/cmdline", "quiet");
    host.expect("reservation", Level::Warning, "no memory is reserved");
    host.expect(
        "regions",
        Level::Info,
        "not by a reservation: region 0 (4G)",
    );
}

#[test]
fn regions_that_are_not_as_reserved() {
    let mut host = Host::healthy();
    let region = &mut host.scene.bus.regions[0];
    (region.start, region.size) = (Some(5 * GIB), 3 * GIB);
    host.expect(
        "regions",
        Level::Error,
        "of the reserved 0x100000000-0x1ffffffff (4G) only 3G is a region",
    );
    host.scene.bus.regions[0].start = Some(9 * GIB);
    host.expect(
        "regions",
        Level::Error,
        "the reserved 0x100000000-0x1ffffffff (4G) is no region",
    );
    host.scene.bus.regions.clear();
    host.expect(
        "regions",
        Level::Error,
        "memory is reserved, and there is no region",
    );
    assert!(host
        .finding("regions")
        .meaning
        .unwrap()
        .contains("did not arrive whole"));
    host.remove("sys/module/dax_hmem");
    assert!(host
        .finding("regions")
        .advice
        .unwrap()
        .contains("modprobe dax_hmem"));
}

#[test]
fn what_the_boot_loader_is_told() {
    let host = Host::healthy();
    host.write("etc/default/grub", "");
    host.write("usr/sbin/update-grub", "");
    let drop_in = |pair: &str| {
        let escaped = pair.replace('$', "\\\\\\$");
        host.write(
            "etc/default/grub.d/daxdmem.cfg",
            &format!("X=\"$X {escaped}\"\n"),
        );
        host.write(
            "boot/grub/grub.cfg",
            &format!("linux /vmlinuz {}\n", pair.replace('$', "\\$")),
        );
    };
    drop_in(PAIR);
    host.expect(
        "boot-configuration",
        Level::Ok,
        "GRUB passes this reservation",
    );
    drop_in("memmap=5G$4G memmap=5G%4G-2+0xefffffff");
    host.expect(
        "boot-configuration",
        Level::Warning,
        "from the next boot on: 0x100000000-0x23fffffff",
    );
    host.write("boot/grub/grub.cfg", "linux /vmlinuz quiet\n");
    host.expect(
        "boot-configuration",
        Level::Warning,
        "GRUB does not boot what its configuration says",
    );
}

#[test]
fn memory_that_the_kernel_took() {
    let mut host = Host::healthy();
    host.guest().driver = Some("kmem".to_owned());
    host.expect(
        "system-ram",
        Level::Error,
        "the kernel has dax0.0 (1G) as its own memory",
    );
    host.write("sys/module/dax_hmem/parameters/region_idle", "N\n");
    host.expect("region-idle", Level::Error, "off");
    host.write("usr/lib/modprobe.d/daxdmem.conf", "# blacklist kmem\n");
    host.expect("kmem", Level::Warning, "may be loaded by itself");
    host.write("sys/module/dax_hmem/parameters/region_idle", "Y\n");
    host.expect(
        "region-idle",
        Level::Warning,
        "not configured for the next boot",
    );
    host.write(
        "proc/cmdline",
        "dax_hmem.region_idle=1 modprobe.blacklist=foo,kmem",
    );
    host.expect("region-idle", Level::Ok, "left to daxdmem");
    host.expect("kmem", Level::Ok, "");
}

#[test]
fn specific_purpose_memory_on_intel() {
    let host = Host::healthy();
    host.write("sys/firmware/memmap/1/start", "0x300000000\n");
    host.write("sys/firmware/memmap/1/end", "0x33fffffff\n");
    host.write("sys/firmware/memmap/1/type", "Soft Reserved\n");
    host.expect(
        "memory-type",
        Level::Info,
        "1G is EFI specific-purpose memory",
    );
    host.write("proc/cpuinfo", "vendor_id\t: GenuineIntel\nflags : vmx\n");
    host.expect(
        "memory-type",
        Level::Warning,
        "1G is EFI specific-purpose memory",
    );
}

#[test]
fn kvm_and_nesting() {
    let host = Host::healthy();
    host.write("sys/module/kvm/parameters/allow_unsafe_mappings", "N\n");
    host.write("sys/module/kvm_amd/parameters/nested", "1\n");
    host.expect("nested", Level::Info, "allow_unsafe_mappings is off");
    host.write("sys/module/kvm/parameters/allow_unsafe_mappings", "Y\n");
    host.expect("nested", Level::Ok, "allow_unsafe_mappings is on");
    host.remove("dev/kvm");
    host.expect("kvm", Level::Error, "there is no /dev/kvm");
    assert_eq!(
        host.finding("kvm").meaning.unwrap(),
        "the processor could do it, but kvm_amd is not loaded"
    );
    host.write("proc/cpuinfo", "flags : fpu\n");
    assert!(host
        .finding("kvm")
        .meaning
        .unwrap()
        .contains("no virtualisation"));
}

#[test]
fn guests_that_are_not_as_they_were_made() {
    let mut host = Host::healthy();
    host.guest().access.as_mut().unwrap().gid = 7;
    host.expect("permissions", Level::Warning, "vm1 has ");
    host.scene.bus.devices[0].scrub = Some(Scrub {
        policy: Policy::Release,
        stage: Stage::Failed,
        progress: Progress::default(),
    });
    host.expect("scrub", Level::Error, "dax0.0 could not be scrubbed");
    host.scene.unowned.quarantine.push(Quarantine {
        range: Range {
            start: GIB,
            len: GIB,
        },
        device: "dax0.3".to_owned(),
        openers: 2,
    });
    host.expect(
        "quarantine",
        Level::Warning,
        "0x40000000-0x7fffffff of dax0.3 (open 2 times)",
    );
    host.scene.bus.devices[0].inode = 2;
    host.expect("guests", Level::Warning, "the devices of vm1 are gone");
}

#[test]
fn what_libvirt_lets_through() {
    let mut host = Host::healthy();
    host.guest();
    host.write(
        "etc/libvirt/qemu.conf",
        "cgroup_device_acl = [ \"/dev/null\" ]\n",
    );
    host.expect("libvirt-devices", Level::Warning, "lacks /dev/daxdmem/vm1");
    host.write(
        "etc/libvirt/qemu.conf",
        "cgroup_device_acl = [ \"/dev/null\", \"/dev/dax0.0\" ]\n",
    );
    host.expect("libvirt-devices", Level::Ok, "");
    host.write(
        "etc/libvirt/qemu.conf",
        "cgroup_device_acl = [ \"/dev/null\", \"/dev/daxdmem/vm1\" ]\n",
    );
    host.expect("libvirt-devices", Level::Ok, "");
    host.write("sys/module/apparmor/parameters/enabled", "Y\n");
    host.write("etc/apparmor.d/abstractions/libvirt-qemu", "");
    host.expect("libvirt-apparmor", Level::Warning, "has no rules");
    let local = "etc/apparmor.d/local/abstractions/libvirt-qemu";
    host.write(
        local,
        "  /dev/dax[0-9]* rw,\n  /sys/devices/**/dax*/size r,\n",
    );
    host.expect("libvirt-apparmor", Level::Ok, "");
}

#[test]
fn others_than_root_are_told_what_they_do_not_see() {
    let mut host = Host::healthy();
    host.scene.is_root = false;
    host.scene.state = None;
    host.scene.bus.regions[0].start = None;
    host.expect("root", Level::Info, "seen by root only");
    host.expect("regions", Level::Ok, "region 0");
    host.expect("permissions", Level::Info, "");
}

#[test]
fn memory_that_failed() {
    let mut host = Host::healthy();
    let list = "sys/bus/dax/drivers/dax_dmem/poison";
    let record = "var/lib/daxdmem/poison.json";
    host.write("proc/sys/kernel/random/boot_id", "now\n");
    host.write(list, "");
    host.expect("poison", Level::Ok, "no page has failed");
    host.guest();
    // One in the guest's device, seen by an earlier boot, two in free memory, one in no region.
    let text = r#"{"version": 1, "reports": [
        {"at": 1, "boot": "then", "pages": ["0x100003000-0x100003fff", "0x7000000000-0x7000000fff"]},
        {"at": 2, "boot": "now", "pages": ["0x180000000-0x180001fff"]}]}"#;
    host.write(record, text);
    let known = "0x100003000-0x100003fff\n0x180000000-0x180001fff\n";
    host.write(list, known);
    host.expect(
        "poison",
        Level::Warning,
        "3 pages of 4K failed, 2 since boot, in vm1; 2M of free memory are lost; in no region, and only recorded: 1 page",
    );
    host.write("proc/sys/kernel/random/boot_id", "later\n");
    host.expect("poison", Level::Info, "3 pages of 4K failed, 0 since boot");

    let second = |host: &Host, text: &str| {
        let found = findings(&host.scene);
        let found: Vec<_> = found
            .iter()
            .filter(|finding| finding.check == "poison")
            .collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[1].level, Level::Warning, "{found:?}");
        assert!(found[1].found.contains(text), "{found:?}");
    };
    host.write(list, &format!("{known}0x190000000-0x190000fff\n"));
    second(&host, "not recorded: 1 page");
    host.write(list, "0x180000000-0x180001fff\n");
    second(&host, "unknown to dax_dmem: 1 page");
    host.scene.bus.devices[0].driver = Some("kmem".to_owned());
    second(&host, "lent to the host: 1 page");

    host.write(record, "{");
    host.expect("poison", Level::Error, "poison.json cannot be used: EOF");
    host.scene.is_root = false;
    host.expect("poison", Level::Info, "seen by root only");
}
