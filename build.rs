//! Tells the program which commit, target and time it was built from.

#![expect(
    clippy::disallowed_methods,
    reason = "build scripts are spoken to through the environment"
)]

use std::process::Command;

fn main() {
    let hash = std::env::var("ACUSIGHT_BUILD_COMMIT")
        .ok()
        .or_else(|| git(&["rev-parse", "--short=12", "HEAD"]))
        .unwrap_or_else(|| "unknown".into());
    let target = std::env::var("TARGET").unwrap_or_else(|_| "unknown".into());
    println!("cargo:rustc-env=ACUSIGHT_COMMIT={hash}");
    println!("cargo:rustc-env=ACUSIGHT_TARGET={target}");
    let built = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .or_else(|| git(&["log", "-1", "--format=%ct"]))
        .unwrap_or_else(|| "0".into());
    println!("cargo:rustc-env=ACUSIGHT_BUILT={built}");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo:rerun-if-env-changed=ACUSIGHT_BUILD_COMMIT");
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/logs/HEAD");
}

/// A source archive without a repository has no answer.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
