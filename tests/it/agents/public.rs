//! The public port: what load balancers, monitoring and browsers see, and what they cannot do.

mod balancers;
mod empty;
mod frozen;
mod health;
mod http;
mod page;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::cluster::{Agent, Cluster, eventually, free_port};

/// A node's public port and agent check.
#[derive(Clone, Copy)]
pub struct Port {
    pub http: u16,
    pub check: u16,
}

/// Gives a node, whose configuration was written, its public ports.
pub fn open(c: &Cluster, node: &str) -> Port {
    let port = Port { http: free_port(), check: free_port() };
    let lines = format!(
        "public = \"127.0.0.1:{}\"\nagent-check = \"127.0.0.1:{}\"\nsocket = ",
        port.http, port.check
    );
    c.edit(node, "socket = ", &lines);
    port
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: String,
}

impl Port {
    pub fn connect(self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.http)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// What comes back for these bytes until the other side closes.
    pub fn raw(self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        to_end(&mut stream)
    }

    #[track_caller]
    pub fn ask(self, request: &str) -> Answer {
        let text = self.raw(request);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        Answer { status: status.unwrap(), head: head.to_lowercase(), body: body.to_owned() }
    }

    #[track_caller]
    pub fn get(self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    }

    /// Waits for a verdict of `/ha/health`, and gives its line.
    #[track_caller]
    pub fn wait_for(self, status: u16, part: &str, agent: &Agent) -> String {
        let mut last = None;
        let came = eventually(|| {
            let answer = self.get("/ha/health");
            let found = answer.status == status && answer.body.contains(part);
            last = Some(answer);
            found
        });
        let last = last.unwrap();
        assert!(came, "no {status} with {part}: {last:?}\n{:#}\n{}", agent.tree(), agent.log_tail());
        last.body
    }

    /// The line of the agent check.
    pub fn check(self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.check)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        to_end(&mut stream)
    }
}

/// Everything until the other side closes, also when it does so in anger.
pub fn to_end(stream: &mut TcpStream) -> String {
    let (mut all, mut part) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(n) => all.extend_from_slice(&part[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => break,
            Err(e) => panic!("{e}; so far: {}", String::from_utf8_lossy(&all)),
        }
    }
    String::from_utf8(all).unwrap()
}
