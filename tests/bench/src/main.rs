// SPDX-License-Identifier: GPL-2.0
//! Makes the report of what daxdmem's benchmarks have counted: Markdown and plots from the figures that `dmem-runner bench` keeps.
//!
//! Reading order: `figures` is what was counted, `rows` says what each row means, `bounds` what was promised, `report` puts
//! them on paper, and `plot` draws.

mod bounds;
mod figures;
mod plot;
mod report;
mod rows;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use figures::Figures;

/// What keeps the report from being made; the text names the object.
type Result<T> = std::result::Result<T, String>;

/// Makes a report of what daxdmem's benchmarks have counted.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// What was counted, as `dmem-runner bench` keeps it.
    figures: PathBuf,
    /// The directory for report.md and the plots.
    directory: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments.figures, &arguments.directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dmem-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(figures: &Path, directory: &Path) -> Result<()> {
    let named = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let text = fs::read_to_string(figures).map_err(|error| named(figures, error))?;
    let figures =
        Figures::parse(&text).map_err(|error| format!("{}: {error}", figures.display()))?;
    let mut plots = Vec::new();
    for row in rows::ROWS.iter().filter(|row| row.plot) {
        if figures.sizes(row.name).len() > 1 {
            let name = format!("{}.svg", row.name);
            plot::draw(&figures, row, &directory.join(&name))?;
            plots.push(row.name);
        }
    }
    let path = directory.join("report.md");
    let text = report::text(&figures, &plots);
    fs::write(&path, text).map_err(|error| named(&path, error))
}
