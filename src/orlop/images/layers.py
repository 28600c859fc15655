"""The layers that are here, each one EROFS file named by the digest of its unpacked archive.

A layer is made in ``ingest/`` by a child process (:mod:`orlop.images.convert`) and renamed into
``layers/`` when both of its digests have been checked: what stands there is whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orlop
from orlop.errors import DataLoss, Internal, OrlopError, ResourceExhausted, Unavailable
from orlop.host import process, threads
from orlop.host.tasks import Tasks
from orlop.images import repair
from orlop.images.documents import Descriptor
from orlop.images.erofsread import ErofsReader
from orlop.linux.removal import remove_tree

STALL = 60.0
ASK_AFTER = 3.0
CONVERSION_STALL = 600.0

PACE_WINDOW = 120.0
PACE_BYTES = 64 << 10
"""What must come of a layer in that many seconds, however little it is each time."""

_WORDS = 1 << 16

_ERRORS: dict[str, type[OrlopError]] = {
    "archive": DataLoss,
    "digest": DataLoss,
    "cut-off": Unavailable,
    "full": ResourceExhausted,
    "too-large": ResourceExhausted,
    "system": Internal,
}


class LayerStore:
    """The directory of layers below ``root``."""

    def __init__(self, root: Path, *, max_layer_mib: int) -> None:
        self.directory = root / "layers"
        self.ingest = root / "ingest"
        self.empty = root / "empty"
        self._limit = max_layer_mib << 20

    def open(self) -> None:
        """Make the directories and clear what a killed daemon left half-made."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ingest.mkdir(mode=0o700, exist_ok=True)
        self.empty.mkdir(mode=0o555, exist_ok=True)
        for path in self.ingest.iterdir():
            if path.is_dir():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)

    def path(self, diff_id: str) -> Path:
        """Where the layer with that digest is, or will be."""
        return self.directory / f"{diff_id.removeprefix('sha256:')}.erofs"

    def size(self, diff_id: str) -> int:
        """The size of a layer's file in bytes, 0 if it is not here."""
        try:
            return self.path(diff_id).stat().st_size
        except FileNotFoundError:
            return 0

    def older(self, than: float) -> list[str]:
        """The digests of the layers that were made before ``than``, in seconds since the epoch."""
        found = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < than:
                        found.append("sha256:" + entry.name.removesuffix(".erofs"))
        return found

    def bury(self, diff_id: str) -> Path | None:
        """Take a layer away at once; the file at the path returned is to be unlinked, which may take long.

        None if it is not here. The caller makes sure, in the same breath, that nothing needs it.
        """
        grave = self.ingest / f"{uuid.uuid4().hex}.gone"
        try:
            return self.path(diff_id).rename(grave)
        except FileNotFoundError:
            return None

    def usage(self) -> tuple[int, int]:
        """Bytes and inodes that the layers take."""
        used = count = 0
        with os.scandir(self.directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    used += entry.stat(follow_symlinks=False).st_blocks * 512
                    count += 1
        return used, count

    async def convert(
        self,
        source: int,
        layer: Descriptor,
        diff_id: str,
        *,
        name: str,
        finish: Callable[[], Coroutine[Any, Any, None]],
        on_read: Callable[[int], None],
    ) -> None:
        """Make a layer from the blob that comes in on ``source``, which this function closes.

        ``finish`` asks the sender whether all was sent. Raises DataLoss for a wrong digest
        or archive, ResourceExhausted for a full disk or a layer that is too large, Unavailable when
        the blob breaks off. Nothing half-made is left.
        """
        what = ["--size", str(layer.size), "--digest", layer.digest, "--diff-id", diff_id]
        try:
            async with self._made(diff_id) as output, self._child(output, *what, stdin=source) as child:
                os.close(source)
                source = -1
                await _Conversion(child, layer, name, finish, on_read).watch()
        finally:
            if source >= 0:
                os.close(source)

    async def repair(self, diff_ids: Sequence[str], *, name: str) -> str:
        """The digest of a layer that must stand on top of the others; made if need be. "" for almost all.

        See :mod:`orlop.images.repair`. Raises OSError, Internal, or DataLoss for a damaged layer.
        """
        if not await threads.call(self._needs_repair, diff_ids):
            return ""
        own = repair.name(diff_ids)
        if self.path(own).exists():
            return own
        with ExitStack() as stack:
            layers = []
            for diff_id in diff_ids:
                layers.append(os.open(self.path(diff_id), os.O_RDONLY | os.O_CLOEXEC))
                stack.callback(os.close, layers[-1])
            what = ["--diff-id", own, "--repair", *map(str, layers)]
            with suppress(_NothingMade):
                async with self._made(own) as output, self._child(output, *what, pass_fds=layers) as child:
                    if not (await _last_word(child, f"the repair of image {name}")).get("made"):
                        raise _NothingMade
                return own
        return ""

    async def expand(self, packed: Path, output: int, *, limit: int) -> None:
        """Write to ``output`` what a compressed file holds, at most ``limit`` bytes; others as they are.

        Raises DataLoss for a damaged file, ResourceExhausted for one that is too large, or a full disk.
        """
        what = ["--size", str(packed.stat().st_size), "--expand"]
        source = os.open(packed, os.O_RDONLY | os.O_CLOEXEC)
        try:
            async with self._child(output, *what, stdin=source, limit=limit) as child:
                await _last_word(child, "the archive")
        finally:
            os.close(source)

    async def pack(self, path: Path, output: int) -> str:
        """Write the layer at ``path`` to ``output`` as an archive, the same one every time; its digest.

        Raises DataLoss for a damaged layer, ResourceExhausted for a full disk.
        """
        layer = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            async with self._child(output, "--pack", str(layer), pass_fds=(layer,)) as child:
                done = await _last_word(child, f"the layer {path.stem}")
        finally:
            os.close(layer)
        return str(done["digest"])

    def _needs_repair(self, diff_ids: Sequence[str]) -> bool:
        with ExitStack() as stack:
            layers = [stack.enter_context(ErofsReader(self.path(diff_id))) for diff_id in diff_ids]
            return repair.needed(layers)

    @asynccontextmanager
    async def _made(self, diff_id: str) -> AsyncIterator[int]:
        """A new file that becomes the layer ``diff_id`` unless the block fails."""
        partial = self.ingest / f"{uuid.uuid4().hex}.erofs"
        output = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                yield output
            finally:
                os.close(output)
            partial.rename(self.path(diff_id))
        finally:
            partial.unlink(missing_ok=True)

    @asynccontextmanager
    async def _child(
        self,
        output: int,
        *what: str,
        stdin: int = DEVNULL,
        pass_fds: Sequence[int] = (),
        limit: int = 0,
    ) -> AsyncIterator[process.Child]:
        """The process that makes a layer; dead when the block ends, however it does."""
        command = [
            sys.executable,
            # Without site: the search path is handed over, and a third of the start-up time is saved.
            "-S",
            "-m", "orlop.images.convert",
            "--output", str(output),
            "--empty", os.fspath(self.empty),
            "--limit", str(limit or self._limit),
            *what,
        ]  # fmt: skip
        child = await process.spawn(
            command,
            env=_environment(),
            stdin=stdin,
            stdout=PIPE,
            stderr=PIPE,
            pass_fds=(output, *pass_fds),
        )
        try:
            yield child
        finally:
            await process.reap(child)


class _NothingMade(Exception):
    """There is nothing to repair."""


async def _last_word(child: process.Child, what: str) -> dict[str, Any]:
    """What a child has done. Raises what its failure means, Internal when it takes too long."""
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        async with asyncio.timeout(CONVERSION_STALL):
            lines = (await child.stdout.read(_WORDS)).splitlines()
    except TimeoutError as error:
        raise Internal(f"{what} takes longer than {CONVERSION_STALL:g} seconds") from error
    last = _said(lines[-1]) if lines else {}
    if "failed" in last:
        raise _ERRORS.get(str(last["failed"]), Internal)(f"{what} cannot be used: {last.get('message')}")
    if "done" not in last:
        said = (await child.stderr.read(_WORDS)).decode(errors="replace").strip()[-400:]
        raise Internal(f"{what} failed: {said or f'status {await child.wait()}'}")
    done: dict[str, Any] = last["done"]
    return done


def _said(line: bytes) -> dict[str, Any]:
    """What a child says in one line; nothing when it was cut off, or what it reads has taken it over."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _environment() -> dict[str, str]:
    package = Path(orlop.__file__).parent.parent
    return {"PYTHONPATH": os.pathsep.join([os.fspath(package), *filter(None, sys.path)]), "LC_ALL": "C.UTF-8"}


class _Conversion:
    """Follows one child to its end."""

    def __init__(
        self,
        child: process.Child,
        layer: Descriptor,
        name: str,
        finish: Callable[[], Coroutine[Any, Any, None]],
        on_read: Callable[[int], None],
    ) -> None:
        self._child = child
        self._layer = layer
        self._name = name
        self._finish = finish
        self._on_read = on_read
        self._read = 0
        self._marked = (time.monotonic(), 0)
        self._sent: asyncio.Future[None] | None = None
        self._tasks = Tasks()

    async def watch(self) -> None:
        assert self._child.stderr is not None
        complaints = self._tasks.spawn(self._child.stderr.read(1 << 16), "what a conversion complains of")
        try:
            result = await self._result()
            if result is None or "done" not in result:
                raise await self._failure(result, complaints)
            await self._ask()
            await self._child.wait()
        finally:
            await self._tasks.close()

    def _ask(self) -> asyncio.Future[None]:
        """Whether all was sent; asked once."""
        if self._sent is None:
            what = f"the end of layer {self._layer.digest} of {self._name}"
            self._sent = self._tasks.spawn(self._finish(), what, awaited=True)
        return self._sent

    async def _result(self) -> dict[str, Any] | None:
        """The child's last word; None if it ended without one."""
        idle = 0.0
        assert self._child.stdout is not None
        while True:
            self._check_pace()
            try:
                async with asyncio.timeout(ASK_AFTER):
                    line = await self._child.stdout.readline()
            except ValueError:  # a line without end
                return None
            except TimeoutError:
                idle += ASK_AFTER
                self._check_idle(idle)
                continue
            if not line:
                return None
            try:
                message = _said(line)
                if "read" not in message:
                    return message
                read = int(message["read"])
            except (ValueError, TypeError, OverflowError):
                return None  # it was taken over by what it reads
            if read > self._read:
                idle = 0.0
                self._read = read
                self._on_read(read)

    def _check_pace(self) -> None:
        begun, read = self._marked
        if time.monotonic() - begun < PACE_WINDOW:
            return
        if self._read < self._layer.size and self._read - read < PACE_BYTES:
            raise Unavailable(
                f"RegistryUnavailable: image {self._name}: only {self._read - read} bytes of layer "
                f"{self._layer.digest} came in {PACE_WINDOW:g} seconds"
            )
        self._marked = (time.monotonic(), self._read)

    def _check_idle(self, idle: float) -> None:
        if self._read == self._layer.size:
            if idle >= CONVERSION_STALL:
                raise Internal(f"the conversion of layer {self._layer.digest} of {self._name} stands still")
            return
        # The sender leaves the pipe open after an error until it is asked; asking while bytes still
        # come would keep it from serving other layers, so it is asked only when none come.
        self._ask()
        if idle >= STALL:
            raise Unavailable(
                f"RegistryUnavailable: image {self._name}: no bytes of layer {self._layer.digest} came for "
                f"{STALL:g} seconds"
            )

    async def _failure(self, result: dict[str, Any] | None, complaints: asyncio.Future[bytes]) -> OrlopError:
        what = f"layer {self._layer.digest} of image {self._name}"
        if self._sent is not None:
            with suppress(TimeoutError):
                try:
                    async with asyncio.timeout(ASK_AFTER):
                        await self._sent
                except OrlopError as error:
                    return error
        if result is None:
            code = await self._child.wait()
            if code == -signal.SIGKILL:
                return ResourceExhausted(
                    f"{what} cannot be used: it takes too much processor time to unpack, or the machine "
                    "ran out of memory"
                )
            said = (await complaints).decode(errors="replace").strip()[-400:]
            return Internal(f"the conversion of {what} ended with status {code}: {said or 'no reason given'}")
        kind = _ERRORS.get(str(result.get("failed")), Internal)
        return kind(f"{what} cannot be used: {result.get('message')}")
