"""What other fronts than CRI bring along: a network namespace with its own network, a root, a reader."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


def ip(*args: str) -> str:
    """ip(8)."""
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Net:
    """A network namespace ``path`` joined by a veth with a bridge of the host, which has ``gateway``."""

    path: Path
    name: str
    address: str
    gateway: str

    def inside(self, *args: str) -> str:
        """Run a command in it, as something of the host that shares it would."""
        command = ["nsenter", f"--net={self.path}", *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def network(number: int = 77) -> Iterator[Net]:
    """A network namespace with one interface; gone, with its bridge, at the end."""
    tag = secrets.token_hex(2)
    name, bridge, outer = f"orlout{tag}", f"orlbr{tag}", f"orlv{tag}"
    address, gateway = f"10.{number}.{int(tag[:2], 16)}.2", f"10.{number}.{int(tag[:2], 16)}.1"
    ip("netns", "add", name)
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("addr", "add", f"{gateway}/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", outer, "master", bridge, "up")
        found = Net(Path(f"/run/netns/{name}"), name, address, gateway)
        found.inside("ip", "addr", "add", f"{address}/24", "dev", "eth0")
        found.inside("ip", "link", "set", "eth0", "up")
        found.inside("ip", "link", "set", "lo", "up")
        found.inside("ip", "route", "add", "default", "via", gateway)
        yield found
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)
        subprocess.run(["ip", "link", "delete", bridge], check=False)


class Reader:
    """Reads a FIFO to its end, as a shim's client does."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = os.fspath(path)
        self.data = b""
        # Both ways, so that the end of one writer is not yet the end.
        self._fd = os.open(path, os.O_RDWR)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        ended = b""
        while not ended:
            # What came just before the end is read together with it.
            data, ended, _ = os.read(self._fd, 1 << 16).partition(b"\0")
            self.data += data

    def close(self) -> bytes:
        """What came until now."""
        os.write(self._fd, b"\0")
        self._thread.join(5)
        os.close(self._fd)
        return self.data


def root_directory(place: Path, busybox: Path) -> Path:
    """A root file system in a directory, with a busybox and a user database."""
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "data"):
        (place / name).mkdir(parents=True)
    (place / "bin/busybox").write_bytes(busybox.read_bytes())
    (place / "bin/busybox").chmod(0o755)
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for name in applets:
        if name != "busybox":
            (place / "bin" / name).symlink_to("busybox")
    (place / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n")
    (place / "etc/group").write_text("root:x:0:\nweb:x:1000:\n")
    place.chmod(0o755)
    return place
