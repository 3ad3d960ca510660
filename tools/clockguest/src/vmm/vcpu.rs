// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU and its thread: run, stop, and its ioctls in between.

use super::{
    error::{Context, Error, Result},
    exit,
};
use kvm_ioctls::VcpuFd;
use std::{
    ptr::NonNull,
    sync::{
        atomic::{AtomicU8, Ordering},
        Arc, Condvar, Mutex, MutexGuard, Once,
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};
use vmm_sys_util::signal::{register_signal_handler, Killable, SIGRTMIN};

/// How long a vCPU thread may take to enter or leave KVM_RUN before that is an error; generous,
/// for an emulated host with fewer CPUs than the guest.
const PATIENCE: Duration = Duration::from_secs(20);

/// Nice value of a vCPU thread; Linux has them by thread.
const NICE: libc::c_int = 19;

/// What a vCPU thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Stop,
    Run,
    Quit,
}

#[derive(Debug)]
struct State {
    order: Order,
    /// The thread holds the descriptor's lock, and is inside KVM_RUN or about to be.
    running: bool,
    /// Why it left KVM_RUN unasked.
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
/// Points into the `kvm_run` mapping of the descriptor in the [`Shared`] that is kept beside it.
#[derive(Debug)]
struct ImmediateExit(NonNull<AtomicU8>);

// SAFETY: It is only ever used as a shared atomic.
unsafe impl Send for ImmediateExit {}
// SAFETY: As above.
unsafe impl Sync for ImmediateExit {}

/// A vCPU, stopped at first.
#[derive(Debug)]
pub struct Vcpu {
    index: usize,
    shared: Arc<Shared>,
    immediate_exit: ImmediateExit,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Starts the thread of vCPU `index`, whose descriptor is `fd`.
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
                order: Order::Stop,
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
            // INVARIANT: The descriptor moved into `shared`, and with it its mapping, in place.
            immediate_exit: ImmediateExit(immediate_exit.cast()),
            thread: Some(thread),
        })
    }

    /// Its index, which is its vCPU id too.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The descriptor, for ioctls; waits until the vCPU is stopped.
    pub fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        self.shared.fd.lock().expect("a vCPU thread panicked")
    }

    /// Tells it to run; [`wait_running`](Self::wait_running) tells when it does.
    pub fn request_run(&self) {
        self.order(Order::Run);
    }

    /// Returns when its thread is about to enter KVM_RUN.
    ///
    /// # Errors
    ///
    /// [`Error::Exit`] if it left KVM_RUN by itself, [`Error::Timeout`].
    pub fn wait_running(&self) -> Result<()> {
        self.wait_for("start", |state| state.running || state.failure.is_some())?;
        self.check()
    }

    /// Tells it to stop; [`wait_stopped`](Self::wait_stopped) tells when it has.
    pub fn request_stop(&self) {
        self.order(Order::Stop);
    }

    /// Returns when it is outside KVM_RUN.
    ///
    /// # Errors
    ///
    /// [`Error::Exit`] if it left KVM_RUN by itself, [`Error::Timeout`].
    pub fn wait_stopped(&self) -> Result<()> {
        self.wait_for("stop", |state| !state.running)?;
        self.check()
    }

    /// Whether it still does what it was told.
    ///
    /// # Errors
    ///
    /// [`Error::Exit`] if it left KVM_RUN by itself.
    pub fn check(&self) -> Result<()> {
        match &self.shared.lock().failure {
            None => Ok(()),
            Some(exit) => Err(Error::Exit {
                index: self.index,
                exit: exit.clone(),
            }),
        }
    }

    fn order(&self, order: Order) {
        // SAFETY: By the invariants of `ImmediateExit`, as `self.shared` is alive; KVM reads the
        // byte at any time, so it is accessed as an atomic.
        let immediate_exit = unsafe { self.immediate_exit.0.as_ref() };
        let mut state = self.shared.lock();
        state.order = order;
        let stop = order != Order::Run;
        // Before the kick: a thread on its way into KVM_RUN sees the byte, one inside the signal.
        immediate_exit.store(stop.into(), Ordering::SeqCst);
        if stop && state.running {
            if let Some(thread) = &self.thread {
                // It fails only if the thread has ended, and then there is nothing to stop.
                let _ = thread.kill(SIGRTMIN());
            }
        }
        self.shared.changed.notify_all();
    }

    fn wait_for(&self, what: &'static str, done: impl Fn(&State) -> bool) -> Result<()> {
        let (_state, timeout) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), PATIENCE, |state| !done(state))
            .expect("a vCPU thread panicked");
        if timeout.timed_out() {
            return Err(Error::Timeout {
                index: self.index,
                what,
                after: PATIENCE,
            });
        }
        Ok(())
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.order(Order::Quit);
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a vCPU thread panicked")
    }

    /// The thread: obeys orders until told to quit.
    fn serve(&self) {
        // A guest that never sleeps leaves the CPU to those that control it. It may be refused, and
        // the guest is measured as well then.
        // SAFETY: It has no operands in memory.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
        loop {
            let mut state = self
                .changed
                .wait_while(self.lock(), |state| {
                    state.order == Order::Stop
                        || state.failure.is_some() && state.order == Order::Run
                })
                .expect("the controlling thread panicked");
            if state.order == Order::Quit {
                return;
            }
            state.running = true;
            self.changed.notify_all();
            drop(state);

            let failure = self.run_until_told();

            let mut state = self.lock();
            state.running = false;
            state.failure = failure;
            self.changed.notify_all();
        }
    }

    /// Stays in KVM_RUN as long as ordered to; returns why it left unasked, if so.
    fn run_until_told(&self) -> Option<String> {
        let mut fd = self.fd.lock().expect("the controlling thread panicked");
        loop {
            let exit = match fd.run() {
                Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {
                    if self.lock().order != Order::Run {
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

/// Gives the kick a handler: it has nothing to do but to interrupt KVM_RUN.
fn install_kick() -> Result<()> {
    extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = register_signal_handler(SIGRTMIN(), interrupt));
    result.context("sigaction")
}
