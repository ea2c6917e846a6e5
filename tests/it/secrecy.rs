//! No output at any level, and no file but the one made for it, holds a secret.

use std::fs;
use std::path::Path;

use acusight_agent::mock::{ADMIN_TOKEN, Fault, Moment, Route};

use crate::support::{Bench, Run, Running, WITHOUT_THE_REST};

fn files_below(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn at_trace_level_with_failures_in_every_form_nothing_tells() {
    for format in ["human", "journald", "json"] {
        let bench = Bench::new();
        let token = bench.cloud.create_token("t", true);
        let loud = ["-vvv", "--log-format", format, "--retry-for", "30"];
        let mut said = String::new();
        let mut hear = |run: Run| {
            said.push_str(&run.stdout);
            said.push_str(&run.stderr);
            run.code
        };

        let echo = Fault::Body {
            status: 401,
            text: format!(
                r#"{{"success":false,"error":{{"code":"INVALID_TOKEN","message":"no such token {}"}}}}"#,
                token.expose()
            ),
        };
        bench.cloud.inject(echo.on(Route::Provision).times(1));
        assert_eq!(hear(Run::of(bench.provision_command(&token, &loud))), 4);
        let cut = Fault::Reset {
            moment: Moment::AfterCommit,
        };
        bench.cloud.inject(cut.on(Route::Provision).times(1));
        assert_eq!(hear(Run::of(bench.provision_command(&token, &loud))), 0);
        assert_eq!(hear(Run::of(bench.provision_command(&token, &loud))), 0);
        for args in [
            &["status"][..],
            &["status", "--json"],
            &["identity"],
            &["token", "list"],
        ] {
            let mut command = bench.agent(args);
            command.args(loud).env("ACUSIGHT_ADMIN_TOKEN", ADMIN_TOKEN);
            assert_eq!(hear(Run::of(command)), 0);
        }
        assert!(said.contains("answered"), "the log was on: {said}");

        let stored = bench.credential().expect("stored");
        let secret = |name: &str| stored[name].as_str().expect("a secret").to_owned();
        let (key, edge_key) = (secret("device_key"), secret("edge_key"));
        for secret in [token.expose(), &key, &edge_key, ADMIN_TOKEN] {
            assert!(!said.contains(secret), "{format}: {said}");
        }

        let mut files = Vec::new();
        files_below(bench.root(), &mut files);
        for path in files {
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let text = String::from_utf8(fs::read(&path).expect("readable")).expect("text");
            assert!(
                !text.contains(token.expose()) || name == "given-token",
                "{name}"
            );
            assert!(
                !text.contains(&key) || name.starts_with("device-key"),
                "{name}"
            );
            assert!(
                !text.contains(&edge_key) || name.starts_with("device-key"),
                "{name}"
            );
        }
    }
}

#[test]
fn neither_arguments_nor_environment_of_the_process_show_the_token() {
    for way in ["argument", "variable"] {
        let bench = Bench::new();
        let token = bench.cloud.create_token("t", true);
        let hang = Fault::Hang {
            moment: Moment::BeforeCommit,
        };
        bench.cloud.inject(hang.on(Route::Provision).times(1));
        let mut command = bench.agent(&["provision"]);
        command.args(WITHOUT_THE_REST);
        match way {
            "argument" => command.arg(token.expose()),
            _ => command.env("ACUSIGHT_TOKEN", token.expose()),
        };
        let run = Running::start(command);
        bench.wait_for_call(Route::Provision);
        let proc = Path::new("/proc").join(run.pid().to_string());
        let text = |name| {
            let bytes = fs::read(proc.join(name)).expect("readable");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        for name in ["cmdline", "environ"] {
            assert!(!text(name).contains(token.expose()), "{way} in {name}");
        }
        assert!(text("cmdline").contains("provision"), "{}", text("cmdline"));
        let limits = text("limits");
        let cores = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"));
        let cores: Vec<&str> = cores.expect("a limit").split_whitespace().collect();
        assert_eq!(cores[4..6], ["0", "0"], "{limits}");

        run.signal(rustix::process::Signal::INT);
        let told = run.finish().expect(130);
        let warned = told.stderr.contains("could be seen by everybody");
        assert_eq!(warned, way == "argument", "{}", told.told());
    }
}
