// SPDX-License-Identifier: GPL-2.0
//! QEMU's machine protocol, as far as the runner needs it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{json, Value};

use crate::lab::Result;

/// A connection to one QEMU.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    /// Takes the connection over; QEMU greets when it is up.
    pub fn new(stream: UnixStream) -> Result<Qmp> {
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .map_err(text)?;
        let mut qmp = Qmp {
            reader: BufReader::new(stream.try_clone().map_err(text)?),
            writer: stream,
        };
        qmp.read()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and waits for its result.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.writer
            .write_all(format!("{request}\n").as_bytes())
            .map_err(text)?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                return Err(format!("QEMU refused {command}: {error}"));
            }
            // Events come in between.
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    /// Runs a command of the human monitor, on a CPU where that matters.
    pub fn monitor(&mut self, line: &str, cpu: u32) -> Result<String> {
        let arguments = json!({ "command-line": line, "cpu-index": cpu });
        match self.execute("human-monitor-command", arguments)? {
            Value::String(output) => Ok(output),
            other => Err(format!("QEMU's monitor answered '{line}' with {other}")),
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err("QEMU closed its monitor".to_owned()),
            Ok(_) => serde_json::from_str(&line).map_err(text),
            Err(error) => Err(format!("QEMU's monitor: {error}")),
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    format!("QEMU's monitor: {error}")
}
