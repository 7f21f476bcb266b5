// SPDX-License-Identifier: GPL-2.0

//! Waiting for the driver to scrub: a bar on a terminal, else lines now and then.
//!
//! Nothing depends on the wait, which only looks: the driver goes on whether anybody waits or not. So it is done without
//! the lock, and whoever ends it by a signal is told that the scrub goes on.

use std::io::{stderr, IsTerminal};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use crate::bus::{Device, Identity, Range};
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::scrub::{Progress, Scrub, Stage};
use crate::terminal::note;

/// Time between two looks: at first, and at most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// Time between two lines: at first, and at most; it doubles in between.
const LINES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Waits until a device that was just bound can be opened. `what` is how people call it.
pub fn for_device(what: &str, device: &Identity) -> Result<()> {
    let look = || {
        let now = Device::again(device).and_then(|now| now.scrub);
        stage(device, now)
    };
    let meanwhile = "it is bound, and whoever opens it waits until it is scrubbed";
    follow(what, meanwhile, look)
}

/// Waits until memory that was just taken back is scrubbed, or somebody else's.
pub fn for_memory(what: &str, ranges: &[Range]) -> Result<()> {
    let meanwhile = "its memory is free, and is scrubbed in the background";
    follow(what, meanwhile, || Ok(under_way(ranges)))
}

/// Waits until the driver is done with memory that was taken from a device: before that no other driver gets it. The
/// device is in the middle of a command, which the next one ends if this one does not.
pub fn for_release(what: &str, ranges: &[Range]) -> Result<()> {
    let meanwhile = "the next daxdmem command undoes what was begun";
    follow(what, meanwhile, || Ok(under_way(ranges)))
}

/// How far the scrub of memory that no device has any more is; `None` when there is none.
pub fn under_way(ranges: &[Range]) -> Option<Progress> {
    let running = Driver::scrubbing().unwrap_or_default().into_iter();
    let mine = running.filter(|scrub| ranges.iter().any(|range| range.overlaps(scrub.range)));
    mine.map(|scrub| scrub.progress)
        .reduce(|sum, next| Progress {
            done: sum.done.saturating_add(next.done),
            total: sum.total.saturating_add(next.total),
        })
}

/// How far the scrub of a bound device is; `None` when it is over.
fn stage(device: &Identity, now: Option<Scrub>) -> Result<Option<Progress>> {
    let device = device.device;
    let now = now.ok_or(Error::ScrubLost { device })?;
    match now.stage {
        Stage::Scrubbing => Ok(Some(now.progress)),
        Stage::Scrubbed | Stage::Unscrubbed => Ok(None),
        Stage::Failed => Err(Error::ScrubFailed { device }),
    }
}

/// Looks until there is nothing under way any more.
fn follow(
    what: &str,
    meanwhile: &str,
    mut look: impl FnMut() -> Result<Option<Progress>>,
) -> Result<()> {
    let Some(mut now) = look()? else {
        return Ok(());
    };
    let signal = Signal::new()?;
    let began = Instant::now();
    let scrubbing = format!("{what}: scrubbing");
    let mut show = Show::new(&scrubbing, now);
    let mut pause = LOOKS.0;
    loop {
        if let Some(number) = signal.arrived() {
            show.clear();
            note(&format!("{what}: {meanwhile} ({} % done)", now.percent()));
            signal.follow(number)?;
        }
        sleep(pause);
        pause = LOOKS.1.min(pause * 2);
        match look() {
            Ok(Some(progress)) => now = progress,
            Ok(None) => {
                show.clear();
                let seconds = began.elapsed().as_secs_f64();
                let size = BinaryBytes(now.total);
                note(&format!("{what}: scrubbed, {size} in {seconds:.1} s"));
                return Ok(());
            }
            Err(error) => {
                show.clear();
                return Err(error);
            }
        }
        show.update(&scrubbing, now, began.elapsed());
    }
}

/// Where progress is shown.
pub enum Show {
    /// On a terminal.
    Bar(ProgressBar),
    /// When the next line is due, and the time from there to the one after it.
    Lines(Duration, Duration),
}

impl Show {
    /// `what` says what makes progress.
    pub fn new(what: &str, now: Progress) -> Show {
        // A template that is wrong shows at once: this one is not.
        let style = ProgressStyle::with_template(
            "{msg} [{bar:30}] {percent} % of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
        );
        match style {
            Ok(style) if stderr().is_terminal() => {
                let bar = ProgressBar::new(now.total).with_style(style.progress_chars("=> "));
                bar.set_message(what.to_owned());
                bar.set_position(now.done);
                Show::Bar(bar)
            }
            _ => {
                note(&line(what, now));
                Show::Lines(LINES.0, LINES.0)
            }
        }
    }

    /// Shows how far it is.
    pub fn update(&mut self, what: &str, now: Progress, elapsed: Duration) {
        match self {
            Show::Bar(bar) => {
                bar.set_length(now.total);
                bar.set_position(now.done);
            }
            Show::Lines(due, step) if elapsed >= *due => {
                note(&line(what, now));
                *step = LINES.1.min(*step * 2);
                *due = elapsed + *step;
            }
            Show::Lines(..) => {}
        }
    }

    /// Takes away what may be overwritten.
    pub fn clear(&self) {
        if let Show::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn line(what: &str, now: Progress) -> String {
    let (done, total) = (BinaryBytes(now.done), BinaryBytes(now.total));
    format!("{what}, {done} of {total} ({} %)", now.percent())
}

/// The signals by which people end a program.
pub struct Signal(Arc<AtomicUsize>);

impl Signal {
    /// From now on they do not end it by themselves.
    pub fn new() -> Result<Signal> {
        let arrived = Arc::new(AtomicUsize::new(0));
        for (signal, number) in [(SIGINT, 2), (SIGTERM, 15)] {
            flag::register_usize(signal, Arc::clone(&arrived), number)
                .map_err(Error::kernel("cannot watch for signals"))?;
        }
        Ok(Signal(arrived))
    }

    /// The one that has arrived.
    pub fn arrived(&self) -> Option<i32> {
        match i32::try_from(self.0.load(Ordering::Relaxed)) {
            Ok(number) if number != 0 => Some(number),
            _ => None,
        }
    }

    /// Ends the program as the signal would have, so that a shell or a service manager sees that it did.
    fn follow(&self, number: i32) -> Result<()> {
        low_level::emulate_default_handler(number)
            .map_err(Error::kernel("cannot end by the signal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scrub::Policy;
    use std::path::PathBuf;

    fn identity() -> Identity {
        Identity {
            device: "dax0.1".parse().unwrap(),
            inode: 7,
            region: PathBuf::from("/sys/devices/platform/hmem.0"),
        }
    }

    #[test]
    fn what_a_look_means() {
        let look = |stage| {
            let progress = Progress { done: 1, total: 4 };
            let policy = Policy::Release;
            super::stage(
                &identity(),
                Some(Scrub {
                    policy,
                    stage,
                    progress,
                }),
            )
        };
        assert_eq!(
            look(Stage::Scrubbing).unwrap(),
            Some(Progress { done: 1, total: 4 })
        );
        assert_eq!(look(Stage::Scrubbed).unwrap(), None);
        assert_eq!(look(Stage::Unscrubbed).unwrap(), None);
        let error = look(Stage::Failed).unwrap_err().to_string();
        assert!(error.contains("dax0.1 could not be scrubbed"), "{error}");
        let error = super::stage(&identity(), None).unwrap_err().to_string();
        assert!(error.contains("dax0.1 was taken away"), "{error}");
    }

    #[test]
    fn it_ends_with_the_scrub() {
        let mut steps = [0u64, 3, 8].into_iter();
        let mut looks = 0;
        follow("vm1", "", || {
            looks += 1;
            Ok(steps.next().map(|done| Progress { done, total: 8 }))
        })
        .unwrap();
        assert_eq!(looks, 4);
        // Over before it is looked at: nothing to wait for.
        follow("vm1", "", || Ok(None)).unwrap();
    }

    #[test]
    fn it_ends_with_the_device() {
        let mut looks = 0;
        let error = follow("vm1", "", || {
            looks += 1;
            match looks {
                1 => Ok(Some(Progress { done: 0, total: 8 })),
                _ => super::stage(&identity(), None),
            }
        })
        .unwrap_err();
        assert!(error.to_string().contains("was taken away"), "{error}");
    }

    #[test]
    fn lines_have_figures() {
        let now = Progress {
            done: 3 << 30,
            total: 12 << 30,
        };
        assert_eq!(
            line("vm1: scrubbing", now),
            "vm1: scrubbing, 3.00 GiB of 12.00 GiB (25 %)"
        );
    }
}
