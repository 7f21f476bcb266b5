// SPDX-License-Identifier: GPL-2.0

//! Devices and guests: who may open them, what they wait for, and what is not as daxdmem keeps it.

use super::{list, Finding, Scene};
use crate::repair::is_there;
use crate::scrub::Stage;

pub fn findings(scene: &Scene) -> Vec<Finding> {
    let mut findings = vec![state(scene), access(scene)];
    findings.extend(scrub(scene));
    findings.extend(quarantine(scene));
    findings
}

fn state(scene: &Scene) -> Finding {
    const CHECK: &str = "guests";
    let Some(state) = &scene.state else {
        return Finding::info(CHECK, "seen by root only");
    };
    if let Some(operation) = &state.operation {
        return Finding::warning(CHECK, format!("{operation} was interrupted, or is under way"))
            .means("it is undone or completed by the next daxdmem command that changes something, or by `daxdmem list`")
            .advises("`daxdmem list`");
    }
    let gone = state
        .guests
        .iter()
        .filter(|(_, guest)| !is_there(&scene.bus, guest));
    let gone: Vec<_> = gone.map(|(name, _)| name).collect();
    match gone.is_empty() {
        true => Finding::ok(
            CHECK,
            match state.guests.len() {
                0 => "none yet".to_owned(),
                1 => "1, whose device is there".to_owned(),
                many => format!("{many}, whose devices are there"),
            },
        ),
        false => Finding::warning(
            CHECK,
            format!("the devices of {} are gone or were changed", list(&gone)),
        )
        .means("another program than daxdmem did that")
        .advises("`daxdmem destroy NAME` forgets such a guest"),
    }
}

/// Nodes that are not as they were chosen to be.
fn access(scene: &Scene) -> Finding {
    const CHECK: &str = "permissions";
    let Some(state) = &scene.state else {
        return Finding::info(CHECK, "what was chosen is seen by root only");
    };
    let records = state
        .guests
        .iter()
        .map(|(name, record)| (Some(name), record))
        .chain(state.devices.values().map(|record| (None, record)));
    let mut wrong = Vec::new();
    let mut open = Vec::new();
    for (name, record) in records {
        let (Some(device), Some(chosen)) = (scene.bus.same(&record.device), record.settings.access)
        else {
            continue;
        };
        let target = name.map_or_else(|| device.name.to_string(), ToString::to_string);
        match device.access {
            Some(found) if found == chosen => {}
            Some(found) => wrong.push(format!("{target} has {found} instead of {chosen}")),
            None => wrong.push(format!("{target} has no node")),
        }
        if chosen.is_open_to_all() {
            open.push(target);
        }
    }
    if !wrong.is_empty() {
        return Finding::warning(CHECK, list(&wrong))
            .means("another program (udev, chmod) changed it: QEMU may not be allowed to open it")
            .advises("`daxdmem set NAME --owner … --mode …` puts it right");
    }
    match open.is_empty() {
        true => Finding::ok(CHECK, "device nodes are as chosen"),
        false => Finding::warning(CHECK, format!("every user may open {}", list(&open)))
            .means("and read or change what the guest has in memory")
            .advises("`daxdmem set NAME --mode 0660`"),
    }
}

fn scrub(scene: &Scene) -> Option<Finding> {
    let failed: Vec<String> = scene
        .bus
        .devices
        .iter()
        .filter(|device| {
            device
                .scrub
                .is_some_and(|scrub| scrub.stage == Stage::Failed)
        })
        .map(|device| device.name.to_string())
        .collect();
    let first = failed.first()?;
    Some(
        Finding::error("scrub", format!("{} could not be scrubbed", list(&failed)))
            .means("nobody can open it")
            .advises(format!(
                "`dmesg` says why; `daxdmem unbind {first}` and `daxdmem bind {first}` try again"
            )),
    )
}

fn quarantine(scene: &Scene) -> Option<Finding> {
    let held: Vec<String> = scene
        .unowned
        .quarantine
        .iter()
        .map(|held| {
            format!(
                "{} of {} (open {} times)",
                held.range, held.device, held.openers
            )
        })
        .collect();
    if held.is_empty() {
        return None;
    }
    Some(
        Finding::warning("quarantine", list(&held))
            .means("unbound while in use: nobody gets it before its last user is gone")
            .advises("End the programs that have it open"),
    )
}
