//! Every place a token may come from.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use acusight_agent::secret::Secret;

use crate::support::{Bench, Run, WITHOUT_THE_REST, write_private, write_with_mode};

struct Given {
    bench: Bench,
    token: Secret,
}

fn given() -> Given {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    Given { bench, token }
}

impl Given {
    fn provision(&self, args: &[&str]) -> std::process::Command {
        let mut command = self.bench.agent(&["provision"]);
        command.args(WITHOUT_THE_REST).args(args);
        command
    }
}

#[test]
fn standard_input_a_descriptor_a_variable_a_credential_and_a_named_file() {
    let text = |token: &Secret| format!("\u{feff}  {}\r\n", token.expose());
    {
        let given = given();
        let command = given.provision(&["--token-file", "-"]);
        Run::with_stdin(command, &text(&given.token)).expect(0);
    }
    {
        let given = given();
        let command = given.provision(&["--token-fd", "0"]);
        Run::with_stdin(command, &text(&given.token)).expect(0);
    }
    {
        let given = given();
        let mut command = given.provision(&[]);
        command.env("ACUSIGHT_TOKEN", given.token.expose());
        Run::of(command).expect(0);
    }
    {
        let given = given();
        let credentials = given.bench.root().join("credentials");
        write_private(
            &credentials.join("acusight.token"),
            &text(&given.token).replace('\u{feff}', ""),
        );
        let mut command = given.provision(&[]);
        command.env("CREDENTIALS_DIRECTORY", &credentials);
        // It comes before the variables.
        command.env("ACUSIGHT_TOKEN", "apt_00");
        Run::of(command).expect(0);
    }
    {
        let given = given();
        let file = given.bench.token_file(&text(&given.token));
        let mut command = given.provision(&[]);
        command.env("ACUSIGHT_TOKEN_FILE", &file);
        let run = Run::of(command).expect(0);
        assert!(file.exists(), "a file that somebody named is theirs");
        assert!(
            run.stderr.contains("The token is still in"),
            "{}",
            run.stderr
        );
    }
}

#[test]
fn a_drop_in_is_consumed_but_only_by_success() {
    for place in [
        "etc/acusight/token",
        "boot/firmware/acusight-token",
        "boot/acusight-token",
    ] {
        let given = given();
        let path = given.bench.root().join(place);
        write_private(&path, "apt_00");
        Run::of(given.provision(&[])).expect(4);
        assert!(path.exists(), "{place} is kept after a rejection");
        write_private(&path, given.token.expose());
        Run::of(given.provision(&[])).expect(0);
        assert!(!path.exists(), "{place} is consumed");
    }
}

#[test]
fn a_token_on_the_command_line_works_and_earns_a_warning() {
    let given = given();
    let run = Run::of(given.provision(&[given.token.expose()])).expect(0);
    insta::assert_snapshot!(run.stderr.lines().next().unwrap_or_default(), @"warning: a token on the command line could be seen by everybody on this machine until now, may still be seen in the arguments of sudo and sh, and stays in the shell's history; safer: --token-file FILE, or no token and the prompt");
    assert!(!run.stderr.contains(given.token.expose()));
}

#[test]
fn no_token_and_no_terminal_is_an_error_at_once() {
    let given = given();
    let mut command = given.provision(&[]);
    // A session of its own has no terminal to ask on.
    let program = command.get_program().to_owned();
    let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let envs: Vec<_> = command
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    command = std::process::Command::new("setsid");
    command.arg("--wait").arg(program).args(args).envs(envs);
    insta::assert_snapshot!(Run::of(command).error(), @"
    exit 2
    error: no token was given
    token: the token was not used
    hint: give it with --token-file PATH (or - for standard input); an administrator makes one with `acusight-agent token create NAME`
    ");
    assert_eq!(given.bench.cloud.requests().len(), 0);
}

#[test]
fn two_tokens_are_one_too_many() {
    let given = given();
    let file = given.bench.token_file(given.token.expose());
    let file = file.to_str().expect("a name");
    let run = Run::of(given.provision(&["--token-file", file, given.token.expose()]));
    insta::assert_snapshot!(run.told(), @"
    exit 2
    -- stderr
    error: more than one token was given
    token: the token was not used
    hint: give one of: TOKEN, --token-file PATH (or - for standard input), --token-fd N
    ");
    // A second word is a mistake that must not repeat the token.
    let run = Run::of(given.provision(&["apt_0011", "apt_2233"]));
    insta::assert_snapshot!(run.told(), @"
    exit 2
    -- stderr
    error: unexpected argument 'apt_…' found
    hint: Usage: acusight-agent provision [OPTIONS] [TOKEN]
    For more information, try '--help'.
    ");
    assert_eq!(given.bench.cloud.requests().len(), 0);
}

#[test]
fn what_is_not_a_token_is_said_without_repeating_it() {
    let given = given();
    let told = |args: &[&str]| Run::of(given.provision(args)).told();
    insta::assert_snapshot!(told(&["adk_0123456789abcdef"]), @"
    exit 2
    -- stderr
    error: what the command line holds is not a provisioning token: this is a device key (`adk_…`), not a provisioning token (`apt_…`)
    token: the token was not used
    hint: a device key belongs to one device and is never typed; ask the administrator for a token
    ");
    insta::assert_snapshot!(told(&["hunter2"]), @"
    exit 2
    -- stderr
    error: what the command line holds is not a provisioning token: a provisioning token starts with `apt_`
    token: the token was not used
    hint: copy it again, whole: apt_ and a row of digits and letters a to f
    ");
    insta::assert_snapshot!(told(&["--token-file", "/nonexistent/token"]), @"
    exit 2
    -- stderr
    error: /nonexistent/token does not exist
    token: the token was not used
    hint: check the path
    ");
    insta::assert_snapshot!(told(&["--token-fd", "99"]), @"
    exit 2
    -- stderr
    error: file descriptor 99 does not exist
    token: the token was not used
    hint: check the path
    ");
    let empty = given.bench.token_file("\n");
    insta::assert_snapshot!(told(&["--token-file", empty.to_str().expect("a name")]), @"
    exit 2
    -- stderr
    error: what [ROOT]/given-token holds is not a provisioning token: it is empty
    token: the token was not used
    hint: copy it again, whole: apt_ and a row of digits and letters a to f
    ");
    let big = given.bench.token_file(&"x".repeat(65 * 1024));
    insta::assert_snapshot!(told(&["--token-file", big.to_str().expect("a name")]), @"
    exit 2
    -- stderr
    error: [ROOT]/given-token is larger than 65536 bytes
    token: the token was not used
    hint: look at what [ROOT]/given-token holds; it is not ours
    ");
    assert_eq!(given.bench.cloud.requests().len(), 0);
    assert_eq!(given.bench.state_files(), [""; 0]);
}

#[test]
fn a_token_file_that_others_can_read_is_refused() {
    let given = given();
    let path = given.bench.root().join("shared-token");
    write_with_mode(&path, given.token.expose(), 0o644);
    let path = path.to_str().expect("a name");
    insta::assert_snapshot!(Run::of(given.provision(&["--token-file", path])).told(), @"
    exit 2
    -- stderr
    error: [ROOT]/shared-token can be read by others on this machine (mode 0644)
    token: the token was not used
    hint: chmod 600 [ROOT]/shared-token; if others use this machine, have the token revoked and use a new one
    ");
    // The way out that the hint names.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("closed");
    Run::of(given.provision(&["--token-file", path])).expect(0);
}

#[test]
fn the_prompt_does_not_echo_and_ctrl_c_gives_the_terminal_back() {
    let given = given();
    let command_line = |given: &Given| {
        let command = given.provision(&[]);
        let mut line = String::from("env -i");
        for (name, value) in command.get_envs() {
            let value = value.unwrap_or_default().to_string_lossy();
            line.push_str(&format!(" {}='{value}'", name.to_string_lossy()));
        }
        for word in std::iter::once(command.get_program()).chain(command.get_args()) {
            line.push_str(&format!(" '{}'", word.to_string_lossy()));
        }
        line
    };
    let mut shell = rexpect::spawn_bash(Some(20_000)).expect("a terminal");
    // As people have it; the test's terminal begins without.
    shell
        .send_line("stty echo; before=$(stty -g)")
        .expect("typed");
    shell.wait_for_prompt().expect("a prompt");
    // Both ways of ending it, the typed one and the polite form of kill.
    for ending in ["Ctrl-C", "TERM"] {
        shell.send_line(&command_line(&given)).expect("typed");
        shell.exp_string("not shown): ").expect("asked");
        if ending == "TERM" {
            let agent = process_with(given.bench.root()).expect("the agent runs");
            rustix::process::kill_process(agent, rustix::process::Signal::TERM).expect("signalled");
        } else {
            shell.send_control('c').expect("typed");
        }
        shell.exp_string("hint:").expect("told");
        shell.wait_for_prompt().expect("a prompt");
        let compare = "echo code $?; [ \"$before\" = \"$(stty -g)\" ] && echo as\\ before";
        shell.send_line(compare).expect("typed");
        shell.exp_string("code 130").expect("the code");
        shell.exp_string("as before").expect("the terminal's modes");
        shell.wait_for_prompt().expect("a prompt");
    }
    assert_eq!(given.bench.cloud.requests().len(), 0);

    shell.send_line(&command_line(&given)).expect("typed");
    shell.exp_string("not shown): ").expect("asked");
    // A slip of the finger, taken back.
    shell
        .send_line(&format!("x\u{7f}{}", given.token.expose()))
        .expect("typed");
    let seen = shell
        .exp_string("Next: acusight-agent status")
        .expect("done");
    assert!(!seen.contains(given.token.expose()), "{seen}");
    assert_eq!(given.bench.cloud.devices().len(), 1);
    shell.wait_for_prompt().expect("a prompt");
    shell.send_line("exit").expect("typed");
    shell.exp_eof().expect("the end");
}

/// The agent that runs on this root.
fn process_with(root: &std::path::Path) -> Option<rustix::process::Pid> {
    let root = root.to_str().expect("a name");
    fs::read_dir("/proc").expect("there").find_map(|entry| {
        let path = entry.expect("an entry").path();
        let pid: i32 = path.file_name()?.to_str()?.parse().ok()?;
        let line = fs::read(path.join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let is_agent = line.split('\0').next()?.ends_with("/acusight-agent");
        (is_agent && line.contains(root)).then(|| rustix::process::Pid::from_raw(pid))?
    })
}
