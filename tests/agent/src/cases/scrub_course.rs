// SPDX-License-Identifier: GPL-2.0
//! The course of a scrub: who waits for it, who stops it, who takes it over, and what it costs.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use crate::case::{errno, Case, Named, Outcome};
use crate::child::{Child, End};
use crate::device::{Device, DAX_DMEM};
use crate::mapping::Map;
use crate::memory::human;
use crate::pattern::Pattern;
use crate::region::{Region, GIB, MIB};
use crate::scrub::{self, Policy, Progress, STEP};
use crate::{check, check_eq, module, payload, say, sysfs};

use super::scrub::{
    check_clean, check_pattern, fill, forget, littered, mapped, open_now, tenant, SOON,
};

pub const CASES: &[Case] = &[
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

/// Sets all watchdogs to about 2 s. That those for CPUs and tasks speak up then is what the lab tries on itself: `lab-lockup` and
/// `lab-hung-task`. RCU's does so now and then only.
pub(super) fn lower_watchdogs() -> Outcome {
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
    Ok(())
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

fn twelve_gib() -> Outcome {
    const SIZE: u64 = 12 * GIB;
    let parts = [(0, SIZE)];
    payload::need_module()?;
    let region = Region::first()?;
    check_eq!(region.size, SIZE, "size of the region");
    lower_watchdogs()?;
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
