use std::io::Write;

use tracing_subscriber::fmt::MakeWriter;

use super::*;

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// From here on, on this thread: only with a runtime of one.
    fn capture(&self) -> tracing::subscriber::DefaultGuard {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(self.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }
}

#[tokio::test]
async fn no_secret_reaches_a_log_an_error_or_the_disk() {
    let log = Log::default();
    let _guard = log.capture();
    // a server that gives back what it got
    let server = Server::new(|_, request| answer(403, request)).await;
    let bench = Bench::new();
    let file = bench.write("auth", "Bearer f1le-s3cret\r\n");
    let refresher = bench.start(&format!(
        r#"[[refresh]]
        http = {{ url = "http://127.0.0.1:{}/", headers = {{ Authorization = {{ file = "{file}" }}, Cookie = "l1teral-s3cret" }}, body = "x" }}
        "#,
        server.port
    ));
    refresher.applied(id(1), paths(&["a"])).unwrap();
    let error = fails(&refresher, RefreshState::Failing).await;
    assert!(server.requests()[0].contains("f1le-s3cret") && server.requests()[0].contains("l1teral-s3cret"));
    assert!(error.contains("answered 403") && error.contains("(hidden)"), "{error}");
    until("the log", || log.text().contains("answered 403")).await;
    let forced = refresher.force(false).await.unwrap_err().to_string();
    for text in
        [error, forced, log.text(), bench.read("state/refresh.json"), format!("{:?}", refresher.status())]
    {
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn a_secret_that_cannot_be_used_is_named_by_its_header_only() {
    for (content, expected) in [
        (Some(&b"two\nlines"[..]), "cannot have what its file holds"),
        (Some(b""), "it is empty"),
        (Some(b"\xff\xfe"), "cannot be read"),
        (None, "No such file"),
    ] {
        let bench = Bench::new();
        let file = bench.path("secret").display().to_string();
        content.map(|bytes| bench.write("secret", bytes));
        let table = format!(
            "[[refresh]]\nhttp = {{ url = \"http://127.0.0.1:1/\", headers = {{ X-Key = {{ file = \"{file}\" }} }} }}\n"
        );
        let refresher = bench.start(&table);
        refresher.applied(id(1), paths(&["a"])).unwrap();
        let error = fails(&refresher, RefreshState::Failing).await;
        assert!(error.contains("the header x-key") && error.contains(expected), "{error}");
        assert!(!error.contains("lines"), "{error}");
    }
    let bench = Bench::new();
    let refresher = bench.start(
        "[[refresh]]\nhttp = { url = \"http://127.0.0.1:1/\", headers = { X-Key = { credential = \"k\" } } }\n",
    );
    refresher.applied(id(1), paths(&["a"])).unwrap();
    let error = fails(&refresher, RefreshState::Failing).await;
    assert!(error.contains("LoadCredential="), "{error}");
}

#[tokio::test]
async fn what_a_program_prints_is_logged_within_bounds() {
    let log = Log::default();
    let _guard = log.capture();
    let bench = Bench::new();
    let script = bench.script("hook", "printf 'a\\033[1mb\\n'; seq 1 50000; echo the-end >&2");
    let refresher = bench.start(&format!("[[refresh]]\nname = \"hook\"\nexec = [\"{script}\"]\n"));
    refresher.applied(id(1), paths(&["a"])).unwrap();
    completes(&refresher, id(1)).await;
    let text = log.text();
    assert!(text.contains("t: hook: a\\x1b[1mb\n"), "{text}");
    let (lines, more) = (text.lines().filter(|line| line.contains("t: hook: ")).count(), "and 49902 more");
    assert!((100..110).contains(&lines), "{lines}");
    assert!(text.contains(more), "{}", text.lines().last().unwrap());
}
