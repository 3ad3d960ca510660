# SPDX-License-Identifier: GPL-2.0-only
"""Debian's own kernels as guests, unmodified: which ones there are, and how they boot with their watchdogs."""

import functools
import re
from typing import NamedTuple

from paths import built

# They are larger than the test host's own kernel.
MEMORY = "256M"
# All watchdogs are on. A soft lockup, reported after 20 s, ends the guest. RCU complains about a stop of 5 s if KVM
# does not warn the guest of it.
RCU_STALL_S = 4
BOOT = f"softlockup_panic=1 rcupdate.rcu_cpu_stall_timeout={RCU_STALL_S}"
# The same, but a guest survives a soft lockup, so that the next one shows as well.
BOOT_ON = BOOT.replace("softlockup_panic=1", "softlockup_panic=0")

ALARM = re.compile(r"soft lockup - CPU#\d+ stuck for \d+s|hard LOCKUP|rcu: INFO: \w+ (?:self-)?detected \w* ?stalls?.*"
                   r"|INFO: task .* blocked for more than|rcu: .*kthread .*starved.*")
# Linux 7.2 compares its TSC with kvmclock every 0.5 s, and catches up on that when time was not seen to pass: several
# times within microseconds, with an error bound that is too small for it.
CAUGHT_UP = re.compile(r"Marking clocksource tsc unstable due to frequency skew\n.*Watchdog +kvm-clock interval: +(\d+)ns\n")
CATCHES_UP = ("7.2",)
CAUGHT_UP_NS = 10_000_000


class GuestKernel(NamedTuple):
    """A kernel that scripts/get-guest-kernels unpacked."""

    # As in the names of guests: 6.12.
    name: str
    # What uname -r prints.
    release: str
    # Debian's version of it.
    version: str
    image: str
    # Whether the scheduler takes steal time off the time that a task ran.
    accounts_steal: bool

    @property
    def smp_tsc(self):
        """Whether it takes the TSC of a guest with several vCPUs for a clocksource. Older ones require a constant TSC."""
        return [int(number) for number in self.name.split(".")] >= [6, 12]


@functools.cache
def all_kernels():
    """The oldest first."""
    found = []
    for folder in built("guest-kernels").iterdir():
        if (folder / "vmlinuz").exists():
            config = (folder / "config").read_text()
            found.append(GuestKernel(".".join(folder.name.split(".")[:2]), folder.name, (folder / "version").read_text().strip(),
                                     str(folder / "vmlinuz"), "\nCONFIG_PARAVIRT_TIME_ACCOUNTING=y\n" in config))
    return sorted(found, key=lambda kernel: [int(number) for number in kernel.name.split(".")])


def caught_up(kernel, console):
    """The guest marked its TSC unstable by a comparison over no time.

    >>> text = ("[ 1.0] clocksource: Marking clocksource tsc unstable due to frequency skew\\n"
    ...         "[ 1.0] clocksource: Watchdog               kvm-clock interval: %16dns\\n")
    >>> kernel = GuestKernel("7.2", "", "", "", False)
    >>> bool(caught_up(kernel, text % 47551)), bool(caught_up(kernel, text % 512000000))
    (True, False)
    """
    match = CAUGHT_UP.search(console)
    return kernel.name in CATCHES_UP and match and int(match[1]) < CAUGHT_UP_NS


def alarms(console):
    """What the guest's watchdogs printed.

    >>> alarms("[  62.1] watchdog: BUG: soft lockup - CPU#0 stuck for 3358s! [probe:69]\\n[ 63.0] clocksource: fine\\n")
    ['soft lockup - CPU#0 stuck for 3358s']
    >>> alarms("[ 9.5] rcu: INFO: rcu_sched self-detected stall on CPU\\n[ 9.6] INFO: task x:1 blocked for more than 120 seconds.")
    ['rcu: INFO: rcu_sched self-detected stall on CPU', 'INFO: task x:1 blocked for more than']
    >>> alarms("[ 9.5] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\\n")
    ['rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:']
    """
    return [match[0].strip() for match in ALARM.finditer(console)]


def runs(case, kernel):
    """Why the guest is not that kernel, with its watchdogs on, or None."""
    expected = f"guest-init: Linux {kernel.release}, watchdog 1, soft 1, RCU {RCU_STALL_S} s"
    return None if expected in case.console else f"the console has no '{expected}'"
