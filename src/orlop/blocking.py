"""The same as :mod:`orlop` for programs without an event loop: the same names, and nothing to await.

    import orlop.blocking

    with orlop.blocking.connect() as node:
        print(node.run("docker.io/library/busybox", "uname", "-r").text)

Every call may be made from any thread. See docs/python.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, Unpack

from orlop.client import container as containers
from orlop.client import forward as forwards
from orlop.client import node as nodes
from orlop.client import pod as pods
from orlop.client.background import BackgroundLoop
from orlop.client.container import MAX_FETCHED
from orlop.client.facts import ContainerFacts, ContainerUse, Event, FileChange, ImageFacts, PodFacts, Result
from orlop.client.images import Progress
from orlop.client.launch import RunOptions
from orlop.client.logs import Line
from orlop.client.options import ContainerKeywords, PodKeywords, RunKeywords

__all__ = ["Container", "Node", "Pod", "PortStream", "Process", "connect"]


@contextmanager
def connect(socket: str = "") -> Iterator[Node]:
    """See :func:`orlop.connect`."""
    loop = BackgroundLoop()
    try:
        with loop.entered(nodes.connect(socket)) as node:
            yield Node(loop, node)
    finally:
        loop.close()


class Process:
    """See :class:`orlop.Process`."""

    def __init__(self, loop: BackgroundLoop, process: containers.Process) -> None:
        self._loop = loop
        self._process = process

    @property
    def exit_code(self) -> int | None:
        """How it ended, once its output has."""
        return self._process.exit_code

    def write(self, data: bytes) -> None:
        """Hand it its next input."""
        self._loop.call(self._process.write(data))

    def end_input(self) -> None:
        """Tell it that no more input comes."""
        self._loop.call(self._process.end_input())

    def resize(self, columns: int, rows: int) -> None:
        """Give its terminal another size."""
        self._loop.call(self._process.resize(columns, rows))

    def output(self) -> Iterator[tuple[str, bytes]]:
        """What it writes, with ``stdout`` or ``stderr`` before it, until it has ended."""
        return self._loop.iterate(self._process.output())

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._loop.call(self._process.wait())

    def close(self) -> None:
        """Let go of the connection."""
        self._loop.call(self._process.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PortStream:
    """See :class:`orlop.PortStream`."""

    def __init__(self, loop: BackgroundLoop, stream: forwards.PortStream) -> None:
        self._loop = loop
        self._stream = stream

    def read(self) -> bytes:
        """The next bytes, none at the end."""
        return self._loop.call(self._stream.read())

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self._loop.call(self._stream.write(data))

    def write_eof(self) -> None:
        """Say that nothing more is sent."""
        self._loop.call(self._stream.write_eof())

    def close(self) -> None:
        """Release the connection."""
        self._loop.call(self._stream.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Container:
    """See :class:`orlop.Container`."""

    def __init__(self, loop: BackgroundLoop, container: containers.Container) -> None:
        self._loop = loop
        self._container = container
        self.id = container.id
        self.pod_id = container.pod_id

    def facts(self) -> ContainerFacts:
        """What is known of it now."""
        return self._loop.call(self._container.facts())

    def exited(self) -> bool:
        """Whether it has ended, or was removed."""
        return self._loop.call(self._container.exited())

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._loop.call(self._container.wait())

    def exec(self, *command: str, stdin: bytes = b"", timeout: float | None = None) -> Result:
        """Run a command in it and wait for its result."""
        return self._loop.call(self._container.exec(*command, stdin=stdin, timeout=timeout))

    def process(self, *command: str, stdin: bool = False, tty: bool = False) -> Process:
        """Start a command in it, whose streams are ours."""
        return Process(self._loop, self._loop.call(self._container.process(*command, stdin=stdin, tty=tty)))

    def attach(self, *, stdin: bool = True, output: bool = True, tty: bool = False) -> Process:
        """The streams of the container's own command."""
        attached = self._loop.call(self._container.attach(stdin=stdin, output=output, tty=tty))
        return Process(self._loop, attached)

    def log_path(self) -> Path:
        """Its log file on this machine."""
        return self._loop.call(self._container.log_path())

    def logs(
        self, *, follow: bool = False, tail: int = -1, since: float = 0.0, until: float = math.inf
    ) -> Iterator[Line]:
        """What it has written; with ``follow`` also what it writes, until it has ended."""
        return self._loop.iterate(self._container.logs(follow=follow, tail=tail, since=since, until=until))

    def put(self, path: str, source: bytes | Path, *, progress: Progress | None = None) -> None:
        """Write a file, or copy a directory of this machine, to ``path``."""
        self._loop.call(self._container.put(path, source, progress=progress))

    def get(self, path: str) -> bytes:
        """What a file holds."""
        return self._loop.call(self._container.get(path))

    def fetch(
        self, path: str, directory: Path, *, limit: int = MAX_FETCHED, progress: Progress | None = None
    ) -> Path:
        """Copy a file or a directory out of the container into ``directory``; its place there."""
        return self._loop.call(self._container.fetch(path, directory, limit=limit, progress=progress))

    def changes(self) -> Iterator[FileChange]:
        """What it has changed in its image's files, a directory before what is in it."""
        return self._loop.iterate(self._container.changes())

    def exported(self) -> Iterator[bytes]:
        """Its files as a tar archive, in pieces: its whole root without volumes."""
        return self._loop.iterate(self._container.exported())

    def commit(
        self,
        name: str = "",
        *,
        settings: Mapping[str, Any] | None = None,
        author: str = "",
        comment: str = "",
    ) -> ImageFacts:
        """Make an image of its image and of what it has changed in that, without volumes."""
        made = self._container.commit(name, settings=settings, author=author, comment=comment)
        return self._loop.call(made)

    def export(self, target: Path, *, progress: Callable[[int], None] | None = None) -> None:
        """Write that archive to ``target``, which stands there whole or not at all."""
        self._loop.call(self._container.export(target, progress=progress))

    def signal(self, name: str = "KILL") -> None:
        """Send its first process a signal."""
        self._loop.call(self._container.signal(name))

    def pause(self) -> None:
        """Stop all of its processes where they are."""
        self._loop.call(self._container.pause())

    def unpause(self) -> None:
        """Let them go on."""
        self._loop.call(self._container.unpause())

    def rename(self, name: str) -> None:
        """Give it another name, and its pod if that was made for it alone."""
        self._loop.call(self._container.rename(name))

    def check_health(self) -> Result:
        """Run its health check now: the check's exit code, and the end of what it wrote."""
        return self._loop.call(self._container.check_health())

    def stop(self, grace: float | None = None) -> None:
        """Ask it to end, and kill it ``grace`` seconds later."""
        self._loop.call(self._container.stop(grace))

    def restart(self, grace: float | None = None) -> Container:
        """Stop it if it runs, and run another like it; that one."""
        return Container(self._loop, self._loop.call(self._container.restart(grace)))

    def remove(self) -> None:
        """Remove it, running or not."""
        self._loop.call(self._container.remove())


class Pod:
    """See :class:`orlop.Pod`."""

    def __init__(self, loop: BackgroundLoop, pod: pods.Pod) -> None:
        self._loop = loop
        self._pod = pod
        self.name = pod.name

    @property
    def id(self) -> str:
        """Its id, "" before it was made."""
        return self._pod.id

    def create(self) -> None:
        """Make it, for those who do not use ``with``; then :meth:`remove` is theirs to call."""
        self._loop.call(self._pod.create())

    def start(
        self,
        image: str,
        *command: str,
        name: str = "",
        stdin: bool = False,
        **options: Unpack[ContainerKeywords],
    ) -> Container:
        """Start a container in it."""
        started = self._pod.start(image, *command, name=name, stdin=stdin, **options)
        return Container(self._loop, self._loop.call(started))

    def launch(self, wanted: RunOptions, name: str = "") -> Container:
        """Start a container as a ``RunOptions`` describes it."""
        return Container(self._loop, self._loop.call(self._pod.launch(wanted, name)))

    def ip(self) -> str:
        """Its address, "" on the host's network."""
        return self._loop.call(self._pod.ip())

    def dial(self, port: int) -> PortStream:
        """Connect to one of its TCP ports."""
        return PortStream(self._loop, self._loop.call(self._pod.dial(port)))

    def forward(self, port: int, local: int = 0) -> AbstractContextManager[int]:
        """A port of this machine's loopback that leads to one of the pod's, within ``with``."""
        return self._loop.entered(self._pod.forward(port, local))

    def stop(self) -> None:
        """End it and everything in it; its containers and logs stay to be looked at."""
        self._loop.call(self._pod.stop())

    def remove(self) -> None:
        """Stop it, and remove it with everything in it and its logs."""
        self._loop.call(self._pod.remove())

    def __enter__(self) -> Self:
        self.create()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class Node:
    """See :class:`orlop.Node`."""

    def __init__(self, loop: BackgroundLoop, node: nodes.Node) -> None:
        self._loop = loop
        self._node = node

    def run(
        self,
        image: str,
        *command: str,
        stdin: bytes = b"",
        timeout: float | None = None,
        **options: Unpack[RunKeywords],
    ) -> Result:
        """Run a command in a pod of its own, wait for its result, and remove all of it."""
        return self._loop.call(self._node.run(image, *command, stdin=stdin, timeout=timeout, **options))

    def pod(self, **options: Unpack[PodKeywords]) -> Pod:
        """A pod for several containers, made by ``with``."""
        return Pod(self._loop, self._node.pod(**options))

    def find_pod(self, name: str) -> Pod:
        """The pod with that id, unique start of an id, or name; it stays."""
        return Pod(self._loop, self._loop.call(self._node.find_pod(name)))

    def container(self, name: str) -> Container:
        """The container with that id, unique start of an id, or name."""
        return Container(self._loop, self._loop.call(self._node.container(name)))

    def containers(self) -> list[ContainerFacts]:
        """All containers, those that have ended as well."""
        return self._loop.call(self._node.containers())

    def pods(self) -> list[PodFacts]:
        """All pods."""
        return self._loop.call(self._node.pods())

    def pull(
        self, image: str, *, username: str = "", password: str = "", progress: Progress | None = None
    ) -> str:
        """Fetch an image from its registry; its id. ``progress`` is called in another thread."""
        pulling = self._node.pull(image, username=username, password=password, progress=progress)
        return self._loop.call(pulling)

    def images(self) -> list[ImageFacts]:
        """The images that are here."""
        return self._loop.call(self._node.images())

    def remove_image(self, image: str) -> None:
        """Remove an image; one that is not here is no error."""
        self._loop.call(self._node.remove_image(image))

    def tag(self, image: str, name: str) -> ImageFacts:
        """Give an image one more name."""
        return self._loop.call(self._node.tag(image, name))

    def untag(self, name: str, *, with_the_last: bool = False) -> ImageFacts:
        """Take a name away from its image."""
        return self._loop.call(self._node.untag(name, with_the_last=with_the_last))

    def load(self, source: Path | IO[bytes], *, name: str = "") -> list[ImageFacts]:
        """Take the images of an archive."""
        return self._loop.call(self._node.load(source, name=name))

    def save(self, target: Path, *images: str) -> None:
        """Write images to a file that other runtimes load, too."""
        self._loop.call(self._node.save(target, *images))

    def import_image(
        self, source: Path | IO[bytes], *, name: str = "", settings: Mapping[str, Any] | None = None
    ) -> ImageFacts:
        """Make an image of a file system, packed by tar."""
        return self._loop.call(self._node.import_image(source, name=name, settings=settings))

    def events(self) -> Iterator[Event]:
        """What happens to containers and pods from now on."""
        return self._loop.iterate(self._node.events())

    def stats(self, interval: float = 1.0) -> Iterator[list[ContainerUse]]:
        """What all running containers use, now and every ``interval`` seconds."""
        return self._loop.iterate(self._node.stats(interval))
