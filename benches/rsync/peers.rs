//! The programs that ours is compared with over the network: an rsync daemon, rsync over ssh, lsyncd, Syncthing. Each runs with
//! keys, ports and state of its own and ends with its value.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::free_port;
use crate::run::{At, Bench, Res};
use crate::usage::cpu;

/// lsyncd's first look at a tree.
const STARTUP: Duration = Duration::from_secs(120);

/// A program in the background; ended when dropped.
pub(crate) struct Running(Child);

impl Running {
    fn start(mut command: Command, log: &Path) -> Res<Self> {
        let out = File::create(log).at(log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        Ok(Self(command.spawn().at(Path::new(command.get_program()))?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Syncthing and lsyncd have children, which end with them only when they are asked.
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::TERM,
        );
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end && matches!(self.0.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a program is installed.
pub(crate) fn installed(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn listening(port: u16) -> Res<()> {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(format!("nothing listens on port {port}").into())
}

/// An rsync daemon on loopback with one module, `t`.
pub(crate) struct Daemon {
    running: Running,
    port: u16,
    config: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for path in [&self.config, &self.config.with_extension("log")] {
            let _ = fs::remove_file(path);
        }
    }
}

impl Daemon {
    pub(crate) fn new(bench: &Bench, tree: &Path) -> Res<Self> {
        let port = free_port()?;
        // Each its own: a daemon reads it again for every connection.
        let config = bench.work.join(format!("rsyncd-{port}.conf"));
        let text = format!(
            "use chroot = no\nuid = 0\ngid = 0\n[t]\npath = {}\nread only = false\nexclude = /.syncagent\n",
            tree.display()
        );
        fs::write(&config, text).at(&config)?;
        let mut command = Command::new(&bench.rsync);
        command.args(["--daemon", "--no-detach", "--address=127.0.0.1", &format!("--port={port}")]);
        command.arg(format!("--config={}", config.display()));
        let running = Running::start(command, &config.with_extension("log"))?;
        listening(port)?;
        Ok(Self { running, port, config })
    }

    pub(crate) fn url(&self) -> String {
        format!("rsync://127.0.0.1:{}/t/", self.port)
    }

    /// `rsync -a`, from the daemon into `dst`.
    pub(crate) fn pull(&self, bench: &Bench, options: &[&str], dst: &Path) -> Res<Command> {
        let mut command = Command::new(&bench.rsync);
        command.arg("-a").args(options).arg(self.url()).arg(dst.join(""));
        bench.quiet(&mut command)?;
        Ok(command)
    }

    /// Processor time of the daemon and of its connections that ended.
    pub(crate) fn cpu(&self) -> Res<f64> {
        cpu(self.running.0.id())
    }
}

/// An ssh server on loopback that lets the user of the benchmark in by a key.
pub(crate) struct Ssh {
    _running: Running,
    port: u16,
    dir: PathBuf,
}

impl Ssh {
    pub(crate) fn new(bench: &Bench) -> Res<Self> {
        let (port, dir) = (free_port()?, bench.work.join("ssh"));
        if dir.exists() {
            fs::remove_dir_all(&dir).at(&dir)?;
        }
        fs::create_dir_all(&dir).at(&dir)?;
        for key in ["host", "user"] {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key));
            bench.quiet(&mut command)?;
            let status = command.status().at(Path::new("ssh-keygen"))?;
            bench.check(&command, status)?;
        }
        // Privilege separation wants it.
        fs::create_dir_all("/run/sshd")?;
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f", "/dev/null", "-o", "StrictModes=no", "-o", "UsePAM=no"]);
        command.args(["-o", "PermitRootLogin=yes", "-o", "PidFile=none", "-o", "ListenAddress=127.0.0.1"]);
        command.args(["-p", &port.to_string()]).arg("-h").arg(dir.join("host"));
        command.arg("-o").arg(format!("AuthorizedKeysFile={}", dir.join("user.pub").display()));
        let running = Running::start(command, &dir.join("log"))?;
        listening(port)?;
        Ok(Self { _running: running, port, dir })
    }

    /// `rsync -a` over ssh, from `src` into `dst`.
    pub(crate) fn pull(&self, bench: &Bench, src: &Path, dst: &Path) -> Res<Command> {
        let shell = format!(
            "ssh -p {} -i {} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            self.port,
            self.dir.join("user").display()
        );
        let mut command = Command::new(&bench.rsync);
        command.args(["-a", "--exclude=/.syncagent", "-e", &shell]);
        command.arg(format!("root@127.0.0.1:{}", src.join("").display())).arg(dst.join(""));
        bench.quiet(&mut command)?;
        Ok(command)
    }
}

/// lsyncd, which watches `src` and starts rsync to the daemon's module.
pub(crate) fn lsyncd(bench: &Bench, src: &Path, daemon: &Daemon, delay: u32) -> Res<Running> {
    let config = bench.work.join("lsyncd.lua");
    let text = format!(
        "sync {{ default.rsync, source = \"{}\", target = \"{}\", delay = {delay}, exclude = {{ '/.syncagent' }}, \
         rsync = {{ binary = \"{}\", archive = true }} }}\n",
        src.join("").display(),
        daemon.url(),
        which(&bench.rsync)?.display()
    );
    fs::write(&config, text).at(&config)?;
    let mut command = Command::new("lsyncd");
    command.arg("-nodaemon").arg(&config);
    let log = bench.work.join("lsyncd.log");
    let running = Running::start(command, &log)?;
    // A change during its first look at everything can be lost.
    let end = Instant::now() + STARTUP;
    while !fs::read_to_string(&log).at(&log)?.contains(" finished.") {
        if Instant::now() > end {
            return Err("lsyncd did not finish its startup".into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_millis(500));
    Ok(running)
}

/// lsyncd wants a full path.
fn which(program: &Path) -> Res<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|dir| dir.join(program)).find(|path| path.is_file());
    found.ok_or_else(|| format!("{}: not found", program.display()).into())
}

/// Two Syncthing instances, one folder: `src` is sent, `dst` receives; watcher delay 1 s, no discovery, no relays.
pub(crate) fn syncthing(bench: &Bench, src: &Path, dst: &Path) -> Res<[Running; 2]> {
    let home = bench.work.join("syncthing");
    if home.exists() {
        fs::remove_dir_all(&home).at(&home)?;
    }
    let homes = ["send", "receive"].map(|name| home.join(name));
    let ports = [free_port()?, free_port()?];
    let mut ids = Vec::new();
    for home in &homes {
        let mut command = Command::new("syncthing");
        command.arg("generate").arg(format!("--home={}", home.display()));
        bench.quiet(&mut command)?;
        let status = command.status().at(Path::new("syncthing"))?;
        bench.check(&command, status)?;
        let mut command = Command::new("syncthing");
        command.arg(format!("--home={}", home.display())).arg("--device-id");
        let id = command.output().at(Path::new("syncthing"))?.stdout;
        ids.push(String::from_utf8_lossy(&id).trim().to_owned());
    }
    for dir in [src, dst] {
        let marker = dir.join(".stfolder");
        fs::create_dir_all(&marker).at(&marker)?;
    }
    let ignore = "/.syncagent\n";
    fs::write(src.join(".stignore"), ignore).at(src)?;
    fs::write(dst.join(".stignore"), ignore).at(dst)?;
    let mut running = Vec::new();
    for (me, (home, (kind, path))) in homes.iter().zip([("sendonly", src), ("receiveonly", dst)]).enumerate()
    {
        let device = |at: usize| {
            format!(
                "<device id=\"{}\" name=\"{at}\"><address>tcp://127.0.0.1:{}</address></device>",
                ids[at], ports[at]
            )
        };
        let text = format!(
            "<configuration version=\"36\"><folder id=\"t\" path=\"{}\" type=\"{kind}\" rescanIntervalS=\"3600\" \
             fsWatcherEnabled=\"true\" fsWatcherDelayS=\"1\"><device id=\"{}\"/><device id=\"{}\"/></folder>{}{}\
             <gui enabled=\"false\"/><options><listenAddress>tcp://127.0.0.1:{}</listenAddress>\
             <globalAnnounceEnabled>false</globalAnnounceEnabled><localAnnounceEnabled>false</localAnnounceEnabled>\
             <relaysEnabled>false</relaysEnabled><natEnabled>false</natEnabled><startBrowser>false</startBrowser>\
             <urAccepted>-1</urAccepted><crashReportingEnabled>false</crashReportingEnabled>\
             <reconnectionIntervalS>1</reconnectionIntervalS></options></configuration>",
            path.display(),
            ids[0],
            ids[1],
            device(0),
            device(1),
            ports[me],
        );
        let config = home.join("config.xml");
        fs::write(&config, text).at(&config)?;
        let mut command = Command::new("syncthing");
        command.args(["serve", "--no-browser", "--no-restart", "--no-upgrade"]);
        command.arg(format!("--home={}", home.display()));
        running.push(Running::start(command, &home.join("log"))?);
    }
    running.try_into().map_err(|_| "two instances".into())
}
