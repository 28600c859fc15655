"""One kind of objects as the API server tells of it: listed once, page by page, and then what changes.

What is remembered of an object is a small value, and only a value that is another than before is news: a
node's heartbeat changes nothing here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeVar

import msgspec

from orlop.errors import Aborted, OrlopError
from orlop.tenants.api import Api, Document, Resource
from orlop.tenants.seen import Reader

log = logging.getLogger(__name__)

SILENCE: Final = 180.0
"""Seconds after which a watch that has said nothing is not believed any more: the API server says each minute
or so how far it is."""
PAUSE: Final = 2.0

V = TypeVar("V")


class Watched(Generic[V]):
    """What is known of a kind, by namespace and name; the namespace of what has none is "".

    ``wanted`` says whether anything of a namespace is remembered; ``changed`` is told of each object that is
    another now, by its namespace and name.
    """

    def __init__(
        self,
        api: Api,
        kind: Resource,
        read: Reader[V],
        changed: Callable[[str, str], None],
        wanted: Callable[[str], bool] = lambda namespace: True,
    ) -> None:
        self._api, self._kind, self._read = api, kind, read
        self._changed, self._wanted = changed, wanted
        self._known: dict[str, dict[str, V]] = {}
        self._version = ""
        self._scope: asyncio.Timeout | None = None

    def of(self, namespace: str = "") -> Mapping[str, V]:
        """The objects of a namespace, by name."""
        return self._known.get(namespace, {})

    def find(self, name: str, namespace: str = "") -> V | None:
        """An object, or None."""
        return self._known.get(namespace, {}).get(name)

    def put(self, name: str, value: V | None, namespace: str = "") -> None:
        """Know this of an object, or that it is gone."""
        if value == self.find(name, namespace):
            return
        if value is None:
            inside = self._known[namespace]
            del inside[name]
            if not inside:
                del self._known[namespace]
        else:
            self._known.setdefault(namespace, {})[name] = value
        self._changed(namespace, name)

    def forget(self, namespace: str) -> None:
        """Remember nothing of a namespace any more."""
        self._known.pop(namespace, None)

    def anew(self) -> None:
        """List everything again: what is wanted is not what it was."""
        self._version = ""
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def load(self) -> None:
        """Read all there is. Raises OrlopError."""
        gone = {(namespace, name) for namespace, inside in self._known.items() for name in inside}

        def found(document: Document) -> None:
            gone.discard(self._take(document))

        self._version = await self._api.each(self._kind, found)
        for namespace, name in gone:
            self.put(name, None, namespace)

    def _take(self, document: Document) -> tuple[str, str]:
        about = document["metadata"]
        namespace, name = about.get("namespace", ""), about["name"]
        value = None
        if self._wanted(namespace):
            try:
                value = self._read(document)
            except msgspec.ValidationError as error:
                log.warning("%s %s/%s is left out: %s", self._kind.kind, namespace, name, error)
        self.put(name, value, namespace)
        return namespace, name

    async def watch(self) -> None:
        """Keep what is known up to date, until cancelled."""
        failed = ""
        while True:
            try:
                async with asyncio.timeout(SILENCE) as self._scope:
                    if not self._version:
                        await self.load()
                    await self._hear(self._scope)
            except TimeoutError:
                continue
            except Aborted as error:
                log.info("%s are read anew: %s", self._kind.plural, error)
                self._version = ""
            except OrlopError as error:
                log.warning("%s: %s; again in %g s", self._kind.plural, error, PAUSE)
                # Where a connection broke off the next goes on; a version that fails twice is no good one.
                if failed == self._version:
                    self._version = ""
                failed = self._version
                await asyncio.sleep(PAUSE)

    async def _hear(self, scope: asyncio.Timeout) -> None:
        now = asyncio.get_running_loop().time
        async with contextlib.aclosing(self._api.since(self._kind, self._version)) as news:
            async for there, document in news:
                if there is None:
                    pass
                elif there:
                    self._take(document)
                else:
                    about = document["metadata"]
                    self.put(about["name"], None, about.get("namespace", ""))
                if not self._version:
                    return  # asked to begin anew meanwhile
                self._version = document["metadata"]["resourceVersion"]
                scope.reschedule(now() + SILENCE)


class News:
    """Counts changes, and wakes whoever waits for the next one."""

    def __init__(self) -> None:
        self._count = 0
        self._next = asyncio.Event()

    def tell(self) -> None:
        """There is one more."""
        self._count += 1
        self._next.set()
        self._next = asyncio.Event()

    async def after(self, seen_last: int) -> int:
        """Wait until there is one after that; the number of the last."""
        while self._count <= seen_last:
            await self._next.wait()
        return self._count
