// SPDX-License-Identifier: GPL-2.0

//! The poison that is known, on disk: a reboot forgets what the driver knows, the memory stays bad.
//!
//! Pages outside every region stay in it: another reservation may bring them back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::PoisonError;
use super::{Pages, PAGE};
use crate::bus::{total, Range};
use crate::driver::range;
use crate::error::Result;
use crate::file;
use crate::size::Size;
use crate::sysfs;

/// Version of the file's form.
const VERSION: u32 = 1;

/// More than this is no record of errors.
const MOST: Size = Size(64 << 30);

/// When a page was first known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Seconds since 1970.
    pub at: u64,
    /// The kernel's name for the time between two boots.
    pub boot: String,
}

impl Seen {
    /// Now.
    pub fn now() -> Seen {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Seen {
            at: since.map_or(0, |since| since.as_secs()),
            boot: boot_id(Path::new("/")),
        }
    }
}

/// What the running kernel calls the time since it was booted.
pub fn boot_id(root: &Path) -> String {
    sysfs::text(&root.join("proc/sys/kernel/random/boot_id")).unwrap_or_default()
}

/// The pages that failed, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record(BTreeMap<u64, Seen>);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    reports: Vec<Report>,
}

/// Pages that were first known at one time.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Report {
    at: u64,
    boot: String,
    /// As the driver writes them: `0xSTART-0xEND`.
    pages: Vec<String>,
}

impl Record {
    /// Where it is kept.
    pub const FILE: &'static str = "/var/lib/daxdmem/poison.json";

    /// Reads it; empty where there is none.
    pub fn read(path: &Path) -> Result<Record> {
        let bad = |why: String| PoisonError::Record {
            path: path.to_owned(),
            why,
        };
        match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(bad(error.to_string()).into()),
            Ok(text) => Ok(parse(&text).map_err(bad)?),
        }
    }

    /// Writes it.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        // It holds physical addresses, which are root's alone.
        file::replace(path, &self.text()?, 0o600)
    }

    fn text(&self) -> io::Result<Vec<u8>> {
        let mut by_time: BTreeMap<&Seen, Vec<u64>> = BTreeMap::new();
        for (page, seen) in &self.0 {
            by_time.entry(seen).or_default().push(*page);
        }
        let report = |(seen, pages): (&Seen, Vec<u64>)| Report {
            at: seen.at,
            boot: seen.boot.clone(),
            pages: super::merged(pages.into_iter(), PAGE)
                .iter()
                .map(ToString::to_string)
                .collect(),
        };
        let mut text = serde_json::to_vec_pretty(&Document {
            version: VERSION,
            reports: by_time.into_iter().map(report).collect(),
        })?;
        text.push(b'\n');
        Ok(text)
    }

    /// All pages.
    pub fn pages(&self) -> Pages {
        self.0.keys().copied().collect()
    }

    /// When this page was first known.
    pub fn seen(&self, page: u64) -> Option<&Seen> {
        self.0.get(&page)
    }

    /// Adds pages that are not in it.
    pub fn add(&mut self, pages: &Pages, seen: &Seen) {
        for page in pages.iter() {
            self.0.entry(page).or_insert_with(|| seen.clone());
        }
    }

    /// Takes pages out.
    pub fn remove(&mut self, pages: &Pages) {
        self.0.retain(|page, _| !pages.contains(*page));
    }
}

fn parse(text: &[u8]) -> Result<Record, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let bad = |error: serde_json::Error| error.to_string();
    let Versioned { version } = serde_json::from_slice(text).map_err(bad)?;
    if version != VERSION {
        return Err(format!(
            "it has version {version}, this daxdmem reads and writes version {VERSION}"
        ));
    }
    let document: Document = serde_json::from_slice(text).map_err(bad)?;
    let mut record = Record::default();
    let mut size = 0u64;
    for report in document.reports {
        let seen = Seen {
            at: report.at,
            boot: report.boot,
        };
        let whole = |range: &Range| range.start % PAGE == 0 && range.len % PAGE == 0;
        let pages = report.pages.iter().map(|text| {
            let pages = range(text).filter(whole);
            pages.ok_or_else(|| format!("'{text}' is no range of pages, 0xSTART-0xEND"))
        });
        let pages: Vec<Range> = pages.collect::<Result<_, _>>()?;
        size = size.saturating_add(total(pages.iter()));
        if size > MOST.0 {
            return Err(format!("it names more than {MOST} of memory"));
        }
        record.add(&Pages::of(pages), &seen);
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(at: u64) -> Seen {
        Seen {
            at,
            boot: format!("boot-{at}"),
        }
    }

    #[test]
    fn it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daxdmem/poison.json");
        assert_eq!(Record::read(&path).unwrap(), Record::default());
        let range = |start, pages| Range {
            start,
            len: pages * PAGE,
        };
        let mut record = Record::default();
        record.add(&Pages::of([range(4 << 30, 3)]), &seen(1));
        record.add(&Pages::of([range(4 << 30, 4), range(8 << 30, 1)]), &seen(2));
        record.write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("\"0x100000000-0x100002fff\"\n")
                && text.contains("\"0x100003000-0x100003fff\""),
            "{text}"
        );
        let mut found = Record::read(&path).unwrap();
        assert_eq!(found, record);
        // What is known longer stays so.
        assert_eq!(found.seen((4 << 30) + 2 * PAGE), Some(&seen(1)));
        assert_eq!(found.seen(8 << 30), Some(&seen(2)));
        found.remove(&Pages::of([range((4 << 30) + PAGE, 1), range(8 << 30, 1)]));
        found.write(&path).unwrap();
        assert_eq!(
            Record::read(&path).unwrap().pages().ranges(),
            [range(4 << 30, 1), range((4 << 30) + 2 * PAGE, 2)]
        );
        assert!(Seen::now().at > 1 << 30 && !Seen::now().boot.is_empty());
    }

    #[test]
    fn what_it_does_not_understand_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("poison.json");
        let with = |pages: &str| {
            format!("{{\"version\": 1, \"reports\": [{{\"at\": 1, \"boot\": \"x\", \"pages\": [{pages}]}}]}}")
        };
        for (text, why) in [
            ("".to_owned(), "EOF while parsing"),
            (
                "{\"version\": 2}".to_owned(),
                "it has version 2, this daxdmem reads",
            ),
            ("{\"version\": 1}".to_owned(), "missing field `reports`"),
            (with("\"0x1000\""), "'0x1000' is no range of pages"),
            (with("\"0x1000-0x1ffe\""), "'0x1000-0x1ffe' is no range"),
            (with("\"0x0-0xffffffffffff\""), "more than 64G"),
            (with("1"), "invalid type"),
        ] {
            fs::write(&path, &text).unwrap();
            let error = Record::read(&path).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{} cannot be used: ", path.display())),
                "{error}"
            );
            assert!(
                error.contains(why) && error.contains("until you decide"),
                "{text}: {error}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(
            Record::read(Path::new("/proc/self"))
                .unwrap_err()
                .exit_code(),
            std::process::ExitCode::from(1)
        );
    }

    #[test]
    fn a_write_that_fails_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("poison.json");
        fs::create_dir(dir.path().join("poison.json.new")).unwrap();
        let mut record = Record::default();
        record.add(&Pages::of([Range { start: 0, len: 1 }]), &seen(1));
        assert!(record.write(&path).is_err() && !path.exists());
    }
}
