// SPDX-License-Identifier: GPL-2.0
//! Has a session's commands run, and compares what they print with what the file says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use regex::Regex;
use snapbox::filter::NormalizeToExpected;
use snapbox::report::{write_diff, Palette};
use snapbox::{Data, Redactions};

use crate::file::ends;
use crate::{Session, Step};

/// Everything that a command must not change when it fails, by name.
pub type Look = BTreeMap<String, String>;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit status; 128 and the signal's number when one ended it, as a shell has it.
    pub status: i32,
    /// What it printed on both streams.
    pub output: String,
}

/// Where a session is played.
pub trait Stage {
    /// What can go wrong with the stage itself.
    type Error;
    /// Runs a command.
    fn run(&mut self, command: &str) -> Result<Ended, Self::Error>;
    /// Looks at everything that a command which fails must leave as it is.
    fn look(&mut self) -> Result<Look, Self::Error>;
}

/// How a session went.
#[derive(Debug)]
pub struct Played {
    /// The session as its file would be.
    pub now: Session,
    /// What is wrong; nothing where all is as the file says.
    pub faults: Vec<String>,
}

/// These exit codes of the tool say that nothing has changed.
const UNCHANGED: [i32; 2] = [1, 2];

/// Plays a session, to its end whatever happens on the way.
pub fn play<S: Stage>(session: &Session, stage: &mut S) -> Result<Played, S::Error> {
    let redactions = redactions();
    let mut faults = Vec::new();
    let mut steps = Vec::new();
    let mut before = stage.look()?;
    for step in &session.steps {
        let ended = stage.run(&step.command)?;
        if ended.output.lines().any(ends) {
            let command = &step.command;
            faults.push(format!(
                "'{command}' prints what looks like a command or comment"
            ));
        }
        let after = stage.look()?;
        if UNCHANGED.contains(&ended.status) {
            let changed = differences(&before, &after);
            let command = &step.command;
            match step.changes {
                true if changed.is_empty() => {
                    faults.push(format!("'{command}' changes nothing"));
                }
                true => {}
                false => {
                    let fault = |change| format!("'{command}' failed, yet {change}");
                    faults.extend(changed.into_iter().map(fault));
                }
            }
        }
        before = after;
        let expected = Data::text(step.output.as_str());
        let said = NormalizeToExpected::new()
            .redact_with(&redactions)
            .normalize(Data::text(ended.output), &expected);
        steps.push(Step {
            status: ended.status,
            output: said.render().unwrap_or_default(),
            ..step.clone()
        });
    }
    let now = session.with(steps);
    if now != *session {
        faults.push(diff(session, &now));
    }
    Ok(Played { now, faults })
}

fn diff(expected: &Session, now: &Session) -> String {
    let name: &dyn std::fmt::Display = &expected.name;
    let data = |session: &Session| Data::text(session.text());
    let mut text = String::from("it goes otherwise than its file says:\n");
    // Writing to a string does not fail.
    let _ = write_diff(
        &mut text,
        &data(expected),
        &data(now),
        Some(name),
        Some(&"now"),
        Palette::plain(),
    );
    text
}

/// What differs from one run to the next, and is of no interest.
fn redactions() -> Redactions {
    let mut redactions = Redactions::new();
    for (name, pattern) in [
        ("[PID]", r"pid (?<redacted>[0-9]+)"),
        ("[MAJOR]", r"of number (?<redacted>[0-9]+):"),
        (
            "[RELEASE]",
            r"(?<redacted>[0-9]+\.[0-9]+\.[0-9]+[-+.a-z0-9]*-amd64)",
        ),
    ] {
        // They are right, see the tests.
        if let Ok(pattern) = Regex::new(pattern) {
            let _ = redactions.insert(name, pattern);
        }
    }
    redactions
}

/// What is not the same, a line for each name.
pub fn differences(before: &Look, after: &Look) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, text) in after {
        match before.get(name) {
            None => differences.push(format!("{name} is new: '{text}'")),
            Some(old) if old != text => {
                differences.push(format!("{name} was '{old}', is '{text}'"));
            }
            Some(_) => {}
        }
    }
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    differences.extend(gone.map(|name| format!("{name} is gone")));
    differences
}

/// A shell that runs commands, each in a process of its own.
#[derive(Debug)]
pub struct Shell {
    /// The working directory.
    pub directory: PathBuf,
    /// Where programs are.
    pub path: String,
    /// A file for what is printed: processes that a command leaves running may keep it open.
    pub output: PathBuf,
    /// How long a command may take; it is killed then.
    pub limit: Duration,
    /// Functions that commands may use.
    pub helpers: String,
}

impl Shell {
    /// Runs a command.
    pub fn run(&self, command: &str) -> io::Result<Ended> {
        let out = File::create(&self.output)?;
        drop(out);
        let out = File::options().append(true).open(&self.output)?;
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("{}\n{command}", self.helpers)])
            .current_dir(&self.directory)
            .env_clear()
            .envs([
                ("PATH", self.path.as_str()),
                ("HOME", "/root"),
                ("LC_ALL", "C.UTF-8"),
            ])
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        let deadline = Instant::now() + self.limit;
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    child.kill()?;
                    break child.wait()?;
                }
                None => sleep(Duration::from_millis(2)),
            }
        };
        let code = status.code().or(status.signal().map(|signal| 128 + signal));
        Ok(Ended {
            status: code.unwrap_or(-1),
            output: text(&self.output)?,
        })
    }
}

/// The file's lines, without blanks at their ends and without empty lines at its end.
fn text(path: &Path) -> io::Result<String> {
    let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
    let lines = text.trim_end().lines().map(str::trim_end);
    Ok(lines.flat_map(|line| [line, "\n"]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts its commands; `touch` changes it.
    struct Counter(u32);

    impl Stage for Counter {
        type Error = String;

        fn run(&mut self, command: &str) -> Result<Ended, String> {
            self.0 += u32::from(command.starts_with("touch"));
            Ok(Ended {
                status: i32::from(command.ends_with("fails")),
                output: format!("by pid {} ({command})\n", 100 + self.0),
            })
        }

        fn look(&mut self) -> Result<Look, String> {
            Ok(Look::from([("count".to_owned(), self.0.to_string())]))
        }
    }

    fn faults(text: &str) -> Vec<String> {
        let session = Session::parse("x.std", text).unwrap();
        play(&session, &mut Counter(0)).unwrap().faults
    }

    #[test]
    fn what_is_the_same_passes() {
        let text = "$ touch\nby pid [PID] (touch)\n\n$ fails\n? 1\nby pid [PID] ([..])\n";
        assert_eq!(faults(text), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_the_same_is_shown() {
        let found = faults("$ look\nby pid [PID] (lock)\n\n$ fails\nby pid [PID] (fails)\n");
        let [fault] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert!(
            fault.contains("(lock)") && fault.contains("(look)"),
            "{fault}"
        );
        assert!(fault.contains("? 1"), "{fault}");
    }

    #[test]
    fn who_fails_must_not_change_anything() {
        let found = faults("$ touch and fails\n? 1\nby pid [PID] ([..])\n");
        assert_eq!(
            found,
            ["'touch and fails' failed, yet count was '0', is '1'"]
        );
        let text = "$ touch and fails\n? 1, changes\nby pid [PID] ([..])\n";
        assert_eq!(faults(text), Vec::<String>::new());
        let found = faults(&text.replace("touch and ", ""));
        assert_eq!(found, ["'fails' changes nothing"]);
    }
}
