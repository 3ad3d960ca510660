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
  /sys/kernel/tracing        or /sys/kernel/debug/tracing: for a kprobe with --trace-clock, which
                             needs root";

pub(crate) const EXAMPLES: &str = "\
Examples:
  $ clockguest info
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
  On the other host, then on this host; the guest makes 25 round trips:
  $ clockguest serve --listen 0.0.0.0:4000
  $ clockguest migrate --to there:4000 --round-trips 25 --verbose
  Between hosts whose clocks are synchronised better than pings can measure:
  $ clockguest migrate --to there:4000 --sync hosts";

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
  Anybody who can connect to `clockguest serve` can run a guest there: the connection is neither
  encrypted nor authenticated. Use it only on trusted networks. The stream is versioned and
  checksummed. Until the destination has restored the guest completely, the guest belongs to the
  source, and resumes there exactly after any failure.";

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
