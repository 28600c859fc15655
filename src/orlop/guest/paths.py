"""Where the agent keeps things, and small helpers for the files of /proc and /sys."""

from __future__ import annotations

import os

STATE = "/run/orlop"
DISKS = f"{STATE}/disks"
CONTAINERS = f"{STATE}/containers"
SHARE = f"{STATE}/share"
VOLUMES = f"{STATE}/volumes"
SOCKETS = f"{STATE}/sockets"
SHM = f"{STATE}/shm"
ETC = f"{STATE}/etc"
PROC = f"{STATE}/proc"
CGROUPS = "/sys/fs/cgroup"


def read_text(path: str) -> str:
    """The text of a small file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
    finally:
        os.close(fd)
    return b"".join(chunks).decode(errors="replace")


def write_text(path: str, text: str) -> None:
    """Write ``text`` with one write(2), as the kernel's files want it. The file must exist."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_TRUNC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def create_text(path: str, text: str, mode: int = 0o644) -> None:
    """Write a regular file, made if it is missing."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_TRUNC | os.O_CREAT, mode)
    try:
        data = text.encode()
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
