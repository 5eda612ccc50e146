#!/bin/busybox sh
# The guest's first program: finds the root disk, lays the host's files over it, hands over to systemd.
# The host's files (our agent, its unit, its udev rule) are thus in place before anything of the system has started.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
for module in /modules/*; do
    $b insmod "$module" || echo "cannot load $module"
done

# A disk with this serial number may hold the memory of a guest that was suspended to it. If so, that goes on here.
for disk in /sys/block/vd*; do
    if [ "$($b cat "$disk/serial")" = memory ]; then
        $b cat "$disk/dev" > /sys/power/resume
    fi
done

tries=0
until root=$($b findfs LABEL=root 2>/dev/null) || [ "$tries" -ge 100 ]; do
    $b sleep 0.1
    tries=$((tries + 1))
done
$b mount -t ext4 "$root" /target || exec $b sh

# Without -p: files belong to root here whoever owns them on the host.
if $b mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 host /host; then
    $b cp -R /host/root/. /target/
    $b umount /host
else
    echo "no files from the host"
fi

$b umount /proc
$b umount /sys
$b mount --move /dev /target/dev
exec $b switch_root /target /sbin/init
