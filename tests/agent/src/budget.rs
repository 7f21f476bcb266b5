// SPDX-License-Identifier: GPL-2.0
//! Budgets: how many instructions operations may take, by the table in Documentation/benchmarks/budgets.md.

use crate::case::{Failure, Outcome};
use crate::{fail, say};

const TABLE: &str = include_str!("../../../Documentation/benchmarks/budgets.md");
/// Per cent that an operation may take beyond its budget.
const MARGIN: u64 = 2;

/// What operations have taken, compared with their budgets.
#[derive(Default)]
pub struct Budgets {
    over: Vec<String>,
}

impl Budgets {
    /// An operation has taken so many instructions. Fails if the table does not have it.
    pub fn spend(&mut self, operation: &str, instructions: u64) -> Outcome {
        let budget = budget(TABLE, operation)
            .ok_or_else(|| Failure::Fail(format!("budgets.md has no number for '{operation}'")))?;
        let share = 100.0 * instructions as f64 / budget as f64;
        let text = format!("{operation}: {instructions} instructions, {share:.2} % of {budget}");
        say!("{text}");
        if instructions > budget + budget * MARGIN / 100 {
            self.over.push(text);
        }
        Ok(())
    }

    /// Fails if an operation has taken more than its budget and the margin.
    pub fn kept(self) -> Outcome {
        if !self.over.is_empty() {
            fail!("beyond the budget: {}", self.over.join("; "));
        }
        Ok(())
    }
}

/// The number in the row `| operation | number |`, with or without thousands apart.
fn budget(table: &str, operation: &str) -> Option<u64> {
    let mut rows = table.lines().map(|line| line.split('|').map(str::trim));
    rows.find_map(|mut cells| {
        (cells.nth(1)? == operation).then_some(())?;
        cells.next()?.replace(',', "").parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_and_the_margin_counts() {
        let table = "# Budgets\n\n| operation | instructions |\n|---|---:|\n| bind | 40,000 |\n";
        assert_eq!(budget(table, "bind"), Some(40_000));
        assert_eq!(budget(table, "operation"), None);
        assert_eq!(budget(table, "unbind"), None);
        let fault = budget(TABLE, "fault, 1 GiB leaf").expect("a budget");
        let kept = |instructions| {
            let mut budgets = Budgets::default();
            budgets
                .spend("fault, 1 GiB leaf", instructions)
                .expect("known");
            budgets.kept().is_ok()
        };
        assert!(kept(fault + fault / 51));
        assert!(!kept(fault + fault / 49));
    }
}
