//! Killed at every point, then run again: one device, one key, nobody blamed.
//!
//! strace delivers the signal on entry to the K-th call of each name. By default the calls that
//! change files or talk to the network are swept; `ACUSIGHT_SWEEP=all` takes every system call.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use acusight_agent::mock::{Fault, MockCloud, Route};
use acusight_agent::secret::Secret;

use crate::support::{Bench, Run, has};

/// Calls after which the world, here or there, is another.
const TELLING: [&str; 18] = [
    "connect",
    "fchmod",
    "flock",
    "fsync",
    "ftruncate",
    "mkdir",
    "open",
    "recvfrom",
    "recvmsg",
    "rename",
    "sendmsg",
    "sendto",
    "shutdown",
    "socket",
    "unlink",
    "unlinkat",
    "write",
    "writev",
];

fn under_strace(command: &Command, options: &[&str]) -> Command {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq"]).args(options);
    traced.arg(command.get_program()).args(command.get_args());
    traced.env_clear();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            traced.env(name, value);
        }
    }
    traced
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    traced
}

/// A system call of one undisturbed run: its name, the how-manieth of that name it is, and
/// whether it concerns a file of ours.
struct Call {
    name: String,
    nth: usize,
    ours: bool,
}

fn calls() -> Vec<Call> {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let trace = bench.root().join("trace");
    let options = ["-y", "-o", trace.to_str().expect("a name")];
    let status = under_strace(&bench.provision_command(&token, &[]), &options).status();
    assert!(status.expect("strace runs").success());
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let root = bench.root().to_str().expect("a name").to_owned();
    let trace = std::fs::read_to_string(&trace).expect("a trace");
    let calls = trace.lines().filter_map(|line| {
        let (name, rest) = line.split_once(' ')?.1.trim_start().split_once('(')?;
        let nth = counts.entry(name.to_owned()).or_insert(0);
        *nth += 1;
        Some(Call {
            name: name.to_owned(),
            nth: *nth,
            ours: rest.contains(&root),
        })
    });
    calls
        .filter(|call| call.name != "exit_group" && call.name != "execve")
        .collect()
}

fn points() -> Vec<(String, usize)> {
    let all = everything();
    calls()
        .into_iter()
        .filter(|call| all || TELLING.contains(&call.name.as_str()))
        .map(|call| (call.name, call.nth))
        .collect()
}

fn everything() -> bool {
    std::env::var("ACUSIGHT_SWEEP").is_ok_and(|value| value == "all")
}

/// Kills a run at this point, and runs it again.
fn killed_and_run_again(bench: &Bench, token: &Secret, point: &(String, usize)) -> Run {
    let (name, nth) = point;
    let inject = format!("inject={name}:signal=KILL:when={nth}");
    let command = bench.provision_command(token, &[]);
    let status = under_strace(&command, &["-o", "/dev/null", "-e", &inject]).status();
    // A point that this run did not reach ends it well; any other way is a defect.
    let status = status.expect("strace runs");
    let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
    assert!(killed || status.success(), "{name} {nth}: {status}");
    bench.provision(token)
}

#[test]
fn killed_anywhere_and_run_again_there_is_one_device_with_a_good_key() {
    if !has("strace") {
        return;
    }
    let points = points();
    for point in &points {
        let bench = Bench::new();
        let token = bench.cloud.create_token("t", true);
        let run = killed_and_run_again(&bench, &token, point);
        assert_eq!(run.code, 0, "{point:?}: {}", run.told());
        assert_eq!(
            (bench.cloud.devices().len(), bench.uses()),
            (1, 1),
            "{point:?}"
        );
        assert_eq!(
            bench.state_files(),
            ["device-key", "device-key.bak", "device.json", "lock"],
            "{point:?}"
        );
        bench.run(&["status"]).expect(0);
    }
    say(&format!(
        "killed at {0} points, converged at {0}",
        points.len()
    ));
    assert!(points.len() >= 60, "{} points", points.len());
}

#[test]
fn killed_anywhere_with_a_server_that_does_not_replay_the_token_is_never_blamed() {
    if !has("strace") {
        return;
    }
    let mut lost = 0;
    let points: Vec<_> = points()
        .into_iter()
        .filter(|(name, _)| {
            ["sendto", "recvfrom", "recvmsg", "write", "writev", "rename"].contains(&name.as_str())
        })
        .collect();
    for point in &points {
        let cloud = MockCloud::builder().without_idempotency();
        let bench = Bench::with(cloud.start().expect("starts"));
        let token = bench.cloud.create_token("t", true);
        let run = killed_and_run_again(&bench, &token, point);
        assert!(run.code == 0 || run.code == 8, "{point:?}: {}", run.told());
        assert!(
            bench.cloud.devices().len() == 1 && bench.uses() == 1,
            "{point:?}"
        );
        lost += usize::from(run.code == 8);
    }
    say(&format!(
        "killed at {} points, key lost with the server's answer at {lost}",
        points.len()
    ));
    // Between the server's commit and the key on the disk: receiving the answer, saying so,
    // writing the file, putting it in place. Whoever adds to these makes losses likelier.
    assert!((1..=5).contains(&lost), "{lost} of {}", points.len());
}

/// A disk that is full, failing or read-only at any one moment, a table of descriptors that is
/// full, a signal that comes at the wrong time: told as such, and mended by running it again.
#[test]
fn an_error_of_any_call_on_our_files_loses_nothing() {
    if !has("strace") {
        return;
    }
    let errors = ["ENOSPC", "EIO", "EROFS", "EMFILE", "ENOMEM", "EINTR"];
    let calls: Vec<Call> = calls().into_iter().filter(|call| call.ours).collect();
    let mut cases = 0;
    let mut refuged = 0;
    for (number, call) in calls.iter().enumerate() {
        for (turn, error) in errors.iter().enumerate() {
            // By default each call meets one error, in turn; a full sweep is all with all.
            if !everything() && number % errors.len() != turn {
                continue;
            }
            let bench = Bench::new();
            let token = bench.cloud.create_token("t", true);
            let inject = format!("inject={}:error={error}:when={}", call.name, call.nth);
            let options = ["-o", "/dev/null", "-e", &inject];
            let command = bench.provision_command(&token, &["--retry-for", "0"]);
            let status = under_strace(&command, &options).status();
            let code = status.expect("strace runs").code();
            let case = format!("{error} from {} {}: {code:?}", call.name, call.nth);
            assert!(matches!(code, Some(0 | 1 | 2 | 3 | 9)), "{case}");
            refuged += usize::from(code == Some(9));

            let run = bench.provision(&token);
            assert_eq!(run.code, 0, "{case}: {}", run.told());
            assert_eq!(
                (bench.cloud.devices().len(), bench.uses()),
                (1, 1),
                "{case}"
            );
            bench.run(&["status"]).expect(0);
            cases += 1;
        }
    }
    say(&format!(
        "{cases} errors of {} calls on our files: all mended by a second run, {refuged} by way of the refuge",
        calls.len()
    ));
    assert!(cases >= 60, "{cases} cases");
}

/// Before the last byte the answer is not there; with it, it is.
#[test]
fn the_answer_cut_at_every_byte_is_asked_for_again_and_never_blamed_on_the_token() {
    let (replayed, lost) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let bytes = next.fetch_add(1, Ordering::Relaxed);
                    for idempotent in [true, false] {
                        match cut_after(bytes, idempotent) {
                            Some(0) => replayed.fetch_add(1, Ordering::Relaxed),
                            Some(8) => lost.fetch_add(1, Ordering::Relaxed),
                            Some(code) => panic!("exit {code} after a cut at {bytes}"),
                            // The cut came after the end of the answer.
                            None => return,
                        };
                    }
                }
            });
        }
    });
    let (replayed, lost) = (replayed.into_inner(), lost.into_inner());
    say(&format!(
        "cut after each of {replayed} bytes: {replayed} replayed, {lost} told as lost"
    ));
    assert!(replayed == lost && replayed > 400, "{replayed} {lost}");
}

/// How a second run ends after the first one's answer was cut; `None` if it was whole.
fn cut_after(bytes: usize, idempotent: bool) -> Option<i32> {
    let cloud = MockCloud::builder();
    let cloud = if idempotent {
        cloud
    } else {
        cloud.without_idempotency()
    };
    let bench = Bench::with(cloud.start().expect("starts"));
    let token = bench.cloud.create_token("t", true);
    let cut = Fault::CutAfter { bytes };
    bench.cloud.inject(cut.on(Route::Provision).times(1));
    let first = Run::of(bench.provision_command(&token, &["--retry-for", "0"]));
    // The answer was whole, whatever became of the closed connection's next use.
    if bench.device_key().is_some() {
        return None;
    }
    assert_eq!(first.code, 8, "cut after {bytes}: {}", first.told());
    let second = bench.provision(&token);
    assert_eq!(
        (bench.cloud.devices().len(), bench.uses()),
        (1, 1),
        "cut after {bytes}"
    );
    Some(second.code)
}

fn say(figures: &str) {
    #[expect(clippy::print_stdout, reason = "figures are for reading")]
    {
        println!("{figures}");
    }
}
