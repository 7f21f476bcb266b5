// SPDX-License-Identifier: GPL-2.0
//! The tool's `mode`: memory lent to the host as RAM and taken back, or given to stock device_dax.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::case::{Case, Named, Outcome};
use crate::child::Child;
use crate::command::Command;
use crate::device::{Device, DAX_DMEM, DEVICE_DAX};
use crate::mapping::Map;
use crate::memory::Meminfo;
use crate::mount::mount;
use crate::pattern::{check_zeros, Pattern};
use crate::region::{Region, MIB};
use crate::scrub::Progress;
use crate::{check, check_eq, module, say, scrub, sysfs};

use super::tool_host::{
    check_guest, check_no_stale_id, done, need, refused, refused_by, tool, Host,
};
use super::tool_kills::at_every_step;

pub const CASES: &[Case] = &[
    Case {
        name: "tool-mode-system-ram",
        shows: "memory lent to the host is used, comes back whole, and reaches no guest unscrubbed",
        limit: 240,
        run: system_ram,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-mode-held",
        shows: "memory that the host cannot give back stays lent, and block and program that hold it are named",
        limit: 240,
        run: held,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-mode-devdax",
        shows: "page-less, devdax and unbound change into each other; users are asked first, and contents go",
        limit: 120,
        run: devdax,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-mode-refused",
        shows: "what cannot be lent or bound is refused, and the host stays as it was",
        limit: 60,
        run: mode_refused,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-kill-mode",
        shows: "mode, killed anywhere: the device is wholly what it was or what it was to be, the host's settings are back",
        limit: 600,
        run: kill_mode,
        sampled: true,
        ..Case::DEFAULT
    },
];

const MEMORY: &str = "/sys/devices/system/memory";
const AUTOPROBE: &str = "/sys/bus/dax/drivers_autoprobe";
/// Two memory blocks.
const SIZE: u64 = 256 * MIB;

/// The memory blocks of a device.
fn blocks(device: &Device) -> Outcome<Vec<PathBuf>> {
    let text = sysfs::read(format!("{MEMORY}/block_size_bytes"))?;
    let size = u64::from_str_radix(&text, 16).map_err(std::io::Error::other)?;
    let ranges = device.ranges()?.into_iter();
    let numbers =
        ranges.flat_map(|range| range.start.div_ceil(size)..(range.start + range.length) / size);
    Ok(numbers
        .map(|number| PathBuf::from(format!("{MEMORY}/memory{number}")))
        .collect())
}

/// Fails unless all of them are online, where they can come back from.
fn check_lent(device: &Device) -> Outcome {
    check_eq!(
        device.driver(),
        Some("kmem".to_owned()),
        "driver of {}",
        device.name
    );
    for block in blocks(device)? {
        check_eq!(
            sysfs::read(block.join("state"))?,
            "online",
            "{}",
            block.display()
        );
        check_eq!(
            sysfs::read(block.join("valid_zones"))?,
            "Movable",
            "zone of {}",
            block.display()
        );
    }
    Ok(())
}

/// What the tool changes for a moment.
fn settings() -> Outcome<(String, String)> {
    Ok((
        sysfs::read(format!("{MEMORY}/auto_online_blocks"))?,
        sysfs::read(AUTOPROBE)?,
    ))
}

/// Has the host write to its memory until some of the blocks is used, and gives it back.
fn use_memory(device: &Device) -> Outcome {
    mount("tmpfs", "/mnt/lent", "tmpfs", 0, "size=512M").named("tmpfs")?;
    let words: Vec<u8> = (0..1 << 20).map(|byte| (byte % 251) as u8 + 1).collect();
    let free = || -> Outcome<u64> {
        let zones = fs::read_to_string("/proc/zoneinfo")?;
        let movable = zones
            .split("Node ")
            .find(|zone| zone.contains("zone  Movable"));
        let free = movable.and_then(|zone| {
            zone.lines()
                .find_map(|line| line.trim().strip_prefix("pages free"))
        });
        Ok(free.and_then(|free| free.trim().parse().ok()).unwrap_or(0))
    };
    let before = free()?;
    for file in 0..160 {
        fs::write(format!("/mnt/lent/{file}"), &words)?;
    }
    let after = free()?;
    say!("free pages of zone Movable: {before}, then {after}");
    check!(
        after + (64 << 8) < before,
        "the host did not use what {} lends it",
        device.name
    );
    umount("/mnt/lent")
}

fn umount(path: &str) -> Outcome {
    Command::line(&format!("umount {path}")).run().map(drop)
}

fn system_ram() -> Outcome {
    need()?;
    let region = Region::first()?;
    // Left by an earlier case, perhaps.
    let _ = module::unload("kmem");
    let before = Host::look()?.without_history();
    let settings_before = settings()?;
    let total = Meminfo::read()?.bytes("MemTotal")?;
    // As packaged: kmem does not load by itself.
    fs::write("/etc/modprobe.d/kmem-lab.conf", "blacklist kmem\n")?;
    // Unbound, with memory: kmem and device_dax would take it as soon as they may.
    let bystander = region.create(2 * MIB, &[(region.size - SIZE, SIZE)])?;
    for policy in ["never", "release", "hand-out"] {
        done(&format!("create vm1 --size {SIZE} --scrub {policy}"))?;
        let device = check_guest("vm1", SIZE)?;
        let ranges = device.ranges()?;
        let text = done("mode vm1 system-ram")?;
        check!(
            text.contains("system-ram, 256M in 2 memory blocks"),
            "mode says {text}"
        );
        check_lent(&device)?;
        check_eq!(bystander.driver(), None, "driver of another device");
        check_eq!(
            settings()?,
            settings_before,
            "the host's settings while memory is lent"
        );
        check_eq!(
            Meminfo::read()?.bytes("MemTotal")?,
            total + SIZE,
            "MemTotal while memory is lent"
        );
        check_eq!(done("mode vm1")?, "system-ram\n", "mode of vm1");
        check!(
            done("show vm1")?.contains("mode       system-ram (kmem)"),
            "show does not tell"
        );
        let texts = ["is system RAM", "daxdmem mode"];
        for words in [
            "destroy vm1",
            "unbind vm1",
            "bind vm1",
            "resize vm1 --size 512M",
        ] {
            refused(words, &texts)?;
        }
        use_memory(&device)?;

        done("mode vm1 page-less")?;
        check_guest("vm1", SIZE)?;
        check_eq!(device.ranges()?, ranges, "ranges of vm1");
        check_eq!(
            Meminfo::read()?.bytes("MemTotal")?,
            total,
            "MemTotal after memory was taken back"
        );
        check_eq!(
            settings()?,
            settings_before,
            "the host's settings in the end"
        );
        check!(
            !blocks(&device)?.iter().any(|block| block.exists()),
            "a memory block is left"
        );
        let mapping = Map::new(SIZE).file(&device.open()?)?;
        let zeros = check_zeros(mapping.words(0, SIZE));
        if policy == "never" {
            // What makes the other two tell something.
            check!(
                zeros.is_err(),
                "the host left nothing in the memory: it cannot be seen whether it is scrubbed"
            );
            check!(
                mapping_holds(&mapping),
                "nothing of the host's files is in the memory"
            );
        } else {
            zeros?;
            check_eq!(
                Progress::of(&device)?.total,
                SIZE,
                "bytes that were not known to be zero"
            );
        }
        drop(mapping);
        done("destroy vm1")?;
        scrub::settle()?;
    }
    bystander.destroy()?;
    fs::remove_file("/etc/modprobe.d/kmem-lab.conf")?;
    module::unload("kmem")?;
    check_no_stale_id(&region)?;
    Host::look()?
        .without_history()
        .expect(&before, "in the end")
}

/// Whether some page begins like the files that the host had in its memory.
fn mapping_holds(mapping: &crate::mapping::Mapping) -> bool {
    let head = u64::from_le_bytes([1, 2, 3, 4, 5, 6, 7, 8]);
    (0..SIZE / 4096).any(|page| mapping.read(page * 4096) == head)
}

/// Where the page of this program's memory is.
fn physical(address: usize) -> Outcome<u64> {
    let mut entry = [0; 8];
    let map = fs::File::open("/proc/self/pagemap")?;
    map.read_exact_at(&mut entry, address as u64 / 4096 * 8)?;
    // Bits 0 to 54: the page frame.
    Ok((u64::from_ne_bytes(entry) & ((1 << 55) - 1)) * 4096)
}

fn held() -> Outcome {
    need()?;
    let total = Meminfo::read()?.bytes("MemTotal")?;
    done(&format!("create vm1 --size {SIZE}"))?;
    let device = check_guest("vm1", SIZE)?;
    done("mode vm1 system-ram")?;
    let ranges = device.ranges()?;
    let inside = |at: u64| {
        ranges
            .iter()
            .any(|range| (range.start..range.start + range.length).contains(&at))
    };
    let mut user = Child::start(|link| {
        // Pages in a pipe cannot be moved while they are there. Small pages: the kernel takes those where it can.
        let mapping = Map::new(64 * MIB).anonymous()?;
        mapping.advise(0, 64 * MIB, libc::MADV_NOHUGEPAGE)?;
        for page in 0..64 * MIB / 4096 {
            // A read would bring the zero page.
            mapping.write(page * 4096, 1);
        }
        let lent = (0..64 * MIB / 4096).find_map(|page| {
            let address = mapping.address() + page as usize * 4096;
            let at = physical(address).ok()?;
            inside(at).then_some((address, at))
        });
        let Some((address, at)) = lent else {
            crate::fail!("nothing of the program's memory is in what was lent");
        };
        let mut pipe = [0; 2];
        // SAFETY: the array has room for two descriptors.
        check_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0, "pipe");
        let part = libc::iovec {
            iov_base: address as *mut libc::c_void,
            iov_len: 4096,
        };
        // SAFETY: the vector describes a part of a live mapping, which outlives the pipe's use of it.
        let spliced = unsafe { libc::vmsplice(pipe[1], &part, 1, 0) };
        check_eq!(spliced, 4096, "bytes in the pipe");
        link.send(&at.to_string())?;
        link.receive()?;
        Ok(())
    })?;
    let at: u64 = user
        .link()
        .receive()?
        .parse()
        .map_err(std::io::Error::other)?;
    let size = SIZE / blocks(&device)?.len() as u64;
    let pid = user.pid();
    let (block, who) = (format!("memory{}", at / size), format!("pid {pid} ("));
    for words in [
        "mode vm1 page-less --timeout 1",
        "mode vm1 devdax --timeout 0",
    ] {
        refused_by(
            &Command::line(&format!("daxdmem {words}")).limit(120),
            words,
            1,
            &[
                "vm1 (dax",
                "stays system RAM: 1 of 2 memory blocks cannot be taken offline now",
                &block,
                "programs' memory",
                &who,
                "--timeout SECONDS",
            ],
        )?;
        check_lent(&device)?;
        check_eq!(
            Meminfo::read()?.bytes("MemTotal")?,
            total + SIZE,
            "MemTotal while it is held"
        );
    }
    // The program ends while the tool goes on trying.
    let trying = Command::line("daxdmem mode vm1 page-less --timeout 120").limit(200);
    let waiting = std::thread::spawn(move || trying.try_run().map(|ran| (ran.code, ran.stderr)));
    std::thread::sleep(std::time::Duration::from_secs(3));
    user.link().send("end")?;
    user.finish()?;
    let ended = waiting.join();
    check!(
        matches!(&ended, Ok(Ok((Some(0), _)))),
        "taking it back while the program ends: {ended:?}"
    );
    check_guest("vm1", SIZE)?;
    check_eq!(
        Meminfo::read()?.bytes("MemTotal")?,
        total,
        "MemTotal in the end"
    );
    done("destroy vm1")?;
    module::unload("kmem").map_err(Into::into)
}

fn devdax() -> Outcome {
    need()?;
    let region = Region::first()?;
    let before = Host::look()?.without_history();
    let bystander = region.create(2 * MIB, &[(region.size - SIZE, SIZE)])?;
    done("create vm1 --size 64M")?;
    let device = check_guest("vm1", 64 * MIB)?;
    Pattern::new(3).fill(
        Map::new(64 * MIB).file(&device.open()?)?.words(0, 64 * MIB),
        0,
    );
    let user = device.open()?;
    let who = format!("by pid {} (", std::process::id());
    refused(
        "mode vm1 devdax",
        &["is in use: 1 open file", &who, "End that first"],
    )?;
    refused("mode vm1 system-ram", &["is in use: 1 open file", &who])?;
    drop(user);

    done("mode vm1 devdax")?;
    check_eq!(
        device.driver(),
        Some(DEVICE_DAX.to_owned()),
        "driver of a devdax device"
    );
    check_eq!(bystander.driver(), None, "driver of another device");
    check_eq!(
        sysfs::read(AUTOPROBE)?,
        "1",
        "whether drivers look for devices"
    );
    check!(
        tool("mode vm1 devdax")?
            .stderr
            .contains("is devdax already"),
        "twice"
    );
    check_zeros(Map::new(64 * MIB).file(&device.open()?)?.words(0, 64 * MIB))?;
    Pattern::new(4).fill(
        Map::new(64 * MIB).file(&device.open()?)?.words(0, 64 * MIB),
        0,
    );
    let user = device.open()?;
    refused("mode vm1 page-less", &["is in use: ", &who])?;
    drop(user);
    // Also resized as such.
    done("resize vm1 --size 32M")?;
    check_eq!(
        device.driver(),
        Some(DEVICE_DAX.to_owned()),
        "driver of a resized devdax device"
    );

    done("mode vm1 page-less")?;
    check_zeros(
        Map::new(32 * MIB)
            .file(&check_guest("vm1", 32 * MIB)?.open()?)?
            .words(0, 32 * MIB),
    )?;
    done("unbind vm1")?;
    done("mode vm1 devdax")?;
    check_eq!(
        device.driver(),
        Some(DEVICE_DAX.to_owned()),
        "driver after unbound and devdax"
    );
    done("unbind vm1")?;
    done("mode vm1 page-less")?;
    check_guest("vm1", 32 * MIB)?;
    done("destroy vm1")?;
    done(&format!("mode {} page-less", bystander.name))?;
    check_eq!(
        bystander.driver(),
        Some(DAX_DMEM.to_owned()),
        "driver of a device that is no guest's"
    );
    done(&format!("unbind {}", bystander.name))?;
    bystander.destroy()?;
    check_no_stale_id(&region)?;
    scrub::settle()?;
    Host::look()?
        .without_history()
        .expect(&before, "in the end")
}

fn mode_refused() -> Outcome {
    need()?;
    let region = Region::first()?;
    done("create vm1 --size 64M")?;
    refused(
        "mode vm1 system-ram",
        &["has no whole memory block of 128M", "daxdmem resize"],
    )?;
    refused("mode vm2 devdax", &["no guest is called vm2"])?;
    let vacant = region.create(2 * MIB, &[])?;
    refused(&format!("mode {} devdax", vacant.name), &["has no memory"])?;
    vacant.destroy()?;
    let line = "daxdmem mode vm1 hugetlb";
    refused_by(
        &Command::line(line),
        line,
        2,
        &["[possible values: page-less, devdax, system-ram]"],
    )?;
    let line = "setpriv --reuid 65534 --regid 65534 --clear-groups daxdmem mode vm1 devdax";
    refused_by(
        &Command::line(line),
        line,
        1,
        &["daxdmem mode changes the host, which takes root"],
    )?;
    // A module that does not load: what was begun is undone.
    done("resize vm1 --size 256M")?;
    let configuration = "/etc/modprobe.d/kmem-lab.conf";
    fs::write(configuration, "install kmem /bin/false\n")?;
    if !module::loaded("kmem") {
        let ran = tool("mode vm1 system-ram")?;
        check_eq!(ran.code, Some(1), "exit code without kmem");
        check!(
            ran.stderr
                .contains("the driver kmem is not loaded, and loading it failed"),
            "mode says {}",
            ran.stderr
        );
        check_guest("vm1", SIZE)?;
        check_eq!(
            sysfs::read(AUTOPROBE)?,
            "1",
            "whether drivers look for devices"
        );
    }
    fs::remove_file(configuration)?;
    done("destroy vm1").map(drop)
}

fn kill_mode() -> Outcome {
    need()?;
    module::load("kmem")?;
    let region = Region::first()?;
    let settings_before = settings()?;
    let total = Meminfo::read()?.bytes("MemTotal")?;
    let size = 128 * MIB;
    done(&format!("create vm1 --size {size} --scrub never"))?;
    let device = check_guest("vm1", size)?;
    let ranges = device.ranges()?;
    let look = || -> Outcome<&'static str> {
        check_eq!(settings()?, settings_before, "the host's settings");
        check_eq!(device.ranges()?, ranges, "ranges of vm1");
        let (mode, lent) = match device.driver().as_deref() {
            Some("kmem") => {
                check_lent(&device)?;
                ("system-ram", size)
            }
            Some(DAX_DMEM) => {
                check_eq!(
                    sysfs::read(device.attribute("dax_dmem/scrub_policy"))?,
                    "never",
                    "scrub policy"
                );
                ("page-less", 0)
            }
            Some(DEVICE_DAX) => ("devdax", 0),
            driver => crate::fail!("its driver is {driver:?}"),
        };
        check_eq!(
            Meminfo::read()?.bytes("MemTotal")?,
            total + lent,
            "MemTotal"
        );
        check!(
            done("list --json")?.contains("\"guest\": \"vm1\""),
            "vm1 has lost its name"
        );
        Ok(mode)
    };
    for (from, to) in [
        ("page-less", "devdax"),
        ("devdax", "page-less"),
        ("page-less", "system-ram"),
        ("system-ram", "devdax"),
        ("system-ram", "page-less"),
    ] {
        let back = || match done("mode vm1")?.trim() == from {
            true => Ok(()),
            false => done(&format!("mode vm1 {from}")).map(drop),
        };
        let steps = at_every_step(&format!("mode vm1 {to}"), back, || {
            let mode = look()?;
            check!(mode == from || mode == to, "it is {mode}");
            Ok(mode)
        })?;
        check!(steps > 8, "{steps} steps: a change was not seen");
    }
    done("mode vm1 page-less")?;
    done("destroy vm1")?;
    module::unload("kmem")?;
    check_no_stale_id(&region)
}
