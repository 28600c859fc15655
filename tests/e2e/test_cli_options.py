"""What `orlop run` may be told, against a real daemon with both handlers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.sandbox.vm.listeners import is_served
from tests.commandline import Cli, Inside, until
from tests.e2e.test_vm_sockets import caller
from tests.node import BUSYBOX, Node
from tests.patience import PATIENCE


@pytest.fixture
def cli(shared_node: Node) -> Iterator[Cli]:
    shared_node.remove_all()
    yield Inside(shared_node)
    shared_node.remove_all()


@pytest.mark.parametrize("handler", ["vm", "process"])
def test_each_option_does_what_it_says(cli: Cli, tmp_path: Path, handler: str) -> None:
    script = """
        ulimit -n; ulimit -Hn
        grep ' /fast ' /proc/mounts; grep ' /slow ' /proc/mounts
        id -G
        grep NoNewPrivs /proc/self/status
        cat /sys/fs/cgroup/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids/pids.max
        grep -c ndots:3 /etc/resolv.conf; cat /proc/sys/net/ipv4/ip_default_ttl
        (sleep 0.1 & exec sleep 0.01) & wait; sleep 0.5
        while grep -q 'State:.Z' /proc/[0-9]*/status; do sleep 0.1; done; echo none
        trap 'echo told; exit 5' USR1; echo ready; while :; do sleep 0.1; done
    """
    id_file = tmp_path / "id"
    options = (
        *("--ulimit", "nofile=500:600", "--tmpfs", "/fast:size=1m,noexec"),
        *("--mount", "type=tmpfs,target=/slow,tmpfs-mode=700,readonly", "--group-add", "77"),
        *("--security-opt", "no-new-privileges", "--pids-limit", "50", "--init"),
        *("--dns-option", "ndots:3", "--sysctl", "net.ipv4.ip_default_ttl=33"),
        *("--stop-signal", "USR1", "--stop-timeout", "60", "--cidfile", str(id_file)),
    )
    args = ("run", "-d", "--name", "told", "--handler", handler, *options, BUSYBOX, "sh", "-c", script)
    started = cli(*args, timeout=200).out
    assert id_file.read_text() == started.strip()
    until(lambda: "ready" in cli("logs", "told").out, "it does not get there")
    lines = cli("logs", "told").out.splitlines()
    assert lines[:2] == ["500", "600"]
    assert "tmpfs" in lines[2] and "size=1024k" in lines[2] and "noexec" in lines[2]
    assert "tmpfs" in lines[3] and "mode=700" in lines[3] and " ro," in lines[3]
    assert "77" in lines[4].split() and lines[5].split()[1] == "1"
    assert lines[6:9] == ["50", "1", "33"]
    assert lines[9:] == ["none", "ready"], "an orphan was not collected"
    taken = cli(*args, check=False)
    assert taken.code == 2 and "there already" in taken.err
    # It is told by its own signal, and has its own time for that.
    cli("stop", "told")
    assert cli("wait", "told").out == "5\n" and "told" in cli("logs", "--tail", "1", "told").out
    id_file.unlink()
    again = cli("run", "--rm", "--replace", "--name", "told", "--handler", handler, BUSYBOX, "echo", "new")
    assert again.out == "new\n" and cli("ps", "-aq").out.strip() == ""


@pytest.mark.parametrize("handler", ["vm", "process"])
def test_the_host_connects_to_a_server_in_a_volume_for_sockets(
    cli: Cli, tmp_path: Path, handler: str
) -> None:
    place = tmp_path / "run"
    place.mkdir()
    volumes = ("-v", f"{place}:/run/app:sockets", "-v", f"{caller()}:/caller:ro")
    server = ("/caller", "serve", "/run/app/s.sock", "600")
    cli("run", "-d", "--name", "server", "--handler", handler, *volumes, BUSYBOX, *server, timeout=200)
    until(lambda: is_served(str(place / "s.sock")), "nobody listens")
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(60 * PATIENCE)
        link.connect(str(place / "s.sock"))
        link.sendall(b"hello")
        assert link.recv(64) == b"hello"
    cli("exec", "server", "rm", "/run/app/s.sock")
    until(lambda: not any(place.iterdir()), "the socket is still there")
    cli("rm", "-f", "server")


def test_options_that_cannot_be_served_are_refused(cli: Cli, tmp_path: Path) -> None:
    cli("pod", "create", "shop", "--handler", "process")
    for args, code, said in (
        (("--handler", "process", "--ulimit", "nofile=9999999"), 125, "other pods' cost"),
        (("--ulimit", "nonsense=5"), 2, "no limit nonsense"),
        (("--tmpfs", "tmp"), 2, "slash"),
        (("--pod", "shop", "--dns-option", "a"), 2, "orlop pod create"),
        (("--replace",), 2, "--name"),
        (("--stop-signal", "LOUD"), 2, "no signal LOUD"),
        (("--health-on-failure", "kill"), 2, "orlop wait"),
        (("--health-cmd", "true", "--health-timeout", "soon"), 2, "no time"),
        (("--shm-size", "1g"), 2, "--tmpfs"),
    ):
        done = cli("run", "--cidfile", str(tmp_path / "id"), *args, BUSYBOX, "true", check=False)
        assert done.code == code and said in done.err and done.err.strip().count("\n") == 0, done
        assert not (tmp_path / "id").exists()
    assert cli("ps", "-aq").out.strip() == ""
