"""Questions of pods to their tenant's DNS, and a resolver of the world that keeps count."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import dns.message
import dns.rcode
from dns.message import Message

from orlop.host import netns
from tests.conformance import tools
from tests.tenants.world import DNS, LIMIT

LARGE = 20
"""Records of ``large.example``, more than a datagram has room for."""
_LIBRARIES = (
    "libdbus-1-3",
    "libhogweed6",
    "libidn2-0",
    "libjansson4",
    "libmnl0",
    "libnetfilter-conntrack3",
    "libnettle8",
    "libnfnetlink0",
    "libnftables1",
    "libnftnl11",
    "libunistring2",
)


async def _socket(place: Path, kind: socket.SocketKind) -> socket.socket:
    def make() -> socket.socket:
        one = socket.socket(socket.AF_INET, kind)
        one.setblocking(False)
        return one

    return await netns.within(place, make)


async def send(place: Path, question: bytes, address: str = DNS) -> bytes:
    """What comes back for one datagram. Raises TimeoutError within a moment when nothing does."""
    loop = asyncio.get_running_loop()
    with await _socket(place, socket.SOCK_DGRAM) as line:
        line.connect((address, 53))
        await loop.sock_sendall(line, question)
        async with asyncio.timeout(1):
            return await loop.sock_recv(line, 65535)


async def ask(place: Path, name: str, kind: str = "A", *, address: str = DNS) -> Message:
    """What a pod is answered, which asks again as a stub resolver does. Raises TimeoutError."""
    query = dns.message.make_query(name, kind, use_edns=0, payload=1232)
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                response = dns.message.from_wire(await send(place, query.to_wire(), address))
            except TimeoutError:
                continue
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
                continue
            assert query.is_response(response)
            return response


async def ask_by_stream(place: Path, *questions: tuple[str, str], address: str = DNS) -> list[Message]:
    """The same by one connection."""
    loop = asyncio.get_running_loop()
    line = await _socket(place, socket.SOCK_STREAM)
    async with asyncio.timeout(LIMIT):
        await loop.sock_connect(line, (address, 53))
        reader, writer = await asyncio.open_connection(sock=line)
        try:
            found = []
            for name, kind in questions:
                query = dns.message.make_query(name, kind)
                writer.write(query.to_wire(prepend_length=True))
                length = int.from_bytes(await reader.readexactly(2), "big")
                found.append(dns.message.from_wire(await reader.readexactly(length)))
                assert query.is_response(found[-1])
            return found
        finally:
            writer.close()


def records(message: Message) -> set[str]:
    """All records of an answer as text."""
    assert message.rcode() == dns.rcode.NOERROR, dns.rcode.to_text(message.rcode())
    return {record.to_text() for rrset in message.answer for record in rrset}


class Resolver:
    """dnsmasq at an address, with names below ``example``; its log has what it was asked."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def asked(self, name: str) -> int:
        """How often, about a name."""
        return sum(f" {name} from " in line for line in self._log.read_text().splitlines())


def _program() -> tuple[Path, dict[str, str]]:
    """Debian's dnsmasq, installed or unpacked."""
    if installed := shutil.which("dnsmasq"):
        return Path(installed), {}
    root = tools.debian_packages(["dnsmasq-base", *_LIBRARIES])
    found = sorted({path.parent for path in (root / "usr/lib").rglob("*.so.*")})
    return root / "usr/sbin/dnsmasq", {"LD_LIBRARY_PATH": ":".join(map(str, found))}


@asynccontextmanager
async def resolver(place: Path, address: str, log: Path) -> AsyncIterator[Resolver]:
    """A resolver that answers, until the block ends."""
    program, variables = await asyncio.to_thread(_program)
    options = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-hosts",
        "--no-resolv",
        "--bind-interfaces",
        f"--listen-address={address}",
        "--user=root",
        "--pid-file=",
        "--log-queries",
        f"--log-facility={log}",
        "--local=/example/",
        "--local-ttl=60",
        "--host-record=outside.example,192.0.2.77",
        "--cname=alias.example,outside.example",
        *(f"--txt-record=large.example,{number:03}{'x' * 200}" for number in range(LARGE)),
    ]
    environment = {**os.environ, **variables}
    child = await asyncio.create_subprocess_exec(
        "nsenter", f"--net={place}", program, *options, env=environment, stdin=subprocess.DEVNULL
    )
    try:
        await ask(place, "outside.example", address=address)
        yield Resolver(log)
    finally:
        child.kill()
        await child.wait()
