// SPDX-License-Identifier: GPL-2.0-only

//! The VMs of this host and their vCPUs' TSCs, as KVM's debugfs shows them.

use super::Unavailable;
use pvclock::{counter::TscOffset, tsc::Scale, tsc::TscTransform};
use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    io::{self, ErrorKind},
    mem::MaybeUninit,
    path::{Path, PathBuf},
};

/// Where debugfs belongs.
const DEBUGFS: &str = "/sys/kernel/debug";
/// `DEBUGFS_MAGIC` of `include/uapi/linux/magic.h`.
const DEBUGFS_MAGIC: i64 = 0x6462_6720;

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vm {
    /// The process that made it.
    pub(super) process: Process,
    /// The process' file descriptor of the VM.
    pub(super) fd: u32,
    /// Its vCPUs by ID.
    pub(super) vcpus: BTreeMap<u32, Tsc>,
}

/// A VMM's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// The program.
    pub(super) program: String,
    /// The VM's name, where the command line has it.
    pub(super) name: Option<String>,
}

/// A vCPU's TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tsc {
    pub(super) transform: TscTransform,
    /// The vCPU runs a guest of its guest, whose offset and ratio these are.
    pub(super) nested: bool,
}

/// All VMs, or those of the process `pid`.
pub(super) fn vms(pid: Option<u32>) -> Result<Vec<Vm>, Unavailable> {
    let all = read_all().map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => Unavailable::Permission(format!("{DEBUGFS}/kvm: {error}")),
        _ if !is_debugfs() => Unavailable::NoDebugfs,
        // KVM makes the folder when it is loaded.
        _ => Unavailable::NoVm,
    })?;
    let Some(pid) = pid else {
        return if all.is_empty() {
            Err(Unavailable::NoVm)
        } else {
            Ok(all)
        };
    };
    let found: Vec<_> = all.into_iter().filter(|vm| vm.process.pid == pid).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    Err(
        match read(Path::new("/proc").join(pid.to_string()).join("comm")) {
            Some(program) => Unavailable::NoVmm(pid, program),
            None => Unavailable::NoProcess(pid),
        },
    )
}

/// The process of a thread.
pub(super) fn process_of(thread: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let of = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    of.trim().parse().ok()
}

fn is_debugfs() -> bool {
    let mut found = MaybeUninit::<libc::statfs>::uninit();
    let path = CString::new(DEBUGFS).unwrap_or_default();
    // SAFETY: `path` is a C string, and `found` is valid for writes.
    let done = unsafe { libc::statfs(path.as_ptr(), found.as_mut_ptr()) };
    // SAFETY: The call has succeeded, so it has filled in `found`.
    done == 0 && unsafe { found.assume_init() }.f_type == DEBUGFS_MAGIC
}

fn read_all() -> io::Result<Vec<Vm>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(Path::new(DEBUGFS).join("kvm"))? {
        let entry = entry?;
        let name = entry.file_name();
        // `PID-FD`; the others are counters.
        let numbers = name.to_str().and_then(|name| name.split_once('-'));
        let Some((thread, fd)) = numbers else {
            continue;
        };
        let (Ok(thread), Ok(fd)) = (thread.parse(), fd.parse()) else {
            continue;
        };
        // A VM whose process has just ended is none.
        let Some(pid) = process_of(thread) else {
            continue;
        };
        found.push(Vm {
            process: Process::read(pid),
            fd,
            vcpus: vcpus(&entry.path()),
        });
    }
    found.sort_by_key(|vm| (vm.process.pid, vm.fd));
    Ok(found)
}

/// The vCPUs in the folder of a VM, without those that disappear meanwhile.
fn vcpus(vm: &Path) -> BTreeMap<u32, Tsc> {
    let entries = fs::read_dir(vm).into_iter().flatten().flatten();
    let folders = entries.filter_map(|entry| {
        let id = entry.file_name().to_str()?.strip_prefix("vcpu")?.parse();
        Some((id.ok()?, entry.path()))
    });
    folders
        .filter_map(|(id, folder)| Some((id, tsc(&folder)?)))
        .collect()
}

fn tsc(vcpu: &Path) -> Option<Tsc> {
    let offset: i64 = number(vcpu.join("tsc-offset"))?;
    let ratio = number(vcpu.join("tsc-scaling-ratio"));
    let frac_bits = number(vcpu.join("tsc-scaling-ratio-frac-bits"));
    // Without the files, the host cannot scale.
    let scale = match (ratio, frac_bits) {
        (Some(ratio), Some(frac_bits)) => Scale::new(ratio, frac_bits)?,
        _ => Scale::IDENTITY,
    };
    Some(Tsc {
        transform: TscTransform {
            scale,
            // CAST: Modular; debugfs prints it with a sign.
            offset: TscOffset(offset as u64),
        },
        nested: number::<i64>(vcpu.join("guest_mode")).is_some_and(|mode| mode > 0),
    })
}

impl Process {
    fn read(pid: u32) -> Self {
        let folder = Path::new("/proc").join(pid.to_string());
        let line = fs::read(folder.join("cmdline")).unwrap_or_default();
        let words: Vec<_> = line
            .split(|&byte| byte == 0)
            .map(String::from_utf8_lossy)
            .collect();
        Self {
            pid,
            program: read(folder.join("comm")).unwrap_or_default(),
            name: vm_name(&words),
        }
    }
}

/// The name in a command line: QEMU's `-name [guest=]NAME[,...]`, Firecracker's `--id NAME`.
fn vm_name<S: AsRef<str>>(words: &[S]) -> Option<String> {
    let pairs = words.windows(2);
    let mut named = pairs.filter_map(|pair| match pair[0].as_ref() {
        "-name" | "--name" => {
            let parts = pair[1].as_ref().split(',');
            let (mut first, mut guest) = (None, None);
            for part in parts {
                match part.split_once('=') {
                    Some(("guest", name)) => guest = Some(name),
                    Some(_) => {}
                    None => first = first.or(Some(part)),
                }
            }
            guest.or(first).map(str::to_owned)
        }
        "--id" => Some(pair[1].as_ref().to_owned()),
        _ => None,
    });
    named.next()
}

fn read(path: PathBuf) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

fn number<N: std::str::FromStr>(path: PathBuf) -> Option<N> {
    read(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_vms_are_found() {
        for (line, expected) in [
            (
                "qemu-system-x86_64 -name web,debug-threads=on -m 1G",
                Some("web"),
            ),
            (
                "qemu-system-x86_64 -name debug-threads=on,guest=db",
                Some("db"),
            ),
            ("qemu-system-x86_64 -name process=x", None),
            ("firecracker --id vm-7 --api-sock /s", Some("vm-7")),
            ("cloud-hypervisor --kernel k", None),
            ("qemu-system-x86_64 -name", None),
        ] {
            let words: Vec<_> = line.split(' ').collect();
            assert_eq!(vm_name(&words).as_deref(), expected, "{line}");
        }
    }
}
