// SPDX-License-Identifier: GPL-2.0-only

//! Clients that waste `clockguest serve`'s time, a shortage of file descriptors, and a connection
//! through a command.

use crate::{migrate_to, run, Server};
use clockguest::{
    migration::{Destination, Transport},
    stream::{Kind, Reader, Writer},
};
use kvm_clock_guest_selftests::prelude::*;
use serde_json::{json, Value};
use std::{
    env,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStderr, Command, Stdio},
};

/// Of connections; the time limit of a message is much longer.
const DEADLINE: Duration = Duration::from_secs(4);

pub(crate) fn cases<F: 'static>() -> Vec<Case<F>> {
    vec![
        Case::new("a client that only pings is refused", |_| only_pings()),
        Case::new("a client that sends a byte now and then is cut off", |_| {
            byte_by_byte()
        }),
        Case::new("a client that pings now and then is cut off", |_| {
            now_and_then()
        }),
        Case::new("a failing accept() does not end the server", |_| {
            no_descriptors()
        }),
        Case::new("through a command: there and back is exact", |_| {
            through_command()
        }),
        Case::new(
            "through a command that fails: the reason is reported",
            |_| through_failing_command(),
        ),
    ]
}

fn server() -> Result<Server> {
    Server::new(Transport::Listen("0".into()), DEADLINE)
}

/// Connects, and returns both directions after the Hello of each side.
fn connect(address: SocketAddr) -> Result<(Reader<TcpStream>, Writer<TcpStream>)> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(crate::PATIENCE))?;
    let mut reader = Reader::new(stream.try_clone()?, None);
    let hello: Value = reader.read(Kind::Hello)?;
    let mut writer = Writer::new(stream, reader.session().context("no session")?);
    writer.write(Kind::Hello, &hello)?;
    Ok((reader, writer))
}

/// Offers a guest, so that pings are due.
fn offer(address: SocketAddr) -> Result<(Reader<TcpStream>, Writer<TcpStream>)> {
    let (mut reader, mut writer) = connect(address)?;
    let khz = Vm::empty(&Kvm::new()?, 1)?.tsc_khz()?;
    writer.write(Kind::Offer, &json!({"vcpus": 1, "tsc_khz": khz}))?;
    reader.read_raw(Kind::Prepared)?;
    Ok((reader, writer))
}

/// The server has reported a line with `text`, and accepts the next connection.
fn ended(server: &Server, text: &str) -> Result<()> {
    let line = server.line()?;
    ensure!(
        line.contains(text),
        "the server reports '{line}', not '{text}'"
    );
    connect(server.address).context("the next client")?;
    Ok(())
}

fn only_pings() -> Result<()> {
    // Only the number of pings can end it.
    let server = Server::new(Transport::Listen("0".into()), crate::PATIENCE)?;
    let (mut reader, mut writer) = offer(server.address)?;
    let mut pongs = 0;
    let refused = loop {
        writer.write(Kind::Ping, &json!({}))?;
        let frame = reader.next_frame()?;
        if frame.is(Kind::Refused) {
            break frame.message::<Value>(Kind::Refused)?;
        }
        pongs += 1;
        ensure!(pongs <= 1_000, "{pongs} pings were answered");
    };
    let why = refused["why"].to_string();
    ensure!(why.contains("more than 1000 pings"), "refused: {why}");
    ended(&server, "more than 1000 pings")
}

fn now_and_then() -> Result<()> {
    let server = server()?;
    let (mut reader, mut writer) = offer(server.address)?;
    let began = Instant::now();
    let refused = loop {
        let elapsed = began.elapsed();
        ensure!(
            elapsed < crate::PATIENCE,
            "it is still served after {elapsed:?}"
        );
        sleep(Duration::from_millis(200));
        writer.write(Kind::Ping, &json!({}))?;
        let frame = reader.next_frame()?;
        if frame.is(Kind::Refused) {
            break frame.message::<Value>(Kind::Refused)?;
        }
    };
    let (why, text) = (refused["why"].to_string(), "took longer than 4s");
    ensure!(why.contains(text), "refused: {why}");
    ended(&server, text)
}

fn byte_by_byte() -> Result<()> {
    let server = server()?;
    let began = Instant::now();
    let mut stream = TcpStream::connect(server.address)?;
    // The beginning of a frame that would be valid, never its end.
    for byte in *b"CLKGUEST\x02\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01" {
        if stream.write_all(&[byte]).is_err() {
            break;
        }
        ensure!(
            began.elapsed() < crate::PATIENCE,
            "after {:?} the server still listens",
            began.elapsed()
        );
        sleep(Duration::from_millis(300));
    }
    ended(&server, "took longer than 4s")
}

/// `clockguest`, which is beside this program.
fn clockguest() -> Result<String> {
    let path = env::current_exe()?.with_file_name("clockguest");
    ensure!(path.exists(), "no {}", path.display());
    Ok(path.display().to_string())
}

/// `clockguest serve` in a process of its own.
struct Process {
    child: Child,
    lines: BufReader<ChildStderr>,
}

impl Process {
    fn new() -> Result<Self> {
        let mut child = Command::new(clockguest()?)
            .args(["serve", "--listen", "0"])
            .stderr(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stderr.take().context("no stderr")?);
        Ok(Self { child, lines })
    }

    /// The next line that contains `text`, after that.
    fn wait_for(&mut self, text: &str) -> Result<String> {
        loop {
            let mut line = String::new();
            ensure!(
                self.lines.read_line(&mut line)? > 0,
                "the server ended, and did not report '{text}'"
            );
            if let Some((_, rest)) = line.trim_end().split_once(text) {
                return Ok(rest.to_owned());
            }
        }
    }

    /// Lets it have file descriptors below `limit` only.
    fn limit_descriptors(&self, limit: u64) -> Result<()> {
        let limit = libc::rlimit {
            rlim_cur: limit,
            rlim_max: 1024,
        };
        // CAST: A process ID.
        let pid = self.child.id() as libc::pid_t;
        let none = std::ptr::null_mut();
        // SAFETY: `limit` is valid for reads, and no old limit is requested.
        let done = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &limit, none) };
        ensure!(done == 0, "prlimit: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn no_descriptors() -> Result<()> {
    let mut server = Process::new()?;
    let address = server.wait_for("listening on ")?.parse()?;
    server.limit_descriptors(3)?;
    // It has reserved a descriptor for this one, but has none to send with.
    let _first = TcpStream::connect(address)?;
    server.wait_for("Too many open files")?;
    server.wait_for("accept(): ")?;
    server.limit_descriptors(1024)?;
    connect(address).context("the next client")?;
    Ok(())
}

fn via(command: &str) -> Destination {
    Destination::Command(command.to_owned())
}

fn through_command() -> Result<()> {
    let mut config = migrate_to(via(&format!("{} serve --stdio", clockguest()?)));
    config.round_trips = 2;
    let summary = run(&config)?;
    note!("{}", summary.to_text(true));
    if let Some(error) = &summary.first_error {
        bail!("{error}");
    }
    ensure_eq!(summary.moves_done, 4, "moves");
    ensure!(summary.record_bit_identical, "the record changed");
    Ok(())
}

fn through_failing_command() -> Result<()> {
    // The other end has no KVM, as far as it knows.
    let command = format!(
        "unshare -m sh -c 'mount -t tmpfs none /dev; {} serve --stdio'",
        clockguest()?
    );
    let error = run(&migrate_to(via(&command))).err().context("no error")?;
    let text = format!("{error:#}");
    note!("{text}");
    for expected in ["ended with exit status: 4", "cannot open /dev/kvm"] {
        ensure!(text.contains(expected), "'{expected}' is not in '{text}'");
    }
    Ok(())
}
