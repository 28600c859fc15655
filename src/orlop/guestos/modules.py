"""Kernel modules: which the guest gets, and in which order the first ones are loaded.

A module says in its ``.modinfo`` section what it depends on. What the boot needs is loaded by file
name in that order (no index is read); the rest is loaded by the kernel on demand, through the
``modprobe`` of the root disk and the index that ``depmod`` makes.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path

from orlop.errors import NotFound
from orlop.guest.devices import drivers

# To mount the root disk.
EARLY = (*drivers.EARLY, "erofs")
# What file systems need and no module says; later kernels have it built in.
EARLY_OPTIONAL = ("crc32c_generic",)
# Before the agent starts, in the order of need.
LATE = (*drivers.LATE, "overlay", "ext4", "tun", "fuse")
# Loaded at boot where the processor has what they need; a failure is no error.
OPTIONAL = ("crc32c_intel", *drivers.OPTIONAL)
# Only there for pods that ask for them: packet filters, bridges, other network interfaces.
ON_DEMAND = (
    "kernel/net/netfilter/",
    "kernel/net/ipv4/netfilter/",
    "kernel/net/ipv6/netfilter/",
    "kernel/net/bridge/",
    "kernel/drivers/net/veth.",
    "kernel/drivers/net/dummy.",
    "kernel/drivers/net/macvlan.",
    "kernel/drivers/net/ipvlan/",
    "kernel/drivers/net/vxlan/",
    "kernel/drivers/net/wireguard/",
    "kernel/net/sched/",
    "kernel/net/sctp/",
    "kernel/fs/squashfs/",
    "kernel/fs/xfs/",
    "kernel/fs/isofs/",
    "kernel/drivers/block/loop.",
)


def plain_name(path: Path) -> str:
    """A module's name as the kernel writes it: ``-`` and ``_`` are the same."""
    return path.name.split(".ko", 1)[0].replace("-", "_")


def content(path: Path) -> bytes:
    """The module itself, unpacked where the distribution compresses it."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


class ModuleTree:
    """The modules of one kernel below ``directory`` (``lib/modules/RELEASE``)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._paths = {plain_name(path): path for path in sorted(directory.rglob("*.ko*"))}
        builtin = (directory / "modules.builtin").read_text(encoding="ascii").splitlines()
        self._builtin = {plain_name(Path(line)) for line in builtin}
        self._depends: dict[str, tuple[str, ...]] = {}

    def path(self, name: str) -> Path:
        """Where module ``name`` is. Raises NotFound."""
        try:
            return self._paths[name]
        except KeyError:
            raise NotFound(f"the kernel in {self.directory} has no module {name}") from None

    def present(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that are there as files."""
        return [name for name in names if name in self._paths]

    def relative(self, name: str) -> Path:
        """The uncompressed module's path below the directory. Raises NotFound."""
        path = self.path(name).relative_to(self.directory)
        return path.with_name(path.name.split(".ko", 1)[0] + ".ko")

    def load_order(self, names: Iterable[str]) -> list[str]:
        """``names`` and all they depend on, each after what it needs; built-in ones are left out."""
        order: list[str] = []
        seen: set[str] = set()

        def visit(name: str) -> None:
            if name in seen or name in self._builtin:
                return
            seen.add(name)
            for other in self._dependencies(name):
                visit(other)
            order.append(name)

        for name in names:
            visit(name)
        return order

    def below(self, prefixes: Iterable[str]) -> list[str]:
        """The names of all modules whose path below the directory starts with one of ``prefixes``."""
        wanted = tuple(prefixes)
        return [
            name
            for name, path in self._paths.items()
            if path.relative_to(self.directory).as_posix().startswith(wanted)
        ]

    def _dependencies(self, name: str) -> tuple[str, ...]:
        if name not in self._depends:
            match = re.search(rb"(?:^|\0)depends=([^\0]*)\0", content(self.path(name)))
            names = match[1].decode("ascii").split(",") if match else []
            self._depends[name] = tuple(other.replace("-", "_") for other in names if other)
        return self._depends[name]
