// SPDX-License-Identifier: GPL-2.0
//! The catalog of cases: the agent carries the code, so the agent says what there is.

use std::path::Path;
use std::process::Command;

use crate::lab::Result;
use crate::machine::{self, Machine};

/// One case.
#[derive(Debug, Clone)]
pub struct Case {
    /// Name.
    pub name: String,
    /// The machine it runs on.
    pub machine: &'static Machine,
    /// Seconds after which a silent case is hung.
    pub limit: u64,
    /// Runs alone in its VM.
    pub fresh: bool,
    /// Run by name only.
    pub hidden: bool,
    /// Tries a part of its points only, unless it is told otherwise.
    pub sampled: bool,
    /// One sentence.
    pub shows: String,
}

/// Asks the agent for its table.
pub fn read(agent: &Path) -> Result<Vec<Case>> {
    let output = Command::new(agent)
        .arg("cases")
        .output()
        .map_err(|error| format!("{}: {error}", agent.display()))?;
    if !output.status.success() {
        return Err(format!("{} cases: {}", agent.display(), output.status));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(parse)
        .collect()
}

/// The cases of these names, in the catalog's order; without names all that are not hidden.
pub fn select(cases: Vec<Case>, names: &[String]) -> Result<Vec<Case>> {
    if let Some(unknown) = names
        .iter()
        .find(|name| cases.iter().all(|case| case.name != **name))
    {
        return Err(format!(
            "there is no case '{unknown}': see 'dmem-runner run --list'"
        ));
    }
    let wanted = |case: &Case| {
        if names.is_empty() {
            !case.hidden
        } else {
            names.contains(&case.name)
        }
    };
    Ok(cases.into_iter().filter(wanted).collect())
}

fn parse(row: &str) -> Result<Case> {
    let fields: Vec<&str> = row.split('\t').collect();
    let [name, machine, limit, fresh, hidden, sampled, shows] = fields[..] else {
        return Err(format!("not a row of the case table: '{row}'"));
    };
    let known = machine::find(machine);
    Ok(Case {
        name: name.to_owned(),
        machine: known.ok_or_else(|| format!("case {name}: there is no machine '{machine}'"))?,
        limit: limit
            .parse()
            .map_err(|_| format!("case {name}: bad time limit '{limit}'"))?,
        fresh: fresh == "true",
        hidden: hidden == "true",
        sampled: sampled == "true",
        shows: shows.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_parsed_and_selected() {
        let rows = [
            "a\tstd\t5\tfalse\tfalse\ttrue\tx",
            "b\tsmall\t5\ttrue\ttrue\tfalse\ty",
        ];
        let cases: Vec<Case> = rows.iter().map(|row| parse(row).unwrap()).collect();
        assert_eq!(select(cases.clone(), &[]).unwrap().len(), 1);
        assert_eq!(
            cases.iter().map(|case| case.sampled).collect::<Vec<_>>(),
            [true, false]
        );
        assert_eq!(select(cases.clone(), &["b".into()]).unwrap()[0].limit, 5);
        assert!(select(cases, &["c".into()]).is_err());
        assert!(parse("a\tnowhere\t5\tfalse\tfalse\tfalse\tx").is_err());
        assert!(parse("a\tstd").is_err());
    }
}
