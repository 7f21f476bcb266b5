// SPDX-License-Identifier: GPL-2.0

//! Who may open a device: owner, group and mode of its node `/dev/daxX.Y`.
//!
//! The kernel makes the node with the device, for root alone, and it stays as it is while the device is bound or not.
//! Device 0 of a region is never deleted, so its node is put back when a guest goes.

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{lchown, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::str::FromStr;

use nix::unistd::{Gid, Group, Uid, User};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sysfs;

/// Owner, group and mode of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permissions.
    pub mode: Mode,
}

/// Permissions of a node: reading and writing, for owner, group and others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mode(u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode & !0o666 == 0 => Ok(Mode(mode)),
            _ => Err(format!(
                "'{text}' is no mode for a device: write octal digits with read (4) and write (2) only, like 0660"
            )),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// An owner as on the command line: `USER`, `USER:GROUP` or `:GROUP`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    user: Option<String>,
    group: Option<String>,
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        if group == Some("") || (user.is_empty() && group.is_none()) {
            return Err(format!(
                "'{text}' is no owner: write USER, USER:GROUP or :GROUP, as names or numbers"
            ));
        }
        Ok(Owner {
            user: (!user.is_empty()).then(|| user.to_owned()),
            group: group.map(str::to_owned),
        })
    }
}

impl Owner {
    /// User and group id, as far as they are named. A name goes before a number, as with chown.
    pub fn resolve(&self) -> Result<(Option<u32>, Option<u32>)> {
        let user = self.user.as_deref().map(|name| {
            let found = User::from_name(name);
            let id = found.map(|user| user.map(|user| user.uid.as_raw()));
            id_of("user", name, id)
        });
        let group = self.group.as_deref().map(|name| {
            let found = Group::from_name(name);
            let id = found.map(|group| group.map(|group| group.gid.as_raw()));
            id_of("group", name, id)
        });
        Ok((user.transpose()?, group.transpose()?))
    }
}

fn id_of(kind: &'static str, name: &str, found: nix::Result<Option<u32>>) -> Result<u32> {
    let found = found.map_err(|errno| {
        Error::kernel(format!("cannot look up the {kind} {name}"))(errno.into())
    })?;
    // The largest number is no id, but chown(2)'s way to say "leave it".
    let number = || name.parse().ok().filter(|id| *id != u32::MAX);
    found.or_else(number).ok_or_else(|| Error::UnknownOwner {
        kind,
        name: name.to_owned(),
    })
}

impl Access {
    /// Root's alone, as the kernel makes the node.
    pub const ROOT: Access = Access {
        uid: 0,
        gid: 0,
        mode: Mode(0o600),
    };

    /// Of the node at `path`, which has to be the device's of that number (`MAJOR:MINOR`).
    pub fn of(path: &Path, number: &str) -> io::Result<Access> {
        let found = fs::symlink_metadata(path)?;
        if !is_node(&found, number) {
            return Err(io::Error::other(format!(
                "it is not the device of number {number}"
            )));
        }
        Ok(Access::from(&found))
    }

    /// Makes it the node's. Returns whether there was something to do.
    pub fn set(self, path: &Path, number: &str) -> Result<bool> {
        let steps = || {
            let now = Access::of(path, number)?;
            if now == self {
                return Ok(false);
            }
            if (now.uid, now.gid) != (self.uid, self.gid) {
                // Open to nobody in between: the old mode may be too much for the new owner.
                fs::set_permissions(path, Permissions::from_mode(0o000))?;
                lchown(path, Some(self.uid), Some(self.gid))?;
            }
            fs::set_permissions(path, Permissions::from_mode(self.mode.0))?;
            match Access::of(path, number)? {
                now if now == self => Ok(true),
                now => Err(io::Error::other(format!(
                    "another program made it {now} at the same moment"
                ))),
            }
        };
        steps().map_err(Error::kernel(format!(
            "cannot make {} {self}",
            path.display()
        )))
    }

    /// Whether everybody may read or write.
    pub fn is_open_to_all(self) -> bool {
        self.mode.0 & 0o006 != 0
    }

    /// The owner's name; the number where there is none.
    pub fn user(self) -> String {
        let found = User::from_uid(Uid::from_raw(self.uid)).ok().flatten();
        found.map_or_else(|| self.uid.to_string(), |user| user.name)
    }

    /// The group's name; the number where there is none.
    pub fn group(self) -> String {
        let found = Group::from_gid(Gid::from_raw(self.gid)).ok().flatten();
        found.map_or_else(|| self.gid.to_string(), |group| group.name)
    }
}

impl From<&fs::Metadata> for Access {
    fn from(found: &fs::Metadata) -> Self {
        Access {
            uid: found.uid(),
            gid: found.gid(),
            mode: Mode(found.mode() & 0o7777),
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} {}", self.user(), self.group(), self.mode)
    }
}

/// Whether this is a node of the character device of that number, `MAJOR:MINOR`.
pub fn is_node(found: &fs::Metadata, number: &str) -> bool {
    let rdev = found.rdev();
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    found.file_type().is_char_device() && format!("{major}:{minor}") == number
}

/// The number of the device with that directory in sysfs.
pub fn number(device: &Path) -> Option<String> {
    sysfs::text(&device.join("dev"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_modes_as_written() {
        let owner = |text: &str| {
            let owner: Owner = text.parse().unwrap();
            (owner.user, owner.group)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(owner("qemu"), (some("qemu"), None));
        assert_eq!(owner("qemu:kvm"), (some("qemu"), some("kvm")));
        assert_eq!(owner(":kvm"), (None, some("kvm")));
        for text in ["", ":", "qemu:"] {
            let error = text.parse::<Owner>().unwrap_err();
            assert!(error.contains("is no owner"), "{text}: {error}");
        }
        for (text, mode) in [("0660", "0660"), ("600", "0600"), ("0", "0000")] {
            assert_eq!(text.parse::<Mode>().unwrap().to_string(), mode);
        }
        for text in ["", "0680", "rw", "4600", "0700", "-1", "66666"] {
            let error = text.parse::<Mode>().unwrap_err();
            assert!(error.contains("is no mode"), "{text}: {error}");
        }
    }

    #[test]
    fn names_and_numbers_become_ids() {
        let ids = |text: &str| text.parse::<Owner>().unwrap().resolve();
        assert_eq!(ids("root:root").unwrap(), (Some(0), Some(0)));
        assert_eq!(ids("54321:12345").unwrap(), (Some(54321), Some(12345)));
        assert_eq!(ids(":root").unwrap(), (None, Some(0)));
        for (text, why) in [
            ("no-such-user", "there is no user called no-such-user"),
            (
                "root:no-such-group",
                "there is no group called no-such-group",
            ),
            ("4294967295", "there is no user called 4294967295"),
            ("-1", "there is no user called -1"),
        ] {
            let error = ids(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn access_is_told_by_name() {
        assert_eq!(Access::ROOT.to_string(), "root:root 0600");
        assert!(!Access::ROOT.is_open_to_all());
        let mode = |text: &str| Access {
            mode: text.parse().unwrap(),
            ..Access::ROOT
        };
        assert!(!mode("0660").is_open_to_all());
        assert!(mode("0664").is_open_to_all() && mode("0602").is_open_to_all());
    }

    #[test]
    fn other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dax0.0");
        fs::write(&path, "mine").unwrap();
        let before = fs::metadata(&path).unwrap().permissions();
        let error = Access::ROOT.set(&path, "1:3").unwrap_err().to_string();
        assert!(error.contains("not the device of number 1:3"), "{error}");
        // A link to a device is no node of it.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert!(Access::of(Path::new("/dev/null"), "1:3").is_ok());
        assert!(Access::of(&link, "1:3").is_err());
        assert!(Access::of(Path::new("/dev/null"), "1:5").is_err());
        assert_eq!(fs::metadata(&path).unwrap().permissions(), before);
    }
}
