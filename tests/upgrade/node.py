"""A node on which the daemon is exchanged for another version of itself while pods run."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from tests.node import Node, scratch_directory, settings_for
from tests.upgrade import release

# What both versions understand; each has keys that the other refuses.
_CONFIG = """
socket = "{scratch}/orlop.sock"
root = "{scratch}/root"
state = "{scratch}/state"
log_level = "info"
[vm.pool]
size = 1
[images]
registries_conf = "{scratch}/registries.conf"
policy = "{scratch}/policy.json"
[network]
conf_dir = "{scratch}/cni"
"""


class UpgradedNode(Node):
    """A node with directories of its own, guest images too; :meth:`install` chooses the version."""

    def install(self, package: Path | None) -> None:
        """The version in ``package``, this checkout's for None, runs from the next start on."""
        self._package = package
        guests = self.settings.root / "guest"
        if guests.is_symlink():  # borrowed: this node builds its own
            guests.unlink()
            shutil.rmtree(self.settings.root / "hypervisor", ignore_errors=True)
        release.guest(package, self.settings.root)
        text = _CONFIG.format(scratch=self.scratch)
        (self.scratch / "config.toml").write_text(text)

    def start(self) -> None:
        """Start the daemon of the version that is installed."""
        with mock.patch.dict(os.environ, release.environment(self._package), clear=True):
            super().start()

    def refusal(self) -> str:
        """What the daemon says as it ends at once. Raises AssertionError when it serves."""
        argv = ["-m", "orlop.daemon", "--config", os.fspath(self.scratch / "config.toml")]
        done = subprocess.run(
            [sys.executable, *argv],
            env=release.environment(self._package),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1, done
        return done.stderr


@contextlib.contextmanager
def upgraded(registry: str) -> Iterator[UpgradedNode]:
    """A node on which nothing is installed yet. At the end its pods are removed, and nothing may be left."""
    with scratch_directory("orlop-up-") as scratch:
        one = UpgradedNode(settings_for(scratch, registry))
        try:
            yield one
        finally:
            print(f"--- the daemon's log\n{one.settings.log_tail(60)}")
            try:
                if not one.alive():
                    one.install(None)
                    one.start()
                one.remove_all()
            finally:
                one.stop()
                one.wait_no_leaks()
                command = ["ip", "link", "delete", one.settings.bridge]
                subprocess.run(command, capture_output=True, check=False)
