// SPDX-License-Identifier: GPL-2.0

//! `/dev/daxdmem/NAME`, the link from a guest's name to its device; `/dev/daxdmem/NAME:NODE` where it has several.
//!
//! The links are made from the state and put right by every run that has the lock. They are public: the state holds
//! physical addresses, which are root's alone.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::name::{DeviceName, PartName};
use crate::sysfs;

/// The directory of links.
#[derive(Debug, Clone)]
pub struct Links(PathBuf);

impl Default for Links {
    fn default() -> Self {
        Links(PathBuf::from("/dev/daxdmem"))
    }
}

impl Links {
    /// Path of a guest's link.
    pub fn path(&self, name: &PartName) -> PathBuf {
        self.0.join(name.to_string())
    }

    /// Makes the link, in place of one that leads elsewhere. Returns whether there was something to do.
    pub fn set(&self, name: &PartName, device: DeviceName) -> Result<bool> {
        let path = self.path(name);
        let target = Path::new("..").join(device.to_string());
        match fs::read_link(&path) {
            Ok(found) if found == target => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return Err(Error::InTheWay { path }),
        }
        let aside = self.aside();
        let steps = || {
            fs::create_dir_all(&self.0)?;
            // Whatever root's umask is: a QEMU that is not root has to get through.
            fs::set_permissions(&self.0, Permissions::from_mode(0o755))?;
            let _ = fs::remove_file(&aside);
            symlink(&target, &aside)?;
            fs::rename(&aside, &path)
        };
        steps().map_err(Error::kernel(format!(
            "cannot make the link {}",
            path.display()
        )))?;
        Ok(true)
    }

    /// Removes the link, and the directory with the last one. Returns whether there was something to do.
    pub fn remove(&self, name: &PartName) -> Result<bool> {
        let path = self.path(name);
        match fs::read_link(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(_) => return Err(Error::InTheWay { path }),
        }
        fs::remove_file(&path).map_err(Error::kernel(format!(
            "cannot remove the link {}",
            path.display()
        )))?;
        // Fails while there are others, which is as good.
        let _ = fs::remove_dir(&self.0);
        Ok(true)
    }

    /// Removes what a run that was killed in the middle of [`Links::set`] has left.
    pub fn tidy(&self) {
        if fs::remove_file(self.aside()).is_ok() {
            let _ = fs::remove_dir(&self.0);
        }
    }

    /// Where a link is made before it gets its name. Guests' names do not start with a dot.
    fn aside(&self) -> PathBuf {
        self.0.join(".new")
    }

    /// Whether a new guest's link can be made.
    pub fn check(&self, name: &PartName) -> Result<()> {
        let path = self.path(name);
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.is_symlink() => Err(Error::InTheWay { path }),
            _ => Ok(()),
        }
    }

    /// Number of links.
    pub fn count(&self) -> usize {
        let mut count = 0;
        // No directory, no links.
        let _ = sysfs::entries(&self.0, |_, _| count += 1);
        count
    }

    /// All names by device, for who may not read the state.
    pub fn names(&self) -> BTreeMap<DeviceName, PartName> {
        let links = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let entry = |link: fs::DirEntry| {
            let target = fs::read_link(link.path()).ok()?;
            let device = target.strip_prefix("..").ok()?.to_str()?.parse().ok()?;
            Some((device, link.file_name().to_str()?.parse().ok()?))
        };
        links.filter_map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let links = Links(dir.path().join("daxdmem"));
        let (vm1, vm2): (PartName, PartName) = ("vm1".parse().unwrap(), "vm2:1".parse().unwrap());
        let (first, second): (DeviceName, DeviceName) =
            ("dax0.0".parse().unwrap(), "dax0.1".parse().unwrap());

        assert!(!links.remove(&vm1).unwrap());
        assert!(links.names().is_empty());
        assert!(links.set(&vm1, first).unwrap());
        assert!(!links.set(&vm1, first).unwrap(), "it is there already");
        assert!(links.set(&vm1, second).unwrap(), "it leads elsewhere");
        assert_eq!(
            fs::read_link(links.path(&vm1)).unwrap(),
            Path::new("../dax0.1")
        );
        assert!(links.set(&vm2, first).unwrap());
        assert_eq!(
            links.names(),
            BTreeMap::from([(first, vm2.clone()), (second, vm1.clone())])
        );
        assert_eq!(links.count(), 2);
        assert!(links.remove(&vm1).unwrap());
        assert!(links.remove(&vm2).unwrap());
        assert!(!links.0.exists());
    }

    #[test]
    fn half_made_links_are_tidied_away() {
        let dir = tempfile::tempdir().unwrap();
        let links = Links(dir.path().join("daxdmem"));
        links.tidy();
        fs::create_dir(&links.0).unwrap();
        symlink("../dax0.0", links.aside()).unwrap();
        assert!(links.names().is_empty());
        links.tidy();
        assert!(!links.0.exists());
    }

    #[test]
    fn other_peoples_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let links = Links(dir.path().to_owned());
        let name: PartName = "vm1".parse().unwrap();
        fs::write(links.path(&name), "mine").unwrap();
        let device: DeviceName = "dax0.0".parse().unwrap();
        for result in [
            links.set(&name, device).map(drop),
            links.remove(&name).map(drop),
            links.check(&name),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("/vm1 is in the way: "), "{error}");
        }
        assert_eq!(fs::read_to_string(links.path(&name)).unwrap(), "mine");
    }
}
