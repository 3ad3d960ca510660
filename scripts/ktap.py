# SPDX-License-Identifier: GPL-2.0-only
"""Write KTAP, and read KTAP and TAP 13/14 into a flat list of results: leaves only, no parents."""

import re
from dataclasses import dataclass

PASS, FAIL, SKIP = "PASS", "FAIL", "SKIP"

_RESULT = re.compile(r"^(?P<indent> *)(?P<not>not )?ok (?P<number>\d+)(?: -)? ?(?P<rest>.*)$")
_PLAN = re.compile(r"^(?P<indent> *)1\.\.(?P<count>\d+)(?P<rest>.*)$")


def result_line(passed, number, name, note=""):
    """The line of a result.

    >>> result_line(False, 2, "sub", "2 - 2 = 1")
    'not ok 2 sub # 2 - 2 = 1'
    """
    return f"{'ok' if passed else 'not ok'} {number} {name}" + (f" # {note}" if note else "")


class Report:
    """Prints results as they come.

    >>> report = Report(2)
    KTAP version 1
    1..2
    >>> report.result("add", notes=["2 + 2 = 4"])
    # 2 + 2 = 4
    ok 1 add
    >>> report.result("sub", "2 - 2 = 1")
    not ok 2 sub # 2 - 2 = 1
    >>> report.end()
    1
    """

    def __init__(self, count=None):
        """`count` is the number of results, if it is known."""
        self._planned, self.number, self.failed = count, 0, 0
        print("KTAP version 1")
        if count is not None:
            print(f"1..{count}", flush=True)

    def note(self, *lines):
        """Print diagnostic lines."""
        for line in lines:
            print(f"# {line}", flush=True)

    def result(self, name, why=None, notes=(), remark=""):
        """Print one result: passed, unless `why` says why it failed. The lines of `notes` go before it, a remark behind."""
        self.number += 1
        self.note(*notes)
        if why is None:
            print(result_line(True, self.number, name, remark), flush=True)
            return
        self.failed += 1
        first, *more = why.splitlines() or [""]
        self.note(*more)
        print(result_line(False, self.number, name, first), flush=True)

    def end(self):
        """Print the number of results if that was not known before. Returns the exit status."""
        if self._planned is None:
            print(f"1..{self.number}")
        return 1 if self.failed or not self.number else 0


@dataclass
class Result:
    """One test's outcome."""

    name: str
    status: str
    why: str = ""


def _one(match):
    name, _, directive = match["rest"].partition("# ")
    word = directive.split(None, 1)[0].rstrip(":").upper() if directive.strip() else ""
    if word == "SKIP":
        return Result(name.strip(), SKIP, directive.strip())
    # An expected failure is a pass in either form.
    failed = bool(match["not"]) and word != "XFAIL"
    return Result(name.strip(), FAIL if failed else PASS, directive.strip())


class Parser:
    """Reads lines as they come.

    >>> parser = Parser()
    >>> [(r.name, r.status) for line in ['1..3', 'ok 1 a', 'ok 2 b'] for r in parser.feed(line)]
    [('a', 'PASS'), ('b', 'PASS')]
    >>> [(r.name, r.status) for r in parser.end()]
    [('planned 3 tests, reported 2', 'FAIL')]
    """

    def __init__(self):
        self._blocks = {}  # indentation -> [planned, reported]
        self._deepest = -1  # indentation of the results since the last one further out

    def _close(self, indent):
        for depth in [depth for depth in self._blocks if depth >= indent]:
            planned, reported = self._blocks.pop(depth)
            if reported < planned:
                yield Result(f"planned {planned} tests, reported {reported}", FAIL)

    def feed(self, line):
        """Yield the results that `line` adds."""
        if plan := _PLAN.match(line):
            indent = len(plan["indent"])
            yield from self._close(indent + 1)
            if self._blocks.get(indent, [1])[0]:
                yield from self._close(indent)
            # A plan may follow its results.
            self._blocks.setdefault(indent, [0, 0])[0] = int(plan["count"])
            if plan["count"] == "0":
                yield Result("all", SKIP, plan["rest"].strip(" #"))
        elif match := _RESULT.match(line):
            indent = len(match["indent"])
            yield from self._close(indent + 1)
            self._blocks.setdefault(indent, [0, 0])[1] += 1
            is_parent = self._deepest > indent
            self._deepest = indent
            if not is_parent:
                yield _one(match)

    def end(self):
        """Yield a failure for each block with fewer results than it planned."""
        yield from self._close(0)


def parse(lines):
    """Results of the leaves in `lines`; a block with fewer results than it planned adds a failure.

    >>> text = '''KTAP version 1
    ... 1..2
    ...   KTAP version 1
    ...   1..2
    ...   ok 1 add
    ...   not ok 2 sub # by one
    ... not ok 1 maths
    ... ok 2 tsc # SKIP no scaling'''
    >>> [(r.name, r.status) for r in parse(text.splitlines())]
    [('add', 'PASS'), ('sub', 'FAIL'), ('tsc', 'SKIP')]
    >>> [(r.name, r.status) for r in parse(['1..3', 'ok 1 a', 'ok 2 b'])]
    [('a', 'PASS'), ('b', 'PASS'), ('planned 3 tests, reported 2', 'FAIL')]
    >>> [(r.name, r.status) for r in parse(['ok 1 a', 'ok 2 b', '1..2'])]
    [('a', 'PASS'), ('b', 'PASS')]
    >>> [(r.name, r.status) for r in parse(['ok 1 a', '1..2'])]
    [('a', 'PASS'), ('planned 2 tests, reported 1', 'FAIL')]
    >>> [(r.name, r.status) for r in parse(['1..1', 'ok 1 a', '1..2', 'ok 1 b'])]
    [('a', 'PASS'), ('b', 'PASS'), ('planned 2 tests, reported 1', 'FAIL')]
    >>> [(r.name, r.status) for r in parse(['1..0 # SKIP no KVM'])]
    [('all', 'SKIP')]
    """
    parser = Parser()
    return [result for line in lines for result in parser.feed(line)] + list(parser.end())
