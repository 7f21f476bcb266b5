// SPDX-License-Identifier: GPL-2.0

//! What daxdmem knows beyond sysfs: names, what was chosen for devices, where regions start, and the running operation.
//!
//! Kept in /run, since the devices too are gone after a reboot. A file is replaced as a whole, so a reader sees
//! one state or the next. The running operation alone is in a small file of its own, since it changes several times while
//! the rest, which grows with the number of guests, changes once; it counts only together with the state that it was
//! written for, so replacing that ends it. Who changes anything holds the lock, from before it reads the
//! state until it exits; an operation found in the journal under the lock is therefore one whose program died.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{flock, FlockOperation};
use serde::{Deserialize, Serialize, Serializer};

use crate::bus::{Device, Identity, Range};
use crate::error::{Error, Result};
use crate::file;
use crate::journal::{Group, Operation};
use crate::name::{DeviceName, PartName};
use crate::settings::Settings;

/// Version of the file's form. A tool that finds a later one leaves the file alone.
///
/// Version 1 knew one device for each guest, version 2 had no file for the running operation: their files are files of
/// version 3.
const VERSION: u32 = 3;

/// The file of all but the running operation.
const STATE: &str = "state.json";

/// The file of the running operation.
const RUNNING: &str = "running.json";

/// Everything that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// How often the file was written, so that what was written for one is not taken for another's.
    #[serde(default)]
    generation: u64,
    /// The guests' devices by their names.
    pub guests: BTreeMap<PartName, Record>,
    /// Devices that are no guest's and for which something was chosen.
    #[serde(default)]
    pub devices: BTreeMap<DeviceName, Record>,
    /// Where regions start and how large they are, by their directory in sysfs.
    pub regions: BTreeMap<PathBuf, Range>,
    /// The running operation.
    pub operation: Option<Operation>,
    /// What it is a part of, if a guest of several devices is changed.
    #[serde(default)]
    pub group: Option<Group>,
}

/// A device, and what was chosen for it.
///
/// From version 3 on its members have no names in the file, which makes reading and writing all of it twice as quick:
/// `[["daxX.Y", INODE, "REGION"], [[START, LENGTH], …], [SCRUB, [UID, GID, MODE]]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The device.
    pub device: Identity,
    /// Its ranges in order of offset.
    pub ranges: Vec<Range>,
    /// What was chosen.
    #[serde(default)]
    pub settings: Settings,
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Identity {
            device,
            inode,
            region,
        } = &self.device;
        let ranges = self.ranges.iter().map(|range| (range.start, range.len));
        let ranges: Vec<(u64, u64)> = ranges.collect();
        let Settings { scrub, access } = self.settings;
        let access = access.map(|access| (access.uid, access.gid, access.mode));
        ((device, inode, region), ranges, (scrub, access)).serialize(serializer)
    }
}

impl Record {
    /// Whether this is the device that was recorded, as it was: `ranges` are those it has, where they may be read.
    pub fn is(&self, device: &Identity, ranges: Option<&[Range]>) -> bool {
        self.device == *device && ranges.is_none_or(|ranges| *ranges == self.ranges)
    }
}

impl Default for State {
    fn default() -> Self {
        State {
            version: VERSION,
            generation: 0,
            guests: BTreeMap::new(),
            devices: BTreeMap::new(),
            regions: BTreeMap::new(),
            operation: None,
            group: None,
        }
    }
}

impl State {
    /// What outlasts the running operation.
    fn lasting(&self) -> impl PartialEq + use<'_> {
        (&self.guests, &self.devices, &self.regions)
    }

    /// A state of these guests, for who has them from elsewhere than the file.
    pub fn of_guests(guests: BTreeMap<PartName, Record>) -> Self {
        State {
            guests,
            ..State::default()
        }
    }

    /// The name of a guest's device. Compares the kernel's name only: check the identity where it matters.
    pub fn guest_of(&self, device: DeviceName) -> Option<&PartName> {
        self.guests
            .iter()
            .find(|(_, guest)| guest.device.device == device)
            .map(|(name, _)| name)
    }

    /// What was chosen for a guest's device, or for one that is no guest's.
    pub fn settings(&self, name: Option<&PartName>, device: &Identity) -> Option<Settings> {
        let record = match name {
            Some(name) => self.guests.get(name),
            None => self.devices.get(&device.device),
        };
        record
            .filter(|record| record.device == *device)
            .map(|record| record.settings)
    }

    /// Keeps what was chosen for a guest's device, or for one that is no guest's.
    pub fn keep(&mut self, name: Option<&PartName>, device: &Device, settings: Settings) {
        let record = match name {
            Some(name) => self.guests.get_mut(name),
            None => {
                let record = Record {
                    device: device.identity(),
                    ranges: device.ranges.clone().unwrap_or_default(),
                    settings,
                };
                self.devices.insert(device.name, record);
                None
            }
        };
        if let Some(record) = record {
            record.settings = settings;
        }
    }

    /// The guests' devices that a name stands for, by node.
    pub fn parts<'s>(
        &'s self,
        name: &'s PartName,
    ) -> impl Iterator<Item = (&'s PartName, &'s Record)> {
        // The first of all names that it covers is itself.
        let from = self.guests.range(name..);
        from.take_while(|(part, _)| name.covers(part))
    }

    /// As [`State::parts`]; an error when there are none.
    pub fn named(&self, name: &PartName) -> Result<Vec<(PartName, Record)>> {
        let parts: Vec<_> = self
            .parts(name)
            .map(|(name, guest)| (name.clone(), guest.clone()))
            .collect();
        match parts.is_empty() {
            false => Ok(parts),
            true => {
                let names: Vec<String> = self.guests.keys().map(ToString::to_string).collect();
                let known = match names.is_empty() {
                    true => "There are no guests yet: `daxdmem create` makes one".to_owned(),
                    false => format!("There are: {}", names.join(", ")),
                };
                Err(Error::UnknownName {
                    name: name.clone(),
                    known,
                })
            }
        }
    }
}

/// What is running, as it is written by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Running {
    /// Of the state that this is part of.
    generation: u64,
    operation: Option<Operation>,
    group: Option<Group>,
}

impl Running {
    fn of(state: &State) -> Running {
        Running {
            generation: state.generation,
            operation: state.operation.clone(),
            group: state.group.clone(),
        }
    }

    /// Makes it the state's, if it is that state's.
    fn put_in(self, state: &mut State) {
        if self.generation == state.generation {
            state.operation = self.operation;
            state.group = self.group;
        }
    }
}

/// The state on disk, under the lock.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    state: State,
    /// What the state's own file says is running.
    written: Running,
    /// Held until the value goes; the kernel drops it with the process, however that ends.
    _lock: File,
}

impl Store {
    /// Where the state is kept.
    pub const DIR: &'static str = "/run/daxdmem";

    /// Takes the lock, waiting for a running daxdmem to end (`on_wait` is called then), and reads the state.
    pub fn lock(dir: &Path, on_wait: impl FnOnce()) -> Result<Store> {
        let lock = open_lock(dir)?;
        if !try_lock(&lock, dir)? {
            on_wait();
            flock(&lock, FlockOperation::LockExclusive)
                .map_err(|errno| failed("lock", &dir.join("lock"))(errno.into()))?;
        }
        Store::under(lock, dir)
    }

    /// Takes the lock and reads the state, unless a running daxdmem has it.
    pub fn try_lock(dir: &Path) -> Result<Option<Store>> {
        let lock = open_lock(dir)?;
        if !try_lock(&lock, dir)? {
            return Ok(None);
        }
        Store::under(lock, dir).map(Some)
    }

    fn under(lock: File, dir: &Path) -> Result<Store> {
        // What a run that was killed while writing has left.
        for name in [STATE, RUNNING] {
            let _ = fs::remove_file(file::aside(&dir.join(name)));
        }
        let (mut state, running) = read(dir)?;
        let written = Running::of(&state);
        match running {
            Some(running) if running.generation == state.generation => running.put_in(&mut state),
            Some(_) => remove(dir)?,
            None => {}
        }
        Ok(Store {
            state,
            written,
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    /// The state as it is, for who only looks.
    pub fn peek(dir: &Path) -> Result<State> {
        let (mut state, running) = read(dir)?;
        if let Some(running) = running {
            running.put_in(&mut state);
        }
        Ok(state)
    }

    /// The state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether nothing is running.
    pub fn is_idle(&self) -> bool {
        self.state.operation.is_none() && self.state.group.is_none()
    }

    /// Writes down what is begun, on disk first.
    pub fn begin(&mut self, operation: Operation) -> Result<()> {
        let running = Running {
            operation: Some(operation),
            ..Running::of(&self.state)
        };
        self.write_running(&running)?;
        running.put_in(&mut self.state);
        Ok(())
    }

    /// Writes down that it is over, where nothing that lasts has changed.
    pub fn end(&mut self) -> Result<()> {
        let over = Running {
            operation: None,
            ..Running::of(&self.state)
        };
        self.write_running(&over)?;
        over.put_in(&mut self.state);
        Ok(())
    }

    /// Changes what lasts, and ends with it what is running. When that fails nothing has changed.
    ///
    /// As [`Store::update`], but without a copy of all that it keeps.
    pub fn complete(&mut self, change: impl FnOnce(&mut State)) -> Result<()> {
        change(&mut self.state);
        if let Err(error) = self.replace() {
            self.state = Store::peek(&self.dir)?;
            return Err(error);
        }
        Ok(())
    }

    /// Writes the state as the next one.
    fn replace(&mut self) -> Result<()> {
        self.state.generation += 1;
        write(&self.dir, STATE, &self.state)?;
        self.written = Running::of(&self.state);
        // It is of another state now, and counts no more whether it is there or not.
        let _ = remove(&self.dir);
        Ok(())
    }

    /// Changes the state, on disk first: when that fails nothing has changed.
    pub fn update(&mut self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut next = self.state.clone();
        change(&mut next);
        let running = Running::of(&next);
        if next.lasting() != self.state.lasting() {
            let before = std::mem::replace(&mut self.state, next);
            if let Err(error) = self.replace() {
                self.state = before;
                return Err(error);
            }
            return Ok(());
        }
        self.write_running(&running)?;
        self.state = next;
        Ok(())
    }

    /// Has the files say that this is running.
    fn write_running(&self, running: &Running) -> Result<()> {
        if *running == Running::of(&self.state) {
            Ok(())
        } else if *running == self.written {
            remove(&self.dir)
        } else {
            write(&self.dir, RUNNING, running)
        }
    }
}

/// Opens the lock's file, which is root's alone as everything here: to take a lock it is enough to be able to read.
fn open_lock(dir: &Path) -> Result<File> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.map_err(failed("create", dir))?;
    let path = dir.join("lock");
    let mut options = fs::OpenOptions::new();
    let file = options
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path);
    file.map_err(failed("open", &path))
}

fn try_lock(lock: &File, dir: &Path) -> Result<bool> {
    match flock(lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(failed("lock", &dir.join("lock"))(errno.into())),
    }
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    Error::kernel(format!("cannot {doing} {}", path.display()))
}

/// The state as its file has it, and what is running as the other file has it.
fn read(dir: &Path) -> Result<(State, Option<Running>)> {
    let bad = |name: &str| {
        let path = dir.join(name);
        |why| Error::State { path, why }
    };
    let running = text(dir, RUNNING)?.map(|text| serde_json::from_slice(&text));
    let running = running.transpose().map_err(|error| error.to_string());
    let running = running.map_err(bad(RUNNING))?;
    let state = text(dir, STATE)?.map(|text| understand(&text));
    let state = state.transpose().map_err(bad(STATE))?;
    Ok((state.unwrap_or_default(), running))
}

fn text(dir: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let path = dir.join(name);
    match fs::read(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", &path)(error)),
    }
}

fn understand(text: &[u8]) -> Result<State, String> {
    let parsed = serde_json::from_slice::<State>(text);
    // A later version may have any form, so that it is one explains more than what is wrong with the form.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let version = match &parsed {
        Ok(state) => Ok(state.version),
        Err(_) => serde_json::from_slice(text).map(|Versioned { version }| version),
    };
    match version.map_err(|error| error.to_string())? {
        1..=VERSION => {}
        version => {
            return Err(format!(
                "it has version {version}, this daxdmem reads versions up to {VERSION}"
            ))
        }
    }
    let state = parsed.map_err(|error| error.to_string())?;
    Ok(State {
        version: VERSION,
        ..state
    })
}

/// Says that nothing is running but what the state's own file says.
fn remove(dir: &Path) -> Result<()> {
    let path = dir.join(RUNNING);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", &path)(error))
        }
        _ => Ok(()),
    }
}

fn write(dir: &Path, name: &str, what: &impl Serialize) -> Result<()> {
    let path = dir.join(name);
    let steps = || {
        let mut text = serde_json::to_vec(what)?;
        text.push(b'\n');
        // It holds physical addresses, which sysfs too shows to root only.
        file::replace(&path, &text, 0o600)
    };
    steps().map_err(failed("write", &path))
}

#[cfg(test)]
mod tests;
