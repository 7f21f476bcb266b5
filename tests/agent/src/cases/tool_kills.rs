// SPDX-License-Identifier: GPL-2.0
//! The tool killed between any two of its steps: the next run repairs or resumes.
//!
//! It is killed (SIGKILL) as it enters a system call that changes something, for the nth time, for n = 1, 2, … until
//! it ends by itself. Reading changes nothing, so these are all the moments there are; `make test` tries some of them.
//! The run that repairs is killed as well, at a moment that varies, and then repaired by one more.

use std::path::Path;

use crate::case::{Case, Failure, Named, Outcome};
use crate::command::Command;
use crate::device::{driver_attribute, Device, DAX_DMEM};
use crate::region::{Region, GIB, MIB};
use crate::sample::Sample;
use crate::{check, check_eq, say, sysfs};

use super::tool_host::{
    access, check_guest, check_idle, check_no_stale_id, check_not_rebound, done, link, need,
    pending, Host, STATE,
};
use super::tool_tracer::killed_at;

pub const CASES: &[Case] = &[
    Case {
        name: "tool-kill-create",
        shows: "create on device 0, killed anywhere: the guest is there or not at all, and can be made again",
        limit: 240,
        run: || create("--size 1G", GIB, &[]),
        sampled: true,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-kill-create-ranges",
        shows: "the same for a new device of three ranges, which is another user's and never scrubbed",
        limit: 240,
        run: || {
            // Free are 0.5 GiB three times, and 2 MiB for the guest that has device 0.
            let fillers = [(GIB / 2, GIB / 2), (3 * GIB / 2, GIB / 2), (5 * GIB / 2, 7 * GIB / 2 - 2 * MIB)];
            let words = format!("--size 1.5G --align 2M --scrub never --owner {STRANGER} --mode 0660");
            create(&words, 3 * GIB / 2, &fillers)
        },
        sampled: true,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-kill-survey",
        shows: "the same where the tool has to ask the kernel first where the region starts",
        limit: 240,
        run: survey,
        sampled: true,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-kill-destroy",
        shows: "destroy, killed anywhere: the guest is there as before, or gone for good",
        limit: 240,
        run: destroy,
        sampled: true,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-kill-unbind-bind",
        shows: "unbind and bind, killed anywhere: the guest is bound or not, and keeps its name and memory",
        limit: 240,
        run: unbind_bind,
        sampled: true,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-kill-set",
        shows: "set, killed anywhere: policy and owner are as before or as wanted, each with the other, and recorded",
        limit: 120,
        run: set,
        sampled: true,
        ..Case::DEFAULT
    },
    Case {
        name: "tool-kill-forced",
        shows: "a destroy that was told to take the device from its users goes on after a kill; one that was not, does not",
        limit: 120,
        run: forced,
        ..Case::DEFAULT
    },
];

/// More steps than any verb has.
const ENDLESS: usize = 200;

/// For each step, or every nth one of a sample: prepares, has the verb killed there, repairs with interruptions, and
/// checks. The number of steps.
pub fn at_every_step(
    words: &str,
    mut prepare: impl FnMut() -> Outcome,
    mut check: impl FnMut() -> Outcome<&'static str>,
) -> Outcome<usize> {
    let mut ends: Vec<&'static str> = Vec::new();
    let sample = Sample::new()?;
    for step in sample.points(ENDLESS) {
        prepare()?;
        let ran = killed_at(step, &format!("daxdmem {words}"))?;
        if ran.code == Some(0) {
            check()?;
            say!("daxdmem {words}: {}", ran.calls.join(", "));
            let steps = ran.calls.len();
            say!(
                "daxdmem {words}: killed at {sample} of {steps} steps, then: {}",
                runs(&ends)
            );
            check_eq!(
                sample.points(steps).count(),
                ends.len(),
                "steps of '{words}' to be killed at"
            );
            return Ok(steps);
        }
        let at = format!("step {step}, {}", ran.calls.last().unwrap_or(&"none"));
        check_eq!(
            ran.code,
            None,
            "exit code of '{words}' killed at {at}; it said {}",
            ran.stderr
        );
        let repair = killed_at(1 + step % 17, "daxdmem list")?;
        check!(
            matches!(repair.code, None | Some(0)),
            "the repair after {at} failed: {}",
            repair.stderr
        );
        done("list")?;
        check_idle().named(format!("after {at}"))?;
        check_eq!(
            pending(&sysfs::read(driver_attribute(DAX_DMEM, "scrub_policy"))?),
            "",
            "what the driver is told for later binds after {at}"
        );
        check!(
            !Path::new("/dev/daxdmem/.new").exists(),
            "after {at} a link is half made"
        );
        ends.push(check().map_err(|failure| match failure {
            Failure::Fail(text) => Failure::Fail(format!("killed at {at}: {text}")),
            skip => skip,
        })?);
    }
    Err(Failure::Fail(format!(
        "'{words}' did not end within {ENDLESS} steps"
    )))
}

/// "13 × gone, 2 × there".
fn runs(ends: &[&'static str]) -> String {
    let mut runs: Vec<(usize, &str)> = Vec::new();
    for end in ends {
        match runs.last_mut() {
            Some((count, last)) if last == end => *count += 1,
            _ => runs.push((1, end)),
        }
    }
    let texts: Vec<String> = runs
        .iter()
        .map(|(count, end)| format!("{count} × {end}"))
        .collect();
    texts.join(", ")
}

/// Whether the guest is wholly there, or wholly not and the host as it was without it.
fn whole_or_gone(size: u64, without: &Host) -> Outcome<&'static str> {
    if link("vm1").symlink_metadata().is_ok() {
        check_guest("vm1", size)?;
        check!(
            done("list --json")?.contains("\"guest\": \"vm1\""),
            "the link is there, the name is not"
        );
        return Ok("there");
    }
    check!(
        !done("list --json")?.contains("vm1"),
        "the name is there, the link is not"
    );
    Host::look()?
        .without_history()
        .expect(without, "without the guest")?;
    Ok("gone")
}

fn create(arguments: &str, size: u64, fillers: &[(u64, u64)]) -> Outcome {
    need()?;
    let region = Region::first()?;
    let part = |part: &(u64, u64)| region.create(2 * MIB, &[*part]);
    let fillers = fillers.iter().map(part).collect::<Outcome<Vec<_>>>()?;
    if !fillers.is_empty() {
        // With device 0 in use as well, a new device has to be made.
        done("create vm0 --size 2M")?;
    }
    let without = Host::look()?.without_history();
    let words = format!("create vm1 {arguments}");
    let prepare = || Ok(());
    at_every_step(&words, prepare, || {
        let end = whole_or_gone(size, &without)?;
        if end == "gone" {
            done(&words)?;
        }
        let device = check_guest("vm1", size)?;
        check_kept(&device, &words)?;
        done("destroy vm1")?;
        Host::look()?
            .without_history()
            .expect(&without, "after the next create and destroy")?;
        Ok(end)
    })?;
    if !fillers.is_empty() {
        done("destroy vm0")?;
    }
    fillers.into_iter().try_for_each(Device::destroy)?;
    check_no_stale_id(&region)
}

/// An owner without a name.
pub const STRANGER: &str = "54321:12345";

/// Whether policy and node are as these words of a command choose them.
pub fn check_kept(device: &Device, words: &str) -> Outcome {
    let (policy, node) = match words.contains(STRANGER) {
        true => ("never", format!("{STRANGER} 660")),
        false => ("release", "0:0 600".to_owned()),
    };
    check_eq!(
        sysfs::read(device.attribute("dax_dmem/scrub_policy"))?,
        policy,
        "scrub policy of {}",
        device.name
    );
    check_eq!(access(&device.path())?, node, "owner and mode");
    Ok(())
}

fn survey() -> Outcome {
    need()?;
    let region = Region::first()?;
    // Device 0 in use and nothing known: no device tells where the region starts.
    let first = Device::existing(&format!("dax{}.0", region.id));
    sysfs::write(
        first.attribute("mapping"),
        &format!("{:x}-{:x}", region.start + GIB, region.start + 2 * GIB - 1),
    )?;
    let without = Host::look()?.without_history();
    let forget = || {
        let _ = std::fs::remove_file(STATE);
        Ok(())
    };
    let steps = at_every_step("create vm1 --size 2G", forget, || {
        let end = whole_or_gone(2 * GIB, &without)?;
        if end == "gone" {
            done("create vm1 --size 2G")?;
        }
        let ranges = check_guest("vm1", 2 * GIB)?.ranges()?;
        check_eq!(ranges[0].start % GIB, 0, "start of the range modulo 1 GiB");
        done("destroy vm1")?;
        Ok(end)
    })?;
    check!(steps > 30, "{steps} steps: there was no survey");
    sysfs::write(first.attribute("size"), "0")?;
    check_no_stale_id(&region)
}

fn destroy() -> Outcome {
    need()?;
    let region = Region::first()?;
    // The first one keeps its node, which has to become root's again.
    let given = format!("--scrub never --owner {STRANGER} --mode 0660");
    for (others, size, words) in [(false, GIB, given.as_str()), (true, GIB + GIB / 2, "")] {
        // With another guest on device 0, the one to destroy has to be deleted too.
        if others {
            done("create vm0 --size 2M")?;
        }
        let without = Host::look()?.without_history();
        let prepare = || {
            if link("vm1").symlink_metadata().is_err() {
                done(&format!("create vm1 --size {size} {words}"))?;
            }
            Ok(())
        };
        let mut gone = false;
        at_every_step("destroy vm1", prepare, || {
            let end = whole_or_gone(size, &without)?;
            // What was begun is carried through: once gone, it is gone at every later step.
            check!(
                !gone || end == "gone",
                "the guest is there again after a later step"
            );
            if end == "there" {
                check_kept(&check_guest("vm1", size)?, words)?;
            }
            gone = end == "gone";
            Ok(end)
        })?;
        check!(gone, "the guest is never gone");
        if others {
            done("destroy vm0")?;
        }
    }
    check_no_stale_id(&region)
}

fn unbind_bind() -> Outcome {
    need()?;
    let region = Region::first()?;
    done("create vm1 --size 1G")?;
    let device = check_guest("vm1", GIB)?;
    let ranges = device.ranges()?;
    let keeps = || -> Outcome<&'static str> {
        check_eq!(device.ranges()?, ranges, "ranges of vm1");
        check!(
            done("list --json")?.contains("\"guest\": \"vm1\""),
            "vm1 has lost its name"
        );
        check_eq!(
            std::fs::canonicalize(link("vm1"))?,
            device.path(),
            "where the link leads"
        );
        Ok(if device.driver().is_some() {
            "bound"
        } else {
            "unbound"
        })
    };
    let bind = || {
        if device.driver().is_none() {
            done("bind vm1").map(drop)
        } else {
            Ok(())
        }
    };
    let unbind = || {
        if device.driver().is_some() {
            done("unbind vm1").map(drop)
        } else {
            Ok(())
        }
    };
    let unbinding = at_every_step("unbind vm1", bind, keeps)?;
    check!(
        unbinding >= 3,
        "unbind has {unbinding} steps only: strace does not see them"
    );
    unbind()?;
    check_eq!(device.driver(), None, "driver after unbind");
    check_not_rebound(&region, &device)?;
    for words in ["", &format!(" --scrub never --owner {STRANGER} --mode 660")] {
        let mut begun = false;
        // Each time from the same settings, so that each run has the same steps.
        let prepare = || {
            done("set vm1 --scrub release --owner 0:0 --mode 600")?;
            unbind()
        };
        at_every_step(&format!("bind vm1{words}"), prepare, || {
            let end = keeps()?;
            begun = begun || end == "bound";
            if end == "unbound" {
                check_not_rebound(&region, &device)?;
                // What was not carried out is not kept either.
                if !begun {
                    check_eq!(access(&device.path())?, "0:0 600", "owner and mode before");
                    done("bind vm1")?;
                    check_kept(&device, "")?;
                }
            } else {
                check_kept(&device, words)?;
            }
            Ok(end)
        })?;
    }
    unbind()?;
    // The last one holds from now on.
    done("bind vm1")?;
    check_kept(&device, STRANGER)?;
    done("destroy vm1")?;
    check_no_stale_id(&region)
}

fn set() -> Outcome {
    need()?;
    done("create vm1 --size 64M")?;
    let device = check_guest("vm1", 64 * MIB)?;
    let words = format!("set vm1 --scrub never --owner {STRANGER} --mode 0660");
    let restore = || done("set vm1 --scrub release --owner 0:0 --mode 600").map(drop);
    let steps = at_every_step(&words, restore, || {
        let new = access(&device.path())? != "0:0 600";
        check_kept(&device, if new { &words } else { "" })?;
        // What is shown is what is kept.
        done("unbind vm1")?;
        done("bind vm1")?;
        check_kept(&device, if new { &words } else { "" })?;
        Ok(if new { "new" } else { "old" })
    })?;
    check!(steps > 6, "{steps} steps: a change was not seen");
    done("destroy vm1").map(drop)
}

fn forced() -> Outcome {
    need()?;
    let fresh = || -> Outcome<Device> {
        if link("vm1").symlink_metadata().is_err() {
            // Little: it is scrubbed after every step, since somebody had it open.
            done("create vm1 --size 64M")?;
        }
        check_guest("vm1", 64 * MIB)
    };
    let (mut undone, mut completed) = (0, 0);
    for step in 1..ENDLESS {
        let device = fresh()?;
        if killed_at(step, "daxdmem destroy vm1")?.code.is_some() {
            break;
        }
        if device.driver().is_none() {
            done("list")?;
            continue;
        }
        // Somebody opens the device before anybody repairs.
        let user = device.open()?;
        let told = Command::line("daxdmem list").try_run()?.stderr;
        check_guest("vm1", 64 * MIB)?;
        if told.contains("destroy vm1 was interrupted: undone, since vm1 is in use") {
            undone += 1;
        }
        drop(user);
    }
    for step in 1..ENDLESS {
        let device = fresh()?;
        let user = device.open()?;
        if killed_at(step, "daxdmem destroy vm1 --force")?
            .code
            .is_some()
        {
            break;
        }
        let told = Command::line("daxdmem list").try_run()?.stderr;
        if told.contains("destroy vm1 was interrupted: completed") {
            check!(
                link("vm1").symlink_metadata().is_err(),
                "the guest is still there"
            );
            completed += 1;
        }
        drop(user);
    }
    say!("undone after {undone} steps, completed after {completed}");
    check!(
        undone > 0,
        "no step was found after which an unforced destroy is undone"
    );
    check!(
        completed > 0,
        "no step was found after which a forced destroy is completed"
    );
    if link("vm1").symlink_metadata().is_ok() {
        done("destroy vm1")?;
    }
    check_no_stale_id(&Region::first()?)
}
