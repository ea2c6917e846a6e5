//! What kind of board this is, and which one: device tree on ARM, DMI on x86.

use std::fs;
use std::path::Path;

/// `MODEL/SERIAL`, or the model alone; `None` if the machine does not say.
pub(super) fn id(proc: &Path, sys: &Path) -> Option<String> {
    let device_tree = proc.join("device-tree");
    let dmi = sys.join("class/dmi/id");
    let model = fact(&device_tree.join("model")).or_else(|| fact(&dmi.join("product_name")))?;
    let serial = fact(&device_tree.join("serial-number"))
        .or_else(|| fact(&dmi.join("product_serial")))
        .or_else(|| fact(&dmi.join("board_serial")));
    Some(match serial {
        Some(serial) => format!("{model}/{serial}"),
        None => model,
    })
}

pub(super) fn host_name(proc: &Path) -> Option<String> {
    fact(&proc.join("sys/kernel/hostname"))
}

fn fact(path: &Path) -> Option<String> {
    // Makers who had nothing to say said it in one of these ways.
    const PLACEHOLDERS: [&str; 8] = [
        "",
        "none",
        "(none)",
        "default string",
        "not specified",
        "system product name",
        "system serial number",
        "to be filled by o.e.m.",
    ];
    let bytes = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // Device-tree texts end with a NUL.
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    let told = !PLACEHOLDERS.contains(&text.to_lowercase().as_str());
    (told && !text.chars().any(char::is_control)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a scratch directory");
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("has a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        dir
    }

    fn id_of(files: &[(&str, &str)]) -> Option<String> {
        let dir = tree(files);
        id(&dir.path().join("proc"), &dir.path().join("sys"))
    }

    #[test]
    fn a_raspberry_pi_a_pc_a_virtual_machine_and_a_silent_board() {
        let pi = [
            ("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0"),
            ("proc/device-tree/serial-number", "10000000a1b2c3d4\0"),
        ];
        assert_eq!(
            id_of(&pi).as_deref(),
            Some("Raspberry Pi 4 Model B Rev 1.4/10000000a1b2c3d4")
        );
        let pc = [
            ("sys/class/dmi/id/product_name", "NUC11TNHi5\n"),
            (
                "sys/class/dmi/id/product_serial",
                "To be filled by O.E.M.\n",
            ),
            ("sys/class/dmi/id/board_serial", "BTTN1234\n"),
        ];
        assert_eq!(id_of(&pc).as_deref(), Some("NUC11TNHi5/BTTN1234"));
        let vm = [("sys/class/dmi/id/product_name", "Standard PC\n")];
        assert_eq!(id_of(&vm).as_deref(), Some("Standard PC"));
        assert_eq!(id_of(&[]), None);
        let silent = [("sys/class/dmi/id/product_name", "Default string\n")];
        assert_eq!(id_of(&silent), None);
    }
}
