"""The machine that is to be a node: its files below a root directory, and the commands that are run in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from orlop.cli.problems import CliError
from orlop.host import files, process

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_APT_TIME = 1800.0


class NodeHost:
    """``root`` is "/" on the node itself, and where its file system is mounted in a pod."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def booted(self) -> bool:
        """Whether systemd runs there; if not, units can be enabled, but nothing started."""
        return self.path("run/systemd/system").is_dir()

    def path(self, name: str) -> Path:
        """A file of the machine, by its absolute name there."""
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str:
        """A file's text, "" where there is none."""
        try:
            return self.path(name).read_text()
        except FileNotFoundError:
            return ""

    def write(self, name: str, text: str) -> None:
        """Replace a file, readable to all, as configuration is."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.save(path, text.encode())
        path.chmod(0o644)

    def remove(self, name: str) -> None:
        """Remove a file, and its directory if nothing else is in it. Idempotent."""
        path = self.path(name)
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()

    async def run(self, *command: str, timeout: float = 120.0) -> str:
        """Run a command there and return its output. Raises OrlopError when it fails."""
        inside = command if self.root == Path("/") else ("chroot", os.fspath(self.root), *command)
        # In a pod systemctl sees a chroot, and would do nothing.
        own = {"PATH": PATH, "LC_ALL": "C.UTF-8", "SYSTEMD_IGNORE_CHROOT": "1"}
        own["DEBIAN_FRONTEND"] = "noninteractive"
        done = await process.run(list(inside), env=own, timeout=timeout)
        return done.stdout.decode(errors="replace")

    async def systemctl(self, *words: str) -> bool:
        """Tell the service manager, if it runs there; whether it does."""
        if self.booted:
            await self.run("systemctl", *words)
        return self.booted

    async def install(self, package: Path) -> None:
        """Install a Debian package with what it depends on. Raises CliError where there is no apt."""
        if not self.path("usr/bin/apt-get").exists():
            raise CliError(
                f"{self.root} has no apt-get: install Orlop's programs there by hand, see docs/kubernetes.md"
            )
        target = self.path("var/cache/orlop") / package.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package, target)
        try:
            name = f"/var/cache/orlop/{package.name}"
            await self.run("apt-get", "-qq", "update", timeout=_APT_TIME)
            options = ("-y", "-qq", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold")
            await self.run("apt-get", *options, "install", name, timeout=_APT_TIME)
        finally:
            self.remove(f"var/cache/orlop/{package.name}")
