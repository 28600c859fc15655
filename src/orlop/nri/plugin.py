"""One plug-in: its connection, what it wants to hear of, and the calls to it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from orlop import __version__
from orlop.config import NriConfig
from orlop.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    OrlopError,
    Unavailable,
    Unimplemented,
)
from orlop.host.tasks import Tasks
from orlop.nri.api import nri_v1alpha1_pb2 as pb
from orlop.nri.mux import Mux
from orlop.ttrpc import server
from orlop.ttrpc.client import Client, TimedOut
from orlop.ttrpc.frames import LinkLost
from orlop.ttrpc.link import SocketLink
from orlop.ttrpc.server import Method, Services

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
UpdateContainers = Callable[["Plugin", pb.UpdateContainersRequest], Awaitable[pb.UpdateContainersResponse]]

SERVICE = "nri.pkg.api.v1alpha1.Plugin"
NRI_VERSION = "v0.12.5"
"""The release whose messages these are."""

MAX_STREAMS = 16
EVENTS = (1 << (pb.LAST - 1)) - 1
_PART = 2 << 20
"""Bytes of pods and containers in one message of the synchronisation; older plug-ins take only one."""
_INDEX = re.compile(r"[0-9]{2}")
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,128}")
_SAID_IN_GENERAL = {
    pb.RUN_POD_SANDBOX, pb.POST_UPDATE_POD_SANDBOX, pb.STOP_POD_SANDBOX, pb.REMOVE_POD_SANDBOX,
    pb.POST_CREATE_CONTAINER, pb.START_CONTAINER, pb.POST_START_CONTAINER, pb.POST_UPDATE_CONTAINER,
    pb.REMOVE_CONTAINER,
}  # fmt: skip
"""Events for which older plug-ins have no call of their own, but StateChange."""


def check_name(index: str, name: str) -> None:
    """Raises InvalidArgument unless it is two digits and a plain name."""
    if not _INDEX.fullmatch(index) or not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{index[:8]}-{name[:128]!r} is not the name of a plug-in: two digits and a name"
        )


class Plugin:
    """A plug-in that is connected. Calls to it are made one after the other, as plug-ins expect.

    One that does not answer in time, or whose connection ends, is dropped, and the node goes on without it
    (unless it asked for another policy). ``index`` and ``base`` are given for those that were started here.
    """

    def __init__(
        self,
        link: SocketLink,
        config: NriConfig,
        update: UpdateContainers,
        *,
        index: str = "",
        base: str = "",
        settings: str = "",
    ) -> None:
        self._link = link
        self._config = config
        self._update = update
        self._settings = settings
        self._given = bool(base)
        self.index, self.base = index, base
        self.turn = asyncio.Lock()
        self.closed = asyncio.Event()
        self._registered = asyncio.Event()
        self._events = 0
        self._policy = pb.FailurePolicy()
        self._in_general: set[pb.Event.ValueType] = set()
        self._tasks = Tasks()
        self._mux = Mux(link)
        self._client = Client(self._mux.plugin, "the plug-in")

    @property
    def name(self) -> str:
        """``10-logger``; of one that has not registered, what is known."""
        return f"{self.index or '??'}-{self.base or 'plugin'}"

    def wants(self, event: pb.Event.ValueType) -> bool:
        """Whether it is to be called for an event."""
        return bool(self._events & (1 << (event - 1))) and not self.closed.is_set()

    async def start(self) -> None:
        """Wait until it registers, and tell it who we are. Drops it and raises when that fails."""
        try:
            self._tasks.spawn(self._run(), "a plug-in's connection")
            self._tasks.spawn(self._serve(), "a plug-in's calls")
            timeout = self._config.registration_timeout
            try:
                async with asyncio.timeout(timeout):
                    await self._registered.wait()
            except TimeoutError:
                raise DeadlineExceeded(f"plug-in {self.name} did not register within {timeout:g} s") from None
            await self._configure()
        except BaseException as error:
            await self.drop(str(error))
            raise

    async def drop(self, reason: str) -> None:
        """Have nothing to do with it any more. Idempotent."""
        if not self.closed.is_set():
            self.closed.set()
            log.warning("plug-in %s is dropped: %s", self.name, reason)
        await self._client.close()
        await self._link.close()
        await self._tasks.close()

    async def close(self) -> None:
        """The same when it is we who go."""
        self.closed.set()
        await self.drop("")

    async def synchronize(
        self, pods: Sequence[pb.PodSandbox], containers: Sequence[pb.Container]
    ) -> Sequence[pb.ContainerUpdate]:
        """Tell it all there is; what it wants changed. Raises what it answers, or that it does not."""
        *parts, last = _parts(pods, containers)
        for part in parts:
            part.more = True
            if not (await self._call("Synchronize", part, pb.SynchronizeResponse)).more:
                raise FailedPrecondition(f"plug-in {self.name} does not take a list in parts")
        return (await self._call("Synchronize", last, pb.SynchronizeResponse)).update

    async def ask(self, event: pb.Event.ValueType, request: Any, reply: type[M]) -> M | None:
        """Tell it of an event; its answer, None for a plug-in that is no more.

        Raises FailedPrecondition when it refuses, or when it does not answer and wants that to be a refusal.
        """
        method = type(request).__name__.removesuffix("Request")
        async with self.turn:
            if self.closed.is_set():
                return None
            try:
                return await self._told(event, method, request, reply)
            except (LinkLost, TimedOut) as error:
                if isinstance(error, LinkLost) or not self._policy.keep_connected:
                    await self.drop(str(error))
                if not self._policy.fail_request:
                    return None
                raise Unavailable(f"plug-in {self.name} failed at {method}: {error}") from error
            except OrlopError as error:
                raise FailedPrecondition(f"plug-in {self.name} refuses {method}: {error}") from error

    async def _told(self, event: pb.Event.ValueType, method: str, request: Any, reply: type[M]) -> M:
        if event not in self._in_general:
            try:
                return await self._call(method, request, reply)
            except Unimplemented:
                if event not in _SAID_IN_GENERAL:
                    return reply()
                self._in_general.add(event)
        change = pb.StateChangeEvent(event=event, pod=request.pod)
        if "container" in request.DESCRIPTOR.fields_by_name:
            change.container.CopyFrom(request.container)
        await self._call("StateChange", change, pb.Empty)
        return reply()

    async def _call(self, method: str, request: Message, reply: type[M]) -> M:
        timeout = self._config.request_timeout
        return await self._client.call(SERVICE, method, request, reply, timeout=timeout)

    async def _run(self) -> None:
        reason = await self._mux.run()
        await self.drop(reason)

    async def _serve(self) -> None:
        services = Services()
        methods: dict[str, Method] = {"RegisterPlugin": self._register, "UpdateContainers": self._updates}
        services.add(pb.DESCRIPTOR.services_by_name["Runtime"], methods)
        await server.serve(self._mux.runtime, services, max_streams=MAX_STREAMS)

    async def _register(self, request: pb.RegisterPluginRequest) -> pb.Empty:
        if self._registered.is_set():
            raise FailedPrecondition(f"plug-in {self.name} has registered already")
        if not self._given:
            check_name(request.plugin_idx, request.plugin_name)
            self.index, self.base = request.plugin_idx, request.plugin_name
        self._registered.set()
        return pb.Empty()

    async def _updates(self, request: pb.UpdateContainersRequest) -> pb.UpdateContainersResponse:
        if not self._registered.is_set():
            raise FailedPrecondition("a plug-in registers first")
        return await self._update(self, request)

    async def _configure(self) -> None:
        request = pb.ConfigureRequest(
            config=self._settings,
            runtime_name="orlop",
            runtime_version=__version__,
            registration_timeout=int(self._config.registration_timeout * 1000),
            request_timeout=int(self._config.request_timeout * 1000),
            NRI_version=NRI_VERSION,
        )
        answer = await self._call("Configure", request, pb.ConfigureResponse)
        if answer.events & ~EVENTS:
            raise InvalidArgument(f"plug-in {self.name} subscribes to unknown events: {answer.events:#x}")
        self._events = answer.events or EVENTS
        self._policy = answer.failure_policy


def _parts(pods: Sequence[pb.PodSandbox], containers: Sequence[pb.Container]) -> list[pb.SynchronizeRequest]:
    """All of it, in as few messages as may be."""
    found, size = [pb.SynchronizeRequest()], 0
    for one in (*pods, *containers):
        size += one.ByteSize()
        if size > _PART:
            found.append(pb.SynchronizeRequest())
            size = one.ByteSize()
        if isinstance(one, pb.PodSandbox):
            found[-1].pods.append(one)
        elif isinstance(one, pb.Container):
            found[-1].containers.append(one)
    return found
