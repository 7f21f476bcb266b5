# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Crates of crates.io as cargo has compiled them, kept in lab/deps: a full run of
# the tests keeps them, a checkout that has built nothing yet begins with a copy.
# Cargo tells whether such a crate is up to date by its version, the compiler and
# the flags. Those of this repository it tells by the times of their files, which
# say nothing about another checkout: they are never kept. Sourced by sandbox and
# run-tests.

DEPS=$LAB_HOST/deps

# deps_key: names what the kept crates were made from; others work, but less is of use.
deps_key() {
	key "$ROOT/var/lib/dpkg/status" "$CHECKOUT/tools/Cargo.toml" "$CHECKOUT/tools/Cargo.lock" \
		"$CHECKOUT/mm/dmem/fuzz/Cargo.lock"
}

# deps_seed: gives a new checkout its copy.
deps_seed() {
	[ -d "$DEPS/target" ] || return 0
	[ ! -e "$WORK_HOST/target" ] || return 0
	mkdir -p "$WORK_HOST"
	exec 6>"$CACHE/deps.lock"
	hold 6 "crates: another checkout copies them"
	if [ ! -e "$WORK_HOST/target" ]; then
		rm -rf "$WORK_HOST/target.new"
		cp -a --reflink=auto "$DEPS/target" "$WORK_HOST/target.new"
		mv -T "$WORK_HOST/target.new" "$WORK_HOST/target"
	fi
	exec 6>&-
}

# deps_files: names of the files to keep, below the checkout's build output.
deps_files() {
	cd "$WORK_HOST" || return
	find target -mindepth 1 -maxdepth 2 -type d \( -name debug -o -name release \) |
		while IFS= read -r profile; do
			find "$profile/.fingerprint" "$profile/build" -mindepth 2 \( -type f -o -type d -empty \) \
				! -path "$profile/*/daxdmem-*" ! -path "$profile/*/dmem-*" -print0
			find "$profile/deps" -maxdepth 1 -type f \( -name 'lib*.rlib' -o -name 'lib*.rmeta' -o -name 'lib*.so' \) \
				! -name 'libdaxdmem*' ! -name 'libdmem_*' -print0
		done
}

# deps_keep: keeps this checkout's, unless those of the same versions are there.
deps_keep() {
	local key
	key=$(deps_key)
	[ "$(cat "$DEPS/key" 2>/dev/null)" != "$key" ] || return 0
	exec 6>"$CACHE/deps.lock"
	hold 6 "crates: another checkout copies them"
	rm -rf "$DEPS.new" "$DEPS.old"
	mkdir -p "$DEPS.new"
	# Not each profile has each of these directories.
	deps_files 2>/dev/null | (cd "$WORK_HOST" && xargs -0r cp -a --parents --reflink=auto -t "$DEPS.new") || true
	if [ ! -d "$DEPS.new/target" ]; then
		rm -rf "$DEPS.new"
		exec 6>&-
		return 0
	fi
	printf '%s\n' "$key" >"$DEPS.new/key"
	[ ! -e "$DEPS" ] || mv -T "$DEPS" "$DEPS.old"
	mv -T "$DEPS.new" "$DEPS"
	rm -rf "$DEPS.old"
	exec 6>&-
}
