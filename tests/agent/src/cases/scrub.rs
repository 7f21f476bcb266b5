// SPDX-License-Identifier: GPL-2.0
//! Scrubbing: what one guest leaves behind, no other ever sees.
//!
//! A tenant here is a process that has all of a device; `never` as policy shows each time that there was something
//! to be seen.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{self, Stdio};
use std::time::{Duration, Instant};

use crate::case::{errno, Case, Named, Outcome};
use crate::child::{Child, End};
use crate::command::Command;
use crate::device::{driver_attribute, Device, DAX_DMEM, DEVICE_DAX};
use crate::kvm;
use crate::mapping::{Map, Mapping};
use crate::memory::human;
use crate::pattern::{check_zeros, Pattern};
use crate::region::{Region, GIB, MIB};
use crate::scrub::{self, Policy, Progress, STEP};
use crate::vmm::{self, Guest};
use crate::{check, check_eq, module, payload, reset, say, sysfs};

use super::tool_host::{device_of, link};

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
        name: "scrub-open",
        shows: "open waits for the scrub, or says EAGAIN; signals and unbind end the wait; progress only grows",
        limit: 60,
        run: open,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-unbind-midway",
        shows: "unbind stops a scrub, what it has done stays known, and the next bind does the rest",
        limit: 60,
        run: unbind_midway,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-taken-over",
        shows: "a device on part of a range that is being scrubbed is zeroed, and so is the rest of that range",
        limit: 60,
        run: taken_over,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-goes-on",
        shows: "a device given back half scrubbed is scrubbed to the end, and what is clean of it can be had meanwhile",
        run: goes_on,
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
        name: "scrub-reset",
        shows: "memory whose scrub was cut short by a reset of the host still holds bytes, and is scrubbed before anyone gets it",
        limit: 120,
        run: after_reset,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-tool-killed",
        shows: "create killed while it waits for the scrub: whoever gets the memory then sees zeros",
        limit: 60,
        run: tool_killed,
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
    Case {
        name: "scrub-12g",
        shows: "12 GiB are scrubbed without a word from watchdogs set to 2 s, and unbind, unload and signals get through",
        machine: "region12",
        limit: 240,
        run: twelve_gib,
        ..Case::DEFAULT
    },
    Case {
        name: "scrub-cost",
        shows: "a scrub takes at most 10 % more instructions than memset over the mapped device",
        machine: "icount",
        limit: 120,
        run: cost,
        ..Case::DEFAULT
    },
];

/// What is done at once takes less than this, under emulation and on a busy host, and less than a scrub of 12 GiB takes.
const SOON: Duration = Duration::from_secs(5);

/// A bound device of these parts whose memory is treated by this policy.
pub(super) fn tenant(policy: Policy, parts: &[(u64, u64)]) -> Outcome<Device> {
    payload::need_module()?;
    let device = Region::first()?.create(STEP, parts)?;
    policy.bind(&device)?;
    Ok(device)
}

/// All of a device; waits for its scrub.
fn mapped(device: &Device) -> Outcome<Mapping> {
    Ok(Map::new(device.size()?).file(&device.open()?)?)
}

/// Writes every byte of the device.
fn fill(device: &Device, pattern: Pattern) -> Outcome {
    let mapping = mapped(device)?;
    pattern.fill(mapping.words(0, mapping.len() as u64), 0);
    Ok(())
}

/// Fails unless the next tenant of a device sees every byte of the pattern.
fn check_pattern(device: &Device, pattern: Pattern) -> Outcome {
    let mapping = mapped(device)?;
    pattern
        .verify(mapping.words(0, mapping.len() as u64), 0)
        .named(&device.name)
}

/// Fails unless the next tenant of a device sees zeros only, in every byte of it.
fn check_clean(device: &Device) -> Outcome {
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
fn littered(parts: &[(u64, u64)], pattern: Pattern) -> Outcome {
    let device = tenant(Policy::Never, parts)?;
    fill(&device, pattern)?;
    device.destroy()?;
    scrub::settle()
}

/// Makes the driver forget that memory is clean: somebody may have written to it.
fn forget(parts: &[(u64, u64)]) -> Outcome {
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
fn open_now(device: &Device) -> io::Result<File> {
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

fn open() -> Outcome {
    let parts = [(0, GIB + 512 * MIB)];
    scrub::settle()?;
    forget(&parts)?;
    let device = tenant(Policy::HandOut, &parts)?;
    check_eq!(scrub::state(&device)?, "scrubbing", "state after bind");
    check_eq!(
        errno(open_now(&device)),
        Some(libc::EAGAIN),
        "errno of O_NONBLOCK"
    );
    let mut waiter = waiter(&device)?;
    Progress::midway(&device)?;
    let begin = Instant::now();
    device.unbind()?;
    check_eq!(
        waiter.link().receive()?,
        libc::ENXIO.to_string(),
        "errno of open after unbind"
    );
    waiter.finish()?;
    check!(begin.elapsed() < SOON, "unbind took {:?}", begin.elapsed());

    // Once more, to the end.
    Policy::HandOut.bind(&device)?;
    let before = Progress::midway(&device)?;
    let mut interrupted = self::waiter(&device)?;
    interrupted.signal(libc::SIGUSR1)?;
    let error = interrupted.link().receive()?;
    check_eq!(
        error,
        libc::EINTR.to_string(),
        "errno of open after a signal"
    );
    interrupted.finish()?;
    let mut killed = self::waiter(&device)?;
    check_eq!(
        killed.kill()?,
        End::Signal(libc::SIGKILL),
        "end of a waiter that was killed"
    );
    let mut patient = self::waiter(&device)?;
    let after = Progress::of(&device)?;
    check!(
        after.done < after.total,
        "the scrub was over before the waiters were: {after:?}"
    );

    let mut last = before;
    while scrub::state(&device)? == "scrubbing" {
        let progress = Progress::of(&device)?;
        check_eq!(progress.total, before.total, "bytes to scrub, later on");
        check!(
            progress.done >= last.done,
            "{last:?} was followed by {progress:?}"
        );
        last = progress;
    }
    check_eq!(scrub::state(&device)?, "scrubbed", "state in the end");
    let end = Progress::of(&device)?;
    check_eq!(end.done, before.total, "bytes scrubbed in the end");
    check_eq!(end.total, before.total, "bytes to scrub in the end");
    check_eq!(
        patient.link().receive()?,
        "0",
        "errno of an open that waited"
    );
    patient.finish()?;
    drop(open_now(&device).named("opening without waiting")?);
    Ok(())
}

/// A process in the middle of open(2) on the device; says the errno when that returns, 0 for a success.
fn waiter(device: &Device) -> Outcome<Child> {
    let mut child = Child::start(|link| {
        interruptible(libc::SIGUSR1);
        link.send("opening")?;
        let error = errno(open_once(device)).unwrap_or(0);
        link.send(&error.to_string())
    })?;
    child.link().receive()?;
    let deadline = Instant::now() + SOON;
    let call = format!("/proc/{}/syscall", child.pid());
    while !sysfs::read(&call)?.starts_with(&format!("{} ", libc::SYS_openat)) {
        check!(Instant::now() < deadline, "open did not wait");
    }
    Ok(child)
}

/// open(2) as it is: the standard library repeats one that was interrupted.
fn open_once(device: &Device) -> io::Result<OwnedFd> {
    let path = CString::new(device.path().into_os_string().into_vec()).map_err(io::Error::other)?;
    // SAFETY: the path is NUL-terminated.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has a signal interrupt system calls of this process, and do nothing else.
fn interruptible(signal: i32) {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: `action` is plain data, zero is a valid value of every field; without SA_RESTART calls are not repeated.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

fn unbind_midway() -> Outcome {
    let parts = [(0, 2 * GIB)];
    let pattern = Pattern::new(8);
    scrub::settle()?;
    let region = Region::first()?;
    littered(&parts, pattern)?;
    check_eq!(
        scrub::clean_in(&region, 0, 2 * GIB)?,
        0,
        "clean bytes at first"
    );
    // hand-out: nothing goes on behind the back of this case.
    let device = tenant(Policy::HandOut, &parts)?;
    let progress = Progress::midway(&device)?;
    let begin = Instant::now();
    device.unbind()?;
    let took = begin.elapsed();
    check!(took < SOON, "unbind took {took:?}");
    let clean = scrub::clean_in(&region, 0, 2 * GIB)?;
    say!(
        "unbound after {} in {} ms: {} of {} are clean",
        human(progress.done),
        took.as_millis(),
        human(clean),
        human(progress.total)
    );
    check!(
        clean >= progress.done && clean < 2 * GIB,
        "{} are clean after {progress:?}",
        human(clean)
    );

    // If anything were called clean that is not, it would be seen now.
    Policy::HandOut.bind(&device)?;
    check_clean(&device)?;
    check_eq!(
        Progress::of(&device)?.total,
        2 * GIB - clean,
        "bytes scrubbed at the next bind"
    );
    Ok(())
}

fn taken_over() -> Outcome {
    scrub::settle()?;
    let region = Region::first()?;
    let pattern = Pattern::new(9);
    let first = tenant(Policy::Release, &[(0, 2 * GIB)])?;
    fill(&first, pattern)?;
    first.destroy()?;
    check_eq!(
        scrub::released()?.len(),
        1,
        "ranges being scrubbed after destroy"
    );

    let (offset, length) = (GIB + 16 * MIB, 512 * MIB);
    let second = tenant(Policy::Release, &[(offset, length)])?;
    let progress = Progress::of(&second)?;
    check!(
        progress.total > 0,
        "the scrub was over before the next bind: nothing was shown"
    );
    check_clean(&second)?;
    fill(&second, Pattern::new(10))?;
    scrub::settle()?;
    for (offset, length) in [(0, offset), (offset + length, 2 * GIB - offset - length)] {
        let clean = scrub::clean_in(&region, offset, length)?;
        check_eq!(clean, length, "clean bytes from {offset:#x} on");
    }
    check_eq!(
        scrub::clean_in(&region, offset, length)?,
        0,
        "clean bytes of the second device"
    );
    check_pattern(&second, Pattern::new(10)).named("after the rest was scrubbed")?;
    let below = tenant(Policy::Never, &[(0, offset)])?;
    check_clean(&below)?;
    check_clean(&tenant(
        Policy::Never,
        &[(offset + length, 2 * GIB - offset - length)],
    )?)
}

fn goes_on() -> Outcome {
    scrub::settle()?;
    let region = Region::first()?;
    forget(&[(0, 2 * GIB)])?;
    let first = tenant(Policy::Release, &[(0, 2 * GIB)])?;
    Progress::midway(&first)?;
    first.destroy()?;
    let under_way = scrub::released()?;
    check_eq!(under_way.len(), 1, "ranges being scrubbed after destroy");
    let clean = scrub::clean_in(&region, 0, STEP)?;
    check_eq!(
        clean,
        STEP,
        "clean bytes at the start of what was half scrubbed"
    );

    let second = tenant(Policy::Release, &[(0, STEP)])?;
    let none = Progress { done: 0, total: 0 };
    check_eq!(Progress::of(&second)?, none, "progress on the clean part");
    check!(
        !scrub::released()?.is_empty(),
        "the scrub was over before the next bind: nothing was shown"
    );
    check_clean(&second)?;
    scrub::settle()?;
    let clean = scrub::clean_in(&region, STEP, 2 * GIB - STEP)?;
    check_eq!(clean, 2 * GIB - STEP, "clean bytes when all is done");
    Ok(())
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

fn after_reset() -> Outcome {
    const SIZE: u64 = 2 * GIB;
    let parts = [(0, SIZE)];
    let pattern = Pattern::new(14);
    if reset::count() == 0 {
        let device = tenant(Policy::Release, &parts)?;
        fill(&device, pattern)?;
        device.destroy()?;
        let first = || -> Outcome<Progress> {
            let under_way = scrub::released()?;
            check_eq!(under_way.len(), 1, "ranges being scrubbed");
            Ok(under_way[0].progress)
        };
        while first()?.done == 0 {}
        reset::vm();
    }
    // One who does not want to be scrubbed for sees that it was cut short.
    let device = tenant(Policy::Never, &parts)?;
    check_eq!(
        scrub::clean()?,
        [],
        "what is known to be clean after a reset"
    );
    check_eq!(scrub::state(&device)?, "unscrubbed", "state after a reset");
    let mapping = mapped(&device)?;
    let steps = (0..SIZE / STEP).map(|index| index * STEP);
    let zeroed = steps.filter(|at| mapping.read(*at) == 0).count() as u64 * STEP;
    say!(
        "{} of {} were zeroed before the reset",
        human(zeroed),
        human(SIZE)
    );
    check!(zeroed > 0, "nothing was zeroed before the reset");
    check!(
        zeroed < SIZE,
        "all was zeroed before the reset: nothing was shown"
    );
    let last = SIZE - STEP;
    pattern
        .verify(mapping.words(last, STEP), last)
        .named("the end of the memory, after a reset")?;
    drop(mapping);
    device.destroy()?;

    let device = tenant(Policy::Release, &parts)?;
    check_clean(&device)?;
    check_eq!(
        Progress::of(&device)?.total,
        SIZE,
        "bytes scrubbed after a reset"
    );
    Ok(())
}

fn tool_killed() -> Outcome {
    const SIZE: u64 = 2 * GIB;
    payload::need_tool()?;
    scrub::settle()?;
    let region = Region::first()?;
    littered(&[(0, region.size)], Pattern::new(15))?;
    let mut tool = process::Command::new("daxdmem")
        .args(["create", "vm1", "--size", "2G"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .named("daxdmem")?;
    let deadline = Instant::now() + SOON;
    while link("vm1").symlink_metadata().is_err() {
        check!(Instant::now() < deadline, "create made no link");
    }
    let device = device_of("vm1")?;
    Progress::midway(&device)?;
    check!(
        tool.try_wait()?.is_none(),
        "create did not wait for the scrub"
    );
    tool.kill()?;
    tool.wait()?;
    check_eq!(scrub::state(&device)?, "scrubbing", "state after the kill");

    // Whatever the next run makes of it: vm1's memory goes to somebody, and all that is left to somebody else.
    let told = Command::line("daxdmem list").limit(60).try_run()?;
    say!("list after the kill: {}", told.stderr.trim_end());
    if link("vm1").symlink_metadata().is_err() {
        create("vm1", SIZE)?;
    }
    check_clean(&device_of("vm1")?)?;
    create("vm2", region.available()?)?;
    check_clean(&device_of("vm2")?)?;
    for name in ["vm1", "vm2"] {
        Command::line(&format!("daxdmem destroy {name}"))
            .limit(60)
            .run()?;
    }
    scrub::settle()
}

fn create(name: &str, size: u64) -> Outcome {
    let line = format!("daxdmem create {name} --size {}M", size / MIB);
    Command::line(&line).limit(120).run().map(drop)
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

fn twelve_gib() -> Outcome {
    const SIZE: u64 = 12 * GIB;
    let parts = [(0, SIZE)];
    payload::need_module()?;
    let region = Region::first()?;
    check_eq!(region.size, SIZE, "size of the region");
    for (setting, value) in [
        // The limit for soft lockups is twice that.
        ("/proc/sys/kernel/watchdog_thresh", "1"),
        ("/proc/sys/kernel/hung_task_timeout_secs", "2"),
        ("/proc/sys/kernel/hung_task_check_interval_secs", "1"),
        // The least RCU accepts, in seconds and in milliseconds.
        ("/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout", "3"),
        (
            "/sys/module/rcupdate/parameters/rcu_exp_cpu_stall_timeout",
            "2000",
        ),
    ] {
        sysfs::write(setting, value)?;
        check_eq!(sysfs::read(setting)?, value, "{setting}");
    }
    let begin = Instant::now();
    // A word in every step, so that it can be seen whether the scrub came by.
    let device = tenant(Policy::Never, &parts)?;
    let mapping = mapped(&device)?;
    let marks = || (0..SIZE / STEP).map(|index| index * STEP + index * 8 % STEP);
    marks().for_each(|at| mapping.write(at, at | 1));
    drop(mapping);
    device.unbind()?;
    say!("12 GiB marked in {:.1} s", begin.elapsed().as_secs_f64());

    for (what, interrupt) in [
        (
            "unbind",
            (|device| device.unbind()) as fn(&Device) -> Outcome,
        ),
        ("unload", |_| Ok(module::unload(DAX_DMEM)?)),
    ] {
        Policy::HandOut.bind(&device)?;
        Progress::midway(&device)?;
        // Long enough for what holds a CPU or a lock to be noticed.
        std::thread::sleep(Duration::from_secs(1));
        let begin = Instant::now();
        interrupt(&device)?;
        let took = begin.elapsed();
        say!(
            "{what} in the middle of the scrub took {} ms",
            took.as_millis()
        );
        check!(took < SOON, "{what} took {took:?}");
        payload::need_module()?;
    }

    Policy::HandOut.bind(&device)?;
    let begin = Instant::now();
    check_eq!(Progress::midway(&device)?.total, SIZE, "bytes to scrub");
    // Waits longer than the limits above.
    let mut waiter = waiter(&device)?;
    let mut slowest = Duration::ZERO;
    while scrub::state(&device)? == "scrubbing" {
        let asked = Instant::now();
        Progress::of(&device)?;
        scrub::clean()?;
        slowest = slowest.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    check_eq!(
        waiter.link().receive()?,
        "0",
        "errno of an open that waited"
    );
    waiter.finish()?;
    let took = begin.elapsed();
    say!(
        "12 GiB scrubbed in {:.1} s; the slowest look at it took {} ms",
        took.as_secs_f64(),
        slowest.as_millis()
    );
    check!(slowest < SOON, "a look at the progress took {slowest:?}");
    let mapping = mapped(&device)?;
    let left = marks().filter(|at| mapping.read(*at) != 0).count();
    check_eq!(left, 0, "marks left");
    say!(
        "12 GiB looked through after {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    drop(mapping);
    // The rest of the time limits is for what the kernel has to say.
    std::thread::sleep(Duration::from_secs(2));
    Ok(())
}

fn cost() -> Outcome {
    const SIZE: u64 = 512 * MIB;
    let parts = [(0, SIZE)];
    scrub::settle()?;
    // All that happens once only is behind us when it is measured.
    let mut scrubs = Vec::new();
    let mut memsets = Vec::new();
    for _ in 0..2 {
        forget(&parts)?;
        let device = Region::first()?.create(STEP, &parts)?;
        let begin = Instant::now();
        Policy::HandOut.bind(&device)?;
        // On the only CPU there is nothing else to do while this waits.
        let file = device.open()?;
        scrubs.push(begin.elapsed().as_nanos() as u64);
        check_eq!(Progress::of(&device)?.total, SIZE, "bytes scrubbed at bind");

        let mapping = Map::new(SIZE).file(&file)?;
        mapping.touch(STEP);
        let words = mapping.words(0, SIZE);
        let begin = Instant::now();
        // SAFETY: the words are all of a live mapping, which nobody else has.
        unsafe { libc::memset(words.cast(), 0, SIZE as usize) };
        memsets.push(begin.elapsed().as_nanos() as u64);
    }
    let (scrub, memset) = (scrubs[1], memsets[1]);
    say!(
        "{}: scrub {scrub} instructions, memset {memset}: {:.1} %",
        human(SIZE),
        100.0 * scrub as f64 / memset as f64
    );
    check!(
        scrub <= memset / 10 * 11,
        "the scrub takes {scrub} instructions, memset {memset}"
    );
    // A store of 64 bytes at best.
    check!(
        scrub > SIZE / 64,
        "{scrub} instructions cannot have written {}",
        human(SIZE)
    );
    Ok(())
}
