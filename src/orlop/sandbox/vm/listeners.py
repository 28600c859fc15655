"""Sockets that containers of a VM have bound for the host: the host listens, and relays each connection.

A CSI driver or a device plug-in waits at a socket in a directory of the kubelet's. Its file is of no use to
the host: who listens behind it is known to the guest's kernel. So the guest says which sockets there are, and
the daemon has one of the same name, mode and owner. What it is about to make is written down before, and
taken away with the pod; a later daemon makes it again. Whatever else has that name stays: a socket is
replaced only if nobody listens to it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orlop.errors import FailedPrecondition, OrlopError, Unavailable
from orlop.host import threads
from orlop.host.tasks import Tasks, end, together
from orlop.linux import syscalls
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.files import HostListener, PodFiles
from orlop.sandbox.vm.sockets import FoundSocket, inward, outward
from orlop.wire.messages import MAX_BOUND, Dial, Listening
from orlop.wire.values import BoundSocket

log = logging.getLogger(__name__)

_MOST_VOLUMES = 64
_MOST = 64
"""Connections of a pod at a time; others wait, as for a server that is busy."""

_BACKLOG = 64
_DIAL_TIME = 30.0
_NOBODY = 3.0
_BUSY = 60.0
"""Seconds for which a connection is tried again that nobody listens for yet, or that has to wait its turn."""

_SOON = 0.02
_LATER = 0.5

_LONGEST_NAME = 100


@dataclass
class _Listener:
    """A socket of the host for one of a container's, and what serves it."""

    bound: BoundSocket
    link: socket.socket
    file: HostListener
    serving: asyncio.Task[None]


class Listeners:
    """The sockets of one pod. ``directory_of`` is where a volume is on the host, "" for none of that kind."""

    def __init__(self, agent: AgentClient, files: PodFiles, directory_of: Callable[[str], str]) -> None:
        self._agent = agent
        self._files = files
        self._directory_of = directory_of
        self._said: dict[str, tuple[BoundSocket, ...]] = {}
        self._made: dict[tuple[str, str], _Listener] = {}
        self._left: list[HostListener] = []
        self._planned: tuple[HostListener, ...] = ()
        self._places = asyncio.Semaphore(_MOST)
        self._turn = asyncio.Lock()
        self._due = False
        self._tasks = Tasks()

    def adopt(self) -> None:
        """Take over what an earlier daemon has made. Raises DataLoss, Unavailable."""
        self._left = list(self._files.listeners())
        self._look()

    def changed(self, event: Listening) -> None:
        """The guest says which sockets containers have in a volume."""
        if event.id in self._said or len(self._said) < _MOST_VOLUMES:
            self._said[event.id] = event.sockets
            self._look()

    def paths(self) -> set[str]:
        """Those that the host has for containers of this pod."""
        return {one.file.path for one in self._made.values()}

    def claimed(self) -> set[str]:
        """Those, what an earlier daemon has left of them, and the one that is about to be made."""
        return self.paths().union(one.path for one in (*self._left, *self._planned))

    async def close(self) -> None:
        """Listen no more; the files stay for a later daemon. Idempotent."""
        await self._tasks.close()
        for one in self._made.values():
            one.link.close()

    async def release(self) -> None:
        """Take away all that was made, once nothing is served any more. Idempotent."""
        await self.close()
        self._made.clear()
        await threads.call(remove, self._files)

    def _look(self) -> None:
        if not self._due and not self._tasks.closed:
            self._due = True
            self._tasks.spawn(self._settle(), "the sockets of a pod's containers")

    async def _settle(self) -> None:
        """Have for the host what the containers have."""
        async with self._turn:
            self._due = False
            for volume, sockets in list(self._said.items()):
                directory = self._directory_of(volume)
                if directory:
                    await self._bring_to(volume, directory, {one.name: one for one in sockets})

    async def _bring_to(self, volume: str, directory: str, wanted: Mapping[str, BoundSocket]) -> None:
        for key, one in list(self._made.items()):
            if key[0] == volume and wanted.get(key[1]) != one.bound:
                # In this order: what is waited for at a descriptor that was closed may by then be another's.
                await end(one.serving)
                one.link.close()
                await threads.call(_unlink, one.file)
                del self._made[key]
                self._write()
        for stale in [one for one in self._left if one.directory == directory and one.name not in wanted]:
            await threads.call(_unlink, stale)
            self._left.remove(stale)
            self._write()
        for name, bound in wanted.items():
            if (volume, name) not in self._made and len(self._made) < MAX_BOUND and _is_a_name(name):
                await self._make(volume, directory, bound)

    async def _make(self, volume: str, directory: str, bound: BoundSocket) -> None:
        self._left = [one for one in self._left if (one.directory, one.name) != (directory, bound.name)]
        planned = HostListener(directory=directory, name=bound.name)
        self._planned = (planned,)
        self._write()
        try:
            link, file = await threads.call(_listen, planned, bound)
        except OSError as error:
            log.warning("the socket %s of a pod is not on the host: %s", planned.path, error.strerror)
            self._planned = ()
            self._write()
            return
        serving = self._tasks.spawn(self._serve(link, volume, bound.name), f"the socket {file.path}")
        self._made[volume, bound.name] = _Listener(bound, link, file, serving)
        self._planned = ()
        self._write()

    def _write(self) -> None:
        made = (one.file for one in self._made.values())
        self._files.write_listeners((*made, *self._left, *self._planned))

    async def _serve(self, listening: socket.socket, volume: str, name: str) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                link, _ = await loop.sock_accept(listening)
            except OSError as error:  # too many files, say
                log.warning("the socket %s of a pod: %s", name, error.strerror)
                await asyncio.sleep(_LATER)
                continue
            try:
                # Only now: a socket that nobody connects to keeps no place from the others.
                await self._places.acquire()
            except BaseException:
                link.close()
                raise
            self._tasks.spawn(self._join(link, volume, name), f"a connection to {name}")

    async def _join(self, link: socket.socket, volume: str, name: str) -> None:
        stream = self._agent.new_stream()
        incoming, outgoing = self._agent.incoming(stream), self._agent.outgoing(stream)
        try:
            reader, writer = await asyncio.open_unix_connection(sock=link)
            try:
                await self._dial(Dial(id=volume, name=name, stream=stream))
                await together(inward(reader, outgoing), outward(incoming, writer))
            finally:
                writer.close()
        except (OSError, OrlopError) as error:
            log.debug("a connection to the socket %s was broken off: %s", name, error)
        finally:
            incoming.close()
            outgoing.close()
            self._places.release()

    async def _dial(self, request: Dial) -> None:
        """Have the guest connect: a server binds first, and listens a moment later."""
        began, pause = asyncio.get_running_loop().time(), _SOON
        while True:
            try:
                await self._agent.call(request, _DIAL_TIME)
                return
            except (Unavailable, FailedPrecondition) as error:
                patience = _BUSY if isinstance(error, Unavailable) else _NOBODY
                if self._agent.closed or asyncio.get_running_loop().time() - began > patience:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LATER)


def remove(files: PodFiles) -> None:
    """Take away what a pod's sockets have left on the host. Idempotent. Raises DataLoss, Unavailable."""
    known = list(files.listeners())
    for one in known:
        _unlink(one)
    if known:
        files.write_listeners(())


def is_served(path: str) -> bool:
    """Whether somebody listens to the socket at ``path``. Blocks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


def is_bound(path: str) -> bool:
    """Whether a process of this kernel has the socket at ``path``, listens it or not; it hears nothing of the
    question. Blocks."""
    # Who is there refuses datagrams unless they are its kind, and then gets none.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


def of_others(
    found: Iterable[FoundSocket], directories: Collection[str], own: Collection[str]
) -> tuple[FoundSocket, ...]:
    """Without what lies in ``directories`` for containers' sockets and is of the pod's ``own``, or nobody's:
    a container removes that to have one itself. Blocks."""

    def stays(path: str) -> bool:
        return os.fspath(Path(path).parent) not in directories or (path not in own and is_served(path))

    return tuple(one for one in found if stays(one.held.path))


def _is_a_name(name: str) -> bool:
    """What the guest says is not believed to be one."""
    return "/" not in name and name not in (".", "..") and name.isprintable() and len(name) <= _LONGEST_NAME


def _listen(planned: HostListener, bound: BoundSocket) -> tuple[socket.socket, HostListener]:
    """Have the socket on the host. Raises OSError; FileExistsError when something else has the name."""
    place = syscalls.open_without_links(planned.directory, os.O_PATH | os.O_DIRECTORY)
    file = -1
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        path = f"/proc/self/fd/{place}/{planned.name}"
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(Path(path).lstat().st_mode) or is_served(path):
                raise FileExistsError(errno.EEXIST, "there is something of that name, which is not replaced")
            Path(path).unlink()
        link.bind(path)
        # By its descriptor: what has the name by now may be something else.
        file = os.open(planned.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
        os.chown(f"/proc/self/fd/{file}", bound.uid, bound.gid)
        Path(f"/proc/self/fd/{file}").chmod(bound.mode)
        found = os.fstat(file)
        link.listen(_BACKLOG)
    except BaseException:
        link.close()
        raise
    finally:
        os.close(place)
        if file >= 0:
            os.close(file)
    made = HostListener(
        directory=planned.directory,
        name=planned.name,
        device=found.st_dev,
        inode=found.st_ino,
        changed=found.st_ctime_ns,
    )
    return link, made


def _unlink(one: HostListener) -> None:
    """Remove the file of a socket that was made, or was about to be, if it is still that one."""
    with suppress(OSError):
        place = syscalls.open_without_links(one.directory, os.O_PATH | os.O_DIRECTORY)
        try:
            found = os.stat(one.name, dir_fd=place, follow_symlinks=False)
            file = (found.st_dev, found.st_ino, found.st_ctime_ns)
            ours = file == (one.device, one.inode, one.changed)
            if not one.inode:  # the daemon ended before it wrote down which one it had made
                ours = stat.S_ISSOCK(found.st_mode)
            # Nobody listens to what we have made any more: who does took the name.
            if ours and not is_served(f"/proc/self/fd/{place}/{one.name}"):
                os.unlink(one.name, dir_fd=place)
        finally:
            os.close(place)
