// SPDX-License-Identifier: GPL-2.0-only

//! The other host: each request and each answer is a line of JSON, with a connection for each.

use crate::watch::{saved, watch, Outcome};
use kvm_clock_guest_selftests::prelude::*;
use serde::{de::DeserializeOwned, Deserialize, Serialize};
use std::{
    convert::Infallible,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
};

const PORT: u16 = 4001;
/// How long the other host may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
enum Request {
    Saved,
    Watch(Box<[VmClock; 2]>),
}

/// An answer, or why there is none.
type Answer<T> = std::result::Result<T, String>;

/// The other host.
pub(crate) struct Peer(Ipv4Addr);

impl Peer {
    /// Waits until the other host serves.
    pub(crate) fn connect(address: Ipv4Addr) -> Result<Self> {
        wait_until("the other host answers", PATIENCE, || {
            Ok(TcpStream::connect((address, PORT)).is_ok())
        })?;
        Ok(Self(address))
    }

    /// The clocks of a guest of the other host.
    pub(crate) fn saved(&self) -> Result<VmClock> {
        self.ask(&Request::Saved)
    }

    /// Has the other host SET and watch `clocks`.
    pub(crate) fn watch(&self, clocks: [VmClock; 2]) -> Result<[Outcome; 2]> {
        self.ask(&Request::Watch(Box::new(clocks)))
    }

    fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T> {
        let mut stream = TcpStream::connect((self.0, PORT))?;
        write_line(&mut stream, request)?;
        let answer: Answer<T> = read_line(&stream)?;
        answer.map_err(|why| anyhow::anyhow!("the other host: {why}"))
    }
}

/// Answers requests until the host is turned off.
pub(crate) fn serve(kvm: &Kvm) -> Result<Infallible> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    loop {
        let (mut stream, _) = listener.accept()?;
        // One that only looks whether somebody serves sends none.
        match read_line(&stream) {
            Ok(Request::Saved) => answer(&mut stream, saved(kvm)),
            Ok(Request::Watch(clocks)) => answer(&mut stream, watch(kvm, *clocks)),
            Err(_) => Ok(()),
        }?;
    }
}

fn answer<T: Serialize>(stream: &mut TcpStream, result: Result<T>) -> Result<()> {
    write_line(stream, &result.map_err(|error| format!("{error:#}")))
}

fn write_line<T: Serialize>(stream: &mut TcpStream, value: &T) -> Result<()> {
    let mut line = serde_json::to_string(value)?;
    line.push('\n');
    Ok(stream.write_all(line.as_bytes())?)
}

fn read_line<T: DeserializeOwned>(stream: &TcpStream) -> Result<T> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
