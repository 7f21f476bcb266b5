// SPDX-License-Identifier: GPL-2.0
//! The operation fuzzer: random system calls on page-less memory, against a model of what must come of them.
//!
//! Reading order: `op` says what can happen, `space`, `memory` and `model` what must come of it, `generate` makes a
//! list from a seed, `session` does it, this file compares the two and shortens a list that fails. All but
//! `session` is pure and runs on the host, too. See Documentation/fuzzing.md.

mod calls;
mod generate;
mod memory;
mod model;
mod op;
mod random;
mod session;
mod settings;
mod shrink;
mod space;
mod wire;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::case::{Failure, Named, Outcome};
use crate::child::{Child, Link};
use crate::device::{driver_attribute, DAX_DMEM};
use crate::kernel_log::{complaints, note, KernelLog};
use crate::region::{Region, MIB};
use crate::{check, fail, say, sysfs};

use model::Model;
use op::{Op, BLOCK, PAGE};
use session::{Session, Window};
pub use settings::Settings;

/// Seconds between two signs of life of a run.
const SIGN: Duration = Duration::from_secs(5);
/// After so many operations the kernel log is looked at; after each would take a tenth of the time.
const LOOK: usize = 4;
/// What begins the reason where an operation could not even be done.
const TROUBLE: &str = "not done:";
/// Without one for so long, it hangs.
const SILENCE: Duration = Duration::from_secs(50);
/// What a run says that came to its end.
const FINE: &str = "fine";
/// What it says while it goes on.
const SIGN_OF_LIFE: &str = "at";
/// What it says when something is wrong, before the operation's number and the reason.
const BROKEN: &str = "broken";

/// Runs all seeds of the settings; fails at the first that finds something, shortened.
pub fn run(settings: &Settings) -> Outcome {
    let begin = Instant::now();
    let first = match settings.seed {
        Some(seed) => seed,
        None => any_seed()?,
    };
    let region = Region::first()?;
    let mut workers = Vec::new();
    for worker in 0..settings.workers.min(settings.seeds) {
        let window = Window {
            region: region.clone(),
            offset: worker * generate::WINDOW_BLOCKS * BLOCK * PAGE,
            lock: "/run/dmem/fuzz.lock".to_owned(),
        };
        workers.push(Child::start(|link| {
            work(settings, &window, (first, worker), link)
        })?);
    }
    let mut done = 0;
    for mut worker in workers {
        while let Some(ops) = next_done(&mut worker)? {
            done += ops;
        }
        worker.finish()?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    say!(
        "{done} operations over {} seeds from {first:#x} in {seconds:.0} s, no mismatch",
        settings.seeds
    );
    Ok(())
}

/// Operations of the worker's next finished seed; `None` at its end.
fn next_done(worker: &mut Child) -> Outcome<Option<usize>> {
    loop {
        let line = worker.link().receive()?;
        match line.strip_prefix("done ") {
            Some(count) => return Ok(count.parse().ok()),
            None if line == FINE => return Ok(None),
            None => {}
        }
    }
}

fn any_seed() -> io::Result<u64> {
    let mut seed = [0; 8];
    // SAFETY: the array is valid for its length.
    let got = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
    if got != seed.len() as isize {
        return Err(io::Error::last_os_error());
    }
    // Short enough to be typed.
    Ok(u64::from_ne_bytes(seed) >> 32)
}

/// Every worker takes the seeds that are its turn.
fn work(
    settings: &Settings,
    window: &Window,
    (first, turn): (u64, u64),
    link: &mut Link,
) -> Outcome {
    let mut seed = first + turn;
    while seed < first + settings.seeds {
        let run = Run::new(settings, window, seed)?;
        let list = match &settings.keep {
            Some(keep) => keep.clone(),
            None => (0..run.ops.len()).collect(),
        };
        let begin = Instant::now();
        if let Some(found) = run.play(&list, true, link)? {
            return Err(Failure::Fail(run.explain(&list, found, link)?));
        }
        let seconds = begin.elapsed().as_secs_f64();
        say!(
            "seed {seed:#x}: {} operations in {seconds:.1} s",
            list.len()
        );
        link.send(&format!("done {}", list.len()))?;
        seed += settings.workers;
    }
    link.send(FINE)
}

/// What a list of operations ran into.
struct Found {
    /// Position in the list.
    at: usize,
    /// What is wrong.
    reason: String,
    /// Whether it is worth trying again in this VM.
    is_repeatable: bool,
}

impl Found {
    /// Whether that may well be the same thing again.
    fn is_like(&self, reason: &str) -> bool {
        self.is_repeatable && self.reason.starts_with(TROUBLE) == reason.starts_with(TROUBLE)
    }
}

/// One seed.
struct Run<'a> {
    settings: &'a Settings,
    window: &'a Window,
    seed: u64,
    ops: Vec<Op>,
    /// Shared with the process that does the list: position of the operation under way.
    progress: &'static AtomicU64,
}

impl<'a> Run<'a> {
    fn new(settings: &'a Settings, window: &'a Window, seed: u64) -> Outcome<Self> {
        Ok(Run {
            settings,
            window,
            seed,
            ops: generate::operations(seed, settings.ops, settings.holes),
            progress: shared_number()?,
        })
    }

    /// Does the operations of these numbers in a process of its own, from a fresh start.
    fn play(&self, list: &[usize], loud: bool, link: &mut Link) -> Outcome<Option<Found>> {
        self.progress.store(0, Ordering::Relaxed);
        // Short ones say nothing themselves, and whoever waits is not patient for ever.
        link.send(SIGN_OF_LIFE)?;
        let mut log = KernelLog::open()?;
        let (mine, theirs) = wire::pair()?;
        let mut child = Child::start(|_| self.perform(list, theirs.as_raw_fd()))?;
        drop(theirs);
        let mut said = Instant::now();
        let lost = loop {
            if !wire::is_readable(mine.as_raw_fd(), 500) {
                // An Oops under a lock leaves a process that neither goes on nor ends.
                let lines = log.read_new();
                if let Some(line) = complaints(&lines, &[]).first() {
                    break format!("the kernel log has: {line}");
                }
                if said.elapsed() > SILENCE {
                    break "it does not come to an end".to_owned();
                }
                continue;
            }
            said = Instant::now();
            let packet = wire::receive(mine.as_raw_fd())?;
            let text = String::from_utf8_lossy(&packet);
            if text == FINE {
                child.finish()?;
                self.check_quarantine()?;
                return Ok(None);
            }
            if let Some(reason) = text.strip_prefix(BROKEN) {
                let found = self.found(reason.trim(), true);
                child.kill()?;
                return Ok(Some(found));
            }
            if text.is_empty() {
                break format!("{:?}", child.wait()?);
            }
            if loud {
                say!("seed {:#x}: {text} of {}", self.seed, list.len());
            }
            link.send(SIGN_OF_LIFE)?;
        };
        // It may be beyond being killed, too; the VM ends with this case.
        std::mem::forget(child);
        Ok(Some(
            self.found(&format!("the process is lost: {lost}"), false),
        ))
    }

    fn found(&self, reason: &str, is_repeatable: bool) -> Found {
        Found {
            at: self.progress.load(Ordering::Relaxed) as usize,
            reason: reason.to_owned(),
            is_repeatable,
        }
    }

    /// Does the operations and compares; reports the first difference.
    fn perform(&self, list: &[usize], parent: RawFd) -> Outcome {
        let tell = |text: &str| wire::send(parent, text.as_bytes());
        let mut model = Model::new(self.settings.holes);
        let mut session = Session::new(&self.ops, self.window)?;
        let mut log = KernelLog::open()?;
        let mut last_sign = Instant::now();
        let mut done = 0u64;
        for (at, index) in list.iter().enumerate() {
            let Some(op) = self.ops.get(*index).filter(|op| model.applies(op)) else {
                continue;
            };
            self.progress.store(at as u64, Ordering::Relaxed);
            if self.settings.trace {
                note(&format!("fuzz {:#x} op {index}: {op:?}", self.seed));
            }
            let expected = model.apply(op);
            let result = session.perform(*index);
            let difference = match result {
                Ok(observed) => expected.difference(&observed),
                Err(Failure::Fail(reason) | Failure::Skip(reason)) => {
                    Some(format!("{TROUBLE} {reason}"))
                }
            };
            let look = difference.is_some() || at % LOOK == 0 || at + 1 == list.len();
            let lines = if look { log.read_new() } else { Vec::new() };
            let reason = match complaints(&lines, &[]).first() {
                Some(line) => Some(format!("the kernel log has: {line}")),
                None => difference,
            };
            if let Some(reason) = reason {
                drop(session);
                return Ok(tell(&format!("{BROKEN} {}", reason.replace('\n', "; ")))?);
            }
            done += 1;
            if last_sign.elapsed() > SIGN {
                last_sign = Instant::now();
                tell(&format!("{SIGN_OF_LIFE} operation {at}, {done} done"))?;
            }
        }
        drop(session);
        Ok(tell(FINE)?)
    }

    /// Nobody is left, so nothing of the window may be held back.
    fn check_quarantine(&self) -> Outcome {
        let text = sysfs::read(driver_attribute(DAX_DMEM, "quarantine"))?;
        let low = self.window.region.start + self.window.offset;
        let high = low + generate::WINDOW_BLOCKS * 2 * MIB;
        for line in text.lines() {
            let start = line.split('-').next().and_then(sysfs::number);
            check!(
                start.is_none_or(|start| start < low || start >= high),
                "still quarantined after the last process ended: {line}"
            );
        }
        Ok(())
    }

    /// Shortens the list if that can be done here, and says how to repeat it.
    fn explain(&self, list: &[usize], found: Found, link: &mut Link) -> Outcome<String> {
        let op = list.get(found.at).and_then(|index| self.ops.get(*index));
        say!(
            "seed {:#x}, operation {}: {}",
            self.seed,
            list.get(found.at).copied().unwrap_or_default(),
            found.reason
        );
        say!("    {op:?}");
        let mut list = list[..=found.at.min(list.len().saturating_sub(1))].to_vec();
        let mut reason = found.reason;
        if found.is_repeatable && self.settings.shrink > 0 {
            let deadline = Instant::now() + Duration::from_secs(self.settings.shrink);
            let mut fatal = None;
            list = shrink::shrink(list, |shorter| {
                if Instant::now() > deadline || fatal.is_some() {
                    return None;
                }
                match self.play(shorter, false, link) {
                    Ok(Some(found)) if found.is_like(&reason) => {
                        reason = found.reason;
                        Some(found.at)
                    }
                    Ok(Some(found)) if found.is_repeatable => None,
                    Ok(None) => None,
                    // Lost in the middle of shortening: the kernel is not to be trusted any more.
                    Ok(Some(found)) => {
                        fatal = Some(found.reason);
                        None
                    }
                    Err(failure) => {
                        fatal = Some(format!("{failure:?}"));
                        None
                    }
                }
            });
            if let Some(fatal) = fatal {
                say!("shortening ended early: {fatal}");
            }
            say!("shortened to {} operations:", list.len());
            for index in &list {
                say!("    {index}: {:?}", self.ops[*index]);
            }
        }
        let keep = settings::ranges(&list);
        say!(
            "repeat it: make fuzz SEED={:#x} SEEDS=1 OPS={} KEEP={keep}{}",
            self.seed,
            self.settings.ops,
            if self.settings.holes { " HOLES=1" } else { "" }
        );
        Ok(format!(
            "seed {:#x}, operations {keep}: {reason}",
            self.seed
        ))
    }
}

/// A number that forked processes share with this one.
fn shared_number() -> Outcome<&'static AtomicU64> {
    // SAFETY: fresh memory of a whole page, zeroed, aligned, and never unmapped.
    unsafe {
        let page = libc::mmap(
            std::ptr::null_mut(),
            PAGE as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if page == libc::MAP_FAILED {
            fail!("a shared page: {}", io::Error::last_os_error());
        }
        Ok(&*page.cast::<AtomicU64>())
    }
}

/// The settings of a case, changed by what came with the VM.
pub fn with_file(defaults: Settings) -> Outcome<Settings> {
    defaults.read().named("settings of the fuzzer")
}
