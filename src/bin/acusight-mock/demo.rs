//! The whole product on this machine, against the mock cloud, in a scratch directory.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use acusight_agent::cli;
use acusight_agent::env_vars::Env;
use acusight_agent::error::Exit;
use acusight_agent::mock::{ADMIN_TOKEN, MockCloud};
use anyhow::{Context as _, ensure};

pub(super) fn run() -> anyhow::Result<()> {
    let began = Instant::now();
    let demo = Demo {
        scratch: Scratch::make()?,
        cloud: MockCloud::builder().start()?,
    };
    demo.tell()?;
    let dir = demo.scratch.0.clone();
    drop(demo);
    ensure!(!dir.exists(), "{} is still there", dir.display());
    println!(
        "\nEvery step was verified, in {:.1} s. Nothing was left behind.",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

struct Demo {
    scratch: Scratch,
    cloud: MockCloud,
}

impl Demo {
    fn tell(&self) -> anyhow::Result<()> {
        heading("A cloud of our own");
        println!(
            "  The mock of the Acusight cloud answers at {}",
            self.cloud.api_url()
        );
        println!(
            "  Everything the agent writes goes below {}",
            self.scratch.0.display()
        );

        heading("The administrator makes a token, good for one device");
        let admin_file = self.scratch.secret_file("admin-token", ADMIN_TOKEN)?;
        let as_admin = ["--admin-token-file", &admin_file];
        let create = ["token", "create", "Demo", "--single-use"];
        let created = self.agent("admin", &[&create[..], &as_admin].concat(), Exit::Done)?;
        let token = created
            .split_whitespace()
            .find(|word| word.starts_with("apt_"))
            .context("no token was printed")?;

        heading("The device is provisioned");
        let token_file = self.scratch.secret_file("device-token", token)?;
        let provision = [
            "provision",
            "--token-file",
            &token_file,
            "--no-edge",
            "--no-service",
            "--allow-volatile-state",
        ];
        self.agent("device", &provision, Exit::Done)?;
        let key = self.scratch.0.join("device/var/lib/acusight/device-key");
        let mode = fs::metadata(&key)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "the key file has mode {mode:o}");

        heading("Once more: nothing happens, and no token is used");
        self.agent("device", &provision, Exit::Done)?;

        heading("How it is");
        self.agent("device", &["status"], Exit::Done)?;

        heading("Another machine tries the same token");
        let elsewhere = [&provision[..], &["--new-identity"]].concat();
        self.agent("thief", &elsewhere, Exit::TokenRejected)?;

        heading("What the cloud has seen");
        let devices = self.cloud.devices();
        ensure!(
            devices.len() == 1,
            "the cloud has {} devices",
            devices.len()
        );
        println!(
            "  device told  {}\n",
            serde_json::to_string(&devices[0].info)?
        );
        for request in self.cloud.requests() {
            let status = request
                .status
                .map_or("-".into(), |status| status.to_string());
            println!("  {status}  {:6} {}", request.method, request.path);
        }
        println!();
        let list = [&["token", "list"][..], &as_admin].concat();
        let listed = self.agent("admin", &list, Exit::Done)?;
        ensure!(listed.contains("once, at"), "the token was not used once");
        ensure!(!listed.contains("apt_"), "the list shows a token");
        Ok(())
    }

    /// Runs the agent's own command line, as `main` does, with its own root; what it printed.
    fn agent(&self, who: &str, args: &[&str], expected: Exit) -> anyhow::Result<String> {
        println!("  $ acusight-agent {}\n", shown(args));
        let root = self.scratch.0.join(who);
        let mut line: Vec<OsString> = vec!["acusight-agent".into(), "--root".into(), root.into()];
        let api_url = self.cloud.api_url();
        line.extend(["--api-url", &api_url, "--retry-for", "5"].map(OsString::from));
        line.extend(args.iter().map(OsString::from));
        let env = Env::of_process().only(&["DOCKER_HOST", "NO_COLOR"]);
        let tee = Tee::default();
        let exit = cli::run(line, env, tee.clone());
        ensure!(
            exit == expected,
            "the agent ended with {} ({}) instead of {} ({})",
            exit.code(),
            exit.meaning(),
            expected.code(),
            expected.meaning()
        );
        Ok(String::from_utf8(tee.0.take())?)
    }
}

/// Shows what is printed, and keeps it.
#[derive(Clone, Default)]
struct Tee(Rc<RefCell<Vec<u8>>>);

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = io::stdout().write(bytes)?;
        self.0.borrow_mut().extend_from_slice(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

fn shown(args: &[&str]) -> String {
    let quoted: Vec<String> = args
        .iter()
        .map(|arg| {
            if arg.contains(' ') {
                format!("{arg:?}")
            } else {
                (*arg).to_owned()
            }
        })
        .collect();
    quoted.join(" ")
}

fn heading(text: &str) {
    println!("\n== {text}\n");
}

/// A private directory that goes when the demo ends, however it ends.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> anyhow::Result<Scratch> {
        let name = format!("acusight-demo-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("could not create {}", path.display()))?;
        Ok(Scratch(path))
    }

    #[expect(clippy::disallowed_methods, reason = "the demo plays the person here")]
    fn secret_file(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.0.join(name);
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        (&file).write_all(text.as_bytes())?;
        Ok(path.display().to_string())
    }
}

impl Drop for Scratch {
    #[expect(clippy::disallowed_methods, reason = "the demo cleans up after itself")]
    fn drop(&mut self) {
        let path: &Path = &self.0;
        if let Err(error) = fs::remove_dir_all(path) {
            eprintln!("warning: {} is left behind: {error}", path.display());
        }
    }
}
