"""Pods' annotations are written until the API has them, and again when somebody writes something else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from orlop.errors import NotFound, OrlopError, Unavailable
from orlop.host.tasks import beside
from orlop.tenantnet.model import Lease
from orlop.tenants import names
from orlop.tenants.annotated import AnnotatedPods
from orlop.tenants.seen import PodSeen
from orlop.tenants.watching import News

LEASE = Lease(
    container="c",
    interface="eth0",
    netns="",
    tenant="blue",
    vni=42,
    address="10.0.1.2",
    alias="10.64.1.130",
    namespace="blue",
    pod="web",
    uid="1",
)
PLACE = ("blue", "web")


class Desk:
    """An API that takes annotations, or fails, and what is known of its pods."""

    def __init__(self) -> None:
        self.news = News()
        self.pods: dict[tuple[str, str], PodSeen] = {}
        self.errors: list[OrlopError] = []
        self.written: asyncio.Queue[str] = asyncio.Queue()
        self.annotated = AnnotatedPods(self, lambda *place: self.pods.get(place), self.news)  # type: ignore[arg-type]

    async def merge(self, _kind: Any, name: str, change: Any, *, namespace: str) -> None:
        assert (namespace, name, change["metadata"]["uid"]) == (*PLACE, "1")
        if self.errors:
            raise self.errors.pop(0)
        self.written.put_nowait(change["metadata"]["annotations"][names.ADDRESS])

    def tell(self, **pod: str) -> None:
        self.pods[PLACE] = PodSeen(namespace="blue", name="web", **{"uid": "1", **pod})
        self.news.tell()

    async def said(self) -> str:
        async with asyncio.timeout(30):
            return await self.written.get()

    async def settled(self) -> None:
        """All that was told has been looked at."""
        for _ in range(10):
            await asyncio.sleep(0)


@pytest.fixture
async def desk(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr("orlop.tenants.annotated.PAUSE", 0.01)
    one = Desk()
    async with beside(one.annotated.serve()):
        yield one


async def test_it_is_said_at_once_and_again_when_it_is_another(desk: Desk) -> None:
    desk.annotated.wish(LEASE)
    assert await desk.said() == "10.0.1.2"
    desk.tell(address="10.0.1.2")
    await desk.settled()
    assert desk.written.empty()
    desk.tell(address="10.0.1.3")
    assert await desk.said() == "10.0.1.2"


async def test_it_is_said_until_the_api_takes_it(desk: Desk) -> None:
    desk.errors = [Unavailable("it starts"), Unavailable("it starts")]
    desk.annotated.wish(LEASE)
    assert await desk.said() == "10.0.1.2"
    assert not desk.errors


async def test_what_the_api_has_is_not_said(desk: Desk) -> None:
    desk.tell(address="10.0.1.2")
    desk.annotated.wish(LEASE)
    await desk.settled()
    assert desk.written.empty()


@pytest.mark.parametrize("how", ["gone", "another", "never"])
async def test_a_pod_that_is_gone_is_left_alone(desk: Desk, how: str) -> None:
    if how == "never":
        desk.errors = [NotFound("there is no such pod")]
    desk.annotated.wish(LEASE)
    if how != "never":
        await desk.said()
        desk.tell(address="10.0.1.2")
        await desk.settled()
    if how == "gone":
        desk.pods.clear()
        desk.news.tell()
        await desk.settled()
        desk.tell(address="")
    else:
        desk.tell(uid="2", address="")
    await desk.settled()
    assert desk.written.empty()
