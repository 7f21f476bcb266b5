# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The kernel tree modules are built against, prepared inside the root by
# kernel-tree. Sourced by setup.

kernel_release() {
	cat "$ROOT/etc/daxdmem-lab.release"
}

# kernel_name: one directory for each kernel and each set of tools that would
# prepare it differently.
kernel_name() {
	printf '%s-%s' "$(kernel_release)" "$({
		cat "$LAB_SCRIPTS/kernel-tree"
		awk '$1 == "Package:" { name = $2 }
		     $1 == "Version:" && name ~ /^(bindgen|clang|gcc-|libclang|linux-|pahole|rustc|rust-src)/ { print name, $2 }' \
			"$ROOT/var/lib/dpkg/status"
	} | sha256sum | cut -c1-12)"
}

kernel_ready() {
	[ -e "$LAB_HOST/kernels/$(kernel_name)/.daxdmem-prepared" ]
}

kernel_published() {
	[ "$(readlink "$LAB_HOST/kernel")" = "kernels/$(kernel_name)" ] &&
		[ "$(cat "$LAB_HOST/release")" = "$(kernel_release)" ]
}

# build_kernel: kbuild writes absolute paths, so the tree is made where it
# stays, and the stamp in it comes last.
build_kernel() {
	local tree
	tree=kernels/$(kernel_name)
	mkdir -p "$LAB_HOST/kernels" "$ROOT$LAB" "$ROOT/src"
	mount --bind "$LAB_HOST" "$ROOT$LAB"
	mount --bind "$CHECKOUT" "$ROOT/src"
	mount --rbind /dev "$ROOT/dev"
	mount -t proc proc "$ROOT/proc"
	mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
	chroot "$ROOT" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
		/src/tests/lab/kernel-tree "$(kernel_release)" "$LAB/$tree"
	touch "$LAB_HOST/$tree/.daxdmem-prepared"
}

# publish_kernel: points the fixed names at the tree, then drops older trees.
publish_kernel() {
	local name dir
	name=$(kernel_name)
	kernel_release >"$LAB_HOST/release.new"
	mv "$LAB_HOST/release.new" "$LAB_HOST/release"
	ln -sfn "kernels/$name" "$LAB_HOST/kernel.new"
	mv -T "$LAB_HOST/kernel.new" "$LAB_HOST/kernel"
	for dir in "$LAB_HOST"/kernels/*/; do
		[ "$(basename "$dir")" = "$name" ] || rm -rf --one-file-system "$dir"
	done
}
