// SPDX-License-Identifier: GPL-2.0

//! daxdmem, the operator's tool: cuts reserved memory into page-less devices for guests.
//!
//! The way of a command: [`cli`] understands it, a file in [`verb`] carries it out on what [`bus`] and [`store`] show,
//! by single steps of [`change`], put together in [`making`] where a device is new. What is begun is written to [`journal`] first, and [`repair`] ends what was
//! interrupted. [`layout`] is for many guests at once. [`space`] chooses where a device goes; [`report`] is what `list` prints.

#![deny(unsafe_code)]

mod access;
mod align;
mod bus;
mod change;
mod check;
mod cli;
mod counters;
#[allow(unsafe_code)]
mod daxctl;
mod driver;
mod edit;
mod error;
#[allow(unsafe_code)]
mod ffi;
mod file;
mod holders;
mod host;
mod journal;
mod kexec;
mod land;
mod layout;
mod lend;
mod libvirt;
mod link;
mod making;
mod mappers;
mod mode;
mod name;
mod nodes;
mod poison;
mod repair;
mod report;
mod reserve;
mod screen;
mod scrub;
mod settings;
mod size;
mod space;
mod store;
mod struct_page;
mod sysfs;
mod terminal;
mod users;
mod verb;
mod wait;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use link::Links;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let links = Links::default();
    let done = match &cli.command {
        Command::Reserve(args) => verb::reserve::run(args, &links),
        // Tells its findings by the exit code, too.
        Command::Check(args) => match verb::check::run(args) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::List(args) => verb::list::run(args, &links),
        Command::Create(args) => verb::create::run(args, &links),
        Command::Destroy(args) => verb::destroy::run(args, &links),
        Command::Bind(args) => verb::bind::run(args, &links),
        Command::Unbind(args) => verb::unbind::run(args, &links),
        Command::Set(args) => verb::set::run(args, &links),
        Command::Apply(args) => verb::apply::run(args, &links),
        Command::Save(args) => verb::save::run(args, &links),
        Command::KexecPrepare(args) => verb::kexec_prepare::run(args, &links),
        Command::Show(args) => verb::show::run(args, &links),
        Command::Stats(args) => verb::stats::run(args, &links),
        Command::Top(args) => verb::top::run(args, &links),
        Command::Rename(args) => verb::rename::run(args, &links),
        Command::Resize(args) => verb::resize::run(args, &links),
        Command::Mode(args) => verb::mode::run(args, &links),
        Command::Poison(args) => verb::poison::run(args, &links),
        Command::QemuArgs(args) => verb::qemu_args::run(args, &links),
        Command::LibvirtXml(args) => verb::libvirt_xml::run(args, &links),
        Command::LibvirtSetup(args) => verb::libvirt_setup::run(args, &links),
        Command::Completion(args) => verb::completion::run(args),
        Command::Man(args) => verb::completion::man(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::error(&error);
            error.exit_code()
        }
    }
}
