// SPDX-License-Identifier: GPL-2.0-only

//! What is saved of a VM, and how it is written to a file or a socket.
//!
//! A JSON header (vCPUs, clocks as the method saved them) after its length, then guest memory as it
//! is.

use super::error::{
    Error,
    Result, //
};
use crate::guest::layout;
use kvm_bindings::{
    kvm_regs,
    kvm_sregs, //
};
use serde::{
    de::DeserializeOwned,
    Deserialize,
    Serialize, //
};
use std::io::{
    Read,
    Write, //
};

/// Registers of a vCPU; its clocks are the method's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    /// General-purpose registers.
    pub regs: kvm_regs,
    /// Segment and control registers, EFER.
    pub sregs: kvm_sregs,
    /// `MSR_KVM_SYSTEM_TIME_NEW`: where the guest wants its pvclock record.
    pub system_time_msr: u64,
}

/// A VM outside KVM, its clocks excepted.
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
    memory_bytes: u64,
    clocks: C,
}

/// No header is longer; a length beyond it is not one of ours.
const MAX_HEADER: u64 = 1 << 20;

impl VmState {
    /// Writes the state, and `clocks` with it.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn write(&self, clocks: &impl Serialize, out: &mut impl Write) -> Result<()> {
        let header = serde_json::to_vec(&Header {
            vcpus: self.vcpus.clone(),
            memory_bytes: self.memory.len() as u64,
            clocks,
        })
        .map_err(|e| Error::State(e.to_string()))?;
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        out.write_all(&self.memory)?;
        Ok(out.flush()?)
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    ///
    /// Those of `input`, and if it is not such a state.
    pub fn read<C: DeserializeOwned>(input: &mut impl Read) -> Result<(Self, C)> {
        let mut len = [0; 8];
        input.read_exact(&mut len)?;
        let len = u64::from_le_bytes(len);
        if len > MAX_HEADER {
            return Err(Error::State(format!(
                "a header of {len} bytes, more than {MAX_HEADER}: not a file of clockguest's"
            )));
        }
        // CAST: usize has 64 bits on x86-64, and so below.
        let mut header = vec![0; len as usize];
        input.read_exact(&mut header)?;
        let header: Header<C> =
            serde_json::from_slice(&header).map_err(|e| Error::State(e.to_string()))?;

        let nr_vcpus = u32::try_from(header.vcpus.len()).unwrap_or(u32::MAX);
        if nr_vcpus > layout::MAX_VCPUS || header.memory_bytes != layout::memory_size(nr_vcpus) {
            return Err(Error::State(format!(
                "{nr_vcpus} vCPUs and {} bytes of memory do not belong together",
                header.memory_bytes
            )));
        }
        let mut memory = vec![0; header.memory_bytes as usize];
        input.read_exact(&mut memory)?;
        let state = Self {
            vcpus: header.vcpus,
            memory,
        };
        Ok((state, header.clocks))
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
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        state().write(&"clocks", &mut bytes).unwrap();
        let (read, clocks) = VmState::read::<String>(&mut bytes.as_slice()).unwrap();
        assert_eq!(read, state());
        assert_eq!(clocks, "clocks");
    }

    #[test]
    fn refuses_what_is_not_a_state() {
        let mut bytes = Vec::new();
        state().write(&(), &mut bytes).unwrap();
        let cut = &bytes[..bytes.len() - 1];
        assert!(matches!(VmState::read::<()>(&mut &*cut), Err(Error::Io(_))));

        let lone = VmState {
            vcpus: state().vcpus[..1].to_vec(),
            ..state()
        };
        let mut bytes = Vec::new();
        lone.write(&(), &mut bytes).unwrap();
        let result = VmState::read::<()>(&mut bytes.as_slice());
        assert!(matches!(result, Err(Error::State(_))));

        let result = VmState::read::<()>(&mut &[0xff; 64][..]);
        assert!(matches!(result, Err(Error::State(_))));
    }
}
