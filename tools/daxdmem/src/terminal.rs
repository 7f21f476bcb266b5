// SPDX-License-Identifier: GPL-2.0

//! What is printed. The standard error has errors and remarks: coloured on a terminal only, and not where NO_COLOR is
//! set. The standard output has what was asked for.

use std::io::{stderr, stdout, ErrorKind, IsTerminal, Write};

use crate::error::{Error, Result};

/// Prints what was asked for. A reader that has seen enough and closed its end is no error.
pub fn answer(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::kernel("cannot write to the standard output")(error))
        }
        _ => Ok(()),
    }
}

/// Says that something was done. It was, even if nobody can be told.
pub fn done(text: &str) {
    if let Err(error) = answer(&format!("{text}\n")) {
        note(&error.to_string());
    }
}

/// A remark: something was repaired, something is worth knowing.
pub fn note(text: &str) {
    print("note", "36", text);
}

/// The error that ends the command.
pub fn error(error: &Error) {
    print("error", "1;31", &error.to_string());
}

fn print(kind: &str, colour: &str, text: &str) {
    let coloured =
        stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let line = match coloured {
        true => format!("daxdmem: \x1b[{colour}m{kind}:\x1b[0m {text}\n"),
        false => format!("daxdmem: {kind}: {text}\n"),
    };
    // There is nobody left to tell of a failure.
    let _ = stderr().write_all(line.as_bytes());
}
