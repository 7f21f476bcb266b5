// SPDX-License-Identifier: GPL-2.0

//! `daxdmem top` on a terminal: what it draws, and that it gives the terminal back as it was, whatever ends it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{channel, Receiver};
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::sys::signal::{kill, Signal};
use nix::sys::termios::{tcgetattr, LocalFlags, Termios};
use nix::unistd::Pid;

const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const LIMIT: Duration = Duration::from_secs(60);

/// The program, on a terminal of its own that signals its keys.
struct Top {
    child: Child,
    keyboard: File,
    /// The program's end, by which the settings can be seen.
    terminal: OwnedFd,
    before: Termios,
    printed: Receiver<Vec<u8>>,
    text: String,
}

impl Top {
    fn start(arguments: &[&str]) -> Top {
        let pair = openpty(None, None).unwrap();
        let before = tcgetattr(&pair.slave).unwrap();
        let end = || Stdio::from(pair.slave.try_clone().unwrap());
        // setsid makes it the terminal by whose keys the program is signalled.
        let child = Command::new("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_daxdmem"), "top"])
            .args(arguments)
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let keyboard = File::from(pair.master);
        let mut screen = keyboard.try_clone().unwrap();
        let (print, printed) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                if print.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Top {
            child,
            keyboard,
            terminal: pair.slave,
            before,
            printed,
            text: String::new(),
        }
    }

    fn read(&mut self) {
        while let Ok(bytes) = self.printed.try_recv() {
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// Waits until it has drawn so many pages, and forgets them.
    fn pages(&mut self, count: usize) -> String {
        let end = Instant::now() + LIMIT;
        while self.text.matches("\x1b[J").count() < count {
            assert!(Instant::now() < end, "no page: {:?}", self.text);
            std::thread::sleep(Duration::from_millis(10));
            self.read();
        }
        std::mem::take(&mut self.text)
    }

    fn key(&mut self, key: &str) {
        self.keyboard.write_all(key.as_bytes()).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn shows_keys(&self) -> bool {
        let now = tcgetattr(&self.terminal).unwrap();
        now.local_flags.contains(LocalFlags::ECHO)
    }

    /// Waits for its end, and sees that the terminal is as it was.
    fn end(mut self) -> ExitStatus {
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "it does not end: {:?}", self.text);
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(tcgetattr(&self.terminal).unwrap(), self.before);
        while !self.text.contains(LEAVE) {
            assert!(Instant::now() < end, "the page stays: {:?}", self.text);
            std::thread::sleep(Duration::from_millis(10));
            self.read();
        }
        status
    }
}

#[test]
fn keys_end_it() {
    for key in ["q", "\x03"] {
        let mut top = Top::start(&[]);
        let page = top.pages(1);
        assert!(
            page.contains(ENTER) && page.contains("RESERVED"),
            "{page:?}"
        );
        assert!(!top.shows_keys());
        // Any other key has it look again.
        top.key("x");
        top.pages(1);
        top.key(key);
        assert_eq!(top.end().code(), Some(0), "{key:?}");
    }
}

#[test]
fn time_passes() {
    let mut top = Top::start(&["--interval", "1"]);
    top.pages(2);
    top.key("q");
    assert_eq!(top.end().code(), Some(0));
}

#[test]
fn signals_end_it() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        let mut top = Top::start(&[]);
        top.pages(1);
        top.signal(signal);
        assert_eq!(top.end().signal(), Some(signal as i32));
    }
}

#[test]
fn it_stops_and_goes_on() {
    let mut top = Top::start(&[]);
    top.pages(1);
    top.key("\x1a");
    let end = Instant::now() + LIMIT;
    while !top.shows_keys() {
        assert!(Instant::now() < end, "the terminal is not given back");
        std::thread::sleep(Duration::from_millis(10));
    }
    // A moment for the stop itself, which comes after that.
    std::thread::sleep(Duration::from_millis(200));
    top.read();
    assert!(top.text.contains(LEAVE), "{:?}", top.text);
    top.text.clear();
    top.signal(Signal::SIGCONT);
    let page = top.pages(1);
    assert!(page.contains(ENTER), "{page:?}");
    assert!(!top.shows_keys());
    top.key("q");
    assert_eq!(top.end().code(), Some(0));
}
