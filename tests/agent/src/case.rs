// SPDX-License-Identifier: GPL-2.0
//! A case: one named statement about the system, proven inside a first-level VM.
//!
//! The runner on the host reads the table with `dmem-agent cases`, groups the cases by machine and hands
//! their names to the VM one by one. Each case runs in a process of its own ([`crate::supervisor`]).

use std::fmt::Display;

/// Why a case did not pass.
#[derive(Debug)]
pub enum Failure {
    /// The statement does not hold, or something needed to find out did not work.
    Fail(String),
    /// The case cannot run here; the reason has to be listed in `tests/expected-skips`.
    Skip(String),
}

/// What a case, and every helper a case calls, returns.
pub type Outcome<T = ()> = Result<T, Failure>;

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Fail(error.to_string())
    }
}

/// Puts a name in front of an error: `fs::read(p).named(p.display())?`.
pub trait Named<T> {
    /// Turns the error into `NAME: ERROR`.
    fn named(self, name: impl Display) -> Outcome<T>;
}

impl<T, E: Into<Failure>> Named<T> for Result<T, E> {
    fn named(self, name: impl Display) -> Outcome<T> {
        self.map_err(|error| match error.into() {
            Failure::Fail(text) => Failure::Fail(format!("{name}: {text}")),
            Failure::Skip(text) => Failure::Skip(text),
        })
    }
}

/// The error number of a system call that failed; `None` when it did not fail.
pub fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// One row of the case table.
pub struct Case {
    /// Name on the command line and in the report; words joined by `-`.
    pub name: &'static str,
    /// One sentence: what holds when the case passes.
    pub shows: &'static str,
    /// Name of the machine it runs on: `tests/runner/src/machine.rs`.
    pub machine: &'static str,
    /// Seconds after which a silent case is hung, on the slowest machine that should pass.
    pub limit: u32,
    /// Wants a VM that ran nothing before it; nothing runs in that VM after it either.
    pub fresh: bool,
    /// Not part of a plain run: the lab's own checks and the demo, which are run by name.
    pub hidden: bool,
    /// May leave a process that died inside the kernel with locks held and cannot be killed: `fresh` as well.
    pub dies: bool,
    /// Tries every point of something; `make test` has it try a part of them: [`crate::sample`].
    pub sampled: bool,
    /// Texts in the kernel log that are no failure here although the gate looks for them.
    pub expects_log: &'static [&'static str],
    /// The case.
    pub run: fn() -> Outcome,
}

impl Case {
    /// For `..Case::DEFAULT`: a listed case on `std` with 20 s and a clean kernel log.
    pub const DEFAULT: Case = Case {
        name: "",
        shows: "",
        machine: "std",
        limit: 20,
        fresh: false,
        hidden: false,
        dies: false,
        sampled: false,
        expects_log: &[],
        run: || Ok(()),
    };

    /// The row as the runner reads it: tab-separated name, machine, limit, fresh, hidden, sampled, shows.
    pub fn row(&self) -> String {
        format!(
            "{}\t{}\t{}\t{}\t{}\t{}\t{}",
            self.name, self.machine, self.limit, self.fresh, self.hidden, self.sampled, self.shows
        )
    }
}

/// Prints a diagnostic line of the running case.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { println!($($arg)*) };
}

/// Leaves the case as failed with this message.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => { return Err($crate::case::Failure::Fail(format!($($arg)*))) };
}

/// Leaves the case as skipped with this reason.
#[macro_export]
macro_rules! skip {
    ($($arg:tt)*) => { return Err($crate::case::Failure::Skip(format!($($arg)*))) };
}

/// Fails the case with the message unless the condition holds.
#[macro_export]
macro_rules! check {
    ($cond:expr, $($arg:tt)*) => {
        if !$cond { $crate::fail!($($arg)*) }
    };
}

/// Fails the case unless both values are equal; the message says what was compared.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr, $($arg:tt)*) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            $crate::fail!("{}: got {:?}, expected {:?}", format_args!($($arg)*), left, right)
        }
    }};
}
