"""The ledger: ids and their prefixes, filters, and what depends on what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from orlop.errors import InvalidArgument, NotFound, ResourceExhausted
from orlop.pods.journal import Journal
from orlop.pods.ledger import Ledger, digest
from orlop.pods.records import (
    ContainerFilter,
    ContainerPhase,
    ContainerRecord,
    PodFilter,
    PodPhase,
    PodRecord,
)
from orlop.sandbox.spec import ContainerSpec, PodSpec


def pod(key: str, phase: PodPhase = PodPhase.READY, **labels: str) -> PodRecord:
    spec = PodSpec(id=key.ljust(64, "0"), name=key, namespace="n", uid="u", labels=labels)
    return PodRecord(spec=spec, phase=phase, created_at=1)


def container(key: str, of: PodRecord, phase: ContainerPhase, **labels: str) -> ContainerRecord:
    spec = ContainerSpec(id=key.ljust(64, "0"), pod_id=of.id, name=key)
    return ContainerRecord(spec=spec, phase=phase, created_at=1, labels=labels)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    ledger = Ledger(Journal(tmp_path / "journal.db"))
    await ledger.open()
    yield ledger
    await ledger.close()


async def test_ids_and_prefixes(ledger: Ledger) -> None:
    first = await ledger.put_pod(pod("aab"))
    await ledger.put_pod(pod("aac"))
    assert ledger.pod("aab") == ledger.pod(first.id) == first
    with pytest.raises(InvalidArgument, match="ambiguous"):
        ledger.pod("aa")
    for missing in ("b", "f" * 64, "a" * 10_000):
        assert ledger.find_pod(missing) is None
        with pytest.raises(NotFound):
            ledger.pod(missing)
    with pytest.raises(InvalidArgument, match="empty"):
        ledger.container("")


async def test_filters(ledger: Ledger) -> None:
    ready = await ledger.put_pod(pod("1", app="web"))
    stopped = await ledger.put_pod(pod("2", PodPhase.NOTREADY, app="db"))
    await ledger.put_pod(pod("3", PodPhase.STARTING, app="web"))
    await ledger.put_pod(pod("4", PodPhase.REMOVING, app="web"))
    assert ledger.pods(PodFilter()) == [ready, stopped]
    assert ledger.pods(PodFilter(ready=True)) == [ready]
    assert ledger.pods(PodFilter(labels={"app": "db"})) == [stopped]
    assert ledger.pods(PodFilter(id="2")) == [stopped]
    assert ledger.pods(PodFilter(labels={"app": "db"}, ready=True)) == []
    one = await ledger.put_container(container("a", ready, ContainerPhase.RUNNING, x="1"))
    two = await ledger.put_container(container("b", stopped, ContainerPhase.EXITED, x="2"))
    await ledger.put_container(container("c", ready, ContainerPhase.CREATING, x="1"))
    assert ledger.containers(ContainerFilter()) == [one, two]
    assert ledger.containers(ContainerFilter(pod_id=ready.id)) == [one]
    assert ledger.containers(ContainerFilter(phase=ContainerPhase.EXITED)) == [two]
    assert ledger.containers(ContainerFilter(labels={"x": "1"})) == [one]
    assert [item.name for item in ledger.members(ready.id)] == ["a", "c"]
    assert ledger.shown_members(ready.id) == (one,)


async def test_what_is_dropped_is_forgotten(ledger: Ledger, tmp_path: Path) -> None:
    record = await ledger.put_pod(pod("1"))
    again = PodRecord(
        spec=msgspec.structs.replace(record.spec, id="2" * 64), phase=PodPhase.READY, created_at=2
    )
    await ledger.put_pod(again)
    assert ledger.pods_like(record.spec) == [record, again]
    member = await ledger.put_container(container("a", record, ContainerPhase.RUNNING))
    await ledger.drop_container(member.id)
    await ledger.drop_pod(record.id)
    assert (ledger.pods_like(again.spec), ledger.members(record.id)) == ([again], [])
    await ledger.drop_pod(again.id)
    assert (ledger.count, ledger.ids(), ledger._by_key, ledger._by_pod, ledger._locks) == (
        0,
        set(),
        {},
        {},
        {},
    )


async def test_a_change_that_cannot_be_written_is_taken_back(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await ledger.put_pod(pod("1"))

    async def full(*_: object) -> None:
        raise ResourceExhausted("no space left")

    monkeypatch.setattr(ledger._journal, "put_pod", full)
    with pytest.raises(ResourceExhausted):
        await ledger.change_pod(record.id, phase=PodPhase.NOTREADY)
    with pytest.raises(ResourceExhausted):
        await ledger.put_pod(pod("2"))
    assert ledger.all_pods() == [record]


async def test_the_ledger_is_read_again(ledger: Ledger, tmp_path: Path) -> None:
    record = await ledger.put_pod(pod("1"))
    member = await ledger.put_container(container("a", record, ContainerPhase.RUNNING))
    await ledger.close()
    again = Ledger(Journal(tmp_path / "journal.db"))
    await again.open()
    assert (again.pods_like(record.spec), again.members(record.id)) == ([record], [member])
    await again.close()


def test_equal_requests_have_equal_digests() -> None:
    one = PodSpec(id="", name="a", namespace="b", uid="c", labels={"x": "1", "y": "2"})
    two = PodSpec(id="", name="a", namespace="b", uid="c", labels={"y": "2", "x": "1"})
    assert digest(one) == digest(two)
    assert digest(one) != digest(msgspec.structs.replace(two, hostname="h"))
