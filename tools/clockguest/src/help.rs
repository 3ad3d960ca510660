// SPDX-License-Identifier: GPL-2.0-only

//! What `--help` says below the options, and the man pages with it.
//!
//! Every text is sections: a heading that ends in a colon, and indented lines. Those are paragraphs,
//! `term  what it is`, whose further lines are indented deeper, or commands after `$ `;
//! [`crate::man`] tells them apart.

pub(crate) const EXIT_STATUS: &str = "\
Exit status:
  0  done
  1  failed: contradictory readings, a failed call, a dead process; or method atomic lost anything
  2  wrong usage
  4  this host cannot do it; the message says what is missing";

pub(crate) const ENVIRONMENT: &str = "\
Environment:
  CLOCK_GUEST_QEMU  version of the QEMU that emulates this host, which tools/vm/run sets; it stands
                    in the JSON of a run, and changes nothing else

  No variable changes what is done or measured.";

pub(crate) const FILES: &str = "\
Files:
  /dev/kvm                   must be readable and writable: no other privilege is asked for
  /sys/module                kvm_amd or kvm_intel has to be there, as something else may emulate
                             /dev/kvm; --any-kvm takes what there is
  /proc/sys/kernel/random/boot_id
                             which boot of the host saved a guest
  /sys/kernel/tracing        or /sys/kernel/debug/tracing: a kprobe of its own, with --trace-clock
                             alone, for root";

pub(crate) const EXAMPLES: &str = "\
Examples:
  $ clockguest info
  $ clockguest demo --cycles 20
  $ clockguest cycle --scenario migrate --method atomic --cycles 100 --json
  On a machine without KVM, in a test host that is booted for it:
  $ make vm RUN='target/release/clockguest demo'";

pub(crate) const CYCLE_EXAMPLES: &str = "\
Examples:
  $ clockguest cycle --scenario pause --method atomic
  $ clockguest cycle --scenario snapshot --method legacy-msr --cycles 5 --downtime 1s --verbose
  $ clockguest cycle --scenario migrate --method atomic --vcpus 16 --json";

pub(crate) const MIGRATE_EXAMPLES: &str = "\
Examples:
  There, then here; the guest goes there and comes back 25 times:
  $ clockguest serve --listen 0.0.0.0:4000
  $ clockguest migrate --to there:4000 --round-trips 25 --verbose
  Hosts whose clocks are disciplined better than pings can measure:
  $ clockguest migrate --to there:4000 --sync hosts";

pub(crate) const UPDATE_EXAMPLES: &str = "\
Examples:
  Before the kexec, and after it:
  $ clockguest save --to /var/tmp/guest
  $ clockguest restore --from /var/tmp/guest";

pub(crate) const COMPLETION_EXAMPLES: &str = "\
Examples:
  For all users, or for this shell alone:
  $ clockguest completion bash >/usr/share/bash-completion/completions/clockguest
  $ source <(clockguest completion bash)";

pub(crate) const MEASUREMENT: &str = "\
Measurement:
  The error is measured by the guest's own readings. Before a cycle, each vCPU has a TSC
  transform, of which KVM reports the offset, and the pvclock record that the guest read
  last. After it, the guest reads TSC g and kvmclock k, at the host TSC that the offset now
  in force gives for g; the host brackets the reading with its own RDTSC, so that a wrong
  offset is found out. Then
  TSC error       is g minus the TSC by the transform before, at the same host TSC, in ticks
  kvmclock error  is k minus the kvmclock by the record before, likewise, in ns
  skew            is k minus the kvmclock by the record before at g: how far the one clock
                  was set against the other, in ns

  All are what the guest would not have seen had nobody touched its clocks. The errors of
  the legacy methods are results, not failures; method atomic claims to lose nothing, and
  fails if it does.";

pub(crate) const MIGRATION: &str = "\
Time between hosts:
  The guest's TSC goes on by the time that passed, as the two hosts' clocks have it. How these
  differ is measured by pings over the connection: no message arrives before it was sent, so
  each ping bounds the difference from both sides, and the truth is no further from the middle
  than the uncertainty that is reported. (--sync hosts trusts the hosts instead.)

Measurement:
  Errors are measured by the guest's own readings as of `clockguest cycle`. Between hosts:
  skew            is what the guest's kvmclock reads minus what its record before says at
                  the same guest TSC; needs no knowledge of the hosts' clocks
  TSC error       is what the guest's TSC reads minus what it would have read at home, at the
                  same moment. Only who emulates both hosts knows that (--truth)
  operation       its part of it is what SET wrote minus saved TSC + elapsed time x rate, for
                  the very instant that the kernel's clock gave to SET (--trace-clock)
  clocks          their part is the rest

  Method atomic fails if the record or the skew changed, if the operation's part exceeds one
  tick, or the clocks' part what the pings allow for.

Security:
  Whoever can connect to `clockguest serve` can run a guest there: the connection is neither
  encrypted nor authenticated, and for a network that you trust. The stream is versioned and
  checksummed; until the destination has the guest complete and its clocks set, the guest is the
  source's, and goes on there, exactly, whatever goes wrong.";

pub(crate) const REPORT: &str = "\
Files and page:
  Each FILE holds the JSON object of a run, or an array of them. The page shows the worst errors
  in a table, the error of each cycle in charts, what of a move's error the operation and the
  hosts' clocks made, what a benchmark counted against vCPUs, and the command, kernel, module and
  QEMU that each run came from. It needs no network and no scripts; all runs stand in it as JSON
  too, in the element with the id 'runs'.

Exit status:
  0  written; its path is printed
  1  a file cannot be read, is not JSON, has no runs, or has one of an unknown kind or without
     what its kind is to have; nothing was written. Or DIR cannot be written to
  2  wrong usage";

/// The sections, with an empty line between two of them.
pub(crate) fn sections(texts: &[&str]) -> String {
    texts.join("\n\n")
}
