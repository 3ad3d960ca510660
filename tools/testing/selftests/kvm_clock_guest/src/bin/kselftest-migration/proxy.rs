// SPDX-License-Identifier: GPL-2.0-only

//! A connection between source and destination, which damages one frame on the way.

use clockguest::stream::{Kind, VERSION};
use kvm_clock_guest_selftests::prelude::*;
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{Arc, Mutex},
    thread::spawn,
};

// Of the frame's header, see `clockguest::stream`.
const HEADER: usize = 36;
const VERSION_AT: usize = 8;
const KIND_AT: usize = 12;
const LENGTH_AT: usize = 28;

/// The frame's sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    Source,
    Destination,
}

/// How the proxy damages a frame.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    /// The sender's direction ends in the middle of the frame.
    Cut,
    /// The connection ends before the frame, in both directions.
    HangUp,
    /// The frame arrives, then the connection is reset.
    Reset,
    /// One bit of its last byte is flipped.
    Flip,
    /// The frame has the format's next version.
    Version,
    /// The frame arrives twice.
    Twice,
    /// A frame of another session replaces it.
    Replayed(Vec<u8>),
}

impl Damage {
    /// What happens to the frame.
    pub(crate) fn text(&self) -> &'static str {
        match self {
            Self::Cut => "ends early",
            Self::HangUp => "never arrives",
            Self::Reset => "arrives before a reset",
            Self::Flip => "has a flipped bit",
            Self::Version => "has another version",
            Self::Twice => "arrives twice",
            Self::Replayed(_) => "is of another session",
        }
    }
}

/// A damage to the first frame of a kind.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) sender: Sender,
    pub(crate) kind: Kind,
    pub(crate) damage: Damage,
}

/// All frames of one direction.
type Record = Arc<Mutex<Vec<Vec<u8>>>>;

/// A listening proxy, for one connection.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    from_source: Record,
}

impl Proxy {
    /// Forwards one connection to `destination`, with `fault`.
    pub(crate) fn new(destination: SocketAddr, fault: Option<Fault>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("proxy: listen")?;
        let address = listener.local_addr()?;
        let from_source = Record::default();
        let record = Arc::clone(&from_source);
        spawn(move || {
            let connect = || -> std::io::Result<_> {
                let (source, _) = listener.accept()?;
                let destination = TcpStream::connect(destination)?;
                source.set_nodelay(true)?;
                destination.set_nodelay(true)?;
                Ok((source, destination))
            };
            // The source notices the failure itself.
            let Ok((source, destination)) = connect() else {
                return;
            };
            let of = |sender| fault.clone().filter(|fault| fault.sender == sender);
            let back = Pump::new(
                &destination,
                &source,
                of(Sender::Destination),
                Record::default(),
            );
            let there = Pump::new(&source, &destination, of(Sender::Source), record);
            if let (Ok(back), Ok(there)) = (back, there) {
                spawn(|| back.run());
                there.run();
            }
        });
        Ok(Self {
            address,
            from_source,
        })
    }

    /// The frames that the source sent.
    pub(crate) fn recorded(&self) -> Vec<Vec<u8>> {
        self.from_source.lock().expect("the proxy panicked").clone()
    }
}

/// One direction.
struct Pump {
    from: TcpStream,
    to: TcpStream,
    fault: Option<Fault>,
    record: Record,
}

impl Pump {
    fn new(
        from: &TcpStream,
        to: &TcpStream,
        fault: Option<Fault>,
        record: Record,
    ) -> std::io::Result<Self> {
        Ok(Self {
            from: from.try_clone()?,
            to: to.try_clone()?,
            fault,
            record,
        })
    }

    /// Forwards frames until a side or the fault closes the connection.
    fn run(mut self) {
        while let Some(frame) = self.next_frame() {
            self.record
                .lock()
                .expect("the other direction panicked")
                .push(frame.clone());
            let kind = number_at(&frame, KIND_AT);
            let hit = self.fault.take_if(|fault| fault.kind as u32 == kind);
            let continues = match hit {
                Some(fault) => self.pass_damaged(&fault.damage, frame),
                None => self.to.write_all(&frame).is_ok(),
            };
            if !continues {
                break;
            }
        }
        // Either may be closed already.
        let _ = self.to.shutdown(Shutdown::Write);
    }

    /// Forwards a frame with damage; returns whether the direction stays open.
    fn pass_damaged(&mut self, damage: &Damage, mut frame: Vec<u8>) -> bool {
        match damage {
            Damage::Cut => {
                let _ = self.to.write_all(&frame[..frame.len() / 2]);
                return false;
            }
            Damage::HangUp => {
                let _ = self.to.shutdown(Shutdown::Both);
                let _ = self.from.shutdown(Shutdown::Both);
                return false;
            }
            Damage::Reset => {
                let _ = self.to.write_all(&frame);
                reset(&self.to);
                let _ = self.from.shutdown(Shutdown::Both);
                return false;
            }
            Damage::Flip => {
                if let Some(last) = frame.last_mut() {
                    *last ^= 0x10;
                }
            }
            Damage::Version => {
                let next = (VERSION + 1).to_le_bytes();
                frame[VERSION_AT..VERSION_AT + 4].copy_from_slice(&next);
            }
            Damage::Twice => frame.extend(frame.clone()),
            Damage::Replayed(other) => frame.clone_from(other),
        }
        self.to.write_all(&frame).is_ok()
    }

    fn next_frame(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; HEADER];
        self.from.read_exact(&mut frame).ok()?;
        // CAST: usize has 64 bits on x86-64.
        frame.resize(HEADER + number_at(&frame, LENGTH_AT) as usize, 0);
        self.from.read_exact(&mut frame[HEADER..]).ok()?;
        Some(frame)
    }
}

/// Resets a connection, so that the other end can no longer send.
fn reset(stream: &TcpStream) {
    let nowhere = libc::sockaddr {
        // CAST: 0.
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    // CAST: Some bytes.
    let len = size_of_val(&nowhere) as libc::socklen_t;
    // SAFETY: The address is valid for reads of its length.
    unsafe { libc::connect(stream.as_raw_fd(), &nowhere, len) };
}

/// Whether `frame` is of `kind`.
pub(crate) fn is_kind(frame: &[u8], kind: Kind) -> bool {
    number_at(frame, KIND_AT) == kind as u32
}

fn number_at(frame: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
}
