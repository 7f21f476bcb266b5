// SPDX-License-Identifier: GPL-2.0
//! What `daxdmem stats` tells of memory that smaps knows nothing of, against what is known to be so.

use std::fs;

use crate::case::{Case, Outcome};
use crate::child::Child;
use crate::command::Command;
use crate::mapping::Map;
use crate::poison::{self, Cleaned};
use crate::region::{Region, GIB, MIB};
use crate::{check, check_eq, sysfs};

use super::tool_host::{device_of, done, need};

pub const CASES: &[Case] = &[Case {
    name: "tool-stats",
    shows: "stats and top say which process maps how much of which guest, by which leaves, and how free memory is cut",
    limit: 90,
    run: stats,
    ..Case::DEFAULT
}];

const FILE: &str = "/tmp/daxdmem.prom";

/// The line of a text that has all of these words, among others, as its columns.
fn line<'t>(text: &'t str, words: &[&str]) -> Option<&'t str> {
    text.lines().find(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        words.iter().all(|word| columns.contains(word))
    })
}

fn stats() -> Outcome {
    need()?;
    let _cleaned = Cleaned;
    let region = Region::first()?;
    done("create vm1 --size 1G --scrub never")?;
    done("create vm2 --size 64M --scrub never")?;
    let (vm1, vm2) = (device_of("vm1")?, device_of("vm2")?);
    let file = vm1.open()?;
    let mapping = Map::new(GIB).file(&file)?;
    mapping.touch(GIB);
    // What is mapped twice counts once for a process.
    let twice = Map::new(GIB / 2).file(&file)?;
    // A child would have them, too.
    mapping.advise(0, GIB, libc::MADV_DONTFORK)?;
    twice.advise(0, GIB / 2, libc::MADV_DONTFORK)?;
    let mut child = Child::start(|link| {
        let mapping = Map::new(32 * MIB).file(&vm2.open()?)?;
        mapping.touch(2 * MIB);
        link.send("touched")?;
        link.receive().map(drop)
    })?;
    child.link().receive()?;
    let (this, that) = (std::process::id().to_string(), child.pid().to_string());

    let text = done("stats")?;
    for words in [
        &["vm1", &vm1.name, "page-less", "mapped", "1x1G", "16M"][..],
        &["vm2", &vm2.name, "page-less", "mapped", "16x2M", "1M"],
        &[&this, "vm1", &vm1.name, "1G"],
        &[&that, "vm2", &vm2.name, "32M"],
    ] {
        check!(
            line(&text, words).is_some(),
            "no line of {words:?} in {text}"
        );
    }
    check!(
        line(&text, &[&that, "vm1"]).is_none(),
        "{that} maps vm1: {text}"
    );
    let once = done("top --once")?;
    let row = ["vm1", &vm1.name, "mapped", "1G", "1x1G"];
    check!(line(&once, &row).is_some(), "top shows {once}");

    let json = done("stats --json")?;
    for text in [
        format!("\"pid\": {this},"),
        format!("\"mapped\": {GIB}"),
        format!("\"mapped\": {}", 32 * MIB),
        "\"state\": \"mapped\"".to_owned(),
        "\"1g\": 1,".to_owned(),
    ] {
        check!(json.contains(&text), "stats --json has no {text}: {json}");
    }

    let failed = vm2.physical(40 * MIB)?;
    poison::add(failed)?;
    done(&format!("stats --prometheus --output {FILE}"))?;
    let metrics = fs::read_to_string(FILE)?;
    fs::remove_file(FILE)?;
    let (one, two) = (&vm1.name, &vm2.name);
    let program = sysfs::read(format!("/proc/{this}/comm"))?;
    let id = region.id;
    for sample in [
        format!("daxdmem_device_leaves{{device=\"{one}\",guest=\"vm1\",leaf=\"1g\"}} 1"),
        format!("daxdmem_device_mappings{{device=\"{one}\",guest=\"vm1\"}} 2"),
        format!("daxdmem_device_faults_total{{device=\"{one}\",guest=\"vm1\",leaf=\"1g\",result=\"mapped\"}} 1"),
        format!("daxdmem_device_poisoned_pages{{device=\"{two}\",guest=\"vm2\"}} 1"),
        format!("daxdmem_process_mapped_bytes{{pid=\"{this}\",program=\"{program}\",device=\"{one}\",guest=\"vm1\"}} {GIB}"),
        format!("daxdmem_region_poisoned_pages{{region=\"{id}\",node=\"0\"}} 1"),
        format!("daxdmem_region_free_by_leaf_bytes{{region=\"{id}\",node=\"0\",leaf=\"1g\"}} {}", 4 * GIB),
        format!("daxdmem_region_free_by_leaf_bytes{{region=\"{id}\",node=\"0\",leaf=\"2m\"}} {}", GIB - 64 * MIB),
    ] {
        check!(
            metrics.lines().any(|line| line == sample),
            "no '{sample}' in {metrics}"
        );
    }

    // Everybody may look, and sees no process of others, nor what only root may count.
    let words = "setpriv --reuid 65534 --regid 65534 --clear-groups daxdmem stats";
    let text = Command::line(words).limit(60).run()?;
    let row = line(&text, &["vm1", &vm1.name, "mapped"]);
    check!(
        row.is_some_and(|row| !row.contains("1x1G")) && line(&text, &[&that]).is_none(),
        "stats shows everybody {text}"
    );

    // Unbound while in use: nobody gets it.
    done("unbind vm2 --force")?;
    let metrics = done("stats --prometheus")?;
    let held = format!(
        "daxdmem_region_quarantined_bytes{{region=\"{id}\",node=\"0\"}} {}",
        64 * MIB
    );
    check!(metrics.contains(&held), "no '{held}' in {metrics}");
    child.kill()?;
    drop((mapping, twice, file));
    let text = done("stats")?;
    check_eq!(line(&text, &["PID"]), None, "processes in the end");
    done("destroy vm1")?;
    done("destroy vm2")?;
    // From the tool's record, too: the next command would bring it back.
    done(&format!("poison clear {failed:#x}")).map(drop)
}
