//! Memory blocks as sysfs shows them.

use std::io::ErrorKind;

use qga_protocol::memory::MemoryBlock;

use crate::error::Error;
use crate::root::Root;

/// Has a directory `memoryN` for each block. Missing if the kernel cannot switch memory.
const MEMORY: &str = "/sys/devices/system/memory";
/// The file with the size of every block.
const SIZE: &str = "block_size_bytes";

/// The blocks that are there, by number.
pub fn blocks(root: &Root) -> Result<Vec<MemoryBlock>, Error> {
    let names = match root.list(MEMORY) {
        Ok(names) => names,
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(Error::io(format!("Can't open directory \"{MEMORY}/\""), &cause)),
    };
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| block_number(name)).collect();
    if numbers.is_empty() {
        return Err(Error::new("guest reported zero memory blocks!"));
    }
    numbers.sort_unstable();
    let mut blocks = Vec::with_capacity(numbers.len());
    for number in numbers {
        let directory = format!("{MEMORY}/memory{number}");
        match states(root, &directory) {
            _ if !root.exists(&directory) => {} // unplugged since the list was read
            Ok((online, can_offline)) => {
                blocks.push(MemoryBlock { phys_index: number, online, can_offline: Some(can_offline) });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(blocks)
}

/// Whether a block is switched on and whether it can be switched off.
fn states(root: &Root, directory: &str) -> Result<(bool, bool), Error> {
    let content = |name: &str| match root.read(format!("{directory}/{name}")) {
        Ok(bytes) if bytes.is_empty() => {
            Err(Error::new(format!("pread sysfs file \"{name}\": unexpected EOF ({directory})")))
        }
        Ok(bytes) => Ok(Some(bytes)),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io(format!("open sysfs file \"{name}\" of {directory}"), &cause)),
    };
    let Some(state) = content("state")? else { return Ok((true, false)) };
    let can_offline = content("removable")?.is_some_and(|removable| removable[0] != b'0');
    Ok((state.starts_with(b"online"), can_offline))
}

/// The size of every block in bytes.
pub fn block_bytes(root: &Root) -> Result<u64, Error> {
    let text = root.read_text(format!("{MEMORY}/{SIZE}")).map_err(|cause| {
        if root.exists(MEMORY) {
            Error::io(format!("open sysfs file \"{SIZE}\""), &cause)
        } else {
            Error::io(format!("open(\"{MEMORY}/\")"), &cause)
        }
    })?;
    let digits = text.trim();
    if digits.is_empty() {
        return Err(Error::new(format!("pread sysfs file \"{SIZE}\": unexpected EOF")));
    }
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    u64::from_str_radix(digits, 16)
        .map_err(|_| Error::new(format!("sysfs file \"{SIZE}\" has no hexadecimal number: {text:?}")))
}

/// The number in `memory12`.
fn block_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("memory")?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{MEMORY, block_bytes, blocks};
    use crate::root::Root;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        for (name, text) in files {
            let path = root.path(format!("{MEMORY}/{name}"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (directory, root)
    }

    fn shown(files: &[(&str, &str)]) -> Vec<(u64, bool, Option<bool>)> {
        let (_directory, root) = machine(files);
        blocks(&root).unwrap().iter().map(|block| (block.phys_index, block.online, block.can_offline)).collect()
    }

    #[test]
    fn blocks_come_by_number() {
        let files = [
            ("memory10/state", "online\n"),
            ("memory10/removable", "1\n"),
            ("memory2/state", "going-offline\n"),
            ("memory2/removable", "0\n"),
            ("memory3/state", "offline\n"),
            ("memory4/phys_index", "00000004\n"),
            ("block_size_bytes", "8000000\n"),
            ("memoryless/state", "online\n"),
        ];
        assert_eq!(
            shown(&files),
            [(2, false, Some(false)), (3, false, Some(false)), (4, true, Some(false)), (10, true, Some(true))]
        );
    }

    #[test]
    fn a_kernel_that_cannot_switch_memory_has_no_blocks() {
        let (_directory, root) = machine(&[]);
        assert_eq!(blocks(&root), Ok(Vec::new()));
        let error = block_bytes(&root).unwrap_err();
        assert_eq!(error.desc, "open(\"/sys/devices/system/memory/\"): No such file or directory");
    }

    #[test]
    fn what_fails_is_told_with_its_file() {
        let (_directory, root) = machine(&[("probe", "")]);
        assert_eq!(blocks(&root).unwrap_err().desc, "guest reported zero memory blocks!");
        assert_eq!(
            block_bytes(&root).unwrap_err().desc,
            "open sysfs file \"block_size_bytes\": No such file or directory"
        );
        let (_directory, root) = machine(&[("memory5/state", "")]);
        assert_eq!(
            blocks(&root).unwrap_err().desc,
            "pread sysfs file \"state\": unexpected EOF (/sys/devices/system/memory/memory5)"
        );
    }

    #[test]
    fn the_size_is_hexadecimal() {
        let check = |text: &str| {
            let (_directory, root) = machine(&[("block_size_bytes", text)]);
            block_bytes(&root).map_err(|error| error.desc)
        };
        assert_eq!(check("8000000\n"), Ok(128 << 20));
        assert_eq!(check("0x80000000"), Ok(2 << 30));
        assert_eq!(check("\n"), Err("pread sysfs file \"block_size_bytes\": unexpected EOF".to_owned()));
        assert_eq!(
            check("much\n"),
            Err("sysfs file \"block_size_bytes\" has no hexadecimal number: \"much\"".to_owned())
        );
    }
}
