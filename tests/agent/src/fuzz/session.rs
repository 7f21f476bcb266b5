// SPDX-License-Identifier: GPL-2.0
//! Does operations: process 0 and what it forks.
//!
//! Every process knows the whole list, as it was made before the first fork; an operation of another process is
//! sent to it as its number. One operation is under way at a time, and process 0 hears of its end.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::calls::{
    done_if, errno, length, observe, outcome, pointer, race_touches, read, remap, run_threads,
    strict, touch, trace,
};
use super::op::{
    address, Lock, Observed, Op, Place, Prot, Seen, Span, Touch, BLOCK, DEVICES, FILES, PAGE,
    PROCESSES,
};
use super::wire;
use crate::case::{Failure, Named, Outcome};
use crate::device::Device;
use crate::fail;
use crate::region::Region;

mod devices;
mod tracer;

/// Threads that touch during a race.
const RACERS: usize = 2;
/// Silence of another process that means it hangs.
const PATIENCE: Duration = Duration::from_secs(50);

/// The part of a region a run has for itself.
#[derive(Debug, Clone)]
pub struct Window {
    /// The region.
    pub region: Region,
    /// First byte, counted from the region's start.
    pub offset: u64,
    /// Taken while devices are made, bound and unbound: the region names the youngest only, and whoever writes
    /// `new_id` has all devices bound whose names are on the driver's list at that moment.
    pub lock: String,
}

/// A device that was made.
struct Made {
    device: Device,
    /// As the operation had them.
    parts: Vec<(u64, u64)>,
}

/// The doing side of a run.
pub struct Session<'a> {
    ops: &'a [Op],
    window: &'a Window,
    /// Which process this is.
    me: usize,
    files: [RawFd; FILES],
    devices: [Option<Made>; DEVICES],
    /// For each process, the end of process 0 and its own.
    lines: Vec<(OwnedFd, OwnedFd)>,
    pids: [libc::pid_t; PROCESSES],
}

impl<'a> Session<'a> {
    /// Process 0, with nothing open and nothing mapped.
    pub fn new(ops: &'a [Op], window: &'a Window) -> Outcome<Self> {
        let lines = (0..PROCESSES)
            .map(|_| wire::pair())
            .collect::<io::Result<_>>()?;
        Ok(Session {
            ops,
            window,
            me: 0,
            files: [-1; FILES],
            devices: [const { None }; DEVICES],
            lines,
            pids: [0; PROCESSES],
        })
    }

    /// Does the operation of that number, in whichever process it belongs to.
    pub fn perform(&mut self, index: usize) -> Outcome<Observed> {
        let ops = self.ops;
        let op = &ops[index];
        let Some(who) = actor(op).filter(|who| *who != self.me) else {
            return self.run(op, None);
        };
        let mut packet = (index as u64).to_ne_bytes().to_vec();
        if let Op::Open { device, .. } = op {
            let path = self.device(*device)?.device.path();
            packet.extend_from_slice(path.as_os_str().as_bytes());
        }
        wire::send(self.lines[who].0.as_raw_fd(), &packet)?;
        if let Op::Exit { .. } = op {
            return self.reap(who);
        }
        let mut observed = self.answer(who)?;
        if let Op::Fork { child, .. } = op {
            self.note_child(*child, &mut observed);
        }
        Ok(observed)
    }

    fn answer(&mut self, who: usize) -> Outcome<Observed> {
        let line = self.lines[who].0.as_raw_fd();
        let begin = Instant::now();
        while !wire::is_readable(line, 1000) {
            if let Some(status) = self.try_wait(who, libc::WNOHANG)? {
                fail!("process {who} ended in the middle of it, with status {status:#x}");
            }
            if begin.elapsed() > PATIENCE {
                fail!("process {who} does not come back from it");
            }
        }
        match wire::decode(&wire::receive(line)?) {
            Some(observed) => Ok(observed),
            None => fail!("process {who} did not understand"),
        }
    }

    fn try_wait(&self, who: usize, flags: i32) -> Outcome<Option<i32>> {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        match unsafe { libc::waitpid(self.pids[who], &mut status, flags) } {
            0 => Ok(None),
            pid if pid > 0 => Ok(Some(status)),
            _ => Err(io::Error::last_os_error()).named("waitpid"),
        }
    }

    fn reap(&mut self, who: usize) -> Outcome<Observed> {
        match self.try_wait(who, 0)? {
            Some(0) => Ok(Observed::one(Seen::Done)),
            status => fail!("process {who} ended with status {status:x?}"),
        }
    }

    fn note_child(&mut self, child: usize, observed: &mut Observed) {
        for (_, seen) in &mut observed.steps {
            if let Seen::Number(pid) = *seen {
                self.pids[child] = pid as libc::pid_t;
                *seen = Seen::Done;
            }
        }
    }

    fn device(&self, device: usize) -> Outcome<&Made> {
        match &self.devices[device] {
            Some(device) => Ok(device),
            None => fail!("device {device} is not there"),
        }
    }

    /// Does an operation here. `path`: of the device to open, if this process cannot know it.
    fn run(&mut self, op: &Op, path: Option<&Path>) -> Outcome<Observed> {
        Ok(match *op {
            Op::Create {
                device,
                align,
                ref parts,
            } => self.create(device, align, parts)?,
            Op::Bind { device, policy } => self.bind(device, policy)?,
            Op::Unbind { device } => {
                let _lock = FileLock::take(&self.window.lock)?;
                self.device(device)?.device.unbind()?;
                Observed::one(Seen::Done)
            }
            Op::Destroy { device } => {
                let _lock = FileLock::take(&self.window.lock)?;
                if let Some(made) = self.devices[device].take() {
                    made.device.destroy()?;
                }
                Observed::one(Seen::Done)
            }
            Op::Stamp { device, version } => self.stamp(device, version)?,
            Op::Sweep { device } => self.sweep(device)?,
            Op::Open {
                file,
                device,
                writable,
                nonblock,
                ..
            } => match path {
                Some(path) => self.open(file, path, writable, nonblock),
                None => {
                    let path = self.device(device)?.device.path();
                    self.open(file, &path, writable, nonblock)
                }
            },
            Op::Close { file, .. } => {
                // SAFETY: the descriptor was opened by `open` and is used by nobody else.
                let result = unsafe { libc::close(self.files[file]) };
                self.files[file] = -1;
                Observed::one(outcome(result))
            }
            Op::Map {
                file,
                span,
                offset,
                prot,
                place,
                ..
            } => self.map(file, span, offset, prot, place),
            Op::Unmap { span, .. } => {
                // SAFETY: the arena belongs to the operations; no Rust value lives in it.
                Observed::one(outcome(unsafe {
                    libc::munmap(pointer(span), length(span))
                }))
            }
            Op::Protect { span, prot, .. } => {
                // SAFETY: as above.
                let result = unsafe { libc::mprotect(pointer(span), length(span), prot.bits()) };
                Observed::one(outcome(result))
            }
            Op::Remap {
                span,
                pages,
                to,
                may_move,
                dont_unmap,
                ..
            } => {
                let flag = |set, flag| if set { flag } else { 0 };
                let flags = flag(may_move, libc::MREMAP_MAYMOVE)
                    | flag(dont_unmap, libc::MREMAP_DONTUNMAP)
                    | flag(to.is_some(), libc::MREMAP_FIXED);
                let target = to.map(address);
                Observed::one(remap(span.address(), (span.pages, pages), flags, target))
            }
            Op::Advise { span, advice, .. } => {
                // SAFETY: as above; the kernel checks the advice.
                let result = unsafe { libc::madvise(pointer(span), length(span), advice) };
                Observed::one(outcome(result))
            }
            Op::Lock { span, lock, .. } => {
                let (at, length) = (pointer(span), length(span));
                // SAFETY: changes no memory.
                Observed::one(outcome(unsafe {
                    match lock {
                        Lock::Now => libc::mlock(at, length),
                        Lock::OnFault => libc::mlock2(at, length, libc::MLOCK_ONFAULT),
                        Lock::Undo => libc::munlock(at, length),
                    }
                }))
            }
            Op::Sync { span, wait, .. } => {
                let flags = if wait { libc::MS_SYNC } else { libc::MS_ASYNC };
                // SAFETY: changes no memory.
                Observed::one(outcome(unsafe {
                    libc::msync(pointer(span), length(span), flags)
                }))
            }
            Op::Touch { ref touches, .. } => {
                let mut observed = Observed::default();
                touches.iter().for_each(|one| observed.push(touch(*one)));
                observed
            }
            Op::Threads { ref threads, .. } => run_threads(threads),
            Op::Race {
                ref op,
                ref touches,
            } => self.race(op, touches)?,
            Op::Fork { child, .. } => {
                let mut observed = Observed::one(self.fork(child));
                if self.me == 0 {
                    self.note_child(child, &mut observed);
                }
                observed
            }
            // Process 0 never exits by an operation; others do before they come here.
            Op::Exit { .. } => Observed::default(),
            Op::Peek { who, at, bytes } => self.peek(who, at, bytes)?,
            Op::Poke {
                who,
                at,
                bytes,
                seed,
            } => self.poke(who, at, bytes, seed)?,
            Op::Trace { who, touch } => Observed::one(trace(self.pids[who], touch)?),
            Op::Look { span, look, .. } => observe(span, look)?,
            Op::Hole { span, hole, .. } => Observed::one(strict(span, hole)),
        })
    }

    // ---- files and mappings ----

    fn open(&mut self, file: usize, path: &Path, writable: bool, nonblock: bool) -> Observed {
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
            return Observed::one(Seen::Errno(libc::EINVAL));
        };
        let mode = if writable {
            libc::O_RDWR
        } else {
            libc::O_RDONLY
        };
        let flags = mode | if nonblock { libc::O_NONBLOCK } else { 0 };
        let begin = Instant::now();
        loop {
            // SAFETY: the path ends in NUL.
            let fd = unsafe { libc::open(path.as_ptr(), flags) };
            if fd >= 0 {
                self.files[file] = fd;
                return Observed::one(Seen::Done);
            }
            let errno = errno();
            // Being zeroed: that ends, and until then nobody may have it.
            if errno != libc::EAGAIN || !nonblock || begin.elapsed() > PATIENCE {
                return Observed::one(Seen::Errno(errno));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn map(&self, file: usize, span: Span, offset: u64, prot: Prot, place: Place) -> Observed {
        let (at, flags) = match place {
            Place::Fixed => (span.address(), libc::MAP_SHARED | libc::MAP_FIXED),
            Place::Free => (span.address(), libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE),
            Place::Private => (span.address(), libc::MAP_PRIVATE | libc::MAP_FIXED),
            Place::Chosen => (0, libc::MAP_SHARED),
        };
        // SAFETY: in the arena, which belongs to the operations, or where nothing is.
        let got = unsafe {
            libc::mmap(
                at as *mut libc::c_void,
                length(span),
                prot.bits(),
                flags,
                self.files[file],
                (offset * PAGE) as libc::off_t,
            )
        };
        if got == libc::MAP_FAILED {
            return Observed::one(Seen::Errno(errno()));
        }
        let got = got as u64;
        if place != Place::Chosen {
            return Observed::one(done_if(got == at, got));
        }
        let mut observed = Observed::one(Seen::Done);
        observed.push(Seen::Number(got / PAGE % BLOCK));
        for page in [0, span.pages - 1] {
            observed.push(read(got + page * PAGE));
        }
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let target = Some(span.address());
        observed.push(remap(got, (span.pages, span.pages), flags, target));
        observed
    }

    // ---- processes ----

    /// Forks; in the child this does not return.
    fn fork(&mut self, child: usize) -> Seen {
        let pid = if self.me == 0 {
            // SAFETY: this process has one thread, so every lock of the runtime is free in the child.
            unsafe { libc::fork() }
        } else {
            let flags = libc::CLONE_PARENT | libc::SIGCHLD;
            // Process 0 waits for all of them, so it is made their parent.
            // SAFETY: as above; without a stack of its own the child goes on with a copy of this one, as after
            // fork.
            unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) as libc::pid_t }
        };
        match pid {
            -1 => Seen::Errno(errno()),
            0 => {
                self.me = child;
                let code = self.serve();
                // SAFETY: leaves without running the destructors of the parent's values.
                unsafe { libc::_exit(code) }
            }
            pid => Seen::Number(pid as u64),
        }
    }

    /// The life of a process other than 0.
    fn serve(&mut self) -> i32 {
        // SAFETY: a plain system call on the calling process.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let line = self.lines[self.me].1.as_raw_fd();
        let ops = self.ops;
        loop {
            let Ok(packet) = wire::receive(line) else {
                return 1;
            };
            let Some((index, path)) = packet.split_first_chunk::<8>() else {
                return 2;
            };
            let Some(op) = ops.get(u64::from_ne_bytes(*index) as usize) else {
                return 3;
            };
            if let Op::Exit { .. } = op {
                return 0;
            }
            let path = Path::new(std::ffi::OsStr::from_bytes(path));
            let Ok(observed) = self.run(op, Some(path)) else {
                return 4;
            };
            if wire::send(line, &wire::encode(&observed)).is_err() {
                return 5;
            }
        }
    }

    // ---- races ----

    fn race(&mut self, op: &Op, touches: &[Touch]) -> Outcome<Observed> {
        let (ready, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (result, found) = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..RACERS)
                .map(|_| scope.spawn(|| race_touches(touches, &ready, &over)))
                .collect();
            while ready.load(Ordering::Acquire) < RACERS {
                std::thread::yield_now();
            }
            let result = self.run(op, None);
            over.store(true, Ordering::Release);
            let found: Vec<_> = racers.into_iter().map(|racer| racer.join()).collect();
            (result, found)
        });
        let mut observed = result?;
        let first = observed.steps.last().map_or(0, |(step, _)| step + 1);
        for found in found {
            let Ok(found) = found else {
                fail!("a thread of a race panicked");
            };
            for (index, seen) in found {
                observed.steps.push((first + index, seen));
            }
        }
        Ok(observed)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if self.me != 0 {
            return;
        }
        for pid in self.pids.into_iter().filter(|pid| *pid > 0) {
            // SAFETY: a child of this process, or long reaped: ids are not used again that soon.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
        }
        let _lock = FileLock::take(&self.window.lock);
        self.devices = [const { None }; DEVICES];
    }
}

/// The process that does an operation; `None`: process 0, always.
fn actor(op: &Op) -> Option<usize> {
    match *op {
        Op::Open { who, .. }
        | Op::Close { who, .. }
        | Op::Map { who, .. }
        | Op::Unmap { who, .. }
        | Op::Protect { who, .. }
        | Op::Remap { who, .. }
        | Op::Advise { who, .. }
        | Op::Lock { who, .. }
        | Op::Sync { who, .. }
        | Op::Touch { who, .. }
        | Op::Threads { who, .. }
        | Op::Fork { who, .. }
        | Op::Exit { who }
        | Op::Look { who, .. }
        | Op::Hole { who, .. } => Some(who),
        Op::Create { .. }
        | Op::Bind { .. }
        | Op::Unbind { .. }
        | Op::Destroy { .. }
        | Op::Stamp { .. }
        | Op::Sweep { .. }
        | Op::Race { .. }
        | Op::Peek { .. }
        | Op::Poke { .. }
        | Op::Trace { .. } => None,
    }
}

/// A lock between processes, released when dropped.
struct FileLock(#[allow(dead_code, reason = "holds the lock")] File);

impl FileLock {
    fn take(path: &str) -> Outcome<FileLock> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .named(path)?;
        // SAFETY: the descriptor is open.
        match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } {
            0 => Ok(FileLock(file)),
            _ => Err(Failure::from(io::Error::last_os_error())),
        }
    }
}
