// SPDX-License-Identifier: GPL-2.0
//! Boots daxdmem's test VMs under emulation, runs cases in them, and reports.
//!
//! Runs inside the lab's root (`tests/lab/sandbox`). Reading order: `session` is the life of one VM, `vm` the
//! process behind it, `schedule` says which VM runs when, `machine` what VMs look like.

mod bench;
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
mod vm;
mod walk;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use lab::{Kernel, Lab, Result};
use report::{Report, Style, Took, Verdict};
use session::Context;
use skips::{ExpectedSkips, NotTried};

/// The case that runs last in every VM with the debug kernel.
const CLOSING: &str = "debug-clean";
/// The other case that only the debug kernel can run.
const KUNIT: &str = "debug-kunit";

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
    /// The list of cases that are not tried with the debug kernel, unless they are named.
    #[arg(long, default_value = "/src/tests/expected-skips-debug")]
    not_tried: PathBuf,
    /// Which kernel the VMs boot.
    #[arg(long, global = true, env = "DAXDMEM_KERNEL", default_value = "stock")]
    kernel: Kernel,
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
        /// Of the points that a sampling case could try it tries one of so many, from a random one on.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        every: u32,
        /// Only the cases that --every makes sample.
        #[arg(long, conflicts_with = "cases")]
        sampling: bool,
        /// Lists the cases instead.
        #[arg(long)]
        list: bool,
    },
    /// Runs benchmarks, one after the other, and keeps what they count.
    Bench {
        /// Only this one; may be given several times.
        #[arg(long = "case")]
        cases: Vec<String>,
        /// The file for what they count.
        #[arg(long)]
        figures: PathBuf,
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
    let kernel = arguments.kernel;
    let lab = Lab::find(&arguments.lab, &arguments.target, kernel, &arguments.add)?;
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
        patience: arguments.patience * kernel.slowness(),
        every: 1,
        vms: schedule::VMS,
        closing: None,
    };
    match &arguments.command {
        Command::Run {
            cases,
            every,
            sampling,
            ..
        } => {
            let mut chosen = catalog::select(all.clone(), cases)?;
            chosen.retain(|case| case.sampled || !sampling);
            let mut closing = None;
            let mut not_tried = NotTried::default();
            if kernel == Kernel::Debug {
                closing = catalog::select(all.clone(), &[CLOSING.to_owned()])?.pop();
                if cases.is_empty() {
                    chosen.extend(catalog::select(all.clone(), &[KUNIT.to_owned()])?);
                    not_tried = NotTried::read(&arguments.not_tried)?;
                    // A name that is no case's any more would hide nothing, and nobody would notice.
                    let names: Vec<String> = not_tried.names().map(str::to_owned).collect();
                    catalog::select(all, &names)?;
                }
            }
            let name = closing.as_ref().map(|case| case.name.clone());
            let report = Report::gathering(Style::Ktap, skips, chosen.len(), name);
            chosen.retain(|case| match not_tried.reason(&case.name) {
                None => true,
                Some(reason) => {
                    report.count(
                        &case.name,
                        Verdict::Skip(reason.to_owned()),
                        Took::default(),
                    );
                    false
                }
            });
            let context = Context {
                every: *every,
                closing: closing.as_ref(),
                ..context(&report)
            };
            schedule::run(&context, chosen);
            Ok(report.finish())
        }
        Command::Bench { cases, figures } => {
            let chosen = bench::select(all, cases)?;
            let report = Report::new(Style::Ktap, skips, chosen.len());
            let context = Context {
                vms: 1,
                ..context(&report)
            };
            schedule::run(&context, chosen);
            bench::keep(figures, &report)?;
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
