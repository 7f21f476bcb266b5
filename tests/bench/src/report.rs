// SPDX-License-Identifier: GPL-2.0
//! The report, in Markdown.

use std::fmt::Write;

use crate::bounds::{self, best, gib, grouped, leaf_of, net, Bound, PUBLISHED};
use crate::figures::Figures;
use crate::rows::{Row, Unit, ROWS};

/// The whole text; rows named in `plots` have been drawn.
pub fn text(figures: &Figures, plots: &[&str]) -> String {
    let fact = |name: &str| figures.facts.get(name).map_or("unknown", String::as_str);
    let mut text = format!(
        "# Benchmarks\n\nKernel {}, {}. Played by {} on {}. Made by `make bench`; [README.md](README.md) says how to read it,\n\
         [figures.json](figures.json) has every number.\n\n## What was promised\n\n\
         | what | numbers | measured | bound | holds |\n|---|---|---|---|---|\n",
        fact("kernel"),
        fact("date"),
        fact("emulator"),
        fact("host"),
    );
    let bounds = bounds::all(figures);
    for bound in &bounds {
        line(&mut text, bound);
    }
    let lost = bounds.iter().filter(|bound| bound.holds() == Some(false));
    let mut reasons: Vec<&str> = lost.map(|bound| bound.why).collect();
    reasons.dedup();
    for why in reasons.iter().filter(|why| !why.is_empty()) {
        text.push_str(&format!("\nNot held: {why}.\n"));
    }
    text.push_str(&behind(figures));
    text.push_str(&published(figures));
    for row in ROWS {
        table(&mut text, figures, row);
        if plots.contains(&row.name) {
            text.push_str(&format!("\n![{}]({}.svg)\n", row.title, row.name));
        }
    }
    text
}

fn line(text: &mut String, bound: &Bound) {
    let (measured, holds) = match (bound.measured, bound.holds()) {
        (Some(measured), Some(true)) => (number(measured), "yes"),
        (Some(measured), _) => (number(measured), "**no**"),
        (None, _) => ("not counted".to_owned(), ""),
    };
    let sign = if bound.at_least { "≥" } else { "≤" };
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "| {} | {} | {measured} | {sign} {} | {holds} |",
        bound.what,
        bound.detail,
        number(bound.limit)
    );
}

/// Ratios far below 1 as `1/N`.
fn number(value: f64) -> String {
    if value > 0.0 && value < 0.2 {
        return format!("1/{}", grouped((1.0 / value).round() as u64));
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What counts as a difference.
const MARGIN: f64 = 1.02;

/// Rows in which the best peer with leaves of the same size is ahead, at the largest size that both have.
fn behind(figures: &Figures) -> String {
    let mut text = String::from(
        "\n## Where a peer is ahead\n\nOf all rows below, with leaves of the same size, at the largest guest that both have, by more than 2 %. Of forks it is what the mapping adds.\n\n\
         | row | leaf | guest | dax_dmem | best peer | ratio | why |\n|---|---|---|---:|---|---:|---|\n",
    );
    for row in ROWS {
        for peer in figures.peers(row.name) {
            let Some(leaf) = leaf_of(peer).filter(|_| peer.starts_with("dax_dmem")) else {
                continue;
            };
            let both = figures.sizes(row.name).into_iter().rev().find_map(|size| {
                let ours = net(figures, row.name, peer, size)?;
                Some((size, ours, best(figures, row.name, leaf, size)?))
            });
            let Some((size, ours, (other, theirs))) = both else {
                continue;
            };
            let ratio = ours as f64 / theirs.max(1) as f64;
            if ratio <= MARGIN {
                continue;
            }
            let _ = writeln!(
                text,
                "| {} | {leaf} | {} GiB | {} | {}, {other} | {ratio:.2} | {} |",
                row.title,
                size >> 30,
                grouped(ours),
                grouped(theirs),
                row.why
            );
        }
    }
    text
}

/// Beside what DMEMFS's authors have published for hosts without it.
fn published(figures: &Figures) -> String {
    let mut text = String::from(
        "\n## Usable memory of hosts\n\nGiB. What the kernel has left and what guests can have, together. The table published with DMEMFS names what is usable without it.\n\n\
         | installed | published, without DMEMFS | no reservation, here | page-less: MemTotal + guests |\n|---|---|---|---|\n",
    );
    for (installed, usable) in PUBLISHED {
        let of = |row, peer| figures.get(row, peer, installed << 30);
        let bare = of("memtotal", "no reservation")
            .map_or("-".into(), |total| format!("{:.2}", gib(total)));
        let ours = of("memtotal", "dax_dmem").zip(of("reserved", "dax_dmem"));
        let ours = ours.map_or("-".into(), |(total, reserved)| {
            format!(
                "{:.2} + {} = {:.2}",
                gib(total),
                reserved >> 30,
                gib(total + reserved)
            )
        });
        let _ = writeln!(text, "| {installed} | {usable} | {bare} | {ours} |");
    }
    text
}

fn table(text: &mut String, figures: &Figures, row: &Row) {
    let (peers, sizes) = (figures.peers(row.name), figures.sizes(row.name));
    if sizes.is_empty() {
        return;
    }
    let _ = write!(text, "\n## {}\n\n{}", row.title, row.text);
    // What stands apart from all sizes.
    if let Some(value) = figures.get(row.name, "without", 0) {
        let _ = write!(text, " Without such a mapping: {}.", grouped(value));
    }
    text.push_str("\n\n| |");
    for size in &sizes {
        let _ = match row.guests {
            true => write!(text, " {} |", grouped(*size)),
            false => write!(text, " {} GiB |", size >> 30),
        };
    }
    text.push_str("\n|---|");
    text.push_str(&"---:|".repeat(sizes.len()));
    text.push('\n');
    for peer in peers.into_iter().filter(|peer| *peer != "without") {
        let _ = write!(text, "| {peer} |");
        for size in &sizes {
            let value = figures.get(row.name, peer, *size);
            let cell = value.map_or("-".to_owned(), |value| match row.unit {
                Unit::Count => grouped(value),
                Unit::Bytes => format!("{} KiB", grouped(value / 1024)),
            });
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::figures;

    #[test]
    fn tables_have_all_sizes_and_say_what_was_not_counted() {
        let list = [
            ("touch", "dax_dmem 1G", 1 << 30, 1500),
            ("touch", "device_dax 1G", 4 << 30, 9000),
            ("fork", "without", 0, 77),
        ];
        let text = text(&figures(&list), &[]);
        assert!(text.contains("| | 1 GiB | 4 GiB |\n"), "{text}");
        assert!(text.contains("| dax_dmem 1G | 1,500 | - |\n"), "{text}");
        assert!(text.contains("not counted"), "{text}");
    }

    #[test]
    fn small_ratios_are_fractions() {
        assert_eq!(number(0.0002), "1/5,000");
        assert_eq!(number(0.97), "0.97");
        assert_eq!(number(64.0), "64");
    }
}
