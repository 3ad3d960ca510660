# SPDX-License-Identifier: GPL-2.0-only
"""Commands of scripts/check: run with a log, and followed line by line."""

import os
import signal
import subprocess
import threading
import time

from paths import REPO

_running = set()
_lock = threading.Lock()
_ending = False


def run(words, log, nice=0, live=lambda line: None):
    """Run a command with its output in a log; `live` gets each line as it comes.

    Returns (exit status, lines, CPU seconds of the command and of its children).
    """
    with open(log, "w") as output, _lock:
        if _ending:
            raise InterruptedError
        process = subprocess.Popen(["nice", f"-n{nice}", *words] if nice else words, cwd=REPO, stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT, env=dict(os.environ, TERM="dumb"), start_new_session=True)
        _running.add(process)
    try:
        return _follow(process, log, live)
    finally:
        with _lock:
            _running.discard(process)


def _follow(process, log, live):
    lines, part, usage = [], "", None
    with open(log, errors="replace") as output:
        while True:
            if usage is None:
                # As Popen.poll(), which does not return the usage.
                pid, status, found = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    process.returncode, usage = os.waitstatus_to_exitcode(status), found
            part += output.readline()
            if part.endswith("\n") or usage and part:
                lines.append(part.rstrip("\n"))
                live(lines[-1])
                part = ""
            elif usage:
                return process.returncode, lines, usage.ru_utime + usage.ru_stime
            else:
                time.sleep(0.2)


def end_all():
    """End all commands, and what they started; no other one starts."""
    global _ending
    with _lock:
        _ending = True
        processes = list(_running)
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
    deadline = time.monotonic() + 60
    while _running and time.monotonic() < deadline:
        time.sleep(0.1)
