// SPDX-License-Identifier: GPL-2.0
//! The lists of cases that may skip, and of cases that are not even tried with the debug kernel.

use std::path::Path;

use crate::lab::Result;

/// `tests/expected-skips`: one case name per line, `#` begins a comment. Any other skip is a failure.
#[derive(Debug, Default)]
pub struct ExpectedSkips {
    names: Vec<String>,
}

/// `tests/expected-skips-debug`: lines `NAME # REASON`, cases that have nothing to say with the debug kernel.
#[derive(Debug, Default)]
pub struct NotTried {
    reasons: Vec<(String, String)>,
}

impl NotTried {
    /// Reads the list.
    pub fn read(path: &Path) -> Result<NotTried> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        NotTried::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Why this case is not tried.
    pub fn reason(&self, name: &str) -> Option<&str> {
        let listed = self.reasons.iter().find(|(listed, _)| listed == name);
        listed.map(|(_, reason)| &**reason)
    }

    /// The names on the list.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.reasons.iter().map(|(name, _)| &**name)
    }

    fn parse(text: &str) -> Result<NotTried> {
        let mut reasons = Vec::new();
        for line in text.lines() {
            let (name, reason) = line.split_once('#').unwrap_or((line, ""));
            let (name, reason) = (name.trim(), reason.trim());
            if name.is_empty() {
                continue;
            }
            if reason.is_empty() {
                return Err(format!("{name}: no reason given; write '{name} # REASON'"));
            }
            reasons.push((name.to_owned(), reason.to_owned()));
        }
        Ok(NotTried { reasons })
    }
}

impl ExpectedSkips {
    /// Reads the list.
    pub fn read(path: &Path) -> Result<ExpectedSkips> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(ExpectedSkips::parse(&text))
    }

    /// Whether this case may skip.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|listed| listed == name)
    }

    fn parse(text: &str) -> ExpectedSkips {
        let names = text
            .lines()
            .map(|line| line.split('#').next().unwrap_or("").trim());
        ExpectedSkips {
            names: names
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_no_names() {
        let skips = ExpectedSkips::parse("# none\nfoo # because\n\nbar\n");
        assert!(skips.has("foo") && skips.has("bar") && !skips.has("# none") && !skips.has(""));
    }

    #[test]
    fn what_is_not_tried_has_a_reason() {
        let list = NotTried::parse("# head\nfoo # costs differ\n").unwrap();
        assert_eq!(list.reason("foo"), Some("costs differ"));
        assert_eq!(list.reason("head"), None);
        assert_eq!(list.names().count(), 1);
        assert!(NotTried::parse("foo").is_err() && NotTried::parse("foo #").is_err());
    }
}
