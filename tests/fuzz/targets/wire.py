"""What the guest's agent may say to the daemon, and the daemon to the agent."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from orlop.cri.translate import metrics, stats
from orlop.hypervisor.base import MemoryUse
from orlop.linux.usage import LayerFill, Usage
from orlop.pods.records import ContainerPhase, ContainerRecord, PodPhase, PodRecord, PodUse
from orlop.sandbox.figures import ContainerStats, PodStats
from orlop.sandbox.spec import ContainerSpec, PodSpec
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.meter import Host, layer_use, never_less, pod_usage, within
from orlop.wire import hello, messages
from orlop.wire.codec import ProtocolError
from orlop.wire.flow import Receiver, Sender
from orlop.wire.framing import Frame, Kind, Parser, data_frames, frame, preamble
from orlop.wire.messages import Refused
from orlop.wire.statistics import ContainerUsage
from orlop.wire.values import Container, Disks, Exit, GuestSecurity, Interface, PluggedDisk, Route
from tests.fuzz.kit import logged, run, target

NONCE = b"0123456789abcdef"
HELLO = preamble(NONCE) + frame(Kind.HELLO, payload=hello.pack_hello(hello.Hello(next_stream=9)))
EXITED = messages.ContainerExited(id="c", exit=Exit(code=3, finished_at=1))
USAGE = Usage(timestamp=1, cpu_ns=5, memory=1 << 20, pids=3)
FIGURES = messages.StatsReply(
    pod=USAGE,
    containers=(ContainerUsage(id="c", usage=USAGE, layer=LayerFill(used=5, inodes=2, size=1 << 20)),),
    system_memory_total=1 << 28,
    system_memory_available=1 << 27,
)
TALK = (
    HELLO
    + frame(Kind.EVENT, 0, messages.pack_event(EXITED))
    + b"".join(data_frames(3, 0, b"output\n"))
    + frame(Kind.REPLY, 1, messages.pack_reply(messages.Done()))
    + frame(Kind.ACK, 4, offset=5)
    + frame(Kind.EOF, 3, offset=7)
    + frame(Kind.RESET, 4, b"why")
)
REQUESTS: tuple[messages.Request[Any], ...] = (
    messages.Ping(),
    messages.Setup(
        hostname="web",
        interfaces=(
            Interface(
                at="pci:0",
                addresses=("10.0.0.2/24",),
                routes=(Route(destination="0.0.0.0/0", gateway="10.0.0.1"),),
            ),
        ),
        sysctls=(("net.ipv4.ip_forward", "1"),),
    ),
    messages.Create(
        container=Container(
            id="c",
            disks=Disks(root=(PluggedDisk(id="l", at=("scsi:1",)),)),
            args=("sh",),
            env=(("PATH", b"/bin"),),
            security=GuestSecurity(user="web", effective=("CHOWN",), seccomp=b"\6\0\0\0\0\0\xff\x7f"),
        )
    ),
    messages.Stats(full=True),
)


def pieces(data: bytes) -> list[bytes]:
    """The input cut into pieces, as its first byte says."""
    step = (data[0] if data else 0) + 1
    return [data[start : start + step] for start in range(1, len(data), step)]


@target(seeds=[b"\xff" + TALK, b"\x04" + TALK, b"\xff" + TALK[: len(TALK) // 2] + TALK])
def framing(data: bytes) -> None:
    """In pieces or at once, and as many frames at a time as one likes: the same frames.

    What is cut may be refused before the preamble comes that forgives it, so only what comes after the last
    one must be the same.
    """
    try:
        whole = Parser().feed(data[1:])
    except ProtocolError:
        return
    cut, few = [], []
    parser = Parser()
    for piece in pieces(data):
        with contextlib.suppress(ProtocolError):
            cut += parser.feed(piece)
    parser = Parser()
    found: list[Frame] = parser.feed(data[1:], 2)
    while found:
        few += found
        found = parser.feed(b"", 2) if len(found) == 2 else []
    assert whole == few
    assert _after_the_last_preamble(whole) == _after_the_last_preamble(cut)


def _after_the_last_preamble(frames: list[Frame]) -> list[Frame]:
    starts = [index for index, one in enumerate(frames) if one.kind is Kind.SYNC]
    return frames[starts[-1] :] if starts else []


@target(ProtocolError, Refused, seeds=[messages.pack_request(one) for one in REQUESTS])
def requests(data: bytes) -> None:
    """A request that is understood means the same when it is written again."""
    request = messages.unpack_request(data)
    assert messages.unpack_request(messages.pack_request(request)) == request


@target(
    ProtocolError,
    Refused,
    seeds=[
        b"\0" + messages.pack_reply(messages.Done()),
        b"\x05" + messages.pack_reply(messages.Done()),
        b"\x09" + messages.pack_reply(FIGURES),
        b"\x0b" + messages.pack_reply(messages.State()),
        b"\x01" + messages.pack_failure("not_found", "there is no such thing"),
    ],
)
def replies(data: bytes) -> None:
    """The first byte says what was asked."""
    kinds = list(messages.REQUESTS.values())
    kind = kinds[(data[0] if data else 0) % len(kinds)]
    request = object.__new__(kind)
    messages.unpack_reply(request, data[1:])


@target(
    ProtocolError,
    seeds=[messages.pack_event(EXITED), messages.pack_event(messages.Log(level="info", text="x"))],
)
def events(data: bytes) -> None:
    event = messages.unpack_event(data)
    if event is not None:
        assert messages.unpack_event(messages.pack_event(event)) == event


@target(ProtocolError, ValueError, seeds=[bytes(range(64)), b"\0\x10\1\2\0\3\x20\1\4\5\6\7"])
def flow(data: bytes) -> None:
    """A sender and a receiver in any order of calls: no byte is lost, doubled or made up."""
    sender, receiver = Sender(1, window=64), Receiver(1, window=64)
    sent, got = b"", b""
    for operation, amount in zip(data[::2], data[1::2], strict=False):
        match operation % 7:
            case 0:
                chunk = bytes(amount % (sender.room + 1))
                sender.write(chunk)
                sent += chunk
            case 1:
                parser = Parser()
                for one in parser.feed(preamble(NONCE) + b"".join(sender.frames())):
                    if one.kind is Kind.DATA:
                        got += receiver.data(one.offset, one.payload)
                    elif one.kind is Kind.EOF:
                        receiver.end(one.offset)
            case 2:
                receiver.consumed(min(amount, receiver.received - receiver.offset))
            case 3:
                sender.ack(receiver.offset)
            case 4:
                sender.pause()
            case 5:
                sender.resume(receiver.received if not receiver.ended else receiver.offset)
            case 6:
                sender.end()
        assert sent.startswith(got)


class _Transport(asyncio.Transport):
    """Where what the daemon says goes: nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self._closing = False

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        self._closing = True

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return 0


@target(seeds=[TALK, TALK + TALK])
def agent(data: bytes) -> None:
    """A connection that a request and two streams are open on takes what the agent says, or ends."""

    async def talk() -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        protocol = asyncio.StreamReaderProtocol(reader)
        client = AgentClient("VM", reader, asyncio.StreamWriter(_Transport(), protocol, reader, loop), NONCE)
        try:
            await client._greet()
        except ProtocolError:
            return
        client._next_stream = max(client._next_stream, 16)
        client.incoming(3)
        client.outgoing(4)
        asked = loop.create_task(client.call(messages.Ping(), 5))
        running = loop.create_task(client._run())
        await running
        await asyncio.gather(asked, return_exceptions=True)
        await client.close()

    with logged("orlop.sandbox.vm.agent"):
        run(talk())


@target(ProtocolError, Refused, seeds=[messages.pack_reply(FIGURES)])
def statistics(data: bytes) -> None:
    """A guest's figures, twice, can be told to the kubelet whatever they are."""
    reply = messages.unpack_reply(messages.Stats(full=True), data)
    host = Host(10**9, Usage(timestamp=0), {"c": (1 << 20, 3 << 20)})
    memory = MemoryUse(pss=80 << 20, private=60 << 20, shared=90 << 20)
    usage = pod_usage(host, memory, 256 << 20, reply.pod)
    usage = never_less(usage, usage)
    found = []
    for one in reply.containers:
        inside = never_less(within(one.usage, 150 << 20, 10**9, 1), USAGE)
        layer = layer_use(one.layer, taken=1 << 20, size=3 << 20, at=1, place="/layers")
        found.append(ContainerStats(container_id=one.id, usage=inside, layer=layer))
    _told(PodStats(usage=usage, containers=tuple(found)))


def _told(found: PodStats) -> None:
    pod = PodRecord(
        spec=PodSpec(id="p", name="p", namespace="n", uid="u"), phase=PodPhase.READY, created_at=1
    )
    members = tuple(
        ContainerRecord(
            spec=ContainerSpec(id=one.container_id, pod_id="p", name="c"),
            phase=ContainerPhase.RUNNING,
            created_at=1,
        )
        for one in found.containers
    )
    use = PodUse(record=pod, stats=found, containers=members)
    stats.pod_stats(use).SerializeToString()
    metrics.pod_metrics(use)
