"""What plug-ins of the node, and other peers that speak ttrpc, may say to the daemon."""

from __future__ import annotations

import asyncio
import contextlib

from google.protobuf.message import DecodeError

from orlop.errors import OrlopError
from orlop.nri import mux
from orlop.nri.adjust import Adjuster
from orlop.nri.api import nri_v1alpha1_pb2 as pb
from orlop.nri.mux import Mux
from orlop.sandbox.spec import ContainerSpec
from orlop.ttrpc import server
from orlop.ttrpc.client import Client
from orlop.ttrpc.frames import NO_DATA, REMOTE_CLOSED, FrameType, LinkLost, TtrpcFrame
from orlop.ttrpc.messages_pb2 import Request, Response, Status
from tests.fuzz.kit import logged, run, target
from tests.unit.ttrpc_double import NAME, Echo, Streaming


class OneSidedLink:
    """A side that says the input and hears nothing."""

    def __init__(self, data: bytes) -> None:
        self._reader = asyncio.StreamReader()
        self._reader.feed_data(data)
        self._reader.feed_eof()

    async def read(self, size: int) -> bytes:
        try:
            return await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise LinkLost("the end") from error

    async def write(self, data: bytes) -> None:
        pass

    async def close(self) -> None:
        pass


def _request(stream: int, method: str) -> bytes:
    asked = Request(service=NAME, method=method, payload=Echo(seq=1, msg="m").SerializeToString())
    return TtrpcFrame(stream, FrameType.REQUEST, asked.SerializeToString()).encode()


CALLS = (
    _request(1, "Echo")
    + _request(3, "EchoStream")
    + TtrpcFrame(3, FrameType.DATA, b"\x08\x01").encode()
    + TtrpcFrame(3, FrameType.DATA, flags=REMOTE_CLOSED | NO_DATA).encode()
)
REFUSAL = Response(status=Status(code=9, message="no"))
ANSWERS = (
    TtrpcFrame(1, FrameType.RESPONSE, Response(payload=b"\x08\x01").SerializeToString()).encode(),
    TtrpcFrame(
        1, FrameType.RESPONSE, Response(status=Status(code=9, message="no")).SerializeToString()
    ).encode(),
    TtrpcFrame(1, FrameType.DATA, b"\x08\x01", REMOTE_CLOSED).encode(),
)
ADJUSTMENT = pb.ContainerAdjustment(
    env=[pb.KeyValue(key="-A"), pb.KeyValue(key="B", value="1")],
    mounts=[pb.Mount(destination="/m", type="tmpfs", source="tmpfs", options=["size=1m", "noexec"])],
    rlimits=[pb.POSIXRlimit(type="RLIMIT_CORE", soft=1, hard=2)],
    linux=pb.LinuxContainerAdjustment(
        devices=[pb.LinuxDevice(path="/dev/null", type="c", major=1, minor=3)],
        resources=pb.LinuxResources(pids=pb.LinuxPids(limit=5), unified={"memory.low": "1"}),
        seccomp_policy=pb.LinuxSeccomp(default_action="SCMP_ACT_ALLOW"),
    ),
)


@target(seeds=[CALLS, CALLS + CALLS])
def ttrpc_calls(data: bytes) -> None:
    """A server answers, or the connection ends."""

    async def talk() -> None:
        async with asyncio.timeout(10):
            await server.serve(OneSidedLink(data), Streaming().services())

    with logged("orlop.ttrpc"):
        run(talk())


@target(OrlopError, seeds=ANSWERS)
def ttrpc_answers(data: bytes) -> None:
    """A call is answered, or fails as calls do."""

    async def talk() -> None:
        client = Client(OneSidedLink(data), "it")
        try:
            async with asyncio.timeout(10):
                await client.call(NAME, "Echo", Echo(), Echo)
        finally:
            await client.close()

    run(talk())


@target(seeds=[mux.HEADER.pack(1, 3) + b"abc" + mux.HEADER.pack(2, 0), mux.HEADER.pack(9, 1) + b"x"])
def plugin_connections(data: bytes) -> None:
    """Each connection gets its own bytes, or both end."""

    async def talk() -> None:
        both = Mux(OneSidedLink(data))
        assert await both.run()
        for channel in (both.plugin, both.runtime):
            with contextlib.suppress(LinkLost):
                while True:
                    await channel.read(1)

    run(talk())


@target(DecodeError, OrlopError, seeds=[ADJUSTMENT.SerializeToString()])
def plugin_adjustments(data: bytes) -> None:
    """What a plug-in wants is done, or refused in its name."""
    adjuster = Adjuster(ContainerSpec(id="c", pod_id="p", name="c", args=("a",)))
    asked = pb.ContainerAdjustment.FromString(data)
    try:
        adjuster.apply(asked, "10-it")
    except OrlopError as error:
        assert "10-it" in str(error)
