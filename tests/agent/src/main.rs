// SPDX-License-Identifier: GPL-2.0
//! The program inside daxdmem's test VMs.
//!
//! One static binary in four parts: `/init` of the first-level VM (mounts, then runs cases as PID 1), a
//! single case in a process of its own, `/init` of a second-level guest, and, on the host, the table of
//! cases for the runner.

mod budget;
mod case;
mod cases;
mod child;
mod cmdline;
mod command;
mod control;
mod core_file;
mod counters;
mod daemon;
mod device;
mod disk;
mod early;
mod figure;
mod fuzz;
mod guest;
mod guest_io;
mod guest_kvm;
mod ioctl;
mod kernel_log;
mod kvm;
mod machine_check;
mod mapping;
mod memory;
mod module;
mod monitor;
mod mount;
mod page_struct;
mod pages;
mod pattern;
mod payload;
mod pci;
mod peer;
mod poison;
mod probe;
mod region;
mod reset;
mod sample;
mod scrub;
mod spinner;
mod storage;
mod supervisor;
mod sysfs;
mod tracee;
mod tracing;
mod vcpu;
mod vfio;
mod vmm;
mod walker;
mod witness;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // PID 1 of an initramfs gets whatever words the kernel did not know; its part is named by dmem.role.
    if std::process::id() == 1 && words.first() != Some(&supervisor::ARGUMENT) {
        return match cmdline::value("dmem.role").as_deref() {
            Some("guest") => guest::main(),
            _ => early::main(),
        };
    }
    match words.as_slice() {
        [supervisor::ARGUMENT] => supervisor::main(),
        ["case", name] => supervisor::run_case(name),
        ["cases"] => {
            cases::all().for_each(|case| println!("{}", case.row()));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: dmem-agent cases   (everything else is for the VMs: see tests/agent/README.md)");
            ExitCode::FAILURE
        }
    }
}
