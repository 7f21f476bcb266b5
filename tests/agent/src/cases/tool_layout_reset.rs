// SPDX-License-Identifier: GPL-2.0
//! The layout over a reset of the host: every guest comes back to where it was.

use std::fs;
use std::path::Path;

use crate::case::{Case, Failure, Outcome};
use crate::device::{Device, DAX_DMEM};
use crate::mapping::{Map, Mapping};
use crate::region::{Region, MIB};
use crate::{check, check_eq, reset};

use super::tool_host::{done, need};
use super::tool_layout::{
    absent, check_nothing_to_do, clean, declare, ranges, write, LAYOUT, PLACEMENT,
};

pub const CASES: &[Case] = &[
    Case {
        name: "layout-reset",
        shows: "after a reset, guests of a saved layout are where they were, whatever was added or taken out",
        limit: 120,
        fresh: true,
        run: resets,
        ..Case::DEFAULT
    },
];

/// Where texts are kept over a reset: in the last 2 MiB of the region.
fn vault(region: &Region) -> Outcome<(Device, Mapping)> {
    let device = region.create(2 * MIB, &[(region.size - 2 * MIB, 2 * MIB)])?;
    device.bind(DAX_DMEM)?;
    let mapping = Map::new(2 * MIB).file(&device.open()?)?;
    Ok((device, mapping))
}

/// Keeps the layout, the places and a note over a reset.
fn keep(region: &Region, note: &str) -> Outcome {
    let texts = [
        fs::read_to_string(LAYOUT)?,
        fs::read_to_string(PLACEMENT)?,
        note.to_owned(),
    ];
    keep_texts(region, &texts)
}

/// Keeps these over a reset.
pub fn keep_texts(region: &Region, texts: &[String]) -> Outcome {
    let all = texts.join("\0");
    let (device, mapping) = vault(region)?;
    mapping.write(0, u64::try_from(all.len())?);
    for (index, part) in (1u64..).zip(all.as_bytes().chunks(8)) {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        mapping.write(8 * index, u64::from_le_bytes(word));
    }
    drop(mapping);
    device.destroy()
}

/// What was kept.
pub fn kept_texts(region: &Region) -> Outcome<Vec<String>> {
    let (device, mapping) = vault(region)?;
    let len = usize::try_from(mapping.read(0))?;
    check!((1..1 << 20).contains(&len), "{len} bytes were kept");
    let words = (1..=len.div_ceil(8)).map(|index| mapping.read(8 * index as u64).to_le_bytes());
    let mut bytes: Vec<u8> = words.flatten().collect();
    bytes.truncate(len);
    drop(mapping);
    device.destroy()?;
    let all = String::from_utf8(bytes)?;
    Ok(all.split('\0').map(str::to_owned).collect())
}

/// Puts the files back; the note.
fn restore(region: &Region) -> Outcome<String> {
    match kept_texts(region)?.as_slice() {
        [layout, places, note] => {
            write(LAYOUT, layout)?;
            write(PLACEMENT, places)?;
            Ok(note.clone())
        }
        all => Err(Failure::Fail(format!("this was kept: {all:?}"))),
    }
}

/// The guests' places, as a text.
fn places(names: &[&str]) -> Outcome<String> {
    let place = |name: &&str| Ok(format!("{name} {:x?}", ranges(name)?));
    Ok(names
        .iter()
        .map(place)
        .collect::<Outcome<Vec<_>>>()?
        .join("\n"))
}

/// The places that the guests of the layout get where none is there, and nothing is known of earlier places.
fn placed_anew(names: &[&str]) -> Outcome<String> {
    let text = fs::read_to_string(LAYOUT)?;
    declare(&[])?;
    done("apply --prune")?;
    fs::remove_file(PLACEMENT)?;
    write(LAYOUT, &text)?;
    done("apply")?;
    places(names)
}

fn resets() -> Outcome {
    need()?;
    let region = Region::first()?;
    match reset::count() {
        0 => {
            // Made by hand, with gaps, so that none is where a placement from nothing would put it.
            for (name, size) in [
                ("gap", "1G"),
                ("vm1", "1G"),
                ("hole", "512M"),
                ("vm2", "1.5G"),
                ("vm3", "512M"),
            ] {
                done(&format!(
                    "create {name} --size {size} --align 2M --scrub never"
                ))?;
            }
            done("destroy gap")?;
            done("destroy hole")?;
            let saved = done("save -")?;
            check!(!Path::new(LAYOUT).exists(), "save - wrote a file");
            done("save")?;
            check_eq!(fs::read_to_string(LAYOUT)?, saved, "the saved layout");
            let again = done("save")?;
            check!(
                again.contains("declares the 3 guests as they are"),
                "save says: {again}"
            );
            check_nothing_to_do()?;
            let names = ["vm1", "vm2", "vm3"];
            let note = places(&names)?;
            keep(&region, &note)?;
            check!(
                placed_anew(&names)? != note,
                "they are where they would be anyway: {note}"
            );
            reset::vm()
        }
        1 => {
            let note = restore(&region)?;
            done("apply --boot")?;
            check_eq!(
                places(&["vm1", "vm2", "vm3"])?,
                note,
                "places after a reset"
            );
            check_nothing_to_do()?;
            // Another one first, and one of them out: the others stay where they are, then and after a reset.
            let text = fs::read_to_string(LAYOUT)?;
            let tables: Vec<&str> = text
                .split("[[guest]]")
                .skip(1)
                .filter(|table| !table.contains("\"vm2\""))
                .collect();
            check_eq!(tables.len(), 2, "guests left in {text}");
            let tables = tables.join("[[guest]]");
            write(LAYOUT, &format!("[[guest]]\nname = \"vm0\"\nsize = \"1G\"\nscrub = \"never\"\n[[guest]]{tables}"))?;
            done("apply --prune")?;
            absent("vm2")?;
            let kept: Vec<&str> = note
                .lines()
                .filter(|line| !line.starts_with("vm2"))
                .collect();
            check_eq!(
                places(&["vm1", "vm3"])?,
                kept.join("\n"),
                "places of those that stay"
            );
            keep(&region, &places(&["vm0", "vm1", "vm3"])?)?;
            reset::vm()
        }
        2 => {
            let note = restore(&region)?;
            done("apply --boot")?;
            check_eq!(
                places(&["vm0", "vm1", "vm3"])?,
                note,
                "places after another reset"
            );
            // From nothing, the order of the file alone decides, whatever was there before.
            let names = ["vm0", "vm1", "vm3"];
            let first = placed_anew(&names)?;
            done("create vm4 --size 1.5G --scrub never")?;
            let again = placed_anew(&names)?;
            check_eq!(again, first, "places from nothing");
            clean()
        }
        count => Err(Failure::Fail(format!("{count} resets"))),
    }
}
