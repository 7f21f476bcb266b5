// SPDX-License-Identifier: GPL-2.0
//! Benchmarks: what the tool takes for a guest where there are none, 10, 100 or 1,000.

use std::fs;

use crate::case::{Case, Named, Outcome};
use crate::figure::{self, figure};

use super::tool_host::need;
use super::tool_scale::cost;

pub const CASES: &[Case] = &[Case {
    name: "bench-tool",
    shows: "counts create, list, bind and destroy with 1 to 1,000 guests",
    machine: "icount200",
    limit: 1200,
    fresh: true,
    hidden: true,
    run: tool,
    ..Case::DEFAULT
}];

const COUNTS: [u64; 4] = [1, 10, 100, 1000];
const LAYOUT: &str = "/run/bench.toml";

fn tool() -> Outcome {
    figure::kernel()?;
    need()?;
    // What happens once only is behind us when it is counted.
    for words in [
        "create warm --size 128M --scrub never",
        "unbind warm",
        "bind warm",
        "list",
        "list --json",
        "destroy warm",
    ] {
        cost(words)?;
    }
    for guests in COUNTS {
        if guests > 1 {
            let guest = |guest| {
                format!("[[guest]]\nname = \"vm{guest}\"\nsize = \"128M\"\nscrub = \"never\"\n")
            };
            let layout: String = (1..guests).map(guest).collect();
            fs::write(LAYOUT, layout).named(LAYOUT)?;
            let all = cost(&format!("apply {LAYOUT}"))?;
            figure("tool-apply", "daxdmem", guests, "instructions", all.own);
        }
        for (row, words) in [
            (
                "tool-create",
                format!("create vm{guests} --size 128M --scrub never"),
            ),
            ("tool-list", "list".to_owned()),
            ("tool-list-json", "list --json".to_owned()),
            ("tool-unbind", format!("unbind vm{guests}")),
            ("tool-bind", format!("bind vm{guests}")),
            ("tool-destroy", format!("destroy vm{guests}")),
        ] {
            let cost = cost(&words)?;
            figure(row, "daxdmem", guests, "instructions", cost.own);
        }
    }
    Ok(())
}
