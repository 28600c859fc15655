#!/bin/sh
# What the lab's machine does, as root. All that it says goes to the host; the last line tells how it ended.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
export ORLOP_TEST_CACHE=/var/lib/orlop ORLOP_TEST_PATIENCE=10
cd /orlop
# The processor's features load kvm_amd.
udevadm settle
status=0
echo "lab: up after $(cut -d' ' -f1 /proc/uptime) s, Linux $(uname -r), $(systemd-detect-virt)"
sh /etc/orlop-lab || status=$?
echo "lab: ended with $status after $(cut -d' ' -f1 /proc/uptime) s"
sync
