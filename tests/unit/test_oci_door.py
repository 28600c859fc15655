"""The socket for callers of an OCI runtime, and what is behind it: questions, bundles, stand-ins."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.bundle import document, translate
from orlop.errors import FailedPrecondition, InvalidArgument, OrlopError
from orlop.host.process import process_start_time
from orlop.oci import plainjson, protocol, questions
from orlop.oci.command import main, namespaces, options, parser, templates
from orlop.oci.companion import Companion
from orlop.oci.door import Door
from orlop.oci.protocol import SOCKET, RefusedByDaemon
from orlop.sandbox.rawoutput import RawOutput
from orlop.sandbox.spec import Propagation, Sink

SOURCE = Path(protocol.__file__).resolve().parents[2]


class Nobody:
    """Pods of a node that has none."""

    async def recovered(self) -> None: ...

    def pods(self, _filter: object) -> list[Any]:
        return []

    containers = pods


@contextlib.asynccontextmanager
async def door(state: Path) -> AsyncIterator[str]:
    one = Door(state, Nobody())  # type: ignore[arg-type]
    await one.start()
    try:
        yield os.fspath(state / SOCKET)
    finally:
        await one.stop()


def config(**more: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(templates.CONFIG)), **more}


def read(**more: Any) -> document.OciConfig:
    return document.config(json.dumps(config(**more)).encode())


async def test_questions_are_checked(tmp_path: Path) -> None:
    async with door(tmp_path) as path:
        assert Path(path).stat().st_mode & 0o777 == 0o600
        for verb, more, reason in (
            ("state", {"id": "none"}, "container does not exist"),
            ("state", {"id": "../x"}, "invalid container ID format"),
            ("state", {}, "missing required field `id`"),
            ("state", {"id": "a", "other": 1}, "unknown field `other`"),
            ("dance", {"id": "a"}, "Invalid value 'dance'"),
            ("kill", {"id": "a", "signal": "x" * 33}, "length <= 32"),
        ):
            with pytest.raises(RefusedByDaemon, match=reason):
                await asyncio.to_thread(protocol.ask, path, verb, root="/r", **more)
        assert await asyncio.to_thread(protocol.ask, path, "states", root="/r") == []
        # What is said to be too long is not waited for.
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write((protocol.MAX_MESSAGE + 1).to_bytes(4, "big"))
        answer = await asyncio.wait_for(reader.read(), 30)
        assert b"is longer than" in answer
        writer.close()
    assert not Path(path).exists()


@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_noise_is_an_error_in_words(data: bytes) -> None:
    for parse in (questions.parse, document.config, document.process, document.resources):
        with contextlib.suppress(OrlopError):
            parse(data)  # type: ignore[operator]


@given(st.dictionaries(st.sampled_from([*templates.CONFIG, "hooks"]), st.none() | st.integers() | st.text()))
def test_a_config_with_other_things_in_it_is_an_error_in_words(changes: dict[str, Any]) -> None:
    with contextlib.suppress(OrlopError):
        found = document.config(json.dumps({**config(), **changes}).encode())
        translate.check(found)
        _container(found)


def _container(found: document.OciConfig) -> Any:
    return translate.container(
        found, "c", "/bundle", pod_id="p", sink=Sink(), stdin=False, target="", annotations={}
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"linux": None}, "host's network namespace"),
        ({"linux": {"namespaces": [{"type": "network"}]}}, "host's PID namespace"),
        ({"hooks": {"startContainer": [{"path": "/x"}]}}, "hooks"),
        ({"linux": {**templates.CONFIG["linux"], "uidMappings": [{}]}}, "user namespace"),
        ({"linux": {**templates.CONFIG["linux"], "timeOffsets": {"boottime": {}}}}, "time since boot"),
    ],
)
def test_what_no_vm_can_be_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(FailedPrecondition, match=reason):
        translate.check(read(**change))


def test_of_a_callers_annotations_the_engine_gets_those_that_it_reads() -> None:
    wish = {"volumes.orlop.io/sockets": "/run/app"}
    assert (
        _container(read(annotations={**wish, "restart.orlop.io/policy": "{}", "x": "y"})).annotations == wish
    )


def test_a_bundle_becomes_a_container() -> None:
    mounts = [
        *templates.CONFIG["mounts"],
        {
            "destination": "/data",
            "type": "bind",
            "source": "here",
            "options": ["rbind", "ro", "nosuid", "rslave"],
        },
        {"destination": "run/x", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "mode=755"]},
        {"destination": "/dev/shm", "type": "bind", "source": "/host/shm", "options": ["bind"]},
    ]
    asked = _container(read(mounts=mounts))
    assert asked.directory == "/bundle/rootfs" and asked.command == ("sh",) and asked.tty
    assert asked.security.add_capabilities == ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
    assert asked.security.drop_capabilities == ("ALL",) and asked.security.read_only_root
    volume, memory = asked.mounts
    assert (volume.container_path, volume.host_path, volume.read_only) == ("/data", "/bundle/here", True)
    assert (volume.options, volume.propagation) == (("nosuid",), Propagation.HOST_TO_CONTAINER)
    assert (memory.container_path, memory.tmpfs.size, memory.tmpfs.mode) == ("/run/x", 65536, 0o755)
    for bad, reason in (
        ({"destination": "/x", "type": "nfs"}, "type 'nfs'"),
        ({"destination": "/x", "type": "bind", "source": "/", "options": ["idmap"]}, "owners of volumes"),
        ({"destination": "/x", "type": "tmpfs", "options": ["size=lots"]}, "size 'lots'"),
    ):
        with pytest.raises((FailedPrecondition, InvalidArgument), match=reason):
            _container(read(mounts=[bad]))


async def test_another_process_of_the_same_number_is_not_touched(tmp_path: Path) -> None:
    other = Companion(pid=os.getpid(), since=process_start_time(os.getpid()) + 1, stdin=True)
    assert not other.alive and other.size() == (0, 0)
    await other.end(3)
    await other.kill()
    assert [number async for number in other.signals()] == []
    with (tmp_path / "out").open("w") as file:
        sink = Sink(stdout=f"/proc/{os.getpid()}/fd/{file.fileno()}", since=other.since)
        with pytest.raises(FailedPrecondition, match="its process has ended"):
            await RawOutput(sink).open()
        right = RawOutput(Sink(stdout=sink.stdout, since=other.since - 1))
        await right.open()
        await right.write(1, b"said")
        await right.close()
    assert (tmp_path / "out").read_bytes() == b"said"


def test_without_a_daemon_the_command_says_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    options = ["--state", os.fspath(tmp_path), "--log", os.fspath(log), "--log-format=json"]
    assert main.main([*options, "state", "c"]) == 1
    said = json.loads(log.read_text())
    assert said["level"] == "error" and "start it with" in said["msg"]
    assert said["msg"] in capsys.readouterr().err
    assert main.main([*options, "exec", "c", "ls"]) == 255
    assert main.main([*options, "create", "--bundle", os.fspath(tmp_path), "c"]) == 1
    assert "config.json: no such file or directory" in capsys.readouterr().err
    # Nor is it a directory that is missing, where the daemon has never been.
    (tmp_path / "config.json").write_text(json.dumps(templates.CONFIG | {"process": {"args": ["true"]}}))
    assert main.main([*options, "create", "--bundle", os.fspath(tmp_path), "c"]) == 1
    assert "start it with" in capsys.readouterr().err
    assert main.main([*options, "--nonsense"]) == 1
    assert main.main(["--log", "/nowhere/log", "bogus"]) == 1
    assert "the log /nowhere/log cannot be written" in capsys.readouterr().err


SLOW = {
    *("argparse", "asyncio", "collections", "contextlib", "dataclasses", "enum", "functools", "inspect"),
    *("json", "msgspec", "pathlib", "re", "shutil", "signal", "socket", "subprocess", "typing"),
}
"""Each of these takes as long as a tenth of a call, or makes others do so."""


def loaded(script: str, *arguments: str) -> set[str]:
    """The modules that a program loads that begins with nothing."""
    code = f"import sys; sys.path.append({os.fspath(SOURCE)!r})\n{script}\nprint(*sys.modules)"
    argv = [sys.executable, "-I", "-S", "-c", code, *arguments]
    return set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("arguments", [["start", "c"], ["kill", "c", "9"], ["delete", "--force", "c"]])
def test_a_call_loads_little(tmp_path: Path, arguments: list[str]) -> None:
    asked: list[dict[str, Any]] = []

    def serve(listener: socket.socket) -> None:
        link, _ = listener.accept()
        with link, link.makefile("rb") as incoming:
            asked.append(json.loads(incoming.read(int.from_bytes(incoming.read(4), "big"))))
            link.sendall(protocol.framed({"answer": None}))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / SOCKET))
        listener.listen()
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        script = "from orlop.oci.command.main import main; assert main(sys.argv[1:]) == 0"
        found = loaded(script, "--state", os.fspath(tmp_path), "--log-format=json", *arguments)
    assert asked[0]["verb"] == arguments[0] and asked[0]["id"] == "c"
    assert not SLOW & found
    assert not SLOW & loaded("from orlop.oci.command import namespaces, processes")


PLAIN = """
--log-format=json --log /b/log create --bundle /b --pid-file /b/pid c
--systemd-cgroup --root /r create --bundle=/b --no-pivot --preserve-fds 2 --console-socket /s c
--log-format=json --log /b/log exec --pid-file /b/pid --process /b/p.json --detach c
exec -e A=b -e C=d --user 1:2 -g 3 -t c sh -c 'ls -l'
exec --tty --cwd=/tmp c env --unset=A
run -d --keep -b /b c
start c
state c
kill c
kill c 9
kill --all c KILL
delete --force c
delete c --force
list -q
list --format json
ps --format json c
ps c -ef
pause c
features
spec -b /b
update --resources - c
update --memory 5 c
events --stats c
checkpoint c --image-path /x
""".strip().splitlines()
"""As podman and conmon, CRI-O, Docker's shim, and people call."""


@pytest.mark.parametrize("line", PLAIN)
def test_a_plain_command_line_is_read_as_argparse_reads_it(line: str) -> None:
    words = shlex.split(line)
    found = options.read(words)
    assert found is not None and vars(found) == vars(parser.parse(words))


def _words() -> st.SearchStrategy[list[str]]:
    names = {name for verb in options.VERBS.values() for one in verb.options for name in one.names}
    names |= {name for one in options.GLOBAL for name in one.names}
    given = st.sampled_from(sorted(names)) | st.sampled_from(sorted(names)).map(lambda name: f"{name}=1")
    word = st.sampled_from(["c", "9", "-1", "", "json", "-", "--", "-x", "-h"]) | given
    return st.tuples(
        st.lists(given, max_size=2), st.sampled_from(sorted(options.VERBS)), st.lists(word, max_size=5)
    ).map(lambda parts: [*parts[0], parts[1], *parts[2]])


@given(_words())
def test_what_is_not_plain_is_left_to_argparse(words: list[str]) -> None:
    found = options.read(words)
    if found is not None:
        assert vars(found) == vars(parser.parse(words))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_json_is_what_the_library_says(value: Any) -> None:
    text = plainjson.written(value)
    assert text == json.dumps(value, separators=(",", ":")) and text.isascii()
    for one in (text, json.dumps(value, indent=2, ensure_ascii=False), f" \n{text}\t\r\n"):
        assert plainjson.read(one) == value


@given(st.text(alphabet='{}[]",:truefalsn0123456789.eE+- \\u\n\ufeff\0', max_size=12))
def test_json_that_is_none_is_told_in_the_words_of_the_library(text: str) -> None:
    def told(read: Callable[[str], object]) -> str:
        try:
            return repr(read(text))
        except ValueError as error:
            return str(error)

    assert told(plainjson.read) == told(json.loads)


def test_a_new_config_is_one_that_is_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["spec", "--bundle", os.fspath(tmp_path)]) == 0
    found = document.config((tmp_path / "config.json").read_bytes())
    translate.check(found)
    assert _container(found).security.no_new_privs
    assert main.main(["spec", "--bundle", os.fspath(tmp_path)]) == 1
    assert main.main(["features"]) == 0
    assert json.loads(capsys.readouterr().out)["linux"]["seccomp"] == {"enabled": True}
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("orlop-oci version ")


@pytest.mark.parametrize(
    ("kind", "path", "reason"),
    [
        ("network", "/proc/self/ns/ipc", "a namespace of another kind"),
        ("uts", "/proc/self/ns/mnt", "a namespace of another kind"),
        ("pid", "/proc/self/ns/pid", "the host's \\w+ namespace"),
        ("mount", "/proc/self/ns/mnt", "the host's \\w+ namespace"),
        ("ipc", "/etc/passwd", "is not a namespace"),
        ("ipc", "/nowhere", "open /nowhere: no such file or directory"),
    ],
)
def test_a_namespace_is_what_the_document_says(kind: str, path: str, reason: str) -> None:
    others = [{"type": "network"}] if kind != "network" else []
    with pytest.raises(OrlopError, match=reason):
        namespaces.check({"linux": {"namespaces": [{"type": kind, "path": path}, *others]}})
    assert namespaces.check({"linux": {"namespaces": [{"type": kind}, *others]}}) == ""
