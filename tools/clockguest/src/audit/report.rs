// SPDX-License-Identifier: GPL-2.0-only

//! What an audit reports, as text and as JSON.

use serde::Serialize;
use std::fmt::Write;

/// The VMs of a host, as an audit finds them.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How long KVM was observed, s.
    pub seconds: f64,
    /// Events that KVM reported while the buffer was full.
    pub lost_events: u64,
    /// The VMs.
    pub vms: Vec<VmReport>,
}

/// A VM and its clocks.
#[derive(Clone, Debug, Serialize)]
pub struct VmReport {
    /// The VMM's process.
    pub pid: u32,
    /// The process' file descriptor of the VM.
    pub fd: u32,
    /// The VMM's program.
    pub program: String,
    /// The VM's name, where the VMM's command line has it.
    pub name: Option<String>,
    /// Whether all vCPUs have one TSC offset and ratio; `None` while one of them runs a nested
    /// guest, or if there is no vCPU.
    pub tscs_agree: Option<bool>,
    /// Whether the VM has a master clock; `None` if KVM has not reported it.
    pub master_clock: Option<bool>,
    /// Whether events can be attributed: not if the process has several VMs.
    pub events_attributed: bool,
    /// The vCPUs.
    pub vcpus: Vec<VcpuReport>,
}

/// A vCPU and its clocks.
#[derive(Clone, Debug, Serialize)]
pub struct VcpuReport {
    /// Its ID.
    pub vcpu: u32,
    /// TSC offset, ticks.
    pub tsc_offset: i64,
    /// TSC scaling ratio; 0 on a host that does not scale.
    pub tsc_ratio: u64,
    /// Fraction bits of the ratio.
    pub tsc_frac_bits: u32,
    /// It runs a nested guest: offset and ratio are that guest's.
    pub nested: bool,
    /// Its kvmclock; `None` if KVM has not written a record since the audit began.
    pub kvmclock: Option<KvmclockReport>,
}

/// The kvmclock of a vCPU.
#[derive(Clone, Debug, Serialize)]
pub struct KvmclockReport {
    /// The record that KVM wrote last.
    pub tsc_timestamp: u64,
    /// ns.
    pub system_time: u64,
    /// ns per shifted tick, in units of 2^-32.
    pub tsc_to_system_mul: u32,
    /// Left shift of ticks.
    pub tsc_shift: i8,
    /// `PVCLOCK_*`.
    pub flags: u8,
    /// How often KVM wrote a record.
    pub updates: u64,
    /// The TSC rate that the record is for, kHz.
    pub tsc_khz: Option<u64>,
    /// The time since the guest's TSC was 0 minus kvmclock, ns.
    pub tsc_minus_kvmclock_ns: i64,
    /// By how much kvmclock moved against the TSC since the first record, ns.
    pub moved_against_tsc_ns: i64,
    /// kvmclock minus the host's `CLOCK_MONOTONIC`, ns.
    pub minus_monotonic_ns: i64,
    /// By how much that difference grew since the last event that moved kvmclock, ns.
    pub drift_ns: i64,
    /// The error bound of `drift_ns`, ns.
    pub drift_bound_ns: u64,
    /// In how many seconds.
    pub drift_seconds: f64,
}

/// Something that happened to the clocks of a VM.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// Since the audit began, s.
    pub seconds: f64,
    /// The VMM's process.
    pub pid: u32,
    /// The VM's name.
    pub name: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub what: Happened,
}

/// What happened to clocks.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happened {
    /// A VM appeared: a start, a restore, or the destination of a migration.
    VmAppeared,
    /// A VM is gone.
    VmGone,
    /// A vCPU was added.
    VcpuAdded {
        /// Its ID.
        vcpu: u32,
    },
    /// A vCPU's TSC moved against the host's.
    Tsc {
        /// The vCPU.
        vcpu: u32,
        /// ticks.
        moved_ticks: i64,
        /// The same, ns, if the TSC's rate is known.
        moved_ns: Option<i64>,
    },
    /// The first record of a vCPU since the audit began: earlier moves are in
    /// `tsc_minus_kvmclock_ns` only.
    FirstRecord {
        /// The vCPU.
        vcpu: u32,
        /// The time since the guest's TSC was 0 minus kvmclock, ns.
        tsc_minus_kvmclock_ns: i64,
        /// What KVM did before.
        after: Vec<&'static str>,
    },
    /// A vCPU's kvmclock moved.
    Kvmclock {
        /// The vCPU.
        vcpu: u32,
        /// Against the guest's TSC, ns.
        moved_against_tsc_ns: i64,
        /// Against the host's TSC, ns.
        moved_against_host_ns: i64,
        /// The guest's TSC against the host's since the last record, ticks.
        tsc_moved_ticks: i64,
        /// The same, ns.
        tsc_moved_ns: i64,
        /// The time since the guest's TSC was 0 minus kvmclock, ns.
        tsc_minus_kvmclock_ns: i64,
        /// What KVM did since the last record.
        after: Vec<&'static str>,
    },
    /// The VM got a master clock, or lost it.
    MasterClock {
        /// Whether it has one now.
        active: bool,
    },
}

/// ns for people: seconds from 1 ms on.
fn ns(ns: i64) -> String {
    if ns.unsigned_abs() < 1_000_000 {
        return format!("{ns:+} ns");
    }
    // CAST: For a text of 6 decimals.
    format!("{:+.6} s", ns as f64 / 1e9)
}

fn title(pid: u32, name: Option<&str>) -> String {
    name.map_or(format!("PID {pid}"), |name| format!("{name} (PID {pid})"))
}

impl Report {
    /// A part per VM.
    pub fn to_text(&self) -> String {
        let mut text: String = self
            .vms
            .iter()
            .map(|vm| vm.to_text(self.seconds) + "\n")
            .collect();
        if self.lost_events > 0 {
            let _ = writeln!(
                text,
                "{} events were lost: KVM reported more than fit into the buffer",
                self.lost_events
            );
        }
        text
    }
}

impl VmReport {
    fn to_text(&self, seconds: f64) -> String {
        let title = title(self.pid, self.name.as_deref());
        let mut text = format!(
            "VM {title}, {}, fd {}, {} vCPUs\n",
            self.program,
            self.fd,
            self.vcpus.len()
        );
        let mut line = |name: &str, value: String| text += &format!("  {name:15}{value}\n");
        let offsets: Vec<_> = self.vcpus.iter().map(|vcpu| vcpu.tsc_offset).collect();
        line(
            "TSC offsets",
            match offsets.as_slice() {
                [first, rest @ ..] if rest.iter().all(|other| other == first) => first.to_string(),
                _ => format!("{offsets:?}"),
            },
        );
        line(
            "TSCs agree",
            match self.tscs_agree {
                Some(true) => "yes".into(),
                Some(false) => "no: their offsets or ratios differ".into(),
                None => "not known: a vCPU runs a nested guest".into(),
            },
        );
        let ratio = |vcpu: &VcpuReport| match vcpu.tsc_ratio {
            0 => "none".into(),
            // CAST: For a text of 9 decimals; at most 63 bits.
            ratio => format!(
                "{:.9} ({ratio:#x}, {} fraction bits)",
                ratio as f64 / 2f64.powi(vcpu.tsc_frac_bits as i32),
                vcpu.tsc_frac_bits
            ),
        };
        line(
            "TSC scaling",
            self.vcpus.first().map_or(String::new(), ratio),
        );
        line(
            "master clock",
            match self.master_clock {
                Some(true) => "yes".into(),
                Some(false) => "no".into(),
                None => format!("not seen in {seconds:.1} s: KVM reports it when it updates it"),
            },
        );
        if !self.events_attributed {
            line(
                "kvmclock",
                "not known: the process has several VMs, and KVM's events do not say which".into(),
            );
            return text;
        }
        for vcpu in &self.vcpus {
            let name = format!("vCPU {}", vcpu.vcpu);
            match &vcpu.kvmclock {
                Some(kvmclock) => {
                    kvmclock
                        .to_lines()
                        .iter()
                        .enumerate()
                        .for_each(|(index, value)| {
                            line(if index == 0 { &name } else { "" }, value.clone());
                        })
                }
                None => line(
                    &name,
                    format!("no record seen in {seconds:.1} s: KVM reports one when it writes one"),
                ),
            }
        }
        text
    }
}

impl KvmclockReport {
    fn to_lines(&self) -> [String; 3] {
        let khz = self.tsc_khz.map_or("?".into(), |khz| khz.to_string());
        // CAST: For a text of 3 decimals.
        let ppm = self.drift_ns as f64 / self.drift_seconds / 1e3;
        [
            format!(
                "TSC - kvmclock {}, of which {} in {} records",
                ns(self.tsc_minus_kvmclock_ns),
                ns(-self.moved_against_tsc_ns),
                self.updates
            ),
            format!(
                "kvmclock - host's CLOCK_MONOTONIC {}, drift {} ± {} in {:.1} s ({ppm:+.3} ppm)",
                ns(self.minus_monotonic_ns),
                ns(self.drift_ns),
                self.drift_bound_ns,
                self.drift_seconds
            ),
            format!(
                "record: {} ns at TSC {}, mul {:#x}, shift {}, flags {:#x}: {khz} kHz",
                self.system_time,
                self.tsc_timestamp,
                self.tsc_to_system_mul,
                self.tsc_shift,
                self.flags
            ),
        ]
    }
}

impl Event {
    /// One line.
    pub fn to_text(&self) -> String {
        let title = title(self.pid, self.name.as_deref());
        format!("{:10.3} s  {title}: {}", self.seconds, self.what.to_text())
    }
}

impl Happened {
    fn to_text(&self) -> String {
        let after = |after: &[&str]| match after {
            [] => String::new(),
            causes => format!("; before: {}", causes.join(", ")),
        };
        match self {
            Self::VmAppeared => "a new VM".into(),
            Self::VmGone => "the VM is gone".into(),
            Self::VcpuAdded { vcpu } => format!("vCPU {vcpu} is new"),
            Self::Tsc {
                vcpu,
                moved_ticks,
                moved_ns,
            } => format!(
                "vCPU {vcpu}: TSC moved {moved_ticks:+} ticks{}",
                moved_ns.map_or(String::new(), |moved| format!(" ({})", ns(moved)))
            ),
            Self::FirstRecord {
                vcpu,
                tsc_minus_kvmclock_ns,
                after: causes,
            } => format!(
                "vCPU {vcpu}: first record seen; TSC - kvmclock is {}{}",
                ns(*tsc_minus_kvmclock_ns),
                after(causes)
            ),
            Self::Kvmclock {
                vcpu,
                moved_against_tsc_ns,
                moved_against_host_ns,
                tsc_moved_ns,
                tsc_minus_kvmclock_ns,
                after: causes,
                ..
            } => format!(
                "vCPU {vcpu}: kvmclock moved {} against the TSC (against the host's TSC: kvmclock {}, TSC \
                 {}); TSC - kvmclock is {}{}",
                ns(*moved_against_tsc_ns),
                ns(*moved_against_host_ns),
                ns(*tsc_moved_ns),
                ns(*tsc_minus_kvmclock_ns),
                after(causes)
            ),
            Self::MasterClock { active: true } => "the VM has a master clock".into(),
            Self::MasterClock { active: false } => "the VM has no master clock".into(),
        }
    }
}
