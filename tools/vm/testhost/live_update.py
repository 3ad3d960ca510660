# SPDX-License-Identifier: GPL-2.0-only
"""Replace the test host's kernel under saved guests, and check their clocks.

Boots the test host, saves guests in it, to files and in LUO sessions, has it kexec into the same
kernel, and restores the guests there; several times in a row. The TSC keeps counting, but boot id and
calibrated TSC rate change. Writes KTAP; tools/vm/inside/live-update is the half inside the test host.
"""

import functools
import json
import pathlib
import subprocess

import ktap
from paths import REPO

from . import kexec, luo, options
from .update_results import Failed, all_updates, good_result, require, require_exact, result_of, show

STEPS = REPO / "tools/vm/inside/live-update"

# Emulated, each boot takes some seconds, and far longer on a busy machine.
TIMEOUT = 900


def another_kernel(boots, kexecs):
    seen = {boots[0]["boot_id"]} if boots else set()
    for boot in all_updates(boots, kexecs):
        found = result_of(boot, "exact-4")
        saved, restored = found["saved"], found["restored"]
        here = f"kexec {boot['boot']}"
        require(boot["boot_id"] not in seen, f"{here}: boot id {boot['boot_id']} again")
        seen.add(boot["boot_id"])
        require(boot["kernel"] == boots[0]["kernel"], f"{here}: another kernel: {boot['kernel']}")
        require(restored["boot_id"] == boot["boot_id"] and saved["boot_id"] == boots[boot["boot"] - 1]["boot_id"],
                f"{here}: saved boot ids are not those of the boots")
        require(restored["tsc"] > saved["tsc"], f"{here}: the host TSC fell from {saved['tsc']} to {restored['tsc']}")
        # A TSC that a reset set to 0 would be just as old as the boot.
        at_boot = restored["tsc"] - restored["uptime_ms"] * restored["tsc_khz"]
        require(at_boot > saved["tsc"], f"{here}: the host TSC restarted: {at_boot} at boot, {saved['tsc']} before")
        yield (f"kexec {boot['boot']}: {saved['tsc_khz']} -> {restored['tsc_khz']} kHz, host TSC {saved['tsc']} -> "
               f"{restored['tsc']}, up {saved['uptime_ms'] / 1e3:.1f} s -> {restored['uptime_ms'] / 1e3:.1f} s, "
               f"guest down {found['downtime_ns'] / 1e9:.1f} s")


def exact(guest, vcpus):
    def case(boots, kexecs):
        updates = all_updates(boots, kexecs)
        rate = good_result(boots[0], guest)["tsc_khz"]
        for boot in updates:
            found = require_exact(boot, guest, rate)
            require(found["vcpus"] == vcpus, f"{found['vcpus']} vCPUs, not {vcpus}")
        yield f"{guest}: offsets and record bit-identical, 0 ticks, 0 ns, 0 steps back in {len(updates)} kexecs"
    return case


def another_rate(boots, kexecs):
    updates = all_updates(boots, kexecs)
    changed = 0
    for boot in updates:
        found = result_of(boot, "exact-4")
        if found["saved"]["tsc_khz"] != found["restored"]["tsc_khz"]:
            changed += 1
            for guest in ("exact-1", "exact-4"):
                require_exact(boot, guest, good_result(boots[0], guest)["tsc_khz"])
    require(changed, f"all {len(updates)} kexecs calibrated the TSC to the same rate: this proves nothing")
    yield f"calibrated to another rate in {changed} of {len(updates)} kexecs"


def scaled(guest):
    """KVM derives the ratio from the calibration; mode exact restores the saved one."""
    def case(boots, kexecs):
        updates = all_updates(boots, kexecs)
        saved = good_result(boots[0], guest)
        others = {result_of(boot, "exact-4")["restored"]["tsc_khz"] for boot in updates} - {saved["boot"]["tsc_khz"]}
        require(others, "no kexec calibrated another rate: this proves nothing")
        for boot in updates:
            require_exact(boot, guest, saved["tsc_khz"])
        yield f"{guest}: {saved['tsc_khz']} kHz, exact in {len(updates)} kexecs; the host's {saved['boot']['tsc_khz']} kHz became {sorted(others)}"
    return case


def advance(boots, kexecs):
    boot = all_updates(boots, kexecs)[0]
    found = good_result(boot, "advance")
    require(found["record_bit_identical"] and found["tsc_kvmclock_skew_ns"] == 0,
            f"the record changed: skew {found['tsc_kvmclock_skew_ns']} ns")
    yield show("advance", found)


def freeze(boots, kexecs):
    boot = all_updates(boots, kexecs)[0]
    found = good_result(boot, "freeze")
    down = found["downtime_ns"] * found["restored"]["tsc_khz"] // 1_000_000
    require(not found["offsets_bit_identical"], "the offsets are reported as identical")
    require(down // 2 < -found["tsc_error_ticks"] <= down,
            f"the TSC is off by {found['tsc_error_ticks']} ticks after {down} ticks of downtime")
    require(found["record_bit_identical"] and found["tsc_kvmclock_skew_ns"] == 0,
            f"the record changed: skew {found['tsc_kvmclock_skew_ns']} ns")
    yield show("freeze", found)


def damaged(whole):
    """Files that clockguest must refuse, made from `whole`, which it takes."""
    def flipped(position, bit):
        content = bytearray(whole)
        content[position] ^= bit
        return bytes(content)

    clocks = whole.index(b'"clocks"')
    return {
        "cut short": whole[:-1],
        "cut in half": whole[:len(whole) // 2],
        "with a bit of the clocks flipped": flipped(clocks + 200, 1),
        "with a bit of the memory flipped": flipped(-1, 0x80),
        "with a byte appended": whole + b"\0",
        "empty": b"",
        "not ours": pathlib.Path(__file__).read_bytes(),
    }


def refused(results):
    """clockguest refuses these files before it creates a VM, hence on this machine as well."""
    saved = results / "file.0"
    require(saved.exists(), "no guest was saved")
    for how, content in damaged(saved.read_bytes()).items():
        file = results / "damaged"
        file.write_bytes(content)
        run = subprocess.run([REPO / "target/release/clockguest", "restore", "--from", file],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        message = run.stderr.strip()
        require(run.returncode == 1 and "cannot restore" in message and not run.stdout,
                f"a file {how}: status {run.returncode}: {message}")
        yield f"{how}: {message.removeprefix(f'clockguest: cannot restore {file}: ')}"


CASES = (
    ("the kernel is replaced, and the host TSC counts on", another_kernel),
    ("1 vCPU is exact after every kexec", exact("exact-1", 1)),
    ("4 vCPUs are exact after every kexec", exact("exact-4", 4)),
    ("4 vCPUs in a file are exact after every kexec", exact("file", 4)),
    ("exact although the host TSC was calibrated to another rate", another_rate),
    ("advance, as if the host were another one, keeps the record", advance),
    ("freeze loses the downtime, and the loss is measured", freeze),
    *luo.CASES,
)

SCALING_CASES = tuple((f"a guest of {what} TSC is exact as well", scaled(guest))
                      for guest, what in (("slow", "slower"), ("fast", "faster")))


def run_host(args, results):
    """Boot the test host, and let the steps run. Returns the exit status of the run, and its output."""
    scaling = ["--scaling"] * args.scaling
    # The module's KUnit tests run in other boots.
    with subprocess.Popen(
        [REPO / "tools/vm/host", "run", *(["--kdir", args.kdir] if args.kdir else []), *scaling, "--timeout", str(TIMEOUT),
         "--results", results, "--append", "kunit.enable=0", "--append", kexec.LIVE_UPDATE,
         " ".join([str(STEPS), *scaling, str(args.kexecs), str(args.most)])],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:
        try:
            output = process.communicate()[0]
        except BaseException:
            # The run ends its QEMU.
            process.terminate()
            raise
    return process.returncode, output


def add_arguments(parser):
    options.add_kdir(parser)
    parser.add_argument("--scaling", action="store_true", help="as for `tools/vm/host run`; and guests of other TSC rates")
    parser.add_argument("--kexecs", type=int, default=3, metavar="N",
                        help="how often to replace the kernel (default: %(default)s)")
    parser.add_argument("--most", type=int, default=12, metavar="N",
                        help="go on up to N kexecs until one calibrated another rate (default: %(default)s)")
    parser.add_argument("--results", default=str(REPO / "build/vm/live-update"), metavar="DIR",
                        help="folder for states, results and console (default: %(default)s)")


def main(args):
    if args.kexecs < 1:
        args.parser.error("--kexecs: at least one")
    results = pathlib.Path(args.results).resolve()
    results.mkdir(parents=True, exist_ok=True)
    for stale in [*results.glob("boot-*.json"), *results.glob("file.*")]:
        stale.unlink()
    status, output = run_host(args, results)
    boots = []
    while (file := results / f"boot-{len(boots)}.json").exists():
        boots.append(json.loads(file.read_text()))

    cases = [(name, functools.partial(case, boots, args.kexecs))
             for name, case in
             CASES + SCALING_CASES * args.scaling + luo.CASES_OF_TWO_KEXECS * (args.kexecs > 1)]
    cases.append(("a file that is damaged or not ours is refused", functools.partial(refused, results)))
    report = ktap.Report(len(cases) + 1)
    for name, case in cases:
        notes, why = [], None
        try:
            notes.extend(case())
        except Failed as failure:
            why = str(failure)
        report.result(name, why, notes)
    clean = status == 0
    report.result("the test host ends cleanly, without a kernel splat",
                  None if clean else f"status {status}, console in {results}/console.log",
                  () if clean else output.splitlines())
    return report.end()
