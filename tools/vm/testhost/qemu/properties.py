# SPDX-License-Identifier: GPL-2.0-only
"""The machine properties of the series in samples/qemu, as arguments of -machine."""

# In front of all of their names.
PREFIX = "x-"

ON, AUTO, OFF = (f"{PREFIX}clock-guest={value}" for value in ("on", "auto", "off"))
VIRTUAL = f"{PREFIX}clock-guest-virtual=on"
FREEZE = f"{PREFIX}clock-guest-freeze=on"
# A stream that stock QEMU takes.
OLD_STREAM = f"{PREFIX}clock-guest-migrate=off"


# In the process where a guest arrives over a kexec; over_kexec.py has the boot id.
KEXEC_FROM = f"{PREFIX}clock-guest-kexec-from={{boot_id}}"


def max_advance(seconds):
    """0 for no limit."""
    return f"{PREFIX}clock-guest-max-advance={seconds}"


# All pauses are visible to the guest; or those of 10 minutes at most, by default.
WITHOUT_LIMIT, WITH_LIMIT = [ON, max_advance(0)], [ON]
