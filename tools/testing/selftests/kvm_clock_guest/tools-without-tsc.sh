#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# The tools on a host whose clocksource is not the TSC: they save and restore guests, and report the
# precision. Switches the host's clocksource and restores it. Prints KTAP.

repo=$(dirname "$0")/../../../..
. "$repo/scripts/ktap.sh"
programs=$repo/target/release
clocksource=/sys/devices/system/clocksource/clocksource0
other=$(tr ' ' '\n' <$clocksource/available_clocksource | grep -vx -e tsc -e '' | head -n 1)
if [ "$(cat $clocksource/current_clocksource)" != tsc ] || [ -z "$other" ]; then
	echo "KTAP version 1"
	echo "1..0 # SKIP the host has no other clocksource than its TSC, or does not use its TSC"
	exit 4
fi
file=$(mktemp)
trap 'echo tsc >$clocksource/current_clocksource; rm -f "$file"' EXIT
echo "$other" >$clocksource/current_clocksource || exit 1

# check NAME TEXT COMMAND...: succeeds, and its output has TEXT
check() {
	name=$1 text=$2
	shift 2
	output=$("$@" 2>&1)
	status=$?
	echo "$output" | sed 's/^/# /'
	if [ $status = 0 ] && echo "$output" | grep -q "$text"; then
		ktap_ok "$name"
	else
		ktap_not_ok "$name" "status $status, expected: $text"
	fi
}

ktap_begin 6
for scenario in pause snapshot migrate; do
	check "clockguest cycle, $scenario" 'precise to [1-9][0-9]* ns' \
		"$programs/clockguest" cycle --scenario $scenario --method atomic --cycles 5
done
check "clockguest demo" 'precise to [1-9][0-9]* ns' "$programs/clockguest" demo --cycles 2
check "vmm-sample save" 'precise to [1-9][0-9]* ns' "$programs/vmm-sample" save "$file"
check "vmm-sample restore" 'precise to [1-9][0-9]* ns' "$programs/vmm-sample" restore "$file"
ktap_end
