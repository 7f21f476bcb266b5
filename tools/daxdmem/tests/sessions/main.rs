// SPDX-License-Identifier: GPL-2.0

//! Plays the sessions that need no device, and sees that every error there is has one that shows it.
//!
//! README.md tells about the files, and how to write them anew.

mod complete;
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dmem_sessions::{play, read, Ended, Look, Shell, Stage};

/// Set to `overwrite`, it has the files written as the sessions go now.
const OVERWRITE: &str = "DAXDMEM_SESSIONS";

/// A directory of its own for each session.
struct Host(Shell);

impl Stage for Host {
    type Error = io::Error;

    fn run(&mut self, command: &str) -> io::Result<Ended> {
        self.0.run(command)
    }

    fn look(&mut self) -> io::Result<Look> {
        let mut found = Look::new();
        let mut directories = vec![self.0.directory.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                let name = path.display().to_string();
                if path.is_dir() {
                    found.insert(name, "a directory".to_owned());
                    directories.push(path);
                } else {
                    found.insert(name, String::from_utf8_lossy(&fs::read(path)?).into_owned());
                }
            }
        }
        Ok(found)
    }
}

#[test]
fn sessions_without_devices() {
    let tool = Path::new(env!("CARGO_BIN_EXE_daxdmem"));
    let programs = tool.parent().map(Path::display);
    let mut faults = Vec::new();
    for session in read(&files(), Some("host")).unwrap() {
        let directory = tempfile::tempdir().unwrap();
        let output = tempfile::NamedTempFile::new().unwrap();
        let mut stage = Host(Shell {
            directory: directory.path().to_owned(),
            path: format!("{}:/usr/bin:/bin", programs.as_ref().unwrap()),
            output: output.path().to_owned(),
            limit: Duration::from_secs(60),
            helpers: String::new(),
        });
        let played = play(&session, &mut stage).unwrap();
        if std::env::var(OVERWRITE).is_ok_and(|what| what == "overwrite") {
            let file = files().join(format!("{}.console", session.name));
            fs::write(file, played.now.text()).unwrap();
        }
        let fault = |fault| format!("{}: {fault}", session.name);
        faults.extend(played.faults.into_iter().map(fault));
    }
    assert!(
        faults.is_empty(),
        "{}\n{OVERWRITE}=overwrite writes the files as it goes now",
        faults.join("\n")
    );
}

/// The directory of the sessions.
fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sessions")
}

/// The directory of the tool's source.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every place has a case that plays it.
#[test]
fn every_session_is_played() {
    let sessions = read(&files(), None).unwrap();
    let places: BTreeSet<&str> = sessions.iter().map(|session| session.place()).collect();
    let cases =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/agent/src/cases/tool_sessions.rs");
    let cases = fs::read_to_string(cases).unwrap();
    for place in places.iter().filter(|place| **place != "host") {
        assert!(
            cases.contains(&format!("play_all(\"{place}\")")),
            "nobody plays *.{place}.console"
        );
    }
}
