//! This machine as seen from zones, and zones as seen from it: a small HTTP server, a small HTTP
//! client, free ports.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// A loopback HTTP server that answers everything with one text; it ends with the process.
#[derive(Debug)]
pub struct Server {
    port: u16,
}

impl Server {
    /// # Panics
    /// There is no port to be had.
    #[must_use]
    pub fn answering(text: &'static str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("no loopback port");
        let port = listener
            .local_addr()
            .expect("a bound listener has an address")
            .port();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(&stream, text);
            }
        });
        Self { port }
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn answer(mut stream: &TcpStream, text: &str) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let length = text.len();
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    )
}

/// Asks a loopback port for a page; gives the body of a good answer.
///
/// # Errors
/// There is no answer, or one that is not 200.
pub fn get(port: u16, path: &str) -> io::Result<String> {
    get_with(port, path, "")
}

/// As [`get`], with more header lines, each with its line end.
///
/// # Errors
/// As [`get`].
pub fn get_with(port: u16, path: &str, headers: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::other("no answer"))?;
    if head.split(' ').nth(1) != Some("200") {
        return Err(io::Error::other(head.to_owned()));
    }
    Ok(body.to_owned())
}

/// Asks until there is a good answer: the far end listens some time after it was started, and tells
/// nobody when it does.
///
/// # Panics
/// There is none within `limit`.
#[track_caller]
#[must_use]
pub fn get_in_time(port: u16, path: &str, limit: Duration) -> String {
    let deadline = Instant::now() + limit;
    loop {
        match get(port, path) {
            Ok(body) => return body,
            Err(error) => assert!(
                Instant::now() < deadline,
                "no good answer from port {port}: {error}"
            ),
        }
        thread::sleep(PAUSE);
    }
}

/// A loopback port that was free a moment ago.
///
/// # Panics
/// There is none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("no loopback port");
    listener
        .local_addr()
        .expect("a bound listener has an address")
        .port()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_gets_what_the_server_answers() {
        assert_eq!(get(Server::answering("hello").port(), "/").unwrap(), "hello");
        assert!(get(free_port(), "/").is_err());
    }
}
