// SPDX-License-Identifier: GPL-2.0

//! Where the boot loader finds the parameters.
//!
//! - GRUB: a file of daxdmem's own in /etc/default/grub.d, from which update-grub makes grub.cfg. That file is a shell
//!   script, and grub.cfg is read by GRUB's own shell: `$` is escaped for both.
//! - systemd-boot, and unified kernel images: the pairs are added to /etc/kernel/cmdline, which kernel-install copies into
//!   each kernel's boot entry as it is. Nothing on that way expands `$`.
//!
//! Whether a boot loader has got what the file says is seen from what it made of it. So nothing needs to be remembered: a
//! run that was interrupted between the file and the boot loader is completed by the next one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::ReserveError;
use super::parameter::{self, Settings};
use crate::bus::Range;
use crate::edit::Edit;

/// daxdmem's file for GRUB.
const DROP_IN: &str = "etc/default/grub.d/daxdmem.cfg";
/// The command line for kernel-install.
const CMDLINE: &str = "etc/kernel/cmdline";
/// Where boot entries are.
const ENTRIES: [&str; 3] = [
    "boot/loader/entries",
    "efi/loader/entries",
    "boot/efi/loader/entries",
];
/// Where unified kernel images are.
const IMAGES: [&str; 3] = ["boot/EFI/Linux", "efi/EFI/Linux", "boot/efi/EFI/Linux"];

/// A boot loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loader {
    /// GRUB.
    Grub,
    /// systemd-boot, or the firmware with unified kernel images.
    KernelInstall,
}

impl Loader {
    /// Those that the host has.
    pub fn all(root: &Path) -> Vec<Loader> {
        let has = |path: &str| root.join(path).exists();
        let grub =
            has("etc/default/grub") && (has("usr/sbin/update-grub") || has("sbin/update-grub"));
        let entries = ENTRIES.iter().chain(&IMAGES).any(|path| has(path));
        let install = has(CMDLINE) && has("usr/bin/kernel-install") && entries;
        [(grub, Loader::Grub), (install, Loader::KernelInstall)]
            .into_iter()
            .filter_map(|(there, loader)| there.then_some(loader))
            .collect()
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Loader::Grub => "GRUB",
            Loader::KernelInstall => "systemd-boot",
        }
    }

    /// The change that has it pass these parameters, or none; `asked` is what the operator asked for.
    pub fn edit(
        self,
        root: &Path,
        parameters: Option<&str>,
        asked: &str,
    ) -> Result<Edit, ReserveError> {
        let path = root.join(match self {
            Loader::Grub => DROP_IN,
            Loader::KernelInstall => CMDLINE,
        });
        let old = match fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(cannot_write(&path, &error)),
        };
        let new = match self {
            Loader::Grub => parameters.map(|parameters| drop_in(parameters, asked)),
            Loader::KernelInstall => old.as_deref().map(|line| with_pairs(line, parameters)),
        };
        Ok(Edit { path, old, new })
    }

    /// The ranges that its configuration says; `None` where that may not be read.
    pub fn configured(self, root: &Path) -> Option<Vec<Range>> {
        let path = match self {
            Loader::Grub => DROP_IN,
            Loader::KernelInstall => CMDLINE,
        };
        match fs::read_to_string(root.join(path)) {
            Ok(text) if self == Loader::Grub => Some(Settings::of(&unescaped(&text)).pairs),
            Ok(text) => Some(Settings::of(&text).pairs),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Vec::new()),
            Err(_) => None,
        }
    }

    /// Whether what it boots from has the parameters, or has none of daxdmem's; `None` where that cannot be seen.
    pub fn has(self, root: &Path, parameters: Option<&str>) -> Option<bool> {
        let lines = match self {
            Loader::Grub => {
                let text = fs::read_to_string(root.join("boot/grub/grub.cfg")).ok()?;
                // As GRUB's shell reads them.
                linux_lines(&text.replace("\\$", "$"), &["linux", "linux16", "linuxefi"])
            }
            Loader::KernelInstall => ENTRIES
                .iter()
                .filter_map(|path| fs::read_dir(root.join(path)).ok())
                .flatten()
                .flatten()
                .filter(|entry| entry.path().extension().is_some_and(|end| end == "conf"))
                .filter_map(|entry| fs::read_to_string(entry.path()).ok())
                .flat_map(|text| linux_lines(&text, &["options"]))
                .collect(),
        };
        if lines.is_empty() {
            return None;
        }
        let wanted = Settings::of(parameters.unwrap_or_default()).pairs;
        let found = lines.iter().map(|line| Settings::of(line).pairs);
        Some(match parameters {
            // GRUB's entries for recovery go without.
            Some(_) => {
                let found: Vec<_> = found.filter(|pairs| !pairs.is_empty()).collect();
                !found.is_empty() && found.iter().all(|pairs| *pairs == wanted)
            }
            None => found.into_iter().all(|pairs| pairs.is_empty()),
        })
    }

    /// What makes the boot loader take up the files.
    fn commands(self, root: &Path) -> Vec<Vec<String>> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        match self {
            Loader::Grub => vec![words(&["update-grub"])],
            Loader::KernelInstall => kernels(root)
                .iter()
                .map(|kernel| {
                    words(&[
                        "kernel-install",
                        "add",
                        kernel,
                        &format!("/boot/vmlinuz-{kernel}"),
                    ])
                })
                .collect(),
        }
    }

    /// Has the boot loader take up the files; what went wrong: the command, and what it said.
    pub fn update(self, root: &Path) -> Result<(), (String, String)> {
        for words in self.commands(root) {
            let Some((program, arguments)) = words.split_first() else {
                continue;
            };
            let run = Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .output();
            let said = match run {
                Ok(output) if output.status.success() => continue,
                Ok(output) => {
                    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                    format!("{said} ({})", output.status)
                        .trim_start()
                        .to_owned()
                }
                Err(error) => error.to_string(),
            };
            return Err((words.join(" "), said));
        }
        Ok(())
    }
}

/// Carries out the changes; when one fails all is put back.
pub fn apply(
    edits: &[(Loader, Edit)],
    update: impl Fn(Loader) -> Result<(), (String, String)>,
) -> Result<(), ReserveError> {
    let undo = |loaders: &[Loader]| {
        let restored = edits
            .iter()
            .try_for_each(|(_, edit)| edit.reverse().apply());
        let updated = loaders.iter().try_for_each(|loader| update(*loader));
        restored.is_ok() && updated.is_ok()
    };
    for (_, edit) in edits {
        if let Err(error) = edit.apply() {
            let _ = undo(&[]);
            return Err(cannot_write(&edit.path, &error));
        }
    }
    let mut touched = Vec::new();
    for (loader, _) in edits {
        touched.push(*loader);
        if let Err((command, said)) = update(*loader) {
            return Err(match undo(&touched) {
                true => ReserveError::Loader { command, said },
                false => ReserveError::LoaderTwice { command, said },
            });
        }
    }
    Ok(())
}

fn cannot_write(path: &Path, error: &io::Error) -> ReserveError {
    ReserveError::Write {
        path: path.to_owned(),
        why: error.to_string(),
    }
}

/// The file for GRUB.
fn drop_in(parameters: &str, asked: &str) -> String {
    // One backslash for GRUB's shell; within double quotes the first shell wants each of the two escaped.
    let escaped = parameters.replace('$', "\\\\\\$");
    format!(
        "# Written by `daxdmem reserve {asked} --apply`; `daxdmem reserve --remove` takes it back.\n\
         # Memory for guests: two parameters for each range, the first keeps the kernel out of it, the second makes it a\n\
         # dax region. Changes here take effect after update-grub and a reboot.\n\
         GRUB_CMDLINE_LINUX_DEFAULT=\"$GRUB_CMDLINE_LINUX_DEFAULT {escaped}\"\n"
    )
}

/// The command line with these pairs instead of those it has.
fn with_pairs(line: &str, parameters: Option<&str>) -> String {
    let kept = parameter::without_pairs(line);
    match parameters {
        None => kept,
        Some(parameters) => {
            let options = kept.trim_end();
            let blank = if options.is_empty() { "" } else { " " };
            format!("{options}{blank}{parameters}\n")
        }
    }
}

/// What follows one of these words at the start of a line.
fn linux_lines(text: &str, keys: &[&str]) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim_start().split_once(char::is_whitespace))
        .filter(|(key, _)| keys.contains(key))
        .map(|(_, rest)| rest.to_owned())
        .collect()
}

/// Releases of the kernels that are installed and can be booted, the newest last.
pub fn kernels(root: &Path) -> Vec<String> {
    let modules = fs::read_dir(root.join("lib/modules"))
        .into_iter()
        .flatten()
        .flatten();
    let mut kernels: Vec<String> = modules
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|release| root.join(format!("boot/vmlinuz-{release}")).exists())
        .collect();
    kernels.sort_by_cached_key(|release| numbers_apart(release));
    kernels
}

/// Text and numbers of a kernel's release in turn: 7.10 is newer than 7.9, and than 7.10-rc1.
fn numbers_apart(release: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    // A candidate comes before all that follows a number otherwise.
    let release = release.replace("-rc", "\0");
    let mut rest = release.as_str();
    while !rest.is_empty() {
        let number = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (text, from_number) = rest.split_at(number);
        let end = from_number
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(from_number.len());
        let (digits, after) = from_number.split_at(end);
        parts.push((text.to_owned(), digits.parse().unwrap_or(0)));
        rest = after;
    }
    parts
}

/// What makes a boot loader known that was not found.
pub fn hint(root: &Path) -> &'static str {
    let entries = ENTRIES
        .iter()
        .chain(&IMAGES)
        .any(|path| root.join(path).exists());
    match entries && !root.join(CMDLINE).exists() {
        true => {
            ". With systemd-boot, write the kernel's present options to /etc/kernel/cmdline (those of `cat /proc/cmdline` \
             without BOOT_IMAGE= and initrd=), then repeat the command"
        }
        false => "",
    }
}

/// `memmap=` settings of GRUB's configuration that are not daxdmem's. Those in /etc/kernel/cmdline that it does not
/// take for its own stay where they are.
pub fn elsewhere(root: &Path) -> Vec<(PathBuf, Settings)> {
    let mut files = vec![root.join("etc/default/grub")];
    let drop_ins = fs::read_dir(root.join("etc/default/grub.d"))
        .into_iter()
        .flatten()
        .flatten();
    let mut drop_ins: Vec<PathBuf> = drop_ins.map(|entry| entry.path()).collect();
    drop_ins.retain(|path| {
        path.extension().is_some_and(|end| end == "cfg") && !path.ends_with(DROP_IN)
    });
    drop_ins.sort();
    files.extend(drop_ins);
    let settings = |path: PathBuf| {
        let text = fs::read_to_string(&path).ok()?;
        let settings = Settings::of(&unescaped(&text));
        (settings != Settings::default()).then_some((path, settings))
    };
    let line = fs::read_to_string(root.join(CMDLINE)).unwrap_or_default();
    let kept = Settings {
        pairs: Vec::new(),
        others: Settings::of(&line).others,
    };
    let kept = (kept != Settings::default()).then(|| (root.join(CMDLINE), kept));
    files.into_iter().filter_map(settings).chain(kept).collect()
}

/// The parameters in a file of shell variables, near enough: without comments, quotes and escapes.
fn unescaped(text: &str) -> String {
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(_, value)| value.replace(['"', '\''], " ").replace('\\', ""))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const PAIR: &str = "memmap=60G$4G memmap=60G%4G-2+0xefffffff";

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(root: &Path, path: &str) -> Option<String> {
        fs::read_to_string(root.join(path)).ok()
    }

    #[test]
    fn newest_kernel_last() {
        let root = tempfile::tempdir().unwrap();
        let sorted = [
            "7.3-rc1-amd64",
            "7.3-amd64",
            "7.3.4+deb13-amd64",
            "7.9.12-amd64",
            "7.10.1-amd64",
        ];
        for release in sorted.iter().rev() {
            write(root.path(), &format!("boot/vmlinuz-{release}"), "");
            fs::create_dir_all(root.path().join("lib/modules").join(release)).unwrap();
        }
        assert_eq!(kernels(root.path()), sorted);
    }

    /// A host with both boot loaders.
    fn host() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            "etc/default/grub",
            "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n",
        );
        write(root.path(), "usr/sbin/update-grub", "");
        write(root.path(), "usr/bin/kernel-install", "");
        write(root.path(), CMDLINE, "root=/dev/vda1  ro\n");
        write(
            root.path(),
            "boot/loader/entries/a.conf",
            "options root=/dev/vda1 ro\n",
        );
        root
    }

    fn edits(root: &Path, parameters: Option<&str>) -> Vec<(Loader, Edit)> {
        let edit = |loader: Loader| {
            (
                loader,
                loader.edit(root, parameters, "--total 60G").unwrap(),
            )
        };
        Loader::all(root).into_iter().map(edit).collect()
    }

    /// What a shell that reads the file makes of it.
    fn sourced(root: &Path) -> String {
        let script = format!(
            "GRUB_CMDLINE_LINUX_DEFAULT=quiet; . {}; printf %s \"$GRUB_CMDLINE_LINUX_DEFAULT\"",
            root.join(DROP_IN).display()
        );
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn files_are_written_and_put_back() {
        let root = host();
        let root = root.path();
        assert_eq!(Loader::all(root), [Loader::Grub, Loader::KernelInstall]);
        let updated = RefCell::new(Vec::new());
        let update = |loader| {
            updated.borrow_mut().push(loader);
            Ok(())
        };
        apply(&edits(root, Some(PAIR)), update).unwrap();
        assert_eq!(*updated.borrow(), [Loader::Grub, Loader::KernelInstall]);
        assert_eq!(
            sourced(root),
            "quiet memmap=60G\\$4G memmap=60G%4G-2+0xefffffff"
        );
        for loader in Loader::all(root) {
            assert_eq!(loader.configured(root), Some(Settings::of(PAIR).pairs));
        }
        assert!(read(root, DROP_IN)
            .unwrap()
            .contains("`daxdmem reserve --total 60G --apply`"));
        assert_eq!(
            read(root, CMDLINE).unwrap(),
            format!("root=/dev/vda1  ro {PAIR}\n")
        );
        assert!(edits(root, Some(PAIR))
            .iter()
            .all(|(_, edit)| !edit.is_needed()));

        apply(
            &edits(root, Some("memmap=1G$4G memmap=1G%4G-2+0xefffffff")),
            update,
        )
        .unwrap();
        assert!(!read(root, CMDLINE).unwrap().contains("60G"));
        apply(&edits(root, None), update).unwrap();
        assert_eq!(read(root, DROP_IN), None);
        assert_eq!(read(root, CMDLINE).unwrap(), "root=/dev/vda1  ro\n");
        assert!(edits(root, None).iter().all(|(_, edit)| !edit.is_needed()));
    }

    #[test]
    fn a_boot_loader_that_fails_changes_nothing() {
        let root = host();
        let root = root.path();
        for (fails, twice) in [
            (Loader::Grub, false),
            (Loader::KernelInstall, false),
            (Loader::Grub, true),
        ] {
            let calls = RefCell::new(0);
            let update = |loader| {
                if loader != fails {
                    return Ok(());
                }
                *calls.borrow_mut() += 1;
                match *calls.borrow() == 1 || twice {
                    true => Err(("update".to_owned(), "no".to_owned())),
                    false => Ok(()),
                }
            };
            let error = apply(&edits(root, Some(PAIR)), update).unwrap_err();
            assert_eq!(
                matches!(error, ReserveError::LoaderTwice { .. }),
                twice,
                "{error}"
            );
            assert_eq!(read(root, DROP_IN), None);
            assert_eq!(read(root, CMDLINE).unwrap(), "root=/dev/vda1  ro\n");
        }
    }

    #[test]
    fn what_a_boot_loader_has_is_seen() {
        let root = host();
        let root = root.path();
        let grub = |params| Loader::Grub.has(root, params);
        assert_eq!(grub(Some(PAIR)), None);
        let escaped = PAIR.replace('$', "\\$");
        let cfg = format!("\tlinux /vmlinuz ro quiet {escaped}\n\tlinux /vmlinuz ro single\n");
        write(root, "boot/grub/grub.cfg", &cfg);
        assert_eq!((grub(Some(PAIR)), grub(None)), (Some(true), Some(false)));
        assert_eq!(
            grub(Some("memmap=1G$4G memmap=1G%4G-2+0xefffffff")),
            Some(false)
        );
        write(root, "boot/grub/grub.cfg", "\tlinux /vmlinuz ro quiet\n");
        assert_eq!((grub(Some(PAIR)), grub(None)), (Some(false), Some(true)));
        let entry = |params| Loader::KernelInstall.has(root, params);
        assert_eq!((entry(Some(PAIR)), entry(None)), (Some(false), Some(true)));
        write(
            root,
            "boot/loader/entries/a.conf",
            &format!("title x\noptions    ro {PAIR}\n"),
        );
        assert_eq!((entry(Some(PAIR)), entry(None)), (Some(true), Some(false)));
    }

    #[test]
    fn reservations_of_others_are_seen() {
        let root = host();
        let root = root.path();
        assert_eq!(elsewhere(root), []);
        write(
            root,
            "etc/default/grub",
            "# memmap=1G$1G\nGRUB_CMDLINE_LINUX=\"quiet memmap=60G\\\\\\$4G memmap=60G%4G-2+0xefffffff\"\n",
        );
        write(
            root,
            "etc/default/grub.d/a.cfg",
            "GRUB_CMDLINE_LINUX='memmap=1M#2M'\n",
        );
        write(root, DROP_IN, "X=\"memmap=7G\\\\\\$7G\"\n");
        let found = elsewhere(root);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].1, Settings::of(PAIR));
        assert_eq!(found[1].1, Settings::of("memmap=1M#2M"));
    }
}
