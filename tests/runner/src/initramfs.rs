// SPDX-License-Identifier: GPL-2.0
//! The cpio archives the kernel unpacks at boot ("newc": Documentation/driver-api/early-userspace/buffer-format.rst).

/// One file or directory.
pub struct Entry<'a> {
    name: String,
    mode: u32,
    data: &'a [u8],
}

impl<'a> Entry<'a> {
    /// An executable file.
    pub fn program(name: &str, data: &'a [u8]) -> Self {
        Entry {
            name: name.to_owned(),
            mode: 0o100_755,
            data,
        }
    }

    /// A plain file.
    pub fn file(name: &str, data: &'a [u8]) -> Self {
        Entry {
            name: name.to_owned(),
            mode: 0o100_644,
            data,
        }
    }

    /// A directory.
    pub fn directory(name: &str) -> Self {
        Entry {
            name: name.to_owned(),
            mode: 0o040_755,
            data: &[],
        }
    }
}

/// An archive being written.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    count: u32,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Archive::default()
    }

    /// Appends an entry; directories come before what is in them.
    pub fn add(&mut self, entry: Entry<'_>) {
        self.count += 1;
        let links = 1;
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name length, checksum
        let fields = [
            self.count,
            entry.mode,
            0,
            0,
            links,
            0,
            length(entry.data),
            0,
            0,
            0,
            0,
            length(entry.name.as_bytes()) + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(entry.name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(entry.data);
        self.pad();
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.add(Entry {
            name: "TRAILER!!!".to_owned(),
            mode: 0,
            data: &[],
        });
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn length(bytes: &[u8]) -> u32 {
    // The format has 32 bits for it; what goes in here is a few MiB.
    u32::try_from(bytes.len()).expect("a file for the initramfs is larger than 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_the_fields_where_the_kernel_reads_them() {
        let mut archive = Archive::new();
        archive.add(Entry::program("init", b"12345"));
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081ED");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[94..102], b"00000005");
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..121], b"12345");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes.len() % 4 == 0);
    }
}
