"""nerdctl, which nobody here wrote, with containers that are VMs. ``make nerdctl`` runs it."""

from __future__ import annotations

import os
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance import tools
from tests.doors.containerd import Containerd, containerd
from tests.doors.terminal import Terminal, until
from tests.nerdctl.client import Nerdctl
from tests.node import BUSYBOX, Node
from tests.patience import PATIENCE

RELEASE = "1.7"


@pytest.fixture(scope="module")
def under(shared_node: Node, registry: str) -> Iterator[Containerd]:
    with (
        tempfile.TemporaryDirectory(prefix="orlop-nerdctl-") as name,
        containerd(Path(name), RELEASE, shared_node.scratch / "state", registry) as one,
    ):
        one.pull(BUSYBOX)
        yield one


@pytest.fixture(scope="module")
def installed(under: Containerd, shared_node: Node) -> Iterator[Nerdctl]:
    one = Nerdctl(under)
    try:
        yield one
    finally:
        one.remove_all()
    shared_node.wait_no_leaks_but_warm(60 * PATIENCE)
    assert list((shared_node.scratch / "state/shim-logging").iterdir()) == []


@pytest.fixture
def nerdctl(installed: Nerdctl) -> Iterator[Nerdctl]:
    yield installed
    installed.remove_containers()


def fetched(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=60 * PATIENCE) as answer:
            return answer.read().decode()  # type: ignore[no-any-return]
    except OSError:
        return ""


def test_a_container_ends_as_its_program_does(nerdctl: Nerdctl) -> None:
    script = "echo out; echo err >&2; cat /proc/sys/kernel/osrelease; exit 7"
    done = nerdctl.run("--rm", BUSYBOX, "sh", "-c", script, check=False)
    assert done.code == 7 and done.out.startswith("out\n") and done.err.endswith("err\n"), done
    assert os.uname().release not in done.out, "it is a VM"
    assert nerdctl.run("--rm", "-i", BUSYBOX, "cat", stdin=b"x" * 100_000).raw == b"x" * 100_000
    assert nerdctl("ps", "-a", "-q").out == ""


def test_without_a_network_there_is_none(nerdctl: Nerdctl) -> None:
    done = nerdctl.run("--rm", BUSYBOX, "sh", "-c", "ip -o -4 address; ip route", network="none")
    assert "127.0.0.1" in done.out and len(done.out.splitlines()) == 1, done


def test_a_service_is_reached_entered_logged_and_stopped(nerdctl: Nerdctl, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("page\n")
    port = tools.free_port()
    script = (
        "trap 'echo bye; exit 3' TERM; echo up; echo w > /data/written; "
        "httpd -p 80 -h /data; sleep 600 & wait"
    )
    options = ("-d", "--name", "service", "-p", f"{port}:80", "-v", f"{tmp_path}:/data", "-e", "A=b")
    nerdctl.run(*options, BUSYBOX, "sh", "-c", script)
    until(lambda: fetched(f"http://{nerdctl.address('service')}/") == "page\n", "it does not serve")
    assert (tmp_path / "written").read_text() == "w\n"
    done = nerdctl(
        "exec", "-w", "/etc", "-u", "33:33", "service", "sh", "-c", "id -u; pwd; echo $A; exit 5", check=False
    )
    # nerdctl says the code, and ends with 1.
    assert "exit code 5" in done.err and done.out == "33\n/etc\nb\n", done
    assert nerdctl("exec", "-i", "service", "cat", stdin=b"x" * 100_000).raw == b"x" * 100_000
    other = nerdctl.run("--rm", BUSYBOX, "wget", "-qO-", f"http://{nerdctl.address('service')}/")
    assert other.out == "page\n", "another VM on the network reaches it"
    for done in (
        nerdctl.run("--rm", BUSYBOX, "true", network="container:service", check=False),
        nerdctl.run("--rm", "--pid", "container:service", BUSYBOX, "true", check=False),
    ):
        assert done.code and "which is the VM of another task" in done.err, done
    gateway = nerdctl("exec", "service", "ip", "route").out.split()[2]
    assert fetched(f"http://{gateway}:{port}/") == "page\n", "its port is published"
    nerdctl("pause", "service")
    assert nerdctl.state("service")["Status"] == "paused"
    nerdctl("unpause", "service")
    nerdctl("stop", "-t", "60", "service")
    until(lambda: nerdctl("logs", "service").out == "up\nbye\n", "it is not logged")
    assert nerdctl.state("service")["ExitCode"] == 3
    nerdctl("start", "service")
    until(lambda: nerdctl("logs", "service").out.count("up") == 2, "it was not started again")
    until(lambda: fetched(f"http://{gateway}:{port}/") == "page\n", "its port is published again")
    nerdctl("kill", "service")
    assert nerdctl("wait", "service").out == "137\n"
    nerdctl("rm", "service")


def test_a_terminal_is_the_callers(nerdctl: Nerdctl) -> None:
    with Terminal(nerdctl, *nerdctl.running("--rm", "-it", "--name", "shell", BUSYBOX, "sh")) as terminal:
        terminal.expect("# ")
        terminal.type("until stty size | grep '33 101'; do sleep 0.1; done; tty\n")
        terminal.expect("33 101\r\n/dev/pts/")
        with Terminal(nerdctl, "exec", "-it", "shell", "sh") as other:
            other.expect("# ")
            other.type("exit 4\n")
            other.expect("exit code 4")
            assert other.code() == 1
        terminal.type("exit 5\n")
        assert terminal.code() == 5


def test_what_a_terminal_shows_is_logged(nerdctl: Nerdctl) -> None:
    nerdctl.run("-d", "-t", "--name", "shown", BUSYBOX, "sh", "-c", "echo out; echo err >&2")
    assert nerdctl("wait", "shown").out == "0\n"
    until(lambda: nerdctl("logs", "shown").out == "out\r\nerr\r\n", "it is not logged")


def test_one_that_ends_is_run_again(nerdctl: Nerdctl) -> None:
    nerdctl.run("-d", "--name", "again", "--restart", "always", BUSYBOX, "sh", "-c", "echo run; exit 1")
    until(lambda: nerdctl("logs", "again").out.count("run") > 1, "it is not run again")
    nerdctl("rm", "-f", "again")


def test_a_container_without_a_runtime_leaves_nothing(nerdctl: Nerdctl) -> None:
    done = nerdctl.run("--rm", BUSYBOX, "nosuchprogram", check=False)
    assert done.code and "nosuchprogram" in done.err, done
    done = nerdctl.run("--rm", BUSYBOX, "true", network="host", check=False)
    assert done.code and "host's network namespace, which a VM does not share" in done.err, done
