//! The program of containers ([`kfbox_shim`]): carried inside this one, written out where a node starts.

use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

const PROGRAM: &[u8] = include_bytes!(env!("KFBOX_SHIM"));

/// Puts the program into a folder that nothing else is in. Its name tells its content, so that a newer daemon never changes
/// what a container runs by; what no daemon starts any more is removed, which containers that run by it survive.
pub fn install(folder: &Path) -> io::Result<PathBuf> {
    let digest = Sha256::digest(PROGRAM);
    let name = format!("kfbox-shim-{}", hex::encode(&digest[..8]));
    let program = folder.join(&name);
    fs::create_dir_all(folder)?;
    // A disk that was full, or a machine that lost its power, may have left a part of it.
    if fs::read(&program).map_or(true, |found| found != PROGRAM) {
        let unfinished = folder.join(format!("{name}.new"));
        let _ = fs::remove_file(&unfinished);
        let mut file = File::options().write(true).create_new(true).mode(0o700).open(&unfinished)?;
        file.write_all(PROGRAM)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&unfinished, &program)?;
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path != program {
            let _ = fs::remove_file(path);
        }
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_is_broken_or_old_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("shim");
        let program = install(&folder).unwrap();
        fs::write(folder.join("kfbox-shim-0123456789abcdef"), "older").unwrap();
        fs::write(&program, "half of it").unwrap();
        assert_eq!(install(&folder).unwrap(), program);
        let names: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(names, std::slice::from_ref(&program));
        let output = Command::new(&program).output().unwrap();
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("usage: kfbox-shim"), "{output:?}");
    }

    #[test]
    fn the_program_needs_no_library() {
        // Else each container would pay for the loader.
        let interpreter = [3_u32.to_le_bytes()].concat();
        let (offset, size, count) = (
            u64::from_le_bytes(PROGRAM[32..40].try_into().unwrap()),
            u16::from_le_bytes(PROGRAM[54..56].try_into().unwrap()),
            u16::from_le_bytes(PROGRAM[56..58].try_into().unwrap()),
        );
        for n in 0..count {
            let header = usize::try_from(offset).unwrap() + usize::from(n) * usize::from(size);
            assert_ne!(PROGRAM[header..header + 4], interpreter, "it names a loader");
        }
    }
}
