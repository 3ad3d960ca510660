// SPDX-License-Identifier: GPL-2.0-only

//! Reads the clocks of the Linux that it runs in, over and over.
//!
//! `probe ring` does it in a guest, on every vCPU, and leaves what it read in pages of the guest's
//! memory, where `readings.py` finds it from outside: the guest sends nothing. Each reading follows
//! a sleep, so that it also shows whether a timer fired in time; two threads sleep for longer, and
//! with `probe ring NUMBER` so many more for 15 s, 30 s and so on.
//! If there is a control group `limited`, it also reads the CPU time that the group was charged.
//! These threads are real-time threads: another one would be charged with a pause that finds it
//! running, and wait until other tasks of its CPU have run for as long.
//!
//! `probe spin NUMBER` uses all CPU time that it gets, and records in a ring of this number when it
//! ran.
//!
//! `probe lines` prints its readings, for the test host's own clocks.

use std::{
    arch::x86_64::{_mm_lfence, _rdtsc},
    fs, hint,
    io::Write,
    mem, process, ptr,
    sync::atomic::{fence, AtomicU64, Ordering},
    thread,
    time::Duration,
};

const PAGE: usize = 4096;
/// Pages of a ring: some 50 seconds of readings; and of the rings of long sleeps.
const PAGES: usize = 16;
const SLEEP_PAGES: usize = 1;
const SLOT_WORDS: usize = 16;
/// The first slot of a page is its header.
const SLOTS: usize = PAGE / (SLOT_WORDS * 8) - 1;
/// Each half has 1 added in the rings, so that the constant itself is not found.
const MAGIC: [u64; 2] = [0x6b63_6f6c_632d_6d76, 0x2d67_6e69_722d_7472];

/// Between two readings.
const PERIOD_NS: u64 = 100_000_000;
/// How long the threads that only sleep do so.
const LONG_SLEEPS_NS: [u64; 2] = [4_000_000_000, 15_000_000_000];
/// The more timers sleep for once, twice, three times as long and so on.
const TIMER_NS: u64 = 15_000_000_000;
/// The reading with the narrowest read window of so many counts.
const ATTEMPTS: usize = 16;

/// Of the threads that only sleep.
const STACK: usize = 64 << 10;

/// The kinds of rings: see `readings.py`.
const READINGS: u64 = 0;
const SLEEPS: u64 = 1;
const CHARGES: u64 = 2;
const SPINS: u64 = 3;

/// The control group that `guest-init` makes for `probe spin`.
const GROUP: &str = "/sys/fs/cgroup/limited";
/// How often it records that it runs.
const SPIN_NS: u64 = 40_000_000;

const CLOCK_REALTIME: i32 = 0;
const CLOCK_MONOTONIC: i32 = 1;
const CLOCK_MONOTONIC_RAW: i32 = 4;
const TIMER_ABSTIME: i32 = 1;
const MCL_CURRENT_AND_FUTURE: i32 = 3;
const SCHED_FIFO: i32 = 1;

#[repr(C)]
struct Timespec {
    sec: i64,
    nsec: i64,
}

// SAFETY: These are the C library's declarations.
unsafe extern "C" {
    fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
    fn clock_nanosleep(clock: i32, flags: i32, until: *const Timespec, left: *mut Timespec) -> i32;
    fn sched_setaffinity(thread: i32, size: usize, cpus: *const u64) -> i32;
    fn sched_setscheduler(thread: i32, policy: i32, priority: *const i32) -> i32;
    fn mlockall(flags: i32) -> i32;
}

fn tsc() -> u64 {
    // SAFETY: Every x86-64 CPU has both; they touch no memory. The fences keep the reading in its
    // place.
    unsafe {
        _mm_lfence();
        let ticks = _rdtsc();
        _mm_lfence();
        ticks
    }
}

fn now(clock: i32) -> u64 {
    let mut time = Timespec { sec: 0, nsec: 0 };
    // SAFETY: `time` is there to be written to.
    unsafe { clock_gettime(clock, &mut time) };
    time.sec as u64 * 1_000_000_000 + time.nsec as u64
}

fn sleep_until(due: u64) {
    let until = Timespec {
        sec: (due / 1_000_000_000) as i64,
        nsec: (due % 1_000_000_000) as i64,
    };
    // SAFETY: `until` is valid, and with an absolute time the last argument may be null.
    while unsafe { clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, ptr::null_mut()) } != 0 {
    }
}

/// The clocks between two readings of the TSC.
#[derive(Clone, Copy)]
struct Reading {
    before: u64,
    monotonic: u64,
    realtime: u64,
    raw: u64,
    after: u64,
    record: [u64; 4],
}

impl Reading {
    fn take(record: Option<*const u64>) -> Self {
        let mut best: Option<Self> = None;
        for _ in 0..ATTEMPTS {
            let mut reading = Self {
                before: tsc(),
                monotonic: now(CLOCK_MONOTONIC),
                realtime: now(CLOCK_REALTIME),
                raw: now(CLOCK_MONOTONIC_RAW),
                after: tsc(),
                record: [0; 4],
            };
            if let Some(record) = record {
                reading.record = read_record(record);
            }
            if best.is_none_or(|best| {
                reading.after.wrapping_sub(reading.before) < best.after.wrapping_sub(best.before)
            }) {
                best = Some(reading);
            }
        }
        best.expect("there was an attempt")
    }

    /// All but the record, as `readings.py` and `clocks.py` expect them.
    fn clocks(&self) -> [u64; 5] {
        [
            self.before,
            self.monotonic,
            self.realtime,
            self.raw,
            self.after,
        ]
    }
}

/// A pvclock record by its protocol: the version is odd while it is written, and another one
/// afterwards.
fn read_record(at: *const u64) -> [u64; 4] {
    loop {
        // SAFETY: The kernel maps its page of records into every process, for good.
        let words = [0, 1, 2, 3].map(|word| unsafe { at.add(word).read_volatile() });
        fence(Ordering::Acquire);
        // SAFETY: As before.
        let version = unsafe { at.read_volatile() };
        if words[0] as u32 == version as u32 && version & 1 == 0 {
            return words;
        }
    }
}

/// The kernel's page of pvclock records, 64 bytes for each CPU, or `None` if it does not use
/// kvmclock.
fn record_page() -> Option<usize> {
    let sources =
        fs::read_to_string("/sys/devices/system/clocksource/clocksource0/available_clocksource")
            .ok()?;
    if !sources.contains("kvm-clock") {
        return None;
    }
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let start = |name| {
        let line = maps.lines().find(|line| line.ends_with(name))?;
        usize::from_str_radix(line.split('-').next()?, 16).ok()
    };
    // Up to Linux 6.12 it is the second one of the pages [vvar].
    start("[vvar_vclock]").or_else(|| start("[vvar]").map(|pages| pages + PAGE))
}

fn stay_on(cpu: usize) {
    let set = 1u64 << cpu;
    // SAFETY: `set` is a set of 64 CPUs.
    let failed = unsafe { sched_setaffinity(0, mem::size_of_val(&set), &set) };
    assert_eq!(failed, 0, "cannot run on CPU {cpu}");
}

/// A ring of pages; each has a header.
struct Ring {
    pages: *mut u64,
    slots: u64,
    written: u64,
}

impl Ring {
    fn new(kind: u64, number: u64, count: usize) -> Self {
        let layout =
            std::alloc::Layout::from_size_align(count * PAGE, PAGE).expect("a power of two");
        // SAFETY: The layout's size is not 0.
        let pages = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<u64>();
        assert!(!pages.is_null());
        for page in 0..count {
            let magic = hint::black_box(MAGIC);
            let header = [
                magic[0] + 1,
                magic[1] + 1,
                kind << 32 | number,
                page as u64,
                count as u64,
            ];
            for (word, value) in header.into_iter().enumerate() {
                // SAFETY: Within the allocation, as 5 words fit into a page.
                unsafe { pages.add(page * PAGE / 8 + word).write_volatile(value) };
            }
        }
        Self {
            pages,
            slots: (count * SLOTS) as u64,
            written: 0,
        }
    }

    /// The first word of a slot is its number, from 1; 0 while it is written.
    fn push(&mut self, words: &[u64]) {
        let index = (self.written % self.slots) as usize;
        self.written += 1;
        // SAFETY: `index` is within the ring, and `words` are fewer than a slot has.
        unsafe {
            let slot = self
                .pages
                .add(index / SLOTS * PAGE / 8 + (index % SLOTS + 1) * SLOT_WORDS);
            (*slot.cast::<AtomicU64>()).store(0, Ordering::SeqCst);
            for (word, value) in words.iter().enumerate() {
                slot.add(1 + word).write_volatile(*value);
            }
            (*slot.cast::<AtomicU64>()).store(self.written, Ordering::SeqCst);
        }
    }
}

fn read_for_ever(cpu: usize, page: Option<usize>) -> ! {
    stay_on(cpu);
    let record = page.map(|page| (page + cpu * 64) as *const u64);
    let mut ring = Ring::new(READINGS, cpu as u64, PAGES);
    loop {
        let due = now(CLOCK_MONOTONIC) + PERIOD_NS;
        sleep_until(due);
        let woke = now(CLOCK_MONOTONIC);
        let woke_tsc = tsc();
        let reading = Reading::take(record);
        ring.push(
            &[
                &reading.clocks()[..],
                &reading.record,
                &[due, woke, woke_tsc],
            ]
            .concat(),
        );
    }
}

fn sleep_for_ever(number: usize, period: u64) -> ! {
    let mut ring = Ring::new(SLEEPS, number as u64, SLEEP_PAGES);
    loop {
        let began = tsc();
        let due = now(CLOCK_MONOTONIC) + period;
        sleep_until(due);
        let woke = now(CLOCK_MONOTONIC);
        ring.push(&[began, due, woke, tsc()]);
    }
}

/// The number after `before` at the start of a line of `text`.
fn number(text: &str, before: &str) -> u64 {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(before))
        .expect("the file has such a line");
    rest.trim().parse().expect("a number")
}

/// The CPU time charged to the control group, and the steal time of all CPUs (USER_HZ).
fn read_charges_for_ever() -> ! {
    let mut ring = Ring::new(CHARGES, 0, PAGES);
    loop {
        sleep_until(now(CLOCK_MONOTONIC) + PERIOD_NS);
        let group = fs::read_to_string(format!("{GROUP}/cpu.stat")).expect("the group is there");
        let all = fs::read_to_string("/proc/stat").expect("/proc is mounted");
        let steal = all
            .split_whitespace()
            .nth(8)
            .and_then(|word| word.parse().ok());
        ring.push(&[
            tsc(),
            now(CLOCK_MONOTONIC),
            number(&group, "usage_usec "),
            number(&group, "throttled_usec "),
            steal.expect("a number"),
        ]);
    }
}

fn spin(number: u64) -> ! {
    lock_memory();
    stay_on(0);
    let mut ring = Ring::new(SPINS, number, PAGES);
    let mut due = 0;
    loop {
        let time = now(CLOCK_MONOTONIC);
        if time >= due {
            ring.push(&[tsc(), time]);
            due = time + SPIN_NS;
        }
    }
}

fn lock_memory() {
    // SAFETY: It has no arguments but these flags.
    let failed = unsafe { mlockall(MCL_CURRENT_AND_FUTURE) };
    assert_eq!(failed, 0, "cannot lock memory");
}

fn run_in_real_time() {
    let priority = 1;
    // SAFETY: `priority` is a struct sched_param.
    let failed = unsafe { sched_setscheduler(0, SCHED_FIFO, &priority) };
    assert_eq!(failed, 0, "cannot become a real-time thread");
}

fn ring(timers: u64) -> ! {
    lock_memory();
    // Before there are other threads, which inherit it.
    run_in_real_time();
    if fs::exists(GROUP).is_ok_and(|exists| exists) {
        thread::spawn(|| read_charges_for_ever());
    }
    let page = record_page();
    let timers = (1..=timers).map(|times| times * TIMER_NS);
    for (number, period) in LONG_SLEEPS_NS.into_iter().chain(timers).enumerate() {
        // All memory of a stack is locked.
        thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || sleep_for_ever(number, period))
            .expect("a thread");
    }
    let cpus = thread::available_parallelism()
        .expect("the number of CPUs")
        .get();
    for cpu in 1..cpus {
        thread::spawn(move || read_for_ever(cpu, page));
    }
    read_for_ever(0, page)
}

fn lines() -> ! {
    loop {
        let words = Reading::take(None).clocks().map(|word| word.to_string());
        let line = words.join(" ") + "\n";
        if std::io::stdout().write_all(line.as_bytes()).is_err() {
            process::exit(0);
        }
        thread::sleep(Duration::from_nanos(PERIOD_NS));
    }
}

fn main() {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["ring"] => ring(0),
        ["ring", timers] => ring(timers.parse().expect("a number")),
        ["spin", number] => spin(number.parse().expect("a number")),
        ["lines"] => lines(),
        _ => {
            eprintln!("usage: probe ring [NUMBER]|spin NUMBER|lines");
            process::exit(2);
        }
    }
}
