// SPDX-License-Identifier: GPL-2.0

//! What differs between the layout and the host, and what is to be done about it.
//!
//! All is planned before the first step: whatever does not fit is refused here, with the host as it is.

use std::collections::BTreeSet;

use super::placement::{Place, Placement};
use super::Wanted;
use crate::align::Align;
use crate::bus::{Bus, Device};
use crate::making::Plan;
use crate::mode::Mode;
use crate::name::{GuestName, PartName};
use crate::nodes::Part;
use crate::repair::recorded;
use crate::settings::Settings;
use crate::size::Size;
use crate::space::extent_of;
use crate::store::{Record, State};

/// What is to be done with a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing: it is as declared.
    Keep,
    /// It is not there, and is made.
    Create,
    /// What was chosen for it is changed, or it is bound.
    Change,
    /// It is unmade, and made as declared.
    Recreate,
    /// It is not as declared, and stays so.
    Leave,
    /// It is not declared, and stays.
    Unlisted,
    /// It is not declared, and goes.
    Destroy,
}

/// A guest, and what is to be done with it.
#[derive(Debug, Clone)]
pub struct Step {
    /// The guest.
    pub name: GuestName,
    /// What is to be done.
    pub action: Action,
    /// What is not as declared.
    pub differences: Vec<String>,
    /// Why it stays as it is, if it does.
    pub reason: Option<String>,
    /// Its devices as they are to be, or as they are where they stay; without places where they are yet to be made.
    pub parts: Vec<(Part, Option<Place>)>,
    /// The devices to make.
    pub plans: Vec<Plan>,
    /// What makes the devices of old again, if a guest is unmade that is there as it was recorded.
    pub former: Vec<Plan>,
}

/// Compares what is declared with what there is. `users` tells who uses a device.
///
/// Declared guests are first, in the order of the file.
pub fn compare(
    wanted: &[Wanted],
    state: &State,
    bus: &Bus,
    prune: bool,
    users: impl Fn(&Device) -> Option<String>,
) -> Vec<Step> {
    let declared: BTreeSet<&GuestName> = wanted.iter().map(|guest| &guest.name).collect();
    let others: BTreeSet<&GuestName> = state
        .guests
        .keys()
        .map(|part| &part.guest)
        .filter(|name| !declared.contains(name))
        .collect();
    let listed = wanted.iter().map(|guest| {
        let present = Present::of(&guest.name, state, bus);
        let (action, differences) = present.verdict(guest);
        let touches = matches!(action, Action::Change | Action::Recreate);
        let reason = present.lent().or_else(|| match touches {
            true => present.used(&users),
            false => None,
        });
        let action = reason.as_ref().map_or(action, |_| Action::Leave);
        let as_it_is = matches!(action, Action::Leave | Action::Keep | Action::Change);
        Step {
            name: guest.name.clone(),
            action,
            differences,
            reason,
            parts: match as_it_is {
                true => present.parts(state, bus),
                false => guest
                    .parts
                    .iter()
                    .map(|part| (part.clone(), None))
                    .collect(),
            },
            plans: Vec::new(),
            former: match action {
                Action::Recreate => present.plans(state, bus),
                _ => Vec::new(),
            },
        }
    });
    let others = others.into_iter().map(|name| {
        let present = Present::of(name, state, bus);
        let reason = match prune {
            true => present.lent().or_else(|| present.used(&users)),
            false => None,
        };
        Step {
            name: name.clone(),
            action: match (prune, &reason) {
                (false, _) => Action::Unlisted,
                (true, Some(_)) => Action::Leave,
                (true, None) => Action::Destroy,
            },
            differences: vec!["it is not in the layout".to_owned()],
            reason,
            parts: present.parts(state, bus),
            plans: Vec::new(),
            former: Vec::new(),
        }
    });
    listed.chain(others).collect()
}

/// A guest as it is.
pub(super) struct Present<'a> {
    /// What was recorded, with the device where it is still there.
    devices: Vec<(&'a PartName, &'a Record, Option<&'a Device>)>,
}

impl<'a> Present<'a> {
    pub(super) fn of(name: &GuestName, state: &'a State, bus: &'a Bus) -> Present<'a> {
        let name = PartName::from(name.clone());
        let of_guest = state.guests.range(&name..);
        let of_guest = of_guest.take_while(|(part, _)| name.covers(part));
        let device =
            |(part, record): (&'a PartName, &'a Record)| (part, record, recorded(bus, record));
        Present {
            devices: of_guest.map(device).collect(),
        }
    }

    pub(super) fn there(&self) -> impl Iterator<Item = &'a Device> + use<'_, 'a> {
        self.devices.iter().filter_map(|(_, _, device)| *device)
    }

    /// The use that somebody else makes of it on purpose.
    fn lent(&self) -> Option<String> {
        let lent = self
            .there()
            .find(|device| device.driver.is_some() && !device.is_page_less());
        lent.map(|device| format!("{} is {}", device.name, Mode::of(device)))
    }

    fn used(&self, users: impl Fn(&Device) -> Option<String>) -> Option<String> {
        self.there().find_map(|device| {
            let users = users(device)?;
            Some(format!("{} is in use: {users}", device.name))
        })
    }

    /// What is to be done, users apart, and why.
    fn verdict(&self, wanted: &Wanted) -> (Action, Vec<String>) {
        if self.devices.is_empty() {
            return (Action::Create, Vec::new());
        }
        let names = |names: Vec<&PartName>| {
            let names: Vec<String> = names.into_iter().map(ToString::to_string).collect();
            names.join(", ")
        };
        let mut parts: Vec<&Part> = wanted.parts.iter().collect();
        parts.sort_by(|one, other| one.name.cmp(&other.name));
        let now = names(self.devices.iter().map(|(name, ..)| *name).collect());
        let then = names(parts.iter().map(|part| &part.name).collect());
        if now != then {
            return (Action::Recreate, vec![format!("devices {now} -> {then}")]);
        }
        let mut shape = Vec::new();
        let mut chosen = Vec::new();
        for ((name, record, device), part) in self.devices.iter().zip(parts) {
            let Some(device) = device else {
                shape.push(format!(
                    "{} is gone or was changed by another program",
                    record.device.device
                ));
                continue;
            };
            let of = match name.node {
                Some(node) => format!(" of node {node}"),
                None => String::new(),
            };
            let mut differ = |what: &str, now: String, then: String| {
                if now != then {
                    shape.push(format!("{what}{of} {now} -> {then}"));
                }
            };
            differ("size", Size(device.size).to_string(), part.size.to_string());
            differ(
                "align",
                Size(device.align).to_string(),
                part.align.to_string(),
            );
            if let Some(node) = part.node {
                let now = device
                    .node
                    .map_or("none".to_owned(), |node| node.to_string());
                differ("node", now, node.to_string());
            }
            if let Some(region) = wanted.region {
                differ("region", device.region.to_string(), region.to_string());
            }
            let mut differ = |what: &str, now: String, then: String| {
                if now != then {
                    chosen.push(format!("{what}{of} {now} -> {then}"));
                }
            };
            let settings = effective(record, device);
            differ(
                "scrub",
                settings.scrub.to_string(),
                wanted.settings.scrub.to_string(),
            );
            if let Some(then) = wanted.settings.access {
                let now = settings.access;
                let now = now.map_or("none".to_owned(), |now| now.to_string());
                differ("owner", now, then.to_string());
            }
            if device.driver.is_none() {
                differ(
                    "driver",
                    "none".to_owned(),
                    crate::driver::Driver::NAME.to_owned(),
                );
            }
        }
        match (shape.is_empty(), chosen.is_empty()) {
            (true, true) => (Action::Keep, chosen),
            (true, false) => (Action::Change, chosen),
            (false, _) => {
                shape.extend(chosen);
                (Action::Recreate, shape)
            }
        }
    }

    /// What makes its devices as they are, if all of them are there.
    fn plans(&self, state: &State, bus: &Bus) -> Vec<Plan> {
        let parts = self.parts(state, bus).into_iter().zip(&self.devices);
        let plan =
            |((part, place), (_, record, device)): ((_, Option<Place>), &(_, &Record, _))| {
                let device: &Device = (*device)?;
                let region = bus.region(device.region)?;
                Some(Plan::again(part, region, place?, record.settings))
            };
        let plans: Option<Vec<Plan>> = parts.map(plan).collect();
        let all = |plans: &Vec<Plan>| plans.len() == self.devices.len();
        plans.filter(all).unwrap_or_default()
    }

    /// Its devices that are there.
    fn parts(&self, state: &State, bus: &Bus) -> Vec<(Part, Option<Place>)> {
        let part = |(name, record, device): &(&PartName, &Record, Option<&Device>)| {
            let device = (*device)?;
            let part = Part {
                name: (*name).clone(),
                size: Size(device.size),
                align: Align::from_bytes(device.align)?,
                node: device.node,
            };
            let region = bus.region(device.region)?;
            let place = extent_of(region, bus, state).map(|region| Place {
                size: device.size,
                align: device.align,
                region,
                ranges: record.ranges.clone(),
            });
            Some((part, place))
        };
        self.devices.iter().filter_map(part).collect()
    }
}

/// What holds for a device: what was chosen, or what is found where nothing was.
fn effective(record: &Record, device: &Device) -> Settings {
    let scrub = device.scrub.map(|scrub| scrub.policy);
    Settings {
        scrub: scrub.unwrap_or(record.settings.scrub),
        access: record.settings.access.or(device.access),
    }
}

/// The guests of the host as a layout would declare them, by where they are. A guest of which something is lost is
/// left out.
pub fn declare(state: &State, bus: &Bus) -> Vec<Wanted> {
    let nodes: BTreeSet<Option<u32>> = bus.regions.iter().map(|region| region.node).collect();
    let names: BTreeSet<&GuestName> = state.guests.keys().map(|part| &part.guest).collect();
    let guest = |name: &GuestName| {
        let present = Present::of(name, state, bus);
        let (_, record, device) = present.devices.first()?;
        let settings = effective(record, (*device)?);
        let mut parts: Vec<Part> = present
            .parts(state, bus)
            .into_iter()
            .map(|(part, _)| part)
            .collect();
        if parts.len() != present.devices.len() {
            return None;
        }
        // On a host of one node there is nothing to choose.
        if nodes.len() < 2 && parts.len() == 1 {
            parts.iter_mut().for_each(|part| part.node = None);
        }
        let first = record.ranges.first().map(|range| range.start);
        let wanted = Wanted {
            name: name.clone(),
            line: 0,
            parts,
            region: None,
            settings,
        };
        Some((first, wanted))
    };
    let mut guests: Vec<_> = names.into_iter().filter_map(guest).collect();
    guests.sort_by_key(|(first, _)| *first);
    guests.into_iter().map(|(_, guest)| guest).collect()
}

impl Step {
    /// Whether devices are made.
    pub fn is_made(&self) -> bool {
        matches!(self.action, Action::Create | Action::Recreate)
    }

    /// Whether the guest is unmade.
    pub fn is_unmade(&self) -> bool {
        matches!(self.action, Action::Destroy | Action::Recreate)
    }
}

/// The places to keep: of all that is declared.
pub fn placement(steps: &[Step]) -> Placement {
    let mut placement = Placement::default();
    let listed = steps
        .iter()
        .filter(|step| !matches!(step.action, Action::Unlisted | Action::Destroy));
    for (part, place) in listed.flat_map(|step| &step.parts) {
        if let Some(place) = place {
            placement.devices.insert(part.name.clone(), place.clone());
        }
    }
    placement
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::bus::{Range, Region};
    use crate::layout::file::{parse, text};
    use crate::report::tests::device;
    use crate::scrub::Policy;

    const GIB: u64 = 1 << 30;

    /// A region of 8 GiB with a guest's device of 2 GiB at its start.
    fn host(name: &str) -> (State, Bus) {
        let device = device();
        let settings = Settings {
            scrub: Policy::HandOut,
            access: device.access,
        };
        let record = Record {
            device: device.identity(),
            ranges: device.ranges.clone().unwrap(),
            settings,
        };
        let mut state = State::default();
        state.guests.insert(name.parse().unwrap(), record);
        let region = Region {
            id: 0,
            path: device.path.parent().unwrap().to_owned(),
            dynamic: true,
            node: Some(0),
            size: 8 * GIB,
            available: 6 * GIB,
            start: Some(4 * GIB),
        };
        let bus = Bus {
            regions: vec![region],
            devices: vec![device],
        };
        (state, bus)
    }

    fn wanted(text: &str) -> Vec<Wanted> {
        parse(Path::new("layout.toml"), text).unwrap()
    }

    const SAME: &str =
        "[[guest]]\nname = \"vm1\"\nsize = \"2G\"\nowner = \"0:54321\"\nmode = \"0660\"\n\
                        scrub = \"hand-out\"\n";

    fn compared(layout: &str, used: bool, prune: bool, (state, bus): &(State, Bus)) -> String {
        let users = |_: &Device| used.then(|| "1 open file".to_owned());
        let steps = compare(&wanted(layout), state, bus, prune, users);
        let step = |step: &Step| {
            let reason = step.reason.as_ref();
            let reason = reason.map_or(String::new(), |why| format!(" ({why})"));
            let differences = step.differences.join("; ");
            format!("{} {}: {differences}{reason}", step.action, step.name)
        };
        steps.iter().map(step).collect::<Vec<_>>().join(" | ")
    }

    #[test]
    fn what_is_to_be_done() {
        let host = host("vm1");
        let other = |from: &str, to: &str| {
            assert!(SAME.contains(from));
            SAME.replace(from, to)
        };
        for (layout, plan) in [
            (SAME.to_owned(), "keep vm1: "),
            (format!("{SAME}node = 0\nregion = 0"), "keep vm1: "),
            (
                other("hand-out", "never"),
                "change vm1: scrub hand-out -> never",
            ),
            (
                other("0660", "0600"),
                "change vm1: owner root:54321 0660 -> root:54321 0600",
            ),
            (other("2G", "4G"), "recreate vm1: size 2G -> 4G"),
            (
                format!("{SAME}align = \"2M\""),
                "recreate vm1: align 1G -> 2M",
            ),
            (format!("{SAME}node = 1"), "recreate vm1: node 0 -> 1"),
            (format!("{SAME}region = 1"), "recreate vm1: region 0 -> 1"),
            (
                format!("{SAME}node = [0, 1]"),
                "recreate vm1: devices vm1 -> vm1:0, vm1:1",
            ),
            (
                other("vm1", "vm0"),
                "create vm0:  | unlisted vm1: it is not in the layout",
            ),
        ] {
            assert_eq!(compared(&layout, false, false, &host), plan);
        }
        assert_eq!(
            compared("", false, true, &host),
            "destroy vm1: it is not in the layout"
        );
    }

    #[test]
    fn what_is_in_use_or_lent_is_left_alone() {
        let used = " (dax0.0 is in use: 1 open file)";
        let host_of_one = host("vm1");
        for (layout, prune, plan) in [
            (SAME.to_owned(), true, "keep vm1: ".to_owned()),
            (
                SAME.replace("2G", "4G"),
                false,
                format!("leave vm1: size 2G -> 4G{used}"),
            ),
            (
                SAME.replace("0660", "0600"),
                false,
                format!("leave vm1: owner root:54321 0660 -> root:54321 0600{used}"),
            ),
            (
                String::new(),
                true,
                format!("leave vm1: it is not in the layout{used}"),
            ),
            (
                String::new(),
                false,
                "unlisted vm1: it is not in the layout".to_owned(),
            ),
        ] {
            assert_eq!(compared(&layout, true, prune, &host_of_one), plan);
        }
        let (state, mut bus) = host("vm1");
        bus.devices[0].driver = None;
        let unbound = (state, bus);
        assert_eq!(
            compared(SAME, false, false, &unbound),
            "change vm1: driver none -> dax_dmem"
        );
        let (state, mut bus) = unbound;
        bus.devices[0].driver = Some("kmem".to_owned());
        assert_eq!(
            compared(SAME, false, false, &(state, bus)),
            "leave vm1:  (dax0.0 is system-ram)"
        );
    }

    #[test]
    fn a_device_that_somebody_took_is_made_anew() {
        let (state, mut bus) = host("vm1");
        bus.devices[0].inode += 1;
        let lost = (state, bus);
        assert_eq!(
            compared(SAME, true, false, &lost),
            "recreate vm1: dax0.0 is gone or was changed by another program"
        );
        assert_eq!(declare(&lost.0, &lost.1), []);
    }

    #[test]
    fn what_is_saved_is_what_is_there() {
        let one_node = host("vm1");
        let saved = text(&declare(&one_node.0, &one_node.1));
        assert!(!saved.contains("node"), "{saved}");
        assert_eq!(compared(&saved, false, false, &one_node), "keep vm1: ");
        // Where there are several nodes, the guest's is told.
        let (state, mut bus) = one_node;
        bus.regions.push(Region {
            id: 1,
            node: Some(1),
            ..bus.regions[0].clone()
        });
        assert!(text(&declare(&state, &bus)).contains("\nnode = 0\n"));
    }

    #[test]
    fn places_are_kept_of_what_is_declared() {
        let (state, bus) = host("vm1");
        let kept = |layout: &str| {
            placement(&compare(&wanted(layout), &state, &bus, false, |_| None)).devices
        };
        let place = Place {
            size: 2 * GIB,
            align: GIB,
            region: Range {
                start: 4 * GIB,
                len: 8 * GIB,
            },
            ranges: device().ranges.unwrap(),
        };
        let expected = BTreeMap::from([("vm1".parse().unwrap(), place)]);
        assert_eq!(kept(SAME), expected);
        assert_eq!(kept(""), BTreeMap::new());
    }
}
