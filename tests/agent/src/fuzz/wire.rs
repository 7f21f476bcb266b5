// SPDX-License-Identifier: GPL-2.0
//! What the processes of a run say to each other: a packet is a list of numbers.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::op::{Observed, Seen};

/// More than any operation of another process has to say.
const LONGEST: usize = 128 * 1024;

/// Both ends of a line that keeps packets whole.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors.
    let result = unsafe {
        libc::socketpair(
            libc::AF_UNIX,
            libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
            0,
            ends.as_mut_ptr(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were opened just now, and are nobody else's.
    Ok(ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).into())
}

/// Sends a packet.
pub fn send(fd: RawFd, packet: &[u8]) -> io::Result<()> {
    // SAFETY: the slice is valid for its length.
    let sent = unsafe { libc::send(fd, packet.as_ptr().cast(), packet.len(), libc::MSG_NOSIGNAL) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Waits for a packet; a tracer's interruptions do not count. Empty: nobody is there any more.
pub fn receive(fd: RawFd) -> io::Result<Vec<u8>> {
    let mut packet = vec![0u8; LONGEST];
    loop {
        // SAFETY: the vector is valid for its length.
        let length = unsafe { libc::recv(fd, packet.as_mut_ptr().cast(), packet.len(), 0) };
        if length >= 0 {
            packet.truncate(length as usize);
            return Ok(packet);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Whether a packet arrives within so many milliseconds.
pub fn is_readable(fd: RawFd, milliseconds: i32) -> bool {
    let mut wanted = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid structure.
    unsafe { libc::poll(&mut wanted, 1, milliseconds) > 0 }
}

/// An observation as a packet.
pub fn encode(observed: &Observed) -> Vec<u8> {
    let mut numbers = vec![observed.steps.len() as u64];
    for (step, seen) in &observed.steps {
        let (kind, value) = match *seen {
            Seen::Done => (0, 0),
            Seen::Word(word) => (1, word),
            Seen::Number(number) => (2, number),
            Seen::Fault(signal, code) => (3, ((signal as u32 as u64) << 32) | code as u32 as u64),
            Seen::Errno(errno) => (4, errno as u32 as u64),
        };
        numbers.extend([*step as u64, kind, value]);
    }
    for shown in &observed.shown {
        numbers.extend(shown);
    }
    numbers.iter().flat_map(|n| n.to_ne_bytes()).collect()
}

/// The observation of a packet, `None` if it is none.
pub fn decode(packet: &[u8]) -> Option<Observed> {
    let numbers: Vec<u64> = packet
        .chunks_exact(8)
        .map(|chunk| chunk.try_into().map(u64::from_ne_bytes))
        .collect::<Result<_, _>>()
        .ok()?;
    let (count, rest) = numbers.split_first()?;
    let steps_end = usize::try_from(*count).ok()?.checked_mul(3)?;
    let (steps, shown) = rest.split_at_checked(steps_end)?;
    let mut observed = Observed::default();
    for step in steps.chunks_exact(3) {
        let seen = match step[1] {
            0 => Seen::Done,
            1 => Seen::Word(step[2]),
            2 => Seen::Number(step[2]),
            3 => Seen::Fault((step[2] >> 32) as i32, step[2] as i32),
            4 => Seen::Errno(step[2] as i32),
            _ => return None,
        };
        observed.steps.push((step[0] as usize, seen));
    }
    for shown in shown.chunks_exact(4) {
        observed.shown.push(shown.try_into().ok()?);
    }
    Some(observed)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn an_observation_survives_the_line() {
        let observed = Observed {
            steps: vec![
                (0, Seen::Done),
                (1, Seen::Word(u64::MAX)),
                (1, Seen::Fault(libc::SIGBUS, -2)),
                (2, Seen::Errno(22)),
                (3, Seen::Number(4096)),
            ],
            shown: vec![[1, 2, 3, 4], [5, 6, 7, 8]],
        };
        let (one, other) = pair().unwrap();
        let (here, there) = (one.as_raw_fd(), other.as_raw_fd());
        send(here, &encode(&observed)).unwrap();
        assert!(is_readable(there, 0) && !is_readable(here, 0));
        assert_eq!(decode(&receive(there).unwrap()), Some(observed));
        assert_eq!(decode(&[1, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
