#!/bin/sh
# Copies the files of this machine that the guest agent reads in order to answer guest-get-* commands, and no others.
#
#   sh collect.sh DIRECTORY [ROOT]
#
# DIRECTORY is made; ROOT is where the machine's files are, `/` without it. Needs a shell and the programs cat, cp, ls,
# mkdir, readlink and sed, so busybox is enough; run as root it sees everything. Nothing is changed on the machine.
#
# What is copied has names in it: of the host, of users, of disks. `cargo xtask record --from DIRECTORY` replaces them;
# until then it is for your eyes alone.

set -u
umask 077
if [ $# -lt 1 ]; then
    echo "usage: sh collect.sh DIRECTORY [ROOT]" >&2
    exit 2
fi
to=$1
root=${2:-}
root=${root%/}
if [ -e "$to" ]; then
    echo "cannot make '$to': it exists" >&2
    exit 1
fi
mkdir -p "$to" || exit 1
# A relative name would change its meaning below.
to=$(cd "$to" && pwd)

# Makes the directory that a path stands in.
parent() {
    [ -d "$to${1%/*}" ] || mkdir -p "$to${1%/*}"
}

# A file's content, an empty directory, or what a link says. What is missing is passed over.
copy() {
    if [ -L "$root$1" ]; then
        parent "$1"
        [ -L "$to$1" ] || cp -P "$root$1" "$to$1"
    elif [ -d "$root$1" ]; then
        mkdir -p "$to$1"
    elif [ -f "$root$1" ]; then
        parent "$1"
        # Some files of the kernel can be opened and not read: they are as good as missing.
        cat "$root$1" >"$to$1" 2>/dev/null || { rm -f "$to$1"; echo "not readable: $1" >&2; }
    fi
}

# A file, behind the links that its name is.
follow() {
    path=$1
    for _ in 1 2 3 4 5 6 7 8; do
        copy "$path"
        [ -L "$root$path" ] || return 0
        target=$(readlink "$root$path")
        case $target in
            /*) path=$target ;;
            *) path=$(plain "${path%/*}/$target") ;;
        esac
    done
}

# The lines of a file that begin as one of the patterns.
lines() {
    [ -f "$root$1" ] || return 0
    parent "$1"
    sed -n "$2" "$root$1" >"$to$1" 2>/dev/null
}

# A path without `..` and `.`, as links of sysfs mean it.
plain() {
    rest=${1#/}/
    path=
    while [ -n "$rest" ]; do
        word=${rest%%/*}
        rest=${rest#*/}
        case $word in
            '' | .) ;;
            ..) path=${path%/*} ;;
            *) path=$path/$word ;;
        esac
    done
    echo "$path"
}

# Where a link leads, inside the machine.
target() {
    plain "${1%/*}/$(readlink "$root$1")"
}

# The names in a directory, links that lead nowhere included.
names() {
    ls -A "$root$1" 2>/dev/null
}

# The links in a directory.
links() {
    copy "$1"
    for link in "$root$1"/*; do
        [ -L "$link" ] && copy "${link#"$root"}"
    done
}

# A block device by its directory in /sys/devices, and what tells of it on the way there.
device() {
    [ -e "$to$1/.device" ] && return 0
    copy "$1"
    [ -d "$to$1" ] || return 0
    : >"$to$1/.device"
    for file in uevent size partition serial dm dm/name device slaves; do
        copy "$1/$file"
    done
    links "$1/slaves"
    if [ -L "$root$1/device" ]; then
        of=$(target "$1/device")
    else
        of=$1/device
    fi
    for file in serial vpd_pg80 type; do
        copy "$of/$file"
    done
    # NVM Express: the controllers beside a disk, and the paths by which each leads to it.
    case $1 in
        */nvme-subsystem/*)
            for link in "$root${1%/*}"/nvme*; do
                [ -L "$link" ] || continue
                copy "${link#"$root"}"
                controller=$(target "${link#"$root"}")
                for path in "$root$controller"/nvme*c*n*; do
                    [ -d "$path" ] && mkdir -p "$to${path#"$root"}"
                done
                above "$controller"
            done
            ;;
    esac
    above "$1"
}

# The buses and controllers on the way to a device.
above() {
    way=$1
    while [ "$way" != /sys/devices ] && [ -n "$way" ]; do
        [ -e "$to$way/.seen" ] && return 0
        mkdir -p "$to$way"
        : >"$to$way/.seen"
        [ -L "$root$way/driver" ] && copy "$way/driver"
        if [ -e "$root$way/idVendor" ]; then
            copy "$way/idVendor"
            copy "$way/serial"
        fi
        for port in "$root$way"/ata[0-9]*; do
            [ -d "$port" ] && mkdir -p "$to${port#"$root"}"
        done
        way=${way%/*}
    done
}

# Mounts and disks. Of udev's records only what is said of the model, the serial number and the mapped name.
copy /proc/self/mountinfo
[ -e "$to/proc/self/mountinfo" ] || copy /proc/self/mounts
copy /proc/diskstats
links /sys/block
links /sys/dev/block
links /sys/class/block
for link in "$root"/sys/block/* "$root"/sys/class/block/* "$root"/sys/dev/block/*; do
    [ -L "$link" ] || continue
    path=$(target "${link#"$root"}")
    device "$path"
    # Partitions are below their disks.
    for part in "$root$path/${path##*/}"*/partition; do
        [ -e "$part" ] || continue
        part=${part%/partition}
        device "${part#"$root"}"
    done
done
names /sys/fs/btrfs | while read -r id; do
    [ -d "$root/sys/fs/btrfs/$id/devices" ] && links "/sys/fs/btrfs/$id/devices"
done
names /run/udev/data | sed -n '/^b[0-9]*:[0-9]*$/p' | while read -r name; do
    lines "/run/udev/data/$name" '/^E:\(ID_SERIAL\|ID_SERIAL_SHORT\|ID_MODEL\|ID_BUS\|ID_PATH\|DM_NAME\)=/p'
done
# The names by which a btrfs was mounted.
sed -n 's/.* - btrfs \(\/dev\/[^ ]*\) .*/\1/p' "$root/proc/self/mountinfo" 2>/dev/null | while read -r node; do
    [ -L "$root$node" ] || continue
    copy "$node"
    path=$(target "$node")
    parent "$path"
    : >"$to$path"
done

# Processors and memory.
if [ -d "$root/proc/stat" ]; then copy /proc/stat; else lines /proc/stat '/^cpu/p'; fi
copy /sys/devices/system/cpu
names /sys/devices/system/cpu | sed -n '/^cpu[0-9]*$/p' | while read -r name; do
    copy "/sys/devices/system/cpu/$name"
    copy "/sys/devices/system/cpu/$name/online"
done
copy /sys/devices/system/memory
copy /sys/devices/system/memory/block_size_bytes
names /sys/devices/system/memory | sed -n '/^memory[0-9]*$/p' | while read -r name; do
    copy "/sys/devices/system/memory/$name"
    copy "/sys/devices/system/memory/$name/state"
    copy "/sys/devices/system/memory/$name/removable"
done

# The system, its zone, who is logged in. Of processes only that they are there.
for name in osrelease version hostname arch; do
    copy /proc/sys/kernel/$name
done
if [ -z "$root" ] && [ ! -e /proc/sys/kernel/arch ]; then
    uname -m >"$to/proc/sys/kernel/arch"
fi
follow /etc/os-release
copy /usr/lib/os-release
follow /etc/localtime
if [ -f "$root/run/utmp" ]; then
    copy /run/utmp
elif [ ! -L "$root/var/run" ]; then
    copy /var/run/utmp
fi
names /run/systemd/sessions | sed -n '/^[0-9A-Za-z]*$/p' | while read -r name; do
    # Beside the files stand pipes, which nobody may open.
    [ -f "$root/run/systemd/sessions/$name" ] && copy "/run/systemd/sessions/$name"
done
names /proc | sed -n '/^[0-9]*$/p' | while read -r process; do
    echo "$to/proc/$process"
done | while read -r path; do mkdir -p "$path"; done

echo "what the agent reads is in '$to'; next: cargo xtask record NAME --from '$to'" >&2
