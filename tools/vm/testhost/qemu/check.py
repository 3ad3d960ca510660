# SPDX-License-Identifier: GPL-2.0-only
"""Stop, save and move Linux guests of stock and of patched QEMU, and write KTAP and a table of their clock errors.

The guests run the test host's own kernel, with a probe (probe.rs) that reads their clocks; where each reading belongs
on the host's clocks is known from KVM, to the tick. With patched QEMU the guests' clocks must show no error; with
stock QEMU the errors are measured.
"""

import json
import re
import subprocess
import time

import ktap
from paths import REPO, built

from .. import kexec, options
from ..kernel import IMAGE
from . import boots, cases, distributions, initramfs, kexec_cases, long_pauses, measure, report, verdicts, ways_cases
from .clocks import HostClocks

HOST = REPO / "tools/vm/host"
RESULTS = REPO / "build/vm/qemu"

# Two guests at once keep both CPUs of a test host busy.
AT_ONCE = 2
# Seconds for a boot of the test host, and for each operation of a guest, however slow the machine is.
BOOT_TIMEOUT, OPERATION_TIMEOUT = 240, 60


def folder_of(results, kexecs):
    """Where drive.py writes what it finds after so many kexecs."""
    return results / f"kexec-{kexecs}" if kexecs else results


def load(check, results):
    """The measurements of a guest in that test host."""
    with open(results / "host-clock") as file:
        host = HostClocks(file.readlines())
    return measure.Case(results / check.slug, host, (results / "trace").read_text(errors="replace"))


def conclude(check, results, out):
    """Write the results of one guest to the report `out`, and return the guest's part of the table."""
    names = [f"{check.name}: {name}" for name in check.results]
    try:
        case = load(check, results)
    except (OSError, ValueError) as error:
        found, case = [f"no result: {error}"] * len(names), None
    else:
        found = check.judge(case)
        # The guest did not get to the others.
        found += [case.error or "it was not done"] * (len(names) - len(found))
    for name, why in zip(names, found):
        out.result(name, why)
    return case and report.summary(check, case)


def end(process):
    """Terminate a run, which ends its test hosts."""
    if process.poll() is None:
        process.terminate()
        process.wait()


def ended_badly(status, log):
    """Why a test host did not end well, or None."""
    return None if status == 0 else f"status {status}; the end of {log}:\n{log.read_text(errors='replace')[-1500:]}"


def prepare(results, checks, args, after_kexec=()):
    """Write the plan for a test host, and return the command that carries it out there.

    With `after_kexec`, lists of checks, the host replaces its kernel then, and carries out one list after the other.
    """
    results.mkdir(parents=True, exist_ok=True)
    boots = [[checks], *([after_kexec] if after_kexec else [])]
    for count, phases in enumerate(boots):
        folder = folder_of(results, count)
        for stale in (folder / "host-clock", folder / "trace", *(folder / check.slug / "result.json" for phase in phases for check in phase)):
            stale.unlink(missing_ok=True)
    (results / "plan.json").write_text(json.dumps({
        "binaries": {"stock": args.stock, "patched": args.patched}, "at_once": AT_ONCE,
        "kernels": {"": args.guest_kernel, **{check.kernel.release: check.kernel.image for check in checks if check.kernel}},
        "initrd": str(RESULTS / "initramfs"), "probe": str(RESULTS / "probe"),
        "boots": [[[check.plan(RESULTS) for check in phase] for phase in phases] for phases in boots],
    }, indent=1))
    return f"tools/vm/inside/drive-guests {results}/plan.json"


def carry_out(results, job, args, seconds, host_options, live):
    """Boot one test host for this command, and call `live` with each line of its output. Returns why it ended badly, or None."""
    command = [HOST, "run", "--quiet", "--kdir", args.kdir, "--timeout", str(seconds), "--results", results,
               *host_options, job]
    with open(results / "run.log", "w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                                   text=True, errors="replace")
    try:
        for line in process.stdout:
            live(line)
        process.wait()
    finally:
        end(process)
    return ended_badly(process.returncode, results / "run.log")


def run(name, host_options, checks, args, out):
    """Boot one test host for all these guests. Returns their parts of the table."""
    results = RESULTS / re.sub(r"\W+", "-", name)
    left = {check.slug: check for check in checks}
    summaries = []

    def live(line):
        words = line.split()
        if len(words) == 2 and words[0] == "done" and words[1] in left:
            check = left.pop(words[1])
            if summary := conclude(check, results, out):
                summaries.append(summary)
        elif not line.startswith("begin "):
            print(f"# {line}", end="", flush=True)

    seconds = BOOT_TIMEOUT + OPERATION_TIMEOUT * sum(1 + len(check.operations) for check in checks)
    bad = carry_out(results, prepare(results, checks, args), args, seconds, host_options, live)
    for check in left.values():
        for result in check.results:
            out.result(f"{check.name}: {result}", "not reported: the test host ended early")
    out.result(f"{name}: ends cleanly, without a kernel splat", bad)
    return summaries


def run_pair(pair, args, out):
    """Boot two connected test hosts, and move a guest from one to the other. Returns the pair's part of the table."""
    results = RESULTS / re.sub(r"\W+", "-", pair.name)
    jobs = [prepare(results / side, [check], args) for side, check in zip("ab", (pair.source, pair.destination))]
    command = [HOST, "pair", "--quiet", "--kdir", args.kdir, "--results", results, *pair.options,
               "--timeout", str(2 * BOOT_TIMEOUT + 4 * OPERATION_TIMEOUT), "--a", jobs[0], "--b", jobs[1]]
    with open(results / "run.log", "w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        status = process.wait()
    finally:
        end(process)
    measured = None
    try:
        source, destination = load(pair.source, results / "a"), load(pair.destination, results / "b")
        why = source.error or destination.error
        if not why:
            # In the other pairs the guest's TSC differs on purpose.
            if pair.verdict in (verdicts.other_host, verdicts.other_host_steal):
                measured = report.pair_summary(pair, verdicts.apart(source, destination), destination)
            why = pair.verdict(source, destination)
    except (OSError, ValueError) as error:
        why = f"no result: {error}"
    out.result(f"{pair.name}: the guest goes on", why)
    out.result(f"{pair.name}: both hosts end cleanly, without a kernel splat", ended_badly(status, results / "run.log"))
    return measured


def run_over_kexec(chosen, args, out):
    """Boot a test host that replaces its kernel under the guests, and another one for a guest that a property deceives. Returns rows of the table."""
    results = RESULTS / kexec_cases.FOLDER

    def live(line):
        print(f"# {line}", end="", flush=True)

    def judge(move):
        try:
            halves = load(move.source, results), load(move.destination, folder_of(results, 1))
            if why := halves[0].error or halves[1].error:
                return why
            rows.append(kexec_cases.row(move, measure.OverKexec(*halves)))
            return move.verdict(*halves)
        except (OSError, ValueError) as error:
            return f"no result: {error}"

    sources, rows = [move.source for move in chosen], []
    job = prepare(results, sources, args, kexec_cases.phases(chosen))
    seconds = 2 * BOOT_TIMEOUT + 3 * OPERATION_TIMEOUT * len(chosen)
    # The module's KUnit tests run in other boots.
    bad = carry_out(results, job, args, seconds, ["--append", "kunit.enable=0", "--append", kexec.LIVE_UPDATE], live)
    for move in chosen:
        out.result(f"{move.name}: over a kexec", judge(move))
    out.result("test host, over a kexec: ends cleanly, without a kernel splat", bad)
    for source in kexec_cases.saved_to_file(chosen):
        out.result(f"{source.name}: after a power cycle", power_cycle(source, results, args))
    return rows


def power_cycle(source, results, args):
    """Why a guest from `results` was not restored as it should in a host that was powered on, or None."""
    folder = RESULTS / kexec_cases.COLD_FOLDER
    try:
        saved = load(source, results)
        check = kexec_cases.cold(source, saved.notes["boot_id"])
        # The TSC of this host counts from when it was powered on, and must get beyond that of the saved one.
        seconds = saved.host.tsc(saved.operations[0].ended_ns) / saved.host.khz / 1000
        job = f"sleep {seconds:.0f} && {prepare(folder, [check], args)}"
        bad = carry_out(folder, job, args, 2 * BOOT_TIMEOUT + seconds, [], lambda line: None)
        return bad or kexec_cases.power_cycled(load(check, folder))
    except (OSError, ValueError, LookupError) as error:
        return f"no result: {error}"


def build_guest():
    """Build the probe, and the initramfs with it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    initramfs.build_probe(RESULTS / "probe")
    initramfs.make(RESULTS / "initramfs", RESULTS / "probe")


def add_arguments(parser):
    options.add_kdir(parser)
    parser.add_argument("--stock", metavar="FILE", help="QEMU without the series (default: the one that `make setup QEMU=1` built)")
    parser.add_argument("--patched", metavar="FILE", help="QEMU with the series (default: likewise)")
    parser.add_argument("--guest-kernel", metavar="FILE", help="bzImage of the guests (default: the test host's own)")
    parser.add_argument("--only", metavar="PATTERN", default="", help="only guests whose name, as --list prints it, matches")
    parser.add_argument("--long-pauses", action="store_true",
                        help="instead of all others, guests that were paused for up to 60 days, as they find by their clocks")
    parser.add_argument("--over-kexec", action="store_true",
                        help="instead of all others, guests that go through a kexec of their host")
    parser.add_argument("--boots", type=int, metavar="N", help="only boot N guests, and count those that get lost")
    parser.add_argument("--emulator", metavar="FILE", help="with --boots, the QEMU that emulates the test hosts (default: that of all of them)")
    parser.add_argument("--emulator-cpu", metavar="MODEL", help="likewise, its -cpu argument; Debian's QEMU 7.2 needs max,+svm,-la57")
    parser.add_argument("--list", action="store_true", help="print the names of the guests")


def chosen_hosts(args):
    """Test hosts with all their guests, unless they are of another kind."""
    if args.over_kexec:
        return []
    return long_pauses.hosts() if args.long_pauses else [*cases.hosts(), *distributions.hosts(), *ways_cases.hosts()]


def main(args):
    hosts = [(name, host_options, [check for check in checks if re.search(args.only, f"{name}: {check.title}")])
             for name, host_options, checks in chosen_hosts(args)]
    hosts = [host for host in hosts if host[2]]
    pairs = [pair for pair in cases.pairs() if re.search(args.only, pair.name) and not args.long_pauses and not args.over_kexec]
    moves = [move for move in kexec_cases.moves() if re.search(args.only, move.name)] if args.over_kexec else []
    if args.list:
        for name, _, checks in hosts:
            print("\n".join(f"{name}: {check.title}" for check in checks))
        print("\n".join(either.name for either in (*pairs, *moves)))
        return 0
    args.kdir = args.kdir or str(built("kdir"))
    args.guest_kernel = args.guest_kernel or f"{args.kdir}/{IMAGE}"
    args.stock = args.stock or str(built("qemu-stock"))
    args.patched = args.patched or str(built("qemu-clock-guest"))
    start = time.monotonic()
    build_guest()
    initramfs.build_preload(RESULTS / "interpose.so")
    if args.boots:
        return boots.main(args)

    slugs = [check.slug for _, _, checks in hosts for check in checks]
    assert len(slugs) == len(set(slugs)), "two guests would share a folder"
    # One more for each test host: how it ended.
    out = ktap.Report(sum(1 + sum(len(check.results) for check in checks) for _, _, checks in hosts) + 2 * len(pairs)
                      + (len(moves) + 1 + len(kexec_cases.saved_to_file(moves)) if moves else 0))
    summaries = []
    for name, host_options, checks in hosts:
        summaries += run(name, host_options, checks, args, out)
    moved = [summary for pair in pairs if (summary := run_pair(pair, args, out))]
    over_kexec = run_over_kexec(moves, args, out) if moves else []
    path = RESULTS / ("long-pauses.json" if args.long_pauses else "over-kexec.json" if args.over_kexec else "measurements.json")
    path.write_text(json.dumps({"guests": summaries, "pairs": moved, "over_kexec": over_kexec}, indent=1))
    out.note(*report.table(summaries), *distributions.table(summaries), *long_pauses.table(summaries), *report.tasks(summaries), *report.pairs(moved),
             *kexec_cases.table(over_kexec),
             f"took {time.monotonic() - start:.0f} s; measurements in {path.relative_to(REPO)}")
    return out.end()
