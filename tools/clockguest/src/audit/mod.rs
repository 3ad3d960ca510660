// SPDX-License-Identifier: GPL-2.0-only

//! Looks at the clocks of other processes' VMs, without stopping or changing anything.
//!
//! It needs no module: KVM's debugfs has the vCPUs' TSC offsets and ratios, and its tracepoints
//! have each pvclock record that it writes for a guest, at a host TSC. A record is not seen before
//! KVM writes it.

mod clocks;
mod debugfs;
mod events;
mod report;

pub use report::{Event, Happened, KvmclockReport, Report, VcpuReport, VmReport};

use crate::host::ClockAndTsc;
use anyhow::Result;
use clocks::{ns_of, Clocks};
use debugfs::{process_of, vms, Tsc, Vm};
use events::{Trace, Traced, What};
use pvclock::{
    abi::ClockGuest,
    counter::{HostTsc, TscOffset},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    thread::sleep,
    time::{Duration, Instant},
};
use thiserror::Error;

/// How often the trace is read.
const POLL: Duration = Duration::from_millis(50);
/// How often VMs and vCPUs are looked for.
const LOOK: Duration = Duration::from_millis(500);
/// How often the host's clock is read; the tightest reading counts.
const TRIES: u32 = 20;

/// Why there is nothing to look at.
#[derive(Debug, Error)]
pub enum Unavailable {
    /// KVM has no VM, or is not loaded.
    #[error("no VM of KVM runs on this host")]
    NoVm,
    /// Not root, or the kernel is locked down.
    #[error("no permission to look at KVM, which takes root: {0}")]
    Permission(String),
    /// debugfs is missing.
    #[error("no debugfs at /sys/kernel/debug: mount it with `mount -t debugfs debugfs /sys/kernel/debug`")]
    NoDebugfs,
    /// tracefs, or KVM's tracepoints in it, are missing.
    #[error(
        "no tracefs with KVM's tracepoints at {}: mount it with `mount -t tracefs tracefs \
         /sys/kernel/tracing`",
        Self::tracefs()
    )]
    NoTracefs,
    /// A trace buffer cannot be made.
    #[error("cannot make a trace buffer in {0}/instances: {1}")]
    NoInstance(String, io::Error),
    /// The process has no VM.
    #[error("process {0} ({1}) is no VMM: it has no VM of KVM")]
    NoVmm(u32, String),
    /// There is no such process.
    #[error("no process {0}")]
    NoProcess(u32),
}

impl Unavailable {
    /// The exit status of `clockguest audit`.
    pub fn status(&self) -> u8 {
        match self {
            Self::NoVm => 3,
            Self::Permission(_) => 5,
            Self::NoDebugfs => 6,
            Self::NoTracefs | Self::NoInstance(..) => 7,
            Self::NoVmm(..) | Self::NoProcess(_) => 8,
        }
    }
}

/// What to look at.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Only the VMs of this process.
    pub pid: Option<u32>,
    /// For how long; `None`: until [`Observer::is_done`], or until no VM is left.
    pub time: Option<Duration>,
}

/// Gets what happens meanwhile.
pub trait Observer {
    /// Whether to end.
    fn is_done(&self) -> bool;

    /// Called for each event.
    fn event(&mut self, event: Event);
}

/// Observes KVM, and reports the VMs' clocks at the end.
///
/// # Errors
///
/// [`Unavailable`]; those of reading debugfs, tracefs and the host's clock.
pub fn audit(config: &Config, observer: &mut dyn Observer) -> Result<Report> {
    vms(config.pid)?;
    let mut trace = Trace::new()?;
    // What changes after this, the trace has.
    let mut audit = Audit::new(config.pid, vms(config.pid)?)?;
    let mut looked = Instant::now();
    loop {
        let ends = observer.is_done()
            || config
                .time
                .is_some_and(|time| audit.began.elapsed() >= time);
        if ends || looked.elapsed() >= LOOK {
            audit.look(observer);
            looked = Instant::now();
        }
        for traced in trace.read()? {
            audit.traced(traced, observer)?;
        }
        if ends || audit.vms.is_empty() {
            return audit.report();
        }
        sleep(POLL);
    }
}

/// The state of an audit.
struct Audit {
    pid: Option<u32>,
    began: Instant,
    vms: Vec<Audited>,
    /// Processes of threads; some threads end before their events are read.
    processes: HashMap<u32, Option<u32>>,
    lost_events: u64,
}

/// A VM, as far as it is known.
struct Audited {
    vm: Vm,
    vcpus: BTreeMap<u32, Vcpu>,
    master_clock: Option<bool>,
    /// Threads that run vCPUs.
    vcpu_threads: HashSet<u32>,
    /// What happened since the last record of each vCPU.
    causes: Vec<Cause>,
}

struct Vcpu {
    tsc: Tsc,
    kvmclock: Option<Kvmclock>,
    /// How many of the VM's causes its last record has had.
    caused: usize,
    /// Its guest has had a chance to read its TSC.
    has_run: bool,
}

/// A kvmclock since its first record.
struct Kvmclock {
    clocks: Clocks,
    updates: u64,
    moved_against_tsc_ns: i64,
    /// Since when it drifts, and its value then, ns.
    since: ClockAndTsc,
    value_then: u64,
}

#[derive(Clone, Copy)]
enum Cause {
    Offset,
    MasterClock { thread: u32 },
}

impl Audit {
    fn new(pid: Option<u32>, vms: Vec<Vm>) -> Result<Self> {
        Ok(Self {
            pid,
            began: Instant::now(),
            vms: vms.into_iter().map(|vm| Audited::new(vm, true)).collect(),
            processes: HashMap::new(),
            lost_events: 0,
        })
    }

    fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Looks for VMs and vCPUs that are new, or gone.
    fn look(&mut self, observer: &mut dyn Observer) {
        let seconds = self.seconds();
        // Whatever is missing, there was something before.
        let found = vms(self.pid).unwrap_or_default();
        self.vms.retain(|old| {
            let stays = found.iter().any(|new| new.is_same(&old.vm));
            if !stays {
                observer.event(old.event(seconds, Happened::VmGone));
            }
            stays
        });
        for new in found {
            match self.vms.iter_mut().find(|old| old.vm.is_same(&new)) {
                Some(old) => old.look(new, seconds, observer),
                None => {
                    let new = Audited::new(new, false);
                    observer.event(new.event(seconds, Happened::VmAppeared));
                    self.vms.push(new);
                }
            }
        }
    }

    fn traced(&mut self, traced: Traced, observer: &mut dyn Observer) -> Result<()> {
        let event = match traced {
            Traced::Lost(events) => {
                self.lost_events += events;
                return Ok(());
            }
            Traced::Event(event) => event,
        };
        let known = self.processes.entry(event.thread);
        let Some(pid) = *known.or_insert_with(|| process_of(event.thread)) else {
            return Ok(());
        };
        if self.pid.is_some_and(|only| only != pid) {
            return Ok(());
        }
        let of_vcpu = event.what.vcpu();
        let is_known = self.vms.iter().any(|vm| {
            vm.vm.process.pid == pid && of_vcpu.is_none_or(|id| vm.vcpus.contains_key(&id))
        });
        if !is_known {
            self.look(observer);
        }
        let seconds = self.seconds();
        let mut of_process = self.vms.iter_mut().filter(|vm| vm.vm.process.pid == pid);
        // With several, it is not known which one it is.
        if let (Some(vm), None) = (of_process.next(), of_process.next()) {
            if let Some(happened) = vm.traced(event)? {
                observer.event(vm.event(seconds, happened));
            }
        }
        Ok(())
    }

    fn report(&self) -> Result<Report> {
        let now = host_time()?;
        let vms = self.vms.iter().map(|vm| {
            let pid = vm.vm.process.pid;
            let is_only = self
                .vms
                .iter()
                .filter(|other| other.vm.process.pid == pid)
                .count()
                == 1;
            vm.report(now, is_only)
        });
        Ok(Report {
            seconds: self.seconds(),
            lost_events: self.lost_events,
            vms: vms.collect(),
        })
    }
}

impl Vm {
    fn is_same(&self, other: &Self) -> bool {
        (self.process.pid, self.fd) == (other.process.pid, other.fd)
    }
}

impl Audited {
    fn new(vm: Vm, has_run: bool) -> Self {
        let vcpus = vm.vcpus.iter();
        Self {
            vcpus: vcpus
                .map(|(&id, &tsc)| (id, Vcpu::new(tsc, has_run)))
                .collect(),
            vm,
            master_clock: None,
            vcpu_threads: HashSet::new(),
            causes: Vec::new(),
        }
    }

    fn event(&self, seconds: f64, what: Happened) -> Event {
        Event {
            seconds,
            pid: self.vm.process.pid,
            name: self.vm.process.name.clone(),
            what,
        }
    }

    fn look(&mut self, new: Vm, seconds: f64, observer: &mut dyn Observer) {
        let has_run = self.vcpus.values().any(|vcpu| vcpu.has_run);
        for (&id, &tsc) in &new.vcpus {
            match self.vcpus.get_mut(&id) {
                // The trace has the offsets, in order.
                Some(vcpu) => vcpu.tsc.nested = tsc.nested,
                None => {
                    let mut vcpu = Vcpu::new(tsc, false);
                    vcpu.caused = self.causes.len();
                    self.vcpus.insert(id, vcpu);
                    // The VMM adds a new VM's vCPUs one by one.
                    if has_run {
                        observer.event(self.event(seconds, Happened::VcpuAdded { vcpu: id }));
                    }
                }
            }
        }
        self.vm = new;
    }

    fn traced(&mut self, event: events::Event) -> Result<Option<Happened>> {
        match event.what {
            What::Record { vcpu, record } => {
                self.vcpu_threads.insert(event.thread);
                self.record(vcpu, record, event.at)
            }
            What::Offset { vcpu, from, to } => Ok(self.offset(vcpu, from, to)),
            What::MasterClock(active) => {
                self.causes.push(Cause::MasterClock {
                    thread: event.thread,
                });
                let is_new = self.master_clock.replace(active) != Some(active);
                Ok(is_new.then_some(Happened::MasterClock { active }))
            }
            What::Compared { master_clock } => {
                self.master_clock.get_or_insert(master_clock);
                Ok(None)
            }
        }
    }

    fn offset(&mut self, id: u32, from: TscOffset, to: TscOffset) -> Option<Happened> {
        let vcpu = self.vcpus.get_mut(&id)?;
        vcpu.tsc.transform.offset = to;
        // CAST: A modular difference, which is signed.
        let moved_ticks = to.since(from) as i64;
        if moved_ticks == 0 || !vcpu.has_run {
            return None;
        }
        let record = vcpu
            .kvmclock
            .as_ref()
            .map(|kvmclock| kvmclock.clocks.record);
        self.causes.push(Cause::Offset);
        Some(Happened::Tsc {
            vcpu: id,
            moved_ticks,
            moved_ns: record.map(|record| ns_of(&record, moved_ticks)),
        })
    }

    fn record(&mut self, id: u32, record: ClockGuest, at: HostTsc) -> Result<Option<Happened>> {
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return Ok(None);
        };
        let causes = &self.causes[vcpu.caused.min(self.causes.len())..];
        let mut after: Vec<_> = causes
            .iter()
            .map(|cause| cause.text(&self.vcpu_threads))
            .collect();
        after.dedup();
        vcpu.caused = self.causes.len();
        vcpu.has_run = true;
        let clocks = Clocks {
            transform: vcpu.tsc.transform,
            record,
        };
        let tsc_minus_kvmclock_ns = clocks.apart_ns();
        let Some(kvmclock) = &mut vcpu.kvmclock else {
            vcpu.kvmclock = Kvmclock::new(clocks)?;
            return Ok(Some(Happened::FirstRecord {
                vcpu: id,
                tsc_minus_kvmclock_ns,
                after,
            }));
        };
        let moved = kvmclock.clocks.moved_to(&clocks, at).unwrap_or_default();
        kvmclock.update(clocks, moved.against_tsc_ns, moved.kvmclock_ns)?;
        let is_moved = moved != clocks::Moved::default();
        Ok(is_moved.then_some(Happened::Kvmclock {
            vcpu: id,
            moved_against_tsc_ns: moved.against_tsc_ns,
            moved_against_host_ns: moved.kvmclock_ns,
            tsc_moved_ticks: moved.tsc_ticks,
            tsc_moved_ns: moved.tsc_ns,
            tsc_minus_kvmclock_ns,
            after,
        }))
    }

    fn report(&self, now: ClockAndTsc, events_attributed: bool) -> VmReport {
        let tscs: Vec<_> = self.vm.vcpus.values().collect();
        let is_known = !tscs.is_empty() && tscs.iter().all(|tsc| !tsc.nested);
        let process = &self.vm.process;
        // A record's flag shows a master clock as well.
        let mut records = self
            .vcpus
            .values()
            .filter_map(|vcpu| vcpu.kvmclock.as_ref());
        let stable = records
            .any(|kvmclock| kvmclock.clocks.record.flags & pvclock::abi::PVCLOCK_TSC_STABLE != 0);
        VmReport {
            pid: process.pid,
            fd: self.vm.fd,
            program: process.program.clone(),
            name: process.name.clone(),
            tscs_agree: is_known.then(|| tscs.iter().all(|tsc| tsc.transform == tscs[0].transform)),
            master_clock: self.master_clock.or(stable.then_some(true)),
            events_attributed,
            vcpus: self
                .vm
                .vcpus
                .iter()
                .map(|(&id, tsc)| self.vcpu_report(id, tsc, now))
                .collect(),
        }
    }

    fn vcpu_report(&self, id: u32, tsc: &Tsc, now: ClockAndTsc) -> VcpuReport {
        let kvmclock = self.vcpus.get(&id).and_then(|vcpu| vcpu.kvmclock.as_ref());
        VcpuReport {
            vcpu: id,
            // CAST: As KVM shows it.
            tsc_offset: tsc.transform.offset.0 as i64,
            tsc_ratio: tsc.transform.scale.ratio(),
            tsc_frac_bits: tsc.transform.scale.frac_bits(),
            nested: tsc.nested,
            kvmclock: kvmclock.and_then(|kvmclock| kvmclock.report(now)),
        }
    }
}

impl Vcpu {
    fn new(tsc: Tsc, has_run: bool) -> Self {
        Self {
            tsc,
            kvmclock: None,
            caused: 0,
            has_run,
        }
    }
}

impl Kvmclock {
    fn new(clocks: Clocks) -> Result<Option<Self>> {
        let since = host_time()?;
        Ok(clocks.kvmclock_ns(since.middle()).map(|value_then| Self {
            clocks,
            updates: 1,
            moved_against_tsc_ns: 0,
            since,
            value_then,
        }))
    }

    fn update(&mut self, clocks: Clocks, against_tsc_ns: i64, moved_ns: i64) -> Result<()> {
        self.clocks = clocks;
        self.updates += 1;
        self.moved_against_tsc_ns = self.moved_against_tsc_ns.wrapping_add(against_tsc_ns);
        // A step is no drift.
        if moved_ns != 0 {
            self.since = host_time()?;
            if let Some(value) = clocks.kvmclock_ns(self.since.middle()) {
                self.value_then = value;
            }
        }
        Ok(())
    }

    fn report(&self, now: ClockAndTsc) -> Option<KvmclockReport> {
        let Clocks { record, .. } = self.clocks;
        let value = self.clocks.kvmclock_ns(now.middle())?;
        // CAST: Clocks of this century, and their differences.
        let (elapsed, counted) = (
            now.ns - self.since.ns,
            value.wrapping_sub(self.value_then) as i64,
        );
        let window = now.ticks().div_ceil(2) + self.since.ticks().div_ceil(2);
        Some(KvmclockReport {
            tsc_timestamp: record.tsc_timestamp.0,
            system_time: record.system_time,
            tsc_to_system_mul: record.tsc_to_system_mul,
            tsc_shift: record.tsc_shift,
            flags: record.flags,
            updates: self.updates,
            tsc_khz: record.factor().khz(),
            tsc_minus_kvmclock_ns: self.clocks.apart_ns(),
            moved_against_tsc_ns: self.moved_against_tsc_ns,
            // CAST: As above.
            minus_monotonic_ns: (value as i64).wrapping_sub(now.ns),
            drift_ns: counted.wrapping_sub(elapsed),
            // CAST: A window is a few hundred ticks; rounding adds 2 ns at most.
            drift_bound_ns: ns_of(&record, window as i64).unsigned_abs() + 2,
            drift_seconds: elapsed as f64 / 1e9,
        })
    }
}

/// `CLOCK_MONOTONIC`, to which a kvmclock is compared.
fn host_time() -> io::Result<ClockAndTsc> {
    ClockAndTsc::tightest(libc::CLOCK_MONOTONIC, TRIES)
}

impl Cause {
    fn text(self, vcpu_threads: &HashSet<u32>) -> &'static str {
        match self {
            Self::Offset => "a TSC offset was written",
            Self::MasterClock { thread } if vcpu_threads.contains(&thread) => {
                "KVM updated the master clock"
            }
            Self::MasterClock { .. } => "the VMM set the clock",
        }
    }
}
