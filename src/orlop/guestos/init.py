"""The guest's first program: a shell script that reaches the root disk and becomes the agent.

It loads the modules by name, one file after another, mounts the EROFS root from the disk that the kernel's
command line names, and gives its process to Python with ``switch_root``: process 1 is then the agent, on a
real root, which ``pivot_root`` needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from orlop.guest.devices.drivers import FIND_ROOT

AGENT_DIRECTORY = "/usr/lib/orlop"
_START = f'import sys; sys.path.insert(0, "{AGENT_DIRECTORY}"); from orlop.guest.main import main; main()'

_TEMPLATE = """#!/bin/busybox sh
fail() {{
    echo "guest boot: $1" > /dev/kmsg
    echo "guest boot: $1"
    /bin/busybox poweroff -f
}}
/bin/busybox mount -t devtmpfs devtmpfs /dev
{early}
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
for word in $(/bin/busybox cat /proc/cmdline); do
    case $word in orlop.root=*) root=${{word#*=}} ;; esac
done
{find_root}
n=0
until disk=$(find_root) && [ -b "/dev/$disk" ]; do
    n=$((n + 1))
    [ $n -le 500 ] || fail "no root disk"
    /bin/busybox usleep 10000
done 2>/dev/null
/bin/busybox mount -t erofs -o ro "/dev/$disk" /root || fail "the root disk does not mount"
cd /root/usr/lib/modules/{release}
{late}
cd /
for d in dev proc sys; do /bin/busybox mount -o move /$d /root/$d; done
exec /bin/busybox env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \\
    /bin/busybox switch_root -c /dev/console /root /usr/bin/python3 -S -E -B -u -c '{start}'
"""


def script(release: str, early: Sequence[str], late: Sequence[tuple[str, bool]]) -> str:
    """The text of ``/init``.

    ``early`` are module files in the initial RAM disk; ``late`` those on the root disk, relative to the
    modules of kernel ``release``, each with whether the boot fails without it.
    """
    load = [f'/bin/busybox insmod /modules/{name} || fail "module {name}"' for name in early]
    more = [
        f"/bin/busybox insmod {path}" + (f' || fail "module {path}"' if needed else " 2>/dev/null")
        for path, needed in late
    ]
    return _TEMPLATE.format(
        early="\n".join(load), late="\n".join(more), release=release, find_root=FIND_ROOT, start=_START
    )
