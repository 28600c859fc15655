"""Tells subscribers what happened to pods and containers.

Each subscriber has a bounded queue. One that reads too slowly is cut off with an error rather
than allowed to hold back the daemon or to miss events unknowingly: it subscribes again and lists.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from orlop.errors import ResourceExhausted
from orlop.pods.ledger import Ledger
from orlop.pods.records import Event, EventKind, PodRecord

QUEUE_LENGTH = 1024
"""Events a subscriber may lag behind."""


class _Subscriber:
    def __init__(self, length: int) -> None:
        self.queue: asyncio.Queue[Event] = asyncio.Queue(length)
        self.overrun = asyncio.Event()


class Events:
    """Publishes :class:`Event` values to every subscriber."""

    def __init__(self, ledger: Ledger, *, queue_length: int = QUEUE_LENGTH) -> None:
        self._ledger = ledger
        self._length = queue_length
        self._subscribers: set[_Subscriber] = set()

    def publish(self, kind: EventKind, object_id: str, pod: PodRecord | str) -> None:
        """Tell that ``kind`` happened to the container or pod ``object_id``.

        ``pod`` is the id of the pod, or the last record of one that is gone.
        """
        if not self._subscribers:
            return
        record = self._ledger.find_pod(pod) if isinstance(pod, str) else pod
        if record is None:
            return
        members = self._ledger.shown_members(record.id)
        event = Event(kind=kind, container_id=object_id, at=time.time_ns(), pod=record, containers=members)
        for subscriber in list(self._subscribers):
            try:
                subscriber.queue.put_nowait(event)
            except asyncio.QueueFull:
                subscriber.overrun.set()
                self._subscribers.discard(subscriber)

    async def subscribe(self) -> AsyncIterator[Event]:
        """Events from now on, until the caller ends the iteration.

        Raises ResourceExhausted after the last event that fitted when the caller was too slow.
        """
        subscriber = _Subscriber(self._length)
        self._subscribers.add(subscriber)
        try:
            while True:
                if subscriber.overrun.is_set() and subscriber.queue.empty():
                    raise ResourceExhausted(
                        f"the subscriber lagged more than {self._length} events behind; "
                        "list, then subscribe again"
                    )
                yield await subscriber.queue.get()
        finally:
            self._subscribers.discard(subscriber)
