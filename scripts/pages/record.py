# SPDX-License-Identifier: GPL-2.0-only
"""The data of a table, with the run that they are of: a file in Documentation/data."""

import json
import subprocess
import time

from paths import REPO

DATA = REPO / "Documentation/data"
# What the module and all programs are made of.
KERNEL = ["rust/pvclock", "rust/kvm_clock_guest", "rust/kvm-clock/src", "patches/linux/7.3"]


class NotTaken(Exception):
    """Why a run's results cannot be the data of a table."""


def _git(*words):
    return subprocess.run(["git", "-C", REPO, *words], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()


def _lines(value, indent=1):
    """JSON with a line for each entry, but the innermost ones, which a diff then shows as rows."""
    if not isinstance(value, (dict, list)) or not any(isinstance(entry, (dict, list)) for entry in (value.values() if isinstance(value, dict) else value)):
        return json.dumps(value, ensure_ascii=False)
    pad = "\n" + " " * indent
    if isinstance(value, dict):
        entries = (f"{json.dumps(key)}: {_lines(entry, indent + 1)}" for key, entry in value.items())
        return "{" + pad + f",{pad}".join(entries) + pad[:-1] + "}"
    return "[" + pad + f",{pad}".join(_lines(entry, indent + 1) for entry in value) + pad[:-1] + "]"


def load(run):
    return json.loads((DATA / f"{run.NAME}.json").read_text())


def take(run):
    """Write the data file of a table from the results that its last run left in build/."""
    results = [REPO / path for path in run.RESULTS]
    if missing := [path for path, file in zip(run.RESULTS, results) if not file.exists()]:
        raise NotTaken(f"no {missing[0]}: run `{run.COMMAND}` first")
    if _git("status", "--porcelain", "--", *run.SOURCES):
        raise NotTaken(f"{', '.join(run.SOURCES)}: not committed, so the data would name the wrong commit")
    ran = min(file.stat().st_mtime for file in results)
    for path in _git("ls-files", "--", *run.SOURCES).splitlines():
        if (REPO / path).stat().st_mtime > ran:
            raise NotTaken(f"{path} is newer than the results: run `{run.COMMAND}` again")
    data = run.take(*(file.read_text() for file in results))
    DATA.mkdir(parents=True, exist_ok=True)
    (DATA / f"{run.NAME}.json").write_text(_lines({
        "command": run.COMMAND, "date": time.strftime("%Y-%m-%d", time.gmtime(ran)), "commit": _git("rev-parse", "--short=12", "HEAD"),
        "sources": {path: _git("rev-parse", f"HEAD:{path}") for path in run.SOURCES}, "data": data}) + "\n")


def changed(run, recorded):
    """Sources that have changed since the run; None if that is not known."""
    try:
        dirty = _git("status", "--porcelain", "--", *run.SOURCES)
        return [path for path in run.SOURCES
                if _git("rev-parse", f"HEAD:{path}") != recorded["sources"].get(path) or f" {path}" in dirty]
    except (OSError, subprocess.CalledProcessError):
        return None
