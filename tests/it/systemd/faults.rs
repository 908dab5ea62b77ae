//! A service that is stopped, or killed at work.

use std::time::{Duration, Instant};

use super::Nodes;
use crate::agents::cluster::noise;
use crate::support::needs_root;

/// Restarts that follow within one test are not for the unit's own time.
const QUICK: &str = "mkdir -p /etc/systemd/system/syncagent.service.d
    printf '[Service]\\nWatchdogSec=2s\\nRestartSec=100ms\\n' > /etc/systemd/system/syncagent.service.d/quick.conf
    systemctl daemon-reload";

#[test]
fn stopped_it_is_restarted_by_the_watchdog_and_killed_at_work_it_goes_on() {
    if !needs_root("a systemd of its own") {
        return;
    }
    let n = Nodes::new("fault");
    let (a, b) = (&n.source, &n.mirror);
    n.configure(&[("t", "/srv/t", "/srv/t", "", "max-delete = \"100%\"")]);
    a.write("/srv/t/first", "1");
    b.sh("mkdir -p /srv/t");
    b.sh(QUICK);
    n.open_and_start();
    n.converge("t");

    // stopped: nothing feeds the watchdog
    let before = b.property("MainPID");
    b.sh("systemctl kill --kill-whom=main --signal=STOP syncagent");
    b.until("the restart", || {
        b.property("NRestarts") == "1"
            && b.property("ActiveState") == "active"
            && b.property("MainPID") != before
    });
    assert!(b.journal().contains("Watchdog timeout"), "{}", b.journal());
    n.converge("t");

    // killed at a different point of its work each time, while the source is written to
    let begun = Instant::now();
    let mut kills = 0;
    for round in 0_u64.. {
        for file in 0..30 {
            let path = format!("/srv/t/d{}/f{file}", round % 5);
            a.write(&path, noise(round * 100 + file, 20_000));
        }
        let committing = || b.path("/srv/t/.syncagent/journal").exists();
        let until = Instant::now() + Duration::from_millis(400);
        // every other time as soon as a commit has begun
        while Instant::now() < until && !(round % 2 == 0 && committing()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        b.sh("systemctl kill --kill-whom=main --signal=KILL syncagent");
        kills += 1;
        let expected = (kills + 1).to_string();
        b.until("the restart", || {
            b.property("NRestarts") == expected && b.property("ActiveState") == "active"
        });
        if kills == 10 || begun.elapsed() > Duration::from_secs(25) {
            break;
        }
    }
    assert!(kills >= 5, "only {kills} kills");
    a.write("/srv/t/last", "1");
    n.converge("t");
    assert_eq!(a.digest("/srv/t"), b.digest("/srv/t"));
    for left in ["stage", "stage.old", "stage.done", "unplaced", "partial", "journal"] {
        assert!(!b.path("/srv/t/.syncagent").join(left).exists(), "{left} is left");
    }
}
