# SPDX-License-Identifier: GPL-2.0-only
"""What tools/vm/inside/init does in a test host, in a file: the kernel's command line holds only 2 KiB."""

import shlex

from paths import REPO

ENVIRONMENT = """\
environment of COMMAND:
  CLOCK_GUEST_RESULTS  the only writable folder that outlives the run
  CLOCK_GUEST_KDIR     the kernel's build folder
  CLOCK_GUEST_MODULE   kvm_clock_guest.ko, empty if there is none
  CLOCK_GUEST_QEMU     version of the QEMU that emulates the host
  CLOCK_GUEST_ADDRESS  this host's address on the link, only with --link
  CLOCK_GUEST_PEER     the other host's address, likewise
"""


def job(command, kernel, modules, own, **variables):
    """The text of the file: `modules` are loaded in order, `own` is kvm_clock_guest.ko or empty.

    Of `variables`, those in capitals are exported to `command`.
    """
    variables = {
        "CLOCK_GUEST_KDIR": kernel.kdir, "CLOCK_GUEST_MODULE": own, "modules": " ".join(map(str, modules)),
        "repo": REPO, "command": command, **variables,
    }
    return "".join(f"{'export ' * name.isupper()}{name}={shlex.quote(str(value))}\n" for name, value in variables.items())
