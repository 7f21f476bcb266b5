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
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::memory::{stamp, Cell};
use super::model::{hot_blocks, physical, poked, words_in};
use super::op::{
    address, Hole, Lock, Look, Observed, Op, Place, Prot, Seen, Shown, Span, Touch, ARENA,
    ARENA_PAGES, BLOCK, DEVICES, FILES, FLAG_DONTFORK, FLAG_HUGEPAGE, FLAG_NOHUGEPAGE, FLAG_READ,
    FLAG_WRITE, PAGE, PROCESSES, SLOTS,
};
use super::wire;
use crate::case::{Failure, Named, Outcome};
use crate::device::{Device, DAX_DMEM};
use crate::fail;
use crate::mapping::{Map, Mapping};
use crate::probe;
use crate::region::Region;
use crate::scrub::Policy;
use crate::sysfs;

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

    // ---- devices ----

    fn create(&mut self, slot: usize, align: u64, parts: &[(u64, u64)]) -> Outcome<Observed> {
        let _lock = FileLock::take(&self.window.lock)?;
        let bytes = |(block, blocks): &(u64, u64)| {
            let size = BLOCK * PAGE;
            (self.window.offset + block * size, blocks * size)
        };
        let places: Vec<(u64, u64)> = parts.iter().map(bytes).collect();
        let device = self.window.region.create(align, &places)?;
        let parts = parts.to_vec();
        self.devices[slot] = Some(Made { device, parts });
        Ok(Observed::one(Seen::Done))
    }

    fn bind(&self, device: usize, policy: Policy) -> Outcome<Observed> {
        let _lock = FileLock::take(&self.window.lock)?;
        let device = &self.device(device)?.device;
        policy.choose(device)?;
        Ok(Observed::one(match device.attach(DAX_DMEM) {
            Ok(()) => Seen::Done,
            Err(error) => Seen::Errno(error.raw_os_error().unwrap_or(0)),
        }))
    }

    /// The device mapped for a moment, outside the arena.
    fn glimpse(&self, device: usize) -> Outcome<(Mapping, &[(u64, u64)])> {
        let Made { device, parts } = self.device(device)?;
        let length = parts.iter().map(|(_, blocks)| blocks * BLOCK * PAGE).sum();
        let mapping = Map::new(length).file(&device.open()?);
        Ok((mapping.named(&device.name)?, parts))
    }

    fn stamp(&self, device: usize, version: u64) -> Outcome<Observed> {
        let (mapping, parts) = self.glimpse(device)?;
        for (offset, cell) in cells(parts) {
            mapping.write(offset, stamp(version, cell));
        }
        Ok(Observed::one(Seen::Done))
    }

    fn sweep(&self, device: usize) -> Outcome<Observed> {
        let (mapping, parts) = self.glimpse(device)?;
        let mut observed = Observed::default();
        for (offset, _) in cells(parts) {
            observed.push(Seen::Word(mapping.read(offset)));
        }
        Ok(observed)
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

    // ---- tracing ----

    fn memory_of(&self, who: usize) -> Outcome<File> {
        let pid = match who {
            0 => "self".to_owned(),
            who => self.pids[who].to_string(),
        };
        let path = format!("/proc/{pid}/mem");
        File::options()
            .read(true)
            .write(true)
            .open(&path)
            .named(path)
    }

    fn peek(&self, who: usize, at: u64, bytes: u64) -> Outcome<Observed> {
        let mut buffer = vec![0u8; bytes as usize];
        let result = self.memory_of(who)?.read_at(&mut buffer, ARENA + at);
        let got = match result {
            Ok(got) => got as u64,
            Err(error) => {
                return Ok(Observed::one(Seen::Errno(
                    error.raw_os_error().unwrap_or(0),
                )))
            }
        };
        let mut observed = Observed::one(Seen::Number(got));
        for (_, _, byte) in words_in(at, got) {
            let start = (byte - at) as usize;
            let word = buffer[start..].first_chunk().copied().unwrap_or_default();
            observed.push(Seen::Word(u64::from_ne_bytes(word)));
        }
        Ok(observed)
    }

    fn poke(&self, who: usize, at: u64, bytes: u64, seed: u64) -> Outcome<Observed> {
        let words = (at..at + bytes).step_by(8);
        let buffer: Vec<u8> = words
            .flat_map(|byte| poked(seed, byte).to_ne_bytes())
            .collect();
        let result = self.memory_of(who)?.write_at(&buffer, ARENA + at);
        Ok(Observed::one(match result {
            Ok(written) => Seen::Number(written as u64),
            Err(error) => Seen::Errno(error.raw_os_error().unwrap_or(0)),
        }))
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

/// The checked words of a device's hot blocks: byte offset in the device, and which word of the window it is.
fn cells(parts: &[(u64, u64)]) -> impl Iterator<Item = (u64, Cell)> + '_ {
    hot_blocks(parts)
        .into_iter()
        .flat_map(|block| block * BLOCK..(block + 1) * BLOCK)
        .flat_map(move |page| {
            let there = physical(parts, page).unwrap_or_default();
            let cell = move |slot: usize| {
                let offset = page * PAGE + SLOTS[slot];
                (offset, Cell { page: there, slot })
            };
            (0..SLOTS.len()).map(cell)
        })
}

fn pointer(span: Span) -> *mut libc::c_void {
    span.address() as *mut libc::c_void
}

fn length(span: Span) -> usize {
    span.bytes() as usize
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn outcome(result: libc::c_int) -> Seen {
    match result {
        0 => Seen::Done,
        _ => Seen::Errno(errno()),
    }
}

/// Success if an address is the expected one.
fn done_if(expected: bool, got: u64) -> Seen {
    if expected {
        Seen::Done
    } else {
        Seen::Number(got)
    }
}

/// mremap from one number of pages to another; without a target the place has to stay.
fn remap(from: u64, (old, new): (u64, u64), flags: i32, target: Option<u64>) -> Seen {
    // SAFETY: both places belong to the operations; no Rust value lives there.
    let got = unsafe {
        libc::mremap(
            from as *mut libc::c_void,
            (old * PAGE) as usize,
            (new * PAGE) as usize,
            flags,
            target.unwrap_or(0) as *mut libc::c_void,
        )
    };
    if got == libc::MAP_FAILED {
        return Seen::Errno(errno());
    }
    done_if(got as u64 == target.unwrap_or(from), got as u64)
}

fn fault(fault: probe::Fault, address: u64) -> Seen {
    if fault.address as u64 == address {
        Seen::Fault(fault.signal, fault.code)
    } else {
        Seen::Number(fault.address as u64)
    }
}

fn read(address: u64) -> Seen {
    match probe::read(address as usize) {
        Ok(word) => Seen::Word(word),
        Err(found) => fault(found, address),
    }
}

fn touch(touch: Touch) -> Seen {
    let address = address(touch.page) + SLOTS[touch.slot];
    match touch.write {
        None => read(address),
        Some(word) => match probe::write(address as usize, word) {
            Ok(()) => Seen::Done,
            Err(found) => fault(found, address),
        },
    }
}

fn run_threads(threads: &[Vec<Touch>]) -> Observed {
    let ready = AtomicUsize::new(0);
    let seen: Vec<Vec<Seen>> = std::thread::scope(|scope| {
        let ready = &ready;
        let running: Vec<_> = threads
            .iter()
            .map(|list| {
                scope.spawn(move || {
                    ready.fetch_add(1, Ordering::AcqRel);
                    while ready.load(Ordering::Acquire) < threads.len() {
                        std::thread::yield_now();
                    }
                    list.iter().map(|one| touch(*one)).collect()
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_default())
            .collect()
    });
    let mut observed = Observed::default();
    seen.into_iter()
        .flatten()
        .for_each(|seen| observed.push(seen));
    observed
}

/// Touches until the operation is over, and once more; each different thing that was seen.
fn race_touches(touches: &[Touch], ready: &AtomicUsize, over: &AtomicBool) -> Vec<(usize, Seen)> {
    let mut found: Vec<(usize, Seen)> = Vec::new();
    let mut last = false;
    loop {
        for (index, one) in touches.iter().enumerate() {
            let seen = (index, touch(*one));
            if !found.contains(&seen) {
                found.push(seen);
            }
        }
        if last {
            return found;
        }
        last = over.load(Ordering::Acquire);
        ready.fetch_add(1, Ordering::AcqRel);
    }
}

fn trace(pid: libc::pid_t, touch: Touch) -> Outcome<Seen> {
    let address = address(touch.page) + SLOTS[touch.slot];
    // SAFETY: `pid` is a child of this process that waits for a packet; `word` is a valid place for what is read.
    unsafe {
        let call = |request: libc::c_uint, at: u64, data: u64| {
            libc::syscall(libc::SYS_ptrace, request as libc::c_ulong, pid, at, data)
        };
        if call(libc::PTRACE_SEIZE, 0, 0) < 0 || call(libc::PTRACE_INTERRUPT, 0, 0) < 0 {
            return Err(io::Error::last_os_error()).named("tracing a process");
        }
        let mut status = 0;
        if libc::waitpid(pid, &mut status, libc::__WALL) != pid || !libc::WIFSTOPPED(status) {
            fail!("process {pid} did not stop for its tracer: status {status:#x}");
        }
        let mut word = 0u64;
        let result = match touch.write {
            None => call(libc::PTRACE_PEEKDATA, address, &raw mut word as u64),
            Some(word) => call(libc::PTRACE_POKEDATA, address, word),
        };
        let seen = match (result, touch.write) {
            (0, None) => Seen::Word(word),
            (0, Some(_)) => Seen::Done,
            _ => Seen::Errno(errno()),
        };
        if call(libc::PTRACE_DETACH, 0, 0) < 0 {
            return Err(io::Error::last_os_error()).named("letting a process go");
        }
        Ok(seen)
    }
}

// ---- looking ----

fn observe(span: Span, look: Look) -> Outcome<Observed> {
    let mut observed = Observed::default();
    match look {
        Look::Maps => observed.shown = vmas(&sysfs::read("/proc/self/maps")?, false),
        Look::Smaps => observed.shown = vmas(&sysfs::read("/proc/self/smaps")?, true),
        Look::NumaMaps => {
            sysfs::read("/proc/self/numa_maps")?;
        }
        Look::Pagemap => {
            let mut entries = vec![0u8; 8 * span.pages.min(8 * BLOCK) as usize];
            File::open("/proc/self/pagemap")?.read_at(&mut entries, span.address() / PAGE * 8)?;
        }
        Look::Mincore => {
            let pages = span.pages.min(8 * BLOCK);
            let mut entries = vec![0u8; pages as usize];
            // SAFETY: the vector has a byte for each page. Holes are refused, which is as good here.
            unsafe {
                libc::mincore(
                    pointer(span),
                    (pages * PAGE) as usize,
                    entries.as_mut_ptr().cast(),
                )
            };
        }
    }
    Ok(observed)
}

/// The arena's VMAs of /proc/PID/maps, or of smaps with flags.
fn vmas(text: &str, with_flags: bool) -> Vec<Shown> {
    let mut shown: Vec<Shown> = Vec::new();
    let mut in_arena = false;
    for line in text.lines() {
        if let Some(vma) = vma_of(line) {
            in_arena = vma.is_some();
            shown.extend(vma);
        } else if let (true, true, Some(flags)) =
            (with_flags, in_arena, line.strip_prefix("VmFlags:"))
        {
            if let Some([_, _, _, bits]) = shown.last_mut() {
                for word in flags.split_ascii_whitespace() {
                    *bits |= match word {
                        "dc" => FLAG_DONTFORK,
                        "nh" => FLAG_NOHUGEPAGE,
                        "hg" => FLAG_HUGEPAGE,
                        _ => 0,
                    };
                }
            }
        }
    }
    shown
}

/// `Some(Some(vma))`: a VMA of the arena; `Some(None)`: another one; `None`: some other line.
fn vma_of(line: &str) -> Option<Option<Shown>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (permissions, offset) = (words.next()?, words.next()?);
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end, offset) = (number(start)?, number(end)?, number(offset)?);
    if !(ARENA..ARENA + ARENA_PAGES * PAGE).contains(&start) {
        return Some(None);
    }
    let flag = |letter, flag| {
        if permissions.contains(letter) {
            flag
        } else {
            0
        }
    };
    Some(Some([
        (start - ARENA) / PAGE,
        (end - ARENA) / PAGE,
        offset / PAGE,
        flag('r', FLAG_READ) | flag('w', FLAG_WRITE),
    ]))
}

fn strict(span: Span, hole: Hole) -> Seen {
    const MPOL_DEFAULT: libc::c_long = 0;
    const MPOL_MF_STRICT: libc::c_long = 1;
    const MPOL_MF_MOVE: libc::c_long = 2;
    let flags = match hole {
        Hole::Strict => MPOL_MF_STRICT,
        Hole::StrictMove => MPOL_MF_STRICT | MPOL_MF_MOVE,
    };
    // SAFETY: a plain system call; the default policy has no mask of nodes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            span.address(),
            span.bytes(),
            MPOL_DEFAULT,
            0,
            0,
            flags,
        )
    };
    match result {
        0 => Seen::Done,
        _ => Seen::Errno(errno()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arenas_vmas_are_read_from_proc() {
        let text = "\
55d0-55d1 r--p 00000000 fd:01 7 /bin/x\n\
VmFlags: rd mr nh\n\
200000002000-200000005000 rw-s 00007000 00:06 9 /dev/dax0.1\n\
Size: 12 kB\n\
VmFlags: rd wr sh pf dc nh\n\
200000005000-200000006000 ---s 00000000 00:06 9 /dev/dax0.1\n\
VmFlags: sh pf hg\n";
        assert_eq!(
            vmas(text, false),
            [[2, 5, 7, FLAG_READ | FLAG_WRITE], [5, 6, 0, 0]]
        );
        let all = FLAG_READ | FLAG_WRITE | FLAG_DONTFORK | FLAG_NOHUGEPAGE;
        assert_eq!(vmas(text, true), [[2, 5, 7, all], [5, 6, 0, FLAG_HUGEPAGE]]);
    }

    #[test]
    fn cells_follow_the_device_and_name_the_window() {
        let parts = [(10, 1), (4, 2)];
        let all: Vec<_> = cells(&parts).collect();
        assert_eq!(all.len() as u64, 3 * BLOCK * 2);
        assert_eq!(
            all[1],
            (
                PAGE - 8,
                Cell {
                    page: 10 * BLOCK,
                    slot: 1
                }
            )
        );
        assert_eq!(
            all[BLOCK as usize * 2],
            (
                BLOCK * PAGE,
                Cell {
                    page: 4 * BLOCK,
                    slot: 0
                }
            )
        );
    }
}
