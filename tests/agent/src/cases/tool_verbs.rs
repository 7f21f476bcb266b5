// SPDX-License-Identifier: GPL-2.0
//! The tool's verbs when all goes well: what they make is what sysfs, /dev and the page table show.

use std::fs;

use crate::case::{Case, Failure, Outcome};
use crate::command::Command;
use crate::device::{driver_attribute, Device, DAX_DMEM, DEVICE_DAX};
use crate::mapping::Map;
use crate::region::{Region, GIB, MIB};
use crate::spinner::Spinner;
use crate::{check, check_eq, say, sysfs};

use super::tool_host::{
    check_guest, check_no_stale_id, check_not_rebound, device_of, done, gib_leaves, link, need,
    refused, tool, Host,
};

pub const CASES: &[Case] = &[
    Case {
        name: "tool-create-destroy",
        shows: "create, list and destroy at align 4K, 2M and 1G; afterwards the host is as it was",
        run: create_destroy,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-places-ranges",
        shows: "in a region cut to pieces the tool finds every GiB that can be a 1 GiB leaf, where the kernel finds none",
        run: places_ranges,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-chooses-region",
        shows: "the region with the most 1 GiB leaves is taken, unless --region says otherwise",
        machine: "two-regions",
        limit: 60,
        run: chooses_region,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-chooses-node",
        shows: "memory comes from the node that --node names",
        machine: "numa",
        run: chooses_node,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-names",
        shows: "names hold across calls, and never stand for a device that somebody else made meanwhile",
        run: names,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-bind-unbind",
        shows: "bind and unbind change the driver only: of a guest's device, of one made by hand, of device_dax's",
        run: bind_unbind,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-static-device",
        shows: "a namespace of persistent memory is listed, bound and unbound, and not cut into devices",
        machine: "pmem",
        limit: 60,
        run: static_device,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-at-once",
        shows: "eight creates at once, then eight destroys, do not get into each other's way",
        limit: 60,
        run: at_once,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-qemu-args",
        shows: "with the arguments that qemu-args prints, QEMU maps the device on a 1 GiB boundary",
        limit: 60,
        run: qemu_args,
        ..Case::DEFAULT
    },
];

fn create_destroy() -> Outcome {
    need()?;
    let region = Region::first()?;
    let before = Host::look()?.without_history();
    for (align, size) in [
        ("4K", 512 * MIB),
        ("4K", GIB + 2 * MIB),
        ("2M", GIB),
        ("1G", 3 * GIB),
    ] {
        done(&format!("create vm1 --size {size} --align {align}"))?;
        let device = check_guest("vm1", size)?;
        let bytes = match align {
            "4K" => 4096,
            "2M" => 2 * MIB,
            _ => GIB,
        };
        check_eq!(
            sysfs::read_number(device.attribute("align"))?,
            bytes,
            "align of {}",
            device.name
        );
        check_eq!(
            region.available()?,
            region.size - size,
            "free bytes of the region"
        );
        let ranges = device.ranges()?;
        check_eq!(ranges.len(), 1, "number of ranges");
        check_eq!(gib_leaves(&ranges) as u64, size / GIB, "1 GiB leaves");

        let list = done("list")?;
        check!(
            list.contains("vm1") && list.contains("page-less"),
            "list shows {list}"
        );
        let json = done("list --json")?;
        for text in [
            "\"guest\": \"vm1\"".to_owned(),
            format!("\"size\": {size}"),
            format!("\"start\": \"{:#x}\"", ranges[0].start),
            "\"mode\": \"page-less\"".to_owned(),
        ] {
            check!(json.contains(&text), "list --json has no {text}: {json}");
        }

        let mapping = Map::new(size).file(
            &fs::File::options()
                .read(true)
                .write(true)
                .open(link("vm1"))?,
        )?;
        mapping.write(size - 8, size);
        check_eq!(mapping.read(size - 8), size, "last word");
        drop(mapping);
        done("destroy vm1")?;
        Host::look()?
            .without_history()
            .expect(&before, "after create and destroy")?;
    }
    check_no_stale_id(&region)
}

fn places_ranges() -> Outcome {
    need()?;
    let region = Region::first()?;
    // Of 6 GiB these are free: [0.5, 1), [1.5, 2.5), [3, 4.5), [5, 6). GiB 3 and GiB 5 are whole.
    let holes = [
        (0, GIB / 2),
        (GIB, GIB / 2),
        (5 * GIB / 2, GIB / 2),
        (9 * GIB / 2, GIB / 2),
    ];
    let fillers = holes
        .into_iter()
        .map(|part| region.create(2 * MIB, &[part]))
        .collect::<Outcome<Vec<_>>>()?;

    // The kernel, given the size, takes the first pieces it meets.
    let kernels = region.create(2 * MIB, &[])?;
    sysfs::write(kernels.attribute("size"), &(2 * GIB).to_string())?;
    let ranges = kernels.ranges()?;
    say!("the kernel's choice: {ranges:x?}");
    check_eq!(
        gib_leaves(&ranges),
        0,
        "1 GiB leaves in the kernel's own choice"
    );
    kernels.destroy()?;

    // 2 GiB: both whole GiB, the first one first.
    done("create vm1 --size 2G")?;
    let ranges = check_guest("vm1", 2 * GIB)?.ranges()?;
    let starts: Vec<u64> = ranges
        .iter()
        .map(|range| range.start - region.start)
        .collect();
    check_eq!(starts, [3 * GIB, 5 * GIB], "where the ranges are");
    check_eq!(gib_leaves(&ranges), 2, "1 GiB leaves");
    let spinner = Spinner::start(|| {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(link("vm1"))?;
        let mapping = Map::new(2 * GIB).file(&file)?;
        mapping.write(0, 1);
        mapping.write(GIB, 1);
        Ok(mapping)
    })?;
    let leaves = spinner.leaves()?;
    leaves.check_write_back()?;
    check_eq!(leaves.census().puds, 2, "1 GiB leaves in the page table");
    drop(spinner);
    done("destroy vm1")?;

    // 2.5 GiB at 2M: the whole GiB first, the rest where the second one goes on or elsewhere.
    done("create vm1 --size 2.5G --align 2M")?;
    let ranges = check_guest("vm1", 5 * GIB / 2)?.ranges()?;
    check_eq!(gib_leaves(&ranges), 2, "1 GiB leaves of 2.5 GiB");
    // And a small one leaves no GiB broken that is still whole.
    done("destroy vm1")?;
    done("create small --size 512M")?;
    done("create vm1 --size 2G")?;
    check_eq!(
        gib_leaves(&check_guest("vm1", 2 * GIB)?.ranges()?),
        2,
        "1 GiB leaves beside a small device"
    );
    done("destroy vm1")?;
    done("destroy small")?;
    fillers.into_iter().try_for_each(Device::destroy)
}

fn chooses_region() -> Outcome {
    need()?;
    let regions = Region::all()?;
    check_eq!(regions.len(), 2, "number of regions");
    let region_of = |name: &str| -> Outcome<u64> {
        let device = device_of(name)?.name.clone();
        let id = device
            .strip_prefix("dax")
            .and_then(|rest| rest.split_once('.'));
        id.and_then(|(id, _)| id.parse().ok())
            .ok_or_else(|| Failure::Fail(format!("{device} is no device name")))
    };
    let (small, large) = (&regions[0], &regions[1]);
    // Equal leaves: the region with less to spare. More than it has: the other.
    done("create vm1 --size 1G")?;
    check_eq!(region_of("vm1")?, small.id, "region of 1 GiB");
    done("create vm2 --size 4G")?;
    check_eq!(region_of("vm2")?, large.id, "region of 4 GiB");
    done("destroy vm1")?;
    done("destroy vm2")?;
    done(&format!("create vm1 --size 1G --region {}", large.id))?;
    check_eq!(region_of("vm1")?, large.id, "region that was asked for");
    // Together there is enough, but a device lies in one region.
    refused(
        "create vm2 --size 5G",
        &[
            "no space for 5G with align 1G",
            "region 0 has ",
            "; region 1 has ",
        ],
    )?;
    done("destroy vm1")?;

    // The small region is without a whole GiB now, the large one has them.
    let fillers = (0..3)
        .map(|gib| small.create(2 * MIB, &[(gib * GIB + GIB / 2, 2 * MIB)]))
        .collect::<Outcome<Vec<_>>>()?;
    done("create vm1 --size 1G --align 2M")?;
    check_eq!(region_of("vm1")?, large.id, "region with a 1 GiB leaf");
    done("destroy vm1")?;
    fillers.into_iter().try_for_each(Device::destroy)
}

fn chooses_node() -> Outcome {
    need()?;
    let nodes = |name: &str| sysfs::read_number(device_of(name)?.attribute("target_node"));
    for node in [0, 1] {
        done(&format!("create vm{node} --size 1G --node {node}"))?;
        check_eq!(nodes(&format!("vm{node}"))?, node, "node of vm{node}");
    }
    let json = done("list --json")?;
    check!(
        json.contains("\"node\": 0") && json.contains("\"node\": 1"),
        "list --json shows {json}"
    );
    refused(
        "create vm2 --size 1G --node 7",
        &[
            "no region lies on node 7",
            "node 0)",
            "node 1)",
            "leave --node out",
        ],
    )?;
    refused(
        "create vm2 --size 3G --node 0",
        &[
            "no space for 3G",
            "region 0 has 1G free",
            "Ask for 1G or less",
        ],
    )?;
    done("destroy vm0")?;
    done("destroy vm1").map(drop)
}

fn names() -> Outcome {
    need()?;
    let region = Region::first()?;
    let before = Host::look()?.without_history();
    done("create web --size 512M")?;
    done("create db-1.prod_x --size 512M")?;
    let (web, db) = (
        check_guest("web", 512 * MIB)?,
        check_guest("db-1.prod_x", 512 * MIB)?,
    );
    check!(web.name != db.name, "both have {}", web.name);
    // A lost link comes back with the next call, whatever it is.
    fs::remove_file(link("web"))?;
    check!(
        tool("list")?
            .stderr
            .contains("/dev/daxdmem/web was missing"),
        "list does not say that it made the link again"
    );
    check_guest("web", 512 * MIB)?;

    // Another operator destroys a guest's device and makes one of the same name, even of the same memory.
    let ranges = db.ranges()?;
    Command::line(&format!("daxctl disable-device {}", db.name)).run()?;
    Command::line(&format!("daxctl destroy-device -f {}", db.name)).run()?;
    let usurper = region.create(2 * MIB, &[(ranges[0].start - region.start, 512 * MIB)])?;
    check_eq!(usurper.ranges()?, ranges, "ranges of the new device");
    check_eq!(usurper.name, db.name, "name of the new device");
    let told = tool("list")?;
    check!(
        told.stderr
            .contains(&format!("{} is not db-1.prod_x's any more", db.name)),
        "list does not say that the device is another one: {}",
        told.stderr
    );
    check!(
        told.stdout.contains("LOST GUEST"),
        "list does not show the lost guest: {}",
        told.stdout
    );
    check!(
        !link("db-1.prod_x").exists(),
        "the link leads to a foreign device"
    );
    refused(
        "qemu-args db-1.prod_x",
        &["is gone or was changed", "destroy db-1.prod_x"],
    )?;
    refused("unbind db-1.prod_x", &["is gone or was changed"])?;
    refused(
        "create db-1.prod_x --size 512M",
        &["the name db-1.prod_x is taken"],
    )?;
    let text = done("destroy db-1.prod_x")?;
    check!(text.contains("forgotten"), "destroy says {text}");
    check_eq!(usurper.size()?, 512 * MIB, "size of the foreign device");
    check_eq!(usurper.driver(), None, "driver of the foreign device");

    // The same with other ranges of the same device: changed by hand, it is not the guest's any more.
    done("unbind web")?;
    sysfs::write(web.attribute("size"), &(256 * MIB).to_string())?;
    let text = done("destroy web")?;
    check!(text.contains("forgotten"), "destroy says {text}");
    check_eq!(web.size()?, 256 * MIB, "size of the changed device");
    sysfs::write(web.attribute("size"), "0")?;
    sysfs::write(web.attribute("align"), &(2 * MIB).to_string())?;
    usurper.destroy()?;
    Host::look()?
        .without_history()
        .expect(&before, "in the end")
}

fn bind_unbind() -> Outcome {
    need()?;
    let region = Region::first()?;
    done("create vm1 --size 1G")?;
    let device = check_guest("vm1", GIB)?;
    let ranges = device.ranges()?;
    done("unbind vm1")?;
    check_eq!(device.driver(), None, "driver after unbind");
    refused(
        "qemu-args vm1",
        &["vm1 is not page-less now (unbound)", "daxdmem bind vm1"],
    )?;
    check!(
        done("unbind vm1")?.is_empty(),
        "unbinding twice does something"
    );
    done(&format!("bind {}", device.name))?;
    check_guest("vm1", GIB)?;
    check_eq!(device.ranges()?, ranges, "ranges after unbind and bind");
    check!(done("bind vm1")?.is_empty(), "binding twice does something");
    done("unbind vm1")?;
    check_not_rebound(&region, &device)?;
    // Nor when somebody has it unbound by sysfs alone: no name is left in the driver's list while it is bound.
    done("bind vm1")?;
    sysfs::write(driver_attribute(DAX_DMEM, "unbind"), &device.name)?;
    check_not_rebound(&region, &device)?;
    done("destroy vm1")?;
    check_no_stale_id(&region)?;

    let by_hand = region.create(2 * MIB, &[(0, 64 * MIB), (GIB, 64 * MIB)])?;
    by_hand.bind(DEVICE_DAX)?;
    refused(
        &format!("bind {}", by_hand.name),
        &["is bound to the driver device_dax", "daxdmem unbind"],
    )?;
    done(&format!("unbind {}", by_hand.name))?;
    done(&format!("bind {}", by_hand.name))?;
    check_eq!(
        by_hand.driver(),
        Some(DAX_DMEM.to_owned()),
        "driver of a device made by hand"
    );
    let arguments = done(&format!("qemu-args {}", by_hand.name))?;
    check!(
        arguments.contains(&format!(
            "mem-path=/dev/{},size={},",
            by_hand.name,
            128 * MIB
        )) && arguments.contains(",align=2M,"),
        "qemu-args prints {arguments}"
    );
    done(&format!("unbind {}", by_hand.name))?;
    by_hand.destroy()
}

fn static_device() -> Outcome {
    need()?;
    let device = super::pmem::make_namespace()?;
    let name = device.name.as_str();
    if device.driver().is_none() {
        device.bind(DEVICE_DAX)?;
    }
    let list = done("list")?;
    check!(
        list.contains(name) && list.contains("devdax") && list.contains("static"),
        "list shows {list}"
    );
    refused(
        "create vm1 --size 1G",
        &["has one device for good", &format!("daxdmem bind {name}")],
    )?;
    done(&format!("unbind {name}"))?;
    done(&format!("bind {name}"))?;
    check_eq!(
        device.driver(),
        Some(DAX_DMEM.to_owned()),
        "driver of {name}"
    );
    check!(
        done(&format!("qemu-args {name}"))?.contains(",align=1G,"),
        "qemu-args misses the 1 GiB leaves"
    );
    done(&format!("unbind {name}"))?;
    check_eq!(device.size()?, 2 * GIB, "size of {name}");
    Ok(())
}

fn at_once() -> Outcome {
    need()?;
    let before = Host::look()?.without_history();
    let run = |words: String| std::thread::spawn(move || Command::line(&words).limit(50).try_run());
    let all = |verb: &dyn Fn(u64) -> String| -> Outcome {
        let running: Vec<_> = (0..8).map(|guest| run(verb(guest))).collect();
        for ran in running {
            let ran = ran
                .join()
                .map_err(|_| Failure::Fail("a thread panicked".to_owned()))??;
            check_eq!(ran.code, Some(0), "exit code; it said {}", ran.stderr);
        }
        Ok(())
    };
    all(&|guest| format!("daxdmem create vm{guest} --size {}M", 64 + 2 * guest))?;
    let mut ranges = Vec::new();
    for guest in 0..8 {
        ranges.extend(check_guest(&format!("vm{guest}"), (64 + 2 * guest) * MIB)?.ranges()?);
    }
    ranges.sort_by_key(|range| range.start);
    for pair in ranges.windows(2) {
        check!(
            pair[0].start + pair[0].length <= pair[1].start,
            "{pair:x?} overlap"
        );
    }
    all(&|guest| format!("daxdmem destroy vm{guest}"))?;
    Host::look()?
        .without_history()
        .expect(&before, "after all destroys")
}

fn qemu_args() -> Outcome {
    need()?;
    done("create vm1 --size 2G")?;
    let device = check_guest("vm1", 2 * GIB)?;
    let printed = done("qemu-args vm1")?;
    let arguments = printed.trim();
    check_eq!(
        arguments,
        "-object memory-backend-file,id=ram,mem-path=/dev/daxdmem/vm1,size=2147483648,share=on,align=1G,\
         prealloc=off,merge=off,dump=off -machine memory-backend=ram",
        "what qemu-args prints"
    );
    // Stopped before its first instruction: enough to see where it maps its guest's memory.
    let mut qemu = std::process::Command::new("qemu-system-x86_64")
        .args("-S -nodefaults -display none -accel tcg".split(' '))
        .args(arguments.split(' '))
        .stdin(std::process::Stdio::null())
        .spawn()?;
    let mapped = (|| {
        for _ in 0..300 {
            let maps = fs::read_to_string(format!("/proc/{}/maps", qemu.id()))?;
            if let Some(line) = maps.lines().find(|line| line.contains(&device.name)) {
                return Ok(line.to_owned());
            }
            if let Some(status) = qemu.try_wait()? {
                return Err(Failure::Fail(format!("QEMU ended: {status}")));
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Err(Failure::Fail(
            "QEMU did not map the device in 30 s".to_owned(),
        ))
    })();
    let used = refused(
        "destroy vm1",
        &[
            "vm1 is in use: ",
            &format!("pid {} (qemu-system", qemu.id()),
            "--force",
        ],
    );
    qemu.kill()?;
    qemu.wait()?;
    let line = mapped?;
    used?;
    say!("{line}");
    let bounds = line
        .split(' ')
        .next()
        .and_then(|range| range.split_once('-'));
    let (start, end) = bounds.ok_or_else(|| Failure::Fail(format!("not a mapping: {line}")))?;
    let number = |text| sysfs::number(&format!("0x{text}")).unwrap_or_default();
    check_eq!(
        number(start) % GIB,
        0,
        "start of QEMU's mapping modulo 1 GiB"
    );
    check_eq!(
        number(end) - number(start),
        2 * GIB,
        "length of QEMU's mapping"
    );
    done("destroy vm1").map(drop)
}
