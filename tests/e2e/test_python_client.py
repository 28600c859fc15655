"""The Python client against a real daemon, and the page that describes it, run as it stands there."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import orlop
import orlop.blocking
from orlop import errors
from tests.node import BUSYBOX, NGINX, Node
from tests.patience import PATIENCE, SLOWNESS

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
DEADLINE = 60 * PATIENCE

pytestmark = pytest.mark.usefixtures("client_node")


def compiled(example: str) -> Callable[[dict[str, Any]], object]:
    code = compile(example, PAGE.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return lambda names: eval(code, names)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_page(number: int, client_node: Node) -> None:
    names: dict[str, Any] = {"IMAGE": BUSYBOX, "orlop": orlop, "asyncio": asyncio}
    made = compiled(EXAMPLES[number])(names)
    if isinstance(made, Coroutine):
        asyncio.run(asyncio.wait_for(made, DEADLINE * 2))
    assert client_node.crictl("pods", "-q").out == ""


@contextlib.asynccontextmanager
async def started(handler: str) -> AsyncIterator[orlop.Container]:
    async with orlop.connect() as node, node.pod(handler=handler) as pod:
        yield await pod.start(BUSYBOX, "sleep", "600")


@pytest.mark.parametrize("handler", ["vm", "process"])
async def test_a_result_has_all_of_the_output(handler: str) -> None:
    async with orlop.connect() as node:
        script = "cat; seq 1 20000; echo complaint >&2; exit 5"
        result = await node.run(BUSYBOX, "sh", "-c", script, stdin=b"input\n", handler=handler)
        assert result.exit_code == 5 and result.stderr == b"complaint\n"
        assert result.stdout == b"input\n" + b"".join(b"%d\n" % number for number in range(1, 20001))
        with pytest.raises(orlop.CommandFailed, match="exit code 5: complaint"):
            result.check()
    async with started(handler) as container:
        executed = await container.exec("sh", "-c", "wc -c; exit 4", stdin=bytes(300_000))
        assert (executed.exit_code, executed.text.strip()) == (4, "300000")
        early = await container.exec("true", stdin=bytes(1 << 20))
        assert early.exit_code == 0
        with pytest.raises(errors.OrlopError, match="nothing-here"):
            await container.exec("nothing-here")


async def test_files_of_all_kinds_come_back_as_they_went(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "below" / "bytes").write_bytes(bytes(range(256)) * 1000)
    (source / "name with spaces").write_text("x")
    (source / "link").symlink_to("below/bytes")
    async with started("vm") as container:
        await container.put("/deep/down/tree", source)
        back = await container.fetch("/deep/down/tree", tmp_path / "back")
        assert back == tmp_path / "back/tree"
        assert (back / "below/bytes").read_bytes() == bytes(range(256)) * 1000
        assert (back / "name with spaces").read_text() == "x"
        assert (back / "link").readlink() == Path("below/bytes")
        with pytest.raises(errors.ResourceExhausted):
            await container.fetch("/deep", tmp_path / "bounded", limit=100_000)
        with pytest.raises(orlop.CommandFailed):
            await container.get("/nothing/there")
        with pytest.raises(errors.InvalidArgument):
            await container.put("relative", b"")
        # What wants out of the target is not unpacked.
        await container.exec("sh", "-c", "mkdir /evil; ln -s /etc /evil/out; ln -s ../../up /evil/up")
        with pytest.raises(errors.InvalidArgument, match="cannot be unpacked"):
            await container.fetch("/evil", tmp_path / "target")
        assert not (tmp_path / "target/evil/out").exists()


@pytest.mark.parametrize("handler", ["vm", "process"])
async def test_ports_carry_both_ways_and_end(handler: str) -> None:
    async with orlop.connect() as node, node.pod(handler=handler) as pod:
        await pod.start(NGINX)
        serve = "nc -l -p 7000 -e sh -c 'wc -c; echo end'; sleep 600"
        container = await pod.start(BUSYBOX, "sh", "-c", serve)
        async with asyncio.timeout(DEADLINE), pod.forward(80) as port:
            while True:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                page = await reader.read()
                writer.close()
                if page:
                    break
                await asyncio.sleep(0.1)
        assert b"200 OK" in page and b"Welcome" in page
        await container.exec("sh", "-c", "until netstat -ltn | grep -q :7000; do sleep 0.1; done")
        async with asyncio.timeout(DEADLINE), await pod.dial(7000) as stream:
            await stream.write(bytes(100_000))
            await stream.write_eof()
            answer = b""
            while data := await stream.read():
                answer += data
            assert answer.split() == [b"100000", b"end"]
        async with await pod.dial(7001) as stream:
            with pytest.raises(errors.Unavailable, match="7001"):
                await stream.read()


async def test_what_is_cancelled_leaves_nothing(client_node: Node) -> None:
    logs = client_node.scratch / "client-logs"
    # Pods of other tests that were removed by the daemon leave their logs here.
    before = set(logs.iterdir()) if logs.exists() else set()
    async with orlop.connect() as node:
        with pytest.raises(TimeoutError):
            await node.run(BUSYBOX, "sleep", "600", timeout=8 * SLOWNESS)
        with pytest.raises(errors.OrlopError, match="nothing-here"):
            await node.run(BUSYBOX, "nothing-here")
        for seconds in (0.01, 0.03, 0.1, 0.3):
            making = asyncio.ensure_future(node.run(BUSYBOX, "sleep", "600"))
            await asyncio.sleep(seconds)
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)
            assert await node.pods() == [], seconds
    # Nor does the daemon go on with what nobody waits for.
    await asyncio.sleep(1)
    assert client_node.crictl("pods", "-q").out == ""
    assert set(logs.iterdir()) <= before


async def test_events_and_lists_agree() -> None:
    async with orlop.connect() as node:
        seen: list[orlop.Event] = []
        ended: list[str] = []

        async def watch() -> None:
            async for event in node.events():
                seen.append(event)
                if event.kind == "deleted" and [event.container_id] == [event.pod_id] == ended:
                    return

        watching = asyncio.ensure_future(watch())
        # Nothing says from when on events are told, but an event.
        async with asyncio.timeout(DEADLINE):
            while not seen:
                async with node.pod(handler="process"):
                    await asyncio.sleep(0.1)
        async with node.pod(name="counted") as pod:
            ended.append(pod.id)
            container = await pod.start(BUSYBOX, "sh", "-c", "exit 9", name="nine")
            assert await container.wait() == 9
            facts = await container.facts()
            assert (facts.name, facts.state, facts.exit_code, facts.pod_id) == ("nine", "exited", 9, pod.id)
            assert [one.id for one in await node.pods() if one.name == "counted"] == [pod.id]
            assert container.id in [one.id for one in await node.containers()]
        async with asyncio.timeout(DEADLINE):
            await watching
        kinds = [one.kind for one in seen if one.container_id == container.id]
        assert kinds == ["created", "started", "stopped", "deleted"]


def test_the_blocking_client_does_the_same(tmp_path: Path) -> None:
    with orlop.blocking.connect() as node:
        assert node.run(BUSYBOX, "sh", "-c", "cat; exit 2", stdin=b"x", handler="process").stdout == b"x"
        with node.pod(handler="process") as pod:
            container = pod.start(BUSYBOX, "sleep", "600")
            container.put("/f", b"content")
            assert container.get("/f") == b"content"
            results: list[str] = []
            threads = [
                threading.Thread(target=lambda: results.append(container.exec("echo", "x").text))
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert results == ["x\n"] * 4
            with container.process("cat", stdin=True) as process:
                process.write(b"one")
                assert next(iter(process.output())) == ("stdout", b"one")
            for using in node.stats():
                assert container.id in [one.container_id for one in using]
                break
        with pytest.raises(errors.NotFound):
            node.container(container.id)
    assert "orlop" not in [thread.name for thread in threading.enumerate()]
