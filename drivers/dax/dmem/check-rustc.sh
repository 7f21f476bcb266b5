#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# check-rustc.sh CONFIG [RUSTC]: refuses a Rust compiler other than the one that
# built the kernel whose configuration file is CONFIG.
#
# Rust has no stable ABI, and Debian's kernel has no MODVERSIONS: nothing at
# load time would notice a module whose types another compiler laid out. So the
# version text must be the kernel's own, to the letter.

config=${1:?usage: check-rustc.sh CONFIG [RUSTC]}
rustc=${2:-rustc}

wanted=$(sed -n 's/^CONFIG_RUSTC_VERSION_TEXT="\(.*\)"$/\1/p' "$config") || exit 1
if [ -z "$wanted" ]; then
	echo "dax_dmem: $config names no Rust compiler: this kernel was built without Rust, use one with CONFIG_RUST=y" >&2
	exit 1
fi

# $rustc may be a command with arguments, as everywhere in kbuild.
# shellcheck disable=SC2086
found=$($rustc --version 2>/dev/null | head -n 1)
if [ "$found" != "$wanted" ]; then
	echo "dax_dmem: $rustc is '${found:-not there}', the kernel was built by '$wanted': install that one, or name it with RUSTC=" >&2
	exit 1
fi
