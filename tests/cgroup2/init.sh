#!/bin/sh
# The first process of the guest: makes a pure cgroup v2 host of it, runs its arguments there and
# turns it off. The root is the machine's own, read-only: whatever is written goes to memory.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

off() {
    echo o >/proc/sysrq-trigger
    sleep 60
}
die() { echo "cgroup2: init: $*"; off; }

mount -t proc proc /proc || die 'no /proc'
mount -t sysfs sysfs /sys || die 'no /sys'
for dir in /run /tmp /root /var/lib /var/log "$1"; do
    mount -t tmpfs -o mode=0755 tmpfs "$dir" || die "no tmpfs on $dir"
done
shift
chmod 1777 /tmp
mkdir -p /dev/pts /dev/shm /run/lock
mount -t devpts -o ptmxmode=0666 devpts /dev/pts || die 'no /dev/pts'
mount -t tmpfs tmpfs /dev/shm || die 'no /dev/shm'
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup || die 'no cgroup2'

# A cgroup with processes of its own gives none of its controllers to others, except the root; and
# no test may take what is in the root for its own.
mkdir /sys/fs/cgroup/init && echo $$ >/sys/fs/cgroup/init/cgroup.procs || die 'no cgroup'
echo '+cpu +io +memory +pids' >/sys/fs/cgroup/cgroup.subtree_control || die 'no controllers'

modules=/usr/lib/uml/modules/$(uname -r)/kernel
for module in fs/overlayfs/overlay fs/erofs/erofs fs/squashfs/squashfs drivers/block/loop \
    fs/fuse/fuse drivers/net/veth; do
    for file in "$modules/$module".ko*; do
        [ ! -e "$file" ] || busybox insmod "$file" || echo "cgroup2: init: $file does not load"
    done
done
ip link set lo up
# As many as a distribution allows an administrator who changes nothing.
echo 128 >/proc/sys/fs/inotify/max_user_instances

"$@"
off
