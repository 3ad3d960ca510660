# SPDX-License-Identifier: GPL-2.0-only
"""The results of scripts/check: printed, counted, and timed."""

import json
import os
import sys
import threading
import time

from ktap import FAIL, PASS, SKIP, result_line
from paths import REPO

LOGS = REPO / "build/log"
TIMES = LOGS / "times.json"
SUMMARY = LOGS / "check.ktap"
COLOURS = {PASS: "32", FAIL: "31", SKIP: "33"} if sys.stdout.isatty() and "NO_COLOR" not in os.environ else {}

# How many tests --times shows.
SLOWEST = 20


class Results:
    """All results; suites that run at once share it."""

    def __init__(self):
        self.totals = {PASS: 0, FAIL: 0, SKIP: 0}
        self.suites, self.tests, self._lines = [], [], []
        self._began = time.monotonic()
        self._lock = threading.RLock()

    def say(self, *lines):
        """Print lines without another suite's between them."""
        with self._lock:
            for line in lines:
                print(line, flush=True)

    def add(self, suite, result, quiet=False):
        """Count and print one result. A skip is a failure: every test must run."""
        status, why = result.status, result.why
        if status == SKIP:
            status, why = FAIL, f"skipped, but it must run: {why}"
        shown = f"\033[{COLOURS[status]}m{status}\033[0m" if COLOURS else status
        with self._lock:
            self.totals[status] += 1
            name = f"{suite}: {result.name}".replace("#", "")
            self._lines.append(result_line(status == PASS, len(self._lines) + 1, name, why))
            if quiet:
                return
            self.say(f"{shown}  {suite}: {result.name}" + (f"  ({why})" if why else ""))

    @property
    def seconds(self):
        return time.monotonic() - self._began

    def time_suite(self, name, began, cpu):
        """Record a command of a suite: when it began, and its CPU seconds."""
        with self._lock:
            self.suites.append({"suite": name, "began": round(began, 1), "seconds": round(self.seconds - began, 1),
                                "cpu": round(cpu, 1)})

    def time_test(self, suite, name, seconds):
        with self._lock:
            self.tests.append({"suite": suite, "test": name, "seconds": round(seconds, 1)})

    def save_summary(self):
        """Write all results as KTAP."""
        SUMMARY.write_text("\n".join(["KTAP version 1", f"1..{len(self._lines)}", *self._lines]) + "\n")

    def save_times(self):
        TIMES.write_text(json.dumps({"seconds": round(self.seconds, 1), "suites": self.suites, "tests": self.tests}, indent=1) + "\n")

    def times(self):
        """The lines of --times."""
        yield "  began  seconds  CPU s  suite"
        for entry in sorted(self.suites, key=lambda entry: -entry["seconds"]):
            yield f"{entry['began']:7.0f}  {entry['seconds']:7.0f}  {entry['cpu']:5.0f}  {entry['suite']}"
        cpu, seconds = sum(entry["cpu"] for entry in self.suites), self.seconds
        yield f"{'':7}  {seconds:7.0f}  {cpu:5.0f}  all, {cpu / seconds:.2f} of {os.cpu_count()} CPUs busy"
        yield f"the slowest {SLOWEST} tests:"
        for entry in sorted(self.tests, key=lambda entry: -entry["seconds"])[:SLOWEST]:
            yield f"{'':7}  {entry['seconds']:7.1f}  {'':5}  {entry['suite']}: {entry['test']}"
