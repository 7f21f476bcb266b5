// SPDX-License-Identifier: GPL-2.0
//! Benchmarks: the cases named `bench-…`, and the file that what they count is kept in.
//!
//! A case says `figure`, row, peer, size, unit and value, or `fact`, name and text, with tabs between them. The file is JSON:
//! facts about the run, and a list of figures, each with the case it comes from. `dmem-bench` makes the report of it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{json, Map, Value};

use crate::catalog::Case;
use crate::lab::Result;
use crate::report::{Report, Verdict};

/// What the names of benchmarks begin with.
const PREFIX: &str = "bench-";

/// The benchmarks among the cases, all of them or those of these names.
pub fn select(cases: Vec<Case>, names: &[String]) -> Result<Vec<Case>> {
    let chosen = crate::catalog::select(cases.clone(), names)?;
    if names.is_empty() {
        let benches = cases.into_iter();
        return Ok(benches
            .filter(|case| case.name.starts_with(PREFIX))
            .collect());
    }
    Ok(chosen)
}

/// Keeps in `file` what the cases that passed have said. What is in there of cases that did not run stays, if they ran on
/// the same kernel.
pub fn keep(file: &Path, report: &Report) -> Result<()> {
    let passed: Vec<String> = report
        .results()
        .into_iter()
        .filter(|(_, verdict)| *verdict == Verdict::Pass)
        .map(|(name, _)| name)
        .collect();
    // Nothing says which kernel it was, and the file may be of the same.
    if passed.is_empty() {
        return Ok(());
    }
    let lines = report.figures();
    let said = lines.iter().filter(|(case, _)| passed.contains(case));
    let mut facts = facts();
    let mut figures = Vec::new();
    for (case, line) in said {
        add(case, line, &mut facts, &mut figures)?;
    }
    for figure in before(file, &facts) {
        let case = figure["case"].as_str().unwrap_or_default();
        if passed.iter().all(|name| name != case) {
            figures.push(figure);
        }
    }
    let text = json!({ "facts": facts, "figures": figures });
    let text = serde_json::to_string_pretty(&text).map_err(|error| error.to_string())?;
    fs::write(file, text + "\n").map_err(|error| format!("{}: {error}", file.display()))
}

/// Figures that are in the file already, if they are of the same kernel.
fn before(file: &Path, facts: &Map<String, Value>) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    if value["facts"].get("kernel") != facts.get("kernel") {
        return Vec::new();
    }
    value["figures"].as_array().cloned().unwrap_or_default()
}

fn add(
    case: &str,
    line: &str,
    facts: &mut Map<String, Value>,
    figures: &mut Vec<Value>,
) -> Result<()> {
    let fields: Vec<&str> = line.split('\t').collect();
    let number = |text: &str| {
        text.parse::<u64>()
            .map_err(|_| format!("{case}: not a number in '{line}'"))
    };
    match fields[..] {
        ["fact", name, text] => {
            facts.insert(name.to_owned(), text.into());
        }
        ["figure", row, peer, size, unit, value] => figures.push(json!({
            "case": case, "row": row, "peer": peer, "size": number(size)?, "unit": unit, "value": number(value)?,
        })),
        _ => return Err(format!("{case}: not a figure: '{line}'")),
    }
    Ok(())
}

/// What is known about the run from outside of the VMs.
fn facts() -> Map<String, Value> {
    let first_line = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().next().map(str::to_owned)
    };
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let count = cpus.lines().filter(|line| line.starts_with("processor"));
    let mut facts = Map::new();
    facts.insert("date".into(), first_line("date", &["-u", "+%F"]).into());
    facts.insert(
        "emulator".into(),
        first_line("qemu-system-x86_64", &["--version"]).into(),
    );
    let host = model.map(|(_, model)| format!("{} CPUs, {model}", count.count()));
    facts.insert("host".into(), host.into());
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_facts_and_figures() {
        let (mut facts, mut figures) = (Map::new(), Vec::new());
        add("bench-x", "fact\tkernel\t7.3", &mut facts, &mut figures).unwrap();
        let line = "figure\ttouch\tdax_dmem 1G\t4096\tinstructions\t12";
        add("bench-x", line, &mut facts, &mut figures).unwrap();
        assert_eq!(facts["kernel"], "7.3");
        assert_eq!(figures[0]["peer"], "dax_dmem 1G");
        assert_eq!(figures[0]["value"], 12);
        let broken = "figure\ttouch\tdax_dmem 1G\t4096\tinstructions\tmany";
        assert!(add("bench-x", broken, &mut facts, &mut figures).is_err());
        assert!(add("bench-x", "figure\tx", &mut facts, &mut figures).is_err());
    }
}
