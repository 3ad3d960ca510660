# SPDX-License-Identifier: GPL-2.0-only
"""What passed for one state of the tree, so that scripts/check --resume does not run it again.

>>> import pathlib, tempfile; from ktap import FAIL
>>> folder = tempfile.TemporaryDirectory()
>>> tree = pathlib.Path(folder.name)
>>> def git(*words):
...     _ = subprocess.run(["git", "-C", tree, "-c", "user.name=x", "-c", "user.email=x@x", *words], check=True, capture_output=True)
>>> git("init"); _ = (tree / "a").write_text("1"); _ = (tree / ".gitignore").write_text("log\\n"); git("add", "."); git("commit", "-m", "x")
>>> _ = Passed(tree / "log", ["k"], tree).store("group", [("suite", Result("one", PASS))])
>>> Passed(tree / "log", ["k"], tree).of("group")
[('suite', Result(name='one', status='PASS', why=''))]

Another group, another kernel, a change, and a new file are another matter:

>>> Passed(tree / "log", ["k"], tree).of("other"), Passed(tree / "log", ["l"], tree).of("group")
(None, None)
>>> _ = (tree / "a").write_text("2"); Passed(tree / "log", ["k"], tree).of("group")
>>> _ = (tree / "a").write_text("1"); _ = (tree / "b").write_text("2"); Passed(tree / "log", ["k"], tree).of("group")
>>> (tree / "b").unlink(); len(Passed(tree / "log", ["k"], tree).of("group"))
1

What failed or was skipped is not kept, nor what ran while the tree changed:

>>> Passed(tree / "log", ["k"], tree).store("group 2", [("suite", Result("one", PASS)), ("suite", Result("two", FAIL))])
False
>>> before = Passed(tree / "log", ["k"], tree); _ = (tree / "a").write_text("3"); before.store("group 3", [("suite", Result("one", PASS))])
False
>>> folder.cleanup()
"""

import dataclasses
import hashlib
import json
import subprocess
import threading

from ktap import PASS, Result
from paths import REPO


class Passed:
    """The groups of suites that passed, in a file."""

    def __init__(self, file, more, repo=REPO):
        """Without git, there is no state to compare, and nothing is kept. `more` is what else the results depend on."""
        self._file, self._more, self._repo = file, more, repo
        self._lock = threading.Lock()
        self._state = self._state_of_tree()
        self._groups = {}
        try:
            kept = json.loads(file.read_text())
            if self._state and kept["state"] == self._state:
                self._groups = kept["groups"]
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def _git(self, *words):
        return subprocess.run(["git", "-C", self._repo, *words], check=True, capture_output=True).stdout

    def _state_of_tree(self):
        """A digest of all files that git tracks, or would track."""
        digest = hashlib.sha256(repr(self._more).encode())
        try:
            digest.update(self._git("rev-parse", "HEAD^{tree}"))
            digest.update(self._git("diff", "HEAD", "--binary"))
            for name in sorted(self._git("ls-files", "-z", "--others", "--exclude-standard").split(b"\0")):
                if name:
                    digest.update(name + b"\0" + (self._repo / name.decode(errors="surrogateescape")).read_bytes())
        except (OSError, subprocess.CalledProcessError):
            return None
        return digest.hexdigest()

    def of(self, group):
        """The results of a group that passed: pairs of a suite's name and a result. None if it has to run."""
        entries = self._groups.get(group)
        return entries and [(suite, Result(**result)) for suite, result in entries]

    def store(self, group, results):
        """Keep the results of a group, if all passed and the tree is as it was at the start. Returns whether it did."""
        if not results or any(result.status != PASS for _, result in results):
            return False
        with self._lock:
            if self._state is None or self._state_of_tree() != self._state:
                return False
            self._groups[group] = [(suite, dataclasses.asdict(result)) for suite, result in results]
            self._file.write_text(json.dumps({"state": self._state, "groups": self._groups}) + "\n")
        return True

    def forget(self):
        """Everything runs the next time."""
        self._file.unlink(missing_ok=True)
