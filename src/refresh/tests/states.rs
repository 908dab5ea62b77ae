use super::*;

/// A program that notes each of its runs in `runs`, and does as `text` says.
fn noting(bench: &Bench, name: &str, text: &str) -> String {
    let runs = bench.path("runs").display().to_string();
    bench.script(
        name,
        &format!(
            "echo \"{name} $SYNCAGENT_GENERATION $(tr '\\0' ' ' < \"$SYNCAGENT_CHANGED\")\" >> {runs}\n{text}"
        ),
    )
}

fn runs(bench: &Bench) -> Vec<String> {
    bench.read("runs").lines().map(|line| line.trim_end().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_goes_on_after_a_restart_of_the_agent() {
    let bench = Bench::new();
    let first = noting(&bench, "first", "");
    let works = bench.path("works").display().to_string();
    let second = noting(&bench, "second", &format!("echo not yet; [ -e {works} ]"));
    let table = format!(
        "[[refresh]]\nname = \"first\"\nexec = [\"{first}\"]\n[[refresh]]\nname = \"second\"\nexec = [\"{second}\"]\n"
    );
    let refresher = bench.start(&table);
    refresher.expect(id(5)).unwrap();
    refresher.applied(id(5), paths(&["a.car", "b"])).unwrap();
    let error = fails(&refresher, RefreshState::Failing).await;
    assert_eq!(error, format!("second: {second} ended with 1: not yet"));
    refresher.stop();
    refresher.ended().await;
    drop(refresher);

    let refresher = bench.start(&table);
    assert!(refresher.is_open() && !refresher.is_unsure() && refresher.complete().is_none());
    let status = refresher.status();
    assert_eq!(
        (status.state, status.action.as_deref()),
        (RefreshState::Failing, Some("second")),
        "{status:?}"
    );
    assert_eq!(status.error.unwrap().what, error, "why is known at once");
    std::fs::write(works, "").unwrap();
    completes(&refresher, id(5)).await;
    let runs = runs(&bench);
    assert_eq!(runs[0], "first 1.5 a.car b");
    assert!(runs.len() >= 3 && runs[1..].iter().all(|run| run == "second 1.5 a.car b"), "{runs:?}");
    assert_eq!(refresher.status(), Default::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_come_together_while_the_server_is_busy() {
    let bench = Bench::new();
    let go = bench.path("go").display().to_string();
    let script = noting(&bench, "hook", &format!("while ! [ -e {go} ]; do sleep 0.02; done"));
    let refresher = bench.start(&format!("[[refresh]]\nexec = [\"{script}\"]\n"));
    refresher.applied(id(1), paths(&["a"])).unwrap();
    until("the first run", || runs(&bench).len() == 1).await;
    for number in 2..=20 {
        refresher.expect(id(number)).unwrap();
        refresher.applied(id(number), paths(&[&format!("p{number:02}")])).unwrap();
    }
    std::fs::write(go, "").unwrap();
    completes(&refresher, id(20)).await;
    let runs = runs(&bench);
    assert_eq!(runs.len(), 2, "{runs:?}");
    // it was told of the first one, when that was in place
    assert!(runs[1].starts_with("hook 1.20 p02 p03") && runs[1].ends_with(" p20"), "{}", runs[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_no_pattern_means_is_complete_at_once() {
    let bench = Bench::new();
    let script = noting(&bench, "hook", "");
    let refresher =
        bench.start(&format!("[[refresh]]\nwhen = [\"*.car\", \"/axis2/**\"]\nexec = [\"{script}\"]\n"));
    refresher.expect(id(1)).unwrap();
    refresher.applied(id(1), paths(&["x.war", "sub/axis2/y"])).unwrap();
    assert!(!refresher.is_open());
    assert_eq!((refresher.complete(), refresher.verified()), (Some(id(1)), Some(id(1))));
    refresher.applied(id(2), paths(&["x.war", "deep/z.car", "axis2/y"])).unwrap();
    completes(&refresher, id(2)).await;
    assert_eq!(runs(&bench), ["hook 1.2 axis2/y deep/z.car"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_in_a_commit_everything_is_told() {
    let bench = Bench::new();
    let script = noting(&bench, "hook", "");
    let table = format!("[[refresh]]\nwhen = [\"*.car\"]\nexec = [\"{script}\"]\n");
    let refresher = bench.start(&table);
    refresher.applied(id(1), paths(&["a"])).unwrap();
    refresher.expect(id(2)).unwrap();
    // the agent dies: its file stays as it is
    drop(refresher);
    let refresher = bench.start(&table);
    assert!(refresher.is_open() && refresher.is_unsure());
    assert_eq!((refresher.complete(), refresher.in_place()), (Some(id(1)), Some(id(1))));
    assert!(refresher.force(true).await.is_err());
    refresher.expect(id(2)).unwrap();
    refresher.unchanged().unwrap();
    assert!(refresher.is_open(), "what the crash left is still unknown");
    refresher.applied(id(2), paths(&["b"])).unwrap();
    completes(&refresher, id(2)).await;
    assert_eq!(runs(&bench), ["hook 1.2"], "told of everything");

    refresher.stop();
    refresher.ended().await;
    bench.write("state/refresh.json", "{ half");
    let refresher = bench.start(&table);
    assert!(refresher.is_unsure(), "and so when what was known is damaged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expectation_that_cannot_be_written_is_an_error_and_not_expected() {
    let bench = Bench::new();
    let refresher = bench.start("[[refresh]]\nexec = [\"/bin/true\"]\n");
    refresher.applied(id(1), paths(&["a"])).unwrap();
    completes(&refresher, id(1)).await;
    // a directory in the place of the new file, once the task has written down what has just been completed
    until("a free name", || std::fs::create_dir(bench.path("state/refresh.json.new")).is_ok()).await;
    let error = refresher.expect(id(2)).unwrap_err();
    assert!(error.to_string().contains("refresh.json"), "{error}");
    assert!(!refresher.is_open());
    assert!(refresher.applied(id(2), paths(&["b"])).is_err());
    completes(&refresher, id(2)).await;
    std::fs::remove_dir(bench.path("state/refresh.json.new")).unwrap();
    refresher.expect(id(3)).unwrap();
    refresher.unchanged().unwrap();
    assert_eq!((refresher.is_open(), refresher.complete()), (false, Some(id(2))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_agrees_is_told_again_or_shown_or_rolled_back() {
    for (policy, told) in [("refresh\", refreshes = 2, timeout = \"5s", 4), ("alert", 1), ("rollback", 1)] {
        let bench = Bench::new();
        let script = noting(&bench, "hook", "");
        let refresher = bench.start(&format!(
            "[[refresh]]\nexec = [\"{script}\"]\nretry-max = \"500ms\"\n\
             verify = {{ exec = [\"/bin/false\"], within = \"300ms\", on-failure = \"{policy}\" }}\n"
        ));
        refresher.applied(id(1), paths(&["a"])).unwrap();
        let error = fails(&refresher, RefreshState::VerifyFailed).await;
        assert_eq!(error, "exec: verify: /bin/false ended with 1");
        until(policy, || runs(&bench).len() >= told).await;
        if policy != "rollback" {
            assert_eq!(bench.rolled_back.lock().unwrap().len(), 0);
        }
        // it goes on in that state
        let news = bench.news.load(Ordering::Relaxed);
        until("more questions", || bench.news.load(Ordering::Relaxed) > news + 4).await;
        assert_eq!(refresher.status().state, RefreshState::VerifyFailed);
        assert_eq!((refresher.refreshed(), refresher.verified()), (Some(id(1)), None));
        if told == 1 {
            assert_eq!(runs(&bench).len(), 1, "{policy}");
        }
        if policy == "rollback" {
            assert_eq!(*bench.rolled_back.lock().unwrap(), [id(1)]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_order_the_outcome_is_said() {
    let bench = Bench::new();
    let works = bench.path("works").display().to_string();
    let script = noting(&bench, "hook", &format!("[ -e {works} ]"));
    let refresher = bench.start(&format!("[[refresh]]\nexec = [\"{script}\"]\n"));
    assert!(refresher.force(true).await.unwrap_err().what.contains("no generation is in place"));
    assert!(refresher.force(false).await.unwrap().contains("already"));
    refresher.applied(id(1), paths(&["a"])).unwrap();
    fails(&refresher, RefreshState::Failing).await;
    let error = refresher.force(false).await.unwrap_err();
    assert!(error.what.contains("ended with 1"), "{error}");
    std::fs::write(works, "").unwrap();
    assert_eq!(refresher.force(false).await.unwrap(), "the server was told of generation 1.1");
    assert_eq!(
        refresher.force(false).await.unwrap(),
        "the server has generation 1.1 already; --force tells it again"
    );
    let before = runs(&bench).len();
    assert_eq!(refresher.force(true).await.unwrap(), "the server was told of generation 1.1");
    assert_eq!(runs(&bench).len(), before + 1);
}
