"""Volumes whose owners are mapped, for pods in user namespaces.

The guest's side of the share cannot map ids, so the host does: the volume is mounted for the VM through a
user namespace with the pod's mappings. The hypervisor makes a file as root and then gives it to the
guest's user; root itself is therefore mapped too, to an id that no file has but for that moment. What the
guest calls a user is another one on the host, when the hypervisor has users of its own.
"""

from __future__ import annotations

from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.host import process
from orlop.hypervisor.jail import ids
from orlop.sandbox.spec import IdMapping
from orlop.wire.values import VolumeEntry

_PASSING = 4294967293
_LIMIT = 340
_NOBODY = 65534
_WAIT = ("unshare", "--user", "--", "sh", "-c", "echo; read line")


@asynccontextmanager
async def user_namespace(
    uid_mappings: Sequence[IdMapping], gid_mappings: Sequence[IdMapping], *, owner: int = 0
) -> AsyncIterator[Path]:
    """A user namespace with these mappings, as a path that is good inside the block.

    ``owner`` is the first id of the users that the hypervisor has, 0 if they are the host's.

    Raises InvalidArgument for mappings the kernel does not take.
    """
    child = await process.spawn(_WAIT, stdin=PIPE, stdout=PIPE)
    try:
        assert child.stdin is not None and child.stdout is not None
        if not await child.stdout.readline():
            raise FailedPrecondition("this host does not allow user namespaces")
        for kind, mappings in (("uid", uid_mappings), ("gid", gid_mappings)):
            _write(Path(f"/proc/{child.pid}/{kind}_map"), lines(mappings, owner))
        yield Path(f"/proc/{child.pid}/ns/user")
    finally:
        await process.reap(child)


def lines(mappings: Sequence[IdMapping], owner: int = 0) -> str:
    """The text of a ``uid_map``: the mappings, and root's own passage where they leave room for it."""
    if not 0 < len(mappings) <= _LIMIT:
        raise InvalidArgument(f"{len(mappings)} id mappings; there must be between 1 and {_LIMIT}")
    entries = [(entry.container_id, entry.host_id, entry.length) for entry in mappings]
    root_is_mapped = any(outer == 0 for _, outer, _ in entries)
    taken = any(inner <= _PASSING < inner + length for inner, _, length in entries)
    if not root_is_mapped and not taken and len(entries) < _LIMIT:
        entries.append((_PASSING, 0, 1))
    if owner:
        entries = [
            (inner + part.start - outer, start, len(part))
            for inner, outer, length in entries
            for part, start in ids.outside(range(outer, outer + length), owner)
        ]
    return "".join(f"{inner} {outer} {length}\n" for inner, outer, length in entries)


def owned(
    entry: VolumeEntry, uid_mappings: Sequence[IdMapping], gid_mappings: Sequence[IdMapping]
) -> VolumeEntry:
    """With the owners that the pod's user namespace makes of the host's."""
    if not uid_mappings and not gid_mappings:
        return entry
    return VolumeEntry(
        path=entry.path,
        kind=entry.kind,
        mode=entry.mode,
        uid=_outer(entry.uid, uid_mappings),
        gid=_outer(entry.gid, gid_mappings),
        modified=entry.modified,
        data=entry.data,
        target=entry.target,
    )


def _outer(inner: int, mappings: Sequence[IdMapping]) -> int:
    for one in mappings:
        if one.container_id <= inner < one.container_id + one.length:
            return one.host_id + inner - one.container_id
    return _NOBODY


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="ascii")  # one write(2), as the kernel demands
    except OSError as error:
        raise InvalidArgument(f"the id mappings are not valid: {error.strerror}") from error
