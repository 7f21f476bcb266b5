// SPDX-License-Identifier: GPL-2.0

use super::*;
use crate::access::Access;
use crate::host::Knob;
use crate::journal::{
    Bind, ChangeMode, Create, CreateAll, Destroy, DestroyAll, Rename, Resize, Set, SetAll, Survey,
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
        newest: 2,
        device: None,
        reused: None,
        align: 1 << 30,
        ranges: vec![range()],
        whole: Some(range()),
        settings: settings(),
    };
    vec![
        Operation::Survey(Survey { region, newest: 0 }),
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
fn what_runs_is_written_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::lock(dir.path(), || ()).unwrap();
    let lasting = |store: &mut Store, name: &str| {
        let path = PathBuf::from(name);
        store
            .update(|state| _ = state.regions.insert(path, range()))
            .unwrap();
    };
    let text = |name: &str| fs::read_to_string(dir.path().join(name)).ok();
    lasting(&mut store, "/one");
    let before = text(STATE);
    for operation in operations() {
        store.begin(operation.clone()).unwrap();
        let seen = Store::peek(dir.path()).unwrap();
        assert_eq!(seen.operation, Some(operation));
        assert_eq!(seen, *store.state());
    }
    assert!(text(RUNNING).is_some());
    assert_eq!(text(STATE), before);
    store.end().unwrap();
    assert_eq!((text(RUNNING), text(STATE)), (None, before));
    assert!(store.is_idle());

    // Killed after the state is written, before the other file is removed: what that says is of the past.
    store.begin(operations().remove(0)).unwrap();
    let stale = text(RUNNING).unwrap();
    store.end().unwrap();
    lasting(&mut store, "/two");
    fs::write(dir.path().join(RUNNING), stale).unwrap();
    assert_eq!(Store::peek(dir.path()).unwrap().operation, None);
    drop(store);
    let store = Store::lock(dir.path(), || ()).unwrap();
    assert!(store.is_idle());
    assert_eq!(text(RUNNING), None);
}

#[test]
fn an_operation_in_the_file_of_old_can_be_ended() {
    let dir = tempfile::tempdir().unwrap();
    let operation = serde_json::to_string(&operations().remove(0)).unwrap();
    let text =
        format!(r#"{{"version": 2, "guests": {{}}, "regions": {{}}, "operation": {operation}}}"#);
    fs::write(dir.path().join(STATE), text).unwrap();
    let mut store = Store::lock(dir.path(), || ()).unwrap();
    assert!(!store.is_idle());
    store.end().unwrap();
    drop(store);
    assert!(Store::lock(dir.path(), || ()).unwrap().is_idle());
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
    assert!(Store::peek(dir.path()).unwrap().regions.is_empty());
}

#[test]
fn files_it_does_not_understand_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    for (text, why) in [
        ("", "EOF while parsing"),
        ("[]", "invalid length"),
        (
            "{\"version\": 4, \"new\": 1}",
            "it has version 4, this daxdmem reads versions up to 3",
        ),
        ("{\"version\": 0}", "it has version 0, "),
        ("{\"version\": 1}", "missing field `guests`"),
        (
            "{\"version\": 1, \"guests\": {\"../x\": {}}, \"regions\": {}, \"operation\": null}",
            "is no name for a guest",
        ),
    ] {
        fs::write(&path, text).unwrap();
        let error = Store::lock(dir.path(), || ()).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{} cannot be used: ", path.display())),
            "{error}"
        );
        assert!(error.contains(why), "{text}: {error}");
        assert!(error.contains("move it away"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}
