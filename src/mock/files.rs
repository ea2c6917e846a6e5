//! What installers fetch: `/setup` is `setup.sh` of the directory, `/download/…` its files.

use std::path::{Component, Path};

use super::routes::{Call, Cloud, Reply};
use super::world::Refusal;
use crate::api::code;

pub(super) fn serve(cloud: &Cloud, call: &Call) -> Result<Reply, Refusal> {
    let missing = || Refusal::new(404, code::NOT_FOUND, "there is no such file");
    let dir = cloud.files.as_ref().ok_or_else(missing)?;
    let name = match call.path.strip_prefix("/download/") {
        Some(name) => Path::new(name),
        None => Path::new("setup.sh"),
    };
    // Nothing above the directory, whatever the path says.
    let stays_inside = name
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !stays_inside {
        return Err(missing());
    }
    let bytes = std::fs::read(dir.join(name)).map_err(|_| missing())?;
    let kind = match name.extension().and_then(|extension| extension.to_str()) {
        Some("sh") => "text/x-shellscript",
        _ => "application/octet-stream",
    };
    Ok(Reply::of(200, kind, bytes))
}
