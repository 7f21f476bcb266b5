// SPDX-License-Identifier: GPL-2.0
//! Scrubbing: what one guest leaves behind, no other ever sees.
//!
//! A tenant here is a process that has all of a device; `never` as policy shows each time that there was something
//! to be seen.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use crate::case::{errno, Case, Named, Outcome};
use crate::device::{driver_attribute, Device, DAX_DMEM, DEVICE_DAX};
use crate::kvm;
use crate::mapping::{Map, Mapping};
use crate::memory::human;
use crate::pattern::{check_zeros, Pattern};
use crate::region::{Region, GIB, MIB};
use crate::scrub::{self, Policy, Progress, STEP};
use crate::vmm::{self, Guest};
use crate::{check, check_eq, module, payload, say, sysfs};

pub const CASES: &[Case] = &[
    Case {
        name: "scrub-policies",
        shows: "whatever the policies of two guests in turn, the second sees zeros, unless it asked not to be scrubbed for",
        limit: 60,
        run: policies,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-release",
        shows: "the next guest waits for a scrub under way and sees zeros; later ones get clean memory at once",
        limit: 60,
        run: release,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-after-quarantine",
        shows: "a released device is scrubbed when its last user is gone, not before",
        run: after_quarantine,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-policy-attributes",
        shows: "the policy can be chosen for the next bind and changed while bound, and nonsense is refused",
        run: policy_attributes,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-two-ranges",
        shows: "every range of a device is scrubbed, side by side, and nothing beside them",
        limit: 60,
        run: two_ranges,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-without-avx",
        shows: "the same on a CPU without vectors of 32 bytes",
        machine: "no-avx",
        limit: 60,
        run: two_ranges,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-other-driver",
        shows: "clean memory that another driver had in between is scrubbed again",
        run: other_driver,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-module-reloaded",
        shows: "a module that was unloaded knows nothing about memory any more, and scrubs it",
        run: module_reloaded,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-never-opened",
        shows: "a device that nobody opened gives its memory back as clean as it was",
        run: never_opened,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-guest",
        shows: "what a second-level guest wrote is there for one who asks for it, and gone for all others",
        machine: "nested",
        limit: 120,
        run: guest,
        ..Case::DEFAULT
    },
];

/// What is done at once takes less than this, under emulation and on a busy host, and less than a scrub of 12 GiB takes.
pub(super) const SOON: Duration = Duration::from_secs(5);

/// A bound device of these parts whose memory is treated by this policy.
pub(super) fn tenant(policy: Policy, parts: &[(u64, u64)]) -> Outcome<Device> {
    payload::need_module()?;
    let device = Region::first()?.create(STEP, parts)?;
    policy.bind(&device)?;
    Ok(device)
}

/// All of a device; waits for its scrub.
pub(super) fn mapped(device: &Device) -> Outcome<Mapping> {
    Ok(Map::new(device.size()?).file(&device.open()?)?)
}

/// Writes every byte of the device.
pub(super) fn fill(device: &Device, pattern: Pattern) -> Outcome {
    let mapping = mapped(device)?;
    pattern.fill(mapping.words(0, mapping.len() as u64), 0);
    Ok(())
}

/// Fails unless the next tenant of a device sees every byte of the pattern.
pub(super) fn check_pattern(device: &Device, pattern: Pattern) -> Outcome {
    let mapping = mapped(device)?;
    pattern
        .verify(mapping.words(0, mapping.len() as u64), 0)
        .named(&device.name)
}

/// Fails unless the next tenant of a device sees zeros only, in every byte of it.
pub(super) fn check_clean(device: &Device) -> Outcome {
    let mapping = mapped(device)?;
    check_zeros(mapping.words(0, mapping.len() as u64)).named(&device.name)?;
    check_eq!(
        scrub::state(device)?,
        "scrubbed",
        "state of {}",
        device.name
    );
    Ok(())
}

/// Memory full of a pattern that belongs to nobody and is not known to be clean.
pub(super) fn littered(parts: &[(u64, u64)], pattern: Pattern) -> Outcome {
    let device = tenant(Policy::Never, parts)?;
    fill(&device, pattern)?;
    device.destroy()?;
    scrub::settle()
}

/// Makes the driver forget that memory is clean: somebody may have written to it.
pub(super) fn forget(parts: &[(u64, u64)]) -> Outcome {
    let device = tenant(Policy::Never, parts)?;
    device.open()?;
    device.destroy()?;
    scrub::settle()
}

fn policies() -> Outcome {
    const SIZE: u64 = 64 * MIB;
    for (seed, before) in (1..).zip(Policy::ALL) {
        for after in Policy::ALL {
            let what = format!("{before}, then {after}");
            let pattern = Pattern::new(seed);
            let first = tenant(before, &[(0, SIZE)])?;
            fill(&first, pattern)?;
            first.destroy()?;
            scrub::settle()?;

            let second = tenant(after, &[(0, SIZE)])?;
            let total = Progress::finish(&second)?.total;
            let (state, scrubbed) = match (before, after) {
                (Policy::Release, _) => ("scrubbed", 0),
                (_, Policy::Never) => ("unscrubbed", 0),
                _ => ("scrubbed", SIZE),
            };
            check_eq!(scrub::state(&second)?, state, "state ({what})");
            check_eq!(total, scrubbed, "bytes to scrub at bind ({what})");
            if state == "unscrubbed" {
                check_pattern(&second, pattern).named(&what)?;
            } else {
                check_clean(&second).named(&what)?;
            }
        }
    }
    Ok(())
}

fn release() -> Outcome {
    let parts = [(0, GIB)];
    scrub::settle()?;
    let region = Region::first()?;
    let first = tenant(Policy::Release, &parts)?;
    let name = first.name.clone();
    fill(&first, Pattern::new(1))?;
    first.destroy()?;
    let under_way = scrub::released()?;
    check_eq!(under_way.len(), 1, "ranges being scrubbed after destroy");
    let (range, of) = (&under_way[0].range, &under_way[0].device);
    check_eq!(*of, name, "the device whose memory is being scrubbed");
    check_eq!(
        *range,
        region.start..region.start + GIB,
        "the range being scrubbed"
    );
    check_eq!(under_way[0].progress.total, GIB, "bytes to scrub");

    // The next one comes while that goes on, and takes over what is not done yet.
    let second = tenant(Policy::Release, &parts)?;
    check_clean(&second)?;
    let progress = Progress::of(&second)?;
    check_eq!(progress.done, progress.total, "bytes scrubbed at bind");
    check!(
        progress.total > 0,
        "the scrub was over before the next bind: nothing was shown"
    );
    check_eq!(
        scrub::released()?,
        [],
        "scrubs of released devices after the next bind"
    );
    fill(&second, Pattern::new(2))?;
    second.destroy()?;

    scrub::settle()?;
    check_eq!(
        scrub::clean_in(&region, 0, GIB)?,
        GIB,
        "clean bytes when all is done"
    );
    let third = tenant(Policy::Release, &parts)?;
    check_eq!(
        Progress::of(&third)?,
        Progress { done: 0, total: 0 },
        "progress on clean memory"
    );
    check_eq!(
        scrub::clean_in(&region, 0, GIB)?,
        0,
        "clean bytes that nobody owns"
    );
    drop(open_now(&third).named("opening a device on clean memory")?);
    check_clean(&third)
}

/// Opens without waiting for the scrub.
pub(super) fn open_now(device: &Device) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(device.path())
}

fn after_quarantine() -> Outcome {
    scrub::settle()?;
    let region = Region::first()?;
    let parts = [(0, 256 * MIB)];
    let device = tenant(Policy::Release, &parts)?;
    let mapping = mapped(&device)?;
    Pattern::new(3).fill(mapping.words(0, 256 * MIB), 0);
    device.destroy()?;
    check_eq!(scrub::released()?, [], "scrubs while there is a user");
    check_eq!(
        scrub::clean_in(&region, 0, 256 * MIB)?,
        0,
        "clean bytes while there is a user"
    );
    drop(mapping);
    // The file is closed a little after the mapping is gone.
    let deadline = Instant::now() + SOON;
    while !quarantine()?.is_empty() {
        check!(
            Instant::now() < deadline,
            "still quarantined: {}",
            quarantine()?
        );
    }
    scrub::settle()?;
    check_eq!(
        scrub::clean_in(&region, 0, 256 * MIB)?,
        256 * MIB,
        "clean bytes when the user is gone"
    );
    check_clean(&tenant(Policy::Never, &parts)?)
}

fn quarantine() -> Outcome<String> {
    sysfs::read(driver_attribute(DAX_DMEM, "quarantine"))
}

fn policy_attributes() -> Outcome {
    const SIZE: u64 = 64 * MIB;
    payload::need_module()?;
    scrub::settle()?;
    let region = Region::first()?;
    let pending = driver_attribute(DAX_DMEM, "scrub_policy");
    let device = region.create(STEP, &[(0, SIZE)])?;
    let own = device.attribute("dax_dmem/scrub_policy");
    let line = |policy: Policy| format!("{} {policy}", device.name);

    for nonsense in [
        "dax0.1",
        "never",
        "dax0.1 sometimes",
        "mem0 never",
        "dax0.1 never now",
    ] {
        let error = errno(sysfs::try_write(&pending, nonsense));
        check!(error.is_some(), "scrub_policy took '{nonsense}'");
    }
    check_eq!(sysfs::read(&pending)?, "", "policies nobody chose");
    Policy::Never.choose(&device)?;
    Policy::HandOut.choose(&device)?;
    check_eq!(
        sysfs::read(&pending)?,
        line(Policy::HandOut),
        "the policy chosen last"
    );
    device.attach(DAX_DMEM)?;
    check_eq!(sysfs::read(&pending)?, "", "the choice after bind");
    check_eq!(sysfs::read(&own)?, "hand-out", "the policy of the device");

    // Chosen for one bind; the next one has the default.
    device.unbind()?;
    device.attach(DAX_DMEM)?;
    check_eq!(sysfs::read(&own)?, "release", "the policy at the next bind");

    check_eq!(
        errno(sysfs::try_write(&own, "sometimes")),
        Some(libc::EINVAL),
        "errno of a policy that does not exist"
    );
    check_eq!(sysfs::read(&own)?, "release", "the policy after nonsense");
    // What is written there holds for the release to come.
    sysfs::write(&own, "never")?;
    fill(&device, Pattern::new(4))?;
    device.destroy()?;
    check_eq!(
        scrub::released()?,
        [],
        "scrubs of a device whose policy became never"
    );
    check_pattern(&tenant(Policy::Never, &[(0, SIZE)])?, Pattern::new(4))
}

fn two_ranges() -> Outcome {
    const SIZE: u64 = 256 * MIB + STEP;
    scrub::settle()?;
    let region = Region::first()?;
    // One range starts off the boundaries of large leaves, the other ends there; each has neighbours on both sides.
    let parts = [(STEP, 256 * MIB), (GIB - 256 * MIB, STEP)];
    let neighbours = tenant(
        Policy::Never,
        &[
            (0, STEP),
            (256 * MIB + STEP, 8 * MIB),
            (GIB - 256 * MIB - STEP, STEP),
            (GIB - 254 * MIB, STEP),
        ],
    )?;
    fill(&neighbours, Pattern::new(6))?;
    let first = tenant(Policy::HandOut, &parts)?;
    check_eq!(first.size()?, SIZE, "size of the device");
    fill(&first, Pattern::new(5))?;
    first.destroy()?;

    // The other way round.
    let second = tenant(Policy::Release, &[parts[1], parts[0]])?;
    check_clean(&second)?;
    check_eq!(Progress::of(&second)?.total, SIZE, "bytes scrubbed at bind");
    check_pattern(&neighbours, Pattern::new(6)).named("beside the device")?;
    fill(&second, Pattern::new(7))?;
    second.destroy()?;
    let large = region.start + STEP..region.start + STEP + 256 * MIB;
    let under_way = scrub::released()?;
    check!(
        under_way.iter().any(|released| released.range == large),
        "{large:x?} is not among what is being scrubbed: {under_way:x?}"
    );
    scrub::settle()?;
    for (offset, length) in parts {
        let clean = scrub::clean_in(&region, offset, length)?;
        check_eq!(clean, length, "clean bytes of the part at {offset:#x}");
    }
    check_clean(&tenant(Policy::Never, &parts)?)?;
    check_pattern(&neighbours, Pattern::new(6)).named("beside the released device")
}

fn other_driver() -> Outcome {
    const SIZE: u64 = 128 * MIB;
    let parts = [(0, SIZE)];
    scrub::settle()?;
    module::load(DEVICE_DAX)?;
    let region = Region::first()?;
    tenant(Policy::Release, &parts)?.destroy()?;
    scrub::settle()?;
    check_eq!(
        scrub::clean_in(&region, 0, SIZE)?,
        SIZE,
        "clean bytes at first"
    );

    // Part of the range is enough to spoil that part.
    let other = region.create(STEP, &[(32 * MIB, 64 * MIB)])?;
    other.bind(DEVICE_DAX)?;
    fill(&other, Pattern::new(11))?;
    check_eq!(
        scrub::clean_in(&region, 32 * MIB, 64 * MIB)?,
        0,
        "clean bytes that device_dax has"
    );
    other.destroy()?;
    check_eq!(
        scrub::clean_in(&region, 32 * MIB, 64 * MIB)?,
        0,
        "clean bytes that device_dax had"
    );
    let device = tenant(Policy::Release, &parts)?;
    check_clean(&device)?;
    check_eq!(
        Progress::of(&device)?.total,
        64 * MIB,
        "bytes scrubbed at bind"
    );
    Ok(())
}

fn module_reloaded() -> Outcome {
    const SIZE: u64 = 128 * MIB;
    let parts = [(0, SIZE)];
    scrub::settle()?;
    let region = Region::first()?;
    let device = tenant(Policy::Release, &parts)?;
    fill(&device, Pattern::new(12))?;
    device.destroy()?;
    scrub::settle()?;
    check_eq!(
        scrub::clean_in(&region, 0, SIZE)?,
        SIZE,
        "clean bytes before unloading"
    );
    module::unload(DAX_DMEM)?;
    // Nobody watches over the memory now.
    let other = region.create(STEP, &parts)?;
    other.bind(DEVICE_DAX)?;
    fill(&other, Pattern::new(13))?;
    other.destroy()?;
    payload::need_module()?;
    check_eq!(
        scrub::clean()?,
        [],
        "what a freshly loaded module knows to be clean"
    );
    let device = tenant(Policy::Release, &parts)?;
    check_clean(&device)?;
    check_eq!(Progress::of(&device)?.total, SIZE, "bytes scrubbed at bind");
    Ok(())
}

fn never_opened() -> Outcome {
    const SIZE: u64 = 128 * MIB;
    let parts = [(0, SIZE)];
    scrub::settle()?;
    let region = Region::first()?;
    forget(&parts)?;
    let device = tenant(Policy::Release, &parts)?;
    check_eq!(
        Progress::finish(&device)?.total,
        SIZE,
        "bytes scrubbed at the first bind"
    );
    device.destroy()?;
    check_eq!(
        scrub::released()?,
        [],
        "scrubs after a device that nobody opened"
    );
    check_eq!(
        scrub::clean_in(&region, 0, SIZE)?,
        SIZE,
        "clean bytes after it"
    );
    // The next one finds it so, and then the memory is in use.
    let device = tenant(Policy::HandOut, &parts)?;
    check_eq!(
        Progress::of(&device)?.total,
        0,
        "bytes scrubbed at the second bind"
    );
    drop(device.open()?);
    device.destroy()?;
    check_eq!(
        scrub::clean_in(&region, 0, SIZE)?,
        0,
        "clean bytes after one that was opened"
    );
    Ok(())
}

fn guest() -> Outcome {
    const SIZE: u64 = 512 * MIB;
    let parts = [(0, SIZE)];
    scrub::settle()?;
    kvm::load()?;
    let device = tenant(Policy::HandOut, &parts)?;
    check_clean(&device)?;
    let mut guest = Guest::start(&device.name, SIZE, &vmm::device(&device, "2M")?, false)?;
    let wrote = guest.report(Duration::from_secs(300))?.pattern;
    check_eq!(
        guest.wait_end(Duration::from_secs(20))?,
        0,
        "QEMU's exit code"
    );
    device.destroy()?;

    let curious = tenant(Policy::Never, &parts)?;
    let mapping = mapped(&curious)?;
    let words = (0..SIZE / 8).filter(|index| mapping.read(index * 8) != 0);
    let left = words.count() as u64 * 8;
    say!(
        "a guest wrote a pattern of {}, {} are not zero after it",
        human(wrote),
        human(left)
    );
    check!(wrote > 300 * MIB, "the guest wrote {} only", human(wrote));
    check!(
        left >= wrote / 2,
        "{} are left of {}",
        human(left),
        human(wrote)
    );
    drop(mapping);
    curious.destroy()?;
    check_clean(&tenant(Policy::Release, &parts)?)
}
