// SPDX-License-Identifier: GPL-2.0

//! Host build of daxdmem's pure logic: the kernel module's own source, for the operator's tool and
//! the tests.
//!
//! See the items below; their common description is at the head of `plan.rs`.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod place;
#[path = "plan.rs"]
mod plan;

pub use place::{place, PlaceError};
pub use plan::*;
