# SPDX-License-Identifier: GPL-2.0-only
# Write KTAP, as ktap.py does. For shell scripts, also in test hosts without Python.
# shellcheck shell=sh

# ktap_begin [COUNT]: COUNT is the number of results, if it is known.
ktap_begin() {
	ktap_planned=${1-} ktap_number=0 ktap_failed=0
	echo "KTAP version 1"
	if [ -n "$ktap_planned" ]; then echo "1..$ktap_planned"; fi
}

# ktap_ok NAME [NOTE]
ktap_ok() {
	ktap_number=$((ktap_number + 1))
	echo "ok $ktap_number $1${2:+ # $2}"
}

# ktap_not_ok NAME [WHY]
ktap_not_ok() {
	ktap_failed=1
	echo "not $(ktap_ok "$@")"
	ktap_number=$((ktap_number + 1))
}

# ktap_result NAME COMMAND...: whether the command succeeds. Its output follows as a diagnostic if it does not.
ktap_result() {
	ktap_name=$1
	shift
	if ktap_output=$("$@" 2>&1); then
		ktap_ok "$ktap_name"
	else
		ktap_not_ok "$ktap_name" "status $?"
		printf '%s\n' "$ktap_output" | sed 's/^/# /'
	fi
}

# ktap_end: print the number of results if that was not known before. Returns the exit status.
ktap_end() {
	if [ -z "$ktap_planned" ]; then echo "1..$ktap_number"; fi
	return "$ktap_failed"
}
