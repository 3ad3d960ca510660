# SPDX-License-Identifier: GPL-2.0-only
"""What tools/vm/inside/live-update found in each boot of the test host."""


class Failed(Exception):
    """Why a case has failed."""


def require(condition, why):
    if not condition:
        raise Failed(why)


def result_of(boot, name):
    """The result of the run `name` of a boot, good or bad."""
    run = boot["runs"].get(name)
    require(run is not None, f"boot {boot['boot']}: {name} was not run")
    require(run["found"] is not None, f"boot {boot['boot']}: {name}: status {run['status']}: {run['stderr']}")
    return run["found"]


def good_result(boot, name):
    """As result_of(), but the run must have succeeded."""
    found = result_of(boot, name)
    status = boot["runs"][name]["status"]
    require(status == 0, f"boot {boot['boot']}: {name}: status {status}: {found.get('first_error')}")
    return found


def all_updates(boots, kexecs):
    """The boots after a kexec; all of them must be there."""
    require(len(boots) > kexecs, f"{max(len(boots) - 1, 0)} of {kexecs} kexecs happened")
    return boots[1:]


def require_exact(boot, guest, rate):
    """Restored bit for bit; all errors are 0."""
    found = good_result(boot, guest)
    here = f"kexec {boot['boot']}, {guest}"
    require(found["mode"] == "exact", f"{here}: mode {found['mode']}")
    for what in ("offsets_bit_identical", "record_bit_identical"):
        require(found[what] is True, f"{here}: {what} is {found[what]}")
    for what in ("tsc_error_ticks", "kvmclock_error_ns", "tsc_kvmclock_skew_ns", "backwards_steps"):
        require(found[what] == 0, f"{here}: {what} is {found[what]}")
    require(found["tsc_khz"] == rate, f"{here}: the guest's TSC has {found['tsc_khz']} kHz, it had {rate}")
    return found


def show(name, found):
    return (f"{name:14} TSC {found['tsc_error_ticks']:+,} ticks, kvmclock {found['kvmclock_error_ns']:+,} ns, "
            f"skew {found['tsc_kvmclock_skew_ns']:+,} ns, {found['backwards_steps']} steps back; down "
            f"{found['downtime_ns'] / 1e9:.1f} s, {found['saved']['tsc_khz']} -> {found['restored']['tsc_khz']} kHz")
