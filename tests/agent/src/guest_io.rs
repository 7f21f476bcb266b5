// SPDX-License-Identifier: GPL-2.0
//! What a second-level guest does with disks, shared directories and the network when it is told to.
//!
//! | command | what it does, each with so many MiB of the pattern of this seed |
//! |---|---|
//! | `disk NAME write SEED MIB` | writes them to /dev/NAME, past the guest's page cache |
//! | `disk NAME read SEED MIB` | reads them back |
//! | `share TAG write SEED MIB` | writes them to a file of the directory that the host shares by virtiofs, past the guest's page cache |
//! | `share TAG read SEED MIB` | reads them back |
//! | `share TAG create SEED MIB` | writes them to another file, which the open past the page cache makes |
//! | `net send SEED MIB` | sends them to the host |
//! | `net receive SEED MIB` | gets them from the host |
//!
//! The answer is `done MILLISECONDS`, or `failed: WHY`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::case::{Failure, Named, Outcome};
use crate::mapping::{Map, Mapping};
use crate::pattern::Pattern;
use crate::region::MIB;
use crate::{fail, module, mount};

/// The host's end of the network, where somebody listens.
pub const HOST: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 9, 0, 1), 9000);
/// The guest's address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const INTERFACE: &[u8] = b"eth0";
/// The file that the guest makes in a shared directory.
pub const SHARED_FILE: &str = "shared";

/// How long hardware may take to appear, in nested emulation on a busy machine.
const APPEARS: Duration = Duration::from_secs(60);

/// Whether a command is for this file.
pub fn knows(command: &str) -> bool {
    ["disk ", "share ", "net "]
        .iter()
        .any(|kind| command.starts_with(kind))
}

/// Executes it.
pub fn obey(command: &str) -> String {
    let begin = Instant::now();
    match execute(command) {
        Ok(took) => format!("done {}", took.unwrap_or(begin.elapsed()).as_millis()),
        Err(Failure::Fail(why) | Failure::Skip(why)) => format!("failed: {why}"),
    }
}

/// What it took, without what had to be set up before.
fn execute(command: &str) -> Outcome<Option<Duration>> {
    let words: Vec<&str> = command.split_ascii_whitespace().collect();
    let numbers = |seed: &str, mib: &str| -> Outcome<(Pattern, u64)> {
        Ok((Pattern::new(seed.parse()?), mib.parse::<u64>()? * MIB))
    };
    load_modules()?;
    match words[..] {
        [kind @ ("disk" | "share"), name, action, seed, mib] => {
            let (pattern, length) = numbers(seed, mib)?;
            let disk = match kind {
                "disk" => open_disk(name)?,
                _ if action == "create" => open_direct(&shared(name)?.join("created"), true)?,
                _ => open_shared(name)?,
            };
            let begin = Instant::now();
            match action {
                "write" => write_disk(&disk, pattern, length)?,
                "create" if kind == "share" => write_disk(&disk, pattern, length)?,
                "read" => read_disk(&disk, pattern, length)?,
                _ => fail!("a {kind} does not {action}"),
            }
            Ok(Some(begin.elapsed()))
        }
        ["net", action, seed, mib] => {
            let (pattern, length) = numbers(seed, mib)?;
            start_network()?;
            let stream = TcpStream::connect(HOST).named("the host")?;
            let begin = Instant::now();
            match action {
                "send" => send(stream, pattern, length)?,
                "receive" => receive(stream, pattern, length)?,
                _ => fail!("the network does not {action}"),
            }
            Ok(Some(begin.elapsed()))
        }
        _ => fail!("not understood: {command}"),
    }
}

/// Loads the modules that came along, once.
pub fn load_modules() -> Outcome {
    let mut files: Vec<_> = fs::read_dir("/modules")
        .named("/modules")?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    for file in files {
        module::insert(&file)?;
        fs::remove_file(file)?;
    }
    Ok(())
}

fn wait_for(path: &Path) -> Outcome {
    let deadline = Instant::now() + APPEARS;
    while !path.exists() {
        if Instant::now() > deadline {
            fail!("there is no {}", path.display());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn open_disk(name: &str) -> Outcome<File> {
    let path = Path::new("/dev").join(name);
    wait_for(&path)?;
    open_direct(&path, false)
}

/// The directory of this tag, mounted.
fn shared(tag: &str) -> Outcome<PathBuf> {
    let directory = Path::new("/share").join(tag);
    if !directory.exists() {
        mount::mount(tag, &directory.display().to_string(), "virtiofs", 0, "")?;
    }
    Ok(directory)
}

/// The file in the directory of this tag, made as any other file where it is not there yet.
fn open_shared(tag: &str) -> Outcome<File> {
    let file = shared(tag)?.join(SHARED_FILE);
    if !file.exists() {
        File::create(&file).named(file.display())?;
    }
    open_direct(&file, false)
}

/// Opens for reading and writing past the page cache.
fn open_direct(path: &Path, create: bool) -> Outcome<File> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    options.create(create).open(path).named(path.display())
}

/// Room for one piece, at a page's boundary as O_DIRECT wants it.
fn piece() -> io::Result<Mapping> {
    Map::new(MIB).anonymous()
}

fn bytes(piece: &mut Mapping) -> &mut [u8] {
    // SAFETY: memory of this process alone, as long as the mapping, which is borrowed meanwhile.
    unsafe { std::slice::from_raw_parts_mut(piece.address() as *mut u8, piece.len()) }
}

fn write_disk(disk: &File, pattern: Pattern, length: u64) -> Outcome {
    let mut piece = piece()?;
    for at in (0..length).step_by(piece.len()) {
        pattern.fill(piece.words(0, MIB), at);
        disk.write_all_at(bytes(&mut piece), at)?;
    }
    Ok(disk.sync_all()?)
}

/// Reads what [`write_disk`] has written.
pub fn read_disk(disk: &File, pattern: Pattern, length: u64) -> Outcome {
    let mut piece = piece()?;
    for at in (0..length).step_by(piece.len()) {
        bytes(&mut piece).fill(0);
        disk.read_exact_at(bytes(&mut piece), at)?;
        pattern.verify(piece.words(0, MIB), at)?;
    }
    Ok(())
}

/// Sends so much, and waits until the other side says that it was right.
pub fn send(mut stream: TcpStream, pattern: Pattern, length: u64) -> Outcome {
    let mut piece = piece()?;
    for at in (0..length).step_by(piece.len()) {
        pattern.fill(piece.words(0, MIB), at);
        stream.write_all(bytes(&mut piece))?;
    }
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(())
}

/// Receives what [`send`] sends.
pub fn receive(mut stream: TcpStream, pattern: Pattern, length: u64) -> Outcome {
    let mut piece = piece()?;
    for at in (0..length).step_by(piece.len()) {
        stream.read_exact(bytes(&mut piece))?;
        pattern.verify(piece.words(0, MIB), at)?;
    }
    Ok(stream.write_all(&[1])?)
}

/// Gives the network device its address.
fn start_network() -> Outcome {
    if !Path::new("/sys/class").exists() {
        mount::mount("sys", "/sys", "sysfs", 0, "")?;
    }
    wait_for(Path::new("/sys/class/net/eth0"))?;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(INTERFACE) {
        *to = *from as libc::c_char;
    }
    let up = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    for (call, address) in [
        (libc::SIOCSIFADDR, Some(ADDRESS)),
        (libc::SIOCSIFNETMASK, Some(NETMASK)),
        (libc::SIOCSIFFLAGS, None),
    ] {
        match address {
            Some(address) => request.ifr_ifru.ifru_addr = internet(address),
            None => request.ifr_ifru.ifru_flags = up,
        }
        // SAFETY: the request is what each of these calls wants, and outlives it.
        if unsafe { libc::ioctl(socket.as_raw_fd(), call as libc::Ioctl, &raw const request) } != 0
        {
            return Err(io::Error::last_os_error()).named(format_args!("ioctl {call:#x} of eth0"));
        }
    }
    Ok(())
}

fn internet(address: Ipv4Addr) -> libc::sockaddr {
    let mut data: [libc::c_char; 14] = [0; 14];
    // Behind the port.
    for (to, from) in data[2..].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}
