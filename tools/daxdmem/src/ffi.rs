// SPDX-License-Identifier: GPL-2.0

//! Raw declarations of libdaxctl, made by build.rs from the installed header. Only `daxctl` uses them.

#![allow(non_camel_case_types, non_upper_case_globals, dead_code, missing_docs)]

include!(concat!(env!("OUT_DIR"), "/libdaxctl.rs"));
