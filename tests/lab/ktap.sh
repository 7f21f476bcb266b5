# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# KTAP for host tests written in shell. Sourced; the test calls plan, then
# check or same for each case, then finish.

KTAP_CASE=0 KTAP_FAILED=0

plan() {
	printf 'KTAP version 1\n1..%d\n' "$1"
	KTAP_PLAN=$1
}

# result NAME STATUS: reports one case.
result() {
	KTAP_CASE=$((KTAP_CASE + 1))
	if (($2 == 0)); then
		printf 'ok %d %s\n' "$KTAP_CASE" "$1"
	else
		printf 'not ok %d %s\n' "$KTAP_CASE" "$1"
		KTAP_FAILED=$((KTAP_FAILED + 1))
	fi
}

# check NAME CMD ARG…: the case passes if CMD does.
check() {
	local name=$1 status=0
	shift
	"$@" || status=$?
	((status == 0)) || printf '# %s: status %d from: %s\n' "$name" "$status" "$*"
	result "$name" "$status"
}

# same NAME WANTED FOUND: the case passes if both texts are the same.
same() {
	local status=0
	[ "$2" = "$3" ] || {
		status=1
		printf '# wanted: %s\n' "${2//$'\n'/$'\n#         '}"
		printf '# found:  %s\n' "${3//$'\n'/$'\n#         '}"
	}
	result "$1" "$status"
}

# finish: fails if a case failed or one is missing.
finish() {
	((KTAP_FAILED == 0 && KTAP_CASE == KTAP_PLAN))
}
