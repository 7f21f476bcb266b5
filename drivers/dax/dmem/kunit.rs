// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the arithmetic: the vectors that the host's `cargo test` runs, too
//! (`mm/dmem/tests/plan/vectors.rs`). The suite `dmem_vectors` runs when the module is loaded.

use super::plan;

// The host checks the tables against oracles, which nothing here does.
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../../../mm/dmem/vectors.rs"]
mod table;

/// What the tests in the tables' file call with the case that came out differently.
fn complain(what: core::fmt::Arguments<'_>) {
    kernel::pr_err!("{}\n", what);
}
