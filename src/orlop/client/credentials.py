"""Credentials for registries, kept where podman, skopeo and docker keep them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from orlop.config import load
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument, Unauthenticated
from orlop.host import process
from orlop.images import authfile, reference
from orlop.images.failures import last_message

TIMEOUT = 120.0


async def of_image(name: str) -> pb.AuthConfig | None:
    """What is known for the registry of an image; None for nothing, and for what is no name."""
    try:
        repository = reference.parse(name).name
    except InvalidArgument:  # the daemon says what is wrong with it
        return None
    found = authfile.entry(await asyncio.to_thread(authfile.merged), repository)
    if not found.get("auth") and not found.get("identitytoken"):
        return None
    return pb.AuthConfig(auth=found.get("auth", ""), identity_token=found.get("identitytoken", ""))


async def log_in(registry: str, user: str, password: str, *, secure: bool = True) -> str:
    """Ask a registry whether it knows the user, and keep the password; the file that it stands in now.

    Unless ``secure`` the registry may speak plain http, or have a certificate of unknown origin.

    Raises Unauthenticated, and InvalidArgument for a wrong configuration.
    """
    path = authfile.places()[0]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = ["--authfile", str(path), "--username", user, f"--tls-verify={str(secure).lower()}"]
    await _done([*_skopeo(), "login", *options, "--password-stdin", registry], password.encode())
    return str(path)


async def log_out(registry: str) -> None:
    """Forget what is known for a registry, "" for all. Raises Unauthenticated when nothing is."""
    path = authfile.places()[0]
    await _done([*_skopeo(), "logout", "--authfile", str(path), registry or "--all"])


def _skopeo() -> list[str]:
    conf = load().images.registries_conf
    return ["skopeo", *(["--registries-conf", conf] if conf else [])]


async def _done(command: Sequence[process.Argument], data: bytes | None = None) -> None:
    done = await process.run(command, input=data, timeout=TIMEOUT, check=False)
    if done.returncode != 0:
        said = last_message(done.stderr.decode(errors="replace")) or f"status {done.returncode}"
        raise Unauthenticated(f"{command[-1]}: {said}")
