// SPDX-License-Identifier: GPL-2.0
//! Helper processes: a closure in a forked child, with a line to talk over.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::case::{Failure, Named, Outcome};
use crate::cmdline::patient;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// One end of the line between parent and child.
pub struct Link {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Link {
    fn new(stream: UnixStream) -> Outcome<Self> {
        // A peer that hangs must fail the case with a name, not run it into its time limit.
        stream.set_read_timeout(Some(patient(Duration::from_secs(60))))?;
        Ok(Link {
            reader: BufReader::new(stream.try_clone()?),
            writer: stream,
        })
    }

    /// Sends a line.
    pub fn send(&mut self, text: &str) -> Outcome {
        self.writer
            .write_all(format!("{text}\n").as_bytes())
            .named("sending to the peer process")
    }

    /// Waits for a line; fails when the peer is gone or reported a failure.
    pub fn receive(&mut self) -> Outcome<String> {
        let mut line = String::new();
        let count = self
            .reader
            .read_line(&mut line)
            .named("waiting for the peer process")?;
        if count == 0 {
            return Err(Failure::Fail("the peer process is gone".into()));
        }
        let line = line.trim_end();
        match line.strip_prefix(FAILED) {
            Some(reason) => Err(Failure::Fail(format!("child: {reason}"))),
            None => Ok(line.to_owned()),
        }
    }
}

const FAILED: &str = "\u{1}failed ";

/// A forked child, killed on drop.
pub struct Child {
    pid: libc::pid_t,
    link: Link,
    reaped: bool,
}

impl Child {
    /// Forks and runs the closure in the child. Its failure reaches the parent's next [`Link::receive`] or
    /// [`Child::finish`]. Only for use while the case has a single thread, as any fork without exec.
    pub fn start(body: impl FnOnce(&mut Link) -> Outcome) -> Outcome<Child> {
        let (mine, theirs) = UnixStream::pair()?;
        std::io::stdout().flush()?;
        // SAFETY: the case has one thread, so every lock of the runtime is free in the child.
        match unsafe { libc::fork() } {
            -1 => Err(std::io::Error::last_os_error().into()),
            0 => {
                drop(mine);
                let code = run(theirs, body);
                // SAFETY: leaves without running the destructors of the parent's values.
                unsafe { libc::_exit(code) }
            }
            pid => Ok(Child {
                pid,
                link: Link::new(mine)?,
                reaped: false,
            }),
        }
    }

    /// Process id.
    pub fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// The line to the child.
    pub fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    /// Waits for the end, whatever it is.
    pub fn wait(&mut self) -> Outcome<End> {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        if unsafe { libc::waitpid(self.pid, &mut status, 0) } < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        self.reaped = true;
        Ok(if libc::WIFSIGNALED(status) {
            End::Signal(libc::WTERMSIG(status))
        } else {
            End::Exit(libc::WEXITSTATUS(status))
        })
    }

    /// Waits for a clean end; the child's own failure otherwise.
    pub fn finish(mut self) -> Outcome {
        let said = self.link.receive();
        match self.wait()? {
            End::Exit(0) => Ok(()),
            end => match said {
                Err(failure) => Err(failure).named(format_args!("{end:?}")),
                Ok(_) => Err(Failure::Fail(format!("the child ended with {end:?}"))),
            },
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) -> Outcome {
        // SAFETY: the child is not reaped, so the id is still its own.
        match unsafe { libc::kill(self.pid, signal) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().into()),
        }
    }

    /// Kills it.
    pub fn kill(&mut self) -> Outcome<End> {
        self.signal(libc::SIGKILL)?;
        self.wait()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.kill();
        }
    }
}

fn run(stream: UnixStream, body: impl FnOnce(&mut Link) -> Outcome) -> i32 {
    let Ok(mut link) = Link::new(stream) else {
        return 1;
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&mut link)));
    let _ = std::io::stdout().flush();
    let reason = match result {
        Ok(Ok(())) => return 0,
        Ok(Err(Failure::Fail(reason) | Failure::Skip(reason))) => reason,
        Err(_) => "panicked".to_owned(),
    };
    // The exit code says that it failed even when the parent is not listening.
    let _ = link.send(&format!("{FAILED}{}", reason.replace('\n', "; ")));
    1
}
