// SPDX-License-Identifier: GPL-2.0

//! Raw declarations of libdaxctl, made by build.rs from the installed header. Only `daxctl` uses them. And what little is
//! asked of the kernel without a safe call for it.

#![allow(non_camel_case_types, non_upper_case_globals, dead_code, missing_docs)]

pub mod kexec_file;
pub mod window;

include!(concat!(env!("OUT_DIR"), "/libdaxctl.rs"));
