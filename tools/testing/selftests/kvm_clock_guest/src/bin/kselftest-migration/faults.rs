// SPDX-License-Identifier: GPL-2.0-only

//! Connections that fail: the guest continues exactly at the source, or runs at the destination,
//! and never at both. The destination accepts the next guest.

use crate::{
    proxy::{is_kind, Damage, Fault, Proxy, Sender},
    run, send, Server,
};
use clockguest::stream::Kind;
use kvm_clock_guest_selftests::prelude::*;
use std::{
    io::{Read, Write},
    net::TcpStream,
};

/// Where the guest runs afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// At the source, which never stopped it.
    Runs,
    /// At the source, which stopped it and then restored its clocks.
    Resumes,
    /// At the destination; the source does not know this, and does not run it.
    Gone,
    /// Nowhere; the source does not know this, and does not run it.
    Lost,
}

impl Fate {
    fn text(self) -> &'static str {
        match self {
            Self::Runs => "the guest keeps running",
            Self::Resumes => "the guest resumes at the source",
            Self::Gone => "the guest runs at the destination",
            Self::Lost => "the guest runs nowhere",
        }
    }
}

struct Row {
    sender: Sender,
    kind: Kind,
    damage: fn() -> Damage,
    /// A part of the reason that the source reports.
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
    // The destination reports that it does not run the guest.
    row(Src, Kind::Go, CUT, "truncated", Resumes),
    row(Src, Kind::Go, FLIP, "corrupted", Resumes),
    row(Src, Kind::Go, HANG_UP, "may run there", Lost),
    // The destination cannot send its answer.
    row(Src, Kind::Go, RESET, "may run there", Gone),
    row(Dst, Kind::Running, FLIP, "may run there", Gone),
    row(Dst, Kind::Running, HANG_UP, "may run there", Gone),
];

pub(crate) fn cases() -> Vec<Case<Server>> {
    let mut cases: Vec<_> = ROWS
        .iter()
        .map(|row| {
            let sender = match row.sender {
                Src => "source",
                Dst => "destination",
            };
            let (damage, fate) = ((row.damage)().text(), row.fate.text());
            let name = format!("{:?} from the {sender} {damage}: {fate}", row.kind);
            Case::new(name, |destination| check(destination, row))
        })
        .collect();
    cases.extend([
        Case::new(
            "State from the source is of another session: the guest resumes at the source",
            state_of_another,
        ),
        Case::new("a whole session replayed: refused", session_replayed),
    ]);
    cases
}

fn check(destination: &Server, row: &Row) -> Result<()> {
    let fault = Fault {
        sender: row.sender,
        kind: row.kind,
        damage: (row.damage)(),
    };
    fails(destination, fault, row.why, row.fate)
}

/// Fails unless a guest whose connection has `fault` meets `fate`, and the next one arrives.
fn fails(destination: &Server, fault: Fault, why: &str, fate: Fate) -> Result<()> {
    destination.forget();
    let proxy = Proxy::new(destination.address, Some(fault))?;
    let summary = run(&send(proxy.address))?;
    note!("{}", summary.to_text(false));
    let aborted = summary.aborted.context("the migration was not aborted")?;
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
    ensure_eq!(aborted.exact, is_exact, "exact");
    let line = destination.line()?;
    let runs_there = line.contains("runs here");
    ensure!(
        runs_there == (fate == Gone),
        "the guest {}, and the destination reports '{line}'",
        aborted.guest
    );
    next_arrives(destination)
}

fn next_arrives(destination: &Server) -> Result<()> {
    let summary = run(&send(destination.address))?;
    if let Some(error) = summary.first_error {
        bail!("the next guest: {error}");
    }
    // Lines about the former connection come first.
    while !destination.line()?.contains("runs here") {}
    Ok(())
}

/// The frames that the source sends in a successful session.
fn recorded(destination: &Server) -> Result<Vec<Vec<u8>>> {
    let proxy = Proxy::new(destination.address, None)?;
    let summary = run(&send(proxy.address))?;
    if let Some(error) = summary.first_error {
        bail!("{error}");
    }
    Ok(proxy.recorded())
}

fn state_of_another(destination: &Server) -> Result<()> {
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

/// Sends the recorded bytes of a former session, without a guest.
fn session_replayed(destination: &Server) -> Result<()> {
    destination.forget();
    let frames = recorded(destination)?;
    let line = destination.line()?;
    ensure!(
        line.contains("runs here"),
        "the destination reports '{line}'"
    );

    let mut stream = TcpStream::connect(destination.address)?;
    stream.write_all(&frames.concat())?;
    // Until the destination hangs up.
    let _ = stream.read_to_end(&mut Vec::new());
    let line = destination.line()?;
    ensure!(
        line.contains("the stream was replayed"),
        "the destination reports '{line}'"
    );
    next_arrives(destination)
}
