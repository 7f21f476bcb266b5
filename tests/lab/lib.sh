# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the lab's scripts share: where things are, progress lines, locks and
# containment. Sourced, never run.

set -euo pipefail

LAB_SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
CHECKOUT=$(cd "$LAB_SCRIPTS/../.." && pwd -P)
CACHE=${DAXDMEM_CACHE:-/var/cache/daxdmem}
ROOT=$CACHE/root
# The lab's directory on the host, and the same directory inside the sandbox.
LAB_HOST=$CACHE/lab
LAB=/var/lib/daxdmem-lab
# Build output belongs to one checkout: cargo and make compare times only, so
# two checkouts sharing it would test each other's binaries.
WORK_HOST=$CACHE/builds/$(basename "$CHECKOUT")-$(printf '%s' "$CHECKOUT" | sha256sum | cut -c1-12)
export LAB_SCRIPTS CHECKOUT CACHE ROOT LAB_HOST LAB WORK_HOST

# say WHAT: one progress line with the seconds since the script began.
say() {
	printf 'lab  %4d s  %s\n' "$SECONDS" "$*" >&2
}

# die WHAT: the line that says what was wrong and what to do next.
die() {
	printf 'lab: %s\n' "$*" >&2
	exit 1
}

# need_root WHAT: mounts and chroot are for root only.
need_root() {
	[ "$(id -u)" = 0 ] || die "$1 needs root for mount and chroot: run it by sudo"
}

# step NAME CMD ARG…: runs CMD with its output in a log file. One line when it
# is done, and every ten seconds the log's last line as a sign of life.
step() {
	local name=$1 log=$CACHE/log/${1// /-}.log began=$SECONDS status=0 pid
	shift
	mkdir -p "$CACHE/log"
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		if ((SECONDS - began >= 10 && (SECONDS - began) % 10 == 0)); then
			say "$name … $(tail -n 1 "$log" | tr -d '\r' | cut -c1-100)"
			sleep 1
		fi
	done
	wait "$pid" || status=$?
	if ((status)); then
		tail -n 30 "$log" >&2
		die "$name failed with status $status; the whole log is $log"
	fi
	say "$name: done in $((SECONDS - began)) s"
}

# contained CMD ARG…: runs CMD as process 1 of mount and process namespaces of
# its own, so that no mount and no process is left when CMD ends or when the
# caller dies, be it by SIGKILL.
contained() {
	local status=0
	# setpriv makes unshare die with this script, --kill-child takes the
	# namespace along; env puts back SIGINT, which background jobs ignore.
	setpriv --pdeathsig KILL env --default-signal=INT,QUIT \
		unshare --mount --propagation private --pid --fork --kill-child \
		--mount-proc -- "$@" <&0 &
	CONTAINED_PID=$!
	trap 'kill -KILL "$CONTAINED_PID" 2>/dev/null; exit 130' INT
	trap 'kill -KILL "$CONTAINED_PID" 2>/dev/null; exit 143' TERM HUP
	wait "$CONTAINED_PID" || status=$?
	return "$status"
}

# hold DESCRIPTOR WHAT: takes the lock on an open file; while others keep it, a
# line now and then says what is awaited.
hold() {
	until flock --exclusive --timeout 0 "$1"; do
		say "$2"
		flock --exclusive --timeout 30 "$1" && return
	done
}

# key FILE…: names a state by the contents of the files it was made from.
key() {
	cat "$@" | sha256sum | cut -c1-16
}
