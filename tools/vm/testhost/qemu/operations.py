# SPDX-License-Identifier: GPL-2.0-only
"""The operations on a guest: each function is one operation on a running guest, with the commands of a management tool."""

import calendar
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

from . import rendezvous

TIMEOUT = 120
CLOCKGUEST = "target/release/clockguest"
# Seconds for which a guest is stopped.
PAUSE, LONG_PAUSE, WATCHDOG_PAUSE = 5, 20, 15
# The block node for snapshots.
NODE = "snapshots"
TAG = "one"


def choose(qmp, restore):
    """How the clocks go on when the guest next starts, if not by the machine property."""
    if restore:
        qmp("set-clock-guest-restore", mode=restore)


def stop_cont(guest, restore=None, seconds=PAUSE):
    guest.qmp("stop")
    time.sleep(seconds)
    choose(guest.qmp, restore)
    guest.qmp("cont")


def stop_cont_module_gone(guest):
    """The library between QEMU and the C library imitates that; see interpose.c."""
    guest.qmp("stop")
    time.sleep(PAUSE)
    mark = pathlib.Path(guest.case["preload"].partition(",")[2])
    mark.touch()
    guest.qmp("cont")


def stop_cont_audited(guest):
    """While `clockguest audit` looks on. KVM writes no record unless something happens: a short stop is for the first one."""
    instances = pathlib.Path("/sys/kernel/tracing/instances")
    audit = subprocess.Popen([CLOCKGUEST, "audit", "--pid", str(guest.process.pid), "--watch", "--json"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        guest.qmp.wait("the audit", lambda: audit.poll() is not None or any(instances.glob(f"clockguest_{audit.pid}_*")), TIMEOUT)
        for seconds in (1, PAUSE):
            stop_cont(guest, seconds=seconds)
            # Until each vCPU has run.
            time.sleep(3)
        audit.send_signal(signal.SIGINT)
        out, errors = audit.communicate(timeout=TIMEOUT)
    finally:
        audit.kill()
    left = [str(path) for path in instances.glob(f"clockguest_{audit.pid}_*")]
    return {"status": audit.returncode, "errors": errors, "lines": [json.loads(line) for line in out.splitlines()], "left": left}


def stop_cont_long(guest):
    """For so long that a task with a CPU limit shows whether it is charged."""
    stop_cont(guest, seconds=LONG_PAUSE)


def rtc(guest):
    """The time of the machine's RTC, in s."""
    fields = guest.qmp("qom-get", path="/machine", property="rtc-time")
    return calendar.timegm((fields["tm_year"] + 1900, fields["tm_mon"] + 1, *(fields[f"tm_{name}"] for name in ("mday", "hour", "min", "sec"))))


def stop_cont_watchdog(guest):
    """With a watchdog of 10 s that nobody resets, and for longer than that. The RTC counts QEMU's virtual clock."""
    guest.qmp("human-monitor-command", **{"command-line": "o/b 0x443 0xa"})
    began, before = time.monotonic(), rtc(guest)
    stop_cont(guest, seconds=WATCHDOG_PAUSE)
    found = {"elapsed_s": time.monotonic() - began, "rtc_s": rtc(guest) - before}
    guest.qmp.wait_event("WATCHDOG", timeout=TIMEOUT)
    return found


def add_snapshots(guest):
    """Let QEMU make a qcow2 file for snapshots, which the guest does not see."""
    path = str(guest.scratch / "snapshots.qcow2")
    if os.path.exists(path):
        return
    guest.qmp.job("blockdev-create", TIMEOUT, options={"driver": "file", "filename": path, "size": 0})
    guest.qmp("blockdev-add", driver="file", node_name="file", filename=path)
    guest.qmp.job("blockdev-create", TIMEOUT, options={"driver": "qcow2", "file": "file", "size": 1 << 20})
    guest.qmp("blockdev-del", node_name="file")
    guest.qmp("blockdev-add", **snapshots(guest))


def snapshots(guest):
    return {"driver": "qcow2", "node_name": NODE, "file": {"driver": "file", "filename": str(guest.scratch / "snapshots.qcow2")}}


def savevm(guest):
    """QEMU stops the guest while it saves it."""
    add_snapshots(guest)
    guest.qmp.job("snapshot-save", TIMEOUT, tag=TAG, vmstate=NODE, devices=[NODE])


def loadvm(guest):
    """Back to the snapshot, in the same process."""
    guest.qmp.job("snapshot-load", TIMEOUT, tag=TAG, vmstate=NODE, devices=[NODE])
    # The next operations do without it.
    guest.qmp("blockdev-del", node_name=NODE)
    (guest.scratch / "snapshots.qcow2").unlink()


def savevm_new_process(guest, restore=None, **other):
    """Save a snapshot, and load it in a new process."""
    savevm(guest)
    guest.qmp("stop")
    guest.collect()
    process = guest.spawn("-S", **other)
    guest.move_to(process)
    guest.qmp("blockdev-add", **snapshots(guest))
    time.sleep(1)
    loadvm(guest)
    time.sleep(1)
    choose(guest.qmp, restore)
    guest.qmp("cont")


def set_capabilities(qmp, **states):
    qmp("migrate-set-capabilities", capabilities=[{"capability": name.replace("_", "-"), "state": state}
                                                  for name, state in states.items()])


def migrate_unix(guest, restore=None, **other):
    """Live, to another process."""
    address = f"unix:{guest.scratch}/migration"
    process = guest.spawn("-incoming", address, **other)
    choose(process.connect(), restore)
    guest.qmp("migrate", uri=address)
    guest.qmp.wait_migration("completed", timeout=TIMEOUT)
    guest.collect()
    process.qmp.wait_status("running", timeout=TIMEOUT)
    guest.move_to(process)


def migrate_twice(guest, through, **other):
    """To a process that does not start the guest, and from there, still paused, to a third one."""
    address, next_address = f"unix:{guest.scratch}/migration", f"unix:{guest.scratch}/migration-2"
    paused = guest.spawn("-incoming", address, "-S", **through)
    paused.connect()
    process = guest.spawn("-incoming", next_address, **other)
    process.connect()
    guest.qmp("migrate", uri=address)
    guest.qmp.wait_migration("completed", timeout=TIMEOUT)
    guest.collect()
    paused.qmp.wait_status("paused", timeout=TIMEOUT)
    time.sleep(1)
    paused.qmp("migrate", uri=next_address)
    paused.qmp.wait_migration("completed", timeout=TIMEOUT)
    process.qmp.wait_status("paused", timeout=TIMEOUT)
    process.qmp("cont")
    paused.end()
    paused.memory.unlink()
    guest.move_to(process)


def migrate_with(guest, *names, file=False):
    """To another process with these capabilities, which stay on."""
    address = f"{'file' if file else 'unix'}:{guest.scratch}/migration"
    process = guest.spawn("-incoming", "defer")
    process.connect()
    for qmp in (guest.qmp, process.qmp):
        set_capabilities(qmp, **dict.fromkeys(names, True))
    if not file:
        process.qmp("migrate-incoming", uri=address)
    guest.qmp("migrate", uri=address)
    guest.qmp.wait_migration("completed", timeout=TIMEOUT)
    guest.collect()
    if file:
        process.qmp("migrate-incoming", uri=address)
    process.qmp.wait_status("running", timeout=TIMEOUT)
    guest.move_to(process)
    set_capabilities(guest.qmp, **dict.fromkeys(names, False))


def multifd(guest):
    migrate_with(guest, "multifd")


def mapped_ram(guest):
    migrate_with(guest, "mapped_ram", file=True)


def migrate_file(guest, **other):
    """Into a file, and out of it later."""
    path = guest.scratch / "migration.file"
    guest.qmp("migrate", uri=f"file:{path}")
    guest.qmp.wait_migration("completed", timeout=TIMEOUT)
    guest.collect()
    time.sleep(PAUSE)
    process = guest.spawn("-incoming", f"file:{path}", **other)
    process.connect()
    process.qmp.wait_status("running", timeout=TIMEOUT)
    guest.move_to(process)
    path.unlink()


def set_reboot_mode(qmp, on=True):
    set_capabilities(qmp, x_ignore_shared=on)
    qmp("migrate-set-parameters", mode="cpr-reboot" if on else "normal")


def save_for_reboot(guest, uri):
    """All but the guest's memory, which stays where it is."""
    set_reboot_mode(guest.qmp)
    guest.qmp("migrate", uri=uri)
    guest.qmp.wait_status("postmigrate", timeout=TIMEOUT)
    guest.collect()


def load_after_reboot(guest, process, uri):
    """Into a process that has the guest's memory and waits for the rest."""
    guest.move_to(process)
    set_reboot_mode(guest.qmp)
    guest.qmp("migrate-incoming", uri=uri)
    if guest.qmp.wait_status("running", "paused", timeout=TIMEOUT) == "paused":
        guest.qmp("cont")
    set_reboot_mode(guest.qmp, on=False)


def cpr_reboot(guest):
    """A new process finds the guest's memory where it was. The host does not reboot here."""
    path = guest.scratch / "cpr.file"
    save_for_reboot(guest, f"file:{path}")
    load_after_reboot(guest, guest.spawn("-incoming", "defer", memory=guest.process.memory), f"file:{path}")
    path.unlink()


def unix_channel(kind, path):
    return {"channel-type": kind, "addr": {"transport": "socket", "type": "unix", "path": str(path)}}


def cpr_transfer(guest):
    """A new process gets the guest's memory as file descriptors."""
    main, cpr = guest.scratch / "cpr.main", guest.scratch / "cpr.cpr"
    process = guest.spawn("-incoming", f"unix:{main}", "-incoming", json.dumps(unix_channel("cpr", cpr)),
                          memory=guest.process.memory)
    # The process has no monitor before it has read the CPR channel.
    guest.qmp.wait("the channel", lambda: cpr.exists() or not process.alive(), TIMEOUT)
    guest.qmp("migrate-set-parameters", mode="cpr-transfer")
    guest.qmp("migrate", channels=[unix_channel("main", main), unix_channel("cpr", cpr)])
    guest.qmp.wait_status("postmigrate", timeout=TIMEOUT)
    guest.collect()
    process.connect()
    process.qmp.wait_status("running", timeout=TIMEOUT)
    guest.move_to(process)
    guest.qmp("migrate-set-parameters", mode="normal")


def cpr_exec(guest):
    """The process replaces itself through exec."""
    path = guest.scratch / "cpr.file"
    old = guest.process
    process = type(old)(guest, old.binary, old.properties, old.memory, pid=old.pid)
    guest.qmp("migrate-set-parameters", mode="cpr-exec", cpr_exec_command=process.command("-incoming", f"file:{path}"))
    guest.collect()
    guest.qmp("migrate", uri=f"file:{path}")
    process.connect()
    process.qmp.wait_status("running", timeout=TIMEOUT)
    process.adopt(old)
    guest.move_to(process)
    guest.qmp("migrate-set-parameters", mode="normal")
    path.unlink()


def before_switchover(guest, return_path=False, **other):
    """Start a live migration that stops the guest and waits. Returns the destination process."""
    address = f"unix:{guest.scratch}/migration"
    process = guest.spawn("-incoming", "defer", **other)
    process.connect()
    for qmp in (guest.qmp, process.qmp):
        set_capabilities(qmp, pause_before_switchover=True, return_path=return_path)
    process.qmp("migrate-incoming", uri=address)
    guest.qmp("migrate", uri=address)
    guest.qmp.wait_migration("pre-switchover", timeout=TIMEOUT)
    time.sleep(1)
    return process


def goes_on(guest, process, status):
    """Wait until the migration has ended with `status`, and the guest runs in its old process."""
    guest.qmp.wait(f"migration {status}", lambda: guest.qmp("query-migrate")["status"] == status, TIMEOUT)
    guest.qmp.wait_status("running", timeout=TIMEOUT)
    process.end()
    process.memory.unlink()
    set_capabilities(guest.qmp, pause_before_switchover=False)


def migration_cancelled(guest):
    """Cancelled after the guest was stopped."""
    process = before_switchover(guest)
    guest.qmp("migrate_cancel")
    goes_on(guest, process, "cancelled")


def migration_failed(guest):
    """The destination dies after the guest was stopped."""
    process = before_switchover(guest)
    process.end()
    guest.qmp("migrate-continue", state="pre-switchover")
    goes_on(guest, process, "failed")


def migration_refused(guest, **other):
    """The destination refuses the stream, and reports it; the source goes on."""
    process = before_switchover(guest, return_path=True, **other)
    guest.qmp("migrate-continue", state="pre-switchover")
    goes_on(guest, process, "failed")
    set_capabilities(guest.qmp, return_path=False)


def save_file(guest, name="guest.file"):
    """Into a file that outlives the test host; the guest goes on here."""
    path = guest.scratch / name
    guest.qmp("migrate", uri=f"file:{path}")
    guest.qmp.wait_migration("completed", timeout=TIMEOUT)
    guest.qmp.wait_status("postmigrate", timeout=TIMEOUT)
    shutil.copy(path, guest.folder)
    path.unlink()
    guest.qmp("cont")


def save_again(guest, **qemus):
    """Into a file, and from there, without running, into one more by each of the QEMUs, all of which outlive the test host."""
    save_file(guest)
    for name, qemu in qemus.items():
        path = guest.scratch / f"{name}.file"
        process = guest.spawn("-incoming", f"file:{guest.folder}/guest.file", "-S", **qemu)
        process.connect()
        process.qmp.wait_status("paused", timeout=TIMEOUT)
        # The guest itself runs, and its rings are small.
        guest.collect()
        process.qmp("migrate", uri=f"file:{path}")
        process.qmp.wait_migration("completed", timeout=TIMEOUT)
        shutil.copy(path, guest.folder)
        process.end()
        process.memory.unlink()
        path.unlink()


def migrate_away(guest):
    """Live, to the other test host."""
    guest.peer = rendezvous.accept()
    guest.qmp("migrate", uri=os.path.expandvars("tcp:$CLOCK_GUEST_PEER:4444"))
    guest.qmp.wait_migration("completed", timeout=TIMEOUT)
    guest.collect()
    guest.gone = True


def migrate_away_later(guest):
    """To the other test host, with a pause after the guest was stopped, when little was left to send."""
    guest.peer = rendezvous.accept()
    set_capabilities(guest.qmp, pause_before_switchover=True)
    guest.qmp("migrate", uri=os.path.expandvars("tcp:$CLOCK_GUEST_PEER:4444"))
    guest.qmp.wait_migration("pre-switchover", timeout=TIMEOUT)
    time.sleep(LONG_PAUSE)
    guest.qmp("migrate-continue", state="pre-switchover")
    guest.qmp.wait_migration("completed", timeout=TIMEOUT)
    guest.collect()
    guest.gone = True


OPERATIONS = {
    "stop/cont, 5 s": stop_cont,
    "stop/cont, 5 s, audited": stop_cont_audited,
    "stop/cont, 20 s": stop_cont_long,
    "stop/cont, the module goes away": stop_cont_module_gone,
    "stop/cont, 15 s, a watchdog of 10 s": stop_cont_watchdog,
    "savevm while running": savevm,
    "loadvm, same process": loadvm,
    "savevm, loadvm in a new process": savevm_new_process,
    "migration, unix socket": migrate_unix,
    "migration, file": migrate_file,
    "migration, arrival paused, migration": migrate_twice,
    "migration, multifd": multifd,
    "migration, mapped-ram": mapped_ram,
    "cpr-reboot": cpr_reboot,
    "cpr-transfer": cpr_transfer,
    "cpr-exec": cpr_exec,
    "migration cancelled": migration_cancelled,
    "migration failed": migration_failed,
    "migration refused": migration_refused,
    "migration to a file, cont": save_file,
    "migration to a file, saved again by others": save_again,
    "migration, another host": migrate_away,
    "migration, another host, 20 s": migrate_away_later,
}
