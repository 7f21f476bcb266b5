// SPDX-License-Identifier: GPL-2.0
//! The report: KTAP version 1 on standard output, one verdict line at the end.

use std::sync::{Mutex, PoisonError};

use crate::skips::ExpectedSkips;

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It held.
    Pass,
    /// It did not; why.
    Fail(String),
    /// It could not be tried; why.
    Skip(String),
}

/// What becomes of lines and verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// KTAP.
    Ktap,
    /// Only what the case says, as it says it.
    Plain,
    /// Everything as diagnostics, for cases that are meant to go wrong.
    Quiet,
}

/// Collects verdicts from several VMs.
pub struct Report {
    style: Style,
    skips: ExpectedSkips,
    results: Mutex<Vec<(String, Verdict)>>,
}

impl Report {
    /// A report over `count` cases.
    pub fn new(style: Style, skips: ExpectedSkips, count: usize) -> Report {
        if style == Style::Ktap {
            println!("KTAP version 1\n1..{count}");
        }
        Report {
            style,
            skips,
            results: Mutex::new(Vec::new()),
        }
    }

    /// A line from a case or about a machine.
    pub fn diagnostic(&self, name: &str, text: &str) {
        let _one_line_at_a_time = self.lock();
        match self.style {
            Style::Ktap | Style::Quiet => println!("# {name}: {text}"),
            Style::Plain => println!("{text}"),
        }
    }

    /// The end of a case. A skip that nobody expects becomes a failure; the verdict that counts comes back.
    pub fn verdict(&self, name: &str, verdict: Verdict, seconds: f64) -> Verdict {
        let verdict = match verdict {
            Verdict::Skip(reason) if !self.skips.has(name) => Verdict::Fail(format!(
                "unexpected skip: {reason} (expected ones are in tests/expected-skips)"
            )),
            other => other,
        };
        let mut results = self.lock();
        results.push((name.to_owned(), verdict.clone()));
        let number = results.len();
        match (self.style, &verdict) {
            (Style::Ktap, Verdict::Pass) => println!("ok {number} - {name} # time {seconds:.1}s"),
            (Style::Ktap, Verdict::Skip(reason)) => {
                println!("ok {number} - {name} # SKIP {reason}")
            }
            (Style::Ktap, Verdict::Fail(reason)) => println!("not ok {number} - {name} # {reason}"),
            (Style::Quiet, verdict) => {
                println!("# {name}: verdict after {seconds:.1} s: {verdict:?}")
            }
            (Style::Plain, Verdict::Pass) => {}
            (Style::Plain, Verdict::Fail(reason) | Verdict::Skip(reason)) => {
                println!("failed: {reason}")
            }
        }
        verdict
    }

    /// Verdicts so far, in the order they came.
    pub fn results(&self) -> Vec<(String, Verdict)> {
        self.lock().clone()
    }

    /// The last line, and whether all is well.
    pub fn finish(&self) -> bool {
        let results = self.lock();
        let count = |kind: fn(&Verdict) -> bool| {
            results.iter().filter(|(_, verdict)| kind(verdict)).count()
        };
        let passed = count(|verdict| *verdict == Verdict::Pass);
        let failed = count(|verdict| matches!(verdict, Verdict::Fail(_)));
        let skipped = count(|verdict| matches!(verdict, Verdict::Skip(_)));
        if self.style == Style::Ktap {
            println!("{passed} passed, {failed} failed, {skipped} skipped");
        }
        failed == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(String, Verdict)>> {
        // A thread that panicked while printing leaves the list whole.
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
