// SPDX-License-Identifier: GPL-2.0-only

//! The file of a saved VM.

use super::{Guest, Memory, Update};
use crate::{stream::Writer, vmm::state::VmState};
use anyhow::{anyhow, bail, Result};
use std::{
    fs::{self, File},
    io::{BufReader, BufWriter, Read},
    path::Path,
};

/// Writes the file `path` and syncs it to disk, as a kexec does not.
pub(super) fn write(path: &Path, state: &VmState, update: &Update) -> Result<()> {
    let create = || -> Result<()> {
        let file = File::create(path)?;
        state.write(update, &mut BufWriter::new(&file))?;
        Ok(file.sync_all()?)
    };
    create().map_err(|error| {
        // Do not leave an incomplete state.
        let _ = fs::remove_file(path);
        anyhow!("cannot save to {}: {error}", path.display())
    })
}

/// Reads a file `path` of [`write()`].
pub(super) fn read(path: &Path) -> Result<Guest> {
    let read = || parse(BufReader::new(File::open(path)?));
    let (state, update) =
        read().map_err(|error| anyhow!("cannot restore {}: {error}", path.display()))?;
    Ok(Guest {
        vcpus: state.vcpus,
        memory: Memory::Copied(state.memory),
        update,
    })
}

fn parse(mut input: impl Read) -> Result<(VmState, Update)> {
    let (state, update): (_, Update) = VmState::read(&mut input)?;
    if input.read(&mut [0])? != 0 {
        bail!("data follows the saved VM");
    }
    if update.before.vcpus.len() != state.vcpus.len() {
        bail!(
            "it has {} vCPUs, but readings of {}",
            state.vcpus.len(),
            update.before.vcpus.len()
        );
    }
    Ok((state, update))
}

/// Reads a file's content, and writes it again as a stream of `session`: for `tools/fuzz`.
///
/// # Errors
///
/// The reason why the content is refused.
pub fn read_and_write(input: impl Read, session: u64) -> Result<Vec<u8>> {
    let (state, update) = parse(input)?;
    let mut out = Vec::new();
    state.send(&update, &mut Writer::new(&mut out, session))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        guest::layout,
        measure::tests::at_rest,
        method::{legacy_msr, Saved},
        update::Boot,
        vmm::state::VcpuState,
    };
    use kvm_bindings::{kvm_regs, kvm_sregs};
    use pvclock::counter::{GuestTsc, HostTsc};
    use vmm_sys_util::tempfile::TempFile;

    /// The file's bytes.
    fn written() -> Vec<u8> {
        let state = VmState {
            vcpus: vec![VcpuState {
                regs: kvm_regs::default(),
                sregs: kvm_sregs::default(),
                system_time_msr: 1,
            }],
            // CAST: usize has 64 bits on x86-64.
            memory: vec![7; layout::memory_size(1) as usize],
        };
        let update = Update {
            clocks: Saved::LegacyMsr(legacy_msr::Saved {
                tsc: vec![GuestTsc(5)],
                clock_ns: 6,
            }),
            before: at_rest(1 << 20),
            boot: Boot {
                boot_id: "one".to_owned(),
                tsc_khz: 2_000_000,
                tsc: HostTsc(1 << 20),
                uptime_ms: 10,
            },
        };
        let file = TempFile::new().unwrap();
        write(file.as_path(), &state, &update).unwrap();
        fs::read(file.as_path()).unwrap()
    }

    /// The reason why a file with `bytes` is refused, or `None`.
    fn refused(bytes: &[u8]) -> Option<String> {
        let file = TempFile::new().unwrap();
        fs::write(file.as_path(), bytes).unwrap();
        read(file.as_path()).err().map(|error| format!("{error:#}"))
    }

    #[test]
    fn what_is_written_is_read() {
        let file = TempFile::new().unwrap();
        fs::write(file.as_path(), written()).unwrap();
        let guest = read(file.as_path()).unwrap();
        let Memory::Copied(memory) = guest.memory else {
            panic!("{:?}", guest.memory);
        };
        assert!(memory.iter().all(|&byte| byte == 7));
        assert_eq!(guest.update.boot.boot_id, "one");
        assert_eq!(guest.update.before, at_rest(1 << 20));
    }

    #[test]
    fn other_files_are_refused() {
        let whole = written();
        assert_eq!(refused(&whole), None);
        for len in [0, 1, 8, 100, whole.len() / 2, whole.len() - 1] {
            assert!(refused(&whole[..len]).is_some(), "{len} bytes");
        }
        let longer = [&whole[..], &[0]].concat();
        assert!(refused(&longer).is_some());
        assert!(refused(b"#!/bin/sh\necho not a saved VM\n").is_some());
        let error = read(Path::new("/nonexistent/file")).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/file"));
    }
}
