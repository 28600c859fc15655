"""What people write on the command line, and the log files the commands read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.cli import units
from orlop.client import health, logs, mounts, options, rights, texts
from orlop.client.launch import (
    MemoryMount,
    NamedMount,
    RunOptions,
    SocketMount,
    container_config,
    pod_config,
)
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument
from orlop.pods import socketplaces, tmpfs
from orlop.pods.requests import MountRequest
from orlop.sandbox import crilog
from orlop.sandbox.spec import Tmpfs


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("512m", 512 << 20),
        ("1.5g", 3 << 29),
        ("2GiB", 2 << 30),
        ("64 kb", 64 << 10),
        ("1T", 1 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert texts.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "-1m", "1x", "1mm", "lots"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a size"):
        texts.parse_size(text)


def test_ports() -> None:
    plain = options.parse_port("8080:80")
    assert (plain.host_ip, plain.host_port, plain.container_port, plain.protocol) == ("", 8080, 80, pb.TCP)
    bound = options.parse_port("127.0.0.1:53:5353/udp")
    assert (bound.host_ip, bound.host_port, bound.container_port) == ("127.0.0.1", 53, 5353)
    assert bound.protocol == pb.UDP
    assert options.parse_port("[::1]:1:2").host_ip == "::1"


@pytest.mark.parametrize("text", ["80", "a:80", "80:", ":80", "0:80", "80:65536", "1:2/icmp", "80:٣"])
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(InvalidArgument):
        options.parse_port(text)


def test_variables_come_from_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "here")
    file = tmp_path / "variables"
    file.write_text("# what it needs\n\nA=1\nFROM_HERE\n  B=two words \n")
    found = units.environment(["A=2"], [file], tty=False)
    assert [(one.key, one.value) for one in found] == [
        ("A", b"1"), ("FROM_HERE", b"here"), ("B", b"two words"), ("A", b"2"),
    ]  # fmt: skip
    with pytest.raises(InvalidArgument, match="cannot be read: No such file"):
        units.environment([], [tmp_path / "none"], tty=False)
    with pytest.raises(InvalidArgument, match="cannot be read: Is a directory"):
        units.environment([], [tmp_path], tty=False)


def test_labels() -> None:
    assert units.labels(["a=b=c", "alone"]) == {"a": "b=c", "alone": ""}
    with pytest.raises(InvalidArgument, match="--label KEY=VALUE"):
        units.labels(["=x"])


def test_volumes(tmp_path: Path) -> None:
    mount = mounts.parse_volume(f"{tmp_path}:/data:ro")
    assert isinstance(mount, pb.Mount)
    assert (mount.host_path, mount.container_path, mount.readonly) == (str(tmp_path), "/data", True)
    assert mounts.parse_volume(f"{tmp_path}:/data") == pb.Mount(
        container_path="/data", host_path=str(tmp_path)
    )
    assert mounts.parse_volume("data:/data:ro") == NamedMount("data", "/data", read_only=True)
    for wrong in (
        f"{tmp_path}",
        f"{tmp_path}:data",
        f"{tmp_path}:/data:rx",
        ":/data",
        f"{tmp_path}/none:/data",
    ):
        with pytest.raises(InvalidArgument):
            mounts.parse_volume(wrong)


def test_volumes_with_options(tmp_path: Path) -> None:
    mount = mounts.parse_volume(f"{tmp_path}:/data:ro,noexec,Z")
    assert isinstance(mount, pb.Mount) and mount.readonly and mount.selinux_relabel
    assert list(mount.mount_options) == ["noexec"]
    assert mounts.parse_volume("data:/d:nosuid") == NamedMount("data", "/d", options=("nosuid",))


def test_a_directory_for_sockets(tmp_path: Path) -> None:
    found = mounts.parse_volume(f"{tmp_path}:/run/app:sockets,noexec")
    assert isinstance(found, SocketMount) and list(found.mount.mount_options) == ["noexec"]
    other = mounts.parse_volume(f"{tmp_path}:/run/b:sockets")
    config = container_config(RunOptions("image", volumes=(found, other)), "one", alone=True)
    assert [one.container_path for one in config.mounts] == ["/run/app", "/run/b"]
    assert config.annotations[socketplaces.ANNOTATION] == "/run/app,/run/b"
    for wrong in ("data:/run:sockets", f"{tmp_path}:/run:sockets,ro", f"{tmp_path}:/a,b:sockets"):
        with pytest.raises(InvalidArgument, match="sockets is for a directory"):
            mounts.parse_volume(wrong)


def test_memory_as_a_volume() -> None:
    assert mounts.parse_tmpfs("/tmp") == MemoryMount("/tmp")
    assert mounts.parse_tmpfs("/t:size=64m,mode=700,ro,noexec,rw") == MemoryMount(
        "/t", 64 << 20, 0o700, True, ("noexec",)
    )
    found = mounts.parse_mount("type=tmpfs,target=/t,tmpfs-size=1k,tmpfs-mode=1770,readonly")
    assert found == MemoryMount("/t", 1024, 0o1770, True)
    for wrong in ("tmp", "/t:size=lots", "/t:mode=8", "/t:async", "/t:size", ""):
        with pytest.raises(InvalidArgument):
            mounts.parse_tmpfs(wrong)


def test_rights() -> None:
    assert rights.ulimit("nofile=1024") == "NOFILE=1024:1024"
    assert rights.ulimit("NPROC=10:unlimited") == "NPROC=10:unlimited"
    assert rights.device("/dev/null") == pb.Device(
        host_path="/dev/null", container_path="/dev/null", permissions="rwm"
    )
    assert rights.device("/dev/null:/dev/x:r").container_path == "/dev/x"
    assert rights.device("/dev/null:r").permissions == "r"
    assert rights.signal_number("") == pb.SIGNAL_RUNTIME_DEFAULT
    assert rights.signal_number("usr1") == rights.signal_number("10") == pb.SIGNAL_SIGUSR1
    assert rights.signal_number("RTMIN+3") == pb.SIGNAL_SIGRTMINPLUS3
    assert rights.sysctls(["net.core.somaxconn=5"]) == {"net.core.somaxconn": "5"}
    found = rights.security(["no-new-privileges:true", "seccomp=unconfined"])
    assert found["no_new_privileges"] and found["seccomp"].profile_type == pb.SecurityProfile.Unconfined
    for parse, wrong in (
        (rights.ulimit, "nofile"), (rights.ulimit, "nofile=a"), (rights.ulimit, "nofile=1:2:3"),
        (rights.device, "null"), (rights.device, "/dev/null:rwx"), (rights.device, "/dev/no-such"),
        (rights.device, "/dev/null:/a:r:b"), (rights.signal_number, "NONE"), (rights.signal_number, "0"),
        (rights.signal_number, "99"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument):
            parse(wrong)
    for many, wrong in ((rights.sysctls, "a"), (rights.security, "label=disable"), (rights.security, "")):
        with pytest.raises(InvalidArgument):
            many([wrong])


def test_what_cri_has_no_words_for_is_said_in_annotations() -> None:
    launch = RunOptions(
        "image", volumes=(MemoryMount("/t"),), ulimits=("NOFILE=1:2",), pids=7, stop_timeout=3
    )
    config = container_config(launch, "one", alone=True)
    assert config.annotations["rlimits.orlop.io/container.one"] == "NOFILE=1:2"
    assert config.annotations["io.orlop.cli/stop-timeout"] == "3"
    assert config.linux.resources.unified["pids.max"] == "7"
    (made,) = tmpfs.among((), config.annotations)
    assert made.container_path == "/t" and made.tmpfs == Tmpfs()
    assert not pod_config(launch, "one", "uid").linux.resources.unified
    assert not container_config(RunOptions("image"), "one", alone=True).annotations


def test_the_annotation_for_memory_is_checked() -> None:
    deep, flat = MountRequest(container_path="/a/b/c", host_path="/x"), MountRequest(container_path="/a")
    text = '[{"path": "/a/b/", "size": 5, "options": ["noexec"]}]'
    found = tmpfs.among((deep, flat), {tmpfs.ANNOTATION: text})
    assert [one.container_path for one in found] == ["/a", "/a/b", "/a/b/c"]
    assert found[1].tmpfs == Tmpfs(size=5) and found[1].options == ("noexec",)
    for wrong in ("[", "{}", '[{"path": "/a", "size": -1}]', '[{"path": "/a", "mode": 9999}]', "[{}]",
                  '[{"path": "/a", "other": 1}]', '[{"path": "/a", "options": ["suid"]}]', "[" * 5000,
                  json.dumps([{"path": "/a"}] * 65)):  # fmt: skip
        with pytest.raises(InvalidArgument, match="tmpfs"):
            tmpfs.among((), {tmpfs.ANNOTATION: wrong})


def test_mounts(tmp_path: Path) -> None:
    bound = pb.Mount(container_path="/data", host_path=str(tmp_path), readonly=True)
    assert mounts.parse_volume("type=volume,source=data,target=/d") == NamedMount("data", "/d")
    assert mounts.parse_mount(f"type=bind,src={tmp_path},dst=/data,ro") == bound
    assert mounts.parse_mount("type=volume,source=data,target=/data") == NamedMount("data", "/data")
    assert mounts.parse_mount("source=data,target=/d,readonly=true") == NamedMount("data", "/d", True)
    for wrong, said in (
        ("type=tmpfs,source=x,target=/tmp", "tmpfs has no source"),
        ("type=tmpfs,target=/tmp,tmpfs-mode=999", "mode such as 1777"),
        ("type=bind,target=/tmp,tmpfs-size=1m", "bind has no tmpfs-size"),
        ("type=volume,target=/data", "name of a volume"),
        ("type=volume,source=a/b,target=/data", "name of a volume"),
        ("type=volume,source=data,target=data", "slash"),
        ("type=volume,source=data", "slash"),
        ("type=bind,target=/data", "no path"),
        (f"type=bind,source={tmp_path}/none,target=/data", "does not exist"),
        ("type=volume,source=data,target=/data,size=5", "size=5"),
        ("source=data,source=other,target=/data", "each once"),
        ("type=disk,source=data,target=/data", "not disk"),
        ("source=data,target=/data,readonly=maybe", "readonly"),
        ("", "write"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            mounts.parse_mount(wrong)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "yes")
    assert units.parse_environment("A=b=c") == pb.KeyValue(key="A", value=b"b=c")
    assert units.parse_environment("FROM_HERE").value == b"yes"
    with pytest.raises(InvalidArgument):
        units.parse_environment("=x")


def test_sizes_are_shown_short() -> None:
    shown = [units.show_size(size) for size in (0, 1023, 1024, 1536, 150 << 20, 5 << 40)]
    assert shown == ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "150 MiB", "5.0 TiB"]


@given(st.lists(st.binary(max_size=40000).filter(lambda line: b"\n" not in line), max_size=5))
def test_a_log_reads_as_it_was_written(lines: list[bytes]) -> None:
    text = b"".join(line + b"\n" for line in lines)
    raw = crilog.format_lines(crilog.STDERR, text, 1_700_000_000_000_000_001)
    found = [logs.parse(one) for one in raw.split(b"\n") if one]
    assert b"".join(one.content for one in found if one) == text
    assert all(one and one.stream == "stderr" and one.time.endswith("000000001Z") for one in found)


@given(st.binary(max_size=200).filter(lambda line: b"\n" not in line))
def test_no_bytes_break_the_reader(raw: bytes) -> None:
    line = logs.parse(raw)
    assert line is None or line.stream in ("stdout", "stderr")


async def test_a_growing_and_rotated_log_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    rounds = 0

    def entry(text: str) -> bytes:
        return crilog.format_lines(crilog.STDOUT, text.encode(), 1)

    async def ended() -> bool:
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            path.write_bytes(entry("one\n") + entry("two\n")[:10])
        elif rounds == 3:
            with path.open("ab") as file:
                file.write(entry("two\n")[10:])
        elif rounds == 4:
            path.rename(tmp_path / "log.1")
            path.write_bytes(entry("three\n"))
        return rounds >= 6

    seen = [line.content async for line in logs.follow(path, ended)]
    assert seen == [b"one\n", b"two\n", b"three\n"]


def test_help_does_not_wait_for_grpc() -> None:
    code = "import sys, orlop.cli.main; print({'grpc', 'rich', 'msgspec'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "grpc" not in done.stdout and "msgspec" not in done.stdout


@pytest.mark.parametrize(
    ("parse", "argument"),
    [
        (texts.parse_size, b"9" * 400),
        (texts.parse_size, b"9" * 5000),
        (options.parse_port, b"1" * 5000 + b":80"),
        (options.parse_port, b"\xff:8080:80"),
        (mounts.parse_volume, b"~nobody-of-that-name:/data"),
        (mounts.parse_volume, b"/tmp:/\xff"),
        (mounts.parse_volume, b"x" * 5000 + b":/data"),
        (units.parse_environment, b"\xff=value"),
    ],
)
def test_an_argument_may_be_any_bytes(parse: Callable[[str], object], argument: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse(os.fsdecode(argument))


def test_a_value_may_be_any_bytes() -> None:
    assert units.parse_environment(os.fsdecode(b"A=\xff")).value == b"\xff"


def test_health_checks_are_said_as_podman_has_them() -> None:
    second = 1_000_000_000
    assert json.loads(health.wish()) == {}
    assert json.loads(health.wish("curl -f localhost || exit 1", interval="1m30s", retries=2)) == {
        "test": ["CMD-SHELL", "curl -f localhost || exit 1"],
        "interval": 90 * second,
        "retries": 2,
    }
    for command, test in (
        ('["a", "b c"]', ["CMD", "a", "b c"]),
        (["a", "b c"], ["CMD", "a", "b c"]),
        ('["CMD-SHELL", "x"]', ["CMD-SHELL", "x"]),
        ("none", ["NONE"]),
        (" x ", ["CMD-SHELL", "x"]),
    ):
        assert json.loads(health.wish(command))["test"] == test  # type: ignore[arg-type]
    assert json.loads(health.wish("x", interval="disable", timeout=1.5, start_period="500ms")) == {
        "test": ["CMD-SHELL", "x"],
        "interval": 0,
        "timeout": 3 * second // 2,
        "start_period": second // 2,
    }
    for wrong in ("[", "[]", "[1]", "x\udcff"):
        with pytest.raises(InvalidArgument):
            health.wish(wrong)
    for name, value in (
        ("interval", "soon"), ("interval", "10ms"), ("timeout", "0"), ("timeout", -1.0), ("start_period", -1),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument):
            health.wish("x", **{name: value})  # type: ignore[arg-type]
