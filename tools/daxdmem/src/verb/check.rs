// SPDX-License-Identifier: GPL-2.0

//! `daxdmem check`: tells whether the host is ready for page-less guests.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::{bus, is_root};
use crate::check::{findings, Finding, Level, Scene};
use crate::cli::check::CheckArgs;
use crate::driver::Unowned;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::terminal::answer;

/// Runs it.
pub fn run(args: &CheckArgs) -> Result<ExitCode> {
    let is_root = is_root();
    // As it is: an interrupted operation is reported, not repaired.
    let state = match is_root {
        true => Some(Store::peek(Path::new(Store::DIR))?),
        false => None,
    };
    let scene = Scene {
        root: PathBuf::from("/"),
        is_root,
        bus: bus()?,
        state,
        unowned: Unowned::read(),
    };
    let findings = findings(&scene);
    let document = Document {
        daxdmem: Header { version: 1 },
        errors: count(&findings, Level::Error),
        warnings: count(&findings, Level::Warning),
        findings: &findings,
    };
    if args.json {
        let text = serde_json::to_string_pretty(&document)
            .map_err(|error| Error::kernel("cannot write JSON")(error.into()))?;
        answer(&format!("{text}\n"))?;
    } else {
        let shown = |finding: &&Finding| !args.quiet || finding.level >= Level::Warning;
        let text: String = findings.iter().filter(shown).map(text).collect();
        answer(&format!("{text}{}", summary(&document)))?;
    }
    Ok(match document.errors {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn count(findings: &[Finding], level: Level) -> usize {
    findings
        .iter()
        .filter(|finding| finding.level == level)
        .count()
}

/// A finding for people: one line, and what it means and what to do below.
fn text(finding: &Finding) -> String {
    let mut text = format!(
        "{:8}{}: {}\n",
        finding.level.word(),
        finding.check,
        finding.found
    );
    let more = [("so: ", &finding.meaning), ("do: ", &finding.advice)];
    for (what, more) in more {
        if let Some(more) = more {
            text.push_str(&format!("{:8}  {what}{more}\n", ""));
        }
    }
    text
}

fn summary(document: &Document<'_>) -> String {
    let many =
        |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    match (document.errors, document.warnings) {
        (0, 0) => "\nall is well\n".to_owned(),
        (0, warnings) => format!("\n{}, no errors\n", many(warnings, "warning")),
        (errors, warnings) => format!(
            "\n{}, {}\n",
            many(errors, "error"),
            many(warnings, "warning")
        ),
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    daxdmem: Header,
    errors: usize,
    warnings: usize,
    findings: &'a [Finding],
}

#[derive(Serialize)]
struct Header {
    version: u32,
}
