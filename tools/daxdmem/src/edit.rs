// SPDX-License-Identifier: GPL-2.0

//! Changes of files that are not daxdmem's alone: shown as a difference first, and made all at once.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{chown, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use similar::TextDiff;

use crate::file::{aside, sync_parent};

/// A file that is to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The file.
    pub path: PathBuf,
    /// What it holds; `None`: there is none.
    pub old: Option<String>,
    /// What it is to hold; `None`: none is to be there.
    pub new: Option<String>,
}

impl Edit {
    /// A change of the file as it is now.
    pub fn of(
        path: &Path,
        change: impl FnOnce(Option<&str>) -> Option<String>,
    ) -> io::Result<Edit> {
        let old = match fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Edit {
            path: path.to_owned(),
            new: change(old.as_deref()),
            old,
        })
    }

    /// The change back.
    pub fn reverse(&self) -> Edit {
        Edit {
            path: self.path.clone(),
            old: self.new.clone(),
            new: self.old.clone(),
        }
    }

    /// Whether there is anything to do.
    pub fn is_needed(&self) -> bool {
        self.old != self.new
    }

    /// The difference, in the form that patch understands.
    pub fn diff(&self) -> String {
        let name = |text: &Option<String>| match text {
            Some(_) => self.path.display().to_string(),
            None => "/dev/null".to_owned(),
        };
        let (old, new) = (&self.old, &self.new);
        let diff = TextDiff::from_lines(
            old.as_deref().unwrap_or_default(),
            new.as_deref().unwrap_or_default(),
        );
        let mut diff = diff.unified_diff();
        diff.header(&name(old), &name(new)).to_string()
    }

    /// Makes it. A reader sees the old file or the new one; owner, group and mode are those of the old.
    pub fn apply(&self) -> io::Result<()> {
        let Some(text) = &self.new else {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        };
        // Through a link, to the file that is meant.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let aside = aside(&path);
        let steps = || {
            // What a run that was killed has left may have another mode.
            let _ = fs::remove_file(&aside);
            let found = fs::metadata(&path).ok();
            let mode = if found.is_some() { 0o600 } else { 0o644 };
            let mut options = OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&aside)?;
            file.write_all(text.as_bytes())?;
            if let Some(found) = found {
                chown(&aside, Some(found.uid()), Some(found.gid()))?;
                file.set_permissions(found.permissions())?;
            }
            file.sync_all()?;
            fs::rename(&aside, &path)?;
            sync_parent(&path)
        };
        steps().inspect_err(|_| {
            let _ = fs::remove_file(&aside);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn differences_are_shown() {
        let edit = Edit {
            path: PathBuf::from("/etc/x.conf"),
            old: Some("a\nb\nc\n".to_owned()),
            new: Some("a\nx\nc\n".to_owned()),
        };
        assert_eq!(
            edit.diff(),
            "--- /etc/x.conf\n+++ /etc/x.conf\n@@ -1,3 +1,3 @@\n a\n-b\n+x\n c\n"
        );
        let gone = Edit { new: None, ..edit };
        assert_eq!(
            gone.diff(),
            "--- /etc/x.conf\n+++ /dev/null\n@@ -1,3 +0,0 @@\n-a\n-b\n-c\n"
        );
    }

    #[test]
    fn a_file_is_made_changed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/x.conf");
        let set = |text: Option<&str>| {
            let edit = Edit::of(&path, |_| text.map(str::to_owned)).unwrap();
            edit.apply().unwrap();
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), text);
        };
        set(Some("one\n"));
        let mode = || fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode(), 0o644);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        // Left by a run that was killed.
        fs::write(dir.path().join("new/x.conf.new"), "half").unwrap();
        set(Some("two\n"));
        assert_eq!(mode(), 0o600);
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1);
        set(None);
        set(None);
    }

    #[test]
    fn a_link_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "one\n").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        let edit = Edit::of(&link, |_| Some("two\n".to_owned())).unwrap();
        edit.apply().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "two\n");
    }
}
