# SPDX-License-Identifier: GPL-2.0-only
"""How a run of a test host ended: exit statuses, and what its kernel said."""

import re

from paths import REPO

TIMED_OUT = 124
HOST_FAILED = 125

EXIT_STATUS = f"""\
exit status:
  that of COMMAND, else
  {TIMED_OUT}  the time limit was reached; the end of the console is printed
  {HOST_FAILED}  the test host failed, whatever COMMAND returned: it did not boot, a module
       did not load, the kernel printed a splat (tools/vm/splats.txt), or it did
       not print what --allow expects
"""


class HostError(Exception):
    """The run failed: a message, the exit status, and lines of a log."""

    def __init__(self, message, status=HOST_FAILED, lines=()):
        super().__init__(message)
        self.status, self.lines = status, lines


def _expression_of(name):
    """One regular expression for a file that has one on each line."""
    lines = (REPO / "tools/vm" / name).read_text().splitlines()
    return re.compile("|".join(f"(?:{line})" for line in lines if line and not line.startswith("#")))


def splats(console):
    """Return the lines of the console that fail a run, whatever the command returned."""
    splat, known = _expression_of("splats.txt"), _expression_of("known-races.txt")
    return [line for line in console if splat.search(line) and not known.search(line)]


def conclude(console, status, timeout, allow=()):
    """Return the exit status of a run, or raise HostError.

    `console` is the file with the kernel's console. `status` is that of the command, None if the time limit
    was reached, or a string that says how the host ended if it ended before the command did.
    """
    log = console.read_text(errors="replace").splitlines()
    found = splats(log)
    if bad := [line for line in found if not any(re.search(pattern, line) for pattern in allow)]:
        raise HostError(f"the kernel complained, see {console}:", lines=bad[:40])
    end = f"the console's last lines ({console}):"
    if status is None:
        raise HostError(f"no end after {timeout:g} s; {end}", TIMED_OUT, log[-20:])
    if isinstance(status, str):
        raise HostError(f"the test host ended before the command did ({status}); {end}", lines=log[-20:])
    if missing := [pattern for pattern in allow if not any(re.search(pattern, line) for line in found)]:
        raise HostError(f"the kernel did not print what --allow expects, see {console}: " + ", ".join(missing))
    return status
