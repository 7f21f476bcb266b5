// SPDX-License-Identifier: GPL-2.0
//! Boots daxdmem's test VMs under emulation, runs cases in them, and reports.
//!
//! Runs inside the lab's root (`tests/lab/sandbox`). Reading order: `session` is the life of one VM, `vm` the
//! process behind it, `schedule` says which VM runs when, `machine` what VMs look like.

mod catalog;
mod console;
mod initramfs;
mod lab;
mod machine;
mod memory_file;
mod qmp;
mod report;
mod schedule;
mod selftest;
mod session;
mod skips;
mod tlb;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use lab::{Lab, Result};
use report::{Report, Style};
use session::Context;
use skips::ExpectedSkips;

/// Boots daxdmem's test VMs, runs cases in them and reports in KTAP.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// The lab's directory.
    #[arg(long, env = "LAB", default_value = "/var/lib/daxdmem-lab")]
    lab: PathBuf,
    /// Cargo's output directory.
    #[arg(
        long,
        env = "CARGO_TARGET_DIR",
        default_value = "/var/lib/daxdmem-lab/target"
    )]
    target: PathBuf,
    /// The list of cases that may skip.
    #[arg(long, default_value = "/src/tests/expected-skips")]
    expected_skips: PathBuf,
    /// Multiplies all time limits, for slow machines.
    #[arg(long, env = "DAXDMEM_PATIENCE", default_value_t = 1)]
    patience: u32,
    /// Puts this file into the VMs, in /run/dmem; may be given several times.
    #[arg(long)]
    add: Vec<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs cases.
    Run {
        /// Only this case; may be given several times.
        #[arg(long = "case")]
        cases: Vec<String>,
        /// Lists the cases instead.
        #[arg(long)]
        list: bool,
    },
    /// Runs broken cases and demands that the lab notices.
    Selftest,
    /// Shows two guests booting on memory without struct page.
    Demo,
    /// Gives a prompt inside a first-level VM.
    Shell {
        /// The machine.
        #[arg(long, default_value = "nested")]
        machine: String,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dmem-runner: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let lab = Lab::find(&arguments.lab, &arguments.target, &arguments.add)?;
    let all = catalog::read(&lab.agent)?;
    if let Command::Run { list: true, .. } = arguments.command {
        for case in all.iter().filter(|case| !case.hidden) {
            println!("{:24} {:12} {}", case.name, case.machine.name, case.shows);
        }
        return Ok(true);
    }
    let initramfs = lab.initramfs()?;
    let skips = ExpectedSkips::read(&arguments.expected_skips)?;
    let context = |report| Context {
        lab: &lab,
        initramfs: &initramfs,
        report,
        patience: arguments.patience,
    };
    match &arguments.command {
        Command::Run { cases, .. } => {
            let chosen = catalog::select(all, cases)?;
            let report = Report::new(Style::Ktap, skips, chosen.len());
            schedule::run(&context(&report), chosen);
            Ok(report.finish())
        }
        Command::Selftest => {
            let report = Report::new(Style::Plain, ExpectedSkips::default(), 0);
            selftest::run(&context(&report), all)
        }
        Command::Demo => {
            let chosen = catalog::select(all, &["demo".to_owned()])?;
            let report = Report::new(Style::Plain, ExpectedSkips::default(), chosen.len());
            for case in &chosen {
                println!(
                    "A host boots, under emulation: {}",
                    case.machine.description()
                );
            }
            schedule::run(&context(&report), chosen);
            Ok(report.finish())
        }
        Command::Shell { machine } => {
            let machine =
                machine::find(machine).ok_or_else(|| format!("there is no machine '{machine}'"))?;
            vm::run_interactive(&lab, machine, &initramfs)?;
            Ok(true)
        }
    }
}
