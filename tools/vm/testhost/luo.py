# SPDX-License-Identifier: GPL-2.0-only
"""The part of `tools/vm/host live-update` that is about LUO sessions: memory, methods, faults."""

from .update_results import all_updates, good_result, require, require_exact, result_of

# What the table compares: the results' names, and how they were saved.
COLUMNS = {
    "exact-4": "atomic, in a session",
    "luo-msr": "luo-msr, in a session",
    "legacy-offset": "legacy-offset, in a session",
    "legacy-msr": "legacy-msr, in a session",
    "file": "atomic, in a file",
}

# Runs that must fail, and what their message says. All but the first two are of the first kexec.
REFUSED = {
    "no kexec": "handed over no such session",
    "taken": "cannot create LUO session",
    "never created": "handed over no such session",
    "retrieved before": "handed over no such session",
    "another version": "version 2",
    "truncated": "are truncated",
    "corrupted": "checksum is wrong",
    "not clocks": "do not begin as clocks do",
    "empty": "are truncated",
    "no clocks": "cannot retrieve file 2",
    "vCPUs corrupted": "corrupted",
    "too little memory": "do not match",
    "no files": "cannot retrieve file 3",
}


def memory(boots, kexecs):
    """The same physical pages; a copy of the same bytes shows that the comparison can fail."""
    updates = all_updates(boots, kexecs)
    for boot in updates:
        for guest in ("exact-1", "exact-4"):
            found = good_result(boot, guest)
            require(found["memory_in_place"] is True,
                    f"kexec {boot['boot']}, {guest}: memory_in_place is {found['memory_in_place']}")
    copy = good_result(updates[0], "copy")
    require(copy["memory_in_place"] is False, f"a copy: memory_in_place is {copy['memory_in_place']}")
    yield f"the same physical pages in {len(updates)} kexecs"


def table(boots, kexecs):
    boot = all_updates(boots, kexecs)[0]
    yield f"{'':28} {'TSC, ticks':>16} {'kvmclock, ns':>16} {'skew, ns':>16} {'back':>5} {'no vCPU ran, s':>15}"
    for name, column in COLUMNS.items():
        found = good_result(boot, name)
        yield (f"{column:28} {found['tsc_error_ticks']:+16,} {found['kvmclock_error_ns']:+16,} "
               f"{found['tsc_kvmclock_skew_ns']:+16,} {found['backwards_steps']:5} {found['downtime_ns'] / 1e9:15.1f}")


def others_lose(boots, kexecs):
    """The reason for the atomic state; if it was not so, the table would be wrong."""
    boot = all_updates(boots, kexecs)[0]
    rate = good_result(boots[0], "exact-4")["tsc_khz"]
    for guest in ("exact-4", "file"):
        require_exact(boot, guest, rate)
    found = good_result(boot, "luo-msr")
    require(not found["record_bit_identical"], "luo-msr: the record is reported as identical")
    require(found["tsc_kvmclock_skew_ns"] != 0, "luo-msr: no skew")
    yield (f"luo-msr: skew {found['tsc_kvmclock_skew_ns']:+,} ns, offsets "
           f"{'identical' if found['offsets_bit_identical'] else 'not identical'}")


def downtime(boots, kexecs):
    """No vCPU ran while the old kernel stopped and the new one came up."""
    for boot in all_updates(boots, kexecs):
        found = good_result(boot, "exact-4")
        up = found["restored"]["uptime_ms"] / 1e3
        down = found["downtime_ns"] / 1e9
        require(down > 0.5 * up, f"kexec {boot['boot']}: {down:.1f} s without a vCPU, but the kernel is up for {up:.1f} s")
        yield f"kexec {boot['boot']}: no vCPU ran for {down:.1f} s; the new kernel was up for {up:.1f} s of them"


def refusal(boot, name, message):
    """Require that a run failed with this message and restored nothing. Returns the message."""
    run = boot["runs"].get(name)
    require(run is not None, f"{name}: was not run")
    require(run["status"] == 1 and run["found"] is None and message in run["stderr"],
            f"{name}: status {run['status']}: {run['stderr']}")
    return run["stderr"].removeprefix("clockguest: ")


def refused(boots, kexecs):
    updates = all_updates(boots, kexecs)
    for name, message in REFUSED.items():
        boot = boots[0] if name in ("no kexec", "taken") else updates[0]
        yield f"{name}: {refusal(boot, name, message)}"


def another_boot(boots, kexecs):
    """Needs two kexecs: nobody retrieved the session after the first."""
    yield refusal(all_updates(boots, kexecs)[1], "another boot", "handed over no such session")


def without_module(boots, kexecs):
    boot = all_updates(boots, kexecs)[0]
    found = result_of(boot, "no module")
    status = boot["runs"]["no module"]["status"]
    require(status == 0 and found["lost"], f"status {status}, lost {found['lost']}: {found['first_error']}")
    require(found["mode"] is None, f"mode {found['mode']}")
    require(found["offsets_bit_identical"] and found["tsc_error_ticks"] == 0,
            f"the TSC is off by {found['tsc_error_ticks']} ticks")
    # An emulated CPU may stand still in the middle of an ioctl, but not for the downtime.
    error = abs(found["tsc_kvmclock_skew_ns"])
    require(0 < error < found["downtime_ns"] // 10, f"kvmclock is off by {error} ns after {found['downtime_ns']} ns")
    yield f"TSC exact, kvmclock {found['kvmclock_error_ns']:+,} ns; lost: {found['lost']}"


CASES = (
    ("guest memory is not copied", memory),
    ("the time without a running vCPU is reported", downtime),
    ("the methods are measured side by side", table),
    ("an atomic state is exact in a session and in a file, vCPU by vCPU loses", others_lose),
    ("sessions that are missing or damaged are refused", refused),
    ("without the module, the TSC is exact and the loss is reported", without_module),
)

CASES_OF_TWO_KEXECS = (("a session of another boot is refused", another_boot),)
