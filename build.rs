//! Tells the program which commit and target it was built from.

#![expect(
    clippy::disallowed_methods,
    reason = "build scripts are spoken to through the environment"
)]

use std::process::Command;

fn main() {
    let hash = std::env::var("ACUSIGHT_BUILD_COMMIT")
        .ok()
        .or_else(commit)
        .unwrap_or_else(|| "unknown".into());
    let target = std::env::var("TARGET").unwrap_or_else(|_| "unknown".into());
    println!("cargo:rustc-env=ACUSIGHT_COMMIT={hash}");
    println!("cargo:rustc-env=ACUSIGHT_TARGET={target}");
    println!("cargo:rerun-if-env-changed=ACUSIGHT_BUILD_COMMIT");
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/logs/HEAD");
}

/// A source archive without a repository has none.
fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()?;
    let hash = String::from_utf8(output.stdout).ok()?;
    (output.status.success()).then(|| hash.trim().to_owned())
}
