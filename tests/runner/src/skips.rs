// SPDX-License-Identifier: GPL-2.0
//! The list of cases that may skip: any other skip is a failure.

use std::path::Path;

use crate::lab::Result;

/// `tests/expected-skips`: one case name per line, `#` begins a comment.
#[derive(Debug, Default)]
pub struct ExpectedSkips {
    names: Vec<String>,
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
}
