"""The values of this room: what an image is, what a pull needs and reports."""

from __future__ import annotations

import msgspec

from orlop.value import Value


class RegistryAuth(Value, frozen=True):
    """Credentials that came with a request (CRI ``AuthConfig``).

    ``auth`` is base64 of ``user:password``. ``server_address`` narrows them to one registry; empty means
    the one that the image's name holds.
    """

    username: str = ""
    password: str = ""
    auth: str = ""
    server_address: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return f"RegistryAuth(username={self.username!r}, ...)"


class HealthCheck(Value, frozen=True):
    """A command that says by its exit code whether a container is well.

    ``test`` is ``CMD`` and the words of the command, or ``CMD-SHELL`` and one text for /bin/sh. Times
    are nanoseconds; 0 leaves one to whoever runs the container.
    """

    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    retries: int = 0


def health(check: HealthCheck | None) -> dict[str, object]:
    """The same in the words of an image's configuration; empty for none."""
    if check is None:
        return {}
    found: dict[str, object] = {
        "Test": check.test,
        "Interval": check.interval,
        "Timeout": check.timeout,
        "StartPeriod": check.start_period,
        "Retries": check.retries,
    }
    return {name: value for name, value in found.items() if value}


class ImageConfigOci(Value, frozen=True):
    """What an image says about the process to run (OCI image-spec, config.md), and who made it.

    ``comment`` is that of the last step by which it was made.
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""
    healthcheck: HealthCheck | None = None
    volumes: tuple[str, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    exposed_ports: tuple[str, ...] = ()
    architecture: str = ""
    os: str = ""
    created: str = ""
    author: str = ""
    comment: str = ""


class Image(Value, frozen=True):
    """An image that is here, whole.

    ``id`` is the digest of its configuration. ``layers`` are EROFS files, bottom first, and ``size``
    the sum of their sizes in bytes.
    """

    id: str
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    size: int = 0
    config: ImageConfigOci = ImageConfigOci()
    layers: tuple[str, ...] = ()
    pinned: bool = False


class FsInfo(Value, frozen=True):
    """The space that images take: bytes and inodes below ``mountpoint``; ``timestamp`` in nanoseconds."""

    mountpoint: str
    used_bytes: int
    inodes: int
    timestamp: int


class PullProgress(Value, frozen=True):
    """How far a pull is. Sizes are bytes as the registry sends them; layers that were here count as read."""

    reference: str
    layers: int = 0
    layers_done: int = 0
    total_bytes: int = 0
    read_bytes: int = 0
