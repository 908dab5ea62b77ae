//! The protocol, its limits, and the documents.

use std::io::Write as _;
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::super::cluster::{Agent, Cluster, eventually, until};
use super::{Port, open, to_end};

/// A source alone, ready.
fn alone() -> (Cluster, Agent, Port) {
    let c = Cluster::local();
    c.source("a", "max-lag = \"1min\"\n");
    c.scratch.write("a/tree/x", "1");
    let port = open(&c, "a");
    let a = c.start("a");
    a.wait_for_state("current");
    // the public port may be a tenth of a second behind
    until("the port", || port.get("/status").body.contains("\"state\":\"current\""));
    (c, a, port)
}

#[test]
fn who_closes_his_side_after_the_request_is_answered() {
    let (_c, _a, port) = alone();
    for request in [
        "GET /ha/health HTTP/1.0\r\n\r\n",
        "GET /ha/health HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /metrics HTTP/1.0\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nGET /ha/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ] {
        let asked = request.matches("GET").count();
        for nth in 0..200 {
            let mut stream = port.connect();
            stream.write_all(request.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let begun = Instant::now();
            let text = to_end(&mut stream);
            assert_eq!(text.matches(" 200 OK\r\n").count(), asked, "{nth}: {request:?}: {text:?}");
            assert!(begun.elapsed() < Duration::from_secs(8), "and the connection ends then");
        }
    }
    // half a request, or none, is no reason to stay
    for request in ["", "GET /ha/hea"] {
        let mut stream = port.connect();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let begun = Instant::now();
        assert!(!to_end(&mut stream).contains("200"));
        assert!(begun.elapsed() < Duration::from_secs(4));
    }
}

#[test]
fn get_and_head_are_answered_as_load_balancers_write_them_and_nothing_else_is() {
    let (_c, _a, port) = alone();
    for request in [
        "GET /ha/health HTTP/1.0\r\n\r\n",
        "get /ha/health HTTP/1.0\r\n\r\n",
        "get /ha/health HTTP/1.0\n\n",
        "GET /ha/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "get /ha/health?tree=t HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "GET http://a.example/ha/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ] {
        let answer = port.ask(request);
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"), "{request:?}");
        assert!(answer.head.contains("cache-control: no-store"), "{answer:?}");
        assert!(answer.head.contains("content-type: text/plain"), "{answer:?}");
    }
    for path in ["/ha/health", "/livez", "/readyz", "/metrics", "/status", "/"] {
        for method in ["HEAD", "head"] {
            let answer = port.ask(&format!("{method} {path} HTTP/1.0\r\n\r\n"));
            assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{method} {path}");
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "Get", "BREW"] {
            let answer = port.ask(&format!("{method} {path} HTTP/1.0\r\n\r\n"));
            assert_eq!(answer.status, 405, "{method} {path}");
            assert!(answer.head.contains("allow: get,head"), "{answer:?}");
        }
    }
    assert_eq!(port.get("/ha/health?tree=nope").status, 404);
    assert_eq!(port.get("/ha/health?tree=t").status, 200);
    for path in ["/1/status", "/1/approve", "/../etc/passwd", "/ha", "//"] {
        assert_eq!(port.get(path).status, 404, "{path}");
    }
    let body = "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(port.ask(body).status, 413);
    let chunked = "GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(port.ask(chunked).status, 413);
    for request in [body, chunked] {
        assert!(port.ask(request).head.contains("cache-control: no-store"), "{request:?}");
    }
    for none in ["0", "00"] {
        let empty =
            format!("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {none}\r\n\r\n");
        assert_eq!(port.ask(&empty).status, 200, "{none}");
    }
    for line in ["OPTIONS * HTTP/1.1", "CONNECT x:80 HTTP/1.1", "POST /nothing/here HTTP/1.1"] {
        let answer = port.ask(&format!("{line}\r\nHost: x\r\nConnection: close\r\n\r\n"));
        assert_eq!(answer.status, 405, "{line}");
        assert!(answer.head.contains("allow: get,head"), "{answer:?}");
        assert!(answer.head.contains("cache-control: no-store"), "{answer:?}");
    }
    let twice = port.get("/ha/health?tree=t&tree=t");
    assert_eq!((twice.status, twice.body.as_str()), (400, "ask for one tree: /ha/health?tree=NAME\n"));
    assert!(twice.head.contains("cache-control: no-store"), "{twice:?}");
    assert_eq!(port.ask("\0\0\0\r\n\r\n").status, 400);
}

/// The length in an answer's head.
fn length(answer: &super::Answer) -> Option<&str> {
    answer.head.lines().find_map(|line| line.strip_prefix("content-length: "))
}

#[test]
fn head_says_the_length_that_get_has_also_in_lower_case() {
    let (_c, _a, port) = alone();
    for method in ["GET", "get", "HEAD", "head"] {
        for rest in ["HTTP/1.0\r\n\r\n", "HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"] {
            let answer = port.ask(&format!("{method} /ha/health {rest}"));
            assert_eq!((answer.status, length(&answer)), (200, Some("3")), "{method} {rest:?}");
        }
    }
}

/// The time for a head is that for a head, also when its beginning came with the request before.
#[test]
fn the_beginning_of_a_next_request_does_not_count_as_idle() {
    let (_c, _a, port) = alone();
    let mut stream = port.connect();
    let begun = Instant::now();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HT").unwrap();
    let text = to_end(&mut stream);
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 1, "{text}");
    let took = begun.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(15)).contains(&took), "{took:?}");
}

#[test]
fn several_requests_use_one_connection() {
    let (_c, _a, port) = alone();
    let mut stream = port.connect();
    let one = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
    let last = "GET /ha/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(format!("{one}{one}{last}").as_bytes()).unwrap();
    let text = to_end(&mut stream);
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
}

#[test]
fn large_heads_are_refused() {
    let (_c, _a, port) = alone();
    let many: String = (0..40).map(|i| format!("X-{i}: y\r\n")).collect();
    let large = format!("X: {}\r\n", "y".repeat(9_000));
    let long = format!("GET /{} HTTP/1.0\r\n\r\n", "y".repeat(20_000));
    for request in
        [format!("GET /livez HTTP/1.0\r\n{many}\r\n"), format!("GET /livez HTTP/1.0\r\n{large}\r\n"), long]
    {
        let text = port.raw(&request);
        let status = text.split(' ').nth(1).unwrap_or_default();
        assert!(["431", "414"].contains(&status), "{} bytes: {text}", request.len());
    }
    assert_eq!(port.get("/livez").status, 200);
}

/// Nobody can keep a load balancer out, neither by many connections nor by slow ones.
#[test]
fn connections_without_end_and_slow_ones_keep_nobody_out() {
    let (_c, _a, port) = alone();
    let begun = Instant::now();
    let slow: Vec<_> = (0..400)
        .map(|i| {
            let mut stream = port.connect();
            // some say nothing, some begin a head and never end it
            if i % 2 == 0 {
                stream.write_all(b"GET /ha/health HT").unwrap();
            }
            if i % 50 == 0 {
                let asked = Instant::now();
                assert_eq!(port.get("/ha/health").status, 200);
                assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
            }
            stream
        })
        .collect();
    let ended = |stream: &std::net::TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let mut byte = [0];
        !matches!(stream.peek(&mut byte), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    };
    until("the end of those for which there is no place", || slow.iter().filter(|s| ended(s)).count() >= 144);
    assert!(begun.elapsed() < Duration::from_secs(20), "they ended by themselves");
    // a head that does not come to its end is not waited for; who said nothing has more time
    let begun_heads = || slow.iter().step_by(2).all(ended);
    assert!(eventually(begun_heads));
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert!(slow.iter().skip(1).step_by(2).any(|s| !ended(s)), "idle ones stay for a while");
    assert_eq!(port.get("/ha/health").status, 200);
}

#[test]
fn the_status_is_the_one_of_the_command() {
    let (_c, a, port) = alone();
    let answer = port.get("/status");
    assert!(answer.head.contains("content-type: application/json"), "{answer:?}");
    let public: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let own = a.try_status().unwrap();
    for field in ["node", "cluster", "schema", "version"] {
        assert_eq!(public[field], own[field]);
    }
    assert_eq!(public["trees"][0]["head"], own["trees"][0]["head"]);
}

/// Runs promtool; gives what it says.
fn promtool(args: &[&str], input: &str) -> String {
    let mut child = Command::new("promtool")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, which tests/run installs");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "promtool {args:?}: {said}\n{input}");
    said
}

#[test]
fn prometheus_takes_the_metrics_and_the_alert_rules() {
    let c = Cluster::local();
    c.source("a", "");
    c.scratch.write("a/tree/x", "1");
    c.mirror("b", "a", "max-lag = \"1min\"\n");
    let (at_a, at_b) = (open(&c, "a"), open(&c, "b"));
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    // a sum and a count that only grow, as in every summary
    let grown = |suffix: &str| {
        let name =
            format!("syncagent_convergence_seconds_{suffix}{{tree=\"t\",node=\"b\",role=\"mirror\"}} ");
        let body = at_a.get("/metrics").body;
        body.lines().find_map(|l| l.strip_prefix(&name)).map_or(0.0, |value| value.parse::<f64>().unwrap())
    };
    until("the convergence on the source", || grown("count") >= 1.0);
    let before = (grown("count"), grown("sum"));
    c.scratch.write("a/tree/x", "2");
    c.assert_converges(&a, &b, ("a", "b"));
    until("the next one", || grown("count") > before.0 && grown("sum") > before.1);
    for port in [at_a, at_b] {
        let answer = port.get("/metrics");
        assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
        // lints are failures
        assert_eq!(promtool(&["check", "metrics"], &answer.body), "");
    }
    let body = at_b.get("/metrics").body;
    for line in [
        "syncagent_lag_seconds{tree=\"t\",node=\"b\",role=\"mirror\"} 0",
        "syncagent_state{tree=\"t\",node=\"b\",role=\"mirror\",state=\"current\"} 1",
        "syncagent_node_healthy 1",
    ] {
        assert!(body.lines().any(|l| l == line), "{line}\n{body}");
    }
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/prometheus/syncagent.rules.yml");
    let said = promtool(&["check", "rules", rules], "");
    assert!(said.contains("SUCCESS"), "{said}");
}

#[test]
fn an_address_that_is_taken_is_named() {
    let c = Cluster::local();
    c.source("a", "");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let line = format!("public = \"{}\"\nsocket = ", taken.local_addr().unwrap());
    c.edit("a", "socket = ", &line);
    let ran = super::super::cluster::run(&["run", "--config", c.config_path("a").to_str().unwrap()]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("listen.public") && ran.err.contains("in use"), "{ran:?}");
}
