# SPDX-License-Identifier: GPL-2.0-only
"""The test host whose instructions are counted."""

# QEMU's -cpu argument. The emulator counts each repetition of a string instruction, which a CPU executes as one.
# Without ERMS and FSRM the kernel copies by words.
CPU = "max,-erms,-fsrm,-tsc-scale"
