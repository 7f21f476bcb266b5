// SPDX-License-Identifier: GPL-2.0
//! What the tool's cases share: running it, and comparing the whole host before and after.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dmem_sessions::differences;

use crate::case::{Failure, Named, Outcome};
use crate::command::{Command, Ran};
use crate::device::{driver_attribute, Device, Range, DAX_DMEM};
use crate::payload::{need_module, need_tool};
use crate::region::{Region, MIB};
use crate::{check, check_eq, say, sysfs};

/// Where the tool keeps what it knows.
pub const STATE: &str = "/run/daxdmem/state.json";

/// Where it keeps what it is about to do.
const RUNNING: &str = "/run/daxdmem/running.json";

/// Fails the case unless driver and tool are there.
pub fn need() -> Outcome {
    need_module()?;
    need_tool()
}

/// Runs the tool with these words; nothing is said about how it ends.
pub fn tool(words: &str) -> Outcome<Ran> {
    // It may have to wait until a region is scrubbed.
    let ran = Command::line(&format!("daxdmem {words}"))
        .limit(120)
        .try_run()?;
    let said = format!("{}{}", ran.stdout, ran.stderr);
    say!(
        "daxdmem {words}: {:?} {}",
        ran.code,
        shortened(said.trim_end())
    );
    Ok(ran)
}

/// The first lines of a text, and how many more there are.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 12;
    match text.lines().count().checked_sub(SHOWN) {
        None | Some(0) => text.to_owned(),
        Some(more) => {
            let first: Vec<&str> = text.lines().take(SHOWN).collect();
            format!("{}\n… {more} lines more", first.join("\n"))
        }
    }
}

/// Runs the tool, which has to succeed; its standard output.
pub fn done(words: &str) -> Outcome<String> {
    let ran = tool(words)?;
    check_eq!(ran.code, Some(0), "exit code of 'daxdmem {words}'");
    Ok(ran.stdout)
}

/// Runs the tool, which has to refuse with a message that holds all of these texts, and to leave the host as it was.
pub fn refused(words: &str, texts: &[&str]) -> Outcome {
    refused_by(&Command::line(&format!("daxdmem {words}")), words, 1, texts)
}

/// As [`refused`], for another exit code and another way to run the tool.
pub fn refused_by(command: &Command, what: &str, code: i32, texts: &[&str]) -> Outcome {
    let before = Host::look()?;
    let ran = command.try_run()?;
    say!("{what}: {:?} {}", ran.code, ran.stderr.trim_end());
    check_eq!(ran.code, Some(code), "exit code of '{what}'");
    check_eq!(ran.stdout, "", "standard output of '{what}'");
    for text in texts {
        check!(
            ran.stderr.contains(text),
            "'{what}' does not say '{text}' but: {}",
            ran.stderr
        );
    }
    Host::look()?.expect(&before, &format!("after '{what}' was refused"))
}

/// The device of a guest, by its link.
pub fn device_of(name: &str) -> Outcome<Device> {
    match sysfs::link_name(link(name)) {
        Some(device) => Ok(Device::existing(&device)),
        None => Err(Failure::Fail(format!(
            "{} is no link",
            link(name).display()
        ))),
    }
}

/// Fails if the tool's journal holds an operation that has begun and not ended.
pub fn check_idle() -> Outcome {
    let state = sysfs::read(STATE).unwrap_or_default();
    let (_, journal) = halves(&state);
    check!(
        journal.is_empty() || journal == "\"operation\":null,\"group\":null}",
        "the journal still has {journal}"
    );
    Ok(())
}

/// The tool's state as it counts: what lasts, and the journal. What is in the file beside it takes precedence over the
/// journal in the state, if it was written for that state.
fn halves(state: &str) -> (String, String) {
    let generation = |text: &str| {
        let (_, rest) = text.split_once("\"generation\":")?;
        rest.split_once(',').map(|(number, _)| number.to_owned())
    };
    let split = |text: &str| {
        let at = text.find("\"operation\":").unwrap_or(text.len());
        let (lasting, journal) = text.split_at(at);
        (lasting.to_owned(), journal.trim_end().to_owned())
    };
    let (mut lasting, mut journal) = split(state);
    let running = sysfs::read(RUNNING).unwrap_or_default();
    if let Some(number) = generation(state) {
        if generation(&running).as_ref() == Some(&number) {
            (_, journal) = split(&running);
        }
        lasting = lasting.replace(&format!("\"generation\":{number},"), "");
    }
    (lasting, journal)
}

/// Path of a guest's link.
pub fn link(name: &str) -> PathBuf {
    Path::new("/dev/daxdmem").join(name)
}

/// Fails unless the guest has a page-less device of that size, by a link that works; the device.
pub fn check_guest(name: &str, size: u64) -> Outcome<Device> {
    let device = device_of(name)?;
    check_eq!(
        device.driver(),
        Some(DAX_DMEM.to_owned()),
        "driver of {}",
        device.name
    );
    check_eq!(device.size()?, size, "size of {}", device.name);
    let target = fs::canonicalize(link(name))?;
    check_eq!(target, device.path(), "where the link of {name} leads");
    Ok(device)
}

/// Number of 1 GiB leaves of a mapping that starts on a 1 GiB boundary, by what sysfs says of the ranges.
pub fn gib_leaves(ranges: &[Range]) -> usize {
    const GIB: u64 = crate::region::GIB;
    let size: u64 = ranges.iter().map(|range| range.length).sum();
    let leaf = |offset: &u64| {
        let holds = |range: &&Range| {
            (range.offset..range.offset + range.length).contains(offset)
                && offset + GIB <= range.offset + range.length
        };
        let range = ranges.iter().find(holds);
        range.is_some_and(|range| (range.start + offset - range.offset) % GIB == 0)
    };
    (0..size / GIB).map(|gib| gib * GIB).filter(leaf).count()
}

/// Fails if the driver's list still has the name of device number 0 or of the next new one: then binding something
/// else would bind those too.
pub fn check_no_stale_id(region: &Region) -> Outcome {
    let size = region.available()?;
    let other = region.create(2 * MIB, &[(region.size - 2 * MIB, 2 * MIB)])?;
    let victim = region.create(2 * MIB, &[(region.size - 4 * MIB, 2 * MIB)])?;
    let first = Device::existing(&format!("dax{}.0", region.id));
    sysfs::write(first.attribute("size"), &(2 * MIB).to_string())?;
    // The youngest is bound, so what the list still has of older names shows.
    sysfs::write(driver_attribute(DAX_DMEM, "new_id"), &victim.name)?;
    let bound: Vec<_> = [&first, &other]
        .into_iter()
        .filter(|device| device.driver().is_some())
        .collect();
    check!(
        bound.is_empty(),
        "the driver's list still had {:?}",
        bound.iter().map(|device| &device.name).collect::<Vec<_>>()
    );
    check_eq!(
        victim.driver(),
        Some(DAX_DMEM.to_owned()),
        "driver of {}",
        victim.name
    );
    sysfs::write(first.attribute("size"), "0")?;
    victim.destroy()?;
    other.destroy()?;
    check_eq!(region.available()?, size, "free bytes afterwards");
    Ok(())
}

/// Fails if the driver's list still has the device's name: then binding another one would bind it too.
pub fn check_not_rebound(region: &Region, device: &Device) -> Outcome {
    check_eq!(device.driver(), None, "driver of {}", device.name);
    let other = region.create(2 * MIB, &[(region.size - 2 * MIB, 2 * MIB)])?;
    other.bind(DAX_DMEM)?;
    other.destroy()?;
    check_eq!(
        device.driver(),
        None,
        "driver of {} after another device was bound",
        device.name
    );
    Ok(())
}

/// The host as far as the tool can change it: every attribute of every region and device, the devices' nodes, the
/// drivers, the links, the tool's state, and what is mounted where it could be looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(BTreeMap<String, String>);

/// Attributes that change by themselves: scrubs go on in the background.
const BUSY: &[&str] = &[
    "dax_dmem/clean",
    "dax_dmem/scrubbing",
    "dax_dmem/scrub_state",
    "dax_dmem/scrub_progress",
    "dax_dmem/scrubbed",
];

/// Attributes that tell which device was made last, or when something last happened.
const HISTORY: &[&str] = &["dax_region/seed", "dax_region/create"];

impl Host {
    /// Reads everything.
    pub fn look() -> Outcome<Host> {
        let mut found = BTreeMap::new();
        for device in fs::read_dir("/sys/bus/dax/devices")? {
            let device = device?.path().canonicalize()?;
            found.insert(device.display().to_string(), "device".to_owned());
            let node = Path::new("/dev").join(device.file_name().unwrap_or_default());
            found.insert(node.display().to_string(), access(&node)?);
            walk(&device, &mut found);
            walk(&device.with_file_name("dax_region"), &mut found);
        }
        walk(Path::new("/sys/bus/dax/drivers"), &mut found);
        walk(Path::new("/dev/daxdmem"), &mut found);
        for file in fs::read_dir("/run/daxdmem").into_iter().flatten() {
            let path = file?.path();
            // Its presence says nothing.
            if path.ends_with("lock") || path == Path::new(RUNNING) {
                continue;
            }
            let mut text = fs::read_to_string(&path).unwrap_or_default();
            if path == Path::new(STATE) {
                let (lasting, journal) = halves(&text);
                text = lasting + &journal;
            }
            found.insert(path.display().to_string(), text);
        }
        found.retain(|path, _| !BUSY.iter().any(|end| path.ends_with(end)));
        // `release` is what the driver does untold.
        if let Some(told) = found.get_mut(
            &driver_attribute(DAX_DMEM, "scrub_policy")
                .display()
                .to_string(),
        ) {
            *told = pending(told);
        }
        let modules = fs::read_to_string("/proc/modules")?;
        for module in modules.lines().filter_map(|line| line.split(' ').next()) {
            found.insert(format!("module {module}"), String::new());
        }
        Ok(Host(found))
    }

    /// Without what tells of the past: which device was the last to be made, and where regions were found to start.
    pub fn without_history(mut self) -> Host {
        self.0.retain(|path, _| {
            !HISTORY.iter().any(|end| path.ends_with(end)) && !path.starts_with("/run/daxdmem")
        });
        self
    }

    /// All that was read, by path.
    pub fn into_entries(self) -> BTreeMap<String, String> {
        self.0
    }

    /// Fails unless this is what was there before; names the differences.
    pub fn expect(&self, before: &Host, when: &str) -> Outcome {
        let differences = differences(&before.0, &self.0);
        check!(
            differences.is_empty(),
            "the host is not the same {when}: {}",
            differences.join("; ")
        );
        Ok(())
    }
}

/// What the driver was told for the next binds of devices, but for `release`, which it does untold.
pub fn pending(lines: &str) -> String {
    let lines = lines.lines().filter(|line| !line.ends_with(" release"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Owner, group and mode of a node: "0:0 600".
pub fn access(node: &Path) -> Outcome<String> {
    let found = fs::metadata(node).named(node.display())?;
    let mode = found.mode() & 0o7777;
    Ok(format!("{}:{} {mode:o}", found.uid(), found.gid()))
}

/// Every readable file and every link below a directory; links are not followed.
pub fn walk(directory: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        // Of no interest here, and changing all the time.
        if entry.file_name() == "power" {
            continue;
        }
        let text = if kind.is_dir() {
            walk(&path, found);
            continue;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).unwrap_or_default();
            format!("-> {}", target.display())
        } else {
            fs::read_to_string(&path).unwrap_or_default()
        };
        found.insert(path.display().to_string(), text.trim_end().to_owned());
    }
}
