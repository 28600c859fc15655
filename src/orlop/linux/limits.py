"""What a container's processes may have open and how many they may be, unless it asks for other limits.

These are those of containerd's own unit, which programs have come to expect. What they need of the
kernel is in :data:`KERNEL`.
"""

from __future__ import annotations

INFINITY = -1
"""No limit at all, where this project speaks of limits."""

MOST_FILES = 1073741816
"""The highest ``fs.nr_open``, and so the most that RLIMIT_NOFILE can be; proc_sys_fs(5)."""

DEFAULTS: tuple[tuple[str, int], ...] = (("NOFILE", 1 << 20), ("NPROC", INFINITY), ("CORE", INFINITY))
"""Limits of setrlimit(2), soft and hard ones alike, by their names without ``RLIMIT_``."""

KERNEL: tuple[tuple[str, int], ...] = (
    ("fs/nr_open", MOST_FILES),
    ("fs/file-max", (1 << 63) - 1),
    ("fs/inotify/max_user_instances", 8192),
    ("fs/inotify/max_user_watches", 1 << 20),
    ("kernel/pid_max", 1 << 22),
    ("kernel/threads-max", 1 << 22),
    ("vm/max_map_count", 1 << 20),
)
"""Below /proc/sys: what a kernel reckons from little memory, though it costs nothing until it is used."""
