// SPDX-License-Identifier: GPL-2.0
//! The kernel's own driver under the measuring methods: the answers are known, so the methods are right.

use crate::case::{Case, Outcome};
use crate::device::{Device, DEVICE_DAX};
use crate::mapping::Map;
use crate::pages::Census;
use crate::region::{Region, GIB, KIB, MIB};
use crate::spinner::Spinner;
use crate::{check, check_eq, say};

pub const CASES: &[Case] = &[Case {
    name: "peer-device-dax-leaves",
    shows: "device_dax maps with leaves of exactly its align, as the monitor sees them",
    run: leaves,
    ..Case::DEFAULT
}];

fn leaves() -> Outcome {
    let region = Region::first()?;
    // Each device is a 2 GiB mapping, touched once in every align bytes of its first part.
    let expectations = [
        (4 * KIB, 4 * MIB, Census::new(0, 0, 1024)),
        (2 * MIB, GIB, Census::new(0, 512, 0)),
        (GIB, 2 * GIB, Census::new(2, 0, 0)),
        // A lone 2 MiB leaf where a 1 GiB leaf could be: both addresses are 1 GiB aligned.
        (2 * MIB, 2 * MIB, Census::new(0, 1, 0)),
    ];
    for (align, touched, expected) in expectations {
        let device = region.create(align, &[(0, 2 * GIB)])?;
        device.bind(DEVICE_DAX)?;
        let census = census(&device, align, touched)?;
        say!("align {align:#x}: {census}");
        check_eq!(
            census,
            expected,
            "leaves of {} at align {align:#x}",
            device.name
        );
    }
    Ok(())
}

fn census(device: &Device, align: u64, touched: u64) -> Outcome<Census> {
    let spinner = Spinner::start(|| {
        // device_dax asks for align-aligned addresses; reserving more than enough gives a 1 GiB aligned one.
        let space = Map::new(4 * GIB).protection(libc::PROT_NONE).anonymous()?;
        let address = (space.address() as u64).next_multiple_of(GIB);
        std::mem::forget(space);
        let mapping = Map::new(2 * GIB)
            .at(address as usize)
            .file(&device.open()?)?;
        for index in 0..touched / align {
            mapping.read(index * align);
        }
        Ok(mapping)
    })?;
    let leaves = spinner.leaves()?;
    leaves.check_write_back()?;
    leaves.check_placement(device, spinner.address(), 0)?;
    check!(
        leaves.0.iter().all(|leaf| leaf.accessed),
        "a touched leaf is not marked accessed"
    );
    Ok(leaves.census())
}
