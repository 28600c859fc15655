"""Run one CNI plug-in (CNI specification 1.0, sections 2 and 4)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orlop.errors import Code, OrlopError, Unavailable
from orlop.host import process, roots
from orlop.net import served
from orlop.value import UNREADABLE, Value

_OUTPUT_LIMIT = 4 << 20
_SHOWN = 1000


class PluginFailed(Unavailable):
    """A plug-in refused or failed; ``cni_code`` is the code of its error document (0: none)."""

    code = Code.UNAVAILABLE

    def __init__(self, message: str, cni_code: int = 0) -> None:
        super().__init__(message)
        self.cni_code = cni_code


class Invocation(Value, frozen=True):
    """The parameters that every plug-in of a chain gets; ``netns`` is empty when it is gone."""

    container_id: str
    netns: str
    interface: str
    arguments: tuple[tuple[str, str], ...] = ()

    def environment(self, command: str, bin_dirs: Sequence[str]) -> dict[str, str]:
        """The environment of a plug-in process."""
        return {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": self.interface,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in self.arguments),
            "CNI_PATH": ":".join(bin_dirs),
        }


class _Error(msgspec.Struct):
    code: int = 0
    msg: str = ""
    details: str = ""


def find(kind: str, bin_dirs: Sequence[str], root: Path = roots.OWN) -> Path | None:
    """The plug-in's program in the first directory that has it, as who has that root calls it."""
    for directory in bin_dirs:
        path = Path(directory) / kind
        if os.access(roots.below(root, path), os.X_OK):
            return path
    return None


async def execute(
    command: str,
    document: Mapping[str, Any],
    invocation: Invocation,
    *,
    bin_dirs: Sequence[str],
    timeout: float,
    root: Path = roots.OWN,
) -> bytes:
    """Run the plug-in named by ``document["type"]``, or ask where it is served; return what it wrote.

    It runs with ``root`` as its root directory, in which ``bin_dirs`` are. Raises PluginFailed with the
    plug-in's name, the network's and the reason.
    """
    kind, network = str(document["type"]), document.get("name", "")
    about = f"CNI plug-in {kind} of network {network} failed to {command}"
    program, served_at = find(kind, bin_dirs, root), document.get(served.KEY)
    if program is None and not served_at:
        raise PluginFailed(f"{about}: it is in none of {', '.join(bin_dirs)}")
    variables, text = invocation.environment(command, bin_dirs), msgspec.json.encode(document)
    try:
        if served_at:
            done = await served.ask(str(served_at), variables, text, timeout)
        else:
            done = await process.run(
                [*roots.entering(root), program or kind],
                input=text,
                env=variables,
                timeout=timeout,
                check=False,
                output_limit=_OUTPUT_LIMIT,
            )
    except OrlopError as error:
        raise PluginFailed(f"{about}: {error}") from error
    if done.returncode == 0:
        return done.stdout
    raise _failure(about, done)


def _failure(about: str, done: process.Completed) -> PluginFailed:
    try:
        error = msgspec.json.decode(done.stdout, type=_Error)
    except UNREADABLE:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-_SHOWN:]
        status = f"status {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
        return PluginFailed(f"{about}: it ended with {status}" + (f": {said}" if said else ""))
    words = "; ".join(part for part in (error.msg.strip(), error.details.strip()) if part)
    return PluginFailed(
        f"{about}: {words[:_SHOWN] or 'no reason given'} (CNI error {error.code})", error.code
    )
