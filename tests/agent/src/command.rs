// SPDX-License-Identifier: GPL-2.0
//! Programs run by cases: output captured, with a time limit.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::case::{Failure, Named, Outcome};
use crate::cmdline::patient;

/// A program to run.
pub struct Command {
    words: Vec<String>,
    limit: Duration,
    terminal: bool,
}

/// What a program did.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Command {
    /// A program found on PATH, with 10 s to finish.
    pub fn new(program: &str) -> Self {
        Command {
            words: vec![program.to_owned()],
            limit: Duration::from_secs(10),
            terminal: false,
        }
    }

    /// Words split at blanks: `Command::line("daxctl list -D")`.
    pub fn line(line: &str) -> Self {
        let words = line.split_ascii_whitespace().map(str::to_owned).collect();
        Command {
            words,
            limit: Duration::from_secs(10),
            terminal: false,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, word: impl Into<String>) -> Self {
        self.words.push(word.into());
        self
    }

    /// Sets the time limit in seconds.
    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Makes a terminal its standard error.
    pub fn on_terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    /// Runs it and hands back whatever it did; fails only when it cannot start or does not end.
    pub fn try_run(&self) -> Outcome<Ran> {
        let mut command = std::process::Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut terminal = None;
        if self.terminal {
            let (ours, theirs) = pseudo_terminal()?;
            command.stderr(theirs);
            terminal = Some(ours);
        }
        let mut child = command.spawn().named(&self.words[0])?;
        // It holds the other end of the terminal, which ends with the last holder.
        drop(command);
        let stdout = collect(child.stdout.take());
        let stderr = match terminal {
            Some(terminal) => collect(Some(terminal)),
            None => collect(child.stderr.take()),
        };
        let code = self.wait(&mut child)?;
        let text = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
        Ok(Ran {
            code,
            stdout: text(stdout),
            stderr: text(stderr),
        })
    }

    /// Runs it and fails unless it exits with 0; its standard output.
    pub fn run(&self) -> Outcome<String> {
        let ran = self.try_run()?;
        if ran.code == Some(0) {
            return Ok(ran.stdout);
        }
        let how = ran
            .code
            .map_or("was killed by a signal".to_owned(), |code| {
                format!("exited with {code}")
            });
        let said = if ran.stderr.trim().is_empty() {
            ran.stdout
        } else {
            ran.stderr
        };
        Err(Failure::Fail(format!(
            "'{}' {how}: {}",
            self.words.join(" "),
            said.trim()
        )))
    }

    fn wait(&self, child: &mut Child) -> Outcome<Option<i32>> {
        let limit = patient(self.limit);
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.code());
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                let words = self.words.join(" ");
                return Err(Failure::Fail(format!(
                    "'{words}' did not end in {} s",
                    limit.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A terminal of 80 columns: the end where its text comes out, and that of the program.
fn pseudo_terminal() -> std::io::Result<(File, OwnedFd)> {
    let (mut ours, mut theirs) = (-1, -1);
    let size = libc::winsize {
        ws_row: 24,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptors and the size are valid places; no name and no other settings are asked for.
    let opened = unsafe {
        libc::openpty(
            &mut ours,
            &mut theirs,
            std::ptr::null_mut(),
            std::ptr::null(),
            &size,
        )
    };
    if opened != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: both are open, and nobody else's.
    unsafe { Ok((File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))) }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
