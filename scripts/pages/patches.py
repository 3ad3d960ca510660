# SPDX-License-Identifier: GPL-2.0-only
"""How many lines the patches for VMMs change, at the end of the first line about each."""

import re

from paths import REPO


def block(lines):
    def counted(line):
        folder = REPO / "samples" / line.split("  ")[0].lower().replace(" ", "-")
        text = "".join(patch.read_text() for patch in sorted(folder.glob("*.patch"))) if line[:1].isalpha() else ""
        added, removed = (len(re.findall(rf"^[{sign}](?![{sign}]{{2}} )", text.split("\n---\n", 1)[-1], re.MULTILINE)) for sign in "+-")
        return re.sub(r"\+\d+ -\d+$", f"+{added} -{removed}", line) if text else line

    return [counted(line) for line in lines]
