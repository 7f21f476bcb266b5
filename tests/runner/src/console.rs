// SPDX-License-Identifier: GPL-2.0
//! The kernel console of a VM: kept for the log, and watched for the kernel's own distress.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::lab::Result;

/// What a console line says about the VM's future.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distress {
    /// The VM is finished.
    Panic,
    /// A CPU makes no progress.
    Stall,
    /// A task was killed in the kernel, perhaps with locks held.
    Oops,
}

/// Everything a VM printed.
#[derive(Debug, Default)]
pub struct Console {
    lines: Vec<String>,
    first: Option<(Distress, String)>,
    /// The next panic is one that a case has asked for.
    panics: bool,
}

const SIGNS: &[(&str, Distress)] = &[
    ("Kernel panic", Distress::Panic),
    ("self-detected stall", Distress::Stall),
    ("detected stalls on CPUs", Distress::Stall),
    ("soft lockup", Distress::Stall),
    ("hard LOCKUP", Distress::Stall),
    ("Oops:", Distress::Oops),
    ("kernel BUG at", Distress::Oops),
    ("BUG: unable to handle", Distress::Oops),
    ("general protection fault", Distress::Oops),
];

impl Distress {
    /// How long the VM gets to say more: the rest of the panic's text, or the agent's verdict on the Oops.
    pub fn grace(self) -> Duration {
        Duration::from_secs(match self {
            Distress::Panic => 2,
            Distress::Stall => 1,
            Distress::Oops => 6,
        })
    }
}

impl Console {
    /// Takes a line; the distress it shows, if it is the first or a worse one.
    pub fn push(&mut self, line: String) -> Option<Distress> {
        // A user-space segfault of a case that probes for it has "general protection fault" in its line, too.
        let from_kernel = !line.contains(" traps: ");
        let sign = SIGNS
            .iter()
            .find(|(text, _)| from_kernel && line.contains(text))
            .map(|(_, distress)| *distress);
        if self.panics && sign == Some(Distress::Panic) {
            self.panics = false;
            self.lines.push(line);
            return None;
        }
        let news = sign.filter(|sign| match &self.first {
            None => true,
            Some((Distress::Oops, _)) => *sign != Distress::Oops,
            Some(_) => false,
        });
        if let Some(distress) = news {
            self.first = Some((distress, without_time(&line).to_owned()));
        }
        self.lines.push(line);
        news
    }

    /// The next panic is meant to be: another kernel takes over.
    pub fn expect_panic(&mut self) {
        self.panics = true;
    }

    /// The line that showed the distress.
    pub fn reason(&self) -> Option<&str> {
        self.first.as_ref().map(|(_, line)| line.as_str())
    }

    /// The last lines.
    pub fn tail(&self, count: usize) -> &[String] {
        &self.lines[self.lines.len().saturating_sub(count)..]
    }

    /// Writes all of it to `DIRECTORY/console.log`.
    pub fn save(&self, directory: &Path) -> Result<()> {
        let path = directory.join("console.log");
        fs::create_dir_all(directory)
            .and_then(|()| fs::write(&path, self.lines.join("\n") + "\n"))
            .map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// The line without the kernel's `[   12.345678] `.
fn without_time(line: &str) -> &str {
    match line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    {
        Some((_, message)) => message,
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sign_of_distress_is_the_reason_and_a_panic_outranks_an_oops() {
        let mut console = Console::default();
        assert_eq!(console.push("[ 1.0] all well".into()), None);
        assert_eq!(
            console.push("[ 1.1] BUG: unable to handle page fault".into()),
            Some(Distress::Oops)
        );
        assert_eq!(console.push("[ 1.2] Oops: 0002 [#1]".into()), None);
        assert_eq!(
            console.push("[ 1.3] Kernel panic - not syncing: x".into()),
            Some(Distress::Panic)
        );
        assert_eq!(console.reason(), Some("Kernel panic - not syncing: x"));
        assert_eq!(console.tail(1), ["[ 1.3] Kernel panic - not syncing: x"]);
    }

    #[test]
    fn one_panic_may_be_meant_to_be() {
        let mut console = Console::default();
        console.expect_panic();
        let panic = "[ 1.3] Kernel panic - not syncing: sysrq triggered crash";
        assert_eq!(console.push(panic.into()), None);
        assert_eq!(console.reason(), None);
        assert_eq!(console.push(panic.into()), Some(Distress::Panic));
    }
}
