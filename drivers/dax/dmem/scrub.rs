// SPDX-License-Identifier: GPL-2.0

//! Scrubbing: overwriting memory with zeros before the next tenant can see it.
//!
//! A [`Scrub`] is one such job. Each of its extents has a worker of its own, which clears at most
//! 2 MiB at a time through a mapping that lasts for that step, and holds no lock meanwhile. A job
//! can be stopped after any step; what it has done by then is known.
//!
//! Locks: a scrub's own mutex, taken for short and innermost. Nothing is locked while a worker
//! clears memory.

use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{Arc, CondVar, Mutex};
use kernel::workqueue::{impl_has_work, Work, WorkItem};
use kernel::{new_condvar, new_mutex, new_work};

use crate::error::Error;
use crate::ffi::kernel_map::KernelMap;
use crate::ffi::task;
use crate::ffi::trace::{self, Scrubbing};
use crate::ffi::workqueue::WorkQueue;
use crate::plan::Extent;
use crate::poison;
use crate::registry;

/// Bytes that were overwritten by all scrubs.
static CLEARED: Atomic<u64> = Atomic::new(0);

/// Bytes that were overwritten since the module was loaded.
pub(crate) fn cleared() -> u64 {
    CLEARED.load(Relaxed)
}

/// When a device's memory is scrubbed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// When the last user of an unbound device is gone, so that the next tenant need not wait; and
    /// at bind what is not known to be clean.
    Release,
    /// At bind what is not known to be clean.
    HandOut,
    /// Not at all: whoever is next sees what was left.
    Never,
}

impl Policy {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Release, "release"),
        (Self::HandOut, "hand-out"),
        (Self::Never, "never"),
    ];

    /// A number for it, to be kept in an atomic.
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Release => 0,
            Self::HandOut => 1,
            Self::Never => 2,
        }
    }

    /// The policy of that number.
    pub(crate) fn from_code(code: u32) -> Self {
        let known = Self::ALL.iter().find(|(policy, _)| policy.code() == code);
        known.map_or(Self::Release, |(policy, _)| *policy)
    }

    /// The policy of that name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let known = Self::ALL.iter().find(|(_, known)| *known == name);
        known.map(|(policy, _)| *policy)
    }

    /// Its name in sysfs.
    pub(crate) fn name(self) -> &'static str {
        let known = Self::ALL.iter().find(|(policy, _)| *policy == self);
        known.map_or("", |(_, name)| name)
    }
}

/// One job: extents to be overwritten with zeros.
#[pin_data]
pub(crate) struct Scrub {
    parts: KVec<Part>,
    /// Set once: the workers are to end at their next step.
    stop: Atomic<bool>,
    /// Set once: a step could not be made.
    failed: Atomic<bool>,
    /// Workers that have not ended. What they did is visible to whoever finds 0 here.
    #[pin]
    running: Mutex<usize>,
    #[pin]
    ended: CondVar,
}

/// One extent and how far its worker is.
struct Part {
    extent: Extent,
    /// Bytes cleared, from the start of the extent on.
    done: Atomic<u64>,
}

impl Part {
    fn done(&self) -> u64 {
        self.done.load(Relaxed)
    }
}

/// How many bytes of a job, or of one of its extents, are cleared.
pub(crate) struct Progress {
    pub(crate) done: u64,
    pub(crate) total: u64,
}

impl Scrub {
    /// Whether all workers have ended: finished, stopped or failed.
    pub(crate) fn has_ended(&self) -> bool {
        *self.running.lock() == 0
    }

    /// Whether a step could not be made; the job ends undone then.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// Ends the job after the steps under way, a few milliseconds at most, and waits for that.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Relaxed);
        let mut running = self.running.lock();
        while *running > 0 {
            self.ended.wait(&mut running);
        }
    }

    /// Waits for the end of the job, or for a signal.
    ///
    /// # Errors
    ///
    /// ERESTARTSYS when a signal came first.
    pub(crate) fn wait(&self) -> Result<(), Error> {
        let mut running = self.running.lock();
        while *running > 0 {
            if self.ended.wait_interruptible(&mut running) {
                return Err(Error::Kernel(ERESTARTSYS));
            }
        }
        Ok(())
    }

    /// What is cleared already, of each extent.
    pub(crate) fn done(&self) -> impl Iterator<Item = Extent> + '_ {
        self.parts.iter().map(|part| part.extent.head(part.done()))
    }

    /// What is not.
    pub(crate) fn undone(&self) -> impl Iterator<Item = Extent> + '_ {
        self.parts
            .iter()
            .filter_map(|part| part.extent.tail(part.done()))
    }

    /// Each extent with its progress.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Extent, Progress)> + '_ {
        self.parts.iter().map(|part| {
            let (done, total) = (part.done(), part.extent.len);
            (part.extent, Progress { done, total })
        })
    }

    /// The progress of the whole job.
    pub(crate) fn progress(&self) -> Progress {
        let mut sum = Progress { done: 0, total: 0 };
        for (_, part) in self.parts() {
            // The extents are disjoint pieces of physical memory: no sum of theirs overflows.
            sum.done = sum.done.saturating_add(part.done);
            sum.total = sum.total.saturating_add(part.total);
        }
        sum
    }

    /// One worker's life.
    fn work_on(&self, part: &Part) {
        trace::scrub(&part.extent, part.done(), Scrubbing::Begun);
        let mut state = Scrubbing::Stopped;
        while !self.stop.load(Relaxed) {
            let done = part.done();
            let Some(step) = part.extent.step(done) else {
                state = Scrubbing::Done;
                break;
            };
            if clear(step).is_err() {
                state = Scrubbing::Failed;
                self.failed.store(true, Relaxed);
                break;
            }
            part.done.store(done.saturating_add(step.len), Relaxed);
            task::yield_if_due();
        }
        trace::scrub(&part.extent, part.done(), state);
        let mut running = self.running.lock();
        *running -= 1;
        let last = *running == 0;
        drop(running);
        if last {
            registry::scrub_ended(self);
            self.ended.notify_all();
        }
    }
}

/// Overwrites memory with zeros, but for what is poisoned.
fn clear(step: Extent) -> Result {
    let mut left = Some(step);
    while let Some(sound) = left.as_ref().and_then(poison::first_sound) {
        KernelMap::new(&sound)?.clear();
        CLEARED.add(sound.len, Relaxed);
        left = sound
            .end()
            .zip(step.end())
            .and_then(|(from, to)| Extent::between(from, to))
            .filter(|left| left.len > 0);
    }
    Ok(())
}

/// A job that has everything it needs to run, but does not yet.
pub(crate) struct Prepared {
    scrub: Arc<Scrub>,
    workers: KVec<Arc<Worker>>,
}

impl Prepared {
    /// Prepares to clear these extents, of which there is at least one.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub(crate) fn new(extents: &[Extent]) -> Result<Self> {
        let mut parts = KVec::with_capacity(extents.len(), GFP_KERNEL)?;
        for extent in extents {
            let done = Atomic::new(0);
            let extent = *extent;
            parts.push(Part { extent, done }, GFP_KERNEL)?;
        }
        let scrub = Arc::pin_init(
            pin_init!(Scrub {
                running <- new_mutex!(parts.len(), "Scrub::running"),
                ended <- new_condvar!("Scrub::ended"),
                parts,
                stop: Atomic::new(false),
                failed: Atomic::new(false),
            }),
            GFP_KERNEL,
        )?;
        let mut workers = KVec::with_capacity(extents.len(), GFP_KERNEL)?;
        for index in 0..extents.len() {
            let scrub = scrub.clone();
            let worker = Arc::pin_init(
                pin_init!(Worker {
                    scrub,
                    index,
                    work <- new_work!("Worker::work"),
                }),
                GFP_KERNEL,
            )?;
            workers.push(worker, GFP_KERNEL)?;
        }
        Ok(Self { scrub, workers })
    }

    /// The job.
    pub(crate) fn scrub(&self) -> &Arc<Scrub> {
        &self.scrub
    }

    /// Lets it run.
    pub(crate) fn start(self, queue: &WorkQueue) {
        for worker in self.workers {
            // A worker is queued this one time: there is no other that could be in the way.
            let _ = queue.enqueue(worker);
        }
    }
}

/// Clears one extent of a job.
#[pin_data]
struct Worker {
    scrub: Arc<Scrub>,
    index: usize,
    #[pin]
    work: Work<Worker>,
}

impl_has_work! {
    impl HasWork<Self> for Worker { self.work }
}

impl WorkItem for Worker {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if let Some(part) = this.scrub.parts.get(this.index) {
            this.scrub.work_on(part);
        }
    }
}
