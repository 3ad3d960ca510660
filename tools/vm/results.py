# SPDX-License-Identifier: GPL-2.0-only
"""Where a run of test hosts leaves what it found."""

import os
import pathlib
import shutil
import time

RUNS = pathlib.Path(__file__).resolve().parents[2] / "build/vm"
KEEP_RUNS = 20


def results_folder(asked, kind):
    """The folder that was asked for, or else a new one for a run of this kind, whose oldest ones are removed."""
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
