use std::process::{Child, Command};

use super::*;
use crate::refresh::leftover;

/// Ended with the test, also with one that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program of a run with this list; it will not hear of SIGTERM.
fn program(list: &Path, before: &[&str]) -> Killed {
    let text = "trap '' TERM; while :; do sleep 0.05; done";
    let argv: Vec<&str> = before.iter().copied().chain(["sh", "-c", text]).collect();
    let mut command = Command::new(argv[0]);
    Killed(command.args(&argv[1..]).env("SYNCAGENT_CHANGED", list).spawn().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_agent_left_running_is_ended_before_anything_is_told() {
    let bench = Bench::new();
    let run = bench.path("state/refresh-run");
    std::fs::create_dir_all(&run).unwrap();
    let (list, over) = (run.join(leftover::name()), run.join(leftover::name()));
    std::fs::write(&list, "").unwrap();
    let mut left = program(&list, &[]);
    // of a run that was over, and a server that a program began
    let mut others = [program(&over, &[]), program(&list, &["setsid"])];
    let session = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", others[1].0.id())).unwrap();
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().to_owned()
    };
    until("a session of its own", || session() == others[1].0.id().to_string()).await;
    let told = bench.path("told").display().to_string();
    let script = bench.script(
        "hook",
        &format!("grep -q 'State:.[SR]' /proc/{}/status && echo too early > {told}; exit 0", left.0.id()),
    );
    let refresher = bench.start(&format!("[[refresh]]\nexec = [\"{script}\"]\n"));
    refresher.applied(id(1), paths(&["a"])).unwrap();
    completes(&refresher, id(1)).await;
    assert_eq!(bench.read("told"), "");
    assert!(left.0.try_wait().unwrap().is_some());
    assert!(others.iter_mut().all(|other| other.0.try_wait().unwrap().is_none()));
    assert!(!exists(&run));
}

/// As in a container that was entered from outside: the kernel says 0 of our session then.
#[test]
fn so_they_are_where_the_session_began_outside_of_the_pid_namespace() {
    let this = std::env::current_exe().unwrap();
    let test = "refresh::tests::leftover::what_a_killed_agent_left_running_is_ended_before_anything_is_told";
    let mut command = Command::new("unshare");
    let run = command.args(["-Urpf", "--mount-proc"]).arg(this).args(["--exact", test]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    // where namespaces are forbidden there is nothing to try it with
    assert!(err.starts_with("unshare:") || run.status.success() && out.contains("1 passed"), "{run:?}");
}
