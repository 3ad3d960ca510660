# SPDX-License-Identifier: GPL-2.0-only
"""The kinds of suites of scripts/check: each turns the output of a command into results."""

import re
import time

import commands
import ktap
import suites
from ktap import FAIL, PASS, SKIP, Result
from paths import REPO

# For commands that are not test hosts: those have the CPUs first.
NICE = 10


class Run:
    """A suite that runs."""

    def __init__(self, suite, paths, results):
        self.suite, self.name, self.results = suite, suite.name, results
        self.words = suites.command(suite, paths)
        self._paths, self._last = paths, time.monotonic()
        self.added = []

    def __call__(self):
        self.results.say(f"----  {self.name} (log: {self.suite.log.relative_to(REPO)})")
        KINDS[self.suite.kind](self)

    def tests(self):
        """The tests of its plan; the programs among them must have been built."""
        return suites.plan(self.suite, self._paths) if self.suite.plan else []

    def run(self, words=None, log=None, live=lambda line: None):
        """Run its command, or another one. Returns (status, lines)."""
        began, self._last = self.results.seconds, time.monotonic()
        status, lines, cpu = commands.run(words or self.words, log or self.suite.log, NICE * (self.suite.needs != "host"), live)
        self.results.time_suite(self.name + (f": {self.suite.result}" if self.suite.result else ""), began, cpu)
        return status, lines

    def add(self, result, name=None):
        self.added.append((name or self.name, result))
        self.results.add(name or self.name, result)

    def lap(self, name):
        """Record the time since the result before as that of `name`."""
        now = time.monotonic()
        self.results.time_test(self.name, name, now - self._last)
        self._last = now

    def tail(self, lines, count=30):
        self.results.say(*(f"      | {line}" for line in lines[-count:]))


def status(run):
    """The exit status is the result."""
    began = time.monotonic()
    status, lines = run.run()
    seconds = time.monotonic() - began
    if status not in (0, 4):
        run.tail(lines)
    why = f"{seconds:.0f} s" if status == 0 else f"exit status {status} after {seconds:.0f} s"
    run.add(Result(run.suite.result, {0: PASS, 4: SKIP}.get(status, FAIL), why))


def cargo(run):
    """A cargo test run: one result for each `test NAME ... OUTCOME` line."""
    outcome = {"ok": PASS, "FAILED": FAIL, "ignored": SKIP}
    status, lines = run.run()
    failed = seen = 0
    for line in lines:
        if match := re.match(r"test (.+?) \.\.\. (ok|FAILED|ignored)(.*)", line):
            seen += 1
            failed += match[2] == "FAILED"
            run.add(Result(match[1], outcome[match[2]], match[3].strip(" ,")))
    if status != 0:
        run.tail(lines)
        if not failed:
            run.add(Result("cargo test", FAIL, f"exit status {status}"))
    elif not seen:
        run.add(Result("cargo test", FAIL, "no test ran"))


def kernel_test(run):
    """A command that writes KTAP; its results are shown as they come."""
    parser, results = ktap.Parser(), []

    def add(new):
        for result in new:
            results.append(result)
            run.add(result)
            run.lap(result.name)

    status, lines = run.run(live=lambda line: add(parser.feed(line)))
    add(parser.end())
    if status != 0:
        run.tail(lines, 60)
    if not results or (status != 0 and not any(result.status == FAIL for result in results)):
        run.add(Result("exit status", FAIL, f"{status}, with {len(results)} results"))


def patches(run):
    """A series and its project's checkpatch.pl, which may complain only of what begins like one of `exempt`."""
    for patch in sorted((REPO / run.suite.patches).glob("*.patch")):
        log = run.suite.log.with_stem(f"{run.suite.log.stem}-{patch.name[:4]}")
        status, lines = run.run([*run.words, "--strict", "--no-color", str(patch)], log)
        complaints = [line for line in lines if re.match("(ERROR|WARNING|CHECK): ", line)]
        passed = status == 0 or complaints and all(line.startswith(tuple(run.suite.exempt)) for line in complaints)
        if not passed:
            run.tail(lines)
        run.add(Result(f"checkpatch --strict {patch.name}", PASS if passed else FAIL))


def plan(run):
    """A plan in a test host, which writes a KTAP stream within another one's results."""
    results = run.suite.results
    results.mkdir(parents=True, exist_ok=True)
    tests = run.tests()
    (results / "plan").write_text("".join(f"{test.name}\t{test.seconds}\t{test.attempts}\t{test.command}\n" for test in tests))
    left = [test.name for test in tests]
    pending = []

    def live(line):
        match = re.match(r"(not )?ok \d+ ([^#]*[^# ])(.*)", line)
        if not match or not left or match[2] != left[0]:
            pending.append(line)
            return
        name = left.pop(0)
        run.lap(name)
        # The last attempt counts.
        begin = max((index for index, text in enumerate(pending) if text.startswith("  # attempt ")), default=-1) + 1
        inner = ktap.parse([text[2:] for text in pending[begin:] if text.startswith("  ")])
        for result in inner:
            run.add(result, name)
        why = match[3].strip(" #")
        failed_inside = any(result.status == FAIL for result in inner)
        if match[1] and not failed_inside:
            run.add(Result("exit status", FAIL, why), name)
        elif not inner:
            reason = [text.strip() for text in pending if "SKIP" in text or "equire" in text][-1:]
            skipped = "SKIP" in why
            run.add(Result("runs", SKIP if skipped else PASS, " ".join(reason) if skipped else why), name)
        if match[1]:
            run.tail(pending)
        pending.clear()

    status, lines = run.run(live=live)
    for name in left:
        run.add(Result("runs", FAIL, f"not reported: the test host ended early, status {status}"), name)
    clean = status in (0, 1)
    if not clean:
        run.tail(lines, 60)
    run.add(Result("ends cleanly, without a kernel splat", PASS if clean else FAIL,
                   "" if clean else f"status {status}, console in {results}/console.log"))


KINDS = {"status": status, "cargo": cargo, "ktap": kernel_test, "patches": patches, "plan": plan}
