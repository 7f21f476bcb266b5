// SPDX-License-Identifier: GPL-2.0

//! A terminal that is drawn on again and again, and given back as it was: whatever ends the program, but SIGKILL.

use std::io::{self, stdin, stdout, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use signal_hook::{flag, low_level};

/// Another page of the terminal, without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// The page of before, with its cursor.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the upper left corner.
const HOME: &str = "\x1b[H";
/// Nothing more in this line.
const LINE_ENDS: &str = "\x1b[K\r\n";
/// Nothing more on the page.
const PAGE_ENDS: &str = "\x1b[J";

/// What somebody who looks at the screen may want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// To see it anew: the time is over, a key was hit, or the terminal has another size.
    Look,
    /// To see no more: `q`, or Ctrl-C.
    End,
    /// That the program ends by this signal.
    EndBy(i32),
}

/// The terminal.
pub struct Screen {
    before: Termios,
    /// The signal that has arrived, 0 for none.
    signal: Arc<AtomicUsize>,
    /// Has a byte whenever one arrives.
    woken: UnixStream,
}

impl Screen {
    /// Whether there is one: somebody looks, and somebody has a keyboard.
    pub fn is_there() -> bool {
        stdin().is_terminal() && stdout().is_terminal()
    }

    /// Takes it.
    pub fn enter() -> io::Result<Screen> {
        let signal = Arc::new(AtomicUsize::new(0));
        let (woken, wake) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        for number in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH] {
            let value = usize::try_from(number).unwrap_or_default();
            // A change of size must not hide a signal that ends the program.
            if number != SIGWINCH {
                flag::register_usize(number, Arc::clone(&signal), value)?;
            }
            low_level::pipe::register(number, wake.try_clone()?)?;
        }
        let before = termios::tcgetattr(stdin())?;
        let screen = Screen {
            before,
            signal,
            woken,
        };
        screen.take()?;
        Ok(screen)
    }

    /// Keys come at once and are not shown; Ctrl-C and its like stay signals.
    fn take(&self) -> io::Result<()> {
        let mut raw = self.before.clone();
        raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        termios::tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        print(ENTER)
    }

    /// Gives it back.
    fn give_back(&self) {
        // Of a terminal that is gone nothing can be given back.
        let _ = print(LEAVE);
        let _ = termios::tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }

    /// Columns and rows.
    fn size() -> (usize, usize) {
        match termios::tcgetwinsize(stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (size.ws_col.into(), size.ws_row.into())
            }
            _ => (80, 24),
        }
    }

    /// Shows as much of a text as there is room for.
    pub fn show(&self, text: &str) -> io::Result<()> {
        let (columns, rows) = Self::size();
        print(&page(text, columns, rows))
    }

    /// Waits for so long, or until somebody wants something.
    pub fn wait(&mut self, time: Duration) -> io::Result<Wish> {
        let input = stdin();
        let time = Timespec::try_from(time).map_err(|_| Errno::INVAL)?;
        let mut ready = [
            PollFd::new(&input, PollFlags::IN),
            PollFd::new(&self.woken, PollFlags::IN),
        ];
        match poll(&mut ready, Some(&time)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let typed = !ready[0].revents().is_empty();
        while matches!(self.woken.read(&mut [0; 16]), Ok(1..)) {}
        match i32::try_from(self.signal.swap(0, Ordering::Relaxed)) {
            Ok(0) | Err(_) => {}
            Ok(SIGINT) => return Ok(Wish::End),
            Ok(SIGTSTP) => self.stop()?,
            Ok(number) => return Ok(Wish::EndBy(number)),
        }
        match typed {
            true => Ok(Self::key()),
            false => Ok(Wish::Look),
        }
    }

    /// What is typed. A terminal that is gone has nothing more to say.
    fn key() -> Wish {
        let mut keys = [0; 64];
        // Not by the buffer of the standard input, of which poll knows nothing.
        match rustix::io::read(stdin(), &mut keys) {
            Ok(0) | Err(_) => Wish::End,
            Ok(count) => {
                let mut typed = keys.iter().take(count);
                match typed.any(|key| matches!(key, b'q' | b'Q')) {
                    true => Wish::End,
                    false => Wish::Look,
                }
            }
        }
    }

    /// Ctrl-Z: the shell gets its terminal, and this goes on when it is told to.
    fn stop(&self) -> io::Result<()> {
        self.give_back();
        low_level::emulate_default_handler(SIGTSTP)?;
        self.take()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A text with what draws it, cut where the page ends.
fn page(text: &str, columns: usize, rows: usize) -> String {
    let mut page = String::from(HOME);
    let mut lines = text.lines().take(rows).peekable();
    while let Some(line) = lines.next() {
        // What programs are called may hold anything.
        let shown = line.chars().map(|c| if c.is_control() { '?' } else { c });
        page.extend(shown.take(columns));
        page.push_str(match lines.peek() {
            Some(_) => LINE_ENDS,
            // One more line would move the page up.
            None => "\x1b[K",
        });
    }
    page.push_str(PAGE_ENDS);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_cut() {
        let drawn = page("one\ntwo\nthree", 2, 2);
        assert_eq!(drawn, "\x1b[Hon\x1b[K\r\ntw\x1b[K\x1b[J");
        assert_eq!(page("a\x1b[2Jb", 80, 24), "\x1b[Ha?[2Jb\x1b[K\x1b[J");
        assert_eq!(page("", 80, 24), "\x1b[H\x1b[J");
    }
}
