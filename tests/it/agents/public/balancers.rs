//! The packaged configurations, in the real programs, in front of real agents.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::super::cluster::{Agent, Cluster, eventually, free_port, until};
use super::{open, to_end};

/// The nodes' addresses; loopback has many.
const NODES: [(&str, &str); 2] = [("a", "127.0.0.11"), ("b", "127.0.0.12")];

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A source and a mirror with a server each that counts its requests.
struct Site {
    c: Cluster,
    _a: Agent,
    b: Agent,
    /// Of the public ports, agent checks and servers.
    ports: [u16; 3],
    served: [Arc<AtomicUsize>; 2],
}

impl Site {
    fn new() -> Self {
        let c = Cluster::local();
        let ports = [free_port(), free_port(), free_port()];
        c.source("a", "");
        c.scratch.write("a/tree/x", "1");
        c.mirror("b", "a", "drift = \"report\"\n");
        c.add("b", "[health]\ndrain-on = [\"drift\"]\n");
        for (node, at) in NODES {
            let lines =
                format!("public = \"{at}:{}\"\nagent-check = \"{at}:{}\"\nsocket = ", ports[0], ports[1]);
            c.edit(node, "socket = ", &lines);
        }
        let (a, b) = (c.start("a"), c.start("b"));
        c.assert_converges(&a, &b, ("a", "b"));
        let served = NODES.map(|(_, at)| server(at, ports[2]));
        Self { c, _a: a, b, ports, served }
    }

    fn served(&self) -> [usize; 2] {
        self.served.each_ref().map(|n| n.load(Ordering::SeqCst))
    }

    /// Makes the mirror unfit, or fit again.
    fn spoil(&self, spoilt: bool) {
        self.c.scratch.write("b/tree/x", if spoilt { "2" } else { "1" });
        if !spoilt {
            // as it was, to the mtime
            let of = std::fs::metadata(self.c.tree("a").join("x")).unwrap().modified().unwrap();
            let file = std::fs::File::options().write(true).open(self.c.tree("b").join("x")).unwrap();
            file.set_modified(of).unwrap();
        }
        until("the verdict", || self.b.own()["faults"].as_array().unwrap().is_empty() != spoilt);
    }

    /// A packaged file with our addresses in it.
    fn config(&self, file: &str, replace: &[(&str, String)]) -> std::path::PathBuf {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(file);
        let mut text = std::fs::read_to_string(from).unwrap();
        for (old, new) in replace {
            assert!(text.contains(old), "{file} has no {old}");
            text = text.replace(old, new);
        }
        let to = self.c.path().join(file);
        std::fs::write(&to, text).unwrap();
        to
    }
}

/// A server that counts what it is asked.
fn server(at: &str, port: u16) -> Arc<AtomicUsize> {
    let listener = TcpListener::bind((at, port)).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let its = count.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            if stream.read(&mut head).unwrap_or(0) > 0 {
                its.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello");
            }
        }
    });
    count
}

/// The status of one request; `None` while nobody listens.
fn request(port: u16) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    to_end(&mut stream).split(' ').nth(1)?.parse().ok()
}

fn haproxy(config: &Path) -> Running {
    let log = std::fs::File::create(config.with_extension("log")).unwrap();
    let child =
        Command::new("haproxy").arg("-db").arg("-f").arg(config).stdin(Stdio::null()).stderr(log).spawn();
    Running(child.expect("haproxy, which tests/run installs"))
}

#[test]
fn haproxy_drains_an_unfit_node_and_takes_it_back_and_no_request_fails() {
    let site = Site::new();
    let front = free_port();
    let [http, check, server] = site.ports;
    let config = site.config(
        "haproxy.cfg",
        &[
            ("bind :8000", format!("bind 127.0.0.1:{front}")),
            ("port 7421", format!("port {http}")),
            ("agent-port 7422", format!("agent-port {check}")),
            ("192.0.2.11:8080", format!("{}:{server}", NODES[0].1)),
            ("192.0.2.12:8080", format!("{}:{server}", NODES[1].1)),
        ],
    );
    let _haproxy = haproxy(&config);
    let ask = || assert_eq!(request(front), Some(200));
    until("haproxy", || request(front) == Some(200));
    let both = || {
        let before = site.served();
        (0..4).for_each(|_| ask());
        let now = site.served();
        now[0] > before[0] && now[1] > before[1]
    };
    until("requests at both", both);
    site.spoil(true);
    until("the drain", || {
        let before = site.served()[1];
        (0..4).for_each(|_| ask());
        site.served()[1] == before
    });
    // not one, as long as it lasts
    let before = site.served()[1];
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        ask();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(site.served()[1], before, "a request reached the node while it was out");
    site.spoil(false);
    until("requests at both again", both);
}

/// What HAProxy says on its socket.
fn haproxy_says(socket: &Path, command: &str) -> String {
    let Ok(mut stream) = UnixStream::connect(socket) else { return String::new() };
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(format!("{command}\n").as_bytes()).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

/// The backends and their one server's operational state (0: stopped, 2: running), administrative state and weight.
fn servers(socket: &Path) -> Vec<[String; 4]> {
    let said = haproxy_says(socket, "show servers state");
    let mut lines = said.lines().skip(1);
    let names: Vec<&str> = lines.next().unwrap_or_default().trim_start_matches("# ").split(' ').collect();
    let fields = ["be_name", "srv_op_state", "srv_admin_state", "srv_uweight"];
    let field = |line: &str, name| {
        let at = names.iter().position(|n| *n == name).unwrap();
        line.split(' ').nth(at).unwrap().to_owned()
    };
    lines.filter(|line| !line.is_empty()).map(|line| fields.map(|name| field(line, name))).collect()
}

/// Without the check by HTTP, which would take the node out whatever the agent check says.
#[test]
fn haproxy_takes_a_faulty_node_out_by_the_agent_check_alone_and_obeys_no_word_of_the_reason() {
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/x", "1");
    let mood = c.path().join("mood");
    let script = format!("if [ -e {0} ]; then cat {0} >&2; exit 1; fi", mood.display());
    let refresh = "[[tree.t.refresh]]\nname = \"srv\"\nretry-max = \"100ms\"\nexec = [\"/bin/sh\", \"-c\", ";
    c.mirror("b", "a", &format!("{refresh}{script:?}]\n"));
    c.add("b", "[health]\nrefresh-failures = 1\n");
    let port = open(&c, "b");
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));

    let (front, behind) = (free_port(), free_port());
    server("127.0.0.1", behind);
    let socket = c.path().join("haproxy.sock");
    let config = c.path().join("alone.cfg");
    let check = format!("agent-check agent-port {} agent-inter 50ms", port.check);
    let lines = format!(
        "global\n stats socket {} level admin\ndefaults\n mode http\n timeout connect 2s\n timeout client 9s\n timeout server 9s\n\
         frontend web\n bind 127.0.0.1:{front}\n default_backend with-tcp\n\
         backend with-tcp\n server b 127.0.0.1:{behind} check {check}\n\
         backend alone\n server b 127.0.0.1:{behind} {check}\n",
        socket.display()
    );
    std::fs::write(&config, lines).unwrap();
    let _haproxy = haproxy(&config);
    let are = |state: &str| {
        let all = servers(&socket);
        let as_meant = |[_, op, admin, weight]: &[String; 4]| (op == state) && admin == "0" && weight == "1";
        all.len() == 2 && all.iter().all(as_meant)
    };
    until("both servers", || are("2") && request(front) == Some(200));

    std::fs::write(&mood, "says0").unwrap();
    c.scratch.write("a/tree/x", "2");
    until("the fault", || port.check().contains("says0"));
    for (i, words) in [
        "the service is up but not yet warm",
        "more than max-delete = 25% allows",
        "put it in maint now, or drain, or stopped",
        "up ready",
        ",up,ready,50%,maxconn:1",
        "# up #ready 10%",
        "%s%n \"up\" \\ 'ready'",
        &"up 25% ".repeat(40),
    ]
    .iter()
    .enumerate()
    {
        // by a rename, so that the script never sees half of it
        let next = c.path().join("next mood");
        std::fs::write(&next, format!("says{i} {words}")).unwrap();
        std::fs::rename(&next, &mood).unwrap();
        let seen = format!("says{i} ");
        until(words, || haproxy_says(&socket, "show stat").matches(&seen).count() == 2);
        let all = servers(&socket);
        assert!(are("0"), "{words}: {all:?}\n{}", haproxy_says(&socket, "show stat"));
        assert_eq!(request(front), Some(503), "{words}");
    }
    std::fs::remove_file(&mood).unwrap();
    until("both servers again", || are("2") && request(front) == Some(200));
}

#[test]
fn nginx_in_front_of_an_unfit_node_answers_503_until_it_is_fit_again() {
    let site = Site::new();
    let front = free_port();
    let [http, _, server] = site.ports;
    let dir = site.c.path().join("nginx");
    std::fs::create_dir(&dir).unwrap();
    let config = site.config(
        "nginx.conf",
        &[
            ("listen 8000", format!("listen 127.0.0.1:{front}")),
            ("127.0.0.1:7421", format!("{}:{http}", NODES[1].1)),
            ("127.0.0.1:8080", format!("{}:{server}", NODES[1].1)),
            ("/var/cache/nginx/syncagent", dir.join("cache").display().to_string()),
            (
                "http {",
                format!(
                    "pid {0}/pid;\nerror_log {0}/error.log;\nhttp {{\naccess_log off;\nclient_body_temp_path {0}/1;\n\
                     proxy_temp_path {0}/2;\nfastcgi_temp_path {0}/3;\nuwsgi_temp_path {0}/4;\nscgi_temp_path {0}/5;",
                    dir.display()
                ),
            ),
        ],
    );
    let mut command = Command::new("nginx");
    // one process, which ends with the test
    command.args(["-g", "daemon off; master_process off;", "-e", "stderr", "-c"]).arg(config);
    let log = std::fs::File::create(site.c.path().join("nginx.log")).unwrap();
    let child = command.stdin(Stdio::null()).stderr(log).spawn().expect("nginx, which tests/run installs");
    let nginx = Running(child);
    until("nginx", || request(front) == Some(200));
    site.spoil(true);
    until("503", || request(front) == Some(503));
    let before = site.served()[1];
    for _ in 0..50 {
        assert_eq!(request(front), Some(503));
    }
    assert_eq!(site.served()[1], before, "a request reached the server");
    site.spoil(false);
    assert!(eventually(|| request(front) == Some(200)));
    // no agent, no proof that the node is fit
    site.b.signal(Signal::KILL);
    until("503", || request(front) == Some(503));
    drop(nginx);
}
