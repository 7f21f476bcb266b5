// SPDX-License-Identifier: GPL-2.0

//! Memory that is lent to the host: kmem makes memory blocks of a device, which the kernel then uses as any memory.
//!
//! Blocks are brought online as movable: what programs have in them can be put elsewhere when they are to go offline.
//! kmem has one try at giving memory back: a block that is online when it is unbound stays the host's until reboot. So
//! nothing is unbound before every block is offline.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::thread::{sleep, spawn, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::Signal as Number;
use signal_hook::consts::SIGALRM;

use crate::bus::{total, Range};
use crate::error::{Error, Result};
use crate::holders::Holders;
use crate::scrub::Progress;
use crate::sysfs;
use crate::wait::{Show, Signal};

/// Longest try at one block: the kernel goes on for ever where something can be moved in principle.
const TRY: Duration = Duration::from_secs(4);
/// Time between two rounds.
const PAUSE: Duration = Duration::from_millis(500);
/// At most so many blocks are named in a message.
const SHOWN: usize = 8;

const MEMORY: &str = "/sys/devices/system/memory";

/// The blocks of a device, as kmem makes them: those that lie in its ranges as a whole.
#[derive(Debug)]
pub struct Blocks(Vec<Block>);

/// A memory block, `memoryN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    number: u64,
    range: Range,
}

/// Bytes of a block.
pub fn block_size() -> Option<u64> {
    let text = sysfs::text(&Path::new(MEMORY).join("block_size_bytes"))?;
    u64::from_str_radix(&text, 16).ok().filter(|size| *size > 0)
}

impl Block {
    fn path(self) -> PathBuf {
        Path::new(MEMORY).join(self.to_string())
    }

    fn is_offline(self) -> bool {
        sysfs::text(&self.path().join("state")).as_deref() == Some("offline")
    }

    /// Whether it is where the kernel keeps nothing that cannot be moved.
    fn is_movable(self) -> bool {
        let zones = sysfs::text(&self.path().join("valid_zones")).unwrap_or_default();
        zones.split(' ').next() == Some("Movable")
    }

    fn make(self, state: &str) -> io::Result<()> {
        sysfs::write(&self.path().join("state"), state)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory{}", self.number)
    }
}

impl Blocks {
    /// Of a device with these ranges, where blocks have that size.
    pub fn of(ranges: &[Range], size: u64) -> Blocks {
        let whole = |range: &Range| {
            let end = range.start.saturating_add(range.len) / size;
            (range.start.div_ceil(size)..end).map(|number| Block {
                number,
                range: Range {
                    start: number * size,
                    len: size,
                },
            })
        };
        Blocks(ranges.iter().flat_map(whole).collect())
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Bytes in them.
    pub fn bytes(&self) -> u64 {
        total(self.0.iter().map(|block| &block.range))
    }

    /// Whether there is one of them.
    pub fn are_there(&self) -> bool {
        self.0.iter().any(|block| block.path().exists())
    }

    /// Whether none of them is in use.
    pub fn are_offline(&self) -> bool {
        self.0.iter().all(|block| block.is_offline())
    }

    /// Number of blocks that are where the kernel may keep what cannot be moved.
    pub fn unmovable(&self) -> usize {
        self.0.iter().filter(|block| !block.is_movable()).count()
    }

    /// Brings those online that are offline.
    pub fn online(&self) -> Result<()> {
        for block in self.0.iter().filter(|block| block.is_offline()) {
            let what = format!("cannot bring {block} online");
            block.make("online_movable").map_err(Error::kernel(what))?;
        }
        Ok(())
    }

    /// Takes all of them offline: what is in them is moved elsewhere. Tries again until the time is over, or a signal
    /// ends it; then those that are left, and why.
    pub fn offline(&self, what: &str, timeout: Duration) -> Result<Result<(), Held>> {
        let signal = Signal::new()?;
        let ticker = Ticker::new()?;
        let began = Instant::now();
        let taking = format!("{what}: taking it back");
        let mut show: Option<Show> = None;
        loop {
            let mut held = Vec::new();
            let mut untried = 0;
            for (index, block) in self.0.iter().enumerate() {
                let over = began.elapsed() >= timeout && !held.is_empty();
                if over || signal.arrived().is_some() {
                    untried += usize::from(!block.is_offline());
                    continue;
                }
                if block.is_offline() {
                    continue;
                }
                if let Err(error) = ticker.within(TRY, || block.make("offline")) {
                    held.push((*block, error));
                }
                let done = index.saturating_sub(held.len()).saturating_add(1);
                let now = Progress {
                    done: u64::try_from(done)
                        .unwrap_or(0)
                        .saturating_mul(block.range.len),
                    total: self.bytes(),
                };
                let show = show.get_or_insert_with(|| Show::new(&taking, now));
                show.update(&taking, now, began.elapsed());
            }
            if held.is_empty() && untried == 0 {
                show.iter().for_each(Show::clear);
                return Ok(Ok(()));
            }
            if signal.arrived().is_some() || began.elapsed() >= timeout {
                show.iter().for_each(Show::clear);
                let numbers: BTreeSet<u64> = held.iter().map(|(block, _)| block.number).collect();
                let size = self.0.first().map_or(1, |block| block.range.len);
                return Ok(Err(Held {
                    holders: Holders::of(&numbers, size),
                    blocks: held,
                    untried,
                    all: self.0.len(),
                }));
            }
            sleep(PAUSE);
        }
    }
}

/// Blocks that did not go offline.
#[derive(Debug)]
pub struct Held {
    blocks: Vec<(Block, io::Error)>,
    holders: Holders,
    /// Number of those that were not tried, for want of time or because of a signal.
    untried: usize,
    all: usize,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (held, all) = (self.blocks.len(), self.all);
        match (held, self.untried) {
            (0, _) => return write!(f, "a signal ended it before all {all} memory blocks were offline"),
            (_, 0) => write!(f, "{held} of {all} memory blocks cannot be taken offline now")?,
            (_, untried) => write!(
                f,
                "{held} of {all} memory blocks cannot be taken offline now, {untried} were not tried"
            )?,
        }
        for (block, error) in self.blocks.iter().take(SHOWN) {
            let why = match error.kind() {
                io::ErrorKind::Interrupted => "what is in it could not be moved elsewhere in time",
                io::ErrorKind::ResourceBusy => "the kernel cannot move what is in it",
                _ => "the kernel refuses",
            };
            let holds = self.holders.block(block.number);
            write!(f, "\n  {block} ({}): {why} ({error}); {holds}", block.range)?;
        }
        if let Some(more @ 1..) = held.checked_sub(SHOWN) {
            write!(f, "\n  and {more} more")?;
        }
        write!(f, "\n{}", self.holders)
    }
}

/// Interrupts system calls that take too long, by a signal that nobody else heeds.
struct Ticker {
    orders: Option<Sender<Option<Instant>>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn new() -> Result<Ticker> {
        let nothing = std::sync::Arc::default();
        signal_hook::flag::register(SIGALRM, nothing)
            .map_err(Error::kernel("cannot watch for signals"))?;
        let caller = pthread_self();
        let (orders, inbox) = channel::<Option<Instant>>();
        let thread = spawn(move || {
            let mut due: Option<Instant> = None;
            loop {
                let pause = due.map_or(Duration::from_secs(3600), |due| {
                    due.saturating_duration_since(Instant::now())
                });
                match inbox.recv_timeout(pause) {
                    Ok(order) => due = order,
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) if due.is_some() => {
                        let _ = pthread_kill(caller, Number::SIGALRM);
                        // Again, should it have come before the call had begun.
                        due = Some(Instant::now() + Duration::from_millis(200));
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
        });
        Ok(Ticker {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// The call ends with EINTR when it takes longer.
    fn within<T>(&self, longest: Duration, call: impl FnOnce() -> T) -> T {
        let order = |due| self.orders.as_ref().map(|orders| orders.send(due));
        order(Some(Instant::now() + longest));
        let result = call();
        order(None);
        result
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn blocks_lie_in_ranges_as_a_whole() {
        let range = |start: u64, len: u64| Range {
            start: start * MIB,
            len: len * MIB,
        };
        let blocks = Blocks::of(
            &[range(4096, 256), range(8254, 260), range(9000, 100)],
            128 * MIB,
        );
        let numbers: Vec<u64> = blocks.0.iter().map(|block| block.number).collect();
        assert_eq!(numbers, [32, 33, 65]);
        assert_eq!((blocks.len(), blocks.bytes()), (3, 384 * MIB));
        assert_eq!(blocks.0[2].to_string(), "memory65");
        assert_eq!(blocks.0[2].range, range(8320, 128));
    }

    #[test]
    fn calls_that_take_too_long_are_interrupted() {
        let ticker = Ticker::new().unwrap();
        let began = Instant::now();
        // Ends by a signal only.
        ticker.within(Duration::from_millis(50), nix::unistd::pause);
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(ticker.within(Duration::from_secs(60), || 7), 7);
    }
}
