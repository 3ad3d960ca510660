// SPDX-License-Identifier: GPL-2.0-only

//! Connections that go wrong: the guest goes on at the source, exact, or runs at the destination,
//! and never at both; and the destination takes the next guest.

use crate::{
    proxy::{is_kind, Damage, Fault, Proxy, Sender},
    run, send, Destination,
};
use anyhow::{bail, ensure, Context, Result};
use clockguest::stream::Kind;
use kvm_clock_guest_selftests::ktap::{note, Case};
use std::{
    io::{Read, Write},
    net::TcpStream,
};

/// What becomes of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Never stopped, goes on at the source.
    Runs,
    /// Stopped, and goes on at the source with its clocks put back.
    Resumes,
    /// The source does not know, and lets it be; it runs at the destination.
    Gone,
    /// The source does not know, and lets it be; it does not run at the destination.
    Lost,
}

struct Row {
    sender: Sender,
    kind: Kind,
    damage: fn() -> Damage,
    /// In the reason that the source gives.
    why: &'static str,
    fate: Fate,
}

const fn row(
    sender: Sender,
    kind: Kind,
    damage: fn() -> Damage,
    why: &'static str,
    fate: Fate,
) -> Row {
    Row {
        sender,
        kind,
        damage,
        why,
        fate,
    }
}

const CUT: fn() -> Damage = || Damage::Cut;
const HANG_UP: fn() -> Damage = || Damage::HangUp;
const FLIP: fn() -> Damage = || Damage::Flip;
const VERSION: fn() -> Damage = || Damage::Version;
const RESET: fn() -> Damage = || Damage::Reset;
const TWICE: fn() -> Damage = || Damage::Twice;

use Fate::{Gone, Lost, Resumes, Runs};
use Sender::{Destination as Dst, Source as Src};

const ROWS: &[Row] = &[
    row(Src, Kind::Offer, CUT, "truncated", Runs),
    row(Src, Kind::Offer, HANG_UP, "truncated", Runs),
    row(Src, Kind::Offer, FLIP, "corrupted", Runs),
    row(Src, Kind::Offer, VERSION, "the stream has version", Runs),
    row(Src, Kind::Offer, TWICE, "replayed", Runs),
    row(Dst, Kind::Prepared, FLIP, "corrupted", Runs),
    row(Dst, Kind::Prepared, HANG_UP, "truncated", Runs),
    row(Dst, Kind::Pong, FLIP, "corrupted", Runs),
    row(Src, Kind::State, CUT, "truncated", Resumes),
    row(Src, Kind::State, HANG_UP, "truncated", Resumes),
    row(Src, Kind::State, FLIP, "corrupted", Resumes),
    row(Src, Kind::State, VERSION, "the stream has version", Resumes),
    row(Src, Kind::State, TWICE, "replayed", Resumes),
    row(Src, Kind::Memory, CUT, "truncated", Resumes),
    row(Src, Kind::Memory, FLIP, "corrupted", Resumes),
    row(
        Src,
        Kind::Memory,
        VERSION,
        "the stream has version",
        Resumes,
    ),
    row(Dst, Kind::Restored, CUT, "truncated", Resumes),
    row(Dst, Kind::Restored, FLIP, "corrupted", Resumes),
    row(
        Dst,
        Kind::Restored,
        VERSION,
        "the stream has version",
        Resumes,
    ),
    row(Dst, Kind::Restored, HANG_UP, "truncated", Resumes),
    // The destination says that it does not run it.
    row(Src, Kind::Go, CUT, "truncated", Resumes),
    row(Src, Kind::Go, FLIP, "corrupted", Resumes),
    row(Src, Kind::Go, HANG_UP, "may run there", Lost),
    // Its answer cannot be sent.
    row(Src, Kind::Go, RESET, "may run there", Gone),
    row(Dst, Kind::Running, FLIP, "may run there", Gone),
    row(Dst, Kind::Running, HANG_UP, "may run there", Gone),
];

pub(crate) fn cases() -> Vec<Case<Destination>> {
    let mut cases: Vec<_> = ROWS
        .iter()
        .map(|row| {
            let who = match row.sender {
                Src => "the source's",
                Dst => "the destination's",
            };
            let damage = (row.damage)();
            let name = format!("{who} {:?}: {damage:?}: {:?}", row.kind, row.fate);
            Case::new(name, |destination| check(destination, row))
        })
        .collect();
    cases.extend([
        Case::new("State of another session: Resumes", state_of_another),
        Case::new("a whole session replayed: refused", session_replayed),
    ]);
    cases
}

fn check(destination: &Destination, row: &Row) -> Result<()> {
    let fault = Fault {
        sender: row.sender,
        kind: row.kind,
        damage: (row.damage)(),
    };
    fails(destination, fault, row.why, row.fate)
}

/// A guest that meets `fault` has `fate`, and the next one arrives.
fn fails(destination: &Destination, fault: Fault, why: &str, fate: Fate) -> Result<()> {
    destination.forget();
    let proxy = Proxy::new(destination.address, Some(fault))?;
    let summary = run(&send(proxy.address))?;
    note(&summary.to_text(false));
    let aborted = summary.aborted.context("it was not aborted")?;
    ensure!(
        aborted.why.contains(why),
        "aborted because '{}'; '{why}' was expected",
        aborted.why
    );
    ensure!(summary.first_error.is_some(), "no error is reported");
    let expected = match fate {
        Runs => "was not stopped, and goes on here",
        Resumes => "goes on here, offsets and record bit-identical",
        Gone | Lost => "does not run here",
    };
    ensure!(
        aborted.guest.starts_with(expected),
        "the guest {}; '{expected}' was expected",
        aborted.guest
    );
    let is_exact = (fate == Resumes).then_some(true);
    ensure!(
        aborted.exact == is_exact,
        "exact: {:?}, {is_exact:?} was expected",
        aborted.exact
    );
    let said = destination.line()?;
    let runs_there = said.contains("runs here");
    ensure!(
        runs_there == (fate == Gone),
        "the guest {}, and the destination says '{said}'",
        aborted.guest
    );
    next_arrives(destination)
}

fn next_arrives(destination: &Destination) -> Result<()> {
    let summary = run(&send(destination.address))?;
    if let Some(error) = summary.first_error {
        bail!("the next guest: {error}");
    }
    // What there is left to say about the connection before comes first.
    while !destination.line()?.contains("runs here") {}
    Ok(())
}

/// What the source sends in a session that succeeds.
fn recorded(destination: &Destination) -> Result<Vec<Vec<u8>>> {
    let proxy = Proxy::new(destination.address, None)?;
    let summary = run(&send(proxy.address))?;
    if let Some(error) = summary.first_error {
        bail!("{error}");
    }
    Ok(proxy.recorded())
}

fn state_of_another(destination: &Destination) -> Result<()> {
    let frames = recorded(destination)?;
    let state = frames
        .into_iter()
        .find(|frame| is_kind(frame, Kind::State))
        .context("no State was sent")?;
    let fault = Fault {
        sender: Src,
        kind: Kind::State,
        damage: Damage::Replayed(state),
    };
    fails(destination, fault, "replayed", Resumes)
}

/// Nobody sends a guest here: it is what somebody recorded, byte for byte.
fn session_replayed(destination: &Destination) -> Result<()> {
    destination.forget();
    let frames = recorded(destination)?;
    let said = destination.line()?;
    ensure!(said.contains("runs here"), "the destination says '{said}'");

    let mut stream = TcpStream::connect(destination.address)?;
    stream.write_all(&frames.concat())?;
    // Until the destination hangs up.
    let _ = stream.read_to_end(&mut Vec::new());
    let said = destination.line()?;
    ensure!(
        said.contains("the stream was replayed"),
        "the destination says '{said}'"
    );
    next_arrives(destination)
}
