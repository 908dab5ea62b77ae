use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;

fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_gets_what_it_needs_and_no_shell() {
    let bench = Bench::new();
    let out = bench.path("out").display().to_string();
    let script = bench.script(
        "hook",
        &format!(
            r#"{{ printf '%s|' "$@"; echo; pwd
            echo "$SYNCAGENT_TREE $SYNCAGENT_GENERATION $SYNCAGENT_NODE $SYNCAGENT_PATH $SYNCAGENT_CHANGED_ALL"
            stat -c '%a' "$(dirname "$SYNCAGENT_CHANGED")"; tr '\0' ';' < "$SYNCAGENT_CHANGED"; cat; }} > {out}.new
            mv {out}.new {out}"#
        ),
    );
    let refresher = bench.start(&format!("[[refresh]]\nexec = [\"{script}\", \"a b\", \"$HOME;*\"]\n"));
    let odd = Changed::Paths(vec![TreePath::new(b"x\ny").unwrap(), TreePath::new(b"z/a.car").unwrap()]);
    refresher.applied(id(3), odd).unwrap();
    completes(&refresher, id(3)).await;
    assert_eq!(bench.read("out"), "a b|$HOME;*|\n/\nt 1.3 app1 /srv/t 0\n700\nx\ny;z/a.car;");
    refresher.applied(id(4), Changed::Everything).unwrap();
    completes(&refresher, id(4)).await;
    assert_eq!(bench.read("out"), "a b|$HOME;*|\n/\nt 1.4 app1 /srv/t 1\n700\n");
    assert!(!exists(&bench.path("state/refresh-run")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_hangs_is_ended_with_all_that_it_began() {
    let bench = Bench::new();
    let dir = bench.dir.path().display().to_string();
    // the grandchild holds the pipes, and will not hear of SIGTERM
    let script = bench.script(
        "hook",
        &format!(
            "if [ -e {dir}/again ]; then exit 0; fi; touch {dir}/again; echo begun\n\
             sh -c 'trap \"\" TERM; echo $$ > {dir}/grandchild; while :; do sleep 1; done' &\n\
             echo $$ > {dir}/child; wait"
        ),
    );
    let refresher = bench.start(&format!("[[refresh]]\nexec = [\"{script}\"]\ntimeout = \"1s\"\n"));
    refresher.applied(id(1), paths(&["a"])).unwrap();
    let error = fails(&refresher, RefreshState::Failing).await;
    assert_eq!(error, format!("exec: {script} took longer than 1 s and was ended: begun"));
    for name in ["child", "grandchild"] {
        let pid = bench.read(name);
        assert!(!pid.is_empty() && !alive(&pid), "{name} {pid}");
    }
    completes(&refresher, id(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_program_leaves_running_neither_holds_it_up_nor_is_ended() {
    let bench = Bench::new();
    let pid = bench.path("pid").display().to_string();
    let script = bench.script("hook", &format!("sleep 60 &\necho $! > {pid}"));
    let refresher = bench.start(&format!("[[refresh]]\nexec = [\"{script}\"]\n"));
    let began = Instant::now();
    refresher.applied(id(1), paths(&["a"])).unwrap();
    completes(&refresher, id(1)).await;
    assert!(began.elapsed() < Duration::from_secs(10));
    let pid = bench.read("pid");
    assert!(alive(&pid));
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_ends_a_running_program_and_the_next_start_runs_it_again() {
    let bench = Bench::new();
    let pid = bench.path("pid").display().to_string();
    let script =
        bench.script("hook", &format!("if [ -e {pid} ]; then exit 0; fi; echo $$ > {pid}; sleep 600 & wait"));
    let table = format!("[[refresh]]\nexec = [\"{script}\"]\n");
    let refresher = bench.start(&table);
    refresher.applied(id(1), paths(&["a"])).unwrap();
    until("the program", || !bench.read("pid").is_empty()).await;
    refresher.stop();
    refresher.ended().await;
    assert!(!alive(&bench.read("pid")));
    assert!(refresher.is_open() && refresher.applied(id(2), paths(&[])).is_err());
    drop(refresher);
    let refresher = bench.start(&table);
    completes(&refresher, id(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_program_failed_is_said() {
    for (text, expected) in [
        ("echo one; echo 'tw\to' >&2; exit 3", "ended with 3: tw\\to"),
        ("kill -9 $$", "was ended by signal 9"),
    ] {
        let bench = Bench::new();
        let script = bench.script("hook", text);
        let refresher = bench.start(&format!("[[refresh]]\nexec = [\"{script}\"]\n"));
        refresher.applied(id(1), paths(&["a"])).unwrap();
        assert_eq!(fails(&refresher, RefreshState::Failing).await, format!("exec: {script} {expected}"));
    }
    let bench = Bench::new();
    let refresher = bench.start("[[refresh]]\nexec = [\"/nowhere/x\"]\n");
    refresher.applied(id(1), paths(&["a"])).unwrap();
    let error = fails(&refresher, RefreshState::Failing).await;
    assert!(error.starts_with("exec: cannot start /nowhere/x: No such file"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_are_told_by_systemctl() {
    let bench = Bench::new();
    let log = bench.path("log").display().to_string();
    let (cause, hint) =
        ("Job for bad.service failed because of it.", "See \"systemctl status bad.service\".");
    let script = format!(
        "echo \"$@\" >> {log}; [ $3 != bad.service ] || {{ echo '{cause}' >&2; echo '{hint}' >&2; exit 1; }}"
    );
    let systemctl = bench.script("systemctl", &script);
    let table = "[[refresh]]\nsystemd = { verb = \"reload\", unit = \"a.service\" }\n\
                 [[refresh]]\nsignal = { signal = \"HUP\", unit = \"b.service\" }\n\
                 [[refresh]]\nname = \"bad\"\nsystemd = { verb = \"restart\", unit = \"bad.service\" }\n";
    let refresher = bench.start_with(table, systemctl.clone().into());
    refresher.applied(id(1), paths(&["a"])).unwrap();
    let error = fails(&refresher, RefreshState::Failing).await;
    assert_eq!(error, format!("bad: restart bad.service: {systemctl} ended with 1: {cause}"));
    let expected = "--no-ask-password reload a.service\n--no-ask-password kill --kill-whom=main -s HUP b.service\n\
                    --no-ask-password restart bad.service\n";
    assert!(bench.read("log").starts_with(expected), "{}", bench.read("log"));
}

/// Ended with the test, also with one that fails.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_reaches_the_process_of_a_pid_file_and_no_other() {
    let bench = Bench::new();
    let got = bench.path("got").display().to_string();
    let ready = bench.path("ready").display().to_string();
    let script = bench.script(
        "server",
        &format!("trap 'echo usr1 >> {got}' USR1; touch {ready}; while :; do sleep 0.05; done"),
    );
    let server =
        Killed(std::process::Command::new(script).stdout(std::process::Stdio::null()).spawn().unwrap());
    until("the server", || exists(&bench.path("ready"))).await;
    let file = bench.path("pid").display().to_string();
    let refresher =
        bench.start(&format!("[[refresh]]\nsignal = {{ signal = \"USR1\", pid-file = \"{file}\" }}\n"));
    refresher.applied(id(1), paths(&["a"])).unwrap();
    assert!(fails(&refresher, RefreshState::Failing).await.contains("cannot read the pid file"));
    for bad in ["0", "1", "-7", "x", "", &std::process::id().to_string()] {
        bench.write("pid", bad);
        let error = refresher.force(false).await.unwrap_err();
        assert!(error.what.contains("holds no process id"), "{bad}: {error}");
    }
    bench.write("pid", "4194300\n");
    assert!(refresher.force(false).await.unwrap_err().what.contains("there is no process 4194300"));
    bench.write("pid", format!("{}\n", server.0.id()));
    assert_eq!(refresher.force(false).await.unwrap(), "the server was told of generation 1.1");
    // once, or twice when it was just about to try again by itself
    until("the signal", || bench.read("got").starts_with("usr1\n")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_files_are_touched() {
    let bench = Bench::new();
    let file = bench.path("touched").display().to_string();
    let refresher = bench.start(&format!("[[refresh]]\ntouch = \"{file}\"\n"));
    refresher.applied(id(1), paths(&["a"])).unwrap();
    completes(&refresher, id(1)).await;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777 & !0o022, 0o644);
    std::fs::write(&file, "content").unwrap();
    let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
    refresher.applied(id(2), paths(&["a"])).unwrap();
    completes(&refresher, id(2)).await;
    assert!(std::fs::metadata(&file).unwrap().mtime() > 1_600_000_000);
    assert_eq!(bench.read("touched"), "content");

    std::fs::create_dir(bench.path("dir")).unwrap();
    std::os::unix::fs::symlink(&file, bench.path("link")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(bench.path("fifo")).status().unwrap().success());
    for name in ["missing/x", "dir", "link", "fifo"] {
        let bench_of = Bench::new();
        let path = bench.path(name).display().to_string();
        let refresher = bench_of.start(&format!("[[refresh]]\ntouch = \"{path}\"\n"));
        refresher.applied(id(1), paths(&["a"])).unwrap();
        let error = fails(&refresher, RefreshState::Failing).await;
        assert!(error.starts_with(&format!("touch: cannot touch {path}: ")), "{error}");
    }
    assert!(!exists(&bench.path("missing")));
}
