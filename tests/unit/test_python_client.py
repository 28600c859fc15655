"""What the Python client promises by its form: few public names, and two clients with the same ones."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection

import orlop
import orlop.blocking
from orlop import errors
from orlop.client import forward
from orlop.client.channels import PROTOCOL, Channels
from tests.patience import PATIENCE

PUBLIC = {
    "CommandFailed",
    "Container",
    "ContainerFacts",
    "ContainerUse",
    "Event",
    "FileChange",
    "ImageFacts",
    "Node",
    "Pod",
    "PodFacts",
    "PortStream",
    "Process",
    "Result",
    "connect",
}
COROUTINE_ONLY = {"feed"}
"""What only makes sense beside other tasks of an event loop."""


def methods(kind: type) -> dict[str, object]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}


def test_the_public_names_are_these() -> None:
    assert set(orlop.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(orlop, name).__doc__, name
    with pytest.raises(AttributeError):
        orlop.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["Node", "Pod", "Container", "Process", "PortStream"])
def test_the_blocking_client_has_the_same_methods(name: str) -> None:
    awaited, plain = methods(getattr(orlop, name)), methods(getattr(orlop.blocking, name))
    assert awaited.keys() - plain.keys() <= COROUTINE_ONLY
    # Attributes of the one may be properties of the other.
    assert {one for one in plain if one not in awaited} <= {"id"}
    for method in awaited.keys() & plain.keys():
        if inspect.isfunction(awaited[method]):
            ours, theirs = (inspect.signature(one[method]) for one in (awaited, plain))  # type: ignore[arg-type]
            assert ours.parameters == theirs.parameters, method


def test_importing_the_package_imports_no_client() -> None:
    script = "import sys, orlop; assert 'grpc' not in sys.modules and 'orlop.client' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_results_are_judged_when_asked() -> None:
    assert orlop.Result(0, b"x").check().text == "x"
    with pytest.raises(orlop.CommandFailed, match="exit code 3: sorry"):
        orlop.Result(3, b"", b"sorry\n").check()
    assert issubclass(orlop.CommandFailed, errors.OrlopError)


async def test_what_comes_with_the_answer_to_the_handshake_is_not_lost() -> None:
    status = b'\x03{"status":"Success"}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = WSConnection(ConnectionType.SERVER)
        connection.receive_data(await reader.readuntil(b"\r\n\r\n"))
        parts = (AcceptConnection(subprotocol=PROTOCOL), BytesMessage(b"\x01out"), BytesMessage(status))
        writer.write(b"".join(connection.send(part) for part in (*parts, CloseConnection(1000))))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        channels = await Channels.open(f"http://127.0.0.1:{port}/exec/token")
        seen: list[tuple[int, bytes]] = []
        assert await channels.receive(lambda channel, data: seen.append((channel, data))) == 0
        assert seen == [(1, b"out")]
        await channels.close()


async def test_connections_to_a_forwarded_port_end_with_it() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = WSConnection(ConnectionType.SERVER)
        connection.receive_data(await reader.readuntil(b"\r\n\r\n"))
        greeting = (AcceptConnection(subprotocol=PROTOCOL), BytesMessage(b"\x00\x50\x00hello"))
        writer.write(b"".join(connection.send(part) for part in greeting))
        while await reader.read(1 << 16):
            pass
        gone.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/portforward/token"

        async def answer(request: object) -> SimpleNamespace:
            return SimpleNamespace(url=url)

        client = SimpleNamespace(runtime=SimpleNamespace(port_forward=answer))
        async with asyncio.timeout(30 * PATIENCE):
            async with forward.listen(client, "pod", 80) as port:  # type: ignore[arg-type]
                visitor, writer = await asyncio.open_connection("127.0.0.1", port)
                assert await visitor.read(5) == b"hello"
            assert await visitor.read() == b""
            await gone.wait()
        writer.close()
