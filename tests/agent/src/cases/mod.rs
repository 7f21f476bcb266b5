// SPDX-License-Identifier: GPL-2.0
//! All cases. A new file of cases gets a `mod` line and a line in [`all`]; see tests/agent/README.md.

mod access;
mod attach;
mod attach_vhost_user;
mod attach_window;
mod bench_dma;
mod bench_guest;
mod bench_kvm;
mod bench_memory;
mod bench_tool;
mod boot;
mod contents;
mod cost;
mod cost_budget;
mod cost_fault;
mod counters;
mod daxctl;
mod daxctl_verbs;
mod debug_kernel;
mod demo;
mod dma;
mod fuzz;
mod guest;
mod guest_dump;
mod guest_errors;
mod holes;
mod holes_dax;
mod hostile;
mod isolation;
mod kdump;
mod kexec;
mod kexec_refusals;
mod lab;
mod leaves;
mod lifecycle;
mod machine_check;
mod migration;
mod nested;
mod paravirtual;
mod peer;
mod pmem;
mod poison;
mod poison_lists;
mod scrub;
mod scrub_course;
mod scrub_cut;
mod tool_check;
mod tool_host;
mod tool_kills;
mod tool_layout;
mod tool_layout_reset;
mod tool_mode;
mod tool_nodes;
mod tool_owner;
mod tool_poison;
mod tool_quarantine;
mod tool_refusals;
mod tool_reserve;
mod tool_resize;
mod tool_scale;
mod tool_scrub;
mod tool_sessions;
mod tool_stats;
mod tool_tracer;
mod tool_verbs;
mod tracing;

use crate::case::{Case, Outcome};
use crate::device::{Device, DAX_DMEM};
use crate::payload::need_module;
use crate::region::Region;

/// Every case, in the order of the report.
pub fn all() -> impl Iterator<Item = &'static Case> {
    [
        boot::CASES,
        peer::CASES,
        leaves::CASES,
        contents::CASES,
        hostile::CASES,
        holes::CASES,
        holes_dax::CASES,
        lifecycle::CASES,
        scrub::CASES,
        scrub_course::CASES,
        scrub_cut::CASES,
        isolation::CASES,
        poison::CASES,
        poison_lists::CASES,
        machine_check::CASES,
        access::CASES,
        attach::CASES,
        attach_vhost_user::CASES,
        attach_window::CASES,
        dma::CASES,
        daxctl::CASES,
        daxctl_verbs::CASES,
        cost::CASES,
        cost_fault::CASES,
        cost_budget::CASES,
        counters::CASES,
        tracing::CASES,
        nested::CASES,
        guest::CASES,
        guest_errors::CASES,
        guest_dump::CASES,
        paravirtual::CASES,
        migration::CASES,
        kexec::CASES,
        kexec_refusals::CASES,
        kdump::CASES,
        pmem::CASES,
        fuzz::CASES,
        tool_verbs::CASES,
        tool_quarantine::CASES,
        tool_refusals::CASES,
        tool_kills::CASES,
        tool_nodes::CASES,
        tool_layout::CASES,
        tool_layout_reset::CASES,
        tool_scrub::CASES,
        tool_owner::CASES,
        tool_sessions::CASES,
        tool_check::CASES,
        tool_reserve::CASES,
        tool_resize::CASES,
        tool_stats::CASES,
        tool_mode::CASES,
        tool_scale::CASES,
        tool_poison::CASES,
        debug_kernel::CASES,
        bench_guest::CASES,
        bench_kvm::CASES,
        bench_dma::CASES,
        bench_memory::CASES,
        bench_tool::CASES,
        demo::CASES,
        lab::CASES,
    ]
    .into_iter()
    .flatten()
}

/// A device of these parts (offset into the first region, length; bytes), bound to the driver under test.
fn page_less(align: u64, parts: &[(u64, u64)]) -> Outcome<Device> {
    need_module()?;
    let device = Region::first()?.create(align, parts)?;
    device.bind(DAX_DMEM)?;
    Ok(device)
}
