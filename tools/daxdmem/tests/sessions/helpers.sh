# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# What sessions may use besides the tool and plain programs: README.md tells.

# shellcheck disable=SC2034 # sessions use them
{
	regions=/sys/devices/platform/hmem_platform.0
	region=$regions/hmem.0
	driver=/sys/bus/dax/drivers/dax_dmem
	memory=/sys/devices/system/memory
	state=/run/daxdmem/state.json
}

nobody() {
	setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
}

# traced CALL PATH HOW COMMAND…: has strace tamper with the calls on that path; it says nothing itself.
traced() {
	call=$1 path=$2 how=$3
	shift 3
	# shellcheck disable=SC2086 # several options
	strace --quiet=all $fast -f -o /dev/null -e "trace=$call" -P "${path%,*}" -P "${path#*,}" -e "inject=$call:$how" "$@"
}
fast=--seccomp-bpf

failing() {
	call=$1 path=$2 error=$3
	shift 3
	traced "$call" "$path" "error=$error" "$@"
}

failing_once() {
	call=$1 path=$2 error=$3
	shift 3
	traced "$call" "$path" "error=$error:when=1" "$@"
}

ignored() {
	path=$1 bytes=$2
	shift 2
	traced write "$path" "retval=$bytes" "$@"
}

killed() {
	call=$1 path=$2
	shift 2
	# It takes a signal where it stops at every call only.
	fast='' traced "$call" "$path" signal=KILL "$@"
}

guest() {
	name=$1 size=$2
	shift 2
	daxdmem create "$name" --size "$size" --scrub never "$@" >/dev/null 2>&1 || echo "no guest $name"
}

hold() {
	# Open before the next step looks, and by a program that has its name by then.
	# shellcheck disable=SC2217 # it is there to have the file open
	{ sleep 1000 <&8 8<&- >/dev/null 2>&1 & } 8<"$1"
	while [ "$(cat /proc/$!/comm)" != sleep ]; do
		:
	done
}

release() {
	pkill -x sleep
	while pgrep -x -r D,R,S sleep >/dev/null || [ -n "$(cat $driver/quarantine)" ]; do
		sleep 0.01
	done
}

bad_state() {
	mv $state $state.good
	echo '{"version": 99}' >$state
}

good_state() {
	mv $state.good $state
}
