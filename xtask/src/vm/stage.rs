//! File systems of every kind for a case to freeze: `/stage/KIND` each, made when asked for, cleared away after it.
//!
//! A new kind: its member of [`Kind`], how it is made in [`Kind::recipe`].

use super::disk::DiskOptions;
use super::guest::Guest;
use anyhow::{Context as _, Result};

/// A kind of file system, or of what lies beneath one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext4 on a disk.
    Ext4,
    /// xfs on a disk.
    Xfs,
    /// btrfs on a disk, two subvolumes mounted: the second at `/stage/btrfs-second`.
    Btrfs,
    /// vfat on a disk. Linux cannot freeze it.
    Vfat,
    /// ext4 on a logical volume over two disks.
    Lvm,
    /// ext4 on an encrypted disk.
    Luks,
    /// ext4 on a mirror of two disks.
    Md,
    /// ext4 in a file on [`Kind::Base`].
    Loop,
    /// Bind mount of [`Kind::Ext4`].
    Bind,
    /// Layers on [`Kind::Base`].
    Overlay,
    /// In memory.
    Tmpfs,
    /// bindfs over a folder of [`Kind::Base`].
    Fuse,
    /// The host's folder.
    NineP,
    /// Served by the guest itself from a folder of [`Kind::Base`].
    Nfs,
    /// The ext4 on a disk that others lie on.
    Base,
}

const EXT4: &str = "mkfs.ext4 -q \"$1\"; mount \"$1\" $at";

/// How a kind is made.
struct Recipe {
    /// Kinds that must be there before.
    needs: &'static [Kind],
    /// How many disks: `$1`, `$2` in the script.
    disks: usize,
    /// Makes and mounts it at `$at`.
    make: &'static str,
    /// Undoes that, as far as it got, after `$at` has been unmounted.
    clear: &'static str,
}

impl Kind {
    /// All of them, those that others lie on first.
    pub const ALL: &[Self] = &[
        Self::Base,
        Self::Ext4,
        Self::Xfs,
        Self::Btrfs,
        Self::Vfat,
        Self::Lvm,
        Self::Luks,
        Self::Md,
        Self::Loop,
        Self::Bind,
        Self::Overlay,
        Self::Tmpfs,
        Self::Fuse,
        Self::NineP,
        Self::Nfs,
    ];

    /// The last part of its mount point.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
            Self::Lvm => "lvm",
            Self::Luks => "luks",
            Self::Md => "md",
            Self::Loop => "loop",
            Self::Bind => "bind",
            Self::Overlay => "overlay",
            Self::Tmpfs => "tmpfs",
            Self::Fuse => "fuse",
            Self::NineP => "9p",
            Self::Nfs => "nfs",
            Self::Base => "base",
        }
    }

    /// Where it is mounted.
    pub fn mountpoint(self) -> String {
        format!("/stage/{}", self.name())
    }

    /// Whether Linux can freeze it, by itself and not through what it lies on.
    pub fn can_be_frozen(self) -> bool {
        !matches!(self, Self::Vfat | Self::Overlay | Self::Tmpfs | Self::Fuse | Self::NineP | Self::Nfs)
    }

    fn recipe(self) -> Recipe {
        let recipe = |needs, disks, make, clear| Recipe { needs, disks, make, clear };
        match self {
            Self::Base | Self::Ext4 => recipe(&[], 1, EXT4, ""),
            Self::Xfs => recipe(&[], 1, "mkfs.xfs -q \"$1\"; mount \"$1\" $at", ""),
            Self::Btrfs => recipe(
                &[],
                1,
                "mkfs.btrfs -q \"$1\"; mount \"$1\" $at
                 btrfs -q subvolume create $at/first; btrfs -q subvolume create $at/second; umount $at
                 mkdir $at-second; mount -o subvol=first \"$1\" $at; mount -o subvol=second \"$1\" $at-second",
                "umount $at-second; rmdir $at-second",
            ),
            Self::Vfat => recipe(&[], 1, "mkfs.vfat \"$1\" > /dev/null; mount \"$1\" $at", ""),
            Self::Lvm => recipe(
                &[],
                2,
                "vgcreate -q stage \"$1\" \"$2\" > /dev/null; lvcreate -q -y -n wide -l 100%FREE stage > /dev/null
                 mkfs.ext4 -q /dev/stage/wide; mount /dev/stage/wide $at",
                "vgremove -q -f stage",
            ),
            Self::Luks => recipe(
                &[],
                1,
                "echo secret > /run/stage-key
                 cryptsetup -q luksFormat --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /run/stage-key \"$1\"
                 cryptsetup open --key-file /run/stage-key \"$1\" stage-luks
                 mkfs.ext4 -q /dev/mapper/stage-luks; mount /dev/mapper/stage-luks $at",
                "cryptsetup close stage-luks",
            ),
            Self::Md => recipe(
                &[],
                2,
                "mdadm -q --create /dev/md8 --level 1 --raid-devices 2 --assume-clean --metadata 1.2 --run \"$1\" \"$2\"
                 mkfs.ext4 -q /dev/md8; mount /dev/md8 $at",
                "mdadm -q --stop /dev/md8",
            ),
            Self::Loop => recipe(
                &[Self::Base],
                0,
                "truncate -s 64M /stage/base/loop.img; mkfs.ext4 -q /stage/base/loop.img
                 mount -o loop /stage/base/loop.img $at",
                "",
            ),
            Self::Bind => recipe(&[Self::Ext4], 0, "mount --bind /stage/ext4 $at", ""),
            Self::Overlay => recipe(
                &[Self::Base],
                0,
                "mkdir -p /stage/base/lower /stage/base/upper /stage/base/work
                 mount -t overlay -o lowerdir=/stage/base/lower,upperdir=/stage/base/upper,workdir=/stage/base/work \
                     overlay $at",
                "",
            ),
            Self::Tmpfs => recipe(&[], 0, "mount -t tmpfs tmpfs $at", ""),
            Self::Fuse => {
                recipe(&[Self::Base], 0, "modprobe fuse; mkdir -p /stage/base/behind; bindfs /stage/base/behind $at", "")
            }
            Self::NineP => recipe(&[], 0, "mount -t 9p -o trans=virtio,version=9p2000.L host $at", ""),
            Self::Nfs => recipe(
                &[Self::Base],
                0,
                "mkdir -p /stage/base/served
                 echo '/stage/base/served 127.0.0.1(rw,no_root_squash,no_subtree_check,fsid=0)' > /etc/exports
                 systemctl start nfs-server; mount -t nfs4 127.0.0.1:/ $at",
                "systemctl stop nfs-server; rm -f /etc/exports; touch /etc/exports",
            ),
        }
    }
}

impl Guest {
    /// Makes a file system, and what it lies on, if they are not there yet; returns its mount point.
    pub fn make_file_system(&mut self, kind: Kind) -> Result<String> {
        self.make_file_system_on(kind, DiskOptions::default())
    }

    /// Like [`Guest::make_file_system`], with disks of this sort.
    pub fn make_file_system_on(&mut self, kind: Kind, options: DiskOptions) -> Result<String> {
        let at = kind.mountpoint();
        if self.stage().contains(&kind) {
            return Ok(at);
        }
        let recipe = kind.recipe();
        for needed in recipe.needs {
            self.make_file_system(*needed)?;
        }
        let mut devices = Vec::new();
        for number in 1..=recipe.disks {
            devices.push(self.plug_disk(&disk_name(kind, number), options)?.device);
        }
        let devices = devices.join(" ");
        self.stage().push(kind);
        let make = recipe.make;
        self.shell(&format!("set -e\nexec 2>&1\nat={at}\nmkdir -p $at\nset -- {devices}\n{make}\nudevadm settle"))
            .with_context(|| format!("making {}", kind.name()))?;
        Ok(at)
    }

    /// Undoes everything that a case has made by way of [`Guest`]: thaws, unmounts, unplugs, restores units.
    pub(super) fn clear_stage(&mut self) -> Result<()> {
        let kinds = std::mem::take(self.stage());
        if !kinds.is_empty() {
            self.thaw_from_outside()?;
            self.thaw_agents()?;
        }
        self.restore_units()?;
        let clear = |kind: &Kind| {
            format!("at={}; umount $at || umount -l $at; {}\nrmdir $at\n", kind.mountpoint(), kind.recipe().clear)
        };
        let script: Vec<String> = kinds.iter().rev().map(clear).collect();
        let said = if script.is_empty() { None } else { Some(self.shell_result(&script.concat())?) };
        for disk in self.disks().clone() {
            self.unplug_disk(&disk.name).with_context(|| format!("clearing away: {said:?}"))?;
        }
        Ok(())
    }
}

/// The disks of a kind are numbered from 1.
pub fn disk_name(kind: Kind, number: usize) -> String {
    format!("{}{number}", kind.name())
}
