// SPDX-License-Identifier: GPL-2.0-only

//! The saved state of a VM, and its [`stream`] format: a frame with vCPUs and clocks, and one with
//! guest memory.

use super::error::{Error, Result};
use crate::{
    guest::layout,
    stream::{self, Frame, Kind, Reader, Writer},
};
use kvm_bindings::{kvm_regs, kvm_sregs};
use serde::{de::DeserializeOwned, Deserialize, Serialize};
use std::io::{Read, Write};

/// The registers of a vCPU, without its clocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    /// General-purpose registers.
    pub regs: kvm_regs,
    /// Segment and control registers, EFER.
    pub sregs: kvm_sregs,
    /// `MSR_KVM_SYSTEM_TIME_NEW`: the address of the guest's pvclock record.
    pub system_time_msr: u64,
}

/// The saved state of a VM, without its clocks.
#[derive(Clone, Debug, PartialEq)]
pub struct VmState {
    /// In order of index.
    pub vcpus: Vec<VcpuState>,
    /// Guest memory from address 0.
    pub memory: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Header<C> {
    vcpus: Vec<VcpuState>,
    clocks: C,
}

impl VmState {
    /// Writes the state and `clocks`.
    ///
    /// # Errors
    ///
    /// Those of the stream.
    pub fn send(&self, clocks: &impl Serialize, to: &mut Writer<impl Write>) -> Result<()> {
        let header = Header {
            vcpus: self.vcpus.clone(),
            clocks,
        };
        to.write(Kind::State, &header)?;
        Ok(to.write_raw(Kind::Memory, &self.memory)?)
    }

    /// Reads the state that [`send`](Self::send) writes; `state` is its first frame.
    ///
    /// # Errors
    ///
    /// Those of the stream; [`Error::State`] if the state is invalid.
    pub fn receive<C: DeserializeOwned>(
        state: Frame,
        from: &mut Reader<impl Read>,
    ) -> Result<(Self, C)> {
        let header: Header<C> = state.message(Kind::State)?;
        let memory = from.read_raw(Kind::Memory)?;
        let nr_vcpus = u32::try_from(header.vcpus.len()).unwrap_or(u32::MAX);
        if nr_vcpus > layout::MAX_VCPUS || memory.len() as u64 != layout::memory_size(nr_vcpus) {
            return Err(Error::State(format!(
                "{nr_vcpus} vCPUs do not match {} bytes of memory",
                memory.len()
            )));
        }
        let state = Self {
            vcpus: header.vcpus,
            memory,
        };
        Ok((state, header.clocks))
    }

    /// Writes the state and `clocks` as a whole stream, e.g. a file.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn write(&self, clocks: &impl Serialize, out: &mut impl Write) -> Result<()> {
        let session = stream::new_session()?;
        self.send(clocks, &mut Writer::new(out, session))
    }

    /// Reads the stream that [`write`](Self::write) writes.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive).
    pub fn read<C: DeserializeOwned>(input: &mut impl Read) -> Result<(Self, C)> {
        let mut reader = Reader::new(input, None);
        Self::receive(reader.next_frame()?, &mut reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> VmState {
        let vcpu = |n: u64| VcpuState {
            regs: kvm_regs {
                rip: n,
                ..kvm_regs::default()
            },
            sregs: kvm_sregs::default(),
            system_time_msr: u64::MAX - n,
        };
        let memory = (0..layout::memory_size(2)).map(|n| n as u8).collect();
        VmState {
            vcpus: vec![vcpu(1), vcpu(2)],
            memory,
        }
    }

    #[test]
    fn reads_back_what_was_written() {
        let mut bytes = Vec::new();
        state().write(&"clocks", &mut bytes).unwrap();
        let (read, clocks) = VmState::read::<String>(&mut bytes.as_slice()).unwrap();
        assert_eq!(read, state());
        assert_eq!(clocks, "clocks");
    }

    #[test]
    fn invalid_states_are_refused() {
        let mut bytes = Vec::new();
        state().write(&(), &mut bytes).unwrap();
        let cut = &bytes[..bytes.len() - 1];
        assert!(matches!(
            VmState::read::<()>(&mut &*cut),
            Err(Error::Stream(stream::Error::Truncated { number: 1 }))
        ));

        let lone = VmState {
            vcpus: state().vcpus[..1].to_vec(),
            ..state()
        };
        let mut bytes = Vec::new();
        lone.write(&(), &mut bytes).unwrap();
        let result = VmState::read::<()>(&mut bytes.as_slice());
        assert!(matches!(result, Err(Error::State(_))));

        let result = VmState::read::<()>(&mut &[0xff; 64][..]);
        assert!(matches!(
            result,
            Err(Error::Stream(stream::Error::Magic(_)))
        ));
    }
}
