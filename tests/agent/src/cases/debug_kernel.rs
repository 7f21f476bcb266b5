// SPDX-License-Identifier: GPL-2.0
//! What the debug kernel knows by itself: its own tests of the arithmetic, leaks, and the state of lockdep. The
//! runner asks for these with the debug kernel only.

use std::fs;
use std::time::Duration;

use crate::case::{Case, Named, Outcome};
use crate::cmdline::patient;
use crate::payload::need_module;
use crate::{check, fail, say, sysfs};

const DEBUG: Case = Case {
    hidden: true,
    ..Case::DEFAULT
};

pub const CASES: &[Case] = &[
    Case {
        name: "debug-kunit",
        shows:
            "the driver's KUnit suite ran when the driver was loaded, and each of its tests passed",
        run: kunit,
        ..DEBUG
    },
    // The runner runs it last in every VM.
    Case {
        name: "debug-clean",
        shows: "lockdep still watches, and kmemleak finds nothing",
        limit: 60,
        // It looks for itself what was found.
        expects_log: &["kmemleak: "],
        run: clean,
        ..DEBUG
    },
];

/// Where KUnit keeps what it said about the suite (lib/kunit/debugfs.c).
const RESULTS: &str = "/sys/kernel/debug/kunit/dmem_vectors/results";

/// Prints "kunit NAME" for each test that passed: make test-debug compares the names with the host's.
fn kunit() -> Outcome {
    need_module()?;
    let text = fs::read_to_string(RESULTS).named(RESULTS)?;
    let mut passed = 0;
    // KTAP: the suite's line at the left margin, its tests indented below their own plan.
    for line in text.lines().map(str::trim_start) {
        if let Some(test) = line.strip_prefix("not ok ") {
            fail!("KUnit test {test} failed: the kernel log says why");
        }
        let Some((_, name)) = line
            .strip_prefix("ok ")
            .and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        let name = name.trim_start_matches("- ");
        check!(!name.contains('#'), "KUnit test {name} did not run");
        if name != "dmem_vectors" {
            say!("kunit {name}");
            passed += 1;
        }
    }
    check!(passed > 0, "{RESULTS} tells of no test: {text}");
    Ok(())
}

const LEAKS: &str = "/sys/kernel/debug/kmemleak";
/// What the kernel itself leaks: the reason why a device is not probed yet, where a new id is stored while the device is
/// being added (`driver_probe_device()` in drivers/base/dd.c), is kept for devices whose probing is put off, and freed
/// with those only.
const NOT_OURS: &str = "device_set_deferred_probe_reason";

/// Of /proc/sys/kernel/tainted.
const TAINT_MACHINE_CHECK: u64 = 1 << 4;

fn clean() -> Outcome {
    // Lockdep turns itself off after its first complaint, and when it runs out of memory.
    let stats = sysfs::read("/proc/lockdep_stats")?;
    let on = stats
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("debug_locks:"));
    // A machine check turns it off, as well, since memory that locks are in may be bad. Complaints the runner sees.
    let tainted: u64 = sysfs::read("/proc/sys/kernel/tainted")?.trim().parse()?;
    check!(
        on.map(str::trim) == Some("1") || tainted & TAINT_MACHINE_CHECK != 0,
        "lockdep has turned itself off: see the kernel log"
    );
    // kmemleak reports what two scans in a row found unreferenced and unchanged, and nothing younger than five
    // seconds (mm/kmemleak.c: MSECS_MIN_AGE).
    std::thread::sleep(patient(Duration::from_secs(1)).max(Duration::from_secs(6)));
    sysfs::write(LEAKS, "scan")?;
    std::thread::sleep(Duration::from_secs(1));
    sysfs::write(LEAKS, "scan")?;
    let leaks = fs::read_to_string(LEAKS).named(LEAKS)?;
    for line in leaks.lines() {
        say!("{line}");
    }
    let objects = leaks.split("unreferenced object").skip(1);
    let ours = objects.filter(|object| !object.contains(NOT_OURS)).count();
    check!(
        ours == 0,
        "kmemleak found {ours} objects that nothing points to"
    );
    Ok(())
}
