//! Memory blocks as sysfs shows them.

use std::io::{self, ErrorKind};

use qga_protocol::memory::{MemoryBlock, MemoryBlockResponse, MemoryBlockResponseType};
use rustix::io::Errno;

use crate::system::error::Error;
use crate::system::root::Root;

/// Has a directory `memoryN` for each block. Missing if the kernel cannot switch memory.
const MEMORY: &str = "/sys/devices/system/memory";
/// The file with the size of every block.
const SIZE: &str = "block_size_bytes";

/// The blocks that are there, in the kernel's order.
pub fn blocks(root: &Root) -> Result<Vec<MemoryBlock>, Error> {
    let names = match root.list(MEMORY) {
        Ok(names) => names,
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(Error::io(format!("Can't open directory \"{MEMORY}/\""), &cause)),
    };
    let numbers: Vec<u64> = names.iter().filter_map(|name| block_number(name)).collect();
    if numbers.is_empty() {
        return Err(Error::new("guest reported zero memory blocks!"));
    }
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

/// Switches a block on or off. Switching off moves what is in it, which may take long.
pub fn switch_block(root: &Root, number: u64, online: bool) -> MemoryBlockResponse {
    let (response, code) = match try_switch(root, number, online) {
        Ok(()) => (MemoryBlockResponseType::Success, None),
        Err(failure) => failure,
    };
    MemoryBlockResponse { phys_index: number, response: response.into(), error_code: code.map(i64::from) }
}

/// What became of a block that does not have the wanted state, and the kernel's error number.
type Failure = (MemoryBlockResponseType, Option<i32>);

fn try_switch(root: &Root, number: u64, online: bool) -> Result<(), Failure> {
    let failed = |cause: &io::Error| (MemoryBlockResponseType::OperationFailed, cause.raw_os_error());
    // What is missing is told by the kinds of failures, with the number that goes with them.
    let missing = |kind: MemoryBlockResponseType| (kind, Some(Errno::NOENT.raw_os_error()));
    let list = |directory: &str, if_missing: MemoryBlockResponseType| match root.list(directory) {
        Ok(_) => Ok(()),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Err(missing(if_missing)),
        Err(cause) => Err(failed(&cause)),
    };
    let directory = format!("{MEMORY}/memory{number}");
    list(MEMORY, MemoryBlockResponseType::OperationNotSupported)?;
    list(&directory, MemoryBlockResponseType::NotFound)?;
    let switch = format!("{directory}/state");
    match root.read(&switch) {
        Ok(state) if state.is_empty() => Err((MemoryBlockResponseType::OperationFailed, None)),
        Ok(state) if state.starts_with(b"online") == online => Ok(()),
        Ok(_) => root.order(&switch, if online { "online" } else { "offline" }).map_err(|cause| failed(&cause)),
        // Without a switch a block is always on.
        Err(cause) if cause.kind() == ErrorKind::NotFound && online => Ok(()),
        Err(cause) if cause.kind() == ErrorKind::NotFound => {
            Err(missing(MemoryBlockResponseType::OperationNotSupported))
        }
        Err(cause) => Err(failed(&cause)),
    }
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

    use qga_protocol::memory::MemoryBlockResponse;

    use super::{MEMORY, block_bytes, blocks, switch_block};
    use crate::system::root::Root;

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

    fn check_switched(root: &Root, number: u64, online: bool, expected: &str) {
        let answer: MemoryBlockResponse = switch_block(root, number, online);
        assert_eq!(serde_json::to_string(&answer).unwrap(), format!("{{\"phys-index\":{number},{expected}}}"));
    }

    #[test]
    fn each_block_has_its_own_outcome() {
        let (_directory, root) = machine(&[
            ("memory1/state", "online\n"),
            ("memory2/state", "offline\n"),
            ("memory3/phys_index", "3\n"),
            ("memory4/state/0", ""),
            ("memory5/state", ""),
            ("memory6", ""),
        ]);
        check_switched(&root, 1, false, r#""response":"success""#);
        check_switched(&root, 1, false, r#""response":"success""#);
        check_switched(&root, 2, true, r#""response":"success""#);
        assert_eq!(root.read_text(format!("{MEMORY}/memory1/state")).unwrap(), "offline");
        assert!(root.read_text(format!("{MEMORY}/memory2/state")).unwrap().starts_with("online"));
        check_switched(&root, 3, true, r#""response":"success""#);
        check_switched(&root, 3, false, r#""response":"operation-not-supported","error-code":2"#);
        check_switched(&root, 4, false, r#""response":"operation-failed","error-code":21"#);
        check_switched(&root, 5, false, r#""response":"operation-failed""#);
        check_switched(&root, 6, false, r#""response":"operation-failed","error-code":20"#);
        check_switched(&root, 7, false, r#""response":"not-found","error-code":2"#);
        check_switched(&root, u64::MAX, true, r#""response":"not-found","error-code":2"#);
    }

    #[test]
    fn a_kernel_that_cannot_switch_memory_supports_no_switching() {
        let (_directory, root) = machine(&[]);
        check_switched(&root, 0, true, r#""response":"operation-not-supported","error-code":2"#);
        fs::create_dir_all(root.path("/sys/devices/system")).unwrap();
        fs::write(root.path(MEMORY), "").unwrap();
        check_switched(&root, 0, true, r#""response":"operation-failed","error-code":20"#);
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
