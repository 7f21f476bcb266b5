// SPDX-License-Identifier: GPL-2.0
//! Random operations against a model: see Documentation/fuzzing.md.

use crate::case::{Case, Outcome};
use crate::fuzz::{self, Settings};
use crate::payload::need_module;

pub const CASES: &[Case] = &[
    Case {
        name: "fuzz-20k",
        shows: "20,000 random operations on fresh seeds do what the model of them says",
        machine: "fuzz",
        limit: 120,
        run: short,
        ..Case::DEFAULT
    },
    Case {
        name: "fuzz",
        shows: "random operations as many as make fuzz asks for do what the model of them says",
        machine: "fuzz",
        limit: 3600,
        fresh: true,
        hidden: true,
        run: long,
        ..Case::DEFAULT
    },
];

fn short() -> Outcome {
    need_module()?;
    fuzz::run(&Settings::new(2, 10_000))
}

fn long() -> Outcome {
    need_module()?;
    fuzz::run(&fuzz::with_file(Settings::new(10, 20_000))?)
}
