//! What the tests stand on: a machine (a scratch root), a cloud, and the built binary.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use acusight_agent::api::http::Http;
use acusight_agent::clock::Clock;
use acusight_agent::config::ApiUrl;
use acusight_agent::mock::{ADMIN_TOKEN, Fault, FaultPlan, MockCloud, Moment, Recorded, Route};
use acusight_agent::secret::Secret;
use insta::internals::SettingsBindDropGuard;
use sha2::Digest as _;
use tempfile::TempDir;

/// As far as this build goes, and wherever the scratch directories are.
pub(crate) const WITHOUT_THE_REST: [&str; 3] =
    ["--no-edge", "--no-service", "--allow-volatile-state"];

/// A machine in a scratch directory, and a cloud for it to talk to.
pub(crate) struct Bench {
    pub(crate) cloud: MockCloud,
    root: TempDir,
    _filters: SettingsBindDropGuard,
}

/// How a run of the agent ended.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench::with(MockCloud::start())
    }

    pub(crate) fn with(cloud: MockCloud) -> Bench {
        let root = tempfile::tempdir().expect("a scratch directory");
        let mut settings = insta::Settings::clone_current();
        let port = cloud.origin().rsplit(':').next().unwrap_or_default();
        settings.add_filter(&regex_of(&root.path().display().to_string()), "[ROOT]");
        settings.add_filter(&format!(":{port}"), ":[PORT]");
        settings.add_filter(
            r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
            "[UUID]",
        );
        settings.add_filter(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", "[TIME]");
        settings.add_filter(r"apt_[0-9a-f]{64}", "apt_[TOKEN]");
        Bench {
            cloud,
            root,
            _filters: settings.bind_to_scope(),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.root().join("var/lib/acusight")
    }

    /// The agent on this machine, pointed at this cloud, in an environment of its own.
    pub(crate) fn agent(&self, args: &[&str]) -> Command {
        let mut command = self.bare_agent(args);
        command.env("ACUSIGHT_API_URL", self.cloud.api_url());
        command.env("ACUSIGHT_RETRY_FOR", "5");
        command
    }

    /// The same, with every setting at its default.
    pub(crate) fn bare_agent(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_acusight-agent"));
        command
            .env_clear()
            // No Docker unless a test brings one: results must not depend on the machine.
            .env("DOCKER_HOST", "unix:///nonexistent/docker.sock")
            .arg("--root")
            .arg(self.root())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Run {
        Run::of(self.agent(args))
    }

    /// `token …` as the administrator.
    pub(crate) fn admin(&self, args: &[&str]) -> Run {
        let mut command = self.agent(args);
        command.env("ACUSIGHT_ADMIN_TOKEN", ADMIN_TOKEN);
        Run::of(command)
    }

    /// `provision`, with the token in a file, as far as this build goes.
    pub(crate) fn provision_command(&self, token: &Secret, args: &[&str]) -> Command {
        let file = self.token_file(token.expose());
        let mut command = self.agent(&["provision", "--token-file"]);
        command
            .arg(file)
            .args(WITHOUT_THE_REST)
            .args(["--name", "edge-1"])
            .args(args);
        command
    }

    pub(crate) fn provision(&self, token: &Secret) -> Run {
        Run::of(self.provision_command(token, &[]))
    }

    pub(crate) fn token_file(&self, text: &str) -> PathBuf {
        let path = self.root().join("given-token");
        write_private(&path, text);
        path
    }

    /// Until the cloud has received this call, answered or not.
    pub(crate) fn wait_for_call(&self, route: Route) {
        let made = |requests: &[Recorded]| requests.iter().any(|call| call.route == Some(route));
        let seen = self.cloud.wait_until(Duration::from_secs(20), made);
        assert!(seen, "no call of {route:?}");
    }

    /// The files of the state directory, by name.
    pub(crate) fn state_files(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.state_dir()) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .map(|entry| {
                let entry = entry.expect("a directory entry");
                entry.file_name().to_string_lossy().into_owned()
            })
            .collect();
        names.sort();
        names
    }

    /// How often the only token of the cloud was used.
    pub(crate) fn uses(&self) -> u64 {
        let listed = self.admin(&["token", "list", "--json"]).json();
        listed["tokens"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|token| token["use_count"].as_u64().expect("a count"))
            .sum()
    }

    /// The stored credential: the key and what came with it.
    pub(crate) fn credential(&self) -> Option<serde_json::Value> {
        let text = fs::read_to_string(self.state_dir().join("device-key")).ok()?;
        serde_json::from_str(text.lines().nth(1)?).ok()
    }

    pub(crate) fn device_key(&self) -> Option<String> {
        Some(self.credential()?["device_key"].as_str()?.to_owned())
    }
}

impl Run {
    pub(crate) fn of(mut command: Command) -> Run {
        Run::from_output(command.output().expect("the agent starts"))
    }

    pub(crate) fn with_stdin(mut command: Command, stdin: &str) -> Run {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let mut pipe = child.stdin.take().expect("a pipe");
        pipe.write_all(stdin.as_bytes()).expect("it reads");
        drop(pipe);
        Run::from_output(child.wait_with_output().expect("it ends"))
    }

    pub(crate) fn from_output(output: Output) -> Run {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the agent speaks UTF-8");
        Run {
            code: output.status.code().expect("it ends by itself"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// For snapshots: the code, then what was said, then what was answered.
    pub(crate) fn told(&self) -> String {
        let mut told = format!("exit {}\n", self.code);
        if !self.stderr.is_empty() {
            told.push_str(&format!("-- stderr\n{}", self.stderr));
        }
        if !self.stdout.is_empty() {
            told.push_str(&format!("-- stdout\n{}", self.stdout));
        }
        told
    }

    /// Only the lines of the error itself, without the steps before it.
    pub(crate) fn error(&self) -> String {
        let lines: Vec<&str> = self
            .stderr
            .lines()
            .skip_while(|line| !line.starts_with("error:"))
            .collect();
        format!("exit {}\n{}", self.code, lines.join("\n"))
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(
            self.stdout.lines().count(),
            1,
            "one object: {}",
            self.stdout
        );
        serde_json::from_str(&self.stdout).expect("JSON on standard output")
    }

    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Run {
        assert_eq!(self.code, code, "{}", self.told());
        self
    }
}

/// A credential as the file store frames it.
pub(crate) fn framed(credential: &serde_json::Value) -> String {
    let text = credential.to_string();
    let sum = acusight_agent::secret::hex(&sha2::Sha256::digest(text.as_bytes()));
    format!("acusight-credential 1\n{text}\nsha256 {sum}\n")
}

/// The answer to `route` is lost after the server has done its work.
pub(crate) fn lost_answer(route: Route) -> FaultPlan {
    let reset = Fault::Reset {
        moment: Moment::AfterCommit,
    };
    reset.on(route).times(1)
}

pub(crate) fn write_private(path: &Path, text: &str) {
    write_with_mode(path, text, 0o600);
}

pub(crate) fn write_with_mode(path: &Path, text: &str, mode: u32) {
    let parent = path.parent().expect("a parent");
    fs::create_dir_all(parent).expect("made");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .expect("created");
    file.set_permissions(fs::Permissions::from_mode(mode))
        .expect("mode set");
    file.write_all(text.as_bytes()).expect("written");
}

/// A child that is not left behind when a test fails.
pub(crate) struct Running(pub(crate) Option<Child>);

impl Running {
    pub(crate) fn start(mut command: Command) -> Running {
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        Running(Some(child))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.as_ref().expect("still running").id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let child = self.0.as_ref().expect("still running");
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).expect("signalled");
    }

    pub(crate) fn finish(mut self) -> Run {
        let child = self.0.take().expect("still running");
        Run::from_output(child.wait_with_output().expect("it ends"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Whether this test can be root here; says so if not. In CI it must be.
pub(crate) fn is_root(wanted_for: &str) -> bool {
    possible(
        rustix::process::geteuid().is_root(),
        &format!("{wanted_for} needs root"),
    )
}

/// Whether this program is installed; says so if not. In CI it must be.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    possible(found, &format!("{program} is not installed"))
}

fn possible(it_is: bool, why_not: &str) -> bool {
    if !it_is {
        assert!(std::env::var_os("CI").is_none(), "{why_not}");
        #[expect(clippy::print_stdout, reason = "said out loud")]
        {
            println!("skipped: {why_not}");
        }
    }
    it_is
}

/// A client of the library's own for tests below the command line.
pub(crate) fn http_for(api_url: &str) -> (Http, ApiUrl) {
    let base = ApiUrl::parse(api_url, false).expect("a good address");
    let http = Http::new(None, &base, Clock::system()).expect("a client");
    (http, base)
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}

fn regex_of(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escape = (!c.is_alphanumeric() && c != '/').then_some('\\');
            escape.into_iter().chain([c])
        })
        .collect()
}
