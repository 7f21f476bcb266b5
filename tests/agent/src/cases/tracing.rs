// SPDX-License-Identifier: GPL-2.0
//! Tracepoints: every event comes, with the right fields, in a form that perf and bpftrace read.

use crate::case::{errno, Case, Outcome};
use crate::device::{Device, DAX_DMEM};
use crate::mapping::Map;
use crate::poison::{self, Cleaned, PAGE};
use crate::probe;
use crate::region::{Region, GIB, MIB};
use crate::scrub::{Policy, Progress};
use crate::tracing::{event, Counter, Tracing};
use crate::{check, check_eq, payload, sysfs};

pub const CASES: &[Case] = &[
    Case {
        name: "trace-events",
        shows: "each tracepoint tells of what happens, with the right fields, through trace_pipe and perf",
        limit: 60,
        run: events,
        ..Case::DEFAULT
    },
    Case {
        name: "trace-formats",
        shows: "each tracepoint describes its fields as perf and bpftrace want it",
        run: formats,
        ..Case::DEFAULT
    },
];

const HUGE: u64 = 2 * MIB;
const SIZE: u64 = 64 * MIB;
/// Where nothing else is mapped in the same GiB, and no leaf of that size fits.
const PLACE: u64 = 64 * GIB + HUGE;
/// Offset of a page that fails.
const FAILS: u64 = 4 * HUGE + 3 * PAGE;

/// Every event and its fields, each with its size; the device's name is a string somewhere else.
const FIELDS: &[(&str, &[(&str, u64)])] = &[
    (
        "dax_dmem_bind",
        &[("device", 4), ("size", 8), ("dirty", 8), ("error", 4)],
    ),
    ("dax_dmem_unbind", &[("device", 4), ("openers", 4)]),
    ("dax_dmem_quarantine", &[("device", 4), ("openers", 4)]),
    (
        "dax_dmem_map",
        &[("device", 4), ("start", 8), ("end", 8), ("pgoff", 8)],
    ),
    (
        "dax_dmem_unmap",
        &[("device", 4), ("start", 8), ("end", 8), ("pgoff", 8)],
    ),
    (
        "dax_dmem_fault",
        &[("device", 4), ("address", 8), ("order", 4), ("result", 4)],
    ),
    (
        "dax_dmem_scrub",
        &[("start", 8), ("size", 8), ("done", 8), ("state", 4)],
    ),
    ("dax_dmem_poison", &[("address", 8), ("cleared", 1)]),
];

/// What was traced, to be compared with what should have been.
struct Traced(Vec<String>);

impl Traced {
    /// Takes the first event of this text away, and all before it.
    fn next(&mut self, text: &str) -> Outcome {
        let Some(at) = self.0.iter().position(|line| line == text) else {
            crate::fail!("no '{text}' in {:?}", self.0);
        };
        self.0.drain(..=at);
        Ok(())
    }
}

fn events() -> Outcome {
    payload::need_module()?;
    let _cleaned = Cleaned;
    let device = Region::first()?.create(HUGE, &[(0, SIZE)])?;
    let (name, start) = (device.name.clone(), device.physical(0)?);
    // Whoever had it may have written to it.
    Policy::Never.bind(&device)?;
    device.open()?;
    device.unbind()?;

    let tracing = Tracing::start("")?;
    Policy::HandOut.bind(&device)?;
    Progress::finish(&device)?;
    let traced = tracing.lines()?;
    // The worker begins when it likes.
    for text in [
        format!("dax_dmem_bind: device={name} size={SIZE} dirty={SIZE} error=0"),
        format!("dax_dmem_scrub: start={start:#x} size={SIZE} done=0 state=begun"),
        format!("dax_dmem_scrub: start={start:#x} size={SIZE} done={SIZE} state=done"),
    ] {
        check!(traced.contains(&text), "no '{text}' in {traced:?}");
    }
    used(&device, &tracing)?;

    // Unbound while in use.
    let file = device.open()?;
    let mapping = Map::new(PAGE).offset(HUGE).file(&file)?;
    let area = format!(
        "device={name} start={:#x} end={:#x} pgoff={:#x}",
        mapping.address(),
        mapping.address() as u64 + PAGE,
        HUGE / PAGE
    );
    device.unbind()?;
    check!(probe::read(mapping.address()).is_err(), "no SIGBUS");
    check_eq!(
        errno(device.attach(DAX_DMEM)),
        Some(libc::EBUSY),
        "errno of a bind over quarantine"
    );
    drop(mapping);
    drop(file);
    let mut traced = Traced(tracing.lines()?);
    traced.next(&format!("dax_dmem_map: {area}"))?;
    traced.next(&format!("dax_dmem_unbind: device={name} openers=1"))?;
    traced.next(&format!("dax_dmem_quarantine: device={name} openers=1"))?;
    let lost =
        |line: &String| line.starts_with("dax_dmem_fault: ") && line.ends_with(" result=sigbus");
    check!(traced.0.iter().any(lost), "no SIGBUS in {:?}", traced.0);
    traced.next(&format!(
        "dax_dmem_bind: device={name} size=0 dirty=0 error=-{}",
        libc::EBUSY
    ))?;
    traced.next(&format!("dax_dmem_unmap: {area}"))?;
    traced.next(&format!("dax_dmem_quarantine: device={name} openers=0"))?;

    // Off, nothing is traced.
    drop(tracing);
    let tracing = Tracing::start("dax_dmem_unbind")?;
    Policy::Never.bind(&device)?;
    device.open()?;
    check_eq!(
        tracing.lines()?,
        Vec::<String>::new(),
        "events that are off"
    );
    Ok(())
}

/// Faults at both sizes, a page that fails, a split, a child.
fn used(device: &Device, tracing: &Tracing) -> Outcome {
    let name = &device.name;
    let file = device.open()?;
    let mapping = Map::new(SIZE).at(PLACE as usize).file(&file)?;
    let counter = Counter::start("dax_dmem_fault")?;
    mapping.read(HUGE);
    mapping.advise(2 * HUGE, HUGE, libc::MADV_NOHUGEPAGE)?;
    mapping.read(2 * HUGE + PAGE);
    let counted = counter.count()?;
    let page = device.physical(FAILS)?;
    poison::add(page)?;
    check!(
        probe::read((PLACE + FAILS) as usize).is_err(),
        "poison can be read"
    );
    poison::clear(page)?;
    drop(mapping);

    let lines = tracing.lines()?;
    let is_fault = |line: &&String| line.starts_with("dax_dmem_fault: ");
    let (before, _) = lines.split_at(
        lines
            .iter()
            .position(|line| line.starts_with("dax_dmem_poison: "))
            .unwrap_or(lines.len()),
    );
    let faults = before.iter().filter(is_fault).count() as u64;
    check_eq!(counted, faults, "faults that perf counted");
    check_eq!(faults, 3, "faults, which are {before:?}");

    let area = |from: u64, to: u64| {
        let (start, end) = (PLACE + from, PLACE + to);
        format!(
            "device={name} start={start:#x} end={end:#x} pgoff={:#x}",
            from / PAGE
        )
    };
    let fault = |at: u64, leaf: &str, result: &str| {
        let address = PLACE + at;
        format!("dax_dmem_fault: device={name} address={address:#x} leaf={leaf} result={result}")
    };
    let mut traced = Traced(lines);
    traced.next(&format!("dax_dmem_map: {}", area(0, SIZE)))?;
    traced.next(&fault(HUGE, "1g", "smaller"))?;
    traced.next(&fault(HUGE, "2m", "mapped"))?;
    // The part that is cut off, by each of two splits.
    let parts = traced.0.iter();
    let parts = parts.filter(|line| line.starts_with("dax_dmem_map: "));
    check_eq!(parts.count(), 2, "VMAs by splits");
    traced.next(&fault(2 * HUGE + PAGE, "4k", "mapped"))?;
    traced.next(&format!("dax_dmem_poison: address={page:#x} cleared=0"))?;
    traced.next(&fault(FAILS, "2m", "smaller"))?;
    traced.next(&fault(FAILS, "4k", "poisoned"))?;
    traced.next(&format!("dax_dmem_poison: address={page:#x} cleared=1"))?;
    for (from, to) in [(0, 2 * HUGE), (2 * HUGE, 3 * HUGE), (3 * HUGE, SIZE)] {
        traced.next(&format!("dax_dmem_unmap: {}", area(from, to)))?;
    }
    Ok(())
}

fn formats() -> Outcome {
    payload::need_module()?;
    for (name, fields) in FIELDS {
        let format = sysfs::read(event(name).join("format"))?;
        let mut own = Vec::new();
        // Those before an empty line are the same for every event.
        let (_, text) = format.split_once("\n\n").unwrap_or_default();
        let mut end = 8;
        for line in text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("field:"))
        {
            let part = |key: &str| {
                let found = line
                    .split(';')
                    .find_map(|part| part.trim().strip_prefix(key));
                found
                    .and_then(|text| text.parse::<u64>().ok())
                    .unwrap_or(u64::MAX)
            };
            let declared = line.split(';').next().unwrap_or_default();
            let field = declared.rsplit(' ').next().unwrap_or_default();
            let (offset, size) = (part("offset:"), part("size:"));
            check!(
                offset >= end && offset % size == 0,
                "{name}: {field} lies at {offset}, {size} bytes, behind {end}"
            );
            end = offset + size;
            own.push((field.to_owned(), size));
        }
        let expected: Vec<(String, u64)> = fields
            .iter()
            .map(|(field, size)| ((*field).to_owned(), *size))
            .collect();
        check_eq!(own, expected, "fields of {name}");
        let print = format
            .lines()
            .find_map(|line| line.strip_prefix("print fmt: "));
        let print = print.unwrap_or_default();
        check!(
            print.starts_with('"') && fields.iter().all(|(field, _)| print.contains(field)),
            "{name} prints {print}"
        );
        // What perf and bpftrace cannot make sense of by themselves.
        check!(
            !print.contains("sizeof") && !print.contains("dmem_"),
            "{name} prints {print}"
        );
    }
    let mut there: Vec<String> = std::fs::read_dir(event(""))?
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    there.sort();
    let mut known: Vec<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    check_eq!(there, known, "events of the driver");
    Ok(())
}
