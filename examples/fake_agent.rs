//! What does convene need from the machine it asks from? A Consul server that is none, for asking it from an empty root.
//!
//! Takes an address of loopback, listens there on Consul's default ports (8300, 8500), and answers `/v1/status/leader` and
//! `/v1/status/peers` as a server of a formed cluster does. Writes `ready` once it listens, and runs until it is killed.
//! Ends with 1 when the address is none or its ports are taken.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;
use std::{io, thread};

/// Consul's server port; only that it is open counts.
const SERVER: u16 = 8300;
/// Consul's HTTP port.
const HTTP: u16 = 8500;
/// How long a caller may take over a line.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let Some(ip) = std::env::args().nth(1).and_then(|word| word.parse::<IpAddr>().ok()).filter(IpAddr::is_loopback)
    else {
        eprintln!("fake_agent: the one argument is an address of loopback, such as 127.0.0.9");
        return ExitCode::FAILURE;
    };
    match listen(ip) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fake_agent: could not play a server at {ip}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn listen(ip: IpAddr) -> io::Result<()> {
    let server = TcpListener::bind((ip, SERVER))?;
    let http = TcpListener::bind((ip, HTTP))?;
    println!("ready");
    thread::spawn(move || server.incoming().for_each(drop));
    for stream in http.incoming() {
        let stream = stream?;
        // A caller that goes away is no failure of the server.
        thread::spawn(move || answer(stream, ip));
    }
    Ok(())
}

/// Answers one request and closes.
fn answer(mut stream: TcpStream, ip: IpAddr) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    // The head must be read whole: closing with unread bytes would reset the connection under the answer.
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let (status, body) = match request.split_whitespace().nth(1) {
        Some("/v1/status/leader") => ("200 OK", format!("\"{ip}:{SERVER}\"")),
        Some("/v1/status/peers") => ("200 OK", format!("[\"{ip}:{SERVER}\"]")),
        _ => ("404 Not Found", String::new()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
