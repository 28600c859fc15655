"""The guest's software: Debian packages, downloaded and unpacked, never installed.

The packages come from the sources that this machine's apt is configured with, so its signatures and
mirrors hold. apt-get checks each file against the signed index; nothing runs a maintainer script.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from orlop.errors import DataLoss, NotFound
from orlop.guestos import download
from orlop.host import process, threads
from orlop.linux import architecture

_PYTHON_META = "python3-minimal"
_PLAIN = ("libc6", "libexpat1", "zlib1g", "libffi8", "busybox-static")


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """One package as the index describes it."""

    name: str
    version: str
    sha256: str


class PackageSet(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the guest is made of. ``python`` is "3.11" or a later one; ``kernel`` its release."""

    packages: tuple[Package, ...]
    python: str
    kernel: str


async def resolve(say: Callable[[str], None]) -> PackageSet:
    """Find the versions that apt offers now, after a refresh if it knows one of the packages not.

    Raises NotFound when there are no such packages, or no apt, and NetworkSilent."""
    say("asking apt for the versions")
    try:
        return await _resolve()
    except NotFound:
        await download.refresh(say)
        return await _resolve()


async def _resolve() -> PackageSet:
    own = architecture.own().debian
    kernel_meta = f"linux-image-{own}"
    metas = await _show((kernel_meta, _PYTHON_META))
    kernel = _depends_on(metas[kernel_meta], rf"linux-image-(\d\S*-{own})")
    python = _depends_on(metas[_PYTHON_META], r"python(3\.\d+)-minimal")
    names = (
        f"linux-image-{kernel}",
        f"python{python}-minimal",
        f"libpython{python}-minimal",
        f"libpython{python}-stdlib",
        *_PLAIN,
    )
    stanzas = await _show(names)
    packages = tuple(
        Package(name=name, version=stanzas[name]["Version"], sha256=stanzas[name]["SHA256"]) for name in names
    )
    return PackageSet(packages=packages, python=python, kernel=kernel)


async def unpack(packages: Sequence[Package], target: Path, say: Callable[[str], None]) -> None:
    """Download ``packages`` and unpack them into the new directory ``target``.

    Raises DownloadFailed, NetworkSilent, or DataLoss when a file is not the one the index names.
    """
    debs = target.with_name(target.name + ".debs")
    debs.mkdir(parents=True)
    target.mkdir()
    await download.fetch([f"{package.name}={package.version}" for package in packages], debs, say)
    for package in packages:
        say(f"unpacking {package.name} {package.version}")
        found = sorted(debs.glob(f"{package.name}_*.deb"))
        digest = await threads.call(_sha256, found[0]) if found else "missing"
        if digest != package.sha256:
            raise DataLoss(
                f"the downloaded package {package.name} {package.version} is not the one in the index"
            )
        await process.run(["dpkg-deb", "-x", found[0], target], timeout=300)
        found[0].unlink()
    debs.rmdir()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _show(names: Sequence[str]) -> dict[str, dict[str, str]]:
    answer = await process.run(["apt-cache", "show", "--no-all-versions", *names], check=False)
    stanzas = {}
    for text in answer.stdout.decode(errors="replace").split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", text, re.MULTILINE))
        if {"Package", "Version", "SHA256"} <= fields.keys():
            stanzas[fields["Package"]] = fields
    missing = [name for name in names if name not in stanzas]
    if missing:
        raise NotFound(
            f"apt knows no package {', '.join(missing)}: build on Debian 12 or later, or name your own "
            "files in vm.guest"
        )
    return stanzas


def _depends_on(stanza: dict[str, str], pattern: str) -> str:
    depends = f"{stanza.get('Pre-Depends', '')}, {stanza.get('Depends', '')}"
    match = re.search(rf"\b{pattern}", depends)
    if match is None:
        raise NotFound(f"package {stanza['Package']} {stanza['Version']} depends on nothing like {pattern}")
    return match[1]
