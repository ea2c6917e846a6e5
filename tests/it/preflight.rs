//! What is wrong with a machine is found before the token leaves it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use crate::support::{Bench, Run, WITHOUT_THE_REST, is_root, write_private};

#[test]
fn a_state_directory_that_is_not_fit_is_refused_before_the_token_is_used() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let state = bench.state_dir();

    fs::create_dir_all(&state).expect("made");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).expect("opened");
    insta::assert_snapshot!(bench.provision(&token).error(), @"
    exit 3
    error: the state directory [ROOT]/var/lib/acusight is open to others on this machine (mode 0755)
    token: the token was not used
    hint: chmod 700 [ROOT]/var/lib/acusight
    ");

    fs::remove_dir(&state).expect("removed");
    write_private(&state, "a file");
    insta::assert_snapshot!(bench.provision(&token).error(), @"
    exit 3
    error: the state directory [ROOT]/var/lib/acusight is not a directory
    token: the token may be spent
    hint: move [ROOT]/var/lib/acusight away
    ");

    fs::remove_file(&state).expect("removed");
    fs::create_dir_all(&state).expect("made");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).expect("closed");
    let key = state.join("device-key");
    write_private(&bench.root().join("foreign"), "key");
    symlink(bench.root().join("foreign"), &key).expect("linked");
    insta::assert_snapshot!(bench.provision(&token).error(), @"
    exit 3
    error: the stored key cannot be used: [ROOT]/var/lib/acusight/device-key is not trusted: it is a symbolic link
    token: the token was not used
    hint: look at it as root: ls -l [ROOT]/var/lib/acusight/device-key; move it away if it is not yours
    ");

    assert_eq!(bench.cloud.requests().len(), 0);
}

#[test]
fn a_full_disk_is_refused_before_the_token_is_used() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    // A real file system with 64 KiB in a mount namespace of its own, gone with the command.
    let command = bench.provision_command(&token, &[]);
    let mut line = format!(
        "mkdir -p {0} && mount -t tmpfs -o size=64k,mode=700 tmpfs {0} && exec",
        bench.state_dir().display()
    );
    for word in std::iter::once(command.get_program()).chain(command.get_args()) {
        line.push_str(&format!(" '{}'", word.to_string_lossy()));
    }
    let mut wrapped = std::process::Command::new("unshare");
    wrapped.args(["--mount", "sh", "-c", &line]);
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            wrapped.env(name, value);
        }
    }
    if !is_root("mounting a small file system") {
        return;
    }
    insta::assert_snapshot!(Run::of(wrapped).error(), @"
    exit 3
    error: there is no space left for the key: 65536 bytes free at [ROOT]/var/lib/acusight, 1048576 needed
    token: the token was not used
    hint: free some space there, or choose another directory with --state-dir
    ");
    assert_eq!(bench.cloud.requests().len(), 0);
}

#[test]
fn a_wrong_user_is_told_to_use_sudo() {
    if !is_root("becoming another user") {
        return;
    }
    use std::os::unix::process::CommandExt as _;
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    // The binary and the scratch directory are reached, but nothing can be written.
    let binary = bench.root().join("acusight-agent");
    fs::copy(env!("CARGO_BIN_EXE_acusight-agent"), &binary).expect("copied");
    fs::set_permissions(bench.root(), fs::Permissions::from_mode(0o755)).expect("opened");
    let mut command = std::process::Command::new(binary);
    command
        .env_clear()
        .env("ACUSIGHT_API_URL", bench.cloud.api_url())
        .env("ACUSIGHT_TOKEN", token.expose())
        .arg("--root")
        .arg(bench.root())
        .arg("provision")
        .args(WITHOUT_THE_REST)
        .uid(65534)
        .gid(65534);
    insta::assert_snapshot!(Run::of(command).error(), @"
    exit 3
    error: this needs root: could not create [ROOT]/var/lib/acusight: Permission denied (os error 13)
    token: the token was not used
    hint: run the same command with sudo
    ");
    assert_eq!(bench.cloud.requests().len(), 0);
}

#[test]
fn a_state_directory_that_does_not_outlive_a_restart_must_be_wanted() {
    if !is_root("mounting a file system in memory") {
        return;
    }
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let provision = |args: &[&str]| {
        let mut line = format!(
            "mkdir -p {0} && mount -t tmpfs -o mode=700 tmpfs {0} && exec '{1}' \"$@\"",
            bench.state_dir().display(),
            env!("CARGO_BIN_EXE_acusight-agent")
        );
        line.insert_str(0, "umask 077; ");
        let mut command = std::process::Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", &line, "sh", "--root"])
            .arg(bench.root())
            .args(["provision", "--no-edge", "--no-service", "--token-file"])
            .arg(bench.token_file(token.expose()))
            .args(args)
            .env("DOCKER_HOST", "unix:///nonexistent/docker.sock")
            .env("ACUSIGHT_API_URL", bench.cloud.api_url());
        Run::of(command)
    };
    insta::assert_snapshot!(provision(&[]).error(), @"
    exit 3
    error: the state directory [ROOT]/var/lib/acusight is on a tmpfs file system: what is stored there does not outlive a restart
    token: the token was not used
    hint: choose a directory on a disk with --state-dir; or add --allow-volatile-state if losing the key with the next restart is fine
    ");
    assert_eq!(bench.cloud.requests().len(), 0);
    provision(&["--allow-volatile-state"]).expect(0);
}

#[test]
fn a_state_directory_that_others_could_replace_is_refused() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    fs::create_dir_all(bench.root().join("var/lib")).expect("made");
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(bench.root().join("var/lib"), open).expect("opened");
    insta::assert_snapshot!(bench.provision(&token).error(), @"
    exit 3
    error: [ROOT]/var/lib belongs to others on this machine, or can be written to by them: they could put another state directory in its place
    token: the token was not used
    hint: chmod go-w [ROOT]/var/lib; chown root: [ROOT]/var/lib; or choose another directory with --state-dir
    ");
    assert_eq!(bench.cloud.requests().len(), 0);
    // With the sticky bit only owners can rename, as in /tmp.
    let sticky = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(bench.root().join("var/lib"), sticky).expect("closed");
    bench.provision(&token).expect(0);
}

#[test]
fn a_clock_before_the_build_is_named_before_anything_is_sent() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let mut command = bench.provision_command(&token, &[]);
    command.env("ACUSIGHT_CLOCK", "1970-01-01T00:00:07Z");
    let run = Run::of(command).expect(6);
    let told = "error: this machine's clock says 1970-01-01T00:00:0";
    assert!(run.stderr.contains(told), "{}", run.told());
    assert!(
        run.stderr.contains("the token was not used"),
        "{}",
        run.told()
    );
    assert!(run.stderr.contains("hint: set the clock"), "{}", run.told());
    assert_eq!(bench.cloud.requests().len(), 0);
}
