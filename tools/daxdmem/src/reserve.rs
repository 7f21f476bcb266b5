// SPDX-License-Identifier: GPL-2.0

//! Reserving memory at boot: what the host has ([`topology`]), what to take of it ([`plan`]), how the kernel is told
//! ([`parameter`]), and where that is kept for the boot loader ([`boot`]).

pub mod boot;
pub mod error;
pub mod host;
pub mod parameter;
pub mod plan;
#[cfg(test)]
mod tests;
pub mod topology;
