// SPDX-License-Identifier: GPL-2.0-only

//! Live update: saves a VM to a file or in a LUO session, and restores it after a kexec has
//! replaced the host's kernel.
//!
//! [`save`] and [`restore`] are two runs of the program; the kexec between them is the user's. The
//! host's TSC continues to count over a kexec, so mode exact loses nothing. The new kernel
//! calibrates the TSC's rate anew, and has its own time of day.

mod file;
mod luo;
mod outcome;
mod session;

pub use file::read_and_write;
pub use luo::Session;
pub use outcome::Outcome;

use crate::{
    host::{open_kvm, rdtsc_ordered},
    measure::Reading,
    method::{Method, Mode, Saved},
    observe,
    scenario::{stop_and_save, warm_up},
    vmm::{
        builder,
        state::{VcpuState, VmState},
        Vm, VmBuilder,
    },
};
use anyhow::{bail, Context, Result};
use kvm_clock::{HostId, ModeChoice, OtherRate, Policy};
use kvm_ioctls::Kvm;
use pvclock::counter::HostTsc;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    path::PathBuf,
};

/// A boot of a host at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Linux's ID of the boot.
    pub boot_id: String,
    /// Host TSC rate as calibrated in this boot, kHz.
    pub tsc_khz: u32,
    /// Host TSC.
    pub tsc: HostTsc,
    /// Time since this boot, ms.
    pub uptime_ms: u64,
}

impl Boot {
    fn current(kvm: &Kvm) -> Result<Self> {
        let uptime = fs::read_to_string("/proc/uptime").context("cannot read /proc/uptime")?;
        Ok(Self {
            boot_id: HostId::read()?.boot_id().to_owned(),
            // By default, a vCPU has the host's rate.
            tsc_khz: Vm::empty(kvm, 1)?.tsc_khz()?,
            tsc: rdtsc_ordered(),
            uptime_ms: parse_uptime(&uptime).context("/proc/uptime does not begin with seconds")?,
        })
    }
}

/// `/proc/uptime`'s first number, ms.
fn parse_uptime(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_whitespace().next()?.split_once('.')?;
    let hundredths: u64 = fraction.get(..2)?.parse().ok()?;
    Some(seconds.parse::<u64>().ok()? * 1000 + hundredths * 10)
}

/// The saved data apart from memory and registers.
#[derive(Debug, Serialize, Deserialize)]
struct Update {
    clocks: Saved,
    /// The last reading before the update.
    before: Reading,
    /// The boot that saved it.
    boot: Boot,
}

/// Where a saved VM waits for the next kernel.
#[derive(Clone, Debug)]
pub enum Place {
    /// A file.
    File(PathBuf),
    /// The LUO session of this name.
    Session(String),
}

/// A saved VM.
#[derive(Debug)]
struct Guest {
    vcpus: Vec<VcpuState>,
    memory: Memory,
    update: Update,
}

/// Guest memory of a saved VM.
#[derive(Debug)]
enum Memory {
    /// A copy.
    Copied(Vec<u8>),
    /// The memory itself, and its physical pages under the previous kernel.
    Preserved { file: File, pages: Option<Vec<u64>> },
}

/// The result of [`save`].
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The method.
    pub method: Method,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Guest TSC rate, kHz.
    pub tsc_khz: u32,
    /// The boot that saved it.
    pub boot: Boot,
}

impl Report {
    /// A text for the user.
    pub fn to_text(&self) -> String {
        format!(
            "saved {} vCPUs with {} in boot {}, host TSC {} of {} kHz\n",
            self.vcpus,
            self.method.name(),
            self.boot.boot_id,
            self.boot.tsc,
            self.boot.tsc_khz,
        )
    }
}

/// Parameters of [`save`].
#[derive(Clone, Debug)]
pub struct SaveConfig {
    /// Where to.
    pub to: Place,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// TSC rate of the guest, kHz; `None` for the host's.
    pub tsc_khz: Option<u32>,
    /// The method.
    pub method: Method,
    /// Use `/dev/kvm` even if no CPU vendor's module is loaded.
    pub any_kvm: bool,
}

/// Creates a VM with a new guest, runs it until it has read its clocks, and saves it. A session, if
/// any, lasts until the kexec only if it is kept.
///
/// # Errors
///
/// [`Unavailable`](crate::host::Unavailable); those of KVM, and of the file or session.
pub fn save(config: &SaveConfig) -> Result<(Report, Option<Session>)> {
    let kvm = open_kvm(config.any_kvm)?;
    let store = Store::open(&config.to, config.vcpus, None)?;
    let mut builder = VmBuilder::new(&kvm, config.vcpus);
    if let Some(tsc_khz) = config.tsc_khz {
        builder = builder.tsc_khz(tsc_khz);
    }
    let vm = store.use_memory(builder).build()?;
    config.method.check(&vm)?;
    warm_up(&vm)?;
    let run = observe::run(&vm)?;
    let (clocks, before) = stop_and_save(&vm, run, config.method)?;
    store.write(&kvm, &vm, clocks, before)
}

/// Parameters of [`restore`].
#[derive(Clone, Debug)]
pub struct RestoreConfig {
    /// Where the guest is.
    pub from: Place,
    /// The mode of method atomic; exact by default.
    pub mode: Option<Mode>,
    /// Where to save it again.
    pub to: Option<Place>,
    /// Use `/dev/kvm` even if no CPU vendor's module is loaded.
    pub any_kvm: bool,
}

/// Restores a VM, runs it, and compares its clocks with those before; then saves it again if asked
/// to.
///
/// A retrieved session proves that the host's TSC is the counter that it was. Without the module,
/// its guest falls back to KVM's own ioctls, as [`Outcome::lost`] reports.
///
/// # Errors
///
/// If [`save`] did not write all of it; [`Unavailable`](crate::host::Unavailable); those of KVM.
pub fn restore(config: &RestoreConfig) -> Result<(Outcome, Option<Session>)> {
    let (guest, session) = match &config.from {
        Place::File(path) => (file::read(path)?, None),
        Place::Session(name) => {
            // A session that was retrieved is gone when it is dropped, so do not begin in vain.
            open_kvm(config.any_kvm)?;
            let session = Session::retrieve(name)?;
            (session::read(&session)?, Some(session))
        }
    };
    let update = guest.update;
    let method = update.clocks.method();
    let mode = match method {
        Method::Atomic => Some(config.mode.unwrap_or(Mode::Exact)),
        _ if config.mode.is_some() => {
            bail!("it was saved with {}, which has no modes", method.name())
        }
        _ => None,
    };
    let kvm = open_kvm(config.any_kvm)?;
    let boot = Boot::current(&kvm)?;
    let nr_vcpus = u32::try_from(guest.vcpus.len())?;
    let mut builder = VmBuilder::new(&kvm, nr_vcpus)
        .tsc_khz(update.before.tsc_khz)
        .guest(builder::Guest::Empty);
    let (copied, preserved, pages) = match guest.memory {
        Memory::Copied(bytes) => (Some(bytes), None, None),
        Memory::Preserved { file, pages } => (None, Some(file), pages),
    };
    let store = match &config.to {
        None => None,
        Some(to) => Some(Store::open(to, nr_vcpus, preserved.as_ref())?),
    };
    if let Some(file) = &preserved {
        builder = builder.memfd(file);
    } else if let Some(store) = &store {
        builder = store.use_memory(builder);
    }
    let vm = builder.build()?;
    match copied {
        Some(memory) => vm.load(&VmState {
            vcpus: guest.vcpus,
            memory,
        }),
        None => vm.load_vcpus(&guest.vcpus),
    }?;
    let memory_in_place = match pages {
        Some(pages) => vm.memory().physical_pages()?.map(|here| here == pages),
        None => None,
    };
    let (lost, mode) = match (&update.clocks, mode, method.check(&vm)) {
        (Saved::Atomic(saved), Some(Mode::Exact), Err(_)) if session.is_some() => {
            (saved.set_by(&vm, &without_module())?.lost(), None)
        }
        (_, _, Err(unavailable)) => return Err(unavailable.into()),
        (Saved::Atomic(saved), Some(mode), Ok(())) => {
            saved.set(&vm, mode)?;
            (None, Some(mode))
        }
        (clocks, _, Ok(())) => {
            clocks.restore(&vm)?;
            (None, None)
        }
    };
    let run = observe::run(&vm)?;
    // All that it holds is in use.
    session.map(Session::finish).transpose()?;
    // A guest that fell back can be saved again with what this kernel has.
    let again = if lost.is_some() {
        Method::LegacyOffset
    } else {
        method
    };
    let (clocks, after) = stop_and_save(&vm, run, again)?;
    let mut outcome = Outcome::new(method, mode, &update.before, &after, update.boot, boot)?;
    (outcome.lost, outcome.memory_in_place) = (lost, memory_in_place);
    let session = match store {
        None => None,
        Some(store) => store.write(&kvm, &vm, clocks, after)?.1,
    };
    Ok((outcome, session))
}

/// On the host that saved a guest, in a kernel without the module: the guest cannot wait for
/// another kernel, as its session is gone when the program ends.
fn without_module() -> Policy {
    Policy {
        mode: ModeChoice::Always(kvm_clock::Mode::Exact),
        other_rate: OtherRate::Accept,
        ..Policy::default()
    }
}

/// A file or session that a VM is going to be saved to.
enum Store<'a> {
    File(&'a PathBuf),
    Session { session: Session, memory: File },
}

impl<'a> Store<'a> {
    /// Creates the session, with guest memory for `nr_vcpus` vCPUs: `memory`, if there is one.
    fn open(place: &'a Place, nr_vcpus: u32, memory: Option<&File>) -> Result<Self> {
        Ok(match place {
            Place::File(path) => Self::File(path),
            Place::Session(name) => Self::Session {
                session: Session::create(name)?,
                memory: match memory {
                    Some(file) => file.try_clone()?,
                    None => session::new_memory(nr_vcpus)?,
                },
            },
        })
    }

    /// Has `builder` use memory that can be preserved.
    fn use_memory<'b>(&'b self, builder: VmBuilder<'b>) -> VmBuilder<'b> {
        match self {
            Self::File(_) => builder,
            Self::Session { memory, .. } => builder.memfd(memory),
        }
    }

    /// Saves the stopped `vm` with its `clocks`.
    fn write(
        self,
        kvm: &Kvm,
        vm: &Vm,
        clocks: Saved,
        before: Reading,
    ) -> Result<(Report, Option<Session>)> {
        let report = Report {
            method: clocks.method(),
            vcpus: u32::try_from(vm.vcpus().len())?,
            tsc_khz: before.tsc_khz,
            boot: Boot::current(kvm)?,
        };
        let update = Update {
            clocks,
            before,
            boot: report.boot.clone(),
        };
        let session = match self {
            Self::File(path) => {
                file::write(path, &vm.save()?, &update)?;
                None
            }
            Self::Session {
                mut session,
                memory,
            } => {
                session::write(&mut session, vm, memory, &update)?;
                Some(session)
            }
        };
        Ok((report, session))
    }
}

impl Saved {
    /// The method that saved them.
    fn method(&self) -> Method {
        match self {
            Self::Atomic(_) => Method::Atomic,
            Self::LegacyMsr(_) => Method::LegacyMsr,
            Self::LegacyOffset(_) => Method::LegacyOffset,
            Self::LuoMsr(_) => Method::LuoMsr,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_is_read() {
        assert_eq!(parse_uptime("5.07 3.99\n"), Some(5070));
        assert_eq!(parse_uptime("86400.50 1.00\n"), Some(86_400_500));
        assert_eq!(parse_uptime(""), None);
        assert_eq!(parse_uptime("soon"), None);
    }
}
