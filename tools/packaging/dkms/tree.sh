# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Where the prepared kernel trees are kept, and whether one can be used. Sourced.

TREES=/var/cache/daxdmem-dkms

# tree_key RELEASE: what the modules' binary form depends on. The source of the
# kernel's very version may be gone when the next one is installed, so it is not
# asked for again.
tree_key() {
	dpkg-query --show "linux-headers-$1" rustc rust-src bindgen gcc-14 2>/dev/null | sha256sum | cut -c1-16
}

tree_ready() {
	[ "$(cat "$TREES/$1/.daxdmem-prepared" 2>/dev/null)" = "$(tree_key "$1")" ]
}
