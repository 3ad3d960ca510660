// SPDX-License-Identifier: GPL-2.0-only

//! A VM in a LUO session: its memory, its clocks and the rest, a memfd each.
//!
//! The memory is that in which the guest ran, and in which it runs again: it is not copied. The
//! clocks of method atomic have the format of [`pvclock::handover`].

use super::{
    luo::{self, Session},
    Boot, Guest, Memory, Update,
};
use crate::{
    guest::layout,
    measure::Reading,
    method::{atomic, Saved},
    stream::{self, Kind, Reader, Writer},
    vmm::{state::VcpuState, Vm},
};
use anyhow::{anyhow, bail, Context, Result};
use kvm_clock::{HostId, SavedClocks, VmClock};
use pvclock::{
    abi::VmClockGuest,
    handover::{self, Handover, HandoverError},
};
use serde::{Deserialize, Serialize};
use std::fs::File;

/// Tokens of the files.
mod token {
    pub(super) const MEMORY: u64 = 1;
    /// With method atomic.
    pub(super) const CLOCKS: u64 = 2;
    pub(super) const REST: u64 = 3;
}

/// All but memory, and the clocks of method atomic.
#[derive(Serialize, Deserialize)]
struct Rest {
    vcpus: Vec<VcpuState>,
    /// The clocks of other methods.
    clocks: Option<Saved>,
    before: Reading,
    boot: Boot,
    /// The physical pages of guest memory, unless the kernel hides them.
    pages: Option<Vec<u64>>,
}

/// Memory for a guest with `nr_vcpus` vCPUs.
pub(super) fn new_memory(nr_vcpus: u32) -> Result<File> {
    luo::memfd(c"clockguest memory", layout::memory_size(nr_vcpus))
        .context("cannot create a memfd for guest memory")
}

/// Preserves the stopped `vm`, whose memory is in `memory`, in `session`.
pub(super) fn write(session: &mut Session, vm: &Vm, memory: File, update: &Update) -> Result<()> {
    session.preserve(memory, token::MEMORY)?;
    let clocks = match &update.clocks {
        Saved::Atomic(saved) => {
            let clock = saved.0.clock()?;
            let file = luo::memfd_with(c"clockguest clocks", &to_bytes(clock)?)?;
            session.preserve(file, token::CLOCKS)?;
            None
        }
        other => Some(other.clone()),
    };
    let rest = Rest {
        vcpus: vm.save_vcpus()?,
        clocks,
        before: update.before.clone(),
        boot: update.boot.clone(),
        // The kernel may have moved pages to preserve them.
        pages: vm.memory().physical_pages()?,
    };
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, stream::new_session()?).write(Kind::State, &rest)?;
    let file = luo::memfd_with(c"clockguest vCPUs", &bytes)?;
    session.preserve(file, token::REST)
}

/// Takes a guest out of `session`.
pub(super) fn read(session: &Session) -> Result<Guest> {
    let read = || {
        let bytes = luo::content(&session.file(token::REST)?)?;
        let rest: Rest = Reader::new(bytes.as_slice(), None)
            .next_frame()?
            .message(Kind::State)?;
        let clocks = match rest.clocks {
            Some(clocks) => clocks,
            None => {
                let bytes = luo::content(&session.file(token::CLOCKS)?)?;
                let clock = from_bytes(&bytes).context("its clocks are refused")?;
                let host = HostId::new(&rest.boot.boot_id);
                Saved::Atomic(atomic::Saved(SavedClocks::new(
                    &clock,
                    rest.before.tsc_khz,
                    &host,
                )))
            }
        };
        let nr_vcpus = u32::try_from(rest.vcpus.len()).unwrap_or(u32::MAX);
        let memory = session.file(token::MEMORY)?;
        let size = memory.metadata()?.len();
        if nr_vcpus > layout::MAX_VCPUS
            || size != layout::memory_size(nr_vcpus)
            || rest.before.vcpus.len() != rest.vcpus.len()
        {
            bail!(
                "{nr_vcpus} vCPUs do not match {size} bytes of memory and readings of {}",
                rest.before.vcpus.len()
            );
        }
        Ok(Guest {
            vcpus: rest.vcpus,
            memory: Memory::Preserved {
                file: memory,
                pages: rest.pages,
            },
            update: Update {
                clocks,
                before: rest.before,
                boot: rest.boot,
            },
        })
    };
    read().with_context(|| format!("cannot restore from LUO session {:?}", session.name()))
}

fn to_bytes(mut clock: VmClock) -> Result<Vec<u8>> {
    clock.header.size = u32::try_from(size_of::<VmClockGuest>())?;
    clock.header.nr_vcpus = u32::try_from(clock.vcpus.len())?;
    let write = || {
        let mut bytes = vec![0; handover::size(clock.header.nr_vcpus)? as usize];
        handover::write(&clock.header, &clock.vcpus, &mut bytes)?;
        Ok(bytes)
    };
    write().map_err(reason)
}

fn from_bytes(bytes: &[u8]) -> Result<VmClock> {
    let handover = Handover::new(bytes).map_err(reason)?;
    Ok(VmClock {
        header: *handover.clock(),
        vcpus: handover.vcpus().collect(),
    })
}

fn reason(error: HandoverError) -> anyhow::Error {
    match error {
        HandoverError::Magic => anyhow!("they do not begin as clocks do"),
        HandoverError::Version(version) => anyhow!(
            "they have version {version} of the format, but this is version {}",
            handover::VERSION
        ),
        HandoverError::Truncated => anyhow!("they are truncated"),
        HandoverError::Corrupted => anyhow!("their checksum is wrong"),
        HandoverError::Inconsistent => anyhow!("they contradict themselves"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvclock::abi::ClockGuestVcpu;

    #[test]
    fn clocks_read_back_and_faults_have_names() {
        let clock = VmClock {
            header: VmClockGuest {
                size: 144,
                nr_vcpus: 2,
                kvmclock_ns: 7,
                ..VmClockGuest::default()
            },
            vcpus: vec![ClockGuestVcpu::default(); 2],
        };
        let bytes = to_bytes(clock.clone()).unwrap();
        assert_eq!(from_bytes(&bytes).unwrap(), clock);
        let fault = |at: usize, len: usize| {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            from_bytes(&bytes[..len]).unwrap_err().to_string()
        };
        let all = bytes.len();
        assert!(fault(0, all).contains("begin"));
        assert!(fault(8, all).contains("version 0"));
        assert!(fault(100, all).contains("checksum"));
        assert!(fault(100, all - 1).contains("truncated"));
    }
}
