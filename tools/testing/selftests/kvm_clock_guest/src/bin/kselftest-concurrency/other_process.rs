// SPDX-License-Identifier: GPL-2.0-only

//! A process that has the descriptors of another process's VM: all its calls fail with EIO.

use kvm_clock_guest_selftests::prelude::*;
use pvclock::abi::{
    KVM_CAP_VM_CLOCK_GUEST, KVM_GET_CLOCK_GUEST, KVM_GET_VM_CLOCK_GUEST, KVM_SET_CLOCK_GUEST,
    KVM_SET_VM_CLOCK_GUEST,
};
use std::{
    env,
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
};
use vmm_sys_util::{ioctl::ioctl_with_val, sock_ctrl_msg::ScmSocket};

/// How long another process may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

mod nr {
    use vmm_sys_util::ioctl_io_nr;

    const KVMIO: u32 = 0xae;

    ioctl_io_nr!(KVM_CHECK_EXTENSION, KVMIO, 0x03);
    ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);
}

/// A VM's descriptor and one of a vCPU of it, of another process.
pub(crate) struct Foreign {
    vm: File,
    vcpu: File,
}

impl Foreign {
    /// Passes `vm` and `vcpu` through `socket`.
    pub(crate) fn send(socket: &UnixStream, vm: &VmFd, vcpu: &VcpuFd) -> Result<()> {
        for fd in [vm.as_raw_fd(), vcpu.as_raw_fd()] {
            socket.send_with_fd(&[0u8][..], fd).context("SCM_RIGHTS")?;
        }
        Ok(())
    }

    /// Receives what [`send`](Self::send) passed.
    pub(crate) fn receive(socket: &UnixStream) -> Result<Self> {
        let one = || {
            let (_, fd) = socket.recv_with_fd(&mut [0]).context("SCM_RIGHTS")?;
            fd.context("the other process ended before it passed its descriptors")
        };
        Ok(Self {
            vm: one()?,
            vcpu: one()?,
        })
    }

    /// Fails unless all calls fail with EIO; returns how many.
    pub(crate) fn ensure_refused(&self) -> Result<u64> {
        let calls = [
            (&self.vm, u64::from(KVM_GET_VM_CLOCK_GUEST), 0),
            (&self.vm, KVM_SET_VM_CLOCK_GUEST.into(), 0),
            (&self.vm, nr::KVM_CHECK_EXTENSION(), KVM_CAP_VM_CLOCK_GUEST),
            (&self.vcpu, KVM_GET_CLOCK_GUEST.into(), 0),
            (&self.vcpu, KVM_SET_CLOCK_GUEST.into(), 0),
            (&self.vcpu, nr::KVM_RUN(), 0),
        ];
        for (fd, request, arg) in calls {
            // SAFETY: The argument is a number or a null pointer.
            let ret = unsafe { ioctl_with_val(fd, request, arg.into()) };
            let error = io::Error::last_os_error();
            ensure!(
                ret < 0 && error.raw_os_error() == Some(libc::EIO),
                "ioctl {request:#x} of another process's VM returned {ret}, {error}, expected EIO"
            );
        }
        Ok(calls.len() as u64)
    }
}

/// This program in another process, which ends when this is dropped.
pub(crate) struct Process {
    child: Child,
    socket: UnixStream,
}

impl Process {
    /// Starts it in `role`; its standard input is the other end of [`socket`](Self::socket).
    pub(crate) fn start(role: &str) -> Result<Self> {
        let (socket, other) = UnixStream::pair().context("socketpair")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let child = Command::new(env::current_exe()?)
            .arg(format!("--as={role}"))
            .stdin(Stdio::from(OwnedFd::from(other)))
            .spawn()
            .context("cannot start another process")?;
        Ok(Self { child, socket })
    }

    pub(crate) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It usually has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The socket that [`Process::start`] gave this process.
pub(crate) fn socket() -> Result<UnixStream> {
    Ok(io::stdin().as_fd().try_clone_to_owned()?.into())
}

/// A process that makes all calls in a loop.
pub(crate) struct OtherProcess(Process);

impl OtherProcess {
    /// Passes it `vm` and `vcpu`; returns when it has begun.
    pub(crate) fn start(vm: &VmFd, vcpu: &VcpuFd) -> Result<Self> {
        let process = Process::start("other-process")?;
        Foreign::send(process.socket(), vm, vcpu)?;
        process
            .socket()
            .read_exact(&mut [0])
            .context("the other process sent nothing")?;
        Ok(Self(process))
    }

    /// Ends it; returns how many calls it made, all of which failed.
    pub(crate) fn end(mut self) -> Result<u64> {
        self.0.socket.shutdown(Shutdown::Write)?;
        let mut count = [0; 8];
        let received = self.0.socket.read_exact(&mut count);
        let status = self.0.child.wait()?;
        ensure!(status.success(), "the other process failed: {status}");
        received.context("the other process sent nothing")?;
        Ok(u64::from_ne_bytes(count))
    }
}

/// The process itself.
pub(crate) fn main() -> ExitCode {
    match refused() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("# {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn refused() -> Result<()> {
    let mut socket = socket()?;
    let foreign = Foreign::receive(&socket)?;
    let mut count = foreign.ensure_refused()?;
    socket.write_all(&[0])?;
    socket.set_nonblocking(true)?;
    // Until the other end is shut down.
    while !matches!(socket.read(&mut [0]), Ok(0)) {
        count += foreign.ensure_refused()?;
        // Leaves the CPUs to the other threads.
        std::thread::sleep(Duration::from_millis(1));
    }
    socket.set_nonblocking(false)?;
    Ok(socket.write_all(&u64::to_ne_bytes(count))?)
}
