# SPDX-License-Identifier: GPL-2.0-only
"""Migrate guests between two test hosts, and write KTAP and a table of the clock errors.

Each pair of hosts is booted once as by `tools/vm/host pair`; host A's guests move to host B and back with
`clockguest migrate`, which judges its measurements. A move that the hosts cannot make must be refused, and
the guest must then go on at A as if nothing had happened.
"""

import dataclasses
import json
import re
import subprocess
from collections.abc import Callable

import ktap
from paths import REPO

from . import options
from .table import columns

CLOCKGUEST = "target/release/clockguest"

# `clockguest serve` on host B: at a port, and as a command that host A runs there.
SERVE = (f"{CLOCKGUEST} serve --listen $CLOCK_GUEST_ADDRESS:4000 --trace-clock & "
         f"tools/vm/inside/remote-command serve $CLOCK_GUEST_ADDRESS 4001 {CLOCKGUEST} serve --stdio --trace-clock")
LISTENING = "--to $CLOCK_GUEST_PEER:4000"
COMMAND = "--via \"tools/vm/inside/remote-command run $CLOCK_GUEST_PEER 4001\""

RESULTS = REPO / "build/vm/migrations"
# What was measured, with the last run's --quick and --only.
MEASURED = RESULTS / "measured.json"

# The exit status of host A's script.
LAST_STATUS = 7

# Two kernels' calibrations of one rate differ by at most as much, or the emulator is no good.
CALIBRATION_PPM = 40

# Seconds for a pair's boots, and for each of its cases.
BOOT_TIMEOUT, CASE_TIMEOUT = 120, 120


@dataclasses.dataclass
class Case:
    """One run of `clockguest migrate`: `check` returns why its result is wrong, or None."""

    name: str
    arguments: str
    check: Callable[[int, dict], str | None]
    to: str = LISTENING


@dataclasses.dataclass
class Pair:
    """Two hosts, and the guests that move between them."""

    name: str
    options: list[str]
    cases: list[Case]


def moves(status, summary):
    """All moves were made, and clockguest found no error of method atomic."""
    if summary.get("aborted"):
        return f"aborted: {summary['aborted']['why']}"
    if status != 0 or summary["first_error"]:
        return f"status {status}: {summary['first_error']}"
    if summary["moves_done"] != summary["moves"]:
        return f"{summary['moves_done']} of {summary['moves']} moves"
    return None


def is_atomic(status, summary):
    """As moves(), and every error was measured."""
    if why := moves(status, summary):
        return why
    if summary["restore_error_ticks_max"] is None or summary["tsc_error_ticks_max"] is None:
        return "the error was not measured"
    if summary["restore_error_ticks_max"] > 1:
        return f"SET was off by {summary['restore_error_ticks_max']} ticks"
    if summary["tsc_kvmclock_skew_ns_max"] != 0 or not summary["record_bit_identical"]:
        return f"kvmclock changed: skew {summary['tsc_kvmclock_skew_ns_max']} ns, or another record"
    if summary["mode"] == "advance" and any(move["clock_sync_error_ticks"] is None for move in summary["per_move"]):
        return "the error of the hosts' clocks was not measured"
    if any(move["lost"] for move in summary["per_move"]):
        return f"something was lost: {summary['per_move']}"
    return None


def legacy(status, summary):
    """All moves were made, and the errors were measured, however large."""
    if why := moves(status, summary):
        return why
    return None if summary["tsc_error_ticks_max"] is not None else "the error was not measured"


def lost(text, skew_ns=None):
    """All moves were made, and one reported `text` as lost; kvmclock moved against the TSC by at most `skew_ns`."""

    def check(status, summary):
        if why := moves(status, summary):
            return why
        if not any(text in (move["lost"] or "") for move in summary["per_move"]):
            return f"no move reported '{text}': {[move['lost'] for move in summary['per_move']]}"
        if skew_ns is not None and summary["tsc_kvmclock_skew_ns_max"] > skew_ns:
            return f"kvmclock moved against the TSC by {summary['tsc_kvmclock_skew_ns_max']} ns, more than {skew_ns}"
        return None

    return check


def refused(text, hz=None):
    """The guest did not move, for a reason that contains `text`, and goes on as if nothing had happened. With `hz`, the
    reason states the difference of the rates, which is `hz` times the guest's own."""

    def check(status, summary):
        aborted = summary.get("aborted")
        if status != 1 or not aborted:
            return f"status {status}, and it was not refused"
        if text not in aborted["why"]:
            return f"refused because '{aborted['why']}', not '{text}'"
        if aborted["exact"] is not True:
            return f"the guest {aborted['guest']}"
        if hz is not None:
            stated = re.search(r"(\d+) Hz (slower|faster)", aborted["why"])
            actual = int(stated[1]) * (-1 if stated[2] == "slower" else 1) if stated else None
            guest_hz = summary["guest_khz"] * 1000
            expected = hz * guest_hz
            if actual is None or abs(actual - expected) > CALIBRATION_PPM * guest_hz / 1e6:
                return f"the rates differ by {expected:.0f} Hz, and the reason states {actual}"
        return None

    return check


def rates_differ(ppm):
    """As is_atomic(), and SET reported that the rates differ by `ppm`."""

    def check(status, summary):
        if why := is_atomic(status, summary):
            return why
        for move in summary["per_move"]:
            expected = ppm * summary["tsc_khz"] / 1000 * (1 if move["direction"] == "there" else -1)
            if abs(move["rate_diff_hz"] - expected) > CALIBRATION_PPM * summary["tsc_khz"] / 1000:
                return f"{move['direction']} the rates differ by {expected:.0f} Hz, and SET reports {move['rate_diff_hz']}"
        return None

    return check


def pairs(quick):
    """All pairs, or with `quick` those that `make check` has time for."""
    rounds = 25 if not quick else 5
    plain = [Case(f"atomic: {2 * rounds} moves of 4 vCPUs", f"--round-trips {rounds}", is_atomic),
             Case("legacy-offset is measured", "--method legacy-offset --round-trips 3", legacy),
             Case("legacy-msr is measured", "--method legacy-msr --round-trips 3", legacy),
             Case("atomic, through a command", "--round-trips 1", is_atomic, COMMAND)]
    if quick:
        return [Pair("equal hosts", [], plain)]
    scaled = ["--scaling-a", "--scaling-b"]
    return [
        Pair("equal hosts", [], [
            *plain,
            Case("atomic, 1 vCPU", "--vcpus 1 --round-trips 5", is_atomic),
            Case("atomic, freeze", "--mode freeze --round-trips 3", is_atomic),
            Case("atomic, with the hosts' own clocks, 7 s apart", "--sync hosts", is_atomic),
            # B booted later, so its TSC is behind.
            Case("exact is refused: another host", "--mode exact", refused("another host")),
        ]),
        Pair("B without the module", ["--no-module-b"], [
            Case("falls back, and reports it", "", lost("the destination has no kvm_clock_guest")),
            Case("there and back, and reports it", "--round-trips 2", lost("the source has no kvm_clock_guest")),
            Case("freeze falls back as well", "--mode freeze", lost("the destination has no kvm_clock_guest")),
        ]),
        Pair("A without the module", ["--no-module-a"], [
            Case("an old stream: the record is derived anew", "", lost("the source has no kvm_clock_guest", skew_ns=2)),
        ]),
        Pair("neither with the module", ["--no-module-a", "--no-module-b"], [
            Case("falls back, and reports it", "--round-trips 1", lost("the destination has no kvm_clock_guest")),
        ]),
        Pair("B 100 ppm faster, as after another calibration", ["--tsc-ratio-b", "1.0001"], [
            Case("atomic, the difference is reported", "--round-trips 3", rates_differ(100)),
        ]),
        Pair("B 400 ppm faster", ["--tsc-ratio-b", "1.0004"], [
            Case("refused: the difference is reported", "", refused("cannot scale", hz=0.0004)),
        ]),
        Pair("B at 3/4 of A's rate, no scaling", ["--tsc-ratio-b", "0.75"], [
            Case("refused: the difference is reported", "", refused("cannot scale", hz=-0.25)),
            Case("freeze is refused as well", "--mode freeze", refused("cannot scale", hz=-0.25)),
        ]),
        Pair("B at 3/4 of A's rate, both scale", [*scaled, "--tsc-ratio-b", "0.75"], scaled_cases()),
        Pair("B at 3/2 of A's rate, both scale", [*scaled, "--tsc-ratio-b", "1.5"], scaled_cases()),
    ]


def scaled_cases():
    return [
        Case("atomic at A's rate", "--round-trips 3", is_atomic),
        Case("atomic at half A's rate", "--round-trips 2 --tsc-khz HALF", is_atomic),
        Case("atomic at 1.5 GHz", "--round-trips 2 --tsc-khz 1500000", is_atomic),
        Case("atomic at twice A's rate", "--round-trips 2 --tsc-khz TWICE", is_atomic),
        Case("freeze at 1.5 GHz", "--round-trips 1 --mode freeze --tsc-khz 1500000", is_atomic),
        Case("legacy-offset is measured", "--round-trips 1 --method legacy-offset", legacy),
        Case("legacy-msr is measured", "--round-trips 1 --method legacy-msr", legacy),
    ]


def script(cases):
    """Host A's script: runs each case and writes its results to numbered files."""
    lines = ["until (exec 3<>/dev/tcp/$CLOCK_GUEST_PEER/4000) 2>/dev/null; do sleep 0.2; done",
             f"khz=$({CLOCKGUEST} info --json | sed -n 's/.*\"tsc_khz\":\\([0-9]*\\).*/\\1/p')"]
    for number, case in enumerate(cases):
        arguments = case.arguments.replace("HALF", "$((khz / 2))").replace("TWICE", "$((khz * 2))")
        lines += [f"{CLOCKGUEST} migrate {case.to} --json --verbose --trace-clock "
                  f"--truth $CLOCK_GUEST_RESULTS/truth.json {arguments} >$CLOCK_GUEST_RESULTS/{number}.json; "
                  f"echo $? $khz >$CLOCK_GUEST_RESULTS/{number}.done"]
    return "\n".join([*lines, f"exit {LAST_STATUS}"])


def run(pair, kdir):
    """Yields (case, why it failed or None, summary) for each case of `pair`."""
    slug = re.sub(r"\W+", "-", pair.name)
    results = RESULTS / slug
    results.mkdir(parents=True, exist_ok=True)
    (results / "a").mkdir(exist_ok=True)
    for stale in (results / "a").glob("[0-9]*.*"):
        stale.unlink()
    # /dev/tcp is a feature of bash.
    job = results / "a/job.sh"
    job.write_text(script(pair.cases) + "\n")
    command = [REPO / "tools/vm/host", "pair", "--quiet", "--results", results, *pair.options,
               "--timeout", str(BOOT_TIMEOUT + CASE_TIMEOUT * len(pair.cases)),
               "--b", SERVE,
               "--a", f"bash {job}", *(["--kdir", kdir] if kdir else [])]
    with open(results / "pair.log", "w") as log:
        ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    for number, case in enumerate(pair.cases):
        try:
            status, khz = map(int, (results / f"a/{number}.done").read_text().split())
            summary = json.loads((results / f"a/{number}.json").read_text())
        except (OSError, ValueError) as error:
            yield case, f"no result: {error}; see {results}/pair.log", {}
            continue
        summary["guest_khz"] = khz
        yield case, case.check(status, summary), summary
    hosts = Case("both hosts end cleanly, without a kernel splat", "", lambda *_: None)
    why = None if ended.returncode == LAST_STATUS else f"status {ended.returncode}; the end of {results}/pair.log:\n" + tail(results / "pair.log")
    yield hosts, why, {}


def tail(path):
    return "\n".join(path.read_text(errors="replace").splitlines()[-15:])


COLUMNS = ("moves", "TSC, all", "restore", "clock sync", "(bound)", "kvmclock ns", "skew ns", "record", "steps")


def row(pair, case, summary):
    """The worst of its moves, for the table."""

    def number(key):
        value = summary.get(key)
        return "?" if value is None else f"{value:,.2f}" if isinstance(value, float) and abs(value) < 100 else f"{value:,.0f}"

    if not summary:
        return None
    if summary.get("aborted"):
        return [pair.name, case.name, "refused"] + [""] * (len(COLUMNS) - 1)
    return [pair.name, case.name, str(summary["moves_done"]), number("tsc_error_ticks_max"), number("restore_error_ticks_max"),
            number("clock_sync_error_ticks_max"), number("clock_sync_bound_ticks_max"), number("kvmclock_error_ns_max"),
            number("tsc_kvmclock_skew_ns_max"), "same" if summary["record_bit_identical"] else "changed",
            number("backwards_steps")]


def table(rows):
    """The lines of the table."""
    return columns([["hosts", "guests", *COLUMNS], *rows], left=2)


def add_arguments(parser):
    parser.add_argument("--quick", action="store_true", help="only the cases that `make check` has time for")
    parser.add_argument("--only", metavar="PATTERN", default="", help="only pairs of hosts whose name matches")
    options.add_kdir(parser)


def main(args):
    chosen = [pair for pair in pairs(args.quick) if re.search(args.only, pair.name)]
    # One more for each pair: how the hosts ended.
    report = ktap.Report(sum(len(pair.cases) + 1 for pair in chosen))
    rows, measured = [], []
    for pair in chosen:
        for case, why, summary in run(pair, args.kdir):
            report.result(f"{pair.name}: {case.name}", why)
            if one := row(pair, case, summary):
                rows.append(one)
                measured.append({"hosts": pair.name, "guests": case.name, **summary})
    RESULTS.mkdir(parents=True, exist_ok=True)
    MEASURED.write_text(json.dumps(measured, indent=1) + "\n")
    report.note("worst of a run; TSC in ticks of the guest")
    report.note(*table(rows))
    return report.end()
