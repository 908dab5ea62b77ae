//! What operators and deploy jobs order: pause, drain, hold, wait.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::cluster::{Agent, Cluster, run, until, within};
use crate::support::{Ran, program};

pub(super) fn pair(source: &str, mirror: &str) -> (Cluster, Agent, Agent) {
    let c = Cluster::new(&["a", "b"]);
    c.source("a", source);
    c.scratch.write("a/tree/x", "1");
    c.mirror("b", "a", mirror);
    let (a, b) = (c.start("a"), c.start("b"));
    c.assert_converges(&a, &b, ("a", "b"));
    (c, a, b)
}

pub(super) fn hold(agent: &Agent, script: &str) -> Ran {
    run(&["hold", "t", "--socket", agent.socket.to_str().unwrap(), "--", "sh", "-c", script])
}

/// Starts a hold whose command waits for the file `go`.
pub(super) fn hold_until(c: &Cluster, agent: &Agent, then: &str) -> Child {
    let go = c.path().join("go");
    let tree = c.tree("a");
    let script = format!(
        "echo half > {t}/half; while ! [ -e {go} ]; do sleep 0.01; done; {then}",
        t = tree.display(),
        go = go.display()
    );
    let child = Command::new(program())
        .args(["hold", "t", "--socket", agent.socket.to_str().unwrap(), "--", "sh", "-c", &script])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("the hold", || agent.tree()["hold"].is_object() && tree.join("half").exists());
    child
}

pub(super) fn number(agent: &Agent) -> u64 {
    agent.tree()["head"]["number"].as_u64().unwrap()
}

/// A scan of everything has passed, and what was written is not published, or not everywhere. The look is waited for
/// also where it takes longer than this.
pub(super) fn flush(agent: &Agent) -> Ran {
    agent.order(&["wait", "t", "--timeout", "1s"])
}

/// Whatever was written is published, and everywhere, however slow the disk is.
#[track_caller]
pub(super) fn published(agent: &Agent) {
    agent.order(&["wait", "t", "--timeout", "60s"]).code(0);
}

#[test]
fn what_a_command_writes_is_one_generation_when_it_succeeds() {
    let (c, a, b) = pair("settle = \"0s\"\n", "");
    let before = number(&a);
    let t = c.tree("a").display().to_string();
    let script = format!("for i in 1 2 3 4 5 6; do echo $i > {t}/f$i; sleep 0.1; done");
    let ran = hold(&a, &script).code(0);
    assert!(ran.err.contains("published as generation"), "{ran:?}");
    assert_eq!(number(&a), before + 1);
    until("the files", || c.tree("b").join("f6").exists());
    c.assert_converges(&a, &b, ("a", "b"));
    assert_eq!(a.tree()["hold"], serde_json::Value::Null);
}

#[test]
fn while_a_command_runs_nothing_is_published_and_status_says_who_holds_it() {
    let (c, a, b) = pair("settle = \"0s\"\n", "");
    let before = number(&a);
    let mut job = hold_until(&c, &a, "true");
    let ran = flush(&a).code(7);
    assert!(ran.out.contains("held for sh -c"), "{ran:?}");
    assert_eq!((number(&a), a.own()["state"].clone()), (before, "held".into()));
    assert!(a.tree()["hold"]["who"].as_str().unwrap().contains("process"), "{}", a.tree());
    let second = hold(&a, "true");
    assert_eq!(second.code, 125);
    assert!(second.err.contains("is held already"), "{second:?}");
    c.scratch.write("go", "");
    assert_eq!(job.wait().unwrap().code(), Some(0));
    assert_eq!(number(&a), before + 1);
    until("the file", || c.tree("b").join("half").exists());
    c.assert_converges(&a, &b, ("a", "b"));
}

#[test]
fn a_command_that_fails_leaves_the_tree_held_until_the_next_that_succeeds() {
    let (c, a, b) = pair("settle = \"0s\"\n", "");
    let before = number(&a);
    let t = c.tree("a").display().to_string();
    let ran = hold(&a, &format!("echo half > {t}/half; exit 42"));
    assert_eq!(ran.code, 42, "{ran:?}");
    assert!(ran.err.contains("stays held"), "{ran:?}");
    flush(&a).code(7);
    assert_eq!(number(&a), before);
    let failed = a.tree()["hold"]["failed"].as_str().unwrap().to_owned();
    assert!(failed.contains("exit code 42"), "{failed}");
    assert!(a.own()["error"]["what"].as_str().unwrap().contains("--release"), "{}", a.own());
    let held = a.tree()["hold"].clone();
    assert!(held["failed_for_ms"].as_u64().unwrap() <= held["for_ms"].as_u64().unwrap(), "{held}");
    // it stays so over a restart
    a.stop();
    let a = c.start("a");
    flush(&a).code(7);
    assert_eq!(number(&a), before);
    hold(&a, &format!("echo whole > {t}/half")).code(0);
    until("the file", || c.tree("b").join("half").exists());
    assert_eq!(c.scratch.read("b/tree/half"), b"whole\n");
    c.assert_converges(&a, &b, ("a", "b"));
}

#[test]
fn a_hold_whose_process_is_killed_has_failed_and_a_release_ends_it() {
    let (c, a, _b) = pair("settle = \"0s\"\n", "");
    let before = number(&a);
    let mut job = hold_until(&c, &a, "true");
    // long enough to tell the two times apart
    until("some time", || a.tree()["hold"]["for_ms"].as_u64() >= Some(700));
    assert!(a.tree()["hold"].get("failed_for_ms").is_none());
    job.kill().unwrap();
    job.wait().unwrap();
    until("the failure", || a.tree()["hold"]["failed"].is_string());
    let held = a.tree()["hold"].clone();
    assert!(held["for_ms"].as_u64().unwrap() >= held["failed_for_ms"].as_u64().unwrap() + 600, "{held}");
    let text = run(&["status", "--socket", a.socket.to_str().unwrap()]).out;
    assert!(text.contains(" failed, ") && !text.contains("scanning"), "{text}");
    flush(&a).code(7);
    assert_eq!(number(&a), before);
    let ran = a.order(&["hold", "t", "--release"]).code(0);
    assert!(ran.err.contains("released"), "{ran:?}");
    until("the publication", || number(&a) == before + 1);
    // ends the script
    c.scratch.write("go", "");
    let again = a.order(&["hold", "t", "--release"]);
    assert_eq!(again.code, 125, "{again:?}");
}

#[test]
fn a_hold_outlives_a_restart_of_the_agent() {
    let (c, a, b) = pair("settle = \"0s\"\n", "");
    let before = number(&a);
    let mut job = hold_until(&c, &a, &format!("echo all > {}/half", c.tree("a").display()));
    a.kill();
    let a = c.start("a");
    flush(&a).code(7);
    assert_eq!((number(&a), a.tree()["hold"]["failed"].clone()), (before, serde_json::Value::Null));
    c.scratch.write("go", "");
    assert_eq!(job.wait().unwrap().code(), Some(0));
    assert_eq!(number(&a), before + 1);
    until("the file", || c.tree("b").join("half").exists());
    assert_eq!(c.scratch.read("b/tree/half"), b"all\n");
    c.assert_converges(&a, &b, ("a", "b"));
}

#[test]
fn a_hold_that_would_delete_too_much_says_how_to_approve_it() {
    let (c, a, _b) = pair("settle = \"0s\"\n", "");
    for i in 0..40 {
        c.scratch.write(format!("a/tree/f{i}"), "x");
    }
    published(&a);
    let ran = hold(&a, &format!("rm {}/f*", c.tree("a").display()));
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(ran.err.contains("syncagent approve t "), "{ran:?}");
    assert_eq!(a.own()["state"], "refused");
    let plan = a.own()["plan"]["id"].as_str().unwrap().to_owned();
    a.order(&["approve", "t", &plan]).code(0);
    published(&a);
}

#[test]
fn a_command_that_cannot_be_run_holds_nothing() {
    let (_c, a, _b) = pair("", "");
    let ran = run(&["hold", "t", "--socket", a.socket.to_str().unwrap(), "--", "/no/such/program"]);
    assert_eq!(ran.code, 127, "{ran:?}");
    assert_eq!(a.tree()["hold"], serde_json::Value::Null);
    let ran = run(&["hold", "t", "--socket", "/no/such/socket", "--", "true"]);
    assert_eq!(ran.code, 125, "{ran:?}");
}

#[test]
fn a_mirror_holds_nothing() {
    let (_c, _a, b) = pair("", "");
    let ran = hold(&b, "true");
    assert_eq!(ran.code, 125);
    assert!(ran.err.contains("belongs on its source"), "{ran:?}");
}

#[test]
fn a_paused_source_publishes_nothing_and_a_paused_mirror_applies_nothing_also_after_a_restart() {
    let (c, a, b) = pair("", "");
    let before = number(&a);
    a.order(&["pause", "t", "--reason", "month's end"]).code(0);
    c.scratch.write("a/tree/x", "2");
    let ran = flush(&a).code(7);
    assert!(ran.out.contains("paused by"), "{ran:?}");
    a.stop();
    let a = c.start("a");
    flush(&a).code(7);
    assert_eq!((number(&a), a.own()["state"].clone()), (before, "paused".into()));
    assert_eq!(a.own()["paused"]["reason"], "month's end");
    let ran = b.order(&["pause", "t"]).code(0);
    assert!(ran.out.contains("on this node"), "{ran:?}");
    a.order(&["resume", "t"]).code(0);
    until("the publication", || number(&a) == before + 1);
    until("that the source knows", || a.row("b")["paused"].is_object());
    let ran = flush(&a).code(7);
    assert!(ran.out.contains("b: paused by"), "{ran:?}");
    b.stop();
    let b = c.start("b");
    until("the news", || b.tree()["head"]["number"].as_u64() == Some(before + 1));
    assert_eq!(b.own()["state"], "paused");
    // a pause is no lag, but of the first answer as much as the source took to give it
    until("that a pause is no lag", || b.own()["lag_ms"] == 0);
    assert_eq!(c.scratch.read("b/tree/x"), b"1");
    b.order(&["resume", "t"]).code(0);
    until("the change", || c.scratch.read("b/tree/x") == b"2");
    c.assert_converges(&a, &b, ("a", "b"));
    assert_eq!(b.order(&["resume", "t"]).code, 2);
}

#[test]
fn a_drained_node_says_so_everywhere_also_after_a_restart() {
    let (c, a, b) = pair("", "");
    b.order(&["drain", "--reason", "new disk"]).code(0);
    assert_eq!(b.try_status().unwrap()["drained"]["reason"], "new disk");
    until("that the source knows", || a.row("b")["drained"]["reason"] == "new disk");
    b.stop();
    let b = c.start("b");
    assert_eq!(b.own()["drained"]["reason"], "new disk");
    // files go on
    c.scratch.write("a/tree/x", "2");
    until("the change", || c.scratch.read("b/tree/x") == b"2");
    b.order(&["undrain"]).code(0);
    assert_eq!(b.try_status().unwrap()["drained"], serde_json::Value::Null);
    until("that the source knows", || a.row("b")["drained"].is_null());
    assert_eq!(b.order(&["undrain"]).code, 2);
}

#[test]
fn wait_ends_when_all_that_was_written_before_it_is_everywhere() {
    let (c, a, b) = pair("", "");
    for i in 0..20u32 {
        c.scratch.write("a/tree/x", i.to_string());
        a.order(&["wait", "t", "--all"]).code(0);
        assert_eq!(c.scratch.read("b/tree/x"), i.to_string().as_bytes());
    }
    let json = a.order(&["wait", "t", "--json"]).code(0).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["consistent"], &json["nodes"]), (&true.into(), &serde_json::json!(["a", "b"])));
    b.order(&["wait", "t"]).code(0);
    assert_eq!(b.order(&["wait", "t", "--all"]).code, 2);
    assert_eq!(a.order(&["wait", "t", "--node", "zz"]).code, 2);
    assert_eq!(a.order(&["wait", "t", "--generation", "soon"]).code, 2);
    let future = format!("1.{}", number(&a) + 1);
    let ran = a.order(&["wait", "t", "--generation", &future, "--timeout", "300ms"]).code(7);
    assert!(ran.out.contains("b: has generation"), "{ran:?}");
}

#[test]
fn wait_shows_no_control_characters_of_a_node() {
    let c = Cluster::local();
    // what asks the agent cannot tell this one from it
    let at = c.path().join("other.sock");
    let listener = UnixListener::bind(&at).unwrap();
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut asked, mut part) = (Vec::new(), [0; 4096]);
        while !asked.ends_with(b"}") {
            let read = stream.read(&mut part).unwrap();
            asked.extend_from_slice(&part[..read]);
        }
        let body = r#"{"generation":{"epoch":1,"number":2},"token":null,"consistent":[],"missing":[["b","x\u001b[2J\nforged: \u202e"]]}"#;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
    });
    let ran = run(&["wait", "t", "--timeout", "0s", "--socket", at.to_str().unwrap()]).code(7);
    answer.join().unwrap();
    assert!(ran.out.contains("\n  b: x\\x1b[2J\\nforged: \\xe2"), "{ran:?}");
}

#[test]
fn wait_ends_in_time_also_when_the_agent_hangs() {
    let c = Cluster::local();
    c.source("a", "");
    let a = c.start("a");
    a.order(&["wait", "t", "--timeout", "9223372036854775807s"]).code(0);
    a.signal(Signal::STOP);
    let begun = Instant::now();
    let ran = a.order(&["wait", "t", "--timeout", "1s"]).code(1);
    a.signal(Signal::CONT);
    assert!(ran.err.contains("does not answer"), "{ran:?}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn wait_names_the_node_that_is_cut_off_and_a_file_that_is_not_finished() {
    let (c, a, b) = pair("", "");
    a.stop();
    c.edit("a", "allow = [\"*\"]", "allow = [\"b\", \"c\"]");
    let a = c.start("a");
    let ran = a.order(&["wait", "t", "--timeout", "300ms"]).code(7);
    assert!(ran.out.contains("c: it was never heard of"), "{ran:?}");
    a.order(&["wait", "t", "--node", "b"]).code(0);
    b.kill();
    let before = number(&a);
    c.scratch.write("a/tree/x", "2");
    // nobody is named as long as it is not known which generation is waited for
    until("the next generation", || number(&a) == before + 1 && a.row("b")["connected"] == false);
    let ran = a.order(&["wait", "t", "--node", "b", "--timeout", "1s"]).code(7);
    assert!(ran.out.contains("b: not heard for"), "{ran:?}");
    let b = c.start("b");
    a.order(&["wait", "t", "--node", "b"]).code(0);
    assert_eq!(c.scratch.read("b/tree/x"), b"2");
    c.scratch.write("a/tree/app.war", "PK\x03\x04 the first half");
    let ran = a.order(&["wait", "t", "--node", "b", "--timeout", "1s"]).code(7);
    assert!(ran.out.contains("app.war"), "{ran:?}");
    drop(b);
}

/// Asks for a hold as a job would whose process is this one.
fn begin(agent: &Agent, id: &str) -> String {
    let body = format!("{{\"tree\":\"t\",\"id\":\"{id}\",\"command\":\"job\",\"end\":null}}");
    let head =
        "POST /1/hold HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let mut stream = UnixStream::connect(&agent.socket).unwrap();
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_job_whose_answer_was_lost_asks_for_its_hold_again_and_has_it() {
    let (c, a, _b) = pair("settle = \"0s\"\n", "");
    assert!(begin(&a, "one").contains("200 OK"));
    assert!(begin(&a, "one").contains("200 OK"));
    // the agent dies before it could answer
    a.kill();
    let a = c.start("a");
    until("the hold", || a.tree()["hold"].is_object());
    let mut again = String::new();
    until("an answer", || {
        again = begin(&a, "one");
        !again.contains("Transient")
    });
    assert!(again.contains("200 OK"), "{again}");
    assert!(begin(&a, "two").contains("is held already"));
    assert_eq!(a.tree()["hold"]["failed"], serde_json::Value::Null);
}

#[test]
fn a_hold_that_is_ended_before_its_command_began_does_not_begin_it() {
    let c = Cluster::local();
    let (socket, ran) = (c.path().join("slow.sock"), c.path().join("ran"));
    let listener = UnixListener::bind(&socket).unwrap();
    let job = Command::new(program())
        .args(["hold", "t", "--socket", socket.to_str().unwrap(), "--", "touch", ran.to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let message = "{\"message\":\"\"}";
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{message}", message.len());
    let mut asked = Vec::new();
    for round in 0..2 {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let read = stream.read(&mut request).unwrap();
        asked.push(String::from_utf8_lossy(&request[..read]).into_owned());
        if round == 0 {
            // the agent is busy, and the pipeline is cancelled meanwhile
            kill_process(Pid::from_child(&job), Signal::TERM).unwrap();
            let status = format!("/proc/{}/status", job.id());
            until("the signal", || {
                let status = std::fs::read_to_string(&status).unwrap();
                status.lines().any(|l| l.starts_with("ShdPnd:") && l.ends_with("0000000000000000"))
            });
            std::thread::sleep(Duration::from_millis(200));
        }
        stream.write_all(answer.as_bytes()).unwrap();
    }
    let out = job.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(125), "{out:?}");
    assert!(!ran.exists(), "{asked:?}");
    assert!(asked[1].contains("not-begun"), "the tree does not stay held: {asked:?}");
}

#[test]
fn a_name_of_no_tree_is_told_whatever_is_in_it() {
    let c = Cluster::local();
    c.source("a", "");
    let a = c.start("a");
    for name in ["t&limit=1", "t&plan=0000000000000000", "t#x", "t x", "t%26", "t+", "nö"] {
        let id = "0123456789abcdef";
        for words in [
            &["history", name][..],
            &["rollback", name],
            &["rollback", name, "--dry-run"],
            &["trash", name, "list"],
            &["approve", name, id],
            &["source", "reset", name, "--approve"],
            &["pause", name],
        ] {
            let ran = a.order(words).code(2);
            assert!(ran.err.contains(&format!("no tree `{name}`")), "{words:?}: {ran:?}");
        }
    }
}

#[test]
fn what_an_operator_says_is_one_line_in_status_and_log() {
    let c = Cluster::local();
    c.source("a", "");
    let a = c.start("a");
    let long = "x".repeat(5_000);
    a.order(&["pause", "t", "--reason", &format!("a\nforged: line\u{1b}[2J{long}")]).code(0);
    let reason = a.own()["paused"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("a\\nforged: line\\x1b[2J") && reason.len() <= 500, "{reason}");
    assert!(!a.log_text().lines().any(|line| line.starts_with("forged")));
}

#[test]
fn a_node_that_was_just_heard_is_waited_for_also_after_a_crash() {
    let (c, a, b) = pair("", "");
    let states = c.path().join("a/state");
    let written = || {
        let text = Command::new("grep").args(["-rlF", "--include=nodes.json", "\"b\""]).arg(&states).output();
        !text.unwrap().stdout.is_empty()
    };
    // sooner than the register is written down anyway
    assert!(within(Duration::from_secs(2), written), "{}", a.log_tail());
    b.kill();
    a.kill();
    let a = c.start("a");
    let ran = a.order(&["wait", "t", "--timeout", "500ms"]).code(7);
    assert!(ran.out.contains("b: not heard for"), "{ran:?}");
}

#[test]
fn a_mistake_in_the_configuration_keeps_nobody_from_the_agent_that_runs() {
    let c = Cluster::local();
    c.source("a", "");
    let a = c.start("a");
    let path = c.config_path("a");
    let (sound, config) = (std::fs::read_to_string(&path).unwrap(), path.to_str().unwrap());
    for wrong in ["bogus = 1\nsettle-max = \"x\"\n", "[tree.u\n"] {
        std::fs::write(&path, format!("{sound}{wrong}")).unwrap();
        for words in [
            &["status"][..],
            &["wait", "t"],
            &["pause", "t"],
            &["resume", "t"],
            &["drain"],
            &["undrain"],
            &["history", "t"],
        ] {
            let ran = run(&[words, &["--config", config]].concat()).code(0);
            assert_eq!(ran.err.lines().count(), 1, "{words:?}: {ran:?}");
            let socket = a.socket.display().to_string();
            for part in ["syncagent: warning: ", config, &socket, "config check"] {
                assert!(ran.err.contains(part), "{words:?}: {ran:?}");
            }
        }
        let ran = run(&["hold", "t", "--config", config, "--", "true"]).code(0);
        assert!(ran.err.starts_with("syncagent: warning: "), "{ran:?}");
    }
    std::fs::write(&path, format!("{sound}bogus = 1\nsettle-max = \"x\"\n")).unwrap();
    assert!(run(&["status", "--config", config]).err.contains("(and 1 more)"));
    // where no agent is, the mistakes are what there is to say
    a.stop();
    let ran = run(&["status", "--config", config]).code(2);
    assert_eq!(ran.err.lines().count(), 3, "{ran:?}");
    assert!(
        ran.err.contains("tree.t.bogus: there is no such key") && ran.err.contains("--socket"),
        "{ran:?}"
    );
    assert_eq!(run(&["hold", "t", "--config", config, "--", "true"]).code, 125);
}
