// SPDX-License-Identifier: GPL-2.0
//! The kernel command line: the runner's way to tell a VM its part.

use std::time::Duration;

/// How long something may take that takes at most `limit` with the stock kernel on a usual machine.
pub fn patient(limit: Duration) -> Duration {
    let factor = value("dmem.patience").and_then(|text| text.parse().ok());
    limit * factor.unwrap_or(1)
}

/// The value of `key=value`, the last one winning.
pub fn value(key: &str) -> Option<String> {
    let line = std::fs::read_to_string("/proc/cmdline")
        .or_else(|_| {
            // The first thing PID 1 does: /proc may not be there yet.
            crate::mount::mount("proc", "/proc", "proc", 0, "")?;
            std::fs::read_to_string("/proc/cmdline")
        })
        .ok()?;
    line.split_ascii_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value.to_owned())
        .last()
}
