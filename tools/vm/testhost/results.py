# SPDX-License-Identifier: GPL-2.0-only
"""The folders that runs of test hosts leave their results in."""

import os
import pathlib
import shutil
import time

from paths import REPO

RUNS = REPO / "build/vm"
KEEP_RUNS = 20


def results_folder(asked, kind):
    """Make and return the folder `asked`, or else a new one for a run of this kind, whose oldest ones are removed."""
    if asked:
        folder = pathlib.Path(asked).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    RUNS.mkdir(parents=True, exist_ok=True)
    for old in sorted(RUNS.glob(f"{kind}-*"))[:-KEEP_RUNS]:
        shutil.rmtree(old, ignore_errors=True)
    folder = RUNS / time.strftime(f"{kind}-%Y%m%d-%H%M%S-{os.getpid()}")
    folder.mkdir()
    return folder
