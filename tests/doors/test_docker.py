"""Docker, which nobody here wrote, with containers that are VMs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doors.docker import IMAGE, Docker, docker
from tests.doors.terminal import Terminal, until
from tests.node import Node, scratch_directory


@pytest.fixture(scope="module")
def installed(shared_node: Node) -> Iterator[Docker]:
    with scratch_directory("orlop-docker-") as scratch, docker(scratch, shared_node) as one:
        yield one


@pytest.fixture
def run(installed: Docker) -> Iterator[Docker]:
    """Docker, which has no container before and after each test."""
    yield installed
    installed.remove_containers()


def test_a_service_is_reached_entered_paused_and_stopped(run: Docker, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("page\n")
    script = (
        # What serves has done all the rest.
        "trap 'echo bye; exit 3' TERM; echo up; echo w > /data/written; "
        "httpd -p 80 -h /data; sleep 600 & wait"
    )
    options = ("--name", "service", "-p", "8080:80", "-v", f"{tmp_path}:/data")
    run("run", "-d", *options, IMAGE, "sh", "-c", script)
    until(lambda: run.fetch("http://127.0.0.1:8080/") == "page\n", "it does not serve")
    assert (tmp_path / "written").read_text() == "w\n"
    options = ("-e", "A=b", "-w", "/etc", "-u", "33:33")
    done = run("exec", *options, "service", "sh", "-c", "id -u; pwd; echo $A; exit 5", check=False)
    assert (done.code, done.out) == (5, "33\n/etc\nb\n"), done
    assert run("exec", "-i", "service", "cat", stdin=b"x" * 100_000).raw == b"x" * 100_000
    run("pause", "service")
    assert run("inspect", "--format", "{{.State.Status}}", "service").out == "paused\n"
    run("unpause", "service")
    run("update", "--memory", "64m", "--memory-swap", "64m", "service")
    assert run("exec", "service", "cat", "/sys/fs/cgroup/memory.max").out == f"{64 << 20}\n"
    run("stop", "-t", "60", "service")
    assert run("logs", "service").out == "up\nbye\n"
    assert run("inspect", "--format", "{{.State.ExitCode}}", "service").out == "3\n"
    run("start", "service")
    until(lambda: run("logs", "service").out.count("up") == 2, "it was not started again")
    run("kill", "service")
    assert run("wait", "service").out == "137\n"


def test_a_terminal_is_the_callers(run: Docker) -> None:
    with Terminal(run, "run", "--rm", "-it", IMAGE, "sh") as terminal:
        terminal.expect("# ")
        # Docker tells the size once the container runs.
        terminal.type("until stty size | grep '33 101'; do sleep 0.1; done; exit 6\n")
        terminal.expect("33 101\r\n")
        assert terminal.code() == 6


def test_containers_of_one_network_talk(run: Docker) -> None:
    run("network", "create", "both")
    script = "echo shared > /tmp/index.html; exec httpd -f -p 80 -h /tmp"
    run("run", "-d", "--name", "web", "--network", "both", IMAGE, "sh", "-c", script)
    address = run("inspect", "--format", "{{.NetworkSettings.Networks.both.IPAddress}}", "web").out.strip()
    until(lambda: run.fetch(f"http://{address}/") == "shared\n", "it does not serve")
    script = f"wget -qO- http://{address}/; cat /proc/sys/kernel/random/boot_id"
    done = run("run", "--rm", "--network", "both", IMAGE, "sh", "-c", script)
    boot = run("exec", "web", "cat", "/proc/sys/kernel/random/boot_id").out
    served, other = done.out.splitlines()
    # Each is a machine of its own.
    assert served == "shared" and other != boot.strip()
    run("rm", "--force", "web")
    run("network", "rm", "both")


def test_what_cannot_be_says_so_in_dockers_words(run: Docker) -> None:
    done = run("run", "--rm", "--pid", "host", IMAGE, "true", check=False)
    assert done.code == 125 and "host's PID namespace, which a VM does not share" in done.err, done
    done = run("run", "--rm", IMAGE, "nosuchprogram", check=False)
    assert done.code == 127 and "executable file not found in $PATH" in done.err, done
    assert run("run", "--rm", IMAGE, "sh", "-c", "exit 9", check=False).code == 9
