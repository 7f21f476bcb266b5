// SPDX-License-Identifier: GPL-2.0
//! The lab tried on cases that go wrong on purpose: each must get exactly the verdict it deserves, in time.

use std::time::{Duration, Instant};

use crate::catalog::{self, Case};
use crate::lab::Result;
use crate::report::{Report, Style, Verdict};
use crate::schedule;
use crate::session::Context;
use crate::skips::ExpectedSkips;

/// Case, and what its verdict has to contain; an empty text stands for a pass.
const DEMANDS: &[(&str, &str)] = &[
    ("lab-pass", ""),
    ("lab-fail", "this case always fails"),
    ("lab-skip", "unexpected skip: never listed"),
    (
        "lab-warning",
        "the kernel log has: dmem-agent: WARNING: lab-made complaint",
    ),
    ("lab-expected", ""),
    ("lab-hang", "hung: no verdict after"),
    ("lab-signal", "killed by a signal"),
    ("lab-stray", ""),
    ("lab-reset", ""),
    (
        "lab-reset-warning",
        "the kernel log has: dmem-agent: WARNING: lab-made complaint",
    ),
    ("lab-panic", "Kernel panic"),
    ("lab-lockup", "watchdog: BUG: soft lockup - CPU"),
    ("lab-hung-task", "blocked for more than 2 seconds"),
    ("lab-mute", "the VM ended without a verdict"),
];
/// The slowest are a boot and a case at its time limit.
const EACH: Duration = Duration::from_secs(25);

/// Runs the broken cases; a test point for each says whether it got what it deserves.
pub fn run(context: &Context<'_>, cases: Vec<Case>) -> Result<bool> {
    let names: Vec<String> = DEMANDS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let cases = catalog::select(cases, &names)?;
    let begin = Instant::now();
    println!("KTAP version 1\n1..{}", DEMANDS.len() + 1);
    let report = Report::new(Style::Quiet, ExpectedSkips::default(), cases.len());
    schedule::run(
        &Context {
            report: &report,
            ..*context
        },
        cases,
    );
    let results = report.results();
    let mut failed = 0;
    let mut point = |number: usize, name: &str, wrong: Option<String>| match wrong {
        None => println!("ok {number} - selftest-{name}"),
        Some(reason) => {
            failed += 1;
            println!("not ok {number} - selftest-{name} # {reason}");
        }
    };
    for (index, (name, text)) in DEMANDS.iter().enumerate() {
        point(index + 1, name, deviation(&results, name, text));
    }
    let limit = EACH * DEMANDS.len() as u32 * context.patience;
    let late = begin.elapsed() > limit;
    let took = format!(
        "took {} s, more than {} s",
        begin.elapsed().as_secs(),
        limit.as_secs()
    );
    point(DEMANDS.len() + 1, "in-time", late.then_some(took));
    println!(
        "{} passed, {failed} failed, 0 skipped",
        DEMANDS.len() + 1 - failed
    );
    Ok(failed == 0)
}

fn deviation(results: &[(String, Verdict)], name: &str, text: &str) -> Option<String> {
    let verdicts: Vec<&Verdict> = results
        .iter()
        .filter(|(n, _)| n == name)
        .map(|(_, verdict)| verdict)
        .collect();
    match verdicts[..] {
        [Verdict::Pass] if text.is_empty() => None,
        [Verdict::Fail(reason)] if !text.is_empty() && reason.contains(text) => None,
        [verdict] => {
            let deserved = if text.is_empty() {
                "a pass".to_owned()
            } else {
                format!("a failure with '{text}'")
            };
            Some(format!("got {verdict:?}, deserves {deserved}"))
        }
        _ => Some(format!("got {} verdicts", verdicts.len())),
    }
}
