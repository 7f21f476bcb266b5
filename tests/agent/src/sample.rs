// SPDX-License-Identifier: GPL-2.0
//! How much a case tries that could try every point of something.
//!
//! `make test` has cases with `sampled` try every nth point only, from a random one on that they name; `make test-long`,
//! and any run by name, has them try all.

use std::io::Read;

use crate::case::{Case, Named, Outcome};
use crate::cmdline;

/// Tells the case's process.
pub const VARIABLE: &str = "DMEM_EVERY";

/// What to put into [`VARIABLE`] for this case.
pub fn of(case: &Case) -> String {
    match case.sampled {
        true => cmdline::value("dmem.every").unwrap_or_else(|| "1".to_owned()),
        false => "1".to_owned(),
    }
}

/// Which of the points to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Number of the first one, counted from 1.
    pub first: usize,
    /// From each to the next.
    pub every: usize,
}

impl Sample {
    /// A fresh sample of the running case.
    pub fn new() -> Outcome<Sample> {
        let every = std::env::var(VARIABLE)
            .ok()
            .and_then(|text| text.parse().ok());
        let every = every.unwrap_or(1).max(1);
        let first = match every {
            1 => 1,
            _ => 1 + usize::try_from(random()?)? % every,
        };
        Ok(Sample { first, every })
    }

    /// Whether no point is left out.
    pub fn is_all(self) -> bool {
        self.every == 1
    }

    /// The points up to the last one.
    pub fn points(self, last: usize) -> impl Iterator<Item = usize> {
        (self.first..=last).step_by(self.every)
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.every {
            1 => f.write_str("each"),
            every => write!(f, "every {every}th from number {}", self.first),
        }
    }
}

/// A random number.
pub fn random() -> Outcome<u64> {
    const SOURCE: &str = "/dev/urandom";
    let mut bytes = [0; 8];
    let mut file = std::fs::File::open(SOURCE).named(SOURCE)?;
    file.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_all_first_numbers_are_all_points_once() {
        let every = 4;
        let mut all: Vec<usize> = (1..=every)
            .flat_map(|first| Sample { first, every }.points(10))
            .collect();
        all.sort_unstable();
        assert_eq!(all, (1..=10).collect::<Vec<_>>());
        let whole = Sample { first: 1, every: 1 };
        assert_eq!(whole.points(10).count(), 10);
    }
}
