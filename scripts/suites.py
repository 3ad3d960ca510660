# SPDX-License-Identifier: GPL-2.0-only
"""The suites that scripts/check runs, read from suites.toml."""

import os
import re
import shlex
import tomllib
from dataclasses import dataclass, field

from paths import REPO, built

OWN_TESTS = REPO / "tools/testing/selftests/kvm_clock_guest"
TABLE = tomllib.loads((REPO / "scripts/suites.toml").read_text())
SETS = TABLE["sets"]
AT_ONCE = TABLE["at_once"]
BUILD = "build"


def _slug(text):
    return re.sub(r"\W+", "-", text)


@dataclass
class Suite:
    """One command, and what its output means: see suites.toml."""

    name: str
    run: str
    kind: str = ""
    group: str = ""
    after: str = ""
    result: str = ""
    plan: str = ""
    share: list[int] = field(default_factory=lambda: [1, 1])
    hosts: int = 1
    patches: str = ""
    exempt: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.group = self.group or self.name
        kinds = {"status": self.result, "plan": self.plan, "patches": self.patches}
        self.kind = self.kind or next((kind for kind, value in kinds.items() if value), "ktap")

    @property
    def needs(self):
        """The kind of slot that it takes in AT_ONCE."""
        return "host" if _with_words(self.run).startswith("tools/vm/host ") else "machine"

    @property
    def log(self):
        return REPO / "build/log" / f"check-{_slug(self.name)}.log"

    @property
    def results(self):
        """The folder of its test host."""
        return REPO / "build/vm" / f"check-{_slug(self.name)}"


@dataclass
class Test:
    """One test of a plan."""

    name: str
    seconds: int
    attempts: int
    command: str


def chosen(sets, only):
    """The suites of the set `build` and of these sets whose groups match the pattern `only`."""
    names = dict.fromkeys([BUILD, *(part for name in sets for part in (name, *TABLE["includes"].get(name, [])))])
    return [suite for name in names for suite in (Suite(**entry) for entry in TABLE["suites"][name]) if re.search(only, suite.group)]


class Paths(dict):
    """Values of placeholders; those that are not given are paths that scripts/env prints."""

    def __missing__(self, name):
        self[name] = str(built(name))
        return self[name]


def _with_words(text):
    """Replace the placeholders that stand for words of the table."""
    words = TABLE["words"]
    while (replaced := re.sub(r"\{([\w-]+)\}", lambda match: words.get(match[1], match[0]), text)) != text:
        text = replaced
    return text


def command(suite, paths):
    """The words of a suite's command."""
    paths["results"] = str(suite.results)
    words = (word.format_map(paths) for word in shlex.split(_with_words(suite.run)))
    return [word for word in words if word]


def plan(suite, paths):
    """The tests of a suite's plan, or of its share, in order."""
    entry = TABLE["plan"][suite.plan]
    seconds, without = entry["seconds"], entry.get("without", {})
    tests = []
    for group in entry["tests"]:
        tests += _own(entry) if group == "own" else _group(group, seconds, paths)
    tests += _kernels(entry, paths["selftests"])
    if "last" in entry:
        tests += _group(entry["last"], seconds, paths)
    number, shares = suite.share
    return [test for test in tests if test.name.removeprefix("kvm/") not in without][number - 1::shares]


def _group(name, seconds, paths):
    return [Test(test, seconds, 1, _with_words(text).format_map(paths)) for test, text in TABLE["tests"][name].items()]


def _own(entry):
    """The repository's own tests: programs of the workspace, and scripts beside their Makefile."""
    for path in sorted((REPO / "target/release").glob("kselftest-*")) + sorted(OWN_TESTS.glob("*.sh")):
        if os.access(path, os.X_OK) and path.suffix != ".d" and path.name in entry.get("only", [path.name]):
            cases = entry.get("cases_without", {}).get(path.name, [])
            yield Test(path.name, entry["seconds"], 1, shlex.join(
                [str(path), *entry.get("options", {}).get(path.name, []), *["--without"] * bool(cases), *cases]))


def _kernels(entry, folder):
    """The kernel's own tests, which are built in `folder`."""
    for line in "".join((REPO / path).read_text() for path in entry.get("kvm", [])).splitlines():
        if line and not line.startswith("#"):
            name, *attempts = line.split()
            yield Test(f"kvm/{name}", entry["seconds"], int(attempts[0]) if attempts else 1, f"{folder}/{name}")
