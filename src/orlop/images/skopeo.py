"""Talking to registries through ``skopeo``, which brings the reference implementation of this field.

Manifests come from ``skopeo inspect --raw``, blobs from ``skopeo experimental-image-proxy``: a child
that answers JSON requests on a SOCK_SEQPACKET socket and passes the reading end of a pipe for each
blob. So a layer streams from the registry straight into its conversion. Mirrors, insecure registries,
certificates and credentials are configured as containers-registries.conf(5),
containers-certs.d(5) and containers-auth.json(5) say.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import socket
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from orlop.config import ImageConfig
from orlop.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from orlop.host import process, scratch, threads
from orlop.host.tasks import Tasks
from orlop.images import authfile, policy
from orlop.images.documents import MAX_DOCUMENT, Descriptor, digest_of
from orlop.images.failures import failure, last_message
from orlop.images.model import RegistryAuth
from orlop.images.reference import Reference
from orlop.value import UNREADABLE

ANSWER_TIMEOUT = 60.0
COPY_TIMEOUT = 4 * 3600.0
POLICY_VERSION = (0, 2, 6)

_PACKET = 1 << 16
_STDERR_KEPT = 4096


class _ProxyAnswer(msgspec.Struct, frozen=True):
    success: bool
    value: Any = None
    pipeid: int = 0
    error: str = ""


class Blob(msgspec.Struct, frozen=True):
    """A blob on its way. ``descriptor`` is the pipe it comes from, owned by the receiver."""

    descriptor: int
    pipe: int


class BlobSource(Protocol):
    """Something that blobs of images come from."""

    async def open(self, name: str) -> int:
        """Open an image by its complete name; returns the handle for :meth:`blob`."""

    async def blob(self, name: str, image: int, what: Descriptor) -> Blob:
        """Begin to fetch a blob. The caller closes the descriptor and calls :meth:`finish`."""

    async def finish(self, name: str, blob: Blob) -> None:
        """Learn whether the blob came whole; returns only after its last byte was sent."""

    async def read(self, name: str, image: int, what: Descriptor) -> bytes:
        """A small blob at once, checked against its digest."""


class Skopeo:
    """How skopeo is called for one image: options, and the credentials' file while it is needed."""

    def __init__(self, config: ImageConfig, auth_file: Path | None, arch: str) -> None:
        self._base: list[str] = ["skopeo", "--override-os", "linux", "--override-arch", arch]
        if config.registries_conf:
            self._base += ["--registries-conf", config.registries_conf]
        if config.policy:
            self._base += ["--policy", config.policy]
        elif not any(path.exists() for path in policy.DEFAULT_FILES):
            # Without any policy file skopeo refuses all images; no file means that none were asked for.
            self._base += ["--insecure-policy"]
        self._policy_asked = policy.restricts(config.policy)
        self._options: list[str] = []
        self._copy_options: list[str] = []
        file = os.fspath(auth_file) if auth_file is not None else config.auth_file
        if file:
            self._options += ["--authfile", file]
            self._copy_options += ["--src-authfile", file]

    async def manifest(self, name: str, expected: str) -> bytes:
        """The manifest or index that a name stands for, exactly as the registry has it.

        ``expected`` is its digest, or "" if not known. Raises what :func:`failure` makes of an error.
        """
        # The time limit of its own is for the case that this daemon dies meanwhile.
        limit = ["--command-timeout", f"{2 * ANSWER_TIMEOUT:g}s"]
        command = [*self._base, *limit, "inspect", "--raw", *self._options, f"docker://{name}"]
        try:
            done = await process.run(command, timeout=ANSWER_TIMEOUT, check=False, output_limit=MAX_DOCUMENT)
        except DeadlineExceeded as error:
            raise _silent(name) from error
        if done.returncode != 0:
            raise failure(name, last_message(done.stderr.decode(errors="replace")))
        if expected and digest_of(done.stdout) != expected:
            raise DataLoss(
                f"the registry sent a manifest of {name} that does not match its digest {expected}"
            )
        return done.stdout

    @asynccontextmanager
    async def blobs(self, place: Path) -> AsyncIterator[BlobSource]:
        """Where the blobs of images come from; whatever runs for it is dead when the context ends.

        Before version 0.2.6 the proxy does not look at signature policies (skopeo before 1.15). Where
        one is asked for, the image is copied to ``place`` instead, which enforces it.
        """
        async with self._proxy() as proxy:
            version = await proxy.initialize()
            if version >= POLICY_VERSION or not self._policy_asked:
                yield proxy
                return
        async with scratch.directory(place, "copy") as directory:
            yield Copy([*self._base, "copy", "-q", *self._copy_options], directory)

    @asynccontextmanager
    async def _proxy(self) -> AsyncIterator[Proxy]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                child = await process.spawn(
                    [*self._base, "experimental-image-proxy", *self._options],
                    stdin=theirs.fileno(),
                    stderr=PIPE,
                )
            proxy = Proxy(ours, child)
            try:
                yield proxy
            finally:
                await proxy.close()
        finally:
            ours.close()


class Proxy:
    """One ``skopeo experimental-image-proxy``. Requests go one at a time; blobs stream in parallel."""

    def __init__(self, sock: socket.socket, child: process.Child) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self._child = child
        self._turn = asyncio.Lock()
        self._errors = bytearray()
        self._tasks = Tasks()
        self._tasks.spawn(self._listen(), "what skopeo complains of")

    async def initialize(self) -> tuple[int, ...]:
        """Shake hands; returns the version of the protocol. Raises FailedPrecondition for an unknown one."""
        answer, _ = await self._call("skopeo", "Initialize")
        try:
            version = tuple(int(part) for part in str(answer.value).split("."))
        except ValueError:
            version = ()
        if version[:2] != (0, 2):
            raise FailedPrecondition(f"skopeo speaks version {answer.value} of its protocol; 0.2 is needed")
        return version

    async def open(self, name: str) -> int:
        """Open an image by its complete name; returns the handle for :meth:`blob`."""
        answer, _ = await self._call(name, "OpenImage", f"docker://{name}")
        return int(answer.value)

    async def blob(self, name: str, image: int, what: Descriptor) -> Blob:
        """Begin to fetch a blob. The caller closes the descriptor and calls :meth:`finish`."""
        answer, received = await self._call(name, "GetBlob", image, what.digest, what.size)
        if received is None:
            raise Unavailable(f"skopeo gave no pipe for a blob of {name}")
        return Blob(received, answer.pipeid)

    async def finish(self, name: str, blob: Blob) -> None:
        """Learn whether the blob came whole; returns only after skopeo sent its last byte."""
        await self._call(name, "FinishPipe", blob.pipe)

    async def read(self, name: str, image: int, what: Descriptor) -> bytes:
        """A small blob at once, checked against its digest."""
        _check_size(name, what)
        blob = await self.blob(name, image, what)
        with os.fdopen(blob.descriptor, "rb") as pipe:
            # Both at once: if the blob breaks off, the pipe ends only when finish has learnt it.
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    data, failed = await asyncio.gather(
                        _read_pipe(pipe, what.size), self.finish(name, blob), return_exceptions=True
                    )
            except TimeoutError as error:
                raise _silent(name) from error
        for result in (failed, data):
            if isinstance(result, BaseException):
                raise result
        assert isinstance(data, bytes)
        return _checked(name, data, what)

    async def close(self) -> None:
        """End the child, whatever it does."""
        await process.reap(self._child)
        await self._tasks.close()

    async def _listen(self) -> None:
        assert self._child.stderr is not None
        while data := await self._child.stderr.read(4096):
            self._errors += data
            del self._errors[:-_STDERR_KEPT]

    async def _call(self, name: str, method: str, *arguments: object) -> tuple[_ProxyAnswer, int | None]:
        # A blob may take its time; that it goes on coming is watched by who reads it.
        limit = None if method == "FinishPipe" else ANSWER_TIMEOUT
        async with self._turn:
            request = json.dumps({"method": method, "args": arguments}).encode()
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(limit):
                    await loop.sock_sendall(self._socket, request)
                    data, received = await self._receive()
            except TimeoutError as error:
                raise _silent(name) from error
            except OSError as error:
                raise Unavailable(f"skopeo ended while it fetched {name}: {error.strerror}") from error
        try:
            if not data:
                raise Unavailable(f"skopeo ended while it fetched {name}: {self._last_error()}")
            answer = msgspec.json.decode(data, type=_ProxyAnswer)
            if not answer.success:
                raise failure(name, answer.error)
        except UNREADABLE as error:
            _close(received)
            raise Unavailable(f"skopeo sent an answer that is not understood: {error}") from error
        except BaseException:
            _close(received)
            raise
        return answer, received[0] if received else None

    async def _receive(self) -> tuple[bytes, list[int]]:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, received, _, _ = socket.recv_fds(self._socket, _PACKET, 4)
                return data, received
            except BlockingIOError:
                pass
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_reader(self._socket, _resolve, ready)
            try:
                await ready
            finally:
                loop.remove_reader(self._socket)

    def _last_error(self) -> str:
        return last_message(self._errors.decode(errors="replace")) or "no reason given"


class Copy:
    """One image, copied to a directory as skopeo's ``dir:`` transport lays it out."""

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        self._command = command
        self._directory = directory

    async def open(self, name: str) -> int:
        """Copy the image. Raises PermissionDenied when the policy forbids it."""
        command = [*self._command, f"docker://{name}", f"dir:{self._directory}"]
        done = await process.run(command, timeout=COPY_TIMEOUT, check=False)
        if done.returncode != 0:
            raise failure(name, last_message(done.stderr.decode(errors="replace")))
        return 0

    async def blob(self, name: str, image: int, what: Descriptor) -> Blob:
        """The blob's file, open."""
        path = self._directory / what.digest.removeprefix("sha256:")
        try:
            return Blob(os.open(path, os.O_RDONLY | os.O_CLOEXEC), 0)
        except FileNotFoundError as error:
            raise DataLoss(f"the copy of {name} lacks the blob {what.digest}") from error

    async def finish(self, name: str, blob: Blob) -> None:
        """The blob has been whole from the beginning."""

    async def read(self, name: str, image: int, what: Descriptor) -> bytes:
        """A small blob, checked against its digest."""
        _check_size(name, what)
        blob = await self.blob(name, image, what)
        with os.fdopen(blob.descriptor, "rb") as file:
            return _checked(name, await threads.call(file.read, what.size + 1), what)


def _silent(name: str) -> Unavailable:
    return Unavailable(
        f"RegistryUnavailable: image {name} cannot be pulled: the registry did not answer within "
        f"{ANSWER_TIMEOUT:g} seconds"
    )


def _check_size(name: str, what: Descriptor) -> None:
    if what.size > MAX_DOCUMENT:
        raise ResourceExhausted(f"the configuration of {name} is larger than {MAX_DOCUMENT >> 20} MiB")


def _checked(name: str, data: bytes, what: Descriptor) -> bytes:
    if digest_of(data) != what.digest:
        raise DataLoss(f"the registry sent a configuration of {name} that does not match its digest")
    return data


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


async def _read_pipe(pipe: Any, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError as error:
        return error.partial
    finally:
        transport.close()


@asynccontextmanager
async def authenticated(
    config: ImageConfig, reference: Reference, auth: RegistryAuth | None, place: Path, arch: str
) -> AsyncIterator[Skopeo]:
    """Skopeo with the credentials of a request, which stand in a private file only inside the context."""
    entry = _auth_entry(auth) if auth is not None else {}
    if auth is not None and auth.registry_token:
        raise InvalidArgument(
            f"image {reference}: a registry token would stand in a command line, which all users of the host "
            "can read; give user and password, or an identity token"
        )
    if not entry:
        yield Skopeo(config, None, arch)
        return
    document = await threads.call(_own_auths, config)
    document.setdefault("auths", {})[reference.domain] = entry
    descriptor, path = tempfile.mkstemp(prefix="auth-", suffix=".json", dir=place)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file)
        yield Skopeo(config, Path(path), arch)
    finally:
        Path(path).unlink(missing_ok=True)


def _own_auths(config: ImageConfig) -> dict[str, Any]:
    """The node's own credentials, so that a mirror still gets those; the request's come on top."""
    return authfile.read(Path(config.auth_file)) if config.auth_file else authfile.merged()


def _auth_entry(auth: RegistryAuth) -> dict[str, str]:
    """An entry of containers-auth.json(5)."""
    entry: dict[str, str] = {}
    if auth.username or auth.password:
        pair = f"{auth.username}:{auth.password}"
        entry["auth"] = base64.b64encode(pair.encode()).decode()
    elif auth.auth:
        try:
            decoded = base64.b64decode(auth.auth, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidArgument("the credentials of the request are not valid base64") from error
        if b":" not in decoded:
            raise InvalidArgument("the credentials of the request are not of the form user:password")
        entry["auth"] = auth.auth
    if auth.identity_token:
        entry["identitytoken"] = auth.identity_token
        entry.setdefault("auth", base64.b64encode(b"<token>:").decode())
    return entry
