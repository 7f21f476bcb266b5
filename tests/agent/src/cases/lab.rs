// SPDX-License-Identifier: GPL-2.0
//! Cases that go wrong on purpose: `dmem-runner selftest` demands that the lab notices each in its way.

use std::path::Path;
use std::time::Duration;

use crate::case::{errno, Case, Outcome};
use crate::{check, check_eq, fail, kernel_log, module, payload, reset, skip, sysfs};

use super::scrub_course::lower_watchdogs;

const BROKEN: Case = Case {
    machine: "small",
    limit: 3,
    hidden: true,
    ..Case::DEFAULT
};

/// Leaves the watchdogs low.
const STALLED: Case = Case {
    limit: 60,
    fresh: true,
    ..BROKEN
};

pub const CASES: &[Case] = &[
    Case {
        name: "lab-pass",
        shows: "a case that passes is a pass",
        run: || Ok(()),
        ..BROKEN
    },
    Case {
        name: "lab-fail",
        shows: "a failed check is a failure",
        run: || fail!("this case always fails"),
        ..BROKEN
    },
    Case {
        name: "lab-skip",
        shows: "a skip nobody expects is a failure",
        run: || skip!("never listed"),
        ..BROKEN
    },
    Case {
        name: "lab-warning",
        shows: "a complaint in the kernel log is a failure",
        run: warning,
        ..BROKEN
    },
    Case {
        name: "lab-expected",
        shows: "an expected complaint is none",
        run: warning,
        expects_log: &["lab-made"],
        ..BROKEN
    },
    Case {
        name: "lab-hang",
        shows: "a case that hangs is ended",
        run: hang,
        ..BROKEN
    },
    Case {
        name: "lab-signal",
        shows: "a case that crashes is a failure",
        run: signal,
        ..BROKEN
    },
    Case {
        name: "lab-stray",
        shows: "a process left behind does not outlive its case",
        run: stray,
        ..BROKEN
    },
    Case {
        name: "lab-reset",
        shows: "a case goes on where it was after a reset of the VM, which remembers nothing else",
        limit: 60,
        run: reset_twice,
        ..BROKEN
    },
    Case {
        name: "lab-reset-warning",
        shows: "a complaint in the kernel log before a reset is a failure",
        limit: 60,
        run: || {
            warning()?;
            reset::vm()
        },
        ..BROKEN
    },
    Case {
        name: "lab-panic",
        shows: "a kernel panic is noticed at once",
        limit: 60,
        run: panic,
        ..BROKEN
    },
    Case {
        name: "lab-lockup",
        shows: "a CPU held for too long is noticed by watchdogs as scrub-12g sets them",
        run: || stall("cpu"),
        ..STALLED
    },
    Case {
        name: "lab-hung-task",
        shows: "and so is a task that no signal reaches",
        run: || stall("sleep"),
        ..STALLED
    },
    Case {
        name: "lab-mute",
        shows: "a VM that ends without a verdict is a failure",
        limit: 60,
        run: mute,
        ..BROKEN
    },
];

fn warning() -> Outcome {
    kernel_log::note("WARNING: lab-made complaint");
    Ok(())
}

fn hang() -> Outcome {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn signal() -> Outcome {
    std::process::abort()
}

fn stray() -> Outcome {
    std::process::Command::new("sleep").arg("1000").spawn()?;
    Ok(())
}

fn reset_twice() -> Outcome {
    const MARK: &str = "/run/dmem/reset";
    check!(!Path::new(MARK).exists(), "the VM was not reset");
    std::fs::write(MARK, "")?;
    match reset::count() {
        0 | 1 => reset::vm(),
        _ => Ok(()),
    }
}

fn panic() -> Outcome {
    sysfs::write("/proc/sysrq-trigger", "c")?;
    hang()
}

/// Has a module do for 8 s, inside the kernel, what no driver may do.
fn stall(how: &str) -> Outcome {
    lower_watchdogs()?;
    // RCU notices as well, but only now and then, and now and then before the watchdog that is to be tried.
    sysfs::write(
        "/sys/module/rcupdate/parameters/rcu_cpu_stall_suppress",
        "1",
    )?;
    let file = payload::path("dmem_stall_probe.ko");
    check_eq!(
        errno(module::insert_with(&file, &format!("{how}=8"))),
        Some(libc::ECANCELED),
        "errno of loading what stalls"
    );
    Ok(())
}

fn mute() -> Outcome {
    sysfs::write("/proc/sysrq-trigger", "o")?;
    hang()
}
