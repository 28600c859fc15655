"""The suite, from Debian's source package of podman, and which of its files ask a runtime for anything."""

from __future__ import annotations

from pathlib import Path

from bench import peers

from tests.conformance import tools

RELEASE = "12"
"""The Debian whose podman is asked."""

VERSION = "4.3.1"
"""Of podman there. Its tests and its program are of one source package."""

PACKAGES = (
    "bats",
    "buildah",
    "catatonit",
    "jq",
    "libjq1",
    "libonig5",
    "socat",
    "libwrap0",
    "slirp4netns",
    "libslirp0",
)
"""What the tests call besides podman."""


def directory() -> Path:
    """The suite: files of bats and what they load."""
    if tools.release() != RELEASE:
        raise tools.ToolError(f"podman's system tests are run on Debian {RELEASE}, whose podman is {VERSION}")
    return tools.cached(tools.cache_dir() / "podman-system" / VERSION, _tests) / "system"


def _tests(scratch: Path) -> Path:
    """All of its tests: they read other tests' files by their place in the source."""
    source = tools.debian_source("libpod", scratch)
    if VERSION not in source.name:
        raise tools.ToolError(f"Debian's podman is no longer {VERSION} but {source.name}")
    return source / "test"


def roots() -> tuple[Path, Path]:
    """The unpacked podman, and the unpacked programs of the tests."""
    return peers.debian_podman(), tools.debian_packages(PACKAGES)


FILES = (
    "001-basic",
    "030-run",
    "032-sig-proxy",
    "035-logs",
    "037-runlabel",
    "040-ps",
    "045-start",
    "050-stop",
    "055-rm",
    "060-mount",
    "065-cp",
    "070-build",
    "075-exec",
    "080-pause",
    "090-events",
    "125-import",
    "130-kill",
    "140-diff",
    "160-volumes",
    "170-run-userns",
    "180-blkio",
    "190-run-ipcns",
    "200-pod",
    "220-healthcheck",
    "260-sdnotify",
    "280-update",
    "320-system-df",
    "400-unprivileged-access",
    "410-selinux",
    "420-cgroups",
    "450-interactive",
    "500-networking",
    "520-checkpoint",
    "700-play",
    "710-kube",
)
"""Files that ask a runtime for something."""

OTHERS = {
    "005-info": "the engine itself",
    "010-images": "images",
    "011-image": "images",
    "015-help": "the command line",
    "020-tag": "images",
    "110-history": "images",
    "120-load": "images",
    "150-login": "registries",
    "250-systemd": "a service manager, which starts the containers",
    "251-system-service": "podman's own API",
    "255-auto-update": "images, and a service manager",
    "270-socket-activation": "podman's own API, and a service manager",
    "271-tcp-cors-server": "podman's own API",
    "272-system-connection": "podman's own API",
    "300-cli-parsing": "the command line",
    "330-corrupt-images": "images",
    "600-completion": "the command line",
    "610-format": "the command line",
    "750-trust": "images",
    "800-config": "settings",
    "900-ssh": "other machines",
}
"""Files that are not run, and what they are about instead."""
