//! The page, in a real browser.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::cluster::{Cluster, until};
use super::{Port, open};
use crate::support::Ran;

/// Chromium without a window; `args` say what it is to do with `url`.
fn chromium(profile: &Path, args: &[&str], url: &str) -> Ran {
    let out = Command::new("chromium")
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
        ])
        .args(["--disable-background-networking", "--disable-component-update", "--no-first-run"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(args)
        .arg(url)
        .output();
    Ran::from(out.expect("chromium, which tests/run installs")).code(0)
}

/// Hands the page on; from the second time it is asked for with another name in it. Gives its port, and how often it was
/// asked.
fn relay(to: Port) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            let n = stream.read(&mut head).unwrap_or(0);
            let is_page = head[..n].starts_with(b"GET / ");
            let path = if is_page { "/" } else { "/not-here" };
            let mut text = to.raw(&format!("GET {path} HTTP/1.0\r\n\r\n"));
            if is_page && count.fetch_add(1, Ordering::SeqCst) > 0 {
                // the same length as before
                text = text.replace("node-one", "node-two");
            }
            let _ = stream.write_all(text.as_bytes());
        }
    });
    (port, asked)
}

#[test]
fn a_browser_shows_the_page_keeps_it_fresh_and_asks_nobody_else() {
    let c = Cluster::local();
    c.source("node-one", "");
    c.scratch.write("node-one/tree/x", "1");
    let port = open(&c, "node-one");
    let _a = c.start("node-one");
    until("the port", || port.get("/").body.contains("current"));
    let answer = port.get("/");
    assert!(answer.head.contains("content-security-policy: default-src 'none';"), "{}", answer.head);
    assert!(answer.head.contains("content-type: text/html; charset=utf-8"), "{}", answer.head);

    let (relayed, asked) = relay(port);
    let url = format!("http://127.0.0.1:{relayed}/");
    let profile = c.path().join("chromium");
    let ran = chromium(&profile, &["--virtual-time-budget=7000", "--dump-dom"], &url);
    let main = ran.out.split("<main>").nth(1).unwrap_or_else(|| panic!("{ran:?}"));
    assert!(main.contains("node-two") && !main.contains("node-one</h1>"), "not refreshed: {ran:?}");
    assert!(asked.load(Ordering::SeqCst) >= 2);
    assert!(main.contains("Nothing is wrong") && main.contains("current"), "{main}");
    for complaint in ["Content Security Policy", "Content-Security-Policy", "Uncaught"] {
        assert!(!ran.err.contains(complaint), "{}", ran.err);
    }

    // two schemes and a phone: something is drawn, and not the same
    let shot = |name: &str, scheme: &str, size: &str| {
        let file = c.path().join(name);
        let args = [
            format!("--blink-settings=preferredColorScheme={scheme}"),
            format!("--window-size={size}"),
            "--virtual-time-budget=500".to_owned(),
            format!("--screenshot={}", file.display()),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        chromium(&profile, &args, &format!("http://127.0.0.1:{}/", port.http));
        std::fs::read(file).unwrap()
    };
    let (light, dark) = (shot("light.png", "1", "1280,800"), shot("dark.png", "0", "1280,800"));
    let phone = shot("phone.png", "1", "390,800");
    assert!(light != dark && light.len() > 10_000 && dark.len() > 10_000 && phone.len() > 5_000);
    if let Some(keep) = std::env::var_os("SYNCAGENT_TEST_SCREENSHOTS") {
        for (name, png) in [("light.png", &light), ("dark.png", &dark), ("phone.png", &phone)] {
            std::fs::write(Path::new(&keep).join(name), png).unwrap();
        }
    }
}
