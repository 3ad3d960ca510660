// SPDX-License-Identifier: GPL-2.0-only

//! The sections below the options in `--help` and the man pages.
//!
//! Each text consists of sections: a heading that ends in a colon, and indented lines. The lines
//! are paragraphs, definitions (`term  text`, with further lines indented deeper) or commands (`$
//! command`);
//! [`crate::man`] parses them.

pub(crate) const EXIT_STATUS: &str = "\
Exit status:
  0  done
  1  failed: inconsistent readings, a failed call, a dead process; or any error with method atomic
  2  wrong usage
  4  not supported on this host; the message names what is missing";

pub(crate) const ENVIRONMENT: &str = "\
Environment:
  CLOCK_GUEST_QEMU  version of the QEMU that emulates this host, set by tools/vm/host run; it is copied to
                    the JSON output and has no other effect

  No other variable has an effect.";

pub(crate) const FILES: &str = "\
Files:
  /dev/kvm                   must be readable and writable; no other privilege is needed
  /sys/module                kvm_amd or kvm_intel must be loaded, as /dev/kvm may be something else;
                             --any-kvm skips this check
  /proc/sys/kernel/random/boot_id
                             identifies the boot of the host that saved a guest
  /dev/liveupdate            creates and retrieves LUO sessions, with --luo (root)
  /proc/self/pagemap         the physical pages of guest memory, with --luo (root)
  /sys/kernel/tracing        or /sys/kernel/debug/tracing: for a kprobe with --trace-clock, and for
                             clockguest audit; both need root
  /sys/kernel/debug/kvm      for clockguest audit";

pub(crate) const EXAMPLES: &str = "\
Examples:
  $ clockguest info
  $ clockguest selftest
  $ clockguest demo --cycles 20
  $ clockguest cycle --scenario migrate --method atomic --cycles 100 --json
  On a machine without KVM, in an emulated test host:
  $ make vm RUN='target/release/clockguest demo'";

pub(crate) const CYCLE_EXAMPLES: &str = "\
Examples:
  $ clockguest cycle --scenario pause --method atomic
  $ clockguest cycle --scenario snapshot --method legacy-msr --cycles 5 --downtime 1s --verbose
  $ clockguest cycle --scenario migrate --method atomic --vcpus 16 --json";

pub(crate) const MIGRATE_EXAMPLES: &str = "\
Examples:
  The guest makes 25 round trips between this host and another one:
  $ clockguest migrate --via 'ssh there clockguest serve --stdio' --round-trips 25 --verbose
  Between hosts whose clocks are synchronised better than pings can measure:
  $ clockguest migrate --via 'ssh there clockguest serve --stdio' --sync hosts
  On a trusted test network, on the other host, then on this host:
  $ clockguest serve --listen 10.0.0.2:4000
  $ clockguest migrate --to 10.0.0.2:4000";

pub(crate) const UPDATE_EXAMPLES: &str = "\
Examples:
  Before the kexec, and after it:
  $ clockguest save --to /var/tmp/guest
  $ clockguest restore --from /var/tmp/guest
  The same without a copy of guest memory; save waits for the kexec:
  $ clockguest save --luo guest &
  $ clockguest restore --luo guest";

pub(crate) const LUO: &str = "\
LUO sessions:
  With --luo, guest memory and clocks are memfds in a session of the kernel's Live Update
  Orchestrator. The kernel hands the session over to the next kernel, if a process has it open at the
  kexec: after printing its result, the command waits for that. Both kernels need
  CONFIG_LIVEUPDATE_MEMFD and the command line kho=on liveupdate=on, and the next one must be loaded
  with kexec_file_load(). A session that was retrieved is gone when the command ends.";

pub(crate) const COMPLETION_EXAMPLES: &str = "\
Examples:
  For all users, or for this shell alone:
  $ clockguest completion bash >/usr/share/bash-completion/completions/clockguest
  $ source <(clockguest completion bash)";

pub(crate) const SELFTEST: &str = "\
Cases:
  exact           pause, snapshot and migration to another process, as `clockguest cycle` runs them: no
                  error at all, bit-identical offsets and records
  each CPU        the same with a vCPU on each CPU of the host, each on another CPU after every cycle
  advance         the guest's TSC has advanced by the elapsed TAI, within what readings of the host's
                  TSC and CLOCK_TAI before and after the restore allow; the record stays the same
  freeze          the guest's TSC continues from its saved value, within the host's TSC before and
                  after the restore; the record stays the same
  other TSC rate  all modes with a guest at three quarters of the host's TSC rate; needs TSC scaling

  Moves to another host are not tested, see `clockguest migrate`.";

pub(crate) const SELFTEST_EXAMPLES: &str = "\
Examples:
  $ clockguest selftest --report selftest.txt
  $ clockguest selftest --cycles 1000 --json >selftest.json";

pub(crate) const MEASUREMENT: &str = "\
Measurement:
  The errors are computed from the guest's own readings. Before a cycle, each vCPU has a TSC
  transform, of which KVM reports the offset, and the pvclock record that the guest read last.
  After the cycle, the guest reads TSC g and kvmclock k. The new offset gives the host TSC of this
  reading; the host reads its own TSC before and after it, which detects a wrong offset.
  TSC error       is g minus the TSC of the previous transform at the same host TSC, in ticks
  kvmclock error  is k minus the kvmclock of the previous record at the same host TSC, in ns
  skew            is k minus the kvmclock of the previous record at g: the shift of kvmclock
                  against the TSC, in ns

  All three are 0 if nothing touches the clocks. Errors of the legacy methods are results, not
  failures; with method atomic, any error is a failure.";

pub(crate) const AUDIT_STATUS: &str = "\
Exit status:
  0  done, whatever the clocks are
  1  failed: a failed call
  2  wrong usage
  3  no VM runs on this host
  5  no permission: it needs root
  6  no debugfs
  7  no tracefs with KVM's tracepoints, or no buffer in it
  8  the process is no VMM, or there is none";

pub(crate) const AUDIT: &str = "\
What is known:
  TSC offsets, TSC scaling
                  from KVM's debugfs, at once
  TSCs agree      all vCPUs have one offset and one ratio
  master clock    from KVM's tracepoints, when KVM updates it; from the flags of a record
  record          the pvclock record of a vCPU, from a tracepoint, when KVM writes it: when the
                  guest starts, after a stop and cont, a restore, a change of a TSC. KVM may not
                  write one for days, and there is no other way to see it
  TSC - kvmclock  the time since the guest's TSC was 0, minus kvmclock. A VMM starts both within
                  some ms. A stop and cont in which only one of them stands still adds its length;
                  a guest that writes its TSC changes it as well
  drift           of kvmclock against the host's CLOCK_MONOTONIC since kvmclock moved last

  The moves of --watch are computed from the records and offsets before and after an event, at the
  host TSC of the event. A first record shows how far TSC and kvmclock are apart, not when that
  happened. Nothing is known of which VM an event is if a process has several.

  The audit uses a trace buffer of its own, which it removes at the end, and no other file.";

pub(crate) const AUDIT_EXAMPLES: &str = "\
Examples:
  $ clockguest audit
  While somebody stops, saves or migrates a VM:
  $ clockguest audit --watch
  $ clockguest audit --pid 4711 --watch --for 600s --json >events";

pub(crate) const MIGRATION: &str = "\
Time between hosts:
  The guest's TSC advances by the elapsed time according to the two hosts' clocks. Pings over the
  connection measure the difference between these: no message arrives before it is sent, so each
  ping gives a lower and an upper bound. The result is the middle of the bounds, and the reported
  uncertainty is half their distance. (--sync hosts assumes that the hosts' clocks are equal.)

Measurement:
  Errors are computed from the guest's own readings, see `clockguest cycle`. Between hosts:
  skew            is the guest's kvmclock minus the kvmclock of the previous record at the same
                  guest TSC; it needs no knowledge of the hosts' clocks
  TSC error       is the guest's TSC minus the TSC that it would have on the source at the same
                  moment; known only if both hosts are emulated on one machine (--truth)
  restore         is the part that the restore adds: the TSC that SET wrote minus saved TSC +
                  elapsed time x rate, at the instant of the kernel's clock snapshot
                  (--trace-clock)
  clock sync      is the part that the difference of the hosts' clocks adds: the rest

  Method atomic fails if the record changes, if the skew is not 0, if the restore adds more than
  one tick, or if the clocks add more than the bound that the pings give.

Security:
  With --via and --stdio, the command, e.g. ssh, decides who may run a guest on the other host.
  Anybody who can connect to `clockguest serve --listen` can run one: the connection is neither
  encrypted nor authenticated. Without an address, only this host can connect. Use an address only
  on a trusted test network. `clockguest serve` ends a connection on which nothing arrives for 60 s,
  that takes longer than --deadline, or that sends more than 1,000 pings for a guest. It serves one
  connection at a time. The stream is versioned and checksummed. Until the destination has restored
  the guest completely, the guest belongs to the source, and resumes there exactly after any
  failure.";

pub(crate) const REPORT: &str = "\
Files and page:
  Each FILE has the JSON object of a run, or an array of them. The page shows the worst errors in a
  table; charts show the error of each cycle, the parts that the restore and the hosts' clocks add
  to a move's error, and a benchmark's counts against vCPUs. The page also shows the command, kernel,
  module and QEMU of each run. It needs no network and no scripts. All runs are embedded as JSON in
  the element with the ID 'runs'.

Exit status:
  0  written; the page's path is printed
  1  a file cannot be read, is not JSON, has no runs, or has a run of an unknown kind or with
     missing members, and nothing is written; or DIR cannot be written to
  2  wrong usage";

/// Joins sections with empty lines.
pub(crate) fn sections(texts: &[&str]) -> String {
    texts.join("\n\n")
}
