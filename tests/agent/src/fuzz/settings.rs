// SPDX-License-Identifier: GPL-2.0
//! What is to be run: defaults, or a file that came with the VM (`dmem-runner --add`).

use crate::case::{Failure, Outcome};
use crate::payload;
use crate::sysfs;

/// Name of the file, in the payload's directory: a line `KEY VALUE` for each setting that is not the default.
const FILE: &str = "fuzz.conf";

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The first seed; the others follow it. `None`: any.
    pub seed: Option<u64>,
    /// Number of seeds.
    pub seeds: u64,
    /// Operations of each.
    pub ops: usize,
    /// Runs side by side, each with its part of the region.
    pub workers: u64,
    /// Includes calls the stock kernel cannot stand.
    pub holes: bool,
    /// Names each operation in the kernel log before it is done.
    pub trace: bool,
    /// Only these operations of the list.
    pub keep: Option<Vec<usize>>,
    /// Seconds for shortening a failing list.
    pub shrink: u64,
}

impl Settings {
    /// What is run without a file.
    pub fn new(seeds: u64, ops: usize) -> Self {
        Settings {
            seed: None,
            seeds,
            ops,
            workers: seeds.clamp(1, 2),
            holes: false,
            trace: false,
            keep: None,
            shrink: 120,
        }
    }

    /// The file's settings, if there is one.
    pub fn read(self) -> Outcome<Settings> {
        match std::fs::read_to_string(payload::path(FILE)) {
            Ok(text) => self.parsed(&text),
            Err(_) => Ok(self),
        }
    }

    fn parsed(mut self, text: &str) -> Outcome<Settings> {
        let bad = |line: &str| Failure::Fail(format!("{FILE}: bad line '{line}'"));
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(key), value) = (words.next(), words.next()) else {
                continue;
            };
            // `make fuzz` names every variable, also those that were not given.
            let Some(value) = value else {
                continue;
            };
            let number = sysfs::number(value).ok_or_else(|| bad(line));
            match key {
                "seed" => self.seed = Some(number?),
                "seeds" => self.seeds = number?.max(1),
                "ops" => self.ops = number? as usize,
                "workers" => self.workers = number?.clamp(1, 2),
                "holes" => self.holes = number? != 0,
                "trace" => self.trace = number? != 0,
                "shrink" => self.shrink = number?,
                "keep" => self.keep = Some(numbers(value).ok_or_else(|| bad(line))?),
                _ => return Err(bad(line)),
            }
        }
        Ok(self)
    }
}

/// Numbers and ranges: `1,5-8,11`.
fn numbers(text: &str) -> Option<Vec<usize>> {
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        list.extend(first.parse().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(list)
}

/// The shortest text that [`numbers`] reads as this ascending list.
pub fn ranges(list: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for number in list {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => parts.push((*number, *number)),
        }
    }
    let part = |(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_empty_ones_left_alone() {
        let default = Settings::new(2, 100);
        let text = "seed 0x10\nseeds\nops 50\nholes 1\ntrace 0\nkeep 1,5-7\nworkers 1\n";
        let Ok(settings) = default.clone().parsed(text) else {
            panic!("not read")
        };
        let expected = Settings {
            seed: Some(16),
            ops: 50,
            holes: true,
            keep: Some(vec![1, 5, 6, 7]),
            workers: 1,
            ..default.clone()
        };
        assert_eq!(settings, expected);
        assert_eq!(ranges(&[1, 5, 6, 7]), "1,5-7");
        assert!(default.clone().parsed("ops many").is_err());
        assert!(default.parsed("colour 7").is_err());
    }
}
