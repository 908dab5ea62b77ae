use std::time::Duration;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_file_that_hung_is_read_again_when_it_was_replaced() {
    let server = Server::new(|_, _| answer(200, "")).await;
    let bench = Bench::new();
    let fifo = bench.path("auth").display().to_string();
    // a reader of it hangs until there is a writer
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let kept = bench.path("kept");
    std::fs::hard_link(&fifo, &kept).unwrap();
    let refresher = bench.start(&format!(
        "[[refresh]]\nhttp = {{ url = \"http://127.0.0.1:{}/\", headers = {{ X-Key = {{ file = \"{fifo}\" }} }} }}\n\
         timeout = \"100ms\"\nretry-max = \"100ms\"\n",
        server.port
    ));
    refresher.applied(id(1), paths(&["a"])).unwrap();
    let what = || refresher.status().error.map(|e| e.what).unwrap_or_default();
    until("too many hang", || what().contains("earlier attempts still hang")).await;
    assert_eq!(server.count(), 0);
    let good = bench.write("good", "abc\n");
    std::fs::rename(&good, &fifo).unwrap();
    completes(&refresher, id(1)).await;
    assert!(server.requests()[0].contains("x-key: abc"), "{:?}", server.requests());
    refresher.stop();
    refresher.ended().await;
    // the runtime ends only when its threads do: whoever still hangs gets a writer
    let release =
        tokio::task::spawn_blocking(move || drop(std::fs::OpenOptions::new().write(true).open(kept)));
    tokio::time::timeout(Duration::from_secs(20), release).await.unwrap().unwrap();
}
