"""``orlop run -d --restart`` where the VM has ended, or the machine: the same container comes again."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from orlop.host.process import pid_alive, process_start_time
from tests.commandline import Cli, until
from tests.conformance.tools import free_port
from tests.node import BUSYBOX, Node, node

SERVE = (
    "echo run >> /data/runs; [ -e /mark ] && echo marked >> /data/runs; touch /mark; httpd -f -p 80 -h /data"
)
STATE = ("inspect", "--format", "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}")


@pytest.fixture
def cli(shared_node: Node) -> Iterator[Cli]:
    shared_node.remove_all()
    cli = Cli(shared_node)
    yield cli
    shared_node.remove_all()
    for volume in cli("volume", "ls", "-q").out.split():
        cli("volume", "rm", volume)


def served(port: int) -> str:
    """What the container serves of its volume; "" while it does not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/runs")
        return connection.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        connection.close()


def runs(port: int, times: int) -> None:
    """It runs for the so-manieth time, in a root that is new, with the volume that it had."""
    until(lambda: served(port) == "run\n" * times, f"it does not serve its run {times}: {served(port)!r}")


def state(cli: Cli, name: str) -> str:
    return cli(*STATE, name).out.strip()


def is_now(cli: Cli, name: str, wanted: str) -> bool:
    return state(cli, name) == wanted


def is_not(cli: Cli, name: str, unwanted: str) -> bool:
    return state(cli, name) != unwanted


def holds(file: Path, text: str) -> bool:
    return file.read_text() == text


def kill_vm(cli: Cli, name: str) -> None:
    pid = int(cli("inspect", "--format", "{{.State.Pid}}", name).out)
    assert "qemu" in Path(f"/proc/{pid}/cmdline").read_text()
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["guest", "host"])
def test_a_container_whose_vm_was_killed_runs_again(cli: Cli, kind: str) -> None:
    """With its id, pod, port and named volume; also when the daemon is killed on the way."""
    cli("volume", "create", *(("--vm",) if kind == "guest" else ()), "--size", "64m", "site")
    port = free_port()
    made = ("-d", "--name", "web", "--restart", "always", "-p", f"127.0.0.1:{port}:80", "-v", "site:/data")
    container_id = cli("run", *made, BUSYBOX, "sh", "-c", SERVE.replace(";", "; sync;", 1)).out.strip()
    pod_id = cli("pod", "ls", "-q", "--no-trunc").out.strip()
    runs(port, 1)
    kill_vm(cli, "web")
    runs(port, 2)
    assert state(cli, "web") == "running 1 0"
    for times, moment in enumerate(("at once", "when it is known", "when it is made"), 3):
        begun = cli.node.settings.log.stat().st_size
        kill_vm(cli, "web")
        if moment != "at once":
            until(partial(logged, cli, begun, "died"), "the end of the VM is not noticed")
        if moment == "when it is made":
            # What is left of the VM's start then, if anything, is all the same.
            until(partial(is_not, cli, "web", f"running {times - 2} 0"), "its end is not recorded")
        cli.node.kill()
        cli.node.start()
        runs(port, times)
    assert cli("ps", "-q", "--no-trunc").out.split() == [container_id]
    assert cli("pod", "ls", "-q", "--no-trunc").out.strip() == pod_id
    # A turn that a daemon had begun when it was killed was counted.
    assert state(cli, "web") in ("running 4 0", "running 5 0")
    cli("stop", "--time", "0", "web")
    cli("rm", "web")
    cli("volume", "rm", "site")
    cli.node.wait_no_leaks_but_warm()


def logged(cli: Cli, begun: int, word: str) -> bool:
    with cli.node.settings.log.open("rb") as log:
        log.seek(begun)
        return word.encode() in log.read()


def test_a_guest_that_panics_is_a_failure_and_counts(cli: Cli, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    done, end = tmp_path / "runs", tmp_path / "end"
    done.touch()
    script = "echo run >> /data/runs; until rm /data/end; do sleep 0.1; done; echo c > /proc/sysrq-trigger"
    made = ("-d", "--privileged", "--name", "bad", "--restart", "on-failure:2", "-v", f"{tmp_path}:/data")
    cli("run", *made, BUSYBOX, "sh", "-c", script)
    for times in (1, 2, 3):
        until(partial(holds, done, "run\n" * times), f"it does not run {times} times")
        end.touch()
    until(partial(is_now, cli, "bad", "exited 2 137"), "it does not end for good")
    assert "panicked" in cli("inspect", "bad").out
    assert holds(done, "run\n" * 3)
    cli("rm", "bad")
    cli.node.wait_no_leaks_but_warm()


@pytest.mark.parametrize("verb", ["stop", "rm"])
def test_who_ends_it_when_its_vm_has_ended_means_it(cli: Cli, tmp_path: Path, verb: str) -> None:
    """Whether the command comes before the new VM, while it is made or after it."""
    tmp_path.chmod(0o777)
    made = ("-d", "--name", "web", "--restart", "always", "-v", f"{tmp_path}:/data")
    cli("run", *made, BUSYBOX, "sh", "-c", "echo run >> /data/runs; sleep 3600")
    kill_vm(cli, "web")
    until(partial(is_not, cli, "web", "running 0 0"), "the end of the VM is not noticed")
    cli(*((verb, "--time", "0") if verb == "stop" else (verb, "--force")), "web")
    after = (tmp_path / "runs").read_text()
    cli.node.kill()
    cli.node.start()
    cli.node.wait_ready()
    if verb == "stop":
        assert state(cli, "web").startswith("exited")
        assert cli("pod", "ls", "--format", "{{.Status}}").out.strip() != "Running"
        cli("rm", "web")
    assert cli("ps", "-a", "-q").out.strip() == "" and cli("pod", "ls", "-q").out.strip() == ""
    assert (tmp_path / "runs").read_text() == after
    cli.node.wait_no_leaks_but_warm()


def test_containers_run_again_when_the_machine_was_restarted(registry: str) -> None:
    """Under both handlers, with volumes that must be mounted again; one that was stopped stays so."""
    with node(registry) as one:
        cli = Cli(one)
        ports = {"vm": free_port(), "process": free_port()}
        for handler, port in ports.items():
            cli("volume", "create", "--size", "64m", *(("--vm",) if handler == "vm" else ()), handler)
            made = ("-d", "--handler", handler, "--name", handler, "--restart", "on-failure:1")
            options = ("-p", f"127.0.0.1:{port}:80", "-v", f"{handler}:/data")
            cli("run", *made, *options, BUSYBOX, "sh", "-c", SERVE.replace(";", "; sync;", 1))
        cli("run", "-d", "--name", "stopped", "--restart", "always", BUSYBOX, "sleep", "3600")
        cli("stop", "--time", "0", "stopped")
        for port in ports.values():
            runs(port, 1)
        before = {handler: cli("inspect", "--format", "{{.Id}}", handler).out for handler in ports}
        restart_machine(one)
        for handler, port in ports.items():
            runs(port, 2)
            assert state(cli, handler) == "running 1 0"
            assert cli("inspect", "--format", "{{.Id}}", handler).out == before[handler]
        assert state(cli, "stopped").startswith("exited 0")
        restart_machine(one)
        for handler in ports:
            until(partial(is_now, cli, handler, "exited 1 137"), "it runs more often than was asked for")
        one.wait_no_leaks_but_warm()
        cli("rm", *ports, "stopped")
        cli("volume", "rm", *ports)


def restart_machine(one: Node) -> None:
    """All that a restart takes with it: processes, mounts, network, and what lies in memory."""
    one.kill()
    # Those of VMs do not show whose they are.
    vms = [json.loads(file.read_bytes()) for file in one.scratch.glob("state/vms/*/machine/machine.json")]
    processes = {(vm["pid"], vm["start_time"]) for vm in vms}
    for line in one.leaks():
        if line.startswith("process "):
            pid = int(line.split()[1].rstrip(":"))
            processes.add((pid, process_start_time(pid)))
    for pid, _ in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not any(pid_alive(*known) for known in processes), "processes do not end")
    mounted = [line.removeprefix("mount: ") for line in one.leaks() if line.startswith("mount: ")]
    for path in reversed(mounted):
        subprocess.run(["umount", "--lazy", path], check=True)
    subprocess.run(["ip", "link", "delete", one.settings.bridge], check=True)
    drop_rules(one.settings.bridge)
    shutil.rmtree(one.scratch / "state")
    shutil.rmtree(one.scratch / "volumes")
    Path(one.socket).unlink()
    one.start()


def drop_rules(bridge: str) -> None:
    """Take away the rules that hide the addresses of that network: their plug-in leaves them when it finds no
    network namespace any more."""
    done = subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, text=True, check=True)
    rules = [shlex.split(line)[1:] for line in done.stdout.splitlines() if bridge in line]
    hiding = [rule for rule in rules if rule[0] == "POSTROUTING" or re.fullmatch("CNI-[0-9a-f]{24}", rule[0])]
    for rule in hiding:
        subprocess.run(["iptables", "-w", "-t", "nat", "-D", *rule], check=True)
    for chain in {rule[0] for rule in hiding} - {"POSTROUTING"}:
        subprocess.run(["iptables", "-w", "-t", "nat", "-X", chain], check=True)
