"""podman, which nobody here wrote, with containers that are VMs."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.sandbox.vm.listeners import is_served
from tests.conformance import tools
from tests.doors.podman import Podman, podman
from tests.doors.terminal import LIMIT, Terminal, until
from tests.e2e.test_vm_sockets import caller
from tests.node import BUSYBOX, Node

PAUSE = "registry.k8s.io/pause:3.10"


@pytest.fixture(scope="module")
def installed(shared_node: Node) -> Iterator[Podman]:
    with tempfile.TemporaryDirectory(prefix="orlop-podman-") as name, podman(Path(name), shared_node) as one:
        for image in (BUSYBOX, PAUSE):
            one("pull", "-q", "--tls-verify=false", image)
        yield one


@pytest.fixture
def run(installed: Podman) -> Iterator[Podman]:
    """podman, which has no container before and after each test, and the runtime none either."""
    yield installed
    installed.remove_containers()
    none_left(installed)


def none_left(run: Podman) -> None:
    """What podman has removed, another of its processes may still be deleting."""
    until(lambda: run.containers() == [], "the runtime still knows a container")


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=LIMIT) as answer:
        return str(answer.read().decode())


def serves(port: int) -> bool:
    try:
        return bool(fetch(port))
    except OSError:
        return False


def test_a_container_runs_as_its_image_and_its_caller_say(run: Podman) -> None:
    script = (
        "id -u; pwd; hostname; echo $WHO; echo err >&2; touch /made && ls -n /made | cut -d' ' -f1; exit 7"
    )
    options = ("--hostname", "inside", "-w", "/tmp", "-e", "WHO=me", "--add-host", "other:1.2.3.4")
    done = run("run", "--rm", *options, BUSYBOX, "sh", "-c", script, check=False)
    assert (done.code, done.err) == (7, "err\n"), done
    assert done.out.split() == ["0", "/tmp", "inside", "me", "-rw-r--r--"]
    script = "id -u; grep other /etc/hosts; echo x > /new; df /memory | tail -1"
    options = ("--user", "33:33", "--read-only", "--tmpfs", "/memory:size=1m", "--add-host", "other:1.2.3.4")
    done = run("run", "--rm", *options, BUSYBOX, "sh", "-c", script)
    assert "Read-only file system" in done.err or "Permission denied" in done.err
    assert done.out.split()[:3] == ["33", "1.2.3.4", "other"] and " 1024 " in done.out
    assert run("run", "--rm", "-i", BUSYBOX, "wc", "-c", stdin=b"data\n" * 50_000).out == "250000\n"
    limit = ("--network", "none", "--memory", "64m", BUSYBOX, "cat", "/sys/fs/cgroup/memory.max")
    assert run("run", "--rm", *limit).out == f"{64 << 20}\n"


def test_a_service_is_reached_entered_and_stopped(run: Podman, tmp_path: Path) -> None:
    port = tools.free_port()
    (tmp_path / "index.html").write_text("page\n")
    script = (
        # What serves has done all the rest.
        "trap 'echo bye; exit 3' TERM; echo up; echo w > /data/written; "
        "httpd -p 80 -h /data; sleep 600 & wait"
    )
    options = ("--name", "service", "-p", f"{port}:80", "-v", f"{tmp_path}:/data")
    run("run", "-d", *options, BUSYBOX, "sh", "-c", script)
    until(lambda: serves(port), "it does not serve")
    (tmp_path / "index.html").write_text("from the host\n")
    assert fetch(port) == "from the host\n" and (tmp_path / "written").read_text() == "w\n"
    options = ("-e", "A=b", "-w", "/etc", "-u", "33:33")
    done = run("exec", *options, "service", "sh", "-c", "id -u; pwd; echo $A; exit 5", check=False)
    assert (done.code, done.out) == (5, "33\n/etc\nb\n")
    assert run("exec", "-i", "service", "cat", stdin=b"x" * 100_000).raw == b"x" * 100_000
    with Terminal(run, "exec", "-it", "service", "sh") as terminal:
        terminal.expect("# ")
        # The size comes on another way than what is typed.
        terminal.type("until stty size | grep '33 101'; do sleep 0.1; done; tty\n")
        terminal.expect("33 101\r\n/dev/pts/")
        terminal.resize(44, 120)
        terminal.type("while [ \"$(stty size)\" != '44 120' ]; do usleep 100000; done; echo seen; exit 4\n")
        terminal.expect("seen\r\n")
        assert terminal.code() == 4
    run("stop", "-t", "60", "service")
    assert run("logs", "service").out == "up\nbye\n"
    assert run("inspect", "--format", "{{.State.ExitCode}}", "service").out == "3\n"
    run("start", "service")
    until(lambda: run("logs", "service").out.count("up") == 2, "it was not started again")
    run("kill", "--signal", "KILL", "service")
    assert run("wait", "service").out == "137\n"
    assert "w" in run("cp", "service:/data/written", "-").out
    run("rm", "service")


def test_the_host_connects_to_a_server_in_a_volume_for_sockets(run: Podman, tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    wish = ("--annotation", "volumes.orlop.io/sockets=/run/app", "-v", f"{place}:/run/app")
    server = ("/caller", "serve", "/run/app/s.sock", "600")
    run("run", "-d", "--name", "server", *wish, "-v", f"{caller()}:/caller:ro", BUSYBOX, *server)
    until(lambda: is_served(str(place / "s.sock")), "nobody listens")
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(LIMIT)
        link.connect(str(place / "s.sock"))
        link.sendall(b"hello")
        assert link.recv(64) == b"hello"
    run("rm", "--force", "--time", "0", "server")
    assert not any(place.iterdir())


def test_a_terminal_is_the_callers(run: Podman) -> None:
    with Terminal(run, "run", "--rm", "-it", BUSYBOX, "sh") as terminal:
        terminal.expect("# ")
        terminal.type("until stty size | grep '33 101'; do sleep 0.1; done; cat\n")
        terminal.expect("33 101\r\n")
        terminal.type("line\n")
        terminal.expect("line\r\nline\r\n")
        terminal.type("\x03")
        # Not the echo: what is typed before the end of cat is read by cat.
        terminal.expect("# ", times=2)
        terminal.type("echo code $?\n")
        terminal.expect("code 130\r\n")
        terminal.type("exit 6\n")
        assert terminal.code() == 6


def test_a_pod_is_one_machine(run: Podman) -> None:
    port = tools.free_port()
    run("pod", "create", "--name", "two", "-p", f"{port}:80")
    script = "echo shared > /tmp/index.html; httpd -f -p 80 -h /tmp"
    run("run", "-d", "--pod", "two", "--name", "web", BUSYBOX, "sh", "-c", script)
    until(lambda: serves(port), "it does not serve")
    done = run(
        "run",
        "--rm",
        "--pod",
        "two",
        BUSYBOX,
        "sh",
        "-c",
        "wget -qO- http://127.0.0.1/; cat /proc/sys/kernel/random/boot_id",
    )
    boot = run("exec", "web", "cat", "/proc/sys/kernel/random/boot_id").out
    assert done.out == f"shared\n{boot}"
    run("pod", "rm", "--force", "--time", "0", "two")


def test_a_pod_is_written_down_and_played_again(run: Podman, tmp_path: Path) -> None:
    port = tools.free_port()
    run("pod", "create", "--name", "two", "-p", f"{port}:80")
    script = "mkdir /tmp/www; echo first > /tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www"
    run("run", "-d", "--pod", "two", "--name", "web", BUSYBOX, "sh", "-c", script)
    run("run", "-d", "--pod", "two", "--name", "beside", BUSYBOX, "sleep", "600")
    file = tmp_path / "pod.yaml"
    file.write_text(run("generate", "kube", "two").out)
    run("pod", "rm", "--force", "--time", "0", "two")
    # On a network that goes with the test: without, podman would make one for all.
    run("play", "kube", "--network", run.network, "--tls-verify=false", os.fspath(file))
    until(lambda: serves(port), "it does not serve")
    assert run("exec", "two-beside", "wget", "-qO-", "http://127.0.0.1/").out == "first\n"
    run("play", "kube", "--down", os.fspath(file))
    none_left(run)


@pytest.fixture
def run_with_names(installed: Podman, shared_node: Node) -> Iterator[Podman]:
    """podman with networks of netavark: a second one, unless all are. All have one server of names."""
    with contextlib.ExitStack() as stack:
        one = installed
        if not one.netavark:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="orlop-podman-"))
            one = stack.enter_context(podman(Path(name), shared_node, netavark=True))
            one("pull", "-q", "--tls-verify=false", BUSYBOX)
            stack.enter_context(one.apart())
        yield one
        one.remove_containers()
        none_left(one)


def test_containers_of_a_network_know_each_others_names(run_with_names: Podman) -> None:
    run = run_with_names
    script = "echo named > /tmp/index.html; httpd -f -p 80 -h /tmp"
    run("run", "-d", "--name", "web", BUSYBOX, "sh", "-c", script)
    script = "until wget -qO- http://web/; do usleep 200000; done"
    assert run("run", "--rm", BUSYBOX, "sh", "-c", script).out == "named\n"


def test_health_is_looked_at_and_a_container_stands_still(run: Podman) -> None:
    options = ("--name", "patient", "--health-cmd", "test -e /well", "--health-interval", "disable")
    run("run", "-d", *options, BUSYBOX, "sleep", "600")
    assert run("healthcheck", "run", "patient", check=False).code == 1
    run("exec", "patient", "touch", "/well")
    assert run("healthcheck", "run", "patient").code == 0
    run("pause", "patient")
    assert run("inspect", "--format", "{{.State.Status}}", "patient").out == "paused\n"
    run("unpause", "patient")
    assert run("exec", "patient", "echo", "on").out == "on\n"


def test_privileges_are_those_of_the_vm(run: Podman) -> None:
    script = "mkdir /new && mount -t tmpfs none /new && grep -c ' /new tmpfs' /proc/mounts; test -c /dev/kmsg"
    assert run("run", "--rm", "--privileged", BUSYBOX, "sh", "-c", script).out == "1\n"


def test_an_image_is_built_in_vms(run: Podman, tmp_path: Path) -> None:
    shutil.copy(tools.busybox(), tmp_path / "sh")
    (tmp_path / "given").write_text("given\n")
    recipe = ("FROM scratch", "COPY sh /bin/", "COPY given /", "RUN read a < /given; echo $a more > /made")
    (tmp_path / "Containerfile").write_text("\n".join((*recipe, "")))
    run("build", "-t", "localhost/built", os.fspath(tmp_path))
    try:
        shown = run("run", "--rm", "localhost/built", "sh", "-c", "read a < /made; echo $a")
        assert shown.out == "given more\n"
    finally:
        run("rmi", "localhost/built")


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("--network", "host", BUSYBOX, "true"), 126, "host's network namespace, which a VM does not share"),
        (("--pid", "host", BUSYBOX, "true"), 126, "host's PID namespace, which a VM does not share"),
        ((BUSYBOX, "nosuchprogram"), 127, 'exec: "nosuchprogram": executable file not found in $PATH'),
        (("--device", "/dev/kmsg", BUSYBOX, "true"), 126, "which is not in the VM"),
    ],
)
def test_what_cannot_be_says_so_in_podmans_words(
    run: Podman, arguments: tuple[str, ...], code: int, reason: str
) -> None:
    done = run("run", "--rm", *arguments, check=False)
    assert done.code == code and reason in done.err and len(done.err.splitlines()) == 1, done
    none_left(run)


def test_a_daemon_that_is_killed_takes_no_container_with_it(run: Podman, shared_node: Node) -> None:
    script = "i=0; while [ ! -e /end ]; do i=$((i+1)); echo $i; usleep 200000; done; exit 9"
    run("run", "-d", "--name", "counts", BUSYBOX, "sh", "-c", script)
    inside = ("sh", "-c", "touch /entered; exec sleep 600")
    running = subprocess.Popen(run.argv("exec", "counts", *inside), env=run.env)
    until(lambda: len(run("logs", "counts").out.split()) > 3, "it does not count")
    entered = ("exec", "counts", "test", "-e", "/entered")
    until(lambda: run(*entered, check=False).code == 0, "nobody has entered it")
    shared_node.kill()
    try:
        done = run("exec", "counts", "true", check=False)
        assert done.code != 0 and "no orlopd listens at" in done.err
    finally:
        shared_node.start()
        shared_node.wait_ready()
    # What went through the daemon that is gone has ended; the container goes on.
    assert running.wait(LIMIT) == 137
    run("exec", "counts", "touch", "/end")
    assert run("wait", "counts").out == "9\n"
    counted = [int(line) for line in run("logs", "counts").out.split()]
    # A pipe cannot be asked what is in it: a moment may come twice, none is lost.
    assert sorted(set(counted)) == list(range(1, counted[-1] + 1))
    run("rm", "counts")
    shared_node.wait_no_leaks_but_warm()
