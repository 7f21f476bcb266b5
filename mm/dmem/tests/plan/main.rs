// SPDX-License-Identifier: GPL-2.0

//! Property tests of the pure logic: each function against an oracle that looks at one page after
//! the other.
//!
//! A failure prints the shrunk input. It belongs into `vectors.rs` once it is understood.

mod congruence;
mod leaf;
mod oracle;
mod ranges;
mod recipe;
mod strategies;
mod units;
mod vectors;
