#!/bin/sh
# Runs a command beside others of its kind: `unshare --mount --net sh apart.sh COMMAND...`
set -eu
ip link set lo up
# A sysfs shows the network namespace that it was mounted in. Control groups stay the machine's.
fresh=$(mktemp -d)
mount -t sysfs sysfs "$fresh"
[ ! -d /sys/fs/cgroup ] || mount --rbind /sys/fs/cgroup "$fresh/fs/cgroup"
mount --move "$fresh" /sys
rmdir "$fresh"
exec "$@"
