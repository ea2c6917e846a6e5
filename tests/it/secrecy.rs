//! No output at any level, and no file but the one made for it, holds a secret.

use std::fs;
use std::path::Path;

use acusight_agent::mock::{ADMIN_TOKEN, Fault, Moment, Route};

use crate::support::{Bench, Run};

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

        let line_of = |name: &str| {
            let text = fs::read_to_string(bench.state_dir().join(name)).expect("stored");
            text.lines().nth(1).expect("framed").to_owned()
        };
        let (key, edge_key) = (line_of("device-key"), line_of("edge-key"));
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
                !text.contains(&edge_key) || name.starts_with("edge-key"),
                "{name}"
            );
        }
    }
}
