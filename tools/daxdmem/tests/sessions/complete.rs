// SPDX-License-Identifier: GPL-2.0

//! Every error that there is has a session that shows it, or a reason why not.

use std::collections::{BTreeMap, BTreeSet};

use dmem_sessions::{read, Step};
use regex::Regex;

use crate::source::Source;

/// Errors whose messages are little more than what others say: how they look in a session.
const LOOKS: &[(&str, &str)] = &[
    ("Error::Kernel", r"error: cannot .* \(os error [0-9]+\)"),
    (
        "LayoutError::Guest",
        r"error: layout.toml, line [0-9]+: vm1: ",
    ),
    (
        "LayoutError::Syntax",
        "error: layout.toml: TOML parse error",
    ),
    (
        "cli/reserve.rs: node {node}",
        "error: node [0-9]+ is given twice",
    ),
    (
        "host.rs: modprobe {module}: {}",
        "modprobe dax_dmem: exit status",
    ),
    (
        "kexec.rs: cannot {doing} {}",
        "cannot (look at the memory of|remove) /(dev|var)",
    ),
    (
        "layout/placement.rs: cannot {doing} {}",
        "cannot (create|read|write) /var/lib/daxdmem",
    ),
    (
        "store.rs: cannot {doing} {}",
        "cannot (create|open|lock|read|write) /run/daxdmem",
    ),
    (
        "verb/poison.rs: poison sync",
        "daxdmem poison sync changes the host",
    ),
    (
        "verb/poison.rs: what was {}",
        "is a page of what was dax0.0, which is in use",
    ),
    (
        "verb/stats.rs: cannot write {}",
        r"cannot write [a-z./]+\.prom: ",
    ),
    (
        "change.rs: : {driver} has it",
        "did not take [a-z0-9.]+: [a-z_]+ has it",
    ),
    (
        "change.rs: it is gone",
        "is not what daxdmem made it: it is gone",
    ),
];

const RACE: &str = "another program would have to act between two system calls";
const JSON: &str = "values of the tool's own that any text can hold";
const TAKER: &str = "VM case tool-disturbed has a program that takes devices all the time";
const TERMINAL: &str = "a terminal that is gone shows nothing; tests/top.rs has what else there is";
const SIGNALS: &str = "the kernel knows these signals";

/// Errors that no session shows, and why.
const EXCUSED: &[(&str, &str)] = &[
    (
        "Error::ForeignDriver",
        "Debian's kernel has no fourth driver on the dax bus",
    ),
    ("bind: Error::ForeignDriver", "as above"),
    (
        "Error::ScrubFailed",
        "memory that works does not fail a scrub; a test in wait.rs has it",
    ),
    (
        "Error::StaticRegion",
        "takes persistent memory, and none of the VMs of the sessions has any",
    ),
    (
        "Refusal::Devices",
        "a layout that is the same declares the same devices; a test in kexec/record.rs has it",
    ),
    (
        "verb/kexec_prepare.rs: cannot unload the next kernel",
        "the kernel refuses that to nobody who may load one",
    ),
    (
        "access.rs: another program made it {now} at the same moment",
        RACE,
    ),
    ("change.rs: : {driver} has it", RACE),
    ("change.rs: device_dax takes it again and again", TAKER),
    ("change.rs: it is gone", RACE),
    ("destroy: Error::LeftBehind", RACE),
    ("destroy: Error::UnknownDevice", RACE),
    ("lend.rs: cannot watch for signals", SIGNALS),
    ("mode: Error::Disturbed", RACE),
    ("resize: Error::NoRegion", RACE),
    ("verb/apply.rs: cannot write JSON", JSON),
    ("verb/check.rs: cannot write JSON", JSON),
    ("verb/destroy.rs: it was in use for a moment", RACE),
    ("verb/list.rs: cannot write JSON", JSON),
    ("verb/poison.rs: cannot write JSON", JSON),
    (
        "verb/mode.rs: another program brought some of it online again",
        RACE,
    ),
    ("verb/reserve.rs: cannot write JSON", JSON),
    ("verb/show.rs: cannot write JSON", JSON),
    ("verb/stats.rs: cannot write JSON", JSON),
    ("verb/top.rs: cannot use the terminal", TERMINAL),
    ("wait.rs: cannot end by the signal", SIGNALS),
    ("wait.rs: cannot watch for signals", SIGNALS),
];

/// A message has to have so many characters of its own to be known by them.
const TELLING: usize = 12;

/// The format string as a regular expression; `None` where it says too little by itself.
fn pattern(name: &str, format: &str) -> Option<Regex> {
    if let Some((_, looks)) = LOOKS.iter().find(|(of, _)| *of == name) {
        return Some(Regex::new(looks).unwrap());
    }
    let mut pattern = String::from("(?s)");
    let mut own = 0;
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, brace) = rest.split_at(at);
        own += before.len();
        pattern.push_str(&regex::escape(before));
        match brace.get(..2) {
            Some(twice @ ("{{" | "}}")) => {
                pattern.push_str(&regex::escape(&twice[..1]));
                rest = &brace[2..];
            }
            _ => {
                pattern.push_str(".*?");
                rest = brace.split_once('}').map_or("", |(_, after)| after);
            }
        }
    }
    own += rest.len();
    pattern.push_str(&regex::escape(rest));
    (own >= TELLING).then(|| Regex::new(&pattern).unwrap())
}

/// All steps of all sessions.
fn steps() -> Vec<Step> {
    let sessions = read(&crate::files(), None).unwrap();
    sessions
        .into_iter()
        .flat_map(|session| session.steps)
        .collect()
}

/// Whether it runs that verb.
fn is_of(step: &Step, verb: &str) -> bool {
    let mut runs = step.command.split("daxdmem ").skip(1);
    runs.any(|words| words.split_ascii_whitespace().next() == Some(verb))
}

#[test]
fn every_error_is_shown() {
    let source = Source::read(&crate::source());
    assert!(source.messages.len() > 100, "the source is not read");
    let steps = steps();
    let mut faults = Vec::new();
    let excused: BTreeMap<&str, &str> = EXCUSED.iter().copied().collect();
    let mut shown_by_verb: BTreeSet<String> = BTreeSet::new();
    for (name, format) in &source.messages {
        let Some(pattern) = pattern(name, format) else {
            faults.push(format!(
                "{name} needs a line in LOOKS: it says '{format}' only"
            ));
            continue;
        };
        let showing: Vec<&Step> = steps
            .iter()
            .filter(|step| pattern.is_match(&step.output))
            .collect();
        match (showing.is_empty(), excused.contains_key(name.as_str())) {
            (true, false) => faults.push(format!("no session shows {name}")),
            (false, true) => faults.push(format!("{name} is shown: it needs no excuse")),
            _ => {}
        }
        for (verb, made) in &source.made {
            if made.contains(name) && showing.iter().any(|step| is_of(step, verb)) {
                shown_by_verb.insert(format!("{verb}: {name}"));
            }
        }
    }
    for (verb, made) in &source.made {
        for name in made.iter().map(|name| format!("{verb}: {name}")) {
            match (
                shown_by_verb.contains(&name),
                excused.contains_key(name.as_str()),
            ) {
                (false, false) => faults.push(format!("no session of the verb shows {name}")),
                (true, true) => faults.push(format!("{name} is shown: it needs no excuse")),
                _ => {}
            }
        }
    }
    let known = |name: &str| {
        source.messages.contains_key(name)
            || name.split_once(": ").is_some_and(|(verb, name)| {
                source
                    .made
                    .get(verb)
                    .is_some_and(|made| made.contains(name))
            })
    };
    let tables = LOOKS.iter().chain(EXCUSED).map(|(name, _)| *name);
    faults.extend(
        tables
            .filter(|name| !known(name))
            .map(|name| format!("there is no {name}")),
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What all verbs have in common is shown for each.
#[test]
fn every_verb_refuses() {
    let source = Source::read(&crate::source());
    assert!(source.changing.len() > 10, "the source is not read");
    let steps = steps();
    let shown = |verb: &str, text: &str| {
        let mut of_verb = steps.iter().filter(|step| is_of(step, verb));
        of_verb.any(|step| step.status == 1 && step.output.contains(text))
    };
    let mut faults = Vec::new();
    for (verb, names) in &source.changing {
        for name in names {
            let text = format!("daxdmem {name} changes the host, which takes root");
            if !shown(verb, &text) {
                faults.push(format!("no session shows: {text}"));
            }
        }
    }
    for verb in &source.reading {
        if !shown(verb, "/run/daxdmem/state.json cannot be used: ") {
            faults.push(format!(
                "no session shows {verb} with a state that it cannot read"
            ));
        }
    }
    for entry in crate::source().join("verb").read_dir().unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let verb = name.trim_end_matches(".rs").replace('_', "-");
        if !steps
            .iter()
            .any(|step| is_of(step, &verb) && step.status == 2)
        {
            faults.push(format!(
                "no session shows {verb} with a command line that is wrong"
            ));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
