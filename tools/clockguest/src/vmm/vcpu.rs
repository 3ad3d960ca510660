// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU and its thread: run and stop; ioctls while it is stopped.

use super::{
    error::{Context, Error, Result},
    exit,
};
use kvm_ioctls::VcpuFd;
use std::{
    ops::{Deref, DerefMut},
    os::fd::{AsRawFd, RawFd},
    ptr::NonNull,
    sync::{
        atomic::{AtomicU8, Ordering},
        Arc, Condvar, Mutex, MutexGuard, Once,
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};
use vmm_sys_util::signal::{register_signal_handler, Killable, SIGRTMIN};

/// The time limit for a vCPU thread to enter or leave KVM_RUN; generous, for an emulated host with
/// fewer CPUs than the guest.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Nice value of a vCPU thread; in Linux it is per thread.
const NICE: libc::c_int = 19;

/// The requested state of a vCPU thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Stop,
    Run,
    Quit,
}

#[derive(Debug)]
struct State {
    request: Request,
    /// The thread holds the descriptor's lock, and is in or about to enter KVM_RUN.
    running: bool,
    /// Why it left KVM_RUN unexpectedly, if it did.
    failure: Option<String>,
}

#[derive(Debug)]
struct Shared {
    fd: Mutex<VcpuFd>,
    state: Mutex<State>,
    changed: Condvar,
}

/// `kvm_run.immediate_exit` of a vCPU.
///
/// # Invariants
///
/// Points into the `kvm_run` mapping of the descriptor in the [`Shared`] beside it.
#[derive(Debug)]
struct ImmediateExit(NonNull<AtomicU8>);

// SAFETY: All accesses are atomic.
unsafe impl Send for ImmediateExit {}
// SAFETY: As above.
unsafe impl Sync for ImmediateExit {}

/// The descriptor of a vCPU that is stopped, and stays so while this exists.
#[derive(Debug)]
pub struct Stopped<'a>(MutexGuard<'a, VcpuFd>);

impl Deref for Stopped<'_> {
    type Target = VcpuFd;

    fn deref(&self) -> &VcpuFd {
        &self.0
    }
}

impl DerefMut for Stopped<'_> {
    fn deref_mut(&mut self) -> &mut VcpuFd {
        &mut self.0
    }
}

impl AsRawFd for Stopped<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A vCPU, initially stopped.
#[derive(Debug)]
pub struct Vcpu {
    index: usize,
    shared: Arc<Shared>,
    immediate_exit: ImmediateExit,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Starts the thread of vCPU `index` with the descriptor `fd`.
    ///
    /// # Errors
    ///
    /// Those of the signal handler and the thread.
    pub fn new(index: usize, mut fd: VcpuFd) -> Result<Self> {
        install_kick()?;
        let immediate_exit = NonNull::from(&mut fd.get_kvm_run().immediate_exit);
        let shared = Arc::new(Shared {
            fd: Mutex::new(fd),
            state: Mutex::new(State {
                request: Request::Stop,
                running: false,
                failure: None,
            }),
            changed: Condvar::new(),
        });
        let of_thread = Arc::clone(&shared);
        let thread = Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || of_thread.serve())?;
        Ok(Self {
            index,
            shared,
            // INVARIANT: The descriptor, which owns the mapping, has moved into `shared`.
            immediate_exit: ImmediateExit(immediate_exit.cast()),
            thread: Some(thread),
        })
    }

    /// Its index, which is also its vCPU ID.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The descriptor, for ioctls; waits until the vCPU is stopped.
    pub fn fd(&self) -> Stopped<'_> {
        Stopped(self.shared.fd.lock().expect("a vCPU thread panicked"))
    }

    /// Requests it to run; [`wait_running`](Self::wait_running) waits for it.
    pub fn request_run(&self) {
        self.request(Request::Run);
    }

    /// Waits until its thread is about to enter KVM_RUN.
    ///
    /// # Errors
    ///
    /// [`Error::Exit`] if it left KVM_RUN by itself, [`Error::Timeout`].
    pub fn wait_running(&self) -> Result<()> {
        self.wait_for("start", |state| state.running || state.failure.is_some())?;
        self.check()
    }

    /// Requests it to stop; [`wait_stopped`](Self::wait_stopped) waits for it.
    pub fn request_stop(&self) {
        self.request(Request::Stop);
    }

    /// Waits until it is outside KVM_RUN.
    ///
    /// # Errors
    ///
    /// [`Error::Exit`] if it left KVM_RUN by itself, [`Error::Timeout`].
    pub fn wait_stopped(&self) -> Result<()> {
        self.wait_for("stop", |state| !state.running)?;
        self.check()
    }

    /// Checks that it has not left KVM_RUN by itself.
    ///
    /// # Errors
    ///
    /// [`Error::Exit`].
    pub fn check(&self) -> Result<()> {
        match &self.shared.lock().failure {
            None => Ok(()),
            Some(exit) => Err(Error::Exit {
                index: self.index,
                exit: exit.clone(),
            }),
        }
    }

    fn request(&self, request: Request) {
        // SAFETY: By the invariants of `ImmediateExit`, as `self.shared` is alive. KVM reads the
        // byte at any time, so the access is atomic.
        let immediate_exit = unsafe { self.immediate_exit.0.as_ref() };
        let mut state = self.shared.lock();
        state.request = request;
        let stop = request != Request::Run;
        // Before the kick: a thread about to enter KVM_RUN sees the byte, one inside gets the
        // signal.
        immediate_exit.store(stop.into(), Ordering::SeqCst);
        if stop && state.running {
            if let Some(thread) = &self.thread {
                // This fails only if the thread has ended.
                let _ = thread.kill(SIGRTMIN());
            }
        }
        self.shared.changed.notify_all();
    }

    fn wait_for(&self, what: &'static str, done: impl Fn(&State) -> bool) -> Result<()> {
        let (_state, timeout) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), TIMEOUT, |state| !done(state))
            .expect("a vCPU thread panicked");
        if timeout.timed_out() {
            return Err(Error::Timeout {
                index: self.index,
                what,
                after: TIMEOUT,
            });
        }
        Ok(())
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.request(Request::Quit);
        if let Some(thread) = self.thread.take() {
            // The thread has reported a panic itself.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a vCPU thread panicked")
    }

    /// The thread: handles requests until it has to quit.
    fn serve(&self) {
        // The guest never sleeps: leave the CPU to the controlling threads. A failure does not
        // affect the measurement.
        // SAFETY: setpriority() accesses no memory.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
        loop {
            let mut state = self
                .changed
                .wait_while(self.lock(), |state| {
                    state.request == Request::Stop
                        || state.failure.is_some() && state.request == Request::Run
                })
                .expect("the controlling thread panicked");
            if state.request == Request::Quit {
                return;
            }
            state.running = true;
            self.changed.notify_all();
            drop(state);

            let failure = self.run_guest();

            let mut state = self.lock();
            state.running = false;
            state.failure = failure;
            self.changed.notify_all();
        }
    }

    /// Stays in KVM_RUN until requested to leave; returns the reason if it leaves unexpectedly.
    fn run_guest(&self) -> Option<String> {
        let mut fd = self.fd.lock().expect("the controlling thread panicked");
        loop {
            let exit = match fd.run() {
                Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {
                    if self.lock().request != Request::Run {
                        return None;
                    }
                    continue;
                }
                Err(e) => e.to_string(),
                // The guest does no I/O, no halt and no reset.
                Ok(exit) => format!("{exit:?}"),
            };
            return Some(exit::describe(&mut fd, exit));
        }
    }
}

/// Installs an empty handler for the kick: the signal itself interrupts KVM_RUN.
fn install_kick() -> Result<()> {
    extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = register_signal_handler(SIGRTMIN(), interrupt));
    result.context("sigaction")
}
