"""What containerd is told of tasks, in the order in which it happened.

A containerd that is away gets what it missed when it is back, as far as that is kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop.errors import DeadlineExceeded, OrlopError, Unavailable
from orlop.host.tasks import Tasks
from orlop.shim import places
from orlop.shim.api import events_pb2 as pb
from orlop.shim.api import forward_pb2, types_pb2
from orlop.ttrpc import link
from orlop.ttrpc.client import Client

log = logging.getLogger(__name__)

MOST_WAITING = 2048
"""Events of one containerd that wait; the oldest are dropped then."""

_CALL_TIME = 10.0
_KEEP = 10.0
"""Seconds for which a connection is kept without anything to tell: events come in groups."""

_PAUSES = (0.1, 0.5, 2.0, 5.0)
_GIVE_UP = 300.0
"""Seconds after which a containerd that does not listen is not tried any more until the next event."""

_SERVICE = "containerd.services.events.ttrpc.v1.Events"
_TOPICS = {
    pb.TaskCreate: "/tasks/create",
    pb.TaskStart: "/tasks/start",
    pb.TaskOOM: "/tasks/oom",
    pb.TaskPaused: "/tasks/paused",
    pb.TaskResumed: "/tasks/resumed",
    pb.TaskExit: "/tasks/exit",
    pb.TaskDelete: "/tasks/delete",
    pb.TaskExecAdded: "/tasks/exec-added",
    pb.TaskExecStarted: "/tasks/exec-started",
}


@dataclass
class _Queue:
    waiting: deque[forward_pb2.ForwardRequest] = field(default_factory=lambda: deque(maxlen=MOST_WAITING))
    more: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Announcer:
    """Tells each containerd, by the address of its socket. :meth:`close` drops what waits."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._tasks = Tasks()

    def tell(self, address: str, namespace: str, event: Message) -> None:
        """Let it know; does not wait. An empty address is nobody."""
        if not address or self._tasks.closed:
            return
        queue = self._queues.setdefault(address, _Queue())
        packed = AnyMessage(type_url=event.DESCRIPTOR.full_name, value=event.SerializeToString())
        envelope = types_pb2.Envelope(namespace=namespace, topic=_TOPICS[type(event)], event=packed)
        envelope.timestamp.FromNanoseconds(time.time_ns())
        queue.waiting.append(forward_pb2.ForwardRequest(envelope=envelope))
        queue.more.set()
        if queue.task is None:
            queue.task = self._tasks.spawn(self._deliver(address, queue), f"events for {address}")

    async def close(self) -> None:
        """Tell no more. Idempotent."""
        await self._tasks.close()

    async def _deliver(self, address: str, queue: _Queue) -> None:
        try:
            # Again for what comes while the connection is closed.
            while queue.waiting:
                await _tell_all(address, queue)
        finally:
            queue.task = None
            if not queue.waiting:
                self._queues.pop(address, None)


async def _more(queue: _Queue) -> bool:
    """Wait for something to tell, but not for ever; whether there is something."""
    queue.more.clear()
    with suppress(TimeoutError):
        async with asyncio.timeout(_KEEP):
            await queue.more.wait()
    return bool(queue.waiting)


async def _tell_all(address: str, queue: _Queue) -> None:
    """Tell what waits until nothing comes for a while, or nobody has listened for too long: then nothing
    waits either."""
    waiting, failures, given_up = queue.waiting, 0, 0.0
    async with AsyncExitStack() as stack:
        client: Client | None = None
        while waiting or await _more(queue):
            event = waiting[0]
            given_up = given_up or time.monotonic() + _GIVE_UP
            try:
                if client is None:
                    connection = await link.connect(Path(address.removeprefix("unix://")))
                    client = Client(connection, "containerd")
                    stack.push_async_callback(client.close)
                await _forward(client, event)
            except (Unavailable, DeadlineExceeded) as error:
                if time.monotonic() > given_up:
                    log.warning("%d events cannot be told to %s: %s", len(waiting), address, error)
                    waiting.clear()
                    return
                await stack.aclose()
                client = None
                await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
                failures += 1
                continue
            except OrlopError as error:
                # It has heard it and does not want it. The next ones are not to wait for that.
                log.warning("%s does not take an event: %s", address, error)
            failures, given_up = 0, 0.0
            if waiting and waiting[0] is event:  # it may have been dropped meanwhile
                waiting.popleft()


async def _forward(client: Client, request: forward_pb2.ForwardRequest) -> None:
    metadata = ((places.NAMESPACE, request.envelope.namespace),)
    await client.call(_SERVICE, "Forward", request, Empty, timeout=_CALL_TIME, metadata=metadata)
