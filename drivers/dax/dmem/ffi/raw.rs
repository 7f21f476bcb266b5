// SPDX-License-Identifier: GPL-2.0

//! Raw bindings: the kernel crate's, and those made from `bindings.h`.
//!
//! An item of the second kind hides one of the same name of the first; types that `bindings.h` does
//! not define itself are the kernel crate's.

#![allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused_imports
)]

pub(crate) use kernel::bindings::*;
use kernel::ffi;

include!(env!("DAX_DMEM_BINDINGS"));
