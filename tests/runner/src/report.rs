// SPDX-License-Identifier: GPL-2.0
//! The report: KTAP version 1 on standard output, one verdict line at the end.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::skips::ExpectedSkips;

/// What the lines of benchmarks begin with: [`crate::bench`].
const FIGURES: [&str; 2] = ["figure\t", "fact\t"];

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

/// What a case has cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Took {
    /// From its begin to its verdict.
    pub time: Duration,
    /// Processor time of its VM meanwhile: unlike the other it is the same on a busy host.
    pub cpu: Duration,
}

impl Took {
    /// The time since then, of a VM that is gone.
    pub fn since(begin: Instant) -> Took {
        Took {
            time: begin.elapsed(),
            cpu: Duration::ZERO,
        }
    }
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
    /// A case that runs in many VMs and has one verdict over all of them, at the end.
    gathers: Option<String>,
    gathered: Mutex<Vec<Verdict>>,
    results: Mutex<Vec<(String, Verdict)>>,
    figures: Mutex<Vec<(String, String)>>,
}

impl Report {
    /// A report over `count` cases.
    pub fn new(style: Style, skips: ExpectedSkips, count: usize) -> Report {
        Report::gathering(style, skips, count, None)
    }

    /// The same, with one verdict more at the end: that of all runs of this case together.
    pub fn gathering(
        style: Style,
        skips: ExpectedSkips,
        count: usize,
        gathers: Option<String>,
    ) -> Report {
        if style == Style::Ktap {
            println!(
                "KTAP version 1\n1..{}",
                count + usize::from(gathers.is_some())
            );
        }
        Report {
            style,
            skips,
            gathers,
            gathered: Mutex::default(),
            results: Mutex::default(),
            figures: Mutex::default(),
        }
    }

    /// A line from a case or about a machine.
    pub fn diagnostic(&self, name: &str, text: &str) {
        let _one_line_at_a_time = self.lock();
        if FIGURES.iter().any(|prefix| text.starts_with(prefix)) {
            let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
            figures.push((name.to_owned(), text.to_owned()));
        }
        match self.style {
            Style::Ktap | Style::Quiet => println!("# {name}: {text}"),
            Style::Plain => println!("{text}"),
        }
    }

    /// The end of a case. A skip that nobody expects becomes a failure; the verdict that counts comes back.
    pub fn verdict(&self, name: &str, verdict: Verdict, took: Took) -> Verdict {
        let verdict = match verdict {
            Verdict::Skip(reason) if !self.skips.has(name) => Verdict::Fail(format!(
                "unexpected skip: {reason} (expected ones are in tests/expected-skips)"
            )),
            other => other,
        };
        if self.gathers.as_deref() == Some(name) {
            let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
            gathered.push(verdict.clone());
            return verdict;
        }
        self.count(name, verdict.clone(), took);
        verdict
    }

    /// A verdict that counts as it is.
    pub fn count(&self, name: &str, verdict: Verdict, took: Took) {
        let mut results = self.lock();
        results.push((name.to_owned(), verdict.clone()));
        let number = results.len();
        let (seconds, cpu) = (took.time.as_secs_f64(), took.cpu.as_secs_f64());
        match (self.style, &verdict) {
            (Style::Ktap, Verdict::Pass) => {
                println!("ok {number} - {name} # time {seconds:.1}s, cpu {cpu:.1}s")
            }
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
    }

    /// The verdict over all runs of the gathered case. None at all is a failure: nothing was looked at.
    fn conclude(&self, name: &str) {
        let verdicts = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = verdicts.iter().filter_map(|verdict| match verdict {
            Verdict::Fail(reason) => Some(reason),
            _ => None,
        });
        let all = verdicts.len();
        let bad = failures.clone().count();
        let verdict = match failures.last() {
            _ if all == 0 => Verdict::Fail("no VM came to its end in order".to_owned()),
            None => Verdict::Pass,
            Some(reason) => Verdict::Fail(format!("{bad} of {all} VMs: {reason}")),
        };
        self.diagnostic(name, &format!("ran last in {all} VMs"));
        self.count(name, verdict, Took::default());
    }

    /// Verdicts so far, in the order they came.
    pub fn results(&self) -> Vec<(String, Verdict)> {
        self.lock().clone()
    }

    /// What benchmarks have said, each with its case.
    pub fn figures(&self) -> Vec<(String, String)> {
        let figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        figures.clone()
    }

    /// The last line, and whether all is well.
    pub fn finish(&self) -> bool {
        if let Some(name) = &self.gathers {
            self.conclude(name);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(verdicts: &[Verdict]) -> (usize, bool) {
        let gathers = Some("last".to_owned());
        let report = Report::gathering(Style::Quiet, ExpectedSkips::default(), 1, gathers);
        report.verdict("case", Verdict::Pass, Took::default());
        for verdict in verdicts {
            report.verdict("last", verdict.clone(), Took::default());
        }
        let good = report.finish();
        (report.results().len(), good)
    }

    #[test]
    fn a_gathered_case_counts_once_and_fails_when_any_run_failed_or_none_was() {
        let bad = Verdict::Fail("a leak".to_owned());
        assert_eq!(gathered(&[Verdict::Pass, Verdict::Pass]), (2, true));
        assert_eq!(gathered(&[Verdict::Pass, bad, Verdict::Pass]), (2, false));
        assert_eq!(gathered(&[]), (2, false));
    }
}
