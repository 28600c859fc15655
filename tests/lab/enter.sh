#!/bin/sh
# Runs a command in another root directory as if that were the machine. Started by root.py as
#
#   unshare --mount --pid --fork --kill-child [--net] sh enter.sh ROOT CACHE DIRECTORY COMMAND...
#
# so that whatever it mounts or leaves running ends with it.
set -eu
root=$1 cache=$2 inside=$3
shift 3
ip link set lo up
# pivot_root wants a mount point.
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
# A sysfs shows the network namespace that it was mounted in.
mount -t sysfs sysfs sys
[ ! -d /sys/fs/cgroup ] || mount --rbind /sys/fs/cgroup sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p root/.cache/orlop
mount --bind "$cache" root/.cache/orlop
# The benchmark keeps its guest and its template there, which are this Debian's own.
mkdir -p root/.cache/orlop/bench var/cache/orlop-bench
mount --bind var/cache/orlop-bench root/.cache/orlop/bench
# The authorities that this machine trusts may be more than Debian's.
trusted=etc/ssl/certs/ca-certificates.crt
[ ! -e "/$trusted" ] || [ ! -e "$trusted" ] || mount --bind "/$trusted" "$trusted"
pivot_root . mnt
cd /
umount -l /mnt
rm -rf --one-file-system /tmp
mkdir -m 1777 /tmp
cd "$inside"
# Not exec: process 1 has to reap what the command leaves behind, and a shell does.
status=0
"$@" || status=$?
exit $status
