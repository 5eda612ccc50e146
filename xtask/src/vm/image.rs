//! The guest's kernel, first program and root disk: built from Debian packages, kept outside the repository.
//!
//! This file and the files it includes are the recipe; whenever one of them changes, a new image is built. What
//! changes with every run (our agent, its unit) is not in the image: the guest fetches it at boot, see
//! `files/init.sh`.

use super::Skipped;
use super::apt::{Archive, PrivateApt, install_on_host};
use super::progress;
use anyhow::{Context as _, Result, ensure};
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// Everything in the guest beyond the smallest Debian. File systems and volume tools are there for the commands that
/// describe and freeze them, the servers for keys (ssh), sessions (logind) and freeze hooks (databases). The original
/// agent's libraries come in addition.
const PACKAGES: &[&str] = &[
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "iproute2",
    "procps",
    "passwd",
    "login",
    "util-linux",
    "fdisk",
    "e2fsprogs",
    "xfsprogs",
    "btrfs-progs",
    "dosfstools",
    "lvm2",
    "mdadm",
    "dmsetup",
    "cryptsetup-bin",
    "python3-minimal",
    "locales",
    "bindfs",
    "nfs-kernel-server",
    "strace",
    "libpam-systemd",
    "openssh-server",
    "openssh-client",
    "mariadb-server",
    "postgresql",
    "redis-server",
];

/// Kernel modules that must be loaded before the root disk can be read and the host's files be fetched.
const EARLY_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4", "9pnet_virtio", "9p"];

/// Parts of the kernel that no machine of QEMU has use for: two thirds of the size.
const USELESS_MODULES: &[&str] = &[
    "sound",
    "drivers/gpu",
    "drivers/media",
    "drivers/infiniband",
    "drivers/staging",
    "net/wireless",
    "drivers/net/wireless",
    "drivers/net/ethernet",
    "drivers/iio",
    "drivers/isdn",
    "drivers/bluetooth",
    "net/bluetooth",
];

/// Files put into the guest as they are.
const FILES: &[(&str, &str)] = &[
    ("etc/fstab", "LABEL=root / ext4 defaults 0 1\n"),
    ("etc/hostname", "labvm\n"),
    ("etc/timezone", "Europe/Paris\n"),
    ("etc/systemd/system/original-agent.service", include_str!("files/original-agent.service")),
    ("etc/systemd/system/control-agent.service", include_str!("files/control-agent.service")),
    ("etc/systemd/network/10-wired.network", include_str!("files/wired.network")),
    ("etc/systemd/system/serial-getty@ttyS0.service.d/login.conf", include_str!("files/console-login.conf")),
];

/// Commands run inside the new root; timers that wake up in the middle of a measurement are off, and so are servers: a
/// case starts what it needs.
const SETUP: &str = "
systemctl enable original-agent control-agent systemd-networkd serial-getty@ttyS0
systemctl disable apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
systemctl disable ssh mariadb mariadb.socket postgresql redis-server nfs-server nfs-client.target nfs-blkmap
systemctl disable rpcbind rpcbind.socket e2scrub_reap
systemctl mask getty@tty1 systemd-networkd-wait-online lvm2-monitor systemd-timesyncd man-db.timer
ln -sf /usr/share/zoneinfo/Europe/Paris /etc/localtime
passwd -d root
useradd -m -s /bin/bash lab
";

/// Three times what the guest has in it; what is not written takes no room on the host.
const ROOT_DISK_BYTES: u64 = 3 << 30;

const INIT: &str = include_str!("files/init.sh");

/// A finished guest image: three files.
#[derive(Debug)]
pub struct Image {
    folder: PathBuf,
}

impl Image {
    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }
    /// The archive with the first program and the modules it loads.
    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd.gz")
    }
    /// The root disk, raw; never written to: guests use an overlay.
    pub fn root_disk(&self) -> PathBuf {
        self.folder.join("root.img")
    }

    /// Keeps the clean-up of old images away.
    fn note_use(&self) {
        let _ = File::open(&self.folder).and_then(|folder| folder.set_modified(SystemTime::now()));
    }

    /// Finds the image in the cache or builds it. The error is a [`Skipped`] where this host cannot do it.
    pub fn prepare() -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(Skipped::because("the guest exists for x86-64 hosts only"));
        }
        let cache = cache_folder()?;
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let log = cache.join("log");
        let lock = File::create(cache.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).context("cannot lock the image cache")?;
        install_on_host(&[("qemu-system-x86_64", "qemu-system-x86"), ("qemu-img", "qemu-utils")])?;
        let image = Self { folder: cache.join(recipe_key()) };
        if image.root_disk().is_file() {
            image.note_use();
            return Ok(image);
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Skipped::because("only root can build the guest's image (debootstrap); run once as root"));
        }
        build(&cache, &image, &log)?;
        remove_other_images(&cache, &image);
        Ok(image)
    }
}

fn cache_folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("QGA_VM_CACHE") {
        return Ok(folder.into());
    }
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .context("no place for the guest's image: none of QGA_VM_CACHE, XDG_CACHE_HOME and HOME is set")?;
    Ok(base.join("qga-vm"))
}

/// Changes whenever the recipe does.
fn recipe_key() -> String {
    let mut hasher = DefaultHasher::new();
    include_str!("image.rs").hash(&mut hasher);
    FILES.hash(&mut hasher);
    INIT.hash(&mut hasher);
    format!("image-{:016x}", hasher.finish())
}

fn build(cache: &Path, image: &Image, log: &Path) -> Result<()> {
    println!("vm: building the guest's image in {}: once, some minutes", cache.display());
    let archive = Archive::of_host()?;
    let tools =
        [("debootstrap", "debootstrap"), ("busybox", "busybox-static"), ("cpio", "cpio"), ("mke2fs", "e2fsprogs")];
    install_on_host(&tools)?;
    install_on_host(&[("depmod", "kmod"), ("modprobe", "kmod")])?;
    let work = tempfile::Builder::new().prefix("building-").tempdir_in(cache)?;
    // Programs that are not root look at files in here too (apt's, dpkg's).
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))?;
    let root = work.path().join("root");
    let apt = PrivateApt::new(&work.path().join("apt"), &archive, log)?;
    let original = work.path().join("original");
    let libraries = apt.unpack("qemu-guest-agent", Some(&archive), &original, log)?;
    make_root(cache, &archive, &libraries, &root, log)?;
    let version = add_kernel(work.path(), &apt, &root, log)?;
    add_original_agent(&original, &root)?;
    for (path, text) in FILES {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&root))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    progress::run("setting the guest up", Command::new("chroot").arg(&root).args(["sh", "-ec", SETUP]), log)?;
    make_initrd(work.path(), &root, &version, log)?;

    let disk = work.path().join("root.img");
    File::create(&disk)?.set_len(ROOT_DISK_BYTES)?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-L", "root", "-d"]).arg(&root).arg(&disk);
    progress::run("making the root disk", &mut mke2fs, log)?;
    let finished = work.path().join("finished");
    fs::create_dir(&finished)?;
    for name in ["vmlinuz", "initrd.gz", "root.img"] {
        fs::rename(work.path().join(name), finished.join(name))?;
    }
    // An image is there whole or not at all.
    fs::rename(&finished, &image.folder).context("cannot put the image in its place")?;
    Ok(())
}

fn make_root(cache: &Path, archive: &Archive, libraries: &[String], root: &Path, log: &Path) -> Result<()> {
    let packages = cache.join("packages");
    fs::create_dir_all(&packages)?;
    let libraries = libraries.iter().map(String::as_str);
    let names: Vec<&str> = PACKAGES.iter().copied().chain(libraries).collect();
    // It keeps packages from starting their servers, so those of the guest do not run on the host.
    let mut debootstrap = Command::new("debootstrap");
    debootstrap
        .arg("--variant=minbase")
        .arg(format!("--include={}", names.join(",")))
        .arg(format!("--cache-dir={}", packages.display()))
        .arg(&archive.release)
        .arg(root)
        .arg(&archive.uri);
    progress::run("installing Debian for the guest", &mut debootstrap, log)
        .map_err(|error| Skipped::because(&format!("cannot install Debian for the guest: {error:#}")))?;
    for name in ["var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"] {
        let folder = root.join(name);
        fs::remove_dir_all(&folder).and_then(|()| fs::create_dir(&folder))?;
    }
    Ok(())
}

/// Returns the kernel's version.
fn add_kernel(work: &Path, apt: &PrivateApt, root: &Path, log: &Path) -> Result<String> {
    let unpacked = work.join("kernel");
    apt.unpack(&apt.first_dependency("linux-image-amd64")?, None, &unpacked, log)?;
    let modules = unpacked.join("lib/modules");
    let version = fs::read_dir(&modules)?.flatten().next().context("the kernel package has no modules")?.file_name();
    let version = version.to_string_lossy().into_owned();
    fs::copy(unpacked.join(format!("boot/vmlinuz-{version}")), work.join("vmlinuz"))?;
    for name in USELESS_MODULES {
        let folder = modules.join(&version).join("kernel").join(name);
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
    }
    let target = root.join("lib/modules");
    fs::create_dir_all(&target)?;
    progress::output(Command::new("cp").arg("-a").arg(modules.join(&version)).arg(&target))?;
    progress::output(Command::new("depmod").arg("-b").arg(root).arg(&version))?;
    Ok(version)
}

/// The original's program without its unit: two of it run beside ours, under units of the recipe.
fn add_original_agent(unpacked: &Path, root: &Path) -> Result<()> {
    let target = root.join("opt/original");
    fs::create_dir_all(&target)?;
    fs::copy(unpacked.join("usr/sbin/qemu-ga"), target.join("qemu-ga"))?;
    let version = progress::output(Command::new("chroot").arg(root).args(["/opt/original/qemu-ga", "--version"]))
        .context("the original agent does not run in the guest's root")?;
    println!("vm: the original is {}", version.trim());
    Ok(())
}

fn make_initrd(work: &Path, root: &Path, version: &str, log: &Path) -> Result<()> {
    let tree = work.join("initrd");
    for name in ["bin", "proc", "sys", "dev", "target", "host", "modules"] {
        fs::create_dir_all(tree.join(name))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).is_file());
    fs::copy(busybox.context("busybox is not where it should be")?, tree.join("bin/busybox"))?;
    symlink("busybox", tree.join("bin/sh"))?;
    fs::write(tree.join("init"), INIT)?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;

    let mut files: Vec<String> = Vec::new();
    for module in EARLY_MODULES {
        let mut modprobe = Command::new("modprobe");
        modprobe.args(["-S", version, "-d"]).arg(root).args(["--show-depends", module]);
        let lines = progress::output(&mut modprobe)?;
        for file in lines.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            if !files.iter().any(|known| known == file.trim()) {
                files.push(file.trim().to_owned());
            }
        }
    }
    ensure!(!files.is_empty(), "no kernel modules found for the root disk");
    for (number, file) in files.iter().enumerate() {
        let name = Path::new(file).file_name().unwrap_or_default().to_string_lossy();
        // Names in loading order.
        fs::copy(file, tree.join("modules").join(format!("{number:02}-{name}")))
            .with_context(|| format!("cannot copy {file}"))?;
    }
    let script = "find . | cpio -o -H newc | gzip -1 > ../initrd.gz";
    progress::run("making the initial file system", Command::new("sh").current_dir(&tree).args(["-ec", script]), log)
}

/// Images of earlier recipes, but for those a guest may still be running on: used within the last day.
fn remove_other_images(cache: &Path, image: &Image) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_image = entry.file_name().to_string_lossy().starts_with("image-");
        let is_old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() > 24 * 3600));
        if is_image && is_old && path != image.folder {
            // What stays behind costs disk space only.
            let _ = fs::remove_dir_all(path);
        }
    }
}
