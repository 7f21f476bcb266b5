// SPDX-License-Identifier: GPL-2.0

//! What daxdmem knows beyond sysfs: names, what was chosen for devices, where regions start, and the running operation.
//!
//! Kept in /run, since the devices too are gone after a reboot. The file is replaced as a whole, so a reader sees
//! one state or the next. Who changes anything holds the lock, from before it reads the
//! state until it exits; an operation found in the journal under the lock is therefore one whose program died.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{flock, FlockOperation};
use serde::{Deserialize, Serialize};

use crate::bus::{Device, Identity, Range};
use crate::error::{Error, Result};
use crate::file;
use crate::journal::{Group, Operation};
use crate::name::{DeviceName, PartName};
use crate::settings::Settings;

/// Version of the file's form. A tool that finds a later one leaves the file alone.
///
/// Version 1 knew one device for each guest: its files are files of version 2.
const VERSION: u32 = 2;

/// Everything that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

impl Default for State {
    fn default() -> Self {
        State {
            version: VERSION,
            guests: BTreeMap::new(),
            devices: BTreeMap::new(),
            regions: BTreeMap::new(),
            operation: None,
            group: None,
        }
    }
}

impl State {
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

/// The state on disk, under the lock.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    state: State,
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
        let _ = fs::remove_file(file::aside(&dir.join("state.json")));
        Ok(Store {
            state: read(dir)?,
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    /// The state as it is, for who only looks.
    pub fn peek(dir: &Path) -> Result<State> {
        read(dir)
    }

    /// The state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Changes the state, on disk first: when that fails nothing has changed.
    pub fn update(&mut self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut next = self.state.clone();
        change(&mut next);
        if next == self.state {
            return Ok(());
        }
        write(&self.dir, &next)?;
        self.state = next;
        Ok(())
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

fn read(dir: &Path) -> Result<State> {
    let path = dir.join("state.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
        Err(error) => return Err(failed("read", &path)(error)),
    };
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let bad = |error: serde_json::Error| Error::State {
        path: path.clone(),
        why: error.to_string(),
    };
    let Versioned { version } = serde_json::from_slice(&text).map_err(bad)?;
    if version == 0 || version > VERSION {
        let why = format!("it has version {version}, this daxdmem reads versions up to {VERSION}");
        return Err(Error::State { path, why });
    }
    let state: State = serde_json::from_slice(&text).map_err(bad)?;
    Ok(State {
        version: VERSION,
        ..state
    })
}

fn write(dir: &Path, state: &State) -> Result<()> {
    let path = dir.join("state.json");
    let steps = || {
        let mut text = serde_json::to_vec_pretty(state)?;
        text.push(b'\n');
        // It holds physical addresses, which sysfs too shows to root only.
        file::replace(&path, &text, 0o600)
    };
    steps().map_err(failed("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Access;
    use crate::host::Knob;
    use crate::journal::{
        Bind, ChangeMode, Create, CreateAll, Destroy, DestroyAll, Rename, Resize, Set, SetAll,
        Survey,
    };
    use crate::mode::Mode;
    use crate::scrub::Policy;

    fn name(text: &str) -> PartName {
        text.parse().unwrap()
    }

    fn identity() -> Identity {
        Identity {
            device: "dax0.1".parse().unwrap(),
            inode: u64::MAX,
            region: PathBuf::from("/sys/devices/platform/hmem.0"),
        }
    }

    fn range() -> Range {
        Range {
            start: 4 << 30,
            len: u64::MAX >> 1,
        }
    }

    /// A device that is no guest's.
    fn bare() -> Device {
        crate::report::tests::device()
    }

    fn settings() -> Settings {
        Settings {
            scrub: Policy::HandOut,
            access: Some(Access {
                uid: 1,
                gid: 2,
                mode: "0660".parse().unwrap(),
            }),
        }
    }

    fn operations() -> Vec<Operation> {
        let region = identity().region;
        let create = Create {
            name: name("vm1"),
            region: region.clone(),
            known: vec![1, 2],
            device: None,
            reused: None,
            align: 1 << 30,
            ranges: vec![range()],
            whole: Some(range()),
            settings: settings(),
        };
        vec![
            Operation::Survey(Survey {
                region,
                known: vec![],
            }),
            Operation::Create(Create {
                device: Some(identity()),
                reused: Some(2 << 20),
                ..create.clone()
            }),
            Operation::Create(create),
            Operation::Destroy(Destroy {
                name: name("vm1"),
                force: true,
            }),
            Operation::Bind(Bind {
                device: identity(),
                name: Some(name("vm1")),
                settings: settings(),
                before: Some(Access::ROOT),
            }),
            Operation::Set(Set {
                device: identity(),
                name: None,
                settings: Settings::default(),
            }),
            Operation::Rename(Rename {
                from: name("vm1").guest,
                to: name("vm2").guest,
            }),
            Operation::Resize(Resize {
                device: identity(),
                name: name("vm1"),
                from: vec![range()],
                to: vec![],
                mode: Mode::Unbound,
                settings: settings(),
            }),
            Operation::Mode(ChangeMode {
                device: identity(),
                from: Mode::Other("other".to_owned()),
                to: Mode::SystemRam,
                settings: settings(),
                host: vec![Knob {
                    path: PathBuf::from("/sys/bus/dax/drivers_autoprobe"),
                    value: "1".to_owned(),
                }],
            }),
        ]
    }

    fn groups() -> Vec<Group> {
        let guest = name("db1").guest;
        let set = Set {
            device: identity(),
            name: Some(name("db1:1")),
            settings: settings(),
        };
        vec![
            Group::Create(CreateAll {
                guest: guest.clone(),
                nodes: vec![0, 1],
            }),
            Group::Destroy(DestroyAll {
                guest: guest.clone(),
                force: true,
            }),
            Group::Set(SetAll {
                guest,
                sets: vec![set],
            }),
        ]
    }

    #[test]
    fn a_guest_of_several_devices() {
        let mut state = State::default();
        for text in ["db1:1", "db1-x", "db1:0", "db", "db2:7", "db10"] {
            let record = Record {
                device: identity(),
                ranges: Vec::new(),
                settings: Settings::NEW,
            };
            state.guests.insert(name(text), record);
        }
        let parts = |text: &str| {
            let parts = state
                .named(&name(text))
                .map_err(|error| error.to_string())?;
            Ok::<_, String>(
                parts
                    .iter()
                    .map(|(part, _)| part.to_string())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(parts("db1").unwrap(), ["db1:0", "db1:1"]);
        assert_eq!(parts("db1:1").unwrap(), ["db1:1"]);
        assert_eq!(parts("db10").unwrap(), ["db10"]);
        let error = parts("db1:2").unwrap_err();
        assert!(
            error.starts_with("no guest is called db1:2\nThere are: db, db1:0, db1:1, "),
            "{error}"
        );
    }

    #[test]
    fn nothing_there_is_an_empty_state() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("daxdmem");
        assert_eq!(Store::peek(&inner).unwrap(), State::default());
        assert!(!inner.exists(), "looking makes nothing");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let groups = groups().into_iter().map(Some).chain([None]).cycle();
        for (operation, group) in operations().into_iter().zip(groups) {
            let mut store = Store::lock(dir.path(), || panic!("nobody has the lock")).unwrap();
            store
                .update(|state| {
                    state.guests.insert(
                        name("vm2"),
                        Record {
                            device: identity(),
                            ranges: vec![range(), range()],
                            settings: settings(),
                        },
                    );
                    state.keep(None, &bare(), settings());
                    state.regions.insert(identity().region, range());
                    state.operation = Some(operation.clone());
                    state.group = group;
                })
                .unwrap();
            let written = store.state().clone();
            drop(store);
            let store = Store::try_lock(dir.path())
                .unwrap()
                .expect("the lock is free again");
            assert_eq!(*store.state(), written);
            assert_eq!(store.state().operation, Some(operation));
            assert_eq!(
                store.state().guest_of(identity().device),
                Some(&name("vm2"))
            );
        }
    }

    #[test]
    fn choices_are_kept_for_one_device() {
        let guest = Record {
            device: identity(),
            ranges: vec![range()],
            settings: Settings::NEW,
        };
        let mut state = State::of_guests(BTreeMap::from([(name("vm1"), guest)]));
        let (bare, vm1) = (bare(), name("vm1"));
        let mine = Device {
            name: identity().device,
            inode: identity().inode,
            path: identity().region.join("dax0.1"),
            ..bare.clone()
        };
        assert_eq!(state.settings(Some(&vm1), &identity()), Some(Settings::NEW));
        state.keep(Some(&vm1), &mine, settings());
        assert_eq!(state.settings(Some(&vm1), &identity()), Some(settings()));
        // A guest's choices are not those of its device under its own name, nor of another device.
        assert_eq!(state.settings(None, &identity()), None);
        assert_eq!(state.settings(Some(&vm1), &bare.identity()), None);
        state.keep(None, &bare, settings());
        assert_eq!(state.settings(None, &bare.identity()), Some(settings()));
        let namesake = Device { inode: 5, ..bare };
        assert_eq!(state.settings(None, &namesake.identity()), None);
    }

    #[test]
    fn a_state_without_choices_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"version": 1, "guests": {"vm1": {"device": {"device": "dax0.1", "inode": 18446744073709551615,
            "region": "/sys/devices/platform/hmem.0"}, "ranges": []}}, "regions": {}, "operation": null}"#;
        fs::write(dir.path().join("state.json"), text).unwrap();
        let state = Store::peek(dir.path()).unwrap();
        let vm1 = name("vm1");
        // Scrubbed, and the node is left as it is.
        assert_eq!(
            state.settings(Some(&vm1), &identity()),
            Some(Settings {
                scrub: Policy::Release,
                access: None
            })
        );
    }

    #[test]
    fn nobody_else_reads_or_locks() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("daxdmem");
        let mut store = Store::lock(&inner, || ()).unwrap();
        store
            .update(|state| _ = state.regions.insert(identity().region, range()))
            .unwrap();
        for (path, mode) in [("", 0o700), ("lock", 0o600), ("state.json", 0o600)] {
            let found = fs::metadata(inner.join(path)).unwrap().permissions().mode() & 0o7777;
            assert_eq!(found, mode, "{path}");
        }
    }

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::lock(dir.path(), || ()).unwrap();
        assert!(Store::try_lock(dir.path()).unwrap().is_none());
        let waited = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                Store::lock(dir.path(), || {
                    waited.wait();
                })
                .map(drop)
            });
            waited.wait();
            assert!(Store::try_lock(dir.path()).unwrap().is_none());
            drop(first);
            second.join().unwrap().unwrap();
        });
        assert!(Store::try_lock(dir.path()).unwrap().is_some());
    }

    #[test]
    fn a_write_that_fails_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::lock(dir.path(), || ()).unwrap();
        store
            .update(|state| _ = state.regions.insert(identity().region, range()))
            .unwrap();
        let before = (
            store.state().clone(),
            fs::read(dir.path().join("state.json")).unwrap(),
        );
        // A directory in the place of the file that is written aside.
        fs::create_dir(dir.path().join("state.json.new")).unwrap();
        let error = store.update(|state| state.regions.clear()).unwrap_err();
        assert!(error.to_string().starts_with("cannot write "), "{error}");
        assert_eq!(
            (
                store.state().clone(),
                fs::read(dir.path().join("state.json")).unwrap()
            ),
            before
        );
    }

    #[test]
    fn a_file_written_in_part_is_not_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::lock(dir.path(), || ()).unwrap();
        store
            .update(|state| _ = state.regions.insert(identity().region, range()))
            .unwrap();
        fs::write(dir.path().join("state.json.new"), b"{\"version\": 1, \"gue").unwrap();
        drop(store);
        let mut store = Store::lock(dir.path(), || ()).unwrap();
        assert!(!dir.path().join("state.json.new").exists());
        assert_eq!(store.state().regions.len(), 1);
        store.update(|state| state.regions.clear()).unwrap();
        assert_eq!(Store::peek(dir.path()).unwrap(), State::default());
    }

    #[test]
    fn files_it_does_not_understand_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        for (text, why) in [
            ("", "EOF while parsing"),
            ("[]", "invalid length"),
            ("{\"version\": 3, \"new\": 1}", "it has version 3, this daxdmem reads versions up to 2"),
            ("{\"version\": 0}", "it has version 0, "),
            ("{\"version\": 1}", "missing field `guests`"),
            ("{\"version\": 1, \"guests\": {\"../x\": {}}, \"regions\": {}, \"operation\": null}", "is no name for a guest"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Store::lock(dir.path(), || ()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{} cannot be used: ", path.display())), "{error}");
            assert!(error.contains(why), "{text}: {error}");
            assert!(error.contains("move it away"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
