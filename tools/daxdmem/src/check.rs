// SPDX-License-Identifier: GPL-2.0

//! Whether a host is ready for page-less guests, and what is wrong where it is not: findings, by what they are about.
//!
//! Nothing here changes anything. What only root can see is left out for others, with one finding that says so.

mod devices;
mod kernel;
mod kvm;
mod libvirt;
mod memory;
mod poison;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::bus::Bus;
use crate::driver::Unowned;
use crate::store::State;
use crate::sysfs;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing, nothing to do.
    Info,
    /// Works, or not for all: look at it.
    Warning,
    /// Guests cannot run, or memory is lost to them.
    Error,
}

impl Level {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: a word that stays the same.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What that means.
    pub meaning: Option<String>,
    /// What to do.
    pub advice: Option<String>,
}

impl Finding {
    fn new(check: &'static str, level: Level, found: impl Into<String>) -> Finding {
        Finding {
            check,
            level,
            found: found.into(),
            meaning: None,
            advice: None,
        }
    }

    fn ok(check: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(check, Level::Ok, found)
    }

    fn info(check: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(check, Level::Info, found)
    }

    fn warning(check: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(check, Level::Warning, found)
    }

    fn error(check: &'static str, found: impl Into<String>) -> Finding {
        Finding::new(check, Level::Error, found)
    }

    fn means(mut self, text: impl Into<String>) -> Finding {
        self.meaning = Some(text.into());
        self
    }

    fn advises(mut self, text: impl Into<String>) -> Finding {
        self.advice = Some(text.into());
        self
    }
}

/// Whether the driver is there for the kernel of that release.
pub fn has_driver(root: &Path, release: &str) -> bool {
    let scene = Scene {
        root: root.to_owned(),
        is_root: true,
        bus: Bus::default(),
        state: None,
        unowned: Unowned::default(),
    };
    kernel::has_driver(&scene, release)
}

/// What is looked at.
#[derive(Debug)]
pub struct Scene {
    /// Where the host's file system starts.
    pub root: PathBuf,
    /// Whether the caller is root.
    pub is_root: bool,
    /// The dax bus.
    pub bus: Bus,
    /// What daxdmem keeps, where the caller may see it.
    pub state: Option<State>,
    /// Memory that no device has.
    pub unowned: Unowned,
}

impl Scene {
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A file's text without the line end.
    fn text(&self, path: &str) -> Option<String> {
        sysfs::text(&self.path(path))
    }

    fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// A module's parameter, where it is on or off.
    fn switch(&self, module: &str, parameter: &str) -> Option<bool> {
        let text = self.text(&format!("sys/module/{module}/parameters/{parameter}"))?;
        Some(matches!(text.as_str(), "Y" | "1"))
    }

    fn command_line(&self) -> String {
        self.text("proc/cmdline").unwrap_or_default()
    }

    /// Release of the running kernel.
    fn release(&self) -> String {
        self.text("proc/sys/kernel/osrelease").unwrap_or_default()
    }

    /// The lines of the files that tell modprobe what to do.
    fn modprobe_lines(&self) -> Vec<String> {
        [
            "etc/modprobe.d",
            "run/modprobe.d",
            "usr/local/lib/modprobe.d",
            "usr/lib/modprobe.d",
            "lib/modprobe.d",
        ]
        .iter()
        .filter_map(|dir| fs::read_dir(self.path(dir)).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "conf"))
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|text| {
            let words = |line: &str| line.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
            text.lines().map(words).collect::<Vec<_>>()
        })
        .filter(|line| !line.starts_with('#'))
        .collect()
    }
}

/// Looks at everything.
pub fn findings(scene: &Scene) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(kernel::findings(scene));
    findings.extend(memory::findings(scene));
    findings.extend(devices::findings(scene));
    findings.extend(poison::findings(scene));
    findings.extend(kvm::findings(scene));
    findings.extend(libvirt::findings(scene));
    if !scene.is_root {
        let all = "physical addresses, the reservation, guests and libvirt's settings are seen by root only";
        findings
            .push(Finding::info("root", all).advises("Run `sudo daxdmem check` to see those, too"));
    }
    findings
}

/// First line of what a program prints, by which it tells its version; `None` where there is no such program.
fn version(program: &str, arguments: &[&str]) -> Option<String> {
    let run = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&run.stdout);
    Some(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// The first number with a dot in a text: major and minor.
fn major_minor(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| !c.is_ascii_digit() && c != '.')
        .find_map(|word| {
            let mut numbers = word.split('.');
            Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
        })
}

/// `a`, `a, b`, `a, b and 3 more`.
fn list<T: ToString>(items: &[T]) -> String {
    const SHOWN: usize = 6;
    let texts: Vec<String> = items.iter().take(SHOWN).map(ToString::to_string).collect();
    match items.len().saturating_sub(SHOWN) {
        0 => texts.join(", "),
        more => format!("{} and {more} more", texts.join(", ")),
    }
}

#[cfg(test)]
mod tests;
