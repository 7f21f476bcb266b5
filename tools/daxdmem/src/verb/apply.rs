// SPDX-License-Identifier: GPL-2.0

//! `daxdmem apply`: brings the host to a layout.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::bind::bind;
use super::create::report;
use super::destroy::destroy_all;
use super::set::set_all;
use super::{begin_giving, bus, find, need_driver, warn};
use crate::bus::{Bus, Identity};
use crate::cli::layout::ApplyArgs;
use crate::cli::SettingsArgs;
use crate::error::{Error, Result};
use crate::kexec;
use crate::layout::place::place;
use crate::layout::placement::Placement;
use crate::layout::plan::{compare, placement, Action, Step};
use crate::layout::{file, show, LayoutError, Wanted, FILE};
use crate::link::Links;
use crate::making::{make_all, Plan};
use crate::name::{GuestName, PartName, Target};
use crate::settings::Settings;
use crate::store::Store;
use crate::terminal::{answer, error, note};
use crate::users::Users;
use crate::wait;

/// How long the regions may take to appear at boot.
const BOOT: Duration = Duration::from_secs(60);

/// Runs it.
pub fn run(args: &ApplyArgs, links: &Links) -> Result<()> {
    let path = args.file.clone().unwrap_or_else(|| PathBuf::from(FILE));
    let wanted = file::read(&path)?;
    let kept_file = Path::new(Placement::FILE);
    if args.boot {
        await_regions(&wanted, &Placement::read(kept_file).unwrap_or_default())?;
    }
    let mut store = begin_giving("apply", links)?;
    let kept = Placement::read(kept_file).unwrap_or_else(|error| {
        note(&error.to_string());
        Placement::default()
    });
    let now = bus()?;
    let users = |device: &_| Users::of(device).map(|users| users.to_string());
    let mut steps = compare(&wanted, store.state(), &now, args.prune, users);
    let scene = (&mut store, links, &now);
    place(&mut steps, &wanted, &kept, scene, &path, args.boot)?;
    if args.json {
        let text = show::json(&path, &steps)
            .map_err(|error| Error::kernel("cannot write JSON")(error.into()))?;
        return answer(&format!("{text}\n"));
    }
    answer(&show::text(&steps))?;
    if args.dry_run {
        return Ok(());
    }
    if let Some(record) = kexec::take(&path) {
        kexec::seal(&mut steps, &record);
    }
    let works = |step: &Step| step.is_made() || step.action == Action::Change;
    if steps.iter().any(|step| works(step) || step.is_unmade()) {
        kexec::revoke()?;
    }
    if steps.iter().any(works) {
        need_driver(&store)?;
    }
    // First, so that an apply that is cut short by the end of the host is done the same way after it.
    placement(&steps).write(&kept, kept_file)?;

    let all = steps.len();
    let mut run = Run {
        path: &path,
        failed: BTreeSet::new(),
        left: false,
        bound: Vec::new(),
    };
    run.steps(&mut store, links, &wanted, steps);
    drop(store);
    if !args.wait.no_wait && !args.boot {
        for (name, device) in &run.bound {
            wait::for_device(&name.to_string(), device)?;
        }
    }
    run.end(all)
}

/// Waits until there are the regions that the layout needs, as far as that can be told.
fn await_regions(wanted: &[Wanted], kept: &Placement) -> Result<()> {
    let there = |now: &Bus| {
        let dynamic = || now.regions.iter().filter(|region| region.dynamic);
        let mut parts = wanted.iter().flat_map(|guest| {
            let parts = guest.parts.iter();
            parts.map(|part| (part, guest.region))
        });
        parts.all(|(part, id)| {
            let place = kept.of(part);
            dynamic().any(|region| {
                id.is_none_or(|id| region.id == id)
                    && part.node.is_none_or(|node| region.node == Some(node))
                    && place.is_none_or(|place| {
                        region.size == place.region.len
                            && region.start.is_none_or(|start| start == place.region.start)
                    })
            })
        })
    };
    let began = Instant::now();
    while !there(&bus()?) {
        if began.elapsed() > BOOT {
            let seconds = BOOT.as_secs();
            note(&format!(
                "a region that the layout needs did not appear in {seconds} s"
            ));
            break;
        }
        sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// How it went.
struct Run<'a> {
    path: &'a Path,
    failed: BTreeSet<GuestName>,
    /// Whether something is left behind.
    left: bool,
    bound: Vec<(PartName, Identity)>,
}

impl Run<'_> {
    /// Does all steps. What fails does not keep others from being done.
    fn steps(&mut self, store: &mut Store, links: &Links, wanted: &[Wanted], steps: Vec<Step>) {
        for step in steps.iter().filter(|step| step.is_unmade()) {
            let name = PartName::from(step.name.clone());
            let result = destroy_all(store, links, &name, false);
            self.took(result, &step.name, wanted);
        }
        for step in steps {
            if self.failed.contains(&step.name) {
                continue;
            }
            let guest = wanted.iter().find(|guest| guest.name == step.name);
            let unmade = step.is_unmade();
            let (name, former) = (step.name, step.former);
            let result = match (step.action, guest) {
                (Action::Create | Action::Recreate, Some(guest)) => {
                    let made = self.make(store, links, step.plans);
                    made.map(|()| warn(&guest.name, &guest.settings))
                }
                (Action::Change, Some(guest)) => self.change(store, links, guest),
                (Action::Leave, _) => {
                    self.failed.insert(name.clone());
                    Ok(())
                }
                _ => Ok(()),
            };
            let gone = unmade && result.is_err();
            self.took(result, &name, wanted);
            if gone {
                self.restore(store, links, &name, former);
            }
        }
    }

    fn took(&mut self, result: Result<()>, name: &GuestName, wanted: &[Wanted]) {
        let Err(why) = result else {
            return;
        };
        self.left |= why.leaves_something();
        self.failed.insert(name.clone());
        let guest = wanted.iter().find(|guest| guest.name == *name);
        error(&match guest {
            None => why,
            Some(guest) => Error::from(LayoutError::Guest {
                path: self.path.to_owned(),
                line: guest.line,
                name: name.clone(),
                why: Box::new(why),
            }),
        });
    }

    /// Makes what a guest had before it was unmade.
    fn restore(&mut self, store: &mut Store, links: &Links, name: &GuestName, former: Vec<Plan>) {
        let chosen = former
            .iter()
            .map(|plan| (plan.part.name.clone(), plan.settings));
        let chosen: Vec<(PartName, Settings)> = chosen.collect();
        let remade = match former.is_empty() {
            true => Err(None),
            false => self.make(store, links, former).map_err(Some),
        };
        match remade {
            Ok(()) => {
                note(&format!(
                    "{name} has again what it had, without its contents"
                ));
                for (part, settings) in &chosen {
                    warn(part, settings);
                }
            }
            Err(why) => {
                self.left = true;
                let why = why.map_or(String::new(), |why| format!(": {why}"));
                note(&format!(
                    "{name} has no device now: what it had is unmade and could not be made again{why}"
                ));
            }
        }
    }

    fn make(&mut self, store: &mut Store, links: &Links, plans: Vec<Plan>) -> Result<()> {
        for made in make_all(store, links, plans)? {
            report(&made, links);
            self.bound.push((made.plan.part.name, made.device));
        }
        Ok(())
    }

    fn change(&mut self, store: &mut Store, links: &Links, guest: &Wanted) -> Result<()> {
        let target = Target::Guest(guest.name.clone().into());
        let mut changes = Vec::new();
        for (device, name) in find(&target, store.state())? {
            let settings = store.state().settings(name.as_ref(), &device.identity());
            if settings != Some(guest.settings) {
                changes.push((device, name, guest.settings));
            }
        }
        set_all(store, links, &changes)?;
        let unbound = find(&target, store.state())?;
        for (device, name) in unbound.iter().filter(|(device, _)| device.driver.is_none()) {
            bind(store, links, &SettingsArgs::default(), device, name)?;
            self.bound
                .extend(name.clone().map(|name| (name, device.identity())));
        }
        Ok(())
    }

    fn end(self, all: usize) -> Result<()> {
        if self.failed.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = self.failed.iter().map(ToString::to_string).collect();
        Err(LayoutError::NotReached {
            path: self.path.to_owned(),
            count: names.len(),
            all,
            names: names.join(", "),
            left: self.left,
        }
        .into())
    }
}
