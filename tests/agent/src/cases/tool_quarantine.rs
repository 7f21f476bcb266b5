// SPDX-License-Identifier: GPL-2.0
//! The tool and daxctl where memory cannot be given to anybody, because somebody may still write to it.

use crate::case::{Case, Outcome};
use crate::child::{Child, End};
use crate::device::{quarantine, wait_for_quarantine, DAX_DMEM};
use crate::mapping::Map;
use crate::region::MIB;
use crate::{check, check_eq, fail, module, say, sysfs};

use super::daxctl::daxctl;
use super::dma::give_away;
use super::tool_host::{check_guest, device_of, done, need, refused, tool};
use super::tool_tracer;

pub const CASES: &[Case] = &[
    Case {
        name: "tool-left-unbound",
        shows: "an operation that cannot be undone before a quarantine ends leaves its device unbound, says so, and keeps nobody waiting",
        limit: 90,
        run: left_unbound,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-dma",
        shows: "the tool refuses to take away what a PCI device may still write to; where daxctl does, nobody gets it before that is over",
        machine: "vfio",
        limit: 90,
        run: dma,
        ..Case::DEFAULT
    },
];

const SIZE: u64 = 64 * MIB;

/// Runs the tool and kills it at the first step at which the guest's device is unbound.
fn kill_when_unbound(words: &str) -> Outcome {
    let device = device_of("vm1")?;
    for step in 1..100 {
        let traced = tool_tracer::killed_at(step, &format!("daxdmem {words}"))?;
        if device.driver().is_none() {
            say!("daxdmem {words}: killed at step {step}");
            return Ok(());
        }
        check_eq!(traced.code, None, "it ends before its device is unbound");
        // Undoes it.
        done("list")?;
    }
    fail!("daxdmem {words} goes on and on")
}

fn left_unbound() -> Outcome {
    need()?;
    for words in ["mode vm1 devdax", "resize vm1 --size 128M"] {
        done("create vm1 --size 64M")?;
        let device = device_of("vm1")?;
        kill_when_unbound(words)?;
        // Another program, meanwhile.
        device.bind(DAX_DMEM)?;
        let mapping = Map::new(SIZE).file(&device.open()?)?;
        device.unbind()?;
        let held = "in quarantine until 1 open files are closed";
        let list = tool("list")?;
        check_eq!(list.code, Some(0), "exit code of list");
        check!(
            list.stderr.contains(held) && list.stderr.contains("it is unbound"),
            "list says {}",
            list.stderr
        );
        check_eq!(device.driver(), None, "the driver");
        check_eq!(device.size()?, SIZE, "its size");
        refused("bind vm1", &[held])?;
        // Everything else goes on.
        done("create vm2 --size 64M")?;
        check_guest("vm2", SIZE)?;
        done("destroy vm2")?;
        drop(mapping);
        wait_for_quarantine(&[])?;
        done("bind vm1")?;
        check_guest("vm1", SIZE)?;
        done("destroy vm1")?;
    }
    Ok(())
}

fn dma() -> Outcome {
    need()?;
    // On a configured host it does not load by itself.
    module::load("kmem")?;
    done("create vm1 --size 64M")?;
    let device = device_of("vm1")?;
    let dma = device.attribute("dax_dmem/dma");
    check_eq!(sysfs::read(&dma)?, "0", "dma before");
    let mut user = Child::start(|link| {
        let edu = give_away(&device)?;
        link.send("closed")?;
        link.receive()?;
        drop(edu);
        Ok(())
    })?;
    user.link().receive()?;
    check_eq!(sysfs::read(&dma)?, "1", "dma while VFIO has it mapped");
    for words in [
        "mode vm1 devdax",
        "mode vm1 system-ram",
        "resize vm1 --size 128M",
        "unbind vm1",
        "destroy vm1",
    ] {
        refused(words, &["vm1", "is in use", "VFIO"])?;
    }
    check_eq!(quarantine()?, Vec::<String>::new(), "behind all that");

    // daxctl asks nobody.
    let name = &device.name;
    daxctl("disable-device", &device)?;
    let [range] = &device.ranges()?[..] else {
        fail!("{name} has not one range");
    };
    let (first, last) = (range.start, range.start + SIZE - 1);
    let held = format!("{first:#x}-{last:#x} {name} 0");
    check_eq!(
        quarantine()?,
        [held.clone()],
        "behind daxctl disable-device"
    );
    for verb in [
        "enable-device",
        "reconfigure-device -f -m devdax",
        "reconfigure-device -f -m system-ram",
    ] {
        daxctl(verb, &device)?;
        check_eq!(device.driver(), None, "the driver behind daxctl {verb}");
    }
    let until = "in quarantine until no device of the machine can write to it";
    refused("bind vm1", &[until])?;
    refused("mode vm1 devdax", &["does not take"])?;
    check!(done("list")?.contains("vm1"), "list does not show it");
    daxctl("destroy-device -f", &device)?;
    check_eq!(quarantine()?, [held], "behind daxctl destroy-device");
    // The rest of the region is free, and that alone.
    done("create vm2 --size 64M")?;
    let others = device_of("vm2")?.ranges()?;
    check!(
        others.iter().all(|other| other.start > last),
        "vm2 gets {others:x?}"
    );
    done("destroy vm2")?;

    user.link().send("end")?;
    check_eq!(user.wait()?, End::Exit(0), "end of the user");
    wait_for_quarantine(&[])?;
    done("create vm3 --size 64M")?;
    check_eq!(device_of("vm3")?.ranges()?[0].start, first, "vm3");
    done("destroy vm3").map(drop)
}
