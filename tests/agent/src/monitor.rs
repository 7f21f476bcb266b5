// SPDX-License-Identifier: GPL-2.0
//! The monitor of a second-level guest's QEMU, and migration by it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::case::{Failure, Named, Outcome};
use crate::cmdline::patient;
use crate::{check, fail};

/// What QEMU writes when it waits for a command.
const PROMPT: &str = "(qemu) ";

/// A connection to a monitor.
pub struct Monitor {
    stream: UnixStream,
}

/// QEMU's arguments for a monitor at that path.
pub fn arguments(path: &str) -> Vec<String> {
    let socket = format!("unix:{path},server=on,wait=off");
    vec!["-monitor".to_owned(), socket]
}

impl Monitor {
    /// Connects to the monitor at that path, as soon as QEMU has it.
    pub fn open(path: &str) -> Outcome<Monitor> {
        let deadline = Instant::now() + patient(Duration::from_secs(30));
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error).named(path),
            }
        };
        stream.set_read_timeout(Some(patient(Duration::from_secs(120))))?;
        let mut monitor = Monitor { stream };
        monitor.until_prompt()?;
        Ok(monitor)
    }

    /// Gives a command; what QEMU says to it.
    pub fn ask(&mut self, command: &str) -> Outcome<String> {
        self.stream.write_all(format!("{command}\n").as_bytes())?;
        let said = self.until_prompt().named(command)?;
        // What was typed comes back first, with the terminal's sequences of an editor of lines.
        let answer = said.split_once('\n').map_or("", |(_, answer)| answer);
        Ok(answer.replace('\r', "").trim().to_owned())
    }

    /// Gives a command to which QEMU has nothing to say.
    pub fn tell(&mut self, command: &str) -> Outcome {
        let said = self.ask(command)?;
        check!(said.is_empty(), "'{command}': {said}");
        Ok(())
    }

    /// Ends QEMU.
    pub fn quit(mut self) -> Outcome {
        self.stream.write_all(b"quit\n").named("quit")
    }

    /// Waits for the end of a migration from or to this QEMU; the answer to `info migrate`.
    pub fn migrated(&mut self, limit: Duration) -> Outcome<String> {
        let limit = patient(limit);
        let deadline = Instant::now() + limit;
        loop {
            let info = self.ask("info migrate")?;
            let status = info.lines().find_map(|line| {
                let line = line.trim();
                line.strip_prefix("Migration status: ")
                    .or(line.strip_prefix("Status: "))
            });
            match status.and_then(|status| status.split_whitespace().next()) {
                Some("completed") => return Ok(info),
                Some("failed" | "cancelled") => fail!("the migration failed: {info}"),
                _ if Instant::now() > deadline => {
                    fail!("not migrated after {} s: {info}", limit.as_secs())
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn until_prompt(&mut self) -> Outcome<String> {
        let mut said = Vec::new();
        let mut bytes = [0; 4096];
        loop {
            let count = self.stream.read(&mut bytes)?;
            if count == 0 {
                let said = String::from_utf8_lossy(&said);
                return Err(Failure::Fail(format!("QEMU ended; it said: {said}")));
            }
            said.extend_from_slice(&bytes[..count]);
            if said.ends_with(PROMPT.as_bytes()) {
                said.truncate(said.len() - PROMPT.len());
                return Ok(String::from_utf8_lossy(&said).into_owned());
            }
        }
    }
}
